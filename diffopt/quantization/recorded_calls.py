"""What a backbone was called with, kept compactly and called again: for searches that need more than extremes.

AWQ and SVDQuant run a model over the same data two or three times while they change it, GPTQ once they have. The pipeline
around it would only compute the same inputs again; where the search changes the outputs in their last bits, it would not
even be the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffopt.errors import GateError
from diffopt.quantization.extremes import called_modules

CALLS, TENSORS = "calls.json", "tensors.safetensors"


@dataclass
class Calls:
    """Backbone calls in order: which part of it, and its arguments, with equal tensors stored once."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _known: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises GateError for an argument that cannot be kept."""
        found = {name: self._kept(x, name) for name, x in kwargs.items()}
        self.calls.append({"part": part, "args": [self._kept(x, str(i)) for i, x in enumerate(args)], "kwargs": found})

    def save(self, out: Path) -> None:
        (out / CALLS).write_text(json.dumps(self.calls))
        save_file(self.tensors, out / TENSORS)

    def _kept(self, value: Any, where: str) -> Any:
        """As JSON: a tensor by its number, and what JSON would make a list of by its type."""
        if isinstance(value, torch.Tensor):
            return {"tensor": self._number(value.detach().cpu().clone(memory_format=torch.contiguous_format))}
        if isinstance(value, list | tuple):
            items = [self._kept(x, where) for x in value]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, dict):
            return {"dict": {key: self._kept(x, f"{where}.{key}") for key, x in value.items()}}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise GateError(f"record: the backbone's argument {where} cannot be kept (got a {type(value).__name__}); report it")

    def _number(self, x: torch.Tensor) -> str:
        content = hashlib.sha256(f"{x.dtype} {list(x.shape)}".encode())
        content.update(x.reshape(-1).view(torch.uint8).numpy().data)
        number = self._known.setdefault(content.hexdigest(), str(len(self.tensors)))
        self.tensors.setdefault(number, x)
        return number


@contextmanager
def recorded(backbone: torch.nn.Module) -> Iterator[Calls]:
    """Record every call of the backbone, or of each of several, while the block runs, into what is yielded."""
    found = Calls()

    def record(part: str) -> Callable[..., None]:
        return lambda _module, args, kwargs: found.add(part, args, kwargs)

    handles = [m.register_forward_pre_hook(record(name), with_kwargs=True) for name, m in called_modules(backbone).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def replay(recordings: Sequence[Path], on_call: Callable[[], None] | None = None) -> Callable[[torch.nn.Module], None]:
    """A forward loop for `mtq.quantize`: every recorded call of every directory, in order, on the model's own device."""

    def loop(model: torch.nn.Module) -> None:
        called = called_modules(model)
        device = next(model.parameters()).device
        for path in recordings:
            with safe_open(path / TENSORS, "pt") as stored:
                for call in json.loads((path / CALLS).read_text()):

                    def given(value: Any, stored: Any = stored) -> Any:
                        # A copy, because a CPU's matrix product has other last bits where its input is not aligned.
                        return _given(value, lambda number: stored.get_tensor(number).to(device, copy=True))

                    kwargs = {name: given(x) for name, x in call["kwargs"].items()}
                    called[call["part"]](*map(given, call["args"]), **kwargs)
                    if on_call:
                        on_call()

    return loop


def count(recordings: Sequence[Path]) -> int:
    """How many calls they hold."""
    return sum(len(json.loads((path / CALLS).read_text())) for path in recordings)


def _given(value: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_given(x, tensor) for x in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "tuple":
        return tuple(_given(x, tensor) for x in content)
    return {key: _given(x, tensor) for key, x in content.items()}
