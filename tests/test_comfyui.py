"""Files for ComfyUI: every tensor is found under the names that others read, and quantized layers are what was scored."""

from typing import Any

import pytest
import targets
import torch
from comfyui_readers import READERS
from conftest import some
from safetensors.torch import load_file
from targets import made, settings
from test_mixture import made as mixture
from tiny import bench
from tiny_pipelines import TINY

from diffopt.errors import GateError, PlanError
from diffopt.files.deploy import DeployFile
from diffopt.layouts import COMFYUI, UNREAD, comfyui
from diffopt.layouts.families import NAMES
from diffopt.stages.deploy import LayoutView, deploy

FILE = LayoutView(kind="comfyui", max_shard_size="10GB")


def first(model: Any) -> Any:
    return next(iter(model.values())) if isinstance(model, torch.nn.ModuleDict) else model


NAMED = [tiny for tiny, about in TINY.items() if about.family in NAMES]
QUICK = [("flux", "nvfp4"), ("sd3", "fp8"), ("sd3", "int8"), ("pixart", "mxfp8"), ("wan", "nvfp4"), ("sdxl", "nvfp4")]


@pytest.mark.parametrize(("tiny", "name"), QUICK)
def test_a_file_is_read_to_exactly_what_was_scored_and_all_else_is_as_it_was(tiny: str, name: str) -> None:
    """test_targets.py has every family in every format."""
    b = made(tiny)
    targets.comfyui(b, name, settings(b, name))


def test_each_layer_of_a_mix_is_read_in_its_own_format() -> None:
    names = ("fp8", "nvfp4", "mxfp8", "int8")
    b = bench(family="qwen_image")
    for kind in ("comfyui", "huggingface"):
        ctx, mixed = b.context(), mixture(names, "qwen_image")
        deploy.run(ctx, LayoutView(kind=kind, max_shard_size="10GB"), b.pipeline(), mixed)
        assert {*DeployFile.read(ctx.out).layers.values()} == {*names}
        if kind == "comfyui":
            targets.in_one_file(ctx.out, targets.parts_of(b, mixed), "qwen_image")
        else:
            targets.in_folders(ctx.out, targets.parts_of(b, mixed), targets.same_numbers)


NAMED = [n for n in TINY if TINY[n].family in NAMES]


@pytest.mark.parametrize("tiny", some(NAMED, {"chroma", "ltx", "qwen_image", "sd21", "svd", "pixart_alpha"}))
def test_every_tensor_of_a_plain_backbone_is_found_under_its_makers_name(tiny: str) -> None:
    b = bench("bfloat16", family=tiny)
    model, file = first(b.backbone()), b.context().out / "plain.safetensors"
    for tensor in model.state_dict().values():  # norms are all ones
        tensor.normal_()
    taken = comfyui.write(file, model, {}, NAMES[b.family])
    tensors, plain = load_file(file), model.state_dict()
    read = READERS[b.family](tensors, model)
    assert {*read} == {*plain}
    assert all(x.equal(plain[n]) for n, x in read.items())
    assert taken == sum(x.nbytes for x in plain.values())


# What ComfyUI's comfy/model_detection.py knows a family by.
KNOWN = {
    "flux": "double_blocks.0.img_attn.norm.key_norm.scale", "chroma": "distilled_guidance_layer.norms.0.scale",
    "sd3": "joint_blocks.0.context_block.attn.qkv.weight", "sdxl": "input_blocks.0.0.weight", "wan": "head.modulation",
    "ltx": "adaln_single.emb.timestep_embedder.linear_1.bias", "qwen_image": "txt_norm.weight", "pixart": "t_block.1.weight",
    "flux2": "double_stream_modulation_img.lin.weight", "flux2_klein": "double_stream_modulation_img.lin.weight",
    "z_image": "cap_embedder.1.weight", "sd21": "input_blocks.0.0.weight",
    "svd": "input_blocks.1.1.time_stack.0.attn1.to_q.weight",
    **dict.fromkeys(("flux_fill", "flux_kontext"), "double_blocks.0.img_attn.norm.key_norm.scale"),
    "qwen_image_edit": "txt_norm.weight", "sdxl_controlnet": "input_blocks.0.0.weight", "wan_i2v": "head.modulation",
}  # fmt: skip


@pytest.mark.parametrize("tiny", NAMED)
def test_a_file_has_what_comfyui_knows_its_family_by(tiny: str) -> None:
    b = bench(family=tiny)
    here = first(b.backbone()).state_dict()
    assert KNOWN[b.family] in NAMES[b.family].found(here)


def test_a_tensor_without_a_name_is_refused() -> None:
    b = bench()
    model = b.backbone()
    model.register_parameter("another", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(ValueError, match="another has no name in ComfyUI's layout"):
        comfyui.write(b.context().out / "there", model, {}, NAMES["flux"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_layers_that_are_one_for_comfyui_are_refused_with_several_scales(dtype: str) -> None:
    b = bench(dtype)
    ctx = b.context()
    with pytest.raises(
        GateError, match=r"to_q and \S+ are one layer for ComfyUI, with one scale; set format\.share_scales=true"
    ):
        deploy.run(ctx, FILE, b.pipeline(), b.checkpoint("fp8"))
    assert not list(ctx.out.iterdir())


@pytest.mark.parametrize(
    ("tiny", "name", "line"),
    [
        (
            "flux",
            "int8_sq",
            r"to_q is in int8_sq, which ComfyUI does not read: it takes no scale that smooths .* \(got comfyui\)",
        ),
        ("sdxl", "fp8", r"is a convolution, which ComfyUI reads unquantized alone; leave it out by format\.exclude"),
    ],
)
def test_what_comfyui_does_not_read_is_refused(tiny: str, name: str, line: str) -> None:
    b = bench(family=tiny)
    ctx = b.context()
    with pytest.raises(GateError, match=line):
        deploy.run(ctx, FILE, b.pipeline(), b.checkpoint(name))
    assert not list(ctx.out.iterdir())


def test_every_format_is_read_or_has_the_reason_why_not() -> None:
    from matrix_table import FORMATS

    assert {*COMFYUI} | {*UNREAD} == {*FORMATS}
    assert not {*COMFYUI} & {*UNREAD}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("model=emoji_flux format=fp8 calib=emoji", r"format\.share_scales: q, k and v are one layer for ComfyUI"),
        ("model=emoji_flux format=int8_sq calib=emoji", r"export: ComfyUI does not read int8_sq: .*; choose format=int8"),
        ("model=sd3_medium format=nvfp4 calib=images", r"format\.share_scales: q, k and v are one layer for ComfyUI"),
        (
            "model=emoji_flux format=auto calib=emoji sense=default format.candidates=[fp8,nvfp4] format.budget.bits=6",
            "q, k and v of flux are one layer for ComfyUI, and a mix gives each a format of its own",
        ),
    ],
)
def test_what_comfyui_does_not_read_is_told_by_the_plan(plan: Any, given: str, line: str) -> None:
    with pytest.raises(PlanError, match=line):
        plan(*given.split(), "export=comfyui")


@pytest.mark.parametrize(
    "given",
    [
        "model=emoji_flux format=fp8 calib=emoji format.share_scales=true",
        "model=emoji_flux format=mxfp8",
        "model=emoji_flux format=int8 calib=emoji",
        "model=qwen_image format=nvfp4 calib=images",
    ],
)
def test_what_it_reads_is_planned(plan: Any, given: str) -> None:
    assert "deploy" in [s.name for s in plan(*given.split(), "export=comfyui").steps]
