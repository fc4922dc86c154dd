"""Weights that are stored in FP8: beside a format they become numbers, said and recorded; a scale that is wrong is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_original import loaded, model, single, without
from test_quantized_source import file_of, marked
from tiny import folder, saved

from diffopt.cli import inspect
from diffopt.errors import ConfigError, PlanError
from diffopt.files.originals import OriginalsFile
from diffopt.groups.model import Model
from diffopt.pipeline.open import open_backbone, open_pipeline
from diffopt.store.assets import locate
from diffopt.store.source import Sources

Tensors = dict[str, torch.Tensor]
Scale = Callable[[torch.Tensor], torch.Tensor]

SCALES: dict[str, tuple[str, Scale | None]] = {
    "cast": ("", None),
    "scale_weight": (".scale_weight", lambda x: x.abs().max() / 448),
    "weight_scale": (".weight_scale", lambda x: (x.abs().max() / 448).reshape(1)),
    "rows": (".weight_scale", lambda x: x.abs().amax(1, keepdim=True) / 448),
    "weights in BF16": (".weight_scale", lambda x: (x.abs().max() / 448).bfloat16()),
}
"""What files have beside a weight: nothing, ComfyUI's older and newer name, one a row as Black Forest Labs have it."""


def coded(plain: Tensors, how: str, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensors, Tensors]:
    """The layers of the blocks as codes with their scales, and the numbers that these stand for."""
    suffix, scale = SCALES[how]
    there, numbers = dict(plain), dict(plain)
    for name, x in plain.items():
        if x.dim() == 2 and "block" in name and name.endswith(".weight"):
            by = scale(x) if scale else torch.ones(())
            there[name] = (x.float() / by.float()).to(dtype)
            numbers[name] = there[name].float() * by.float()
            if scale:
                there[name.removesuffix(".weight") + suffix] = by
    return there, numbers


def calibrated(tiny: str, source: Path, base: Path | None, **more: Any) -> Model:
    """As `choose` has it where a format is chosen."""
    plain = model(tiny, saved(tiny), None).model_dump(exclude={"source", "base"})
    given = plain | {"source": str(source), "base": base and str(base)} | more
    return Model.model_validate(given, context={"calibrates": True})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", SCALES)
def test_a_backbone_in_fp8_is_its_codes_times_their_scales_in_the_models_precision(how: str, dtype: str) -> None:
    there, numbers = coded(load_file(single("flux")), how)
    save_file(there, file := folder() / "mine_fp8.safetensors")
    save_file({n: x.float() for n, x in numbers.items()}, plain := folder() / "plain.safetensors")
    base = without("flux", "transformer")
    ctx, pipeline = loaded(calibrated("flux", file, base, dtype=dtype))
    found = open_backbone(ctx, pipeline).state_dict()
    wanted = open_backbone(*loaded(model("flux", plain, base, dtype=dtype))).state_dict()
    assert {x.dtype for x in found.values()} == {getattr(torch, dtype)}
    assert not [n for n, x in wanted.items() if not x.equal(found[n])]
    assert OriginalsFile.read(pipeline.path).parts["transformer"].stored == "FP8"


def test_the_other_fp8_is_dequantized_too_and_without_a_format_it_says_that_one_is_needed() -> None:
    there, numbers = coded(load_file(single("flux")), "scale_weight", torch.float8_e5m2)
    save_file(there, file := folder() / "mine_e5m2.safetensors")
    found = open_backbone(*loaded(calibrated("flux", file, saved("flux")))).state_dict()
    assert found["x_embedder.bias"].equal(numbers["img_in.bias"])
    name = "transformer_blocks.0.attn.to_out.0.weight"
    assert found[name].equal(numbers["double_blocks.0.img_attn.proj.weight"])
    with pytest.raises(ValidationError, match=r"in FP8 with five bits of exponent, which no format has .*; choose one"):
        model("flux", file, saved("flux"))


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("how", ["cast", "scale_weight"])
def test_a_part_of_a_whole_pipeline_in_fp8_is_read_by_its_scales(part: str, how: str) -> None:
    """diffusers and transformers would leave scales out, and take the codes for the numbers."""
    shutil.copytree(saved("flux"), whole := folder() / "whole")
    (file,) = (whole / part).glob("*.safetensors")
    there, numbers = coded(load_file(file), how)
    save_file(there, file, metadata={"format": "pt"})
    given = model("flux", whole, None)
    assert [*given.dequantized] == [f"{part} of {whole} is stored in FP8: dequantized to float32"]
    ctx, pipeline = loaded(given)
    found = getattr(open_pipeline(ctx, pipeline), part).state_dict()
    assert not [n for n, x in numbers.items() if n in found and not found[n].equal(x.float())]
    assert {n: o.stored for n, o in OriginalsFile.read(pipeline.path).parts.items()} == {part: "FP8"}


