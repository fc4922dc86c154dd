"""LTX-Video's layers under the names of its makers and of ComfyUI: nearly those of diffusers.

As diffusers' `convert_ltx_transformer_checkpoint_to_diffusers` reads them.
"""

from diffopt.layouts.names import Names

BLOCK = "transformer_blocks.*"
NAMES = Names(
    layers={
        "patchify_proj": ("proj_in",),
        "adaln_single.linear": ("time_embed.linear",),
        "adaln_single.emb.timestep_embedder.linear_1": ("time_embed.emb.timestep_embedder.linear_1",),
        "adaln_single.emb.timestep_embedder.linear_2": ("time_embed.emb.timestep_embedder.linear_2",),
        **{f"{BLOCK}.{a}.{n}_norm": (f"{BLOCK}.{a}.norm_{n}",) for a in ("attn1", "attn2") for n in "qk"},
    },
    same=True,
)
