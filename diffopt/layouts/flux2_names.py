"""FLUX.2's layers under the names of its makers and of ComfyUI: FLUX's, with one modulation for all blocks of a kind.

As diffusers' `convert_flux2_transformer_checkpoint_to_diffusers` reads them.
"""

from diffopt.layouts.flux_names import DOUBLE, ENDS, NORMS
from diffopt.layouts.names import Names

FEED_FORWARD: dict[str, tuple[str, ...]] = {
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
PAIRED = {k: v for k, v in DOUBLE.items() if not k.endswith("_mod.lin")} | FEED_FORWARD
SINGLE: dict[str, tuple[str, ...]] = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
EMBEDDED = "time_guidance_embed"
OUTSIDE: dict[str, tuple[str, ...]] = {
    **{f"{x}.lin": (f"{x}.linear",) for x in ("double_stream_modulation_img", "double_stream_modulation_txt")},
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "time_in.in_layer": (f"{EMBEDDED}.timestep_embedder.linear_1",),
    "time_in.out_layer": (f"{EMBEDDED}.timestep_embedder.linear_2",),
    "guidance_in.in_layer": (f"{EMBEDDED}.guidance_embedder.linear_1",),
    "guidance_in.out_layer": (f"{EMBEDDED}.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
NAMES = Names(
    layers={
        **{f"double_blocks.*.{k}": tuple(f"transformer_blocks.*.{n}" for n in v) for k, v in PAIRED.items()},
        **{f"single_blocks.*.{k}": tuple(f"single_transformer_blocks.*.{n}" for n in v) for k, v in SINGLE.items()},
        **ENDS,
        **OUTSIDE,
    },
    tensors=NORMS,
    swapped=("norm_out.linear",),
)
"""diffusers has scale before shift in `norm_out`, the others shift before scale."""
