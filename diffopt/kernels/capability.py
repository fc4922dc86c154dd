"""Which formats have kernels, and on which GPUs. Imports no torch."""

KIND = {
    "fp8": "fp8",
    "int8": "int8",
    "int8_sq": "int8",
    "int4_awq": "int4",
    "nvfp4": "nvfp4",
    "nvfp4_svdquant": "nvfp4",
    "mxfp8": "mxfp8",
}
"""By format, the kind of kernel that its linear layers get."""

CAPABILITY = {"fp8": (8, 9), "int8": (8, 0), "int4": (7, 0), "nvfp4": (10, 0), "mxfp8": (10, 0), "fp8_attention": (8, 9)}
"""By kind, the compute capability of the first GPUs that have its products: Ada, Ampere, any, and Blackwell. Where cuDNN
has no FP8 attention its codes are multiplied in 16 bits."""

ANY = (7, 0)
"""That of full precision."""


def shortfall(kind: str | None, name: str, capability: tuple[int, ...]) -> str | None:
    """Why a GPU cannot run a kind of kernel, None for full precision; None where it can."""
    need = CAPABILITY[kind] if kind else ANY
    if capability >= need:
        return None
    there = ".".join(map(str, capability))
    return f"has kernels from compute capability {need[0]}.{need[1]} on (got {name} with {there})"
