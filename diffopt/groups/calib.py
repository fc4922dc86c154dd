"""`calib=`: what the quantizers are calibrated on."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffopt import formats, models
from diffopt.data.prompts import Prompts, PromptSet
from diffopt.formats.method import COUNTED
from diffopt.groups.choices import Choices
from diffopt.groups.format import inputs
from diffopt.groups.view import View
from diffopt.schema import Group

Collect = Literal["default", "global_min", "min-max", "min-mean", "mean-max"]


class Calib(Group):
    readers: ClassVar[dict[str, str]] = {
        "alpha": "SmoothQuant",
        "percentile": "the INT8 convolution of a UNet",
        "collect_method": "the INT8 convolution of a UNet",
    }

    prompts: Prompts
    """File of prompts; `asset:FILE` for one in the package, `hub:ORG/NAME:COLUMN` for a data set on the hub."""
    size: int = Field(ge=1)
    """Prompts to use, from the first."""
    batch_size: int = Field(ge=1)
    """Prompts per pipeline call."""
    chunk: int = Field(ge=1)
    """Prompts per stored chunk of statistics; a larger `size` reuses the whole chunks of a smaller one."""
    n_steps: int = Field(ge=1)
    """Denoising steps per prompt."""
    alpha: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength: at 1 all of the inputs' unevenness between channels moves into the weights, at 0
    all of the weights' into the inputs."""
    percentile: float = Field(default=1.0, gt=0, le=1)
    """Share of the denoising steps, from the first, that count for the scale of an INT8 convolution's input."""
    collect_method: Collect = "default"
    """How that scale is drawn from the batches and steps: X-Y is X over steps of Y over batches of the batch's maximum;
    `global_min` is the minimum over both, `default` the maximum over both."""

    def chunks(self) -> list[tuple[int, PromptSet]]:
        """Index of the first prompt, and the prompts, of each chunk."""
        return [
            (start, self.prompts.part(start, min(start + self.chunk, self.size))) for start in range(0, self.size, self.chunk)
        ]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size > len(self.prompts):
            raise ValueError(
                f"size: is more than the {len(self.prompts)} prompts of {self.prompts.where} (got {self.size}); "
                "lower it, or give a longer file"
            )
        if self.chunk % self.batch_size:
            raise ValueError(
                f"chunk: is not a multiple of calib.batch_size={self.batch_size} (got {self.chunk}); "
                "batches must not cross chunks"
            )
        if counted(self.n_steps, self.percentile) < 1:
            raise ValueError(
                f"percentile: leaves none of the calib.n_steps={self.n_steps} denoising steps (got {self.percentile}); "
                f"give at least {1 / self.n_steps:.3g}"
            )
        return self


def counted(steps: int, percentile: float) -> int:
    """How many of the denoising steps, from the first, a share of them is: rounded down."""
    return int(round(steps * percentile, 9))  # 0.29 * 100 is 28.999999999999996


def reads_steps(choices: Choices) -> bool:
    """Whether `percentile` and `collect_method` have an effect: the family has convolutions and the format INT8 for them, of
    which the scales are those of maxima."""
    if choices.format is None or choices.model is None or inputs(choices.format) in COUNTED:
        return False
    return models.of(choices.model).convolutions and any(m.steps for m in formats.methods(choices.format))


class ChunkView(View, of=Calib):
    """One chunk. A chunk's fingerprint has its own prompts and place, not the size of the set: sets share chunks."""

    prompts: Prompts
    start: int
    """Index of the first prompt, which decides the seeds."""
    batch_size: int
    n_steps: int
    per_step: bool = False
    """Whether the extremes of convolution inputs are kept step by step too."""

    @property
    def batches(self) -> int:
        return -(-len(self.prompts) // self.batch_size)

    @property
    def calls(self) -> int:
        """Denoising steps of all batches together."""
        return self.batches * self.n_steps

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk", "n_steps"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        plain = group.percentile == 1 and group.collect_method == "default"
        return [
            cls(
                prompts=part,
                start=start,
                batch_size=group.batch_size,
                n_steps=group.n_steps,
                per_step=not plain and reads_steps(choices),
            )
            for start, part in group.chunks()
        ]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


class ScaleView(View, of=Calib):
    """How scales are made of what was observed."""

    alpha: float
    percentile: float = 1.0
    collect_method: Collect = "default"

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        found = {"percentile", "collect_method"} if reads_steps(choices) else set()
        if choices.format is not None and any(m.algorithm == "smoothquant" for m in formats.methods(choices.format)):
            found.add("alpha")
        return frozenset(found)
