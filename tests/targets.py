"""Tiny models in the layouts of other programs: written, read as those programs read them, and compared with what was scored.

`LEFT_OUT` and `WIDE` are what a target needs of a tiny model: linear layers alone, and lengths of multiples of 128.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from comfyui_readers import READERS
from nunchaku_lanes import unpacked
from safetensors.torch import load_file
from test_matrix import FEWER
from tiny import Bench, called, folder, prompts_of, saved
from tiny_pipelines import TINY

from diffopt import formats
from diffopt.artifact import Checkpoint, DeployedCheckpoint
from diffopt.files.deploy import DeployFile
from diffopt.files.pipeline import PipelineFile
from diffopt.layouts import svdquant
from diffopt.layouts.families import NAMES
from diffopt.models import family
from diffopt.pipeline.open import by_name
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.numbers import numbers as numbers_of
from diffopt.stages.deploy import LayoutView, deploy

Tensors = dict[str, torch.Tensor]
Parts = list[tuple[str, Any, Any]]
"""Each backbone: its name, the plain one, and the scored one."""

LEFT_OUT = ("*conv*", "*proj_in", "*proj_out")
"""Convolutions of UNets, and projections that are such in some."""
NARROW_TEXT = ("*attn2.to_k", "*attn2.to_v")
"""Of wide UNets: what sees a text of 32 or 64 channels."""
FOUR: dict[str, Any] = {"num_attention_heads": 4}
WIDE: dict[str, dict[str, Any]] = {
    "flux": FOUR, "flux2": FOUR, "flux2_klein": FOUR, "chroma": FOUR, "wan": FOUR, "wan_ti2v": FOUR, "qwen_image": FOUR,
    **dict.fromkeys(("flux_fill", "flux_kontext", "qwen_image_edit", "wan_i2v"), FOUR),
    "sd3": FOUR | {"caption_projection_dim": 128}, "pixart": FOUR | {"cross_attention_dim": 128},
    "pixart_alpha": {"num_attention_heads": 12, "cross_attention_dim": 384, "num_layers": 1},
    "z_image": {"dim": 384, "n_heads": 12, "n_kv_heads": 12},
    **dict.fromkeys(("sana", "sana_sprint"), FOUR | {"num_cross_attention_heads": 4, "cross_attention_dim": 128}),
    "cosmos25": FOUR | {"text_embed_dim": 128, "encoder_hidden_states_channels": 128, "adaln_lora_dim": 128},
    "hunyuan_video15": FOUR,
    "ltx2": FOUR | {"cross_attention_dim": 128, "audio_num_attention_heads": 8, "audio_cross_attention_dim": 128},
    "ltx": {"num_attention_heads": 8, "cross_attention_dim": 128},
    **{unet: {"block_out_channels": (128,)} for unet in ("sdxl", "sdxl_controlnet", "sd21", "svd")},
}  # fmt: skip
EXACT = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
"""Relative: what scale times code is rounded to. Two codes are further apart."""


@cache
def made(tiny: str, wide: bool = False) -> Bench:
    """In BF16 where it is wide, which the targets that need that ask for."""
    about = TINY[tiny]
    changes = FEWER.get(tiny, {}) | (WIDE[tiny] if wide else {})
    call = called(about.side, about.tokens, guidance_scale=about.guidance, frames=about.frames, long_prompts="cut")
    dtype = "bfloat16" if wide else "float32"
    return Bench(folder(), str(saved(tiny, False, **changes)), dtype, call, prompts_of(tiny), family=about.family)


def settings(b: Bench, name: str) -> dict[str, Any]:
    """What of a format the targets of a family need."""
    method, about = formats.method(name), family(b.family)
    if name == "nvfp4_svdquant":
        return {"share": True, "round": True, "rank": 16, "exclude": NARROW_TEXT if about.convolutions else ()}
    left = LEFT_OUT if about.convolutions and method.convolution else ()
    return {"share": method.shares and b.family in NAMES and NAMES[b.family].fuses(), "exclude": left}


def written(b: Bench, kind: Any, name: str, **how: Any) -> DeployedCheckpoint:
    def make(ctx: Any) -> DeployedCheckpoint:
        deploy.run(ctx, LayoutView(kind=kind, max_shard_size="10GB"), b.pipeline(), b.checkpoint(name, **how))
        return DeployedCheckpoint(ctx.out, "deploy")

    return b._once((kind, name, *how.items()), make)


def backbones(b: Bench, name: str, how: dict[str, Any]) -> Parts:
    made: Parts = b._once(("scored", name, *how.items()), lambda ctx: parts_of(b, b.checkpoint(name, **how)))
    return made


def parts_of(b: Bench, scored: Checkpoint) -> Parts:
    """Each backbone with its name: plain, and as it was scored. They are shared, and not to be changed."""
    pinned = PipelineFile.read(b.pipeline().path)
    plain = by_name(pinned, b.backbone())
    return [
        (part, plain[part], x) for part, x in by_name(pinned, checkpoint.restore(b.context(), b.pipeline(), scored)).items()
    ]


def scored_weight(layer: Any) -> torch.Tensor:
    with simulated(), torch.no_grad():
        found: torch.Tensor = layer.weight_quantizer(layer.weight)
    return found


def of(layer: str, among: Tensors) -> Tensors:
    return {n.removeprefix(f"{layer}."): x for n, x in among.items() if n.rpartition(".")[0] == layer}


def exact(found: torch.Tensor, scored: torch.Tensor) -> bool:
    off = (found.to(scored.dtype).float() - scored.float()).abs()
    return bool((off <= scored.float().abs() * EXACT[scored.dtype]).all())


def in_folders(there: Path, parts: Parts, same: Callable[[Any, Tensors, str], None]) -> None:
    """Every quantized layer by `same`, which is told its format, and that all else of each backbone is as it was."""
    formats_of = DeployFile.read(there).layers
    for part, plain, scored in parts:
        read = load_file(there / part / "diffusion_pytorch_model.safetensors")
        layers, expected = {*checkpoint.quantized_layers(scored)}, plain.state_dict()
        assert layers
        for layer in layers:
            name = formats_of.get(layer) or formats_of[f"{part}.{layer}"]
            same(scored.get_submodule(layer), of(layer, read), name)
        rest = {n: x for n, x in read.items() if n.rpartition(".")[0] not in layers}
        assert {*rest} == {n for n in expected if n.rpartition(".")[0] not in layers}
        assert all(x.equal(expected[n]) for n, x in rest.items())


def same_numbers(layer: Any, found: Tensors, name: str) -> None:
    numbers, scored = numbers_of(found, name), scored_weight(layer)
    if name == "w4a8_awq":  # simulated in two roundings, of which the model's precision is between
        assert float((numbers - scored.float()).norm() / scored.float().norm()) < 0.05
    else:
        assert exact(numbers, scored)
    assert layer.bias is None or found["bias"].equal(layer.bias)


def huggingface(b: Bench, name: str, how: dict[str, Any]) -> None:
    in_folders(written(b, "huggingface", name, **how).path, backbones(b, name, how), same_numbers)


def same_as_scored(layer: Any, found: Tensors) -> None:
    """What a reader makes of an SVDQuant layer, bit for bit: x / smooth_factor, the weight, the low-rank part, the bias."""
    quantizer, smoothing = layer.weight_quantizer, layer.input_quantizer.pre_quant_scale.flatten()
    x = torch.randn(7, layer.in_features).bfloat16()
    assert svdquant.numbers(found).bfloat16().equal(scored_weight(layer))
    assert (x / found["smooth_factor"]).equal(x * smoothing)
    assert found["proj_down"].equal((quantizer.svdquant_lora_a.float() * smoothing.float()).T.bfloat16())
    assert (found["proj_down"].float() / smoothing.float()[:, None]).equal(quantizer.svdquant_lora_a.float().T)
    assert found["proj_up"].equal(quantizer.svdquant_lora_b)
    assert layer.bias is None or found["bias"].equal(layer.bias)


def in_rows(b: Bench, name: str, how: dict[str, Any]) -> None:
    there = written(b, "svdquant", name, **how).path
    in_folders(there, backbones(b, name, how), lambda layer, found, _: same_as_scored(layer, found))


def in_lanes(b: Bench, name: str, how: dict[str, Any]) -> None:
    there = written(b, "nunchaku", name, **how).path
    in_folders(there, backbones(b, name, how), lambda layer, found, _: same_as_scored(layer, unpacked(found)))


def comfyui(b: Bench, name: str, how: dict[str, Any]) -> None:
    in_one_file(written(b, "comfyui", name, **how).path, backbones(b, name, how), b.family)


def in_one_file(there: Path, parts: Parts, family: str) -> None:
    """Read by comfy-kitchen, then by diffusers' converter: every tensor, under its name in diffusers."""
    for part, plain, scored in parts:
        read = READERS[family](dequantized(load_file(there / f"{part}.safetensors")), plain)
        layers, expected = {*checkpoint.quantized_layers(scored)}, plain.state_dict()
        assert layers
        assert {*read} == {*expected}
        for key, tensor in read.items():
            layer, _, last = key.rpartition(".")
            if layer in layers and last == "weight":
                assert exact(tensor, scored_weight(scored.get_submodule(layer))), key
                assert not tensor.equal(expected[key]), key
            else:
                assert tensor.equal(expected[key]), key


