"""Files of quantized backbones as other programs read them: one file a layout. Imports no torch."""

COMFYUI = {"fp8": "float8_e4m3fn", "nvfp4": "nvfp4", "mxfp8": "mxfp8", "int8": "int8_tensorwise"}
"""What ComfyUI calls the formats that it reads."""
UNREAD = {
    "int8_sq": "it takes no scale that smooths the inputs of INT8; choose format=int8",
    "int4_awq": "it takes no scale that smooths the inputs of INT4; choose format=nvfp4",
    "w4a8_awq": "it takes no scale that smooths the inputs of INT4; choose format=nvfp4",
    "nvfp4_svdquant": "it has no place for a low-rank part; choose format=nvfp4",
}
"""Why it does not read the others, and what to choose: its NVFP4 alone takes `pre_quant_scale` (comfy/quant_ops.py)."""
SVDQUANT = {"svdquant": "vLLM-Omni", "nunchaku": "Nunchaku"}
"""Layouts of SVDQuant alone, and who reads them."""
MULTIPLES = {"nunchaku": (128, 128)}
"""What a quantized layer's outputs and inputs are multiples of in a layout."""
RANKS = {"nunchaku": 16}
"""What the rank of the part that is kept beside is a multiple of."""

WEIGHTS_ALONE = "nvfp4_weights"
"""NVFP4 where inputs stay in full precision, by the name that it has among layouts."""
