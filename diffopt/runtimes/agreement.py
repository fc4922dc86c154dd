"""Comparing a native backbone with the one that is simulated, given the same inputs: layer by layer, and call by call.

The simulated one draws. Its calls are kept, so that it can be let go before the native one is called with the same inputs: of
a large model there is room for one and a half, not for more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from diffopt.errors import GateError
from diffopt.files.parity import Agreement, ComparedLayer
from diffopt.kernels.fp8 import Fp8Linear
from diffopt.kernels.int8 import Int8Linear
from diffopt.quantization.extremes import called_modules

KINDS = {Fp8Linear: "fp8", Int8Linear: "int8"}


class Sums:
    """FP64 sums over outputs: squares of the differences, squares of either side, and products of both."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None

    def add(self, native: torch.Tensor, simulated: torch.Tensor) -> None:
        ours, theirs = native.float(), simulated.float()
        terms = ((ours - theirs).square(), theirs.square(), ours.square(), ours * theirs)
        found = torch.stack([x.sum(dtype=torch.float64) for x in terms])
        self._sums = found if self._sums is None else self._sums + found

    def agreement(self, where: str) -> Agreement:
        """Raises GateError for what is not finite."""
        assert self._sums is not None
        error, theirs, ours, product = self._sums.tolist()
        if not isfinite(error + theirs + ours):
            raise GateError(
                f"parity: {where} has no finite output (got a squared difference of {error:g} from {theirs:g}); "
                "set eval.runtime=torch, and report it"
            )
        if error == 0:
            return Agreement(0.0, 1.0)
        size = (theirs * ours) ** 0.5
        return Agreement((error / theirs) ** 0.5 if theirs else 1.0, product / size if size else 0.0)


def relative_error(native: torch.Tensor, simulated: torch.Tensor, where: str) -> float:
    sums = Sums()
    sums.add(native, simulated)
    return sums.agreement(where).relative_error


@dataclass
class Call:
    part: str
    """Of a pipeline with several backbones its name, else empty."""
    args: Any
    kwargs: Any
    output: torch.Tensor


@dataclass
class Watched:
    """Fills while the simulated backbone draws; `end` is to be called after every denoising step."""

    native: torch.nn.Module
    """As it was converted: its layers have the simulated ones' names."""
    many: Callable[[], int]
    """How many denoising steps there are, once the first one has begun."""
    calls: list[list[Call]] = field(default_factory=lambda: [[]])
    """Of every denoising step."""
    sums: dict[str, dict[int, Sums]] = field(default_factory=dict)
    """By layer, and by denoising step from 0."""

    def end(self) -> None:
        self.calls.append([])

    @property
    def steps(self) -> list[int]:
        """Those in which layers are compared: the first, the middle one and the last."""
        last = self.many() - 1
        return sorted({0, last // 2, last})

    def layer(self, name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        now = len(self.calls) - 1
        if now in self.steps:
            self.sums.setdefault(name, {}).setdefault(now, Sums()).add(self.native.get_submodule(name)(x), output)

    def call(self, part: str, args: Any, kwargs: Any, output: Any) -> None:
        kept = tree_map_only(torch.Tensor, torch.clone, (args, kwargs, first_of(output)))
        self.calls[-1].append(Call(part, *kept))

    def layers(self) -> Iterator[ComparedLayer]:
        for name, by_step in self.sums.items():
            kind = KINDS.get(type(self.native.get_submodule(name)), "fallback")
            found = tuple(sums.agreement(f"{name} in step {i + 1}") for i, sums in sorted(by_step.items()))
            yield ComparedLayer(name, kind, found)


@contextmanager
def watched(
    simulated: torch.nn.Module, native: torch.nn.Module, names: list[str], many: Callable[[], int]
) -> Iterator[Watched]:
    """Watch the layers `names` of a simulated backbone and its calls, while the block draws with it."""
    found = Watched(native, many)

    def of_layer(name: str) -> Callable[..., None]:
        return lambda _m, args, kwargs, output: found.layer(name, args[0] if args else kwargs["input"], output)

    def of_part(name: str) -> Callable[..., None]:
        return lambda _m, args, kwargs, output: found.call(name, args, kwargs, output)

    with ExitStack() as stack:
        hooks = {simulated.get_submodule(n): of_layer(n) for n in names}
        hooks |= {m: of_part(n) for n, m in called_modules(simulated).items()}
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield found
    found.calls = [calls for calls in found.calls if calls]


def replayed(calls: list[list[Call]], parts: Mapping[str, Any], tick: Callable[[], None]) -> list[Agreement]:
    """Call backbones, by their names, as the simulated ones were called: an agreement for every denoising step."""
    found = []
    for i, step in enumerate(calls):
        sums = Sums()
        for call in step:
            part = parts[call.part] if call.part else next(iter(parts.values()))
            sums.add(first_of(part(*call.args, **call.kwargs)), call.output)
        found.append(sums.agreement(f"the backbone in step {i + 1}"))
        tick()
    return found


@contextmanager
def noisy(backbone: torch.nn.Module, layers: Iterable[ComparedLayer]) -> Iterator[None]:
    """Within it, each layer's output has Gaussian noise of the layer's own relative error."""

    def of(error: float) -> Callable[..., torch.Tensor]:
        def hook(_layer: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(output.shape, generator=generator, device=output.device)
            plain = output.float()
            return (plain + drawn * (error * plain.square().mean().sqrt())).to(output.dtype)

        return hook

    generator = torch.Generator(next(backbone.parameters()).device).manual_seed(0)
    with ExitStack() as stack:
        for layer in layers:
            module = backbone.get_submodule(layer.name)
            stack.callback(module.register_forward_hook(of(layer.worst.relative_error)).remove)
        yield


def first_of(output: Any) -> torch.Tensor:
    """What a backbone predicts; diffusers has it in a tuple, or in what can be read like one."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


@contextmanager
def latents(scheduler: Any) -> Iterator[list[torch.Tensor]]:
    """Within it, what the scheduler makes of every step is added to the list."""
    found: list[torch.Tensor] = []
    step = scheduler.step

    def stepped(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        found.append(output[0].clone())
        return output

    scheduler.step = stepped
    try:
        yield found
    finally:
        del scheduler.step
