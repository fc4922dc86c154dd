"""PixArt's layers under the names of its makers and of ComfyUI: q, k and v are one layer, and k and v where the text is seen.

As ComfyUI's `comfy.utils.pixart_to_diffusers` maps them. What ComfyUI calls `y_embedder.y_embedding` stands for no text in
training alone, and diffusers does not have it.
"""

from diffopt.layouts.flux_names import QKV
from diffopt.layouts.names import Names

BLOCK: dict[str, tuple[str, ...]] = {
    "attn.qkv": tuple(f"attn1.{n}" for n in QKV),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
TIME = "adaln_single.emb"
REST: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_block.1": ("adaln_single.linear",),
    "t_embedder.mlp.0": (f"{TIME}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{TIME}.timestep_embedder.linear_2",),
    "csize_embedder.mlp.0": (f"{TIME}.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": (f"{TIME}.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": (f"{TIME}.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": (f"{TIME}.aspect_ratio_embedder.linear_2",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "final_layer.linear": ("proj_out",),
}
NAMES = Names(
    layers={**{f"blocks.*.{k}": tuple(f"transformer_blocks.*.{n}" for n in v) for k, v in BLOCK.items()}, **REST},
    tensors={
        "blocks.*.scale_shift_table": "transformer_blocks.*.scale_shift_table",
        "final_layer.scale_shift_table": "scale_shift_table",
    },
)
