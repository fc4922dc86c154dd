"""A model as memory has it: the bytes of its parts, and what its calls take beside them. Imports no torch unless it must."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from diffopt import models
from diffopt.errors import pass_on
from diffopt.groups.model import BYTES, Model
from diffopt.machine.output import to_log
from diffopt.models import activations
from diffopt.models.activations import Anatomy
from diffopt.models.family import Family, Json, Size
from diffopt.models.parts import INDEX, Parts
from diffopt.pipeline.outline import parameters
from diffopt.store.files import json_object
from diffopt.store.source import Source

log = logging.getLogger("diffopt")

LARGE = 1 << 30
"""Bytes of weights from which on a plan takes the seconds to measure a model whose calls are not known: beside smaller ones the
libraries weigh most."""
TEXT = 77
"""Tokens of a text where the model's config says nothing: CLIP's."""


@dataclass(frozen=True)
class Body:
    """Of the pipeline of a job."""

    family: Family
    model: Model
    backbone: int
    """Bytes of all backbones in the model's precision, as are the others."""
    vae: int
    texts: int | None
    """Of all text encoders; None where only the hub knows them, 0 where random weights have none."""
    anatomy: Anatomy | None
    """None where no call was measured."""
    config: Json
    """Of the first backbone."""
    upcast: bool
    """The pipeline decodes in FP32, whatever its precision."""

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return BYTES[self.model.dtype]

    @property
    def read(self) -> bool:
        """Whether weights are read from files, which goes through RAM."""
        return self.model.weights == "pretrained"

    def size(self, pictures: int) -> Size:
        """Of a backbone call that draws so many pictures."""
        m = self.model
        text = m.max_sequence_length or TEXT
        return Size(pictures * self.family.rows(m), m.height, m.width, text, m.frames or 1)

    def call(self, pictures: int) -> int:
        """Bytes that the backbone's call takes."""
        return self.anatomy.call[self.width].at(self.size(pictures)) if self.anatomy else 0

    def kept(self, items: int, width: int) -> int:
        """Bytes that the gradient needs of a call on so many items, in numbers of `width` bytes; no block is made once more."""
        if self.anatomy is None:
            return 0
        measured = width if width in self.anatomy.kept else self.width
        return self.anatomy.kept[measured].at(replace(self.size(1), batch=items)) * width // measured

    def decode(self, pictures: int) -> int:
        """Bytes that the VAE takes to decode so many pictures at once."""
        if self.anatomy is None:
            return 0
        size = self.size(pictures)
        decoded = Size(pictures, size.height, size.width, 0, size.frames)
        wide = 4 if self.upcast and 4 in self.anatomy.decode else self.width
        return self.anatomy.decode[wide].at(decoded)


def body(model: Model, local: Callable[[Source], Path | None], *, starts: bool) -> Body | None:
    """Of a model whose configs are here, its own or its architecture's; None where they are not.

    `starts` is whether a run does, which loads torch anyway: then calls that are not known are measured. A plan does that for
    large models alone.
    """
    family = models.of(model)
    if family.name == models.AUTO.name:
        return None
    own = local(model.origin)
    directory = own or (local(model.architecture) if model.architecture else None)
    if directory is None or not (directory / INDEX).is_file():
        return None
    index = _json(directory / INDEX)
    names = [n for n in family.backbones if isinstance(index.get(n), list) and index[n][0]]
    configs, vae = [_json(directory / n / "config.json") for n in names], _json(directory / "vae" / "config.json")
    if not vae or not configs or not all(configs):
        return None
    width = BYTES[model.dtype]
    parts = Parts(directory, family, model.variant) if own else None
    read = {n: parameters(parts.weights(n)) if parts else 0 for n in [*names, "vae"]}
    anatomy = activations.known(family.name, configs[0], vae)
    if anatomy is None and (starts or width * sum(read.values()) >= LARGE):
        text, frames = model.max_sequence_length or TEXT, model.frames or 1
        anatomy = _measured(family, configs[0], vae, Size(1, model.height, model.width, text, frames), width)
    of_backbones = sum(read[n] for n in names) or (anatomy.parameters * len(names) if anatomy else 0)
    of_vae = read["vae"] or (anatomy.vae if anatomy else 0)
    if not of_backbones:
        return None
    upcast = bool(vae.get("force_upcast")) and model.dtype == "float16" and family.name == "sdxl"
    texts = _texts(parts, names, width) if model.weights == "pretrained" else 0
    return Body(family, model, of_backbones * width, of_vae * (4 if upcast else width), texts, anatomy, configs[0], upcast)


def _texts(parts: Parts | None, backbones: list[str], width: int) -> int | None:
    """Bytes of what encodes prompts; None where its files are not here."""
    if parts is None:
        return None
    others = [n for n in parts.named if n not in (*backbones, "vae", "scheduler")]
    return width * sum(parameters(parts.weights(n)) for n in others)


_found: dict[tuple[str, Size, int], Anatomy | None] = {}
"""What was measured in this process, by the model's configs: the jobs of a sweep share it."""


def _measured(family: Family, backbone: Json, vae: Json, size: Size, width: int) -> Anatomy | None:
    known = activations.key(family.name, backbone, vae), size, width
    if known not in _found:
        try:
            with to_log():  # what libraries say as they are imported
                from diffopt.pipeline.activations import measured_at

                _found[known] = measured_at(family, backbone, vae, size, width)
        except Exception as e:  # another's code, which asks tensors without numbers for some, or has no such class
            pass_on(e)
            log.debug("the calls of %s are not measured: %s", backbone.get("_class_name"), e)
            _found[known] = None
    return _found[known]


def _json(path: Path) -> Json:
    """Empty for what is not there, or no object."""
    try:
        return json_object(path)
    except (OSError, ValueError):
        return {}
