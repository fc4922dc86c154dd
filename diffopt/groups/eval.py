"""`eval=`: the pictures that are drawn, by which runtime, and what is measured on them."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffopt.prompts import Prompts
from diffopt.source import ModelSource
from diffopt.view import Choices, Group, View


class Eval(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"runtime", "latency"})

    prompts: Prompts
    """File of prompts; `asset:FILE` for one in the package, `hub:ORG/NAME:COLUMN` for a data set on the hub."""
    size: int = Field(ge=1)
    """Prompts to use, from the first; one picture each."""
    batch_size: int = Field(ge=1)
    """Pictures per pipeline call of the torch runtime; a graph brings its own."""
    steps: int = Field(ge=1)
    """Denoising steps per picture."""
    runtime: Literal["torch", "onnxruntime"]
    """What draws the candidate's pictures."""
    metrics: list[Literal["psnr", "ssim", "clip"]]
    """What is measured on the pictures; without any they are only drawn, or timed."""
    clip: ModelSource | None
    """The CLIP model that scores: a directory, `asset:DIR` or hub id that transformers' CLIPModel loads."""
    latency: bool
    """Time the candidate beside its full-precision baseline, where the runtime has kernels for the format."""
    warmup: int = Field(ge=1)
    """Pipeline calls of each before timing."""
    repeats: int = Field(ge=3)
    """Timed pipeline calls of each, in turn."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size > len(self.prompts):
            raise ValueError(
                f"size: is more than the {len(self.prompts)} prompts of {self.prompts.where} (got {self.size}); "
                "lower it, or give a longer file"
            )
        if "clip" in self.metrics and self.clip is None:
            raise ValueError("clip: the metric clip needs a CLIP model (got None); give a directory or a hub id")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics: names one twice (got {self.metrics}); name each once")
        return self


class DrawView(View, of=Eval):
    """The pictures that are drawn: of the first `size` prompts."""

    prompts: Prompts
    batch_size: int
    steps: int

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "steps"})

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        return [cls(prompts=group.prompts.part(0, group.size), batch_size=group.batch_size, steps=group.steps)]


class RuntimeView(DrawView, of=Eval):
    """The same by a runtime; one with a batch size of its own does not read `batch_size`."""

    runtime: Literal["torch", "onnxruntime"]

    @classmethod
    def drawn_from(cls) -> frozenset[str]:
        return super().drawn_from() | {"runtime"}

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        graph = choices.eval is not None and choices.eval.runtime != "torch"
        return cls.drawn_from() - ({"batch_size"} if graph else set())

    @classmethod
    def draw(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        prompts = group.prompts.part(0, group.size)
        return [cls(prompts=prompts, batch_size=group.batch_size, steps=group.steps, runtime=group.runtime)]
