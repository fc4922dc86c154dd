"""How files for ComfyUI are read back to diffusers' names, by readers that are not diffopt's: diffusers' converters of single
files, and for PixArt and Stable Video Diffusion, which it has none for, replacements as its conversion scripts make them."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

Tensors = dict[str, torch.Tensor]


def narrow(tensors: Tensors, model: Any) -> Tensors:
    """Of FLUX and Chroma, whose converters take the width of FLUX.1 for granted."""
    converter = SINGLE_FILE_LOADABLE_CLASSES[type(model).__name__]["checkpoint_mapping_fn"]
    source, width = inspect.getsource(converter), "inner_dim = 3072"
    assert width in source
    there: dict[str, Any] = {"torch": torch}
    exec(source.replace(width, f"inner_dim = {model.inner_dim}"), there)
    found: Tensors = there[converter.__name__]({**tensors})
    return found


def diffusers(tensors: Tensors, model: Any) -> Tensors:
    """As `from_single_file` does it."""
    about = SINGLE_FILE_LOADABLE_CLASSES[type(model).__name__]
    whole = {f"model.diffusion_model.{name}": x for name, x in tensors.items()} if "UNet" in type(model).__name__ else tensors
    found: Tensors = about["checkpoint_mapping_fn"]({**whole}, config=dict(model.config))
    return found


def pixart(tensors: Tensors, model: Any) -> Tensors:
    """As diffusers' scripts/convert_pixart_sigma_to_diffusers.py goes about it."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(attn\.qkv|cross_attn\.kv_linear)\.(\w+)", name):
            i, layer, last = match.groups()
            attention, parts = ("attn1", "qkv") if layer == "attn.qkv" else ("attn2", "kv")
            split = zip(parts, tensor.chunk(len(parts)), strict=True)
            found |= {f"transformer_blocks.{i}.{attention}.to_{p}.{last}": x for p, x in split}
            continue
        for was, now in PIXART:
            name = re.sub(was, now, name)
        found[name] = tensor
    return found


PIXART = (
    (r"^blocks\.(\d+)\.attn\.proj", r"transformer_blocks.\1.attn1.to_out.0"),
    (r"^blocks\.(\d+)\.cross_attn\.q_linear", r"transformer_blocks.\1.attn2.to_q"),
    (r"^blocks\.(\d+)\.cross_attn\.proj", r"transformer_blocks.\1.attn2.to_out.0"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"transformer_blocks.\1.ff.net.2"),
    (r"^blocks\.", "transformer_blocks."),
    (r"^x_embedder\.proj", "pos_embed.proj"),
    (r"^t_block\.1", "adaln_single.linear"),
    (r"^t_embedder\.mlp\.0", "adaln_single.emb.timestep_embedder.linear_1"),
    (r"^t_embedder\.mlp\.2", "adaln_single.emb.timestep_embedder.linear_2"),
    (r"^csize_embedder\.mlp\.0", "adaln_single.emb.resolution_embedder.linear_1"),
    (r"^csize_embedder\.mlp\.2", "adaln_single.emb.resolution_embedder.linear_2"),
    (r"^ar_embedder\.mlp\.0", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
    (r"^ar_embedder\.mlp\.2", "adaln_single.emb.aspect_ratio_embedder.linear_2"),
    (r"^y_embedder\.y_proj\.fc", "caption_projection.linear_"),
    (r"^final_layer\.linear", "proj_out"),
    (r"^final_layer\.scale_shift_table", "scale_shift_table"),
)


def svd(tensors: Tensors, model: Any) -> Tensors:
    """As diffusers' scripts/convert_svd_to_diffusers.py goes about it: blocks from their numbers, parts by replacement."""
    per = model.config.layers_per_block + 1
    found: Tensors = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head in ("input_blocks", "output_blocks") and not name.startswith("input_blocks.0."):
            number, part, inner = rest.split(".", 2)
            place = int(number) - (head == "input_blocks")
            name = _video(f"{'down' if head == 'input_blocks' else 'up'}_blocks.{place // per}", place % per, part, inner)
        elif head == "middle_block":
            part, inner = rest.split(".", 1)
            name = _video("mid_block", int(part) // 2 if part != "1" else 0, "1" if part == "1" else "0", inner)
        else:
            for was, now in SVD:
                name = name.replace(was, now)
        found[name] = tensor
    return found


SVD = (
    ("input_blocks.0.0", "conv_in"), ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"), ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)  # fmt: skip
RESNET = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("out_layers.0", "norm2"), ("out_layers.3", "conv2"),
    ("emb_layers.1", "time_emb_proj"), ("skip_connection", "conv_shortcut"),
)  # fmt: skip


def _video(block: str, i: int, part: str, inner: str) -> str:
    if inner.startswith("op."):
        return f"{block}.downsamplers.0.conv.{inner.removeprefix('op.')}"
    if inner.startswith("conv."):
        return f"{block}.upsamplers.0.{inner}"
    if part == "1":
        inner = inner.replace("time_stack", "temporal_transformer_blocks")
        inner = inner.replace("time_pos_embed.0", "time_pos_embed.linear_1").replace(
            "time_pos_embed.2", "time_pos_embed.linear_2"
        )
        return f"{block}.attentions.{i}.{inner}"
    if inner.startswith("time_mixer"):
        return f"{block}.resnets.{i}.{inner}"
    kind = "temporal_res_block" if inner.startswith("time_stack.") else "spatial_res_block"
    inner = inner.removeprefix("time_stack.")
    for was, now in RESNET:
        inner = inner.replace(was, now)
    return f"{block}.resnets.{i}.{kind}.{inner}"


READERS: dict[str, Callable[[Tensors, Any], Tensors]] = {
    **dict.fromkeys(("sd3", "sdxl", "sd21", "wan", "ltx", "qwen_image", "flux2", "flux2_klein", "z_image"), diffusers),
    **dict.fromkeys(("flux", "flux_fill", "flux_kontext", "chroma"), narrow),
    **dict.fromkeys(("qwen_image_edit", "sdxl_controlnet", "wan_i2v"), diffusers),
    "pixart": pixart,
    "svd": svd,
}
"""By family."""
