"""`eval=`: the pictures that are drawn, by which runtime, what is measured on them, and what they must reach."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from diffopt import models
from diffopt.data.prompts import Prompts, PromptSet
from diffopt.errors import suggestion
from diffopt.groups import alternatives
from diffopt.groups.choices import Choices
from diffopt.groups.view import View
from diffopt.metrics import METRICS, SOURCES
from diffopt.quality import gates
from diffopt.registry import named
from diffopt.schema import Group
from diffopt.store.source import ScorerSource


def _installed(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"is not a metric that is installed; {suggestion(name, METRICS)}")
    return name


MetricName = Annotated[str, AfterValidator(_installed)]
RUNTIMES = ("torch", "native", "onnxruntime", "tensorrt")
"""Ours; diffopt/runtimes says what they are."""


def _runtime(name: str) -> str:
    if name not in (there := named("diffopt.runtimes", RUNTIMES)):
        raise ValueError(f"is not a runtime that is installed; {suggestion(name, there)}")
    return name


RuntimeName = Annotated[str, AfterValidator(_runtime)]
ContenderName = Literal["eager", "compiled", "native", "onnxruntime", "tensorrt"]
OF_GRAPHS: tuple[Literal["onnxruntime", "tensorrt"], ...] = ("onnxruntime", "tensorrt")
"""Those that run a graph or its plan, which brings a batch size of its own."""


def _known(name: str) -> str:
    if name not in alternatives.ALTERNATIVES:
        raise ValueError(f"is nothing to compare with; {suggestion(name, alternatives.ALTERNATIVES)}")
    return name


AlternativeName = Annotated[str, AfterValidator(_known)]


class Eval(Group):
    steers: ClassVar[frozenset[str]] = frozenset(
        {"runtime", "metrics", "latency", "bench", "gates", "compare", "parity", "chunk"}
    )
    readers: ClassVar[dict[str, str]] = {"frames": "a model of videos", "cuda_graph": "an engine plan that is run (tensorrt)"}

    prompts: Prompts
    """File of prompts; `asset:FILE` for one in the package, `hub:ORG/NAME:COLUMN` for a data set on the hub, or the name of
    a set that the field uses, `drawbench` or `drawbench:FILE` (diffopt/data/prompts.py lists them)."""
    size: int = Field(ge=1)
    """Prompts to use, from the first; one picture each."""
    batch_size: int = Field(ge=1)
    """Pictures per pipeline call of torch and native; a graph brings its own, and so does its plan."""
    steps: int = Field(ge=1)
    """Denoising steps per picture."""
    reference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of the reference; null takes `steps`. With it candidates of fewer steps are judged by what those cost."""
    chunk: int | None = Field(default=None, ge=1)
    """Prompts per stored part of the pictures; a larger `size` draws only the parts that a smaller one lacks. null draws all at
    once. The pictures are the same."""
    frames: int | None = Field(ge=2)
    """Frames of a video that are kept and judged, evenly spaced from the first to the last, at most those it has; null takes
    all. Every metric of pictures is taken of each and averaged over the video."""
    runtime: RuntimeName
    """What draws the candidate's pictures: one of diffopt/runtimes, or another package's."""
    cuda_graph: bool = False
    """Give the GPU a backbone call of `tensorrt` as one CUDA graph, where launching its kernels takes longer than they run."""
    metrics: list[MetricName]
    """What is measured on the pictures, of diffopt/metrics; without any they are only drawn, or timed."""
    clip: ScorerSource | None
    """The CLIP that scores (clip, clip-iqa): a directory, `asset:DIR` or hub id that transformers or open_clip loads."""
    imagereward: ScorerSource | None
    """ImageReward.pt and med_config.json: their directory, or a hub id."""
    features: ScorerSource | None
    """The model whose features fid and cmmd compare: a directory, `asset:DIR` or hub id of transformers' image models."""
    compare: list[AlternativeName] = Field(default_factory=list)
    """Further candidates of the same report, by the names of groups/alternatives.py: `ptq`, `fewer_steps`, `uncached`,
    `simulated`."""
    gates: dict[str, float | str]
    """What must be reached, by metric: `20` the candidate's mean, `-0.5%` its change from the reference's mean; for
    `latency` the speedup over the baseline, `1.0x`; and for `parity` the largest relative error of a denoising step. A broken
    gate fails the run, which keeps all that it made."""
    parity: bool = True
    """Compare the native runtime's backbone with the simulated one, in every layer and step of one batch; other runtimes have
    nothing to compare."""
    latency: bool
    """Time the candidate beside its full-precision baseline, where the runtime has kernels for the format."""
    bench: list[ContenderName] = Field(default_factory=list)
    """Ways to run the model that are timed in turn: `eager`, torch as it is; `compiled`, its blocks compiled; `native`, the
    chosen format by its kernels; `onnxruntime`, the exported graph; `tensorrt`, its engine plan. A cache is put on top of
    them as further ones."""
    warmup: int = Field(ge=1)
    """Pipeline calls of each before timing."""
    repeats: int = Field(ge=3)
    """Timed pipeline calls of each, in turn."""

    def parts(self) -> list[tuple[int, PromptSet]]:
        """Index of the first prompt, and the prompts, of each part."""
        step = self.chunk or self.size
        return [(start, self.prompts.part(start, min(start + step, self.size))) for start in range(0, self.size, step)]

    @property
    def compares_kernels(self) -> bool:
        """Whether there is a parity to measure, where there is a format."""
        return self.parity and self.runtime == "native"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size > len(self.prompts):
            raise ValueError(
                f"size: is more than the {len(self.prompts)} prompts of {self.prompts.where} (got {self.size}); "
                "lower it, or give a longer file"
            )
        if self.chunk and self.chunk % self.batch_size:
            raise ValueError(
                f"chunk: is not a multiple of eval.batch_size={self.batch_size} (got {self.chunk}); batches must "
                "not cross parts"
            )
        for metric in (METRICS[name] for name in self.metrics):
            for source in metric.needs:
                if getattr(self, source) is None:
                    raise ValueError(f"{source}: the metric {metric.name} needs it (got None); give {SOURCES[source]}")
        gates.check(self.gates, self.metrics, latency=self.latency or bool(self.bench), parity=self.compares_kernels)
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics: names one twice (got {self.metrics}); name each once")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError(f"compare: names one twice (got {self.compare}); name each once")
        if len(set(self.bench)) != len(self.bench):
            raise ValueError(f"bench: names one twice (got {self.bench}); name each once")
        if self.bench and not {"eager", "compiled"} & {*self.bench}:
            raise ValueError(f"bench: has nothing to compare with (got {self.bench}); add compiled, or add eager")
        if self.compare and not self.metrics:
            raise ValueError(
                f"compare: compares in eval.metrics, of which there are none (got {self.compare}); name some, or drop it"
            )
        return self


