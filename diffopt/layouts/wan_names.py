"""Wan's layers under the names of its makers and of ComfyUI. The second norm here is the third there.

As diffusers' `convert_wan_transformer_to_diffusers` reads them.
"""

from diffopt.layouts.names import Names

ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
BLOCK = {
    **{f"self_attn.{k}": f"attn1.{n}" for k, n in ATTENTION.items()},
    **{f"cross_attn.{k}": f"attn2.{n}" for k, n in ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
REST = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "head.head": "proj_out",
}
NAMES = Names(
    layers={
        **{f"blocks.*.{there}": (f"blocks.*.{ours}",) for there, ours in BLOCK.items()},
        **{there: (ours,) for there, ours in REST.items()},
    },
    tensors={"blocks.*.modulation": "blocks.*.scale_shift_table", "head.modulation": "scale_shift_table"},
)
