"""Fusions of a backbone with kernels, where its family has some: a small file of the family each."""

from importlib import import_module
from typing import Any

FUSIONS = {"FluxTransformer2DModel": "flux", "UNet2DConditionModel": "unet", "WanTransformer3DModel": "wan"}
"""By the class of a backbone its file here, with a function `fuse(backbone)` that fuses in place."""


def fuse(backbone: Any) -> None:
    """Fuse layers that read one input into one product, and hand codes from layer to layer; other families stay as they are."""
    if name := FUSIONS.get(type(backbone).__name__):
        import_module(f"diffopt.kernels.{name}").fuse(backbone)
