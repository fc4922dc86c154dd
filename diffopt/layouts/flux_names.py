"""FLUX's layers under the names of its makers and of ComfyUI: q, k and v are one layer, and of a single block the MLP too.

As ComfyUI's `comfy.utils.flux_to_diffusers` maps them, and diffusers' `convert_flux_transformer_checkpoint_to_diffusers`,
which a test reads the names with.
"""

from diffopt.layouts.names import Names

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
BLOCKS: dict[str, tuple[str, ...]] = {
    **{f"double_blocks.*.{k}": tuple(f"transformer_blocks.*.{n}" for n in v) for k, v in DOUBLE.items()},
    **{f"single_blocks.*.{k}": tuple(f"single_transformer_blocks.*.{n}" for n in v) for k, v in SINGLE.items()},
}
NORMS = {
    "double_blocks.*.img_attn.norm.query_norm.scale": "transformer_blocks.*.attn.norm_q.weight",
    "double_blocks.*.img_attn.norm.key_norm.scale": "transformer_blocks.*.attn.norm_k.weight",
    "double_blocks.*.txt_attn.norm.query_norm.scale": "transformer_blocks.*.attn.norm_added_q.weight",
    "double_blocks.*.txt_attn.norm.key_norm.scale": "transformer_blocks.*.attn.norm_added_k.weight",
    "single_blocks.*.norm.query_norm.scale": "single_transformer_blocks.*.attn.norm_q.weight",
    "single_blocks.*.norm.key_norm.scale": "single_transformer_blocks.*.attn.norm_k.weight",
}
ENDS: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
}
TIME: dict[str, tuple[str, ...]] = {
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
NAMES = Names(layers={**BLOCKS, **ENDS, **TIME}, tensors=NORMS, swapped=("norm_out.linear",))
"""diffusers has scale before shift in `norm_out`, the others shift before scale."""
