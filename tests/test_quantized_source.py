"""A model that is quantized already: what was exported is read as it was scored, and nothing is calibrated again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import some
from matrix_table import FORMATS
from safetensors.torch import load_file, save_file
from targets import settings
from targets import written as deployed
from test_comfyui import FILE, first
from test_layouts import FOLDER, made
from test_packed import packed
from test_svdquant_layouts import NAME, SETTLED
from tiny import Bench, bench, emoji, folder
from tiny_pipelines import TINY

from diffopt import models
from diffopt.artifact import Checkpoint
from diffopt.errors import ConfigError, SourceError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.groups.quantized_source import recognised
from diffopt.kernels.block_scales import straight, tiled
from diffopt.kernels.capability import KIND
from diffopt.kernels.convert import convert
from diffopt.layouts import COMFYUI, nunchaku, svdquant_reader
from diffopt.layouts.families import NAMES
from diffopt.quantization import checkpoint
from diffopt.quantization.block_codes import tensor_scale
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.folding import fold
from diffopt.quantization.numbers import numbers, unpacked
from diffopt.quantization.numbers import packed as packed_codes
from diffopt.stages.adopt import CameView, SourceView, adopt
from diffopt.stages.deploy import LayoutView, deploy
from diffopt.stages.pack import ShardView, pack
from diffopt.store.source import Source

LAYER = "transformer_blocks.0.attn.to_q"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def read(b: Bench, path: Path) -> Checkpoint:
    """The checkpoint of what lies there."""
    source, found = Source(str(path)), recognised(path, models.family(b.family))
    assert found
    b.sources.digest(source)
    ctx = b.context()
    adopt.run(ctx, SourceView(family=b.family, source=source), CameView(name=found.name), b.pipeline())
    return Checkpoint(ctx.out, "adopted")


def same_as(b: Bench, name: str, came: Checkpoint, inputs: bool = True, **how: Any) -> None:
    """Scales, rounded weights and what the backbone computes, bit for bit; without `inputs` the weights and their scales."""
    scored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, **how))
    found = checkpoint.restore(b.context(), b.pipeline(), came)
    ours, theirs = ({n: x for n, x in checkpoint.state(m).items() if inputs or "weight" in n} for m in (scored, found))
    assert {n: x.dtype for n, x in ours.items()} == {n: x.dtype for n, x in theirs.items()}
    assert not [n for n, x in ours.items() if not x.equal(theirs[n])]
    for model in (scored, found):
        fold(model)
    plain = {n: x for n, x in scored.state_dict().items() if "_quantizer" not in n}
    assert not [n for n, x in plain.items() if not x.equal(found.state_dict()[n])]
    if inputs:
        given = models.family(b.family).call(b.inputs())
        with simulated(), torch.no_grad():
            assert first(scored)(**given).sample.equal(first(found)(**given).sample)


def comfy(b: Bench, name: str, **how: Any) -> dict[str, torch.Tensor]:
    """ComfyUI's file of the transformer."""
    return load_file(deployed(b, "comfyui", name, **how).path / "transformer.safetensors")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of every tensor below it."""
    found = {n: x for path in sorted(folder.rglob("*.safetensors")) for n, x in load_file(path).items()}
    return {n: x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n, x in found.items()}


def again(b: Bench, came: Checkpoint, stage: Any, view: Any) -> Path:
    ctx = b.context()
    stage.run(ctx, view, b.pipeline(), came)
    return ctx.out


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_is_read_as_it_was_scored_and_written_again_byte_for_byte(name: str) -> None:
    b = bench("bfloat16")
    path = made(b, name).path
    came = read(b, path)
    same_as(b, name, came)
    assert CheckpointFile.read(came.path).format == name
    assert not CheckpointFile.read(came.path).adopted.folded  # type: ignore[union-attr]
    assert bytes_of(again(b, came, deploy, FOLDER)) == bytes_of(path)


@pytest.mark.parametrize("name", [n for n in FORMATS if n in KIND])
def test_a_native_pack_is_read_as_it_was_scored_and_packed_again_byte_for_byte(name: str) -> None:
    b = bench("bfloat16")
    path = packed(b, name).path
    came = read(b, path)
    same_as(b, name, came)
    assert bytes_of(again(b, came, pack, ShardView(max_shard_size="10GB"))) == bytes_of(path)


READ = [(tiny, name) for tiny in TINY if TINY[tiny].family in NAMES for name in COMFYUI]
FEW = {("flux", "fp8"), ("flux", "nvfp4"), ("flux", "mxfp8"), ("sd3", "int8"), ("sd3", "fp8"), ("wan", "nvfp4")}


@pytest.mark.parametrize(("tiny", "name"), some([(t, name) for t in TINY if TINY[t].family in NAMES for name in COMFYUI], FEW))
def test_comfyuis_files_are_read_as_they_were_scored_and_written_again_byte_for_byte(tiny: str, name: str) -> None:
    """INT8 has no scale of its inputs there, which are rounded by rows."""
    b = bench("bfloat16", family=None if tiny == "flux" else tiny)
    how = settings(b, name)
    ctx = b.context()
    deploy.run(ctx, FILE, b.pipeline(), b.checkpoint(name, **how))
    came = read(b, ctx.out)
    same_as(b, name, came, inputs=name != "int8", **how)
    assert bytes_of(again(b, came, deploy, FILE)) == bytes_of(ctx.out)


def test_each_of_several_backbones_is_read_from_its_folder() -> None:
    b = bench(family="wan")
    came = read(b, made(b, "fp8").path)
    head = CheckpointFile.read(came.path)
    assert {*head.layers} == {*CheckpointFile.read(b.checkpoint("fp8").path).layers}
    assert bytes_of(again(b, came, deploy, FOLDER)) == bytes_of(made(b, "fp8").path)


def test_in_fp32_a_scale_can_be_of_two_maxima_and_numbers_differ_by_its_last_bit() -> None:
    b = bench()
    path = made(b, "fp8").path
    came = read(b, path)
    scored, found = (checkpoint.restore(b.context(), b.pipeline(), c) for c in (b.checkpoint("fp8"), came))
    for model in (scored, found):
        fold(model)
    for name in CheckpointFile.read(came.path).layers:
        one, other = (model.get_submodule(name).weight for model in (scored, found))
        assert ((one - other).abs() <= one.abs() * 2.0**-21).all()
    assert bytes_of(again(b, came, deploy, FOLDER)) == bytes_of(path)


def test_fp8_attention_comes_with_a_native_pack() -> None:
    b = bench("bfloat16")
    ctx = b.context()
    pack.run(ctx, ShardView(max_shard_size="10GB"), b.pipeline(), b.checkpoint("fp8", mha=True))
    came = read(b, ctx.out)
    assert CheckpointFile.read(came.path).adopted.attention  # type: ignore[union-attr]
    same_as(b, "fp8", came, mha=True)


def test_svdquant_of_vllm_omni_is_read_and_written_again_byte_for_byte() -> None:
    """It has no scale of the inputs' tensor, which is rounded by blocks alone."""
    b = bench("bfloat16")
    path = deployed(b, "svdquant", NAME, **SETTLED).path
    came = read(b, path)
    same_as(b, NAME, came, inputs=False, **SETTLED)
    entering: Any = checkpoint.restore(b.context(), b.pipeline(), came).get_submodule(LAYER).input_quantizer
    assert float(tensor_scale(entering.amax)) == 1.0
    assert bytes_of(again(b, came, deploy, LayoutView(kind="svdquant", max_shard_size="10GB"))) == bytes_of(path)


