"""Training with the weights rounded alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from modelopt.torch.quantization.nn import TensorQuantizer


@contextmanager
def exact_inputs(whole: torch.nn.Module) -> Iterator[None]:
    """Within it no quantizer but those of weights rounds; channels are scaled as the format scales them."""
    named = [(n, m) for n, m in whole.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled]
    off = [m for name, m in named if "weight_quantizer" not in name.split(".")]
    for quantizer in off:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in off:
            quantizer.enable()
