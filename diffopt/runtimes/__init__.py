"""Ways to run a backbone: one small file each, and other packages'. Importing them imports neither torch nor a runtime."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from diffopt.artifact import Artifact, Checkpoint, EnginePlan, OnnxGraph
from diffopt.caches.statistics import Statistics
from diffopt.errors import ConfigError
from diffopt.files.ranges import InputRange
from diffopt.kernels.capability import KIND
from diffopt.registry import Registry

Counting = Callable[[], AbstractContextManager[Callable[[], list[InputRange]]]]
"""Within it, inputs that leave their calibrated range are counted; yields what gives the counts so far."""


@dataclass(frozen=True)
class Running:
    """A pipeline ready to draw."""

    pipe: Any
    batch: int | None
    """The only batch size that it can run, or None for any."""
    saved: Callable[[], Statistics | None] = lambda: None
    """What its cache saved so far; None without a cache."""
    counted: Counting | None = None
    """To be entered before anything is drawn. None of what has no quantizers, or has them out of reach in a graph or kernel."""


Under = Callable[[Any], AbstractContextManager[Running]]
"""From a CacheView, or None, to what runs with that cache. One at a time; raises PlanError for a cache that does not fit."""


@dataclass(frozen=True)
class Runtime:
    name: str
    runs: type[Artifact]
    """The kind of artifact that it runs."""
    kernels: frozenset[str | None]
    """Formats for which it has real kernels; None is full precision. Any other it only simulates, or refuses."""
    simulates: bool
    """Whether it can run a format that it has no kernels for, by fake quantization."""
    probes: tuple[str, ...]
    """What of the environment decides its results, besides the numerics of torch."""
    simulating: tuple[str, ...] = ()
    """And what decides those of a format that it simulates."""

    module: str | None = None
    """Of another package's, the dotted name of its module with `opened`, which is imported when it runs."""
    unfit: Callable[[], str | None] = lambda: None
    """Why it cannot run on this machine, for the plan; None where it can."""

    @property
    def of_graph(self) -> bool:
        """Whether it runs a graph or its plan, which `export` makes."""
        return issubclass(self.runs, (OnnxGraph, EnginePlan))

    def running(self, *arguments: Any, texts: bool, **options: Any) -> AbstractContextManager[Running]:
        """`running(ctx, pipeline, subject, cache, texts=, ...)` of its module, diffopt.runtimes.NAME for ours, or what
        `opened` gives, once.

        Without `texts` the pipeline has no text encoders, and takes embeddings alone. `options` are those of this runtime.
        """
        run = getattr(self._module, "running", None)
        if run is None:
            return self._once(*arguments, texts=texts, **options)
        found: AbstractContextManager[Running] = run(*arguments, texts=texts, **options)
        return found

    def opened(self, *arguments: Any, texts: bool, **options: Any) -> "Under":
        """`opened(ctx, pipeline, subject, texts=, ...)` of the same module: opened once, for several caches in turn."""
        found: Under = self._module.opened(*arguments, texts=texts, **options)
        return found

    @contextmanager
    def _once(self, ctx: Any, pipeline: Any, subject: Any, cache: Any, **how: Any) -> Iterator[Running]:
        from diffopt.runtimes.hits import check_hits

        with self.opened(ctx, pipeline, subject, **how)(cache) as run:
            yield run
        if cache and (saved := run.saved()):
            check_hits(cache, saved)

    @property
    def _module(self) -> Any:
        return import_module(self.module or f"diffopt.runtimes.{self.name}")


OURS = {
    r.name: r
    for r in (
        Runtime("torch", Checkpoint, frozenset({None}), simulates=True, probes=("modelopt",), simulating=("simulation",)),
        Runtime("native", Checkpoint, frozenset({None, *KIND}), simulates=False, probes=("modelopt",)),
        # FP8 is computed wrongly by onnxruntime's default optimisations or refused, so it is not in the list.
        Runtime("onnxruntime", OnnxGraph, frozenset({None, "int8", "int8_sq"}), simulates=False, probes=("onnxruntime",)),
        Runtime("tensorrt", EnginePlan, frozenset({None, "w4a8_awq", "auto", *KIND}), simulates=False, probes=("tensorrt",)),
    )
}


class _Runtimes(Registry[Runtime]):
    def _own(self, name: str) -> Runtime:
        return OURS[name]


RUNTIMES = _Runtimes("diffopt.runtimes", "RUNTIME", Runtime, tuple(OURS), ConfigError, "eval.runtime={}")
