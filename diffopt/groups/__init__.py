"""The config groups: one file and one schema each. The field names are the YAML's keys."""

from diffopt.groups.cache import Cache
from diffopt.groups.calib import Calib
from diffopt.groups.eval import DrawView, Eval
from diffopt.groups.export import Export
from diffopt.groups.format import Format
from diffopt.groups.model import CallView, Model
from diffopt.view import Group

GROUPS: dict[str, type[Group]] = {
    "model": Model,
    "format": Format,
    "calib": Calib,
    "cache": Cache,
    "export": Export,
    "eval": Eval,
}

__all__ = ["GROUPS", "Cache", "Calib", "CallView", "DrawView", "Eval", "Export", "Format", "Model"]
