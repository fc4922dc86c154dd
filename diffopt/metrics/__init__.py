"""Metrics: one small file each, with what it measures, range, better direction, source and the weights it needs."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from diffopt.errors import MetricError
from diffopt.metrics.metric import SOURCES, Metric, Scorer, Weights

OURS = ("psnr", "ssim", "ms-ssim", "lpips", "clip", "clip-iqa", "imagereward", "fid", "cmmd", "dtssd", "clip-temporal")
GROUP = "diffopt.metrics"


class _Installed(Mapping[str, Metric]):
    """Every installed metric by name: ours, then those of other packages, which cannot take a name of ours."""

    def __getitem__(self, name: str) -> Metric:
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*OURS, *sorted(p.name for p in entry_points(group=GROUP))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _load(name: str) -> Metric:
    if name in OURS:
        ours: Metric = import_module(f"diffopt.metrics.{name.replace('-', '_')}").METRIC
        return ours
    for point in entry_points(group=GROUP, name=name):
        try:
            theirs = point.load()
        except ImportError as e:
            raise MetricError(f"{name}: {point.value} cannot be imported ({e}); mend or uninstall its package") from None
        if not isinstance(theirs, Metric) or theirs.name != name:
            raise MetricError(f"{name}: {point.value} is not a Metric of that name (got {theirs!r}); mend its package")
        return theirs
    raise KeyError(name)


METRICS: Mapping[str, Metric] = _Installed()

__all__ = ["METRICS", "SOURCES", "Metric", "Scorer", "Weights"]
