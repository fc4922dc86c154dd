"""`model=`: which pipeline, at which size."""

import json
from typing import Literal, Self

from pydantic import Field, model_validator

from diffopt import models
from diffopt.source import ModelSource
from diffopt.view import Group, View

Dtype = Literal["float32", "bfloat16", "float16"]


class Model(Group):
    family: str
    """Name of a file in diffopt/models."""
    source: ModelSource
    """A diffusers pipeline: a directory, `asset:DIR`, or `ORG/NAME[@REVISION]` of the hub."""
    dtype: Dtype
    """What the weights are cast to when loaded."""
    height: int = Field(ge=8)
    """Pixels."""
    width: int = Field(ge=8)
    """Pixels."""
    guidance_scale: float = Field(ge=0)
    max_sequence_length: int = Field(ge=1)
    """Tokens that the long text encoder is padded to."""

    @model_validator(mode="after")
    def _holds_the_family(self) -> Self:
        if self.family not in models.names():
            raise ValueError(f"family: no such family (got {self.family!r}); there are {', '.join(models.names())}")
        if directory := self.source.directory:
            index = directory / "model_index.json"
            if not index.is_file():
                raise ValueError(
                    f"source: holds no model_index.json, so it is no diffusers pipeline (got {self.source.name!r}); "
                    "give the directory that save_pretrained wrote"
                )
            try:
                found = json.loads(index.read_text())["_class_name"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"source: model_index.json names no pipeline class (got {self.source.name!r}); download it again"
                ) from None
            wanted = models.family(self.family).pipeline
            if found != wanted:
                raise ValueError(
                    f"source: holds a {found}, but family {self.family} loads a {wanted} (got {self.source.name!r}); "
                    "choose another model= or model.family="
                )
        step = models.family(self.family).size_step
        for name, value in {"height": self.height, "width": self.width}.items():
            if value % step:
                raise ValueError(f"{name}: is not a multiple of {step} pixels (got {value}); round it")
        return self


class CallView(View, of=Model):
    """What a pipeline is called with."""

    height: int
    width: int
    guidance_scale: float
    max_sequence_length: int
