"""The layers of a UNet as latent diffusion named them, and ComfyUI does: SDXL, Stable Diffusion 2.1 and Stable Video Diffusion.

As ComfyUI's `comfy.utils.unet_to_diffusers` maps them, diffusers' `convert_ldm_unet_checkpoint`, and for video its
scripts/convert_svd_to_diffusers.py. Blocks are numbered through there, so that the numbers follow from how many there are.
"""

from collections.abc import Collection, Iterator

from diffopt.layouts.names import Names, Table

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
REST = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VIDEO = {"temporal_transformer_blocks": "time_stack", "time_pos_embed.linear_1": "time_pos_embed.0",
         "time_pos_embed.linear_2": "time_pos_embed.2"}  # fmt: skip
"""Within an attention of Stable Video Diffusion; all else of an attention has one name."""


def layers(here: Collection[str]) -> Table:
    """By a layer's name there that in diffusers."""
    places = dict(_places(here))
    found = {there: (ours,) for ours, there in REST.items() if ours in here}
    for name in here:
        prefix = next((p for n in (4, 3) if (p := ".".join(name.split(".")[:n])) in places), None)
        if prefix is not None:
            inner = name.removeprefix(prefix).lstrip(".")
            found[".".join(filter(None, (places[prefix], _within(prefix, inner))))] = (name,)
    return found


def _places(here: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each resnet, attention and convolution between sizes in diffusers, and its place there."""
    yield from (("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"))
    yield "mid_block.resnets.1", "middle_block.2"
    for ours, there, between, first in (
        ("down_blocks", "input_blocks", "downsamplers", 1),
        ("up_blocks", "output_blocks", "upsamplers", 0),
    ):
        place = first
        for i in range(_count(here, ours)):
            block, many = f"{ours}.{i}", _count(here, f"{ours}.{i}.resnets")
            for j in range(many):
                yield f"{block}.resnets.{j}", f"{there}.{place + j}.0"
                yield f"{block}.attentions.{j}", f"{there}.{place + j}.1"
            place += many
            if between == "downsamplers":  # a block of its own
                yield f"{block}.{between}.0", f"{there}.{place}.0"
                place += 1
            else:  # the last of its block
                last = 2 if _count(here, f"{block}.attentions") else 1
                yield f"{block}.{between}.0", f"{there}.{place - 1}.{last}"


def _count(here: Collection[str], of: str) -> int:
    return len({name[len(of) + 1 :].split(".")[0] for name in here if name.startswith(f"{of}.")})


def _within(prefix: str, inner: str) -> str:
    """The rest of a layer's name there."""
    if "attentions" in prefix:
        for ours, there in VIDEO.items():
            if inner == ours or inner.startswith(f"{ours}."):
                return there + inner.removeprefix(ours)
        return inner
    if "downsamplers" in prefix:
        return inner.replace("conv", "op", 1)
    kind, _, last = inner.rpartition(".")
    if kind == "temporal_res_block":
        return f"time_stack.{RESNET[last]}"
    return RESNET.get(last, inner) if "resnets" in prefix else inner


NAMES = Names(layers=layers)
