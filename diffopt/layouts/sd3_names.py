"""Stable Diffusion 3's layers under the names of its makers and of ComfyUI: q, k and v are one layer in each of its attentions.

As ComfyUI's `comfy.utils.mmdit_to_diffusers` maps them, and diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`.
"""

from diffopt.layouts.flux_names import ADDED, QKV
from diffopt.layouts.names import Names

BLOCK: dict[str, tuple[str, ...]] = {
    "x_block.attn.qkv": tuple(f"attn.{n}" for n in QKV),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn2.qkv": tuple(f"attn2.{n}" for n in QKV),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": tuple(f"attn.{n}" for n in ADDED),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
REST: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
NAMES = Names(
    layers={**{f"joint_blocks.*.{k}": tuple(f"transformer_blocks.*.{n}" for n in v) for k, v in BLOCK.items()}, **REST},
    tensors={"pos_embed": "pos_embed.pos_embed"},
    swapped=("norm_out.linear", "transformer_blocks.-1.norm1_context.linear"),
)
"""diffusers has scale before shift where a norm has only those, the others shift before scale."""
