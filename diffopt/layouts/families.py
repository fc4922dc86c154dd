"""Of which families the layers' names in ComfyUI are known, a table each. Imports no torch."""

from diffopt.layouts import (
    chroma_names,
    flux2_names,
    flux_names,
    ldm_names,
    ltx_names,
    pixart_names,
    sd3_names,
    wan_names,
    z_image_names,
)
from diffopt.layouts.names import Names

NAMES: dict[str, Names] = {
    "chroma": chroma_names.NAMES,
    "flux": flux_names.NAMES,
    "flux2": flux2_names.NAMES,
    "flux2_klein": flux2_names.NAMES,
    "flux_fill": flux_names.NAMES,
    "flux_kontext": flux_names.NAMES,
    "ltx": ltx_names.NAMES,
    "pixart": pixart_names.NAMES,
    "qwen_image": Names(same=True),  # comfy/ldm/qwen_image/model.py has diffusers' own names
    "qwen_image_edit": Names(same=True),
    "sd21": ldm_names.NAMES,
    "sd3": sd3_names.NAMES,
    "sdxl": ldm_names.NAMES,
    "sdxl_controlnet": ldm_names.NAMES,
    "svd": ldm_names.NAMES,
    "wan": wan_names.NAMES,
    "z_image": z_image_names.NAMES,
    "wan_i2v": wan_names.NAMES,
}