def test_nunchakus_lanes_are_put_back_row_by_row() -> None:
    out, depth, rank = 256, 384, 32
    torch.manual_seed(0)
    rows = {
        "qweight": torch.randint(-128, 128, (out, depth // 2), dtype=torch.int8),
        "wscales": torch.randn(depth // 16, out).to(torch.float8_e4m3fn),
        "proj_down": torch.randn(depth, rank).bfloat16(),
        "proj_up": torch.randn(out, rank).bfloat16(),
        "wtscale": torch.ones(1),
        "smooth_factor": torch.randn(depth).bfloat16(),
        "wcscales": torch.ones(out).bfloat16(),
        "bias": torch.randn(out).bfloat16(),
    }
    lanes = nunchaku.packed(rows)
    assert not lanes["proj_down"].equal(rows["proj_down"])
    found = svdquant_reader.unpacked(lanes)
    assert {*found} == {*rows}
    for name, x in rows.items():
        assert found[name].float().equal(x.float()), name


# Published layouts


def as_published(b: Bench) -> dict[str, torch.Tensor]:
    """ComfyUI's FP8 file of before it had marks."""
    there = {n: x for n, x in comfy(b, "fp8", share=True).items() if not n.endswith(".comfy_quant")}
    old = {"weight_scale": "scale_weight", "input_scale": "scale_input"}
    return {f"{n.rpartition('.')[0]}.{old.get(n.rpartition('.')[2], n.rpartition('.')[2])}": x for n, x in there.items()}


def file_of(tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path = folder() / "model.safetensors"
    save_file({n: x.clone() for n, x in tensors.items()}, path, metadata={"format": "pt"} | metadata)
    return path


def test_comfyuis_older_names_are_read_too() -> None:
    b = bench("bfloat16")
    old = as_published(b) | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    assert "double_blocks.0.img_attn.qkv.scale_weight" in old
    same_as(b, "fp8", read(b, file_of(old)), share=True)


def test_what_stands_before_the_names_of_a_file_with_other_models_is_no_part_of_them() -> None:
    b = bench("bfloat16")
    within = {f"model.diffusion_model.{n}": x for n, x in comfy(b, "nvfp4", share=True).items()}
    came = read(b, file_of(within | {"text_encoders.t5xxl.weight": torch.ones(2, 2)}))
    same_as(b, "nvfp4", came, share=True)


def test_the_formats_are_read_from_the_header_too() -> None:
    b = bench("bfloat16")
    marked = comfy(b, "nvfp4", share=True)
    layers = {n.removesuffix(".comfy_quant"): {"format": "nvfp4"} for n in marked if n.endswith(".comfy_quant")}
    plain = {n: x for n, x in marked.items() if not n.endswith(".comfy_quant")}
    header = json.dumps({"format_version": "1.0", "layers": layers})
    same_as(b, "nvfp4", read(b, file_of(plain, _quantization_metadata=header)), share=True)


def bfl(b: Bench, name: str) -> dict[str, torch.Tensor]:
    """As Black Forest Labs publish it: their names without marks, NVFP4 as Model-Optimizer packs it."""
    found = {n: x for n, x in comfy(b, name, share=True).items() if not n.endswith(".comfy_quant")}
    if name != "nvfp4":
        return found
    for key in [k for k in found if k.endswith(".weight_scale")]:
        weight = found[key.removesuffix("_scale")]
        found[key.removesuffix("_scale")] = weight >> 4 | weight << 4
        found[key] = straight(found[key].reshape(-1), len(weight), weight.shape[1] // 8)
    return found


def test_nvfp4_of_black_forest_labs_is_read_as_diffusers_reads_it() -> None:
    from diffusers.quantizers.bfl.utils import dequantize_nvfp4

    b = bench("bfloat16")
    there = bfl(b, "nvfp4")
    came = read(b, file_of(there))
    same_as(b, "nvfp4", came, share=True)
    found: Any = checkpoint.restore(b.context(), b.pipeline(), came).get_submodule("transformer_blocks.0.ff.net.2")
    own = {k: there[f"double_blocks.0.img_mlp.2.{k}"] for k in ("weight", "weight_scale", "weight_scale_2")}
    with simulated(), torch.no_grad():
        assert found.weight_quantizer(found.weight).equal(dequantize_nvfp4(**own).to(torch.bfloat16))


def test_fp8_by_rows_is_read_as_diffusers_reads_it_and_its_inputs_are_rounded_by_rows() -> None:
    from diffusers.quantizers.bfl.utils import dequantize_fp8r, quantize_fp8r

    b = bench("bfloat16")
    backbone, there = b.backbone(), bfl(b, "fp8")
    there = {n: x for n, x in there.items() if not n.endswith("input_scale")}
    layer: Any = backbone.get_submodule("transformer_blocks.0.ff.net.2")
    for key in [k for k in there if k.endswith(".weight_scale")]:
        weight = numbers({"weight": there[key.removesuffix("_scale")], "weight_scale": there[key]}, "fp8")
        there[key.removesuffix("_scale")], there[key] = quantize_fp8r(weight)
    came = read(b, file_of(there))
    found: Any = checkpoint.restore(b.context(), b.pipeline(), came).get_submodule("transformer_blocks.0.ff.net.2")
    expected = dequantize_fp8r(there["double_blocks.0.img_mlp.2.weight"], there["double_blocks.0.img_mlp.2.weight_scale"])
    x = torch.randn(3, layer.in_features, dtype=torch.bfloat16) * torch.tensor([[1e-3], [1.0], [1e3]], dtype=torch.bfloat16)
    with torch.no_grad():
        rounded = found.weight_quantizer(found.weight).float()
        entering = found.input_quantizer(x).float()
    assert ((rounded - expected).abs() <= expected.abs() * 2.0**-7).all()
    assert ((entering - x.float()).abs() <= x.float().abs().amax(1, keepdim=True) / 16).all()
    assert not entering.equal(x.float())


def test_fp8_without_scales_stands_for_itself_and_leaves_its_inputs_alone() -> None:
    b = bench("bfloat16")
    there = {n: x for n, x in bfl(b, "fp8").items() if not n.endswith("_scale")}
    found: Any = checkpoint.restore(b.context(), b.pipeline(), read(b, file_of(there))).get_submodule(
        "transformer_blocks.0.ff.net.2"
    )
    with torch.no_grad():
        assert found.weight_quantizer(found.weight).equal(there["double_blocks.0.img_mlp.2.weight"].to(torch.bfloat16))
    assert not found.input_quantizer.is_enabled


def test_scales_of_blocks_that_rounding_would_not_find_stay_and_are_written_again(tmp_path: Path) -> None:
    """As four over six chooses them: a block's largest code is 4 where that is nearer."""
    b = bench("bfloat16")
    path = tmp_path / "quantized"
    shutil.copytree(made(b, "nvfp4").path, path)
    there = load_file(path / "transformer" / WEIGHTS)
    weight, scale = there[f"{LAYER}.weight"], there[f"{LAYER}.weight_scale"]
    codes = unpacked(weight)
    there[f"{LAYER}.weight"] = packed_codes(torch.where((codes & 7) == 7, codes - 1, codes))
    save_file(there, path / "transformer" / WEIGHTS)
    came = read(b, path)
    assert CheckpointFile.read(came.path).adopted.folded == (LAYER,)  # type: ignore[union-attr]
    model = checkpoint.restore(b.context(), b.pipeline(), came)
    layer: Any = model.get_submodule(LAYER)
    wanted = numbers(
        {"weight": there[f"{LAYER}.weight"], "weight_scale": scale, "weight_scale_2": there[f"{LAYER}.weight_scale_2"]}, "nvfp4"
    )
    with simulated(), torch.no_grad():
        assert layer.weight_quantizer(layer.weight).equal(wanted.to(torch.bfloat16))
    assert bytes_of(again(b, came, deploy, FOLDER)) == bytes_of(path)
    kernel: Any = converted_layer(model)
    assert kernel.weight.equal(there[f"{LAYER}.weight"])
    assert kernel.block_scales.equal(tiled(scale))


def converted_layer(model: Any) -> Any:
    convert(model)
    return model.get_submodule(LAYER)


# What is not what it says


def copied(name: str = "fp8") -> Path:
    return Path(shutil.copytree(made(bench("bfloat16"), name).path, folder() / "quantized"))


def changed(path: Path, change: Any) -> Path:
    """With other tensors: `change` makes them of those that are there."""
    file = path / "transformer" / WEIGHTS
    there = load_file(file)
    change(there)
    save_file(there, file)
    return path


def described(path: Path, **fields: Any) -> Path:
    """With other fields of the `quantization_config`."""
    file = path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= fields
    file.write_text(json.dumps(config | fields.get("whole", {})))
    return path


def cut_off(path: Path) -> Path:
    file = path / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    return path


def broken(path: Path, name: str, text: str) -> Path:
    (path / name).write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: described(copied(), quant_algo="FP6"), r"its config has the quant_algo FP6, which is not read \(got '"),
        (
            lambda: described(copied(), quant_method="bitsandbytes"),
            r"transformer is quantized by bitsandbytes, which is not read",
        ),
        (lambda: described(copied(), quant_algo="MIXED_PRECISION"), r"says MIXED_PRECISION and names no quantized_layers"),
        (lambda: cut_off(copied()), r"safetensors is cut off: it has \d+ bytes of \d+ \(got '"),
        (
            lambda: broken(copied(), f"transformer/{WEIGHTS}", "no tensors"),
            r"has a header that is none of a \.safetensors file",
        ),
        (lambda: broken(copied(), "deploy.json", "[]"), r"quantized/deploy\.json is broken, it is no JSON object"),
        (lambda: described(copied(), quant_algo=[]), r"its config has what cannot be \(TypeError: unhashable"),
        (lambda: described(copied(), quant_method=[]), r"its config has what cannot be \(TypeError: unhashable"),
        (lambda: broken(copied(), "deploy.json", "[" * 100_000), r"quantized/deploy\.json is broken, it is no JSON object"),
        (
            lambda: broken(copied(), "native.json", '{"backbones": ["transformer"], "layers": {"a": []}}'),
            r"its config has what cannot be \(TypeError: unhashable",
        ),
        (lambda: broken(copied(), "native.json", '{"backbones": [[]]}'), r"its config has what cannot be"),
        (lambda: broken(copied(), "native.json", "{}"), r"is of backbones that a flux has not: None"),
        (
            lambda: file_of({"a.weight": torch.zeros(2, 2, dtype=torch.uint8)}),
            r"a\.weight is in U8 with nothing that says in which",
        ),
        (
            lambda: file_of({"a.weight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn), "a.comfy_quant": marked("awq_w4a16")}),
            r"a is marked awq_w4a16, which is not read \(got '.*'\); it reads float8_e4m3fn",
        ),
    ],
)
def test_what_the_headers_tell_is_refused_by_the_plan(plan: Any, make: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.source: .*" + line):
        plan("model=emoji_flux", f"model.source={make()}", "model.base=asset:emoji/emoji-flux", "eval=emoji")


def marked(format: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps({"format": format}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("fp8", lambda x: x.pop(f"{LAYER}.weight_scale"), rf"{LAYER} has no weight_scale"),
        ("nvfp4", lambda x: x.pop(f"{LAYER}.input_scale"), rf"{LAYER} has no input_scale"),
        ("int8_sq", lambda x: x.pop(f"{LAYER}.bias"), rf"{LAYER} has no bias"),
        (
            "nvfp4",
            lambda x: x.update({f"{LAYER}.weight_scale": x[f"{LAYER}.weight_scale"][:-1].clone()}),
            rf"{LAYER} has a weight_scale of \[63, 4\] in float8_e4m3fn, where nvfp4 has one of \[64, 4\] in float8_e4m3fn",
        ),
        ("fp8", lambda x: x.update({f"{LAYER}.input_scale": torch.tensor(torch.inf)}), rf"{LAYER} has a input_scale with inf"),
        (
            "fp8",
            lambda x: x.update({f"{LAYER}.weight_scale_3": torch.ones(())}),
            rf"{LAYER} has a weight_scale_3, which fp8 has",
        ),
        ("fp8", lambda x: x.pop("x_embedder.weight"), r"lacks x_embedder\.weight"),
        ("fp8", lambda x: x.update({"stranger": torch.ones(1)}), r"has no place for stranger"),
        (
            "fp8",
            lambda x: x.update({"x_embedder.bias": torch.ones(3)}),
            r"has x_embedder\.bias of \[3\], and the model of \[64\]",
        ),
    ],
)
def test_what_its_tensors_tell_is_refused_before_anything_is_written(name: str, change: Any, line: str) -> None:
    b, path = bench("bfloat16"), changed(copied(name), change)
    source = Source(str(path))
    b.sources.digest(source)
    ctx = b.context()
    with pytest.raises(SourceError, match=rf"^model\.source: .*({line}).*\(got '.*'\); "):
        adopt.run(ctx, SourceView(family="flux", source=source), CameView(name=name), b.pipeline())
    assert not list(ctx.out.iterdir())


def test_another_models_folder_is_refused_by_its_class_and_its_sizes() -> None:
    b = bench("bfloat16")
    other = described(copied(), whole={"_class_name": "SD3Transformer2DModel"})
    with pytest.raises(
        SourceError, match=r"transformer is a SD3Transformer2DModel, and the model's is a FluxTransformer2DModel"
    ):
        read(b, other)
    with pytest.raises(
        SourceError, match=r"has a weight of \[\d+, \d+\] in \w+, where \w+ has one of|is no layer of the model"
    ):
        read(emoji(), made(b, "fp8").path)


# In the chain


CHOSEN = ("model=emoji_flux", "model.base=asset:emoji/emoji-flux")


def test_it_is_planned_without_a_calibration_and_beside_the_reference_of_what_it_was_made_of(plan: Any) -> None:
    found = plan(*CHOSEN, f"model.source={copied()}", "eval=emoji", "export=comfyui")
    assert [s.name for s in found.steps] == ["load", "adopt", "deploy", "encode", "reference", "sample", "score"]
    plain = plan("model=emoji_flux", "eval=emoji", "cache=first_block")
    assert {s.fingerprint for s in plain.steps if s.name in ("load", "reference")} <= {s.fingerprint for s in found.steps}
    assert any("is quantized already, fp8 in the layout huggingface" in note for note in found.notes)


def test_it_is_another_artifact_when_the_file_is_another(plan: Any) -> None:
    by = {name: plan(*CHOSEN, f"model.source={copied(name)}", "eval=emoji") for name in ("fp8", "nvfp4")}
    keys = {n: {s.name: s.fingerprint for s in p.steps} for n, p in by.items()}
    assert keys["fp8"]["adopt"] != keys["nvfp4"]["adopt"]
    assert keys["fp8"]["reference"] == keys["nvfp4"]["reference"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            ["format=nvfp4"],
            r"format: the model is quantized already, fp8 in the layout huggingface \(got format=nvfp4\); leave format",
        ),
        (
            ["calib=emoji"],
            r"calib: the model is quantized already, fp8 in the layout huggingface \(got calib=\.\.\.\); leave calib out",
        ),
        (["train=emoji_qat"], r"train: the model is quantized already"),
        (["sense=default"], r"sense: the model is quantized already"),
        (
            ["model.base=null"],
            r"model\.base: the source is quantized already \(fp8 in the layout huggingface\), and what it was",
        ),
        (
            ["model.source=asset:emoji/emoji-flux"],
            r"model\.base: .* and this is a whole pipeline, not quantized \(got 'asset:emoji/emoji-flux'\); drop",
        ),
        (["model.source=org/name"], r"model\.base: .* and this is on the hub, .* \(got 'org/name'\); download it"),
        (
            ["model.base=asset:emoji_sdxl"],
            r"model\.base: holds a StableDiffusionXLPipeline, but family flux loads a FluxPipeline",
        ),
    ],
)
def test_what_cannot_be_with_it_is_refused(plan: Any, more: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        plan(*CHOSEN, f"model.source={copied()}", "eval=emoji", *more)


def test_a_file_in_which_nothing_is_quantized_needs_a_base_too(plan: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.base: the source is a model alone in FP32, without text encoders"):
        plan("model=emoji_flux", f"model.source={file_of({'a': torch.ones(1)})}", "eval=emoji")


def test_the_portable_file_is_read_by_plain_modelopt(tmp_path: Path) -> None:
    import modelopt.torch.opt as mto

    from diffopt.cli.modelopt_file import portable

    b = bench("bfloat16")
    for name in ("int8_sq", "nvfp4_svdquant"):
        model = checkpoint.restore(b.context(), b.pipeline(), read(b, made(b, name).path))
        portable(model, tmp_path / f"{name}.pt")
        found = mto.restore(b.backbone(), tmp_path / f"{name}.pt")
        inputs = b.inputs()
        with simulated(), torch.no_grad():
            assert found(**inputs).sample.equal(model(**inputs).sample)
