"""Files for other programs: what is written is what was scored, and readers that are not ours find the same numbers."""

import json
from typing import Any

import pytest
import torch
from matrix_table import FORMATS
from safetensors.torch import load_file
from test_preflight import FINE, chosen, refused
from tiny import Bench, bench

from diffopt.artifact import DeployedCheckpoint
from diffopt.errors import GateError, PlanError
from diffopt.files.deploy import DeployFile
from diffopt.jobs import preflight
from diffopt.layouts import WEIGHTS_ALONE, modelopt
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.numbers import numbers
from diffopt.stages.deploy import LayoutView, deploy

__all__ = ["chosen"]
FOLDER = LayoutView(kind="huggingface", max_shard_size="10GB")
LAST_BIT = 2.0**-7
"""Relative: of BF16."""


def made(b: Bench, name: str, **how: Any) -> DeployedCheckpoint:
    def make(ctx: Any) -> DeployedCheckpoint:
        deploy.run(ctx, FOLDER, b.pipeline(), b.checkpoint(name, **how))
        return DeployedCheckpoint(ctx.out, "deploy")

    return b._once(("huggingface", name, *how.items()), make)


def tensors(found: DeployedCheckpoint, backbone: str = "transformer") -> dict[str, torch.Tensor]:
    return load_file(found.path / backbone / "diffusion_pytorch_model.safetensors")


def of(layer: str, among: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(f"{layer}."): x for n, x in among.items() if n.rpartition(".")[0] == layer}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_stand_for_exactly_what_was_scored(name: str, dtype: str) -> None:
    b = bench(dtype)
    scored, written = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)), tensors(made(b, name))
    layers = checkpoint.quantized_layers(scored)
    assert layers
    differ = total = 0
    for layer in layers:
        own: Any = scored.get_submodule(layer)
        with simulated(), torch.no_grad():
            expected = own.weight_quantizer(own.weight)
        found = numbers(of(layer, written), name).to(expected.dtype)
        if name == "w4a8_awq":  # simulated in two roundings, of which the model's precision is between
            assert float((found - expected).float().norm() / expected.float().norm()) < 0.05, layer
            continue
        off = (found.float() - expected.float()).abs()
        assert (off <= expected.float().abs() * (LAST_BIT if dtype == "bfloat16" else 1e-6)).all(), layer
        differ, total = differ + int((off > 0).sum()), total + off.numel()
        assert written[f"{layer}.bias"].equal(own.bias)
    assert dtype == "float32" or differ <= 0.01 * total


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_all_that_is_not_quantized_is_as_it_was(name: str) -> None:
    b = bench("bfloat16")
    written, head, plain = tensors(made(b, name)), DeployFile.read(made(b, name).path), b.backbone().state_dict()
    rest = {n: x for n, x in written.items() if n.rpartition(".")[0] not in head.layers}
    assert rest
    assert all(x.equal(plain[n]) for n, x in rest.items())
    assert {n for n in plain if n.rpartition(".")[0] not in head.layers} == {*rest}
    assert head.bytes == sum(x.nbytes for x in written.values())


def test_the_config_names_what_is_quantized_and_what_is_not_by_both_readings() -> None:
    config = json.loads((made(bench(), "fp8").path / "transformer/config.json").read_text())
    described = config["quantization_config"]
    assert config["_class_name"] == "FluxTransformer2DModel"
    assert "_name_or_path" not in config
    assert (described["quant_method"], described["quant_algo"]) == ("modelopt", "FP8")
    (group,) = described["config_groups"].values()
    assert group["input_activations"]["dynamic"] is group["weights"]["dynamic"] is False
    layers, ignored = DeployFile.read(made(bench(), "fp8").path).layers, described["ignore"]
    assert "x_embedder" in ignored
    assert not [(i, n) for i in ignored for n in layers if n.startswith(i)]
    plain = {n for n, m in bench().backbone().named_modules() if isinstance(m, torch.nn.Linear)}
    assert {*ignored} | {*layers} == plain


def test_a_name_that_would_be_read_for_a_quantized_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks\.1 stays in full precision, and is the beginning of blocks\.10"):
        modelopt.config({"blocks.10": "fp8"}, ["blocks.1"], "0", None, None)


