"""The arithmetic of a backbone's blocks, from its configuration and the shapes of one call: nothing is computed."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

Call = tuple[tuple[Any, ...], dict[str, Any]]


def shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments of a call with nothing left of their tensors but shape and dtype."""

    def bare(x: Any) -> Any:
        return torch.empty_like(x, device="meta") if isinstance(x, torch.Tensor) else x

    found: Call = tree_map(bare, (args, kwargs))
    return found


def work(backbone: Any, call: Call) -> dict[str, int]:
    """Floating-point operations of the products (linear, convolution, attention) in one such call, by module name; of all
    of it under an empty name.

    Of a backbone that looks at numbers on its way, the weights stand for the operations.

    Counted in a backbone of the same configuration that has no weights, so that neither quantizers nor caches nor compiled
    code of this one matter.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        plain = type(backbone).from_config(backbone.config).eval()
        args, kwargs = tree_map(_plain, call)
        try:
            with FlopCounterMode(display=False) as counter:
                plain(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):  # it looks at numbers, as Mochi at its mask's
            return {name: sum(p.numel() for p in m.parameters()) for name, m in plain.named_modules()}
    top = type(plain).__name__
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    return {"": counter.get_total_flops()} | {
        n.removeprefix(f"{top}."): c for n, c in counts.items() if n.startswith(f"{top}.")
    }


def _plain(x: Any) -> Any:
    """A tensor on the CPU, in FP32 as the plain backbone is."""
    if not isinstance(x, torch.Tensor):
        return x
    return torch.empty(x.shape, dtype=torch.float32 if x.is_floating_point() else x.dtype)
