"""Files of quantized backbones as other programs read them: one file a layout. Imports no torch."""

COMFYUI = {"fp8": "float8_e4m3fn", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}
"""What ComfyUI calls the formats that it reads."""
NAMED = {"flux": "FluxTransformer2DModel"}
"""Families of whose layers the names in ComfyUI are known here, by the class of the backbone."""