class DrawView(View, of=Eval):
    """The pictures that are drawn: of the first `size` prompts; and of a video the frames that are kept."""

    prompts: Prompts
    batch_size: int
    steps: int
    frames: int | None = None

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "steps", "frames"})

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        films = choices.model is not None and models.of(choices.model).frame_step is not None
        return cls.fields_read() - (set() if films else {"frames"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        same = {name: getattr(group, name) for name in cls.model_fields if name in Eval.model_fields and name != "prompts"}
        return [cls(prompts=group.prompts.part(0, group.size), **same)]


class ReferenceView(DrawView, of=Eval):
    """The same in the reference's denoising steps."""

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return super().fields_read() | {"reference_steps"}

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        own = choices.eval is not None and choices.eval.reference_steps is not None
        return super().used(choices) - {"steps" if own else "reference_steps"}

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        (whole,) = super().split(group, choices)
        return [whole.model_copy(update={"steps": group.reference_steps or group.steps})]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return super().identity(used | {"steps"})  # whichever field says how many


class RuntimeView(DrawView, of=Eval):
    """The same by a runtime; one with a batch size of its own does not read `batch_size`."""

    runtime: RuntimeName
    cuda_graph: bool = False

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return super().fields_read() | {"runtime", "cuda_graph"}

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        runtime = choices.eval.runtime if choices.eval else "torch"
        idle = {"batch_size"} if runtime in OF_GRAPHS else set()
        return super().used(choices) - idle - (set() if runtime == "tensorrt" else {"cuda_graph"})

    @property
    def options(self) -> dict[str, bool]:
        """Those of its runtime."""
        return options(self.runtime, self.cuda_graph)


class BenchView(View, of=Eval):
    """What is timed side by side; a graph among it brings the batch size of all."""

    prompts: Prompts
    batch_size: int
    steps: int
    warmup: int
    repeats: int
    bench: list[ContenderName]
    cuda_graph: bool = False

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        idle = {"batch_size"} if any(benches(name)(choices) for name in OF_GRAPHS) else set()
        return cls.fields_read() - idle - (set() if benches("tensorrt")(choices) else {"cuda_graph"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        """Of the prompts only a batch: their number does not change the time."""
        assert isinstance(group, Eval)
        others = {name: getattr(group, name) for name in cls.model_fields if name != "prompts"}
        return [cls(prompts=group.prompts.part(0, 16), **others)]


def options(runtime: str, cuda_graph: bool) -> dict[str, bool]:
    """What this runtime is opened with, of what is asked for."""
    return {"cuda_graph": cuda_graph} if runtime == "tensorrt" else {}


def benches(name: ContenderName) -> Callable[[Choices], bool]:
    """Whether that contender is in the bench."""
    return lambda choices: choices.eval is not None and name in choices.eval.bench