def test_a_file_of_several_parts_may_have_one_that_was_cast_beside_one_with_scales() -> None:
    backbone, numbers = coded(load_file(single("sdxl")), "scale_weight")
    text = load_file(saved("sdxl") / "text_encoder" / "model.safetensors")
    layer = next(n for n, x in text.items() if x.dim() == 2 and "mlp" in n and n.endswith(".weight"))
    text[layer] = text[layer].to(torch.float8_e4m3fn)
    parts = {f"model.diffusion_model.{n}": x for n, x in backbone.items()}
    parts |= {f"conditioner.embedders.0.transformer.{n}": x for n, x in text.items()}
    save_file(parts, file := folder() / "both.safetensors")
    save_file(numbers, plain := folder() / "plain.safetensors")
    base = without("sdxl", "unet", "text_encoder")
    pipe = open_pipeline(*loaded(calibrated("sdxl", file, base)))
    assert pipe.text_encoder.state_dict()[layer].equal(text[layer].float())
    wanted = open_backbone(*loaded(model("sdxl", plain, saved("sdxl")))).state_dict()
    assert not [n for n, x in pipe.unet.state_dict().items() if not x.equal(wanted[n])]
    del parts[next(n for n in parts if n.endswith(".scale_weight"))]
    save_file(parts, file := folder() / "lacking.safetensors")
    with pytest.raises(ValidationError, match=r"source: model\.diffusion_model\..*\.weight is in FP8 without the scale"):
        calibrated("sdxl", file, base)


def test_pickles_beside_safetensors_need_not_be_there_for_the_list_of_their_shards() -> None:
    """As on the hub, where they are not downloaded."""
    shutil.copytree(saved("flux"), whole := folder() / "whole")
    listing = {"weight_map": {"shared.weight": "pytorch_model-00001-of-00002.bin"}}
    for part in ("transformer", "text_encoder_2"):
        (whole / part / "pytorch_model.bin.index.json").write_text(json.dumps(listing))
    assert not [*model("flux", whole, None).dequantized]
    encoder = str(whole / "text_encoder_2")
    loaded(model("flux", saved("flux"), None, parts={"text_encoder_2": encoder}))


def test_shards_in_fp8_are_read_as_one() -> None:
    from diffusers import FluxTransformer2DModel

    made = FluxTransformer2DModel.from_pretrained(saved("flux") / "transformer")
    shutil.copytree(saved("flux"), whole := folder() / "whole")
    shutil.rmtree(whole / "transformer")
    made.save_pretrained(whole / "transformer", max_shard_size="50KB")
    numbers: Tensors = {}
    scales: Tensors = {}
    files = sorted((whole / "transformer").glob("*.safetensors"))
    for file in files:
        there, found = coded(load_file(file), "weight_scale")
        scales |= {n: there.pop(n) for n in [*there] if n.endswith(".weight_scale")}
        numbers |= found
        save_file(there, file, metadata={"format": "pt"})
    save_file(load_file(files[-1]) | scales, files[-1], metadata={"format": "pt"})  # away from most of their weights
    assert len(files) > 1
    read = open_backbone(*loaded(model("flux", whole, None))).state_dict()
    assert read.keys() == numbers.keys()
    assert not [n for n, x in numbers.items() if not read[n].equal(x)]


# What the plan says.


def of_emoji(change: Callable[[Tensors], Any] = lambda _: None, how: str = "scale_weight") -> Path:
    """The embedded model's transformer in FP8, under diffusers' names."""
    plain = {
        n: x for p in (locate("asset:emoji/emoji-flux") / "transformer").glob("*.safetensors") for n, x in load_file(p).items()
    }
    there, _ = coded(plain, how)
    change(there)
    return file_of({n: x.contiguous() for n, x in there.items()})


PICKS = ("model=emoji_flux", "model.dtype=bfloat16", "model.base=asset:emoji/emoji-flux", "eval=emoji")


@pytest.mark.parametrize("format", ["nvfp4", "int8_sq", "fp8"])
def test_with_a_format_it_is_dequantized_and_calibrated_and_without_one_taken_as_it_is(
    plan: Any, format: str, tmp_path: Path
) -> None:
    source, by_content = of_emoji(), {"digest": Sources(tmp_path / "memory.json").digest}
    found = plan(*PICKS, f"model.source={source}", f"format={format}", "calib=emoji", **by_content)
    names = {s.name.partition(".")[0] for s in found.steps}
    assert {"observe", "quantize"} <= names
    assert "adopt" not in names
    assert f"{source} is stored in FP8: dequantized to bfloat16" in found.notes
    assert any("model alone in FP8; what it lacks is asset:emoji/emoji-flux's" in n for n in found.notes)
    as_it_is = plan(*PICKS, f"model.source={source}", **by_content)
    assert {s.name for s in as_it_is.steps} >= {"adopt", "sample"}
    assert not any("dequantized" in n for n in as_it_is.notes)
    assert {s.fingerprint for s in found.steps if s.name == "load"}.isdisjoint(s.fingerprint for s in as_it_is.steps)


