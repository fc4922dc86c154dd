"""The config groups: one file and one schema each. The field names are the YAML's keys."""

from diffopt.groups.cache import Cache
from diffopt.groups.calib import Calib, ChunkView, ScaleView
from diffopt.groups.eval import DrawView, Eval
from diffopt.groups.export import Export
from diffopt.groups.format import Format, FormatView
from diffopt.groups.model import CallView, Model
from diffopt.groups.sense import Sense
from diffopt.groups.train import Train, TrainView
from diffopt.schema import Group

GROUPS: dict[str, type[Group]] = {
    "model": Model,
    "format": Format,
    "calib": Calib,
    "sense": Sense,
    "cache": Cache,
    "train": Train,
    "export": Export,
    "eval": Eval,
}

PICKS = tuple(GROUPS)
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
