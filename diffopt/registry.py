"""What goes by a name and can be added to by another package: formats, metrics, cache methods and so on. Imports nothing that
it lists."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from diffopt.errors import DiffoptError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Every installed one by name: ours, then those of other packages, which cannot take a name of ours."""

    def __init__(
        self, package: str, constant: str, kind: type[T], ours: tuple[str, ...], error: type[DiffoptError], where: str
    ):
        """Ours are `constant` of the modules of `package`, which is the entry points' group too.

        `error` is raised for another package's that cannot be used; `where` begins its text, its `{}` being the name.
        """
        self._package, self._constant, self._kind, self._ours = package, constant, kind, ours
        self._error, self._where = error, where

    def __getitem__(self, name: str) -> T:
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(named(self._package, self._ours))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    __hash__ = object.__hash__  # one of a kind, so that `cache` can tell them apart

    @cache  # noqa: B019  registries live as long as the process
    def _load(self, name: str) -> T:
        if name in self._ours:
            return self._own(name)
        for point in entry_points(group=self._package, name=name):
            return self._theirs(point, self._where.format(name))
        raise KeyError(name)

    def _own(self, name: str) -> T:
        found: T = getattr(import_module(f"{self._package}.{name.replace('-', '_')}"), self._constant)
        return found

    def _theirs(self, point: EntryPoint, where: str) -> T:
        found = loaded(point, self._kind, self._error, where)
        if (own := getattr(found, "name", None)) != point.name:
            raise self._error(f"{where}: {described(point)} has another name than its entry point (got {own!r}); rename one")
        return found


def named(package: str, ours: tuple[str, ...]) -> tuple[str, ...]:
    """Names of ours and of what other packages add, which is not loaded for that."""
    return tuple(dict.fromkeys([*ours, *sorted(p.name for p in entry_points(group=package))]))


def loaded(point: EntryPoint, kind: type[T], error: type[DiffoptError], where: str) -> T:
    """What an entry point names. Raises `error`, whose text names the package at fault, for whatever goes wrong in it."""
    found = opened(point, error, where)
    if not isinstance(found, kind):
        raise error(
            f"{where}: {described(point)} is not a {kind.__name__} (got a {type(found).__name__}); "
            "mend or uninstall that package"
        )
    return found


def opened(point: EntryPoint, error: type[DiffoptError], where: str) -> Any:
    """The same whatever it is."""
    try:
        return point.load()
    except Exception as e:  # another package's code, which may raise anything
        got = f"{type(e).__name__}: {e}"
        raise error(f"{where}: {described(point)} cannot be loaded (got {got}); mend or uninstall that package") from e


def described(point: EntryPoint) -> str:
    """`module:NAME of PACKAGE VERSION`."""
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value
