"""The arithmetic of a denoising step by kind, and the rates of such products here: what a step takes at least."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffopt.artifact import Pipeline
from diffopt.caches.flops import Call, shapes, work
from diffopt.files.bench import Rate, Work
from diffopt.files.pipeline import PipelineFile
from diffopt.pipeline.open import by_name, empty_backbone
from diffopt.stage import Context

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
TRIED = 3
"""Linear layers' shapes that are timed, those with the most arithmetic: the fastest counts."""
SECONDS = {"cuda": 0.5, "cpu": 0.1}
"""For which a product is repeated: a GPU holds a higher clock in a short burst than in a run."""


@dataclass
class Seen:
    """Calls of the backbones in one picture."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, Call] = field(default_factory=dict)
    """Shapes of the arguments, which are the same in all calls of one."""

    @contextmanager
    def watching(self, pipe: Any, names: tuple[str, ...]) -> Iterator[None]:
        def saw(name: str) -> Callable[..., None]:
            def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.counts[name] = self.counts.get(name, 0) + 1
                if name not in self.first:
                    self.first[name] = shapes(args, kwargs | {"return_dict": False})

            return before

        handles = [getattr(pipe, n).register_forward_pre_hook(saw(n), with_kwargs=True) for n in names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class Shapes:
    """The products with the most arithmetic first."""

    linear: list[tuple[int, ...]]
    """Rows, inputs, outputs."""
    kernel: list[tuple[int, ...]]
    """Of those that have a kernel."""
    attention: tuple[int, ...] | None
    """Batch, heads, queries, keys, channels."""


def counted(ctx: Context, pipeline: Pipeline, seen: Seen, steps: int, kernels: set[str]) -> tuple[Work, Shapes]:
    """Of the calls that were seen. `kernels` are names of layers, as a checkpoint has them, that have a kernel: linear ones,
    and attention layers whose products are in FP8."""
    pinned = PipelineFile.read(pipeline.path)
    plain: Mapping[str, Any] = by_name(pinned, empty_backbone(ctx, pipeline))
    sums: dict[str, float] = dict.fromkeys(("kernel", "linear", "convolution", "attention", "fp8_attention"), 0.0)
    by_shape: dict[str, dict[tuple[int, ...], float]] = {"kernel": {}, "linear": {}}
    with _Attention() as attention:
        for name, call in seen.first.items():
            many, found = seen.counts[name] / steps, work(plain[name], call)
            prefix = f"{name}." if len(plain) > 1 else ""
            rest: float = found[""]
            for layer, module in plain[name].named_modules():
                flops: float = found.get(layer, 0)
                if not isinstance(module, (torch.nn.Linear, *CONVOLUTIONS)):
                    if layer and prefix + layer in kernels:
                        attended = flops - sum(found.get(f"{layer}.{n}", 0) for n in _products(module))
                        sums["fp8_attention"] += attended * many
                        rest -= attended
                    continue
                rest -= flops
                kind = "convolution" if isinstance(module, CONVOLUTIONS) else "linear"
                kind = "kernel" if kind == "linear" and prefix + layer in kernels else kind
                sums[kind] += flops * many
                if flops and isinstance(module, torch.nn.Linear):
                    wide, out = module.in_features, module.out_features
                    shape = (round(flops / (2 * wide * out)), wide, out)
                    by_shape[kind][shape] = by_shape[kind].get(shape, 0) + flops * many
            sums["attention"] += rest * many  # all other products are attention's
    most = {kind: sorted(found, key=lambda s, of=found: -of[s]) for kind, found in by_shape.items()}  # type: ignore[misc]
    largest = max(attention.found, key=_attended, default=None)
    work_ = Work(calls=sum(seen.counts.values()) / steps, **sums)
    return work_, Shapes(most["kernel"] + most["linear"], most["kernel"], largest)


def _products(module: torch.nn.Module) -> list[str]:
    """Names within `module` of what computes products with weights."""
    return [name for name, m in module.named_modules() if isinstance(m, (torch.nn.Linear, *CONVOLUTIONS))]


def measured(
    ctx: Context, pipeline: Pipeline, seen: Seen, steps: int, kernels: set[str], format: str | None
) -> tuple[Work, tuple[Rate, ...]]:
    """The arithmetic of a step, and the rates of its largest products now, on the run's device."""
    found, largest = counted(ctx, pipeline, seen, steps, kernels)
    dtype = getattr(torch, PipelineFile.read(pipeline.path).dtype)
    return found, rates(largest, dtype, format, ctx.device, found.fp8_attention > 0)