LAYER = "transformer_blocks.0.attn.to_q"
WRONG = {
    "missing": (lambda x: x.pop(f"{LAYER}.scale_weight"), rf"{LAYER}\.weight is in FP8 without the scale that belongs to it"),
    "marked": (
        lambda x: [x.pop(n) for n in [*x] if n.endswith(".scale_weight")] and x.update(scaled_fp8=torch.zeros(2)),
        r" is in FP8 without the scale that belongs to it",
    ),
    "shape": (
        lambda x: x.update({f"{LAYER}.scale_weight": torch.ones(3)}),
        rf"{LAYER}\.scale_weight has the shape \[3\], and {LAYER}\.weight \[\d+, \d+\]",
    ),
    "blocks": (
        lambda x: x.update({f"{LAYER}.scale_weight": torch.ones(2, 2)}),
        rf"{LAYER}\.scale_weight has the shape \[2, 2\], and {LAYER}\.weight \[\d+, \d+\]",
    ),
}
"""What of a file is wrong, and what the plan says; whose advice follows."""
ADVICE = {"missing": "download it again", "marked": "download it again"}
"""Of the others: give one scale, or one a row."""


@pytest.mark.parametrize("case", WRONG)
def test_a_scale_that_is_missing_or_has_another_shape_is_refused_by_the_plan(plan: Any, case: str) -> None:
    change, line = WRONG[case]
    advice = ADVICE.get(case, "give one scale, or one a row")
    with pytest.raises(ConfigError, match=r"^model\.source: .*" + line + rf" \(got '.*'\); {advice}$"):
        plan(*PICKS, f"model.source={of_emoji(change)}", "format=nvfp4", "calib=emoji")


def test_it_stays_dequantized_when_it_is_known_what_auto_is() -> None:
    from diffopt.finding.find import find

    there, _ = coded(load_file(single("flux")), "scale_weight")
    save_file(there, file := folder() / "mine.safetensors")
    found = calibrated("flux", file, saved("flux"), family="auto").told(find(saved("flux")))
    assert found.quantized is None
    assert [*found.dequantized] == [f"{file} is stored in FP8: dequantized to float32"]


def test_four_bits_and_int8_are_not_dequantized(plan: Any) -> None:
    codes = {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(())}
    nvfp4 = {"a.weight": torch.zeros(4, 2, dtype=torch.uint8), "a.comfy_quant": marked("nvfp4")}
    for tensors, name in ((codes, "int8"), (nvfp4, "nvfp4")):
        with pytest.raises(ConfigError, match=rf"^format: the model is quantized already, {name} in the layout comfyui \(got"):
            plan(*PICKS, f"model.source={file_of(tensors)}", "format=fp8", "calib=emoji")


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused_by_load(number: float) -> None:
    there, _ = coded(load_file(single("flux")), "weight_scale")
    name = next(n for n in there if n.endswith(".weight_scale"))
    save_file(there | {name: torch.tensor([number])}, file := folder() / "mine.safetensors")
    with pytest.raises(PlanError, match=rf"mine\.safetensors {name} has .*, which is no scale \(got .*\); download it again"):
        loaded(calibrated("flux", file, without("flux", "transformer")))


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"dtype": torch.int8}, r"is in I8, codes which are read of a backbone alone"),
        ({"scale": torch.zeros(64, 2, dtype=torch.uint8)}, r"has scales in U8, of a format that is read of a backbone alone"),
    ],
)
def test_a_text_encoder_in_another_format_is_not_taken_for_its_codes(extra: dict[str, Any], line: str) -> None:
    """Until it was refused, INT8 was read as whole numbers."""
    there = load_file(saved("flux") / "text_encoder_2" / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q"
    there[f"{name}.weight"] = there[f"{name}.weight"].to(extra.get("dtype", torch.float8_e4m3fn))
    save_file(there | {f"{name}.weight_scale": extra.get("scale", torch.ones(()))}, file := folder() / "t5.safetensors")
    with pytest.raises(ValidationError, match=rf"parts\.text_encoder_2: {name}\.weight {line}"):
        model("flux", saved("flux"), None, parts={"text_encoder_2": str(file)})
    shutil.copytree(saved("flux"), whole := folder() / "whole")
    shutil.copy(file, whole / "text_encoder_2" / "model.safetensors")
    with pytest.raises(PlanError, match=rf"model\.source: has a text_encoder_2 in which {name}\.weight {line}"):
        loaded(model("flux", whole, None))


def test_inspect_says_what_becomes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    four, five = of_emoji(), folder() / "five.safetensors"
    save_file(coded(load_file(single("flux")), "cast", torch.float8_e5m2)[0], five)
    said = []
    for path in (four, five):
        inspect.command([str(path)])
        said.append(next(x for x in capsys.readouterr().out.splitlines() if x.startswith("quantized")))
    assert said[0].endswith("taken as it is, and nothing is calibrated; with a format it is dequantized to model.dtype")
    assert said[1].split(maxsplit=1)[1] == "FP8 (E5M2): with a format it is dequantized to model.dtype"
