"""Which pipeline a directory holds and which of its parts denoise, by its index alone. Imports neither torch nor diffusers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffopt.store.files import json_object

INDEX = "model_index.json"
DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"


@dataclass(frozen=True)
class Index:
    pipeline: str
    classes: dict[str, tuple[str, str]]
    """Library and class by part, without those that are null."""
    backbones: tuple[str, ...]
    """Parts that denoise, in its order."""


def index_of(directory: Path) -> Index:
    """Raises ValueError, as `WHAT; WHAT TO DO`, for a directory that holds no pipeline that diffopt can find its way in."""
    found = _json(directory / INDEX)
    if found is None:
        raise ValueError(
            f"holds no {INDEX} that can be read, so it is no diffusers pipeline; give the directory that save_pretrained wrote"
        )
    pipeline = found.get("_class_name")
    if not isinstance(pipeline, str):
        own = (
            f"its pipeline is code of its own, {pipeline[0]}.py"
            if isinstance(pipeline, list) and pipeline
            else "it names no class"
        )
        raise ValueError(f"{own}, which is not run; give a pipeline of diffusers' own classes")
    parts = {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 2 and v[0]}
    for name, (library, kind) in parts.items():
        config = _json(directory / name / "config.json") or {}
        if library.split(".")[0] not in (DIFFUSERS, TRANSFORMERS) and not (directory / name).is_dir():
            continue  # a part within the pipeline's own module, such as a safety checker that is left out
        if "auto_map" in config or (directory / name / f"{library}.py").is_file() or library == "transformers_modules":
            raise ValueError(
                f"its {name} is code of its own, {kind}, which is not run; give one of transformers' or diffusers'"
            )
    backbones = tuple(n for n, (library, kind) in parts.items() if library == DIFFUSERS and kind in denoisers())
    if not backbones:
        there = ", ".join(f"{n} {c}" for n, (_, c) in parts.items()) or "nothing"
        raise ValueError(f"is a {pipeline} without a denoising backbone (there is {there}); give a pipeline that denoises")
    return Index(pipeline, {n: (v[0], v[1]) for n, v in parts.items()}, backbones)


def misnamed(directory: Path, index: Mapping[str, Any]) -> str | None:
    """A part with a folder whose entry is a list, and neither a library and a class nor two nulls. Lists of other names are
    arguments of the pipeline."""
    parts = {k: v for k, v in index.items() if isinstance(v, list) and (directory / k).is_dir()}
    return next((k for k, v in parts.items() if v != [None, None] and [type(x) for x in v] != [str, str]), None)


@cache
def denoisers() -> frozenset[str]:
    """Classes of diffusers' transformers and unets, by what the packages' own lists say."""
    spec = find_spec(DIFFUSERS)
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "models" / "__init__.py").read_text()
    rows = re.findall(r'_import_structure\["(?:transformers|unets)\.\w+"\] = \[([^\]]*)\]', text)
    names = {w for row in rows for w in re.findall(r'"(\w+)"', row)}
    return frozenset(names - {"MotionAdapter"})  # it is fused into a UNet


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        return json_object(path)
    except (OSError, ValueError):
        return None