def dequantized(tensors: Tensors) -> Tensors:
    """As comfy-kitchen reads a file, by what it says of each layer; FP32 where it was quantized."""
    from comfy_kitchen.backends.eager import quantization as read

    found = {**tensors}
    for layer in [n.removesuffix(".comfy_quant") for n in tensors if n.endswith(".comfy_quant")]:
        kind = json.loads(bytes(found.pop(f"{layer}.comfy_quant").tolist()))["format"]
        weight, scale = found.pop(f"{layer}.weight"), found.pop(f"{layer}.weight_scale")
        whole = found.pop(f"{layer}.weight_scale_2", None)
        found.pop(f"{layer}.input_scale", None)
        if kind == "nvfp4":
            found[f"{layer}.weight"] = read.dequantize_nvfp4(weight, whole, scale, torch.float32)
        elif kind == "mxfp8":
            found[f"{layer}.weight"] = read.dequantize_mxfp8(weight, scale, torch.float32)
        elif kind == "float8_e4m3fn":
            found[f"{layer}.weight"] = read.dequantize_per_tensor_fp8(weight, scale, torch.float32)
        else:
            assert scale.shape == (len(weight), 1)  # a scale a row, as its reader tells them apart
            found[f"{layer}.weight"] = read.dequantize_int8_simple(weight, scale)
    return found


TARGETS: dict[str, Callable[[Bench, str, dict[str, Any]], None]] = {
    "huggingface": huggingface,
    "comfyui": comfyui,
    "svdquant": in_rows,
    "nunchaku": in_lanes,
}
"""By `export=`: writes a tiny model, and compares what is read with what was scored."""
