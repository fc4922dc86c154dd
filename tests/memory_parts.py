"""What a run's steps take of memory in parts, beside what was foreseen of each: for tests/bench_preflight.py.

    python tests/memory_parts.py FILE OVERRIDE ...

runs `diffopt OVERRIDE ...`, and writes a JSON list of the steps that it made to FILE. Bytes throughout.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

CALLS = ("transformers.PreTrainedModel.__call__", "diffusers.ModelMixin.__call__", "diffusers.AutoencoderKL.decode")
"""Outermost calls of a pipeline's parts. Hooks of modules would be traced where blocks are compiled."""


@dataclass
class Parts:
    """Of one step; None where nothing tells."""

    step: str
    weights: int | None = None
    """Foreseen on the device."""
    call: int | None = None
    """Foreseen of the neediest call beside them."""
    gpu: int | None = None
    """Foreseen on the GPU at most."""
    plain_ram: int | None = None
    """Foreseen in RAM without what computing on a GPU adds."""
    weights_were: int | None = None
    """On the GPU when the neediest call began."""
    call_was: int | None = None
    gpu_was: int | None = None
    outside: bool = False
    """The peak was in no call: a model was opened or packed, or scores were taken."""
    ram_was: int | None = None
    context: int | None = None
    """Of the GPU's memory, what is not torch's allocator's at the end of the step, of this and of any other process."""


FOUND: dict[str, Parts] = {}
_depth = 0
_neediest: tuple[int, int] | None = None
"""Of the call that took the most so far what lay on the GPU before it, and its peak."""


def foresee() -> None:
    """Keep what the rule tells of each step, in parts."""
    from diffopt.jobs.memory import Rules

    need = Rules.need

    @wraps(need)
    def kept(self: Any, step: Any) -> Any:
        found, held = need(self, step), self._held(step)
        about = FOUND[step.name] = Parts(step.name, gpu=found.gpu)
        if held is not None:
            about.weights, about.call = sum(held.weights.values()), held.call
            about.plain_ram = found.ram if found.gpu is None else found.ram - self.of_gpu
        return found

    Rules.need = kept  # type: ignore[method-assign]


def measure() -> None:
    """Keep what each step takes, as records have it, and of the neediest call what was there before."""
    from diffopt.jobs import runner
    from diffopt.machine import progress

    peaks, step = runner.peaks, progress.step
    current: list[str] = []

    @contextmanager
    def named(name: str) -> Iterator[Any]:
        current.append(name)
        with step(name) as inside:
            yield inside

    @contextmanager
    def kept() -> Iterator[dict[str, int]]:
        global _neediest
        _neediest = None
        with peaks() as found:
            yield found
        about = FOUND.setdefault(current[-1], Parts(current[-1]))
        about.ram_was, about.gpu_was = found.get("ram"), found.get("gpu")
        if _neediest:
            about.weights_were, about.call_was = _neediest[0], _neediest[1] - _neediest[0]
        about.outside = about.gpu_was is not None and (_neediest is None or about.gpu_was > _neediest[1])
        if about.gpu_was is not None:
            import torch

            free, total = torch.cuda.mem_get_info()
            about.context = total - free - torch.cuda.memory_reserved()

    runner.peaks, runner.progress.step = kept, named  # type: ignore[attr-defined, assignment]


def watch() -> None:
    for name in CALLS:
        module, kind, method = name.split(".")
        with suppress(ImportError):
            cls = getattr(__import__(module), kind)
            setattr(cls, method, _watched(getattr(cls, method)))


def _watched(call: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @wraps(call)
    def watched(*given: Any, **named: Any) -> Any:
        global _depth, _neediest
        if _depth or not torch.cuda.is_initialized():
            return call(*given, **named)
        _depth += 1
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        try:
            return call(*given, **named)
        finally:
            _depth -= 1
            after = torch.cuda.max_memory_allocated()
            if after > peak or _neediest is None:
                _neediest = before, after

    return watched


def main() -> None:
    from diffopt.cli.main import main

    file, *picks = sys.argv[1:]
    foresee()
    measure()
    watch()
    try:
        main(picks)
    finally:
        made = [asdict(p) for p in FOUND.values() if p.ram_was is not None]
        Path(file).write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
