"""Every family and format in the layout of every program that takes it, written and read back; the plan refuses the others.

`make matrix` writes what passed into the support table. `make test` has a few of them here, and more in the layouts' own tests.
"""

from typing import Any

import pytest
from conftest import some
from matrix_table import FORMATS, TARGETS
from targets import TARGETS as WRITTEN
from targets import made, settings
from test_matrix import MODELS, UNCALIBRATED
from tiny_pipelines import TINY

from diffopt.errors import PlanError
from diffopt.layouts import COMFYUI, SVDQUANT
from diffopt.layouts.families import NAMES

CELLS = [(tiny, name) for tiny in TINY for name in FORMATS]
QUICK = [("chroma", "int8")]


def taken(kind: str, family: str, name: str) -> bool:
    if kind == "comfyui":
        return name in COMFYUI and TINY[family].family in NAMES
    return kind == "huggingface" or name == "nvfp4_svdquant"


@pytest.mark.parametrize(("family", "name"), some(CELLS, QUICK))
def test_a_format_of_a_family_is_read_as_it_was_scored_or_refused_by_the_plan(family: str, name: str, plan: Any) -> None:
    b = made(family, wide=name == "nvfp4_svdquant")
    read = []
    for kind, through in WRITTEN.items():
        if taken(kind, family, name):
            through(b, name, settings(b, name))
            read.append(kind)
            continue
        calib = [] if name in UNCALIBRATED else ["calib=images"]
        line = f"{SVDQUANT[kind]}'s layout has SVDQuant alone" if kind in SVDQUANT else f"ComfyUI does not read {name}"
        if kind == "comfyui" and TINY[family].family not in NAMES:
            line = f"of {TINY[family].family}'s layers the names in ComfyUI are not known here"
        own = ["model.source=someone/sdxl-with-a-controlnet"] if family == "sdxl_controlnet" else []  # it names none itself
        with pytest.raises(PlanError, match=f"export: {line}"):
            plan(f"model={MODELS[family]}", *own, f"format={name}", *calib, f"export={kind}")
    TARGETS.setdefault(family, {})[name] = " ".join(read)
