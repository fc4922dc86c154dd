"""Cache methods: one small file each, named as in conf/cache. Importing them does not import torch."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from diffopt.caches.method import Method, Settings
from diffopt.errors import ConfigError

OURS = ("cachify", "first_block", "pyramid_attention", "faster_cache", "taylor_seer", "mag_cache", "cache_dit")
GROUP = "diffopt.caches"


class _Installed(Mapping[str, Method]):
    """Every installed method by name: ours, then those of other packages, which cannot take a name of ours."""

    def __getitem__(self, name: str) -> Method:
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*OURS, *sorted(p.name for p in entry_points(group=GROUP))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _load(name: str) -> Method:
    if name in OURS:
        ours: Method = import_module(f"diffopt.caches.{name}").METHOD
        return ours
    for point in entry_points(group=GROUP, name=name):
        try:
            theirs = point.load()
        except ImportError as e:
            raise ConfigError(f"cache.method: {point.value} cannot be imported ({e}); mend or uninstall its package") from None
        if not isinstance(theirs, Method) or theirs.name != name:
            raise ConfigError(f"cache.method: {point.value} is not a Method of that name (got {theirs!r}); mend its package")
        return theirs
    raise KeyError(name)


METHODS: Mapping[str, Method] = _Installed()

__all__ = ["METHODS", "Method", "Settings"]