def test_a_mix_says_the_format_of_each_layer() -> None:
    found = modelopt.config({"a": "fp8", "b": "nvfp4"}, [], "0", None, None)
    assert found["quant_algo"] == "MIXED_PRECISION"
    assert found["quantized_layers"] == {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}}
    assert sorted(x["targets"] for x in found["config_groups"].values()) == [["a"], ["b"]]


def test_diffusers_own_reader_finds_the_same_nvfp4_weights() -> None:
    from diffusers.quantizers.bfl.utils import dequantize_nvfp4

    found = made(bench("bfloat16"), "nvfp4")
    written = tensors(found)
    for layer in DeployFile.read(found.path).layers:
        own = of(layer, written)
        theirs = dequantize_nvfp4(own["weight"], own["weight_scale"], own["weight_scale_2"]).float()
        ours = numbers(own, "nvfp4")
        assert torch.allclose(theirs, ours, rtol=LAST_BIT, atol=0), layer


def test_modelopts_own_export_has_the_same_keys_types_and_codes() -> None:
    """Where layers of one input share their scales already, for it makes them share."""
    from modelopt.torch.export import export_hf_checkpoint

    for name in ("fp8", "nvfp4"):
        b = bench("bfloat16")
        ours = tensors(made(b, name, share=True))
        model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, share=True))
        with simulated(), torch.inference_mode():
            export_hf_checkpoint(model, export_dir=(out := b.context().out / f"theirs_{name}"))
        theirs = load_file(out / "diffusion_pytorch_model.safetensors")
        assert {n: (x.dtype, x.shape) for n, x in ours.items()} == {n: (x.dtype, x.shape) for n, x in theirs.items()}
        for layer in DeployFile.read(made(b, name, share=True).path).layers:
            a, z = numbers(of(layer, ours), name), numbers(of(layer, theirs), name)
            # It divides by the scale in BF16, which turns codes at the edge between two.
            assert float((a - z).norm() / a.norm()) < 0.05, layer


def test_the_model_that_is_written_stays_as_it_was() -> None:
    from diffopt.files.checkpoint import CheckpointFile
    from diffopt.layouts import folder

    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("nvfp4"))
    before = {n: x.clone() for n, x in model.state_dict().items()}
    head = CheckpointFile.read(b.checkpoint("nvfp4").path)
    layout = modelopt.Unified("0", head.block_size, head.rank)
    folder.write(b.context().out / "there", model, dict.fromkeys(head.layers, "nvfp4"), layout, "10GB")
    assert {*before} == {*model.state_dict()}
    assert all(before[n].equal(x) for n, x in model.state_dict().items())


def test_a_quantized_convolution_is_refused_by_name_and_nothing_is_written() -> None:
    b = bench(family="sdxl")
    ctx = b.context()
    with pytest.raises(
        GateError, match=r"export: \S*conv\S* is a convolution, .*leave it out by format\.exclude \(got huggingface\)"
    ):
        deploy.run(ctx, FOLDER, b.pipeline(), b.checkpoint("fp8"))
    assert not list(ctx.out.iterdir())


def test_each_of_several_backbones_has_its_folder() -> None:
    found = made(bench(family="wan"), "fp8")
    for name in DeployFile.read(found.path).backbones:
        config = json.loads((found.path / name / "config.json").read_text())
        assert config["quantization_config"]["quant_algo"] == "FP8"
        assert [x for x in tensors(found, name).values() if x.dtype == torch.float8_e4m3fn]


def test_it_is_a_step_of_a_recipe_and_quantized_attention_is_refused_beforehand(plan: Any) -> None:
    assert "deploy" in [s.name for s in plan("+recipe=emoji_fp8", "export=huggingface").steps]
    with pytest.raises(PlanError, match=r"format\.quantize_mha: other programs' layouts have no place"):
        plan("model=flux_dev", "format=fp8", "calib=images", "export=huggingface", "format.quantize_mha=true")


def test_every_format_has_a_writer() -> None:
    assert {*modelopt.WRITERS} == {*modelopt.ALGORITHM} == {*FORMATS, WEIGHTS_ALONE}


def test_convolutions_are_told_before_anything_is_calibrated_and_the_advice_is_taken(chosen: Any) -> None:
    b, given = bench(family="sdxl"), (*FINE, "format=fp8", "export=huggingface", "eval=null")
    said = refused(b, chosen(*given))
    assert "is a convolution, which the layout has no place for (got huggingface); set format.exclude=['*" in said
    preflight.check(b.context(), chosen(*given, said.rpartition("set ")[2]), b.pipeline())
