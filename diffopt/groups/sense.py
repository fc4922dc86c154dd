"""`sense=`: how much every layer is hurt by every format, measured in one pass of the full-precision model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from diffopt import formats
from diffopt.data.prompts import Prompts
from diffopt.errors import suggestion
from diffopt.formats.method import Inputs, Weights
from diffopt.groups.calib import Calib, Collect, reads_steps
from diffopt.groups.choices import Choices
from diffopt.groups.format import Name, check_measurable, measurable, weights
from diffopt.groups.view import View
from diffopt.schema import Group

Tried = Literal["weights", "inputs"]


def _option(text: str) -> str:
    field, given, value = text.partition("=")
    known: dict[str, tuple[str, ...]] = {"weights": get_args(Weights), "inputs": get_args(Inputs)}
    if field not in known:
        raise ValueError(f"is no field whose values can be tried; {suggestion(field, known)}")
    if given and value not in known[field]:
        raise ValueError(f"is no value of format.{field}; {suggestion(value, known[field])}")
    if value == "max":
        raise ValueError("is what every format is tried with; drop it")
    return text


Option = Annotated[str, AfterValidator(_option)]


@dataclass(frozen=True)
class Trial:
    """A format with one field otherwise than by maxima."""

    format: str
    field: Tried
    value: Any
    """`Weights` or `Inputs`."""

    @property
    def name(self) -> str:
        return f"{self.format} {self.field}={self.value}"


def trials(names: Sequence[str], options: Sequence[Option]) -> list[Trial]:
    """What of these formats is tried besides them: every other value of these fields, or this one, one at a time."""
    found = []
    for method in map(formats.method, names):
        values: dict[Tried, tuple[str, ...]] = {"weights": method.weights, "inputs": method.ranges}
        there = [Trial(method.name, field, value) for field in values for value in values[field] if value != "max"]
        found += [t for option in options for t in there if option in (t.field, f"{t.field}={t.value}")]
    return [*dict.fromkeys(found)]


class Sense(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"size"})  # how many prompts the calibration's view has

    formats: list[Name] = Field(min_length=1)
    """Formats in which every layer is tried; of those that need no search."""
    size: int = Field(ge=1)
    """Prompts to measure on: the first of `calib.prompts`, in its batches and denoising steps."""

    options: list[Option] = Field(default=[])
    """Fields of `format` of which every value is tried too, in each format that has them: `weights`, `inputs`; or one value, as
    `weights=local_hessian`."""

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


def tried(choices: Choices) -> list[Option]:
    """What is tried besides the formats: what was asked for, in whatever order, and the scales of weights that a mix of them
    will have."""
    assert choices.sense is not None
    asked, kind = {*choices.sense.options}, weights(choices.format) if choices.format else "max"
    if choices.format and choices.format.name == "auto" and kind != "max":
        asked.add(f"weights={kind}")
    of = {field: sorted(o for o in asked if o.partition("=")[0] == field) for field in get_args(Tried)}
    return [o for field, own in of.items() for o in ([field] if field in own else own)]


class SenseView(View, of=Sense):
    formats: list[Name]
    options: list[Option] = Field(default=[])

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Sense)
        return [cls(formats=group.formats, options=tried(choices))]

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
