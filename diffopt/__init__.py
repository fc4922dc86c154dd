"""diffopt: declarative recipes that make diffusion models small and fast, with the evidence."""

from os import PathLike
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(directory: str | PathLike[str], device: Any = None, dtype: Any = None) -> Any:
    """A backbone that `export=native` has packed, as a module of diffusers that computes in few bits: a pipeline's
    `transformer` or `unet`.

    It is read straight to `device`, the first GPU where there is one, else the CPU, which is slow; nothing is calibrated, and
    never is there a full-precision copy. `dtype` is that of what is not quantized, and can only be the one that it was packed
    in. A directory of several backbones gives a dict by name, and that of one of them the module.

    Raises errors of `diffopt.errors` for a directory that is none of these, and for a GPU without such kernels.
    """
    import torch

    from diffopt.kernels.load import load

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    named = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return load(Path(directory).expanduser(), torch.device(device), named)
