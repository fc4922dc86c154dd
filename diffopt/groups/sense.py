"""`sense=`: how much every layer is hurt by every format, measured in one pass of the full-precision model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from diffopt import formats
from diffopt.data.prompts import Prompts
from diffopt.groups.calib import Calib, Collect, reads_steps
from diffopt.groups.choices import Choices
from diffopt.groups.format import Name, check_measurable, measurable
from diffopt.groups.view import View
from diffopt.schema import Group

Option = Literal["weights", "inputs"]


@dataclass(frozen=True)
class Trial:
    """A format with one field otherwise than by maxima."""

    format: str
    field: Option
    value: Any
    """`Weights` or `Inputs`."""

    @property
    def name(self) -> str:
        return f"{self.format} {self.field}={self.value}"


def trials(names: Sequence[str], options: Sequence[Option]) -> list[Trial]:
    """What of these formats is tried besides them: every other value of these fields, one at a time."""
    found = []
    for method in map(formats.method, names):
        values = {"weights": method.weights, "inputs": method.ranges}
        found += [Trial(method.name, field, value) for field in options for value in values[field] if value != "max"]
    return found


class Sense(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"size"})  # how many prompts the calibration's view has

    formats: list[Name] = Field(min_length=1)
    """Formats in which every layer is tried; of those that need no search."""
    size: int = Field(ge=1)
    """Prompts to measure on: the first of `calib.prompts`, in its batches and denoising steps."""

    options: list[Option] = Field(default=[])
    """Fields of `format` of which every value is tried too, in each format that has them: `weights`, `inputs`."""

    @model_validator(mode="after")
    def _has_options(self) -> Self:
        for option in self.options:
            if not trials(self.formats, [option]):
                there = [n for n in measurable() if trials([n], [option])]
                raise ValueError(
                    f"options: none of {', '.join(self.formats)} has a choice of {option} (got {option}); drop it, or add "
                    f"{' or '.join(there)} to sense.formats"
                )
        return self

    @field_validator("formats")
    @classmethod
    def _measurable(cls, names: list[str]) -> list[str]:
        if "auto" in names:
            raise ValueError(f"auto is a choice among formats, not one; choose of {', '.join(measurable())}")
        check_measurable(names)
        return names


class SenseView(View, of=Sense):
    formats: list[Name]
    options: list[Option] = Field(default=[])

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """Without options as it was before there were any: what was measured then stays known."""
        found = super().identity(used)
        return {n: x for n, x in found.items() if n != "options" or x}


class SensedPromptsView(View, of=Calib):
    """The prompts that are measured on, and how the formats draw their scales from the statistics."""

    prompts: Prompts
    batch_size: int
    chunk: int
    n_steps: int
    alpha: float
    percentile: float = 1.0
    collect_method: Collect = "default"

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        idle = set() if reads_steps(choices) else {"percentile", "collect_method"}
        smoothed = choices.sense and any(formats.method(n).algorithm == "smoothquant" for n in choices.sense.formats)
        return cls.fields_read() - idle - (set() if smoothed else {"alpha"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        size = min(choices.sense.size if choices.sense else group.size, group.size)
        others = {name: getattr(group, name) for name in cls.model_fields if name != "prompts"}
        return [cls(prompts=group.prompts.part(0, size), **others)]
