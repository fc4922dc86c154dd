"""Chroma's layers under the names of its makers and of ComfyUI: FLUX's blocks without modulation, which one network gives all.

As diffusers' `convert_chroma_transformer_checkpoint_to_diffusers` reads them.
"""

from diffopt.layouts.flux_names import BLOCKS, ENDS, NORMS
from diffopt.layouts.names import Names

GUIDANCE: dict[str, tuple[str, ...]] = {
    "distilled_guidance_layer.in_proj": ("distilled_guidance_layer.in_proj",),
    "distilled_guidance_layer.out_proj": ("distilled_guidance_layer.out_proj",),
    "distilled_guidance_layer.layers.*.in_layer": ("distilled_guidance_layer.layers.*.linear_1",),
    "distilled_guidance_layer.layers.*.out_layer": ("distilled_guidance_layer.layers.*.linear_2",),
}
NAMES = Names(
    layers={**BLOCKS, **ENDS, **GUIDANCE},
    tensors=NORMS | {"distilled_guidance_layer.norms.*.scale": "distilled_guidance_layer.norms.*.weight"},
)
