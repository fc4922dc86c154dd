"""Which ways to run a model a bench has, in which order, and what their weights take. Imports neither torch nor a runtime."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffopt.groups.eval import OF_GRAPHS

TITLES = {
    "bfloat16": "BF16", "float16": "FP16", "float32": "FP32", "fp8": "FP8", "int8": "INT8", "int8_sq": "INT8 SmoothQuant",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One contender."""

    way: str
    """As `eval.bench` names it."""
    method: str | None = None
    """Of the cache on top of it."""

    @property
    def name(self) -> str:
        return f"{self.way}+{self.method}" if self.method else self.way

    def title(self, format: str | None, dtype: str) -> str:
        """For people: way, precision and cache."""
        kept = format if self.way in ("native", *OF_GRAPHS) and format else dtype
        return f"{self.way} {TITLES.get(kept, kept)}" + (f" + {self.method}" if self.method else "")


def entries(bench: Sequence[str], method: str | None) -> list[Entry]:
    """Those without a cache, then those with one: on `compiled` and `native`, and on `eager` where that is not compiled.

    A graph that is cut for the cache runs with it alone.
    """
    plain = [Entry(way) for way in bench]
    if method is None:
        return plain
    under = [way for way in bench if way != "eager" or "compiled" not in bench]
    return [e for e in plain if e.way not in OF_GRAPHS] + [Entry(way, method) for way in under]


def base(bench: Iterable[str]) -> str:
    """What the others are compared with."""
    return "compiled" if "compiled" in bench else "eager"


def headline(bench: Sequence[str], method: str | None) -> str | None:
    """Name of the one that the bench is about; None where there is only the base, beside `eager` perhaps."""
    there = entries(bench, method)
    others = [e for way in ("native", "tensorrt", "onnxruntime") for e in there if e.way == way]
    return next((e.name for e in [*others, *there] if e in others or e.method), None)


def weight_bytes(bench: Iterable[str], parameters: int, plain: float, packed: float) -> int:
    """The most that the backbones' weights take at once. `plain` and `packed` are bytes of a parameter.

    The native one is opened first: it is quantized from a copy in the model's precision. `eager` and `compiled` share theirs,
    and an engine plan has its own.
    """
    bench = {*bench}
    native, others = "native" in bench, {"eager", "compiled"} & bench
    after = packed * len({"native", "tensorrt"} & bench) + (plain if others else 0)
    return int(parameters * max(plain if native else 0, after))
