"""Engine plans of TensorRT, or TensorRT-RTX where only that is installed: built, looked into, judged, refitted."""

import importlib
from typing import Any


def module(flavour: str) -> Any:
    """TensorRT's Python module, `tensorrt` or `tensorrt_rtx`."""
    return importlib.import_module(flavour)
