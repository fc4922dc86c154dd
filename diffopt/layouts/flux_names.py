"""FLUX's layers under the names of its makers and of ComfyUI: q, k and v are one layer, and of a single block the MLP too.

As ComfyUI's `comfy.utils.flux_to_diffusers` maps them, and diffusers' `convert_flux_transformer_checkpoint_to_diffusers`,
which a test reads the names with.
"""

import torch

Tensors = dict[str, torch.Tensor]

QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": tuple(f"attn.{n}" for n in QKV),
    "txt_attn.qkv": tuple(f"attn.{n}" for n in ADDED),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": (*(f"attn.{n}" for n in QKV), "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
NORMS = {
    "transformer_blocks": {
        "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
        "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    },
    "single_transformer_blocks": {
        "attn.norm_q.weight": "norm.query_norm.scale",
        "attn.norm_k.weight": "norm.key_norm.scale",
    },
}
REST: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "norm_out.linear"
"""diffusers has scale before shift, the others shift before scale."""
BLOCKS = {"transformer_blocks": ("double_blocks", DOUBLE), "single_transformer_blocks": ("single_blocks", SINGLE)}


def layers(names: set[str]) -> dict[str, tuple[str, ...]]:
    """By the layer's name there, the names in diffusers of those it is made of, one under the other; `names` are diffusers'."""
    found = {there: ours for there, ours in REST.items() if {*ours} <= names}
    for ours, (theirs, table) in BLOCKS.items():
        for i in sorted({int(n.split(".")[1]) for n in names if n.startswith(f"{ours}.")}):
            parts = {f"{theirs}.{i}.{k}": tuple(f"{ours}.{i}.{n}" for n in v) for k, v in table.items()}
            found |= {k: v for k, v in parts.items() if {*v} <= names}
    return found


def norms(name: str) -> str | None:
    """What a weight that is of no linear layer is called there; None for one that is not known."""
    block, _, rest = name.partition(".")
    i, _, last = rest.partition(".")
    there = NORMS.get(block, {}).get(last)
    return there and f"{BLOCKS[block][0]}.{i}.{there}"
