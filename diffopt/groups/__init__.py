"""The config groups: one file and one schema each, and those of other packages. The field names are the YAML's keys."""

from importlib.metadata import EntryPoint

from diffopt.errors import ConfigError
from diffopt.groups.cache import Cache
from diffopt.groups.calib import Calib, ChunkView, ScaleView
from diffopt.groups.eval import DrawView, Eval
from diffopt.groups.export import Export
from diffopt.groups.format import Format, FormatView
from diffopt.groups.model import CallView, Model
from diffopt.groups.sense import Sense
from diffopt.groups.train import Train, TrainView
from diffopt.registry import Registry, described, named, opened
from diffopt.schema import Group

OURS: dict[str, type[Group]] = {
    "model": Model,
    "format": Format,
    "calib": Calib,
    "sense": Sense,
    "cache": Cache,
    "train": Train,
    "export": Export,
    "eval": Eval,
}


RESERVED = frozenset({"seed", "store", "objective", "recipe", "hydra", "others", "compared", "main"})


class _Groups(Registry[type[Group]]):
    """Of another package an entry point of `diffopt.groups` names the schema, and is called as the group is."""

    def _own(self, name: str) -> type[Group]:
        return OURS[name]

    def _theirs(self, point: EntryPoint, where: str) -> type[Group]:
        if point.name in RESERVED:
            raise ConfigError(f"{where}: {described(point)} takes a name that a recipe has for itself; rename that group")
        found = opened(point, ConfigError, where)
        if not (isinstance(found, type) and issubclass(found, Group)):
            raise ConfigError(
                f"{where}: {described(point)} is no subclass of Group (got a {type(found).__name__}); "
                "mend or uninstall that package"
            )
        return found


GROUPS = _Groups("diffopt.groups", "", type, tuple(OURS), ConfigError, "{}")

PICKS = named("diffopt.groups", tuple(OURS))
"""Every config group of a recipe."""

__all__ = [
    "GROUPS",
    "PICKS",
    "Cache",
    "Calib",
    "CallView",
    "ChunkView",
    "DrawView",
    "Eval",
    "Export",
    "Format",
    "FormatView",
    "Model",
    "ScaleView",
    "Sense",
    "Train",
    "TrainView",
]