def rates(shapes: Shapes, dtype: torch.dtype, format: str | None, device: str, attends: bool = False) -> tuple[Rate, ...]:
    """Measured now on the device, on numbers of a normal distribution: zeros would run at a higher clock."""
    found = [_linear(shape, dtype, device) for shape in shapes.linear[:TRIED]]
    if format and shapes.kernel:
        found += [_kernel(shape, dtype, format, device) for shape in shapes.kernel[:TRIED]]
    if shapes.attention:
        found.append(_sdpa(shapes.attention, dtype, device))
        if attends:
            found.append(_fp8_attention(shapes.attention, device))
    return tuple(found)


def _linear(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Rate:
    rows, wide, out = shape
    x, weight = _normal(rows, wide, dtype=dtype, device=device), _normal(out, wide, dtype=dtype, device=device)
    return Rate("plain", shape, _rate(lambda: functional.linear(x, weight), 2 * rows * wide * out, device))


def _kernel(shape: tuple[int, ...], dtype: torch.dtype, format: str, device: str) -> Rate:
    """The product alone, as diffopt/kernels calls it: what rounds its input is no product."""
    rows, wide, out = shape
    x, weight = _normal(rows, wide, device=device), _normal(out, wide, device=device)
    one = torch.ones((), device=device)
    if format == "fp8":
        a, b = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn).t()

        def run() -> Any:
            return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True)
    else:
        from diffopt.kernels import int8  # registers the operator

        a, b, scale = int8.rounded(x, 40 * one), int8.rounded(weight, 40 * one), torch.ones(out, device=device)

        def run() -> Any:
            return torch.ops.diffopt.int8_linear(a, b, scale, None, dtype)

    return Rate("kernel", shape, _rate(run, 2 * rows * wide * out, device))


def _sdpa(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Rate:
    """By what torch chooses, or by cuDNN where that is there and faster."""
    batch, heads, queries, keys, channels = shape
    q = _normal(batch, heads, queries, channels, dtype=dtype, device=device)
    k, v = (_normal(batch, heads, keys, channels, dtype=dtype, device=device) for _ in range(2))

    def run() -> Any:
        return functional.scaled_dot_product_attention(q, k, v)

    found = _rate(run, _attended(shape), device)
    cuda = torch.backends.cuda
    if q.is_cuda and cuda.can_use_cudnn_attention(cuda.SDPAParams(q, k, v, None, 0.0, False, False)):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            found = max(found, _rate(run, _attended(shape), device))
    return Rate("attention", shape, found)


def _fp8_attention(shape: tuple[int, ...], device: str) -> Rate:
    """The products alone: what rounds q, k and v is none."""
    from diffopt.kernels.attention import Fp8Attention

    batch, heads, queries, keys, channels = shape
    products = Fp8Attention(torch.full((3,), 4.0, device=device))
    q, k, v = (
        _normal(batch, n, heads, channels, device=device).clamp(-4, 4).mul(112).to(torch.float8_e4m3fn)
        for n in (queries, keys, keys)
    )
    return Rate("fp8_attention", shape, _rate(lambda: products.attend(q, k, v), _attended(shape), device))


def _attended(shape: tuple[int, ...]) -> int:
    """Operations of its two products."""
    batch, heads, queries, keys, channels = shape
    return 4 * batch * heads * queries * keys * channels


def _normal(*shape: int, dtype: torch.dtype = torch.float32, device: str) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def _rate(run: Callable[[], Any], flops: int, device: str) -> float:
    """Operations a second, sustained: the median of three stretches."""
    cuda = torch.device(device).type == "cuda"

    def seconds(many: int) -> float:
        started = time.perf_counter()
        for _ in range(many):
            run()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.inference_mode():
        seconds(3)  # picks its kernel, tunes it
        one = seconds(3) / 3
        many = max(3, int(SECONDS["cuda" if cuda else "cpu"] / 3 / one))
        return flops * many / median(seconds(many) for _ in range(3))


class _Attention(TorchFunctionMode):
    """Sees the shapes of every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            *batch, heads, queries, channels = given["query"].shape
            self.found.add((*(batch or [1]), heads, queries, given["key"].shape[-2], channels))
        return func(*args, **(kwargs or {}))
