"""`train=`: training with the quantizers in place, on data (QAT) or by the full-precision model as teacher (QAD)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from diffopt import formats, models
from diffopt.errors import suggestion
from diffopt.groups.choices import Choices
from diffopt.groups.data import Data
from diffopt.groups.model import Dtype
from diffopt.groups.view import View
from diffopt.schema import Group


@dataclass(frozen=True)
class Optimizer:
    cls: str
    """In torch.optim, for 8bit in torchao.optim."""
    states: float
    """Numbers that it keeps for each weight."""
    bytes: float | None = None
    """Of such a number; None where it is of the weight's own precision."""


OPTIMIZERS = {
    "adamw": Optimizer("AdamW", 2),
    "adam": Optimizer("Adam", 2),
    "nadam": Optimizer("NAdam", 2),
    "radam": Optimizer("RAdam", 2),
    "adamax": Optimizer("Adamax", 2),
    "rmsprop": Optimizer("RMSprop", 1),
    "adafactor": Optimizer("Adafactor", 0.01),
    "sgd": Optimizer("SGD", 0),
    "adamw8bit": Optimizer("AdamW8bit", 2, 1.02),
    "adam8bit": Optimizer("Adam8bit", 2, 1.02),
}
"""By name in a recipe. Those called 8bit come with the extra train8bit; they compile their steps."""


def _known(name: str) -> str:
    if name not in OPTIMIZERS:
        raise ValueError(f"is no optimizer that is known; {suggestion(name, OPTIMIZERS)}")
    return name


OptimizerName = Annotated[str, AfterValidator(_known)]
Schedule = Literal["constant", "linear", "cosine"]
Scales = Literal["fixed", "learned", "tied", "dual"]
Parallel = Literal["auto", "ddp", "fsdp"]
PART = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Lora(BaseModel):
    """Adapters that are trained in the place of the weights, and are added to them before they are quantized."""

    model_config = PART

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """B A is scaled by alpha / rank."""
    targets: list[str] = Field(min_length=1)
    """Globs over the names of quantized layers."""


class Teacher(BaseModel):
    """Where the full-precision model is kept while it teaches."""

    model_config = PART

    offload: bool
    """In RAM, its blocks on the GPU one ahead of when they are needed."""
    storage: Literal["float8_e4m3fn"] | None
    """What its weights are stored in; they are computed with in the model's precision. null leaves them as they are."""


class Trajectory(BaseModel):
    """Student and teacher each go down a sampler's steps from one noisy latent, and are compared where they arrive, with inputs
    rounded: what a step gets wrong counts as the steps after it leave it, and what cancels does not count."""

    model_config = PART

    steps: int = Field(ge=2)
    """Denoising steps of a drawing."""
    length: int | None = Field(None, ge=2)
    """Of these so many, from an item that is noised as it would be there; null goes all of them, from noise alone."""
    last: int = Field(ge=1)
    """Optimizer steps that learn so: the last ones. Each calls the student `length` times, and without gradient_checkpointing
    keeps all that the gradient needs of each."""
    learning_rate: float | None = Field(None, gt=0, lt=1)
    """Of these, which begin with a warm-up and an optimizer of their own; null takes train.learning_rate."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.length and self.length > self.steps:
            raise ValueError(f"length: is more than steps={self.steps} (got {self.length}); lower it, or null goes all of them")
        return self

    @property
    def calls(self) -> int:
        """Of the student in an optimizer step."""
        return self.length or self.steps


class Distillation(BaseModel):
    """The loss is task * (to the data) + output * (to the teacher's output) + hidden * (to its blocks' outputs)."""

    model_config = PART

    output: float = Field(ge=0)
    task: float = Field(ge=0)
    hidden: float = Field(ge=0)
    """Of mean squared errors relative to the mean square of what the teacher's block gives."""
    blocks: list[str]
    """Globs over the names of the blocks that `hidden` compares (`transformer_blocks.*`)."""
    teacher: Teacher
    trajectory: Trajectory | None = None
    """Learn from whole drawings in the end; null learns from single calls alone."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.output and not (self.hidden and self.blocks):
            raise ValueError("learns nothing from the teacher; set train.distillation.output=1, or train.distillation=null")
        if bool(self.hidden) != bool(self.blocks):
            raise ValueError("hidden and blocks go together; give both, or neither")
        return self


class Validation(BaseModel):
    """Pictures drawn now and then by the model in training, beside the full-precision model's of the same seeds."""

    model_config = PART

    every: int = Field(ge=1)
    """Optimizer steps."""
    size: int = Field(ge=1)
    """Prompts: the last of the data, whose items are not trained on."""
    steps: int = Field(ge=1)
    """Denoising steps."""
    metric: Literal["psnr", "ssim"]
    patience: int | None = Field(ge=1)
    """After so many validations without a better one training stops, and the best one's weights are kept; null trains all
    steps and keeps the last."""


class Train(Group):
    readers: ClassVar[dict[str, str]] = {
        "unconditional": "a model that is guided (model.guidance_scale above 1)",
        "quantize_inputs": "a format that quantizes inputs",
        "scales": "a format whose weights have scales by blocks, stored beside them: nvfp4, nvfp4_svdquant or int4_awq",
        "scale_learning_rate": "train.scales=learned, tied or dual",
    }

    data: Data
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Items per optimizer step, over all devices."""
    micro_batch: int | None = Field(ge=1)
    """Items per backbone call: gradients of several are accumulated. null takes the whole batch at once."""
    optimizer: OptimizerName
    """One of OPTIMIZERS."""
    learning_rate: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0, lt=1)
    schedule: Schedule
    """Of the learning rate, after the warm-up."""
    warmup: int = Field(ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    clip: float | None = Field(gt=0)
    """Largest norm of the gradient; null does not clip."""
    ema: float | None = Field(gt=0, lt=1)
    """Decay of the moving average of the weights, which is then what is kept; null keeps the weights themselves."""
    precision: Dtype
    """What is computed in: below float32 by autocast."""
    weights: Dtype | None
    """What the weights are trained in; null takes the model's, in 16 bits of which small steps are lost to rounding."""
    gradient_checkpointing: bool
    """Compute blocks' activations once more for the gradient rather than keep them, and whole calls in a trajectory."""
    timesteps: Literal["family", "uniform", "logit_normal"]
    """How noise levels are drawn: as the family was trained, evenly, or from a logit-normal; flow matching shifts them as
    its scheduler does."""
    quantize_inputs: bool = True
    """Round what layers compute with in training too; false rounds the weights alone. The rounding of inputs differs from
    step to step and nearly cancels in a picture, while the loss has it at its full size, which hides what weights do wrong.
    Trajectories have them rounded always."""
    scales: Scales = "fixed"
    """Whether the scales of weights' blocks are trained too, on from what a calibration or a search found, by modelopt's LSQ:
    those that rounded weights are multiplied by (`learned`, modelopt's own default), the same with those that weights are
    divided by (`tied`, as arXiv 1902.08153 has it), or each of the two by itself (`dual`)."""
    scale_learning_rate: float | None = Field(None, gt=0, lt=1)
    """Of the scales, which are trained as the numbers where blocks end; null takes learning_rate, as modelopt's loops have one
    for all: those are as large as weights, and Adam's steps are of one size."""
    unconditional: float = Field(ge=0, lt=1)
    """Share of the items that are trained with the negative prompt, for guidance."""
    lora: Lora | None
    """Train adapters; null trains all weights of the quantized layers' model."""
    distillation: Distillation | None
    """Learn from the full-precision model (QAD); null learns from the data alone (QAT)."""
    validation: Validation | None
    save_every: int = Field(ge=1)
    """Optimizer steps between training checkpoints, which a killed run goes on from."""
    trackers: list[str]
    """accelerate's, by name: tensorboard, wandb, ..."""
    parallel: Parallel | None
    """How several GPUs train: a copy on each (`ddp`), or weights, gradients, optimizer and teacher in shards over them
    (`fsdp`, FSDP2). `auto` takes ddp where the training fits each GPU, else fsdp; null trains in one process."""
    processes: int | None = Field(ge=1)
    """On each machine; null takes one for each GPU that is there, as far as batch_size divides, and one on a CPU."""
    machines: int = Field(ge=1)
    """Each is given the same command, and the same store on a disk that they share."""
    rendezvous: str | None = Field(pattern=r"^[^\s:]+:\d+$")
    """HOST:PORT of the first machine, at which several meet; null takes what Slurm says."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        many = (self.processes or 1) * self.machines
        if self.parallel is None and many > 1:
            raise ValueError(f"parallel: is needed by {many} processes (got null); set train.parallel=auto")
        if self.batch_size % many:
            raise ValueError(
                f"processes: do not divide train.batch_size={self.batch_size} (got {many} in all); give a divisor, or another "
                "batch_size"
            )
        if self.machines == 1 and self.rendezvous:
            raise ValueError(
                f"rendezvous: is where several machines meet (got {self.rendezvous} with train.machines=1); drop it, or raise "
                "train.machines"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch: does not divide train.batch_size={self.batch_size} (got {self.micro_batch}); give a divisor"
            )
        if (drawing := trajectory(self)) and drawing.last > self.steps:
            raise ValueError(
                f"distillation.trajectory.last: is more than train.steps={self.steps} (got {drawing.last}); lower it, or raise "
                "train.steps"
            )
        if self.warmup >= self.steps:
            raise ValueError(f"warmup: is not less than train.steps={self.steps} (got {self.warmup}); lower it")
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError(f"trackers: names one twice (got {self.trackers}); name each once")
        return self


MEANS = ("save_every", "trackers", "parallel", "processes", "machines", "rendezvous")


class TrainView(View, of=Train):
    """All but the data, which an artifact holds."""

    steps: int
    batch_size: int
    micro_batch: int | None
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    warmup: int
    clip: float | None
    ema: float | None
    precision: Dtype
    weights: Dtype | None
    gradient_checkpointing: bool
    timesteps: Literal["family", "uniform", "logit_normal"]
    quantize_inputs: bool
    scales: Scales
    scale_learning_rate: float | None
    unconditional: float
    lora: Lora | None
    distillation: Distillation | None
    validation: Validation | None
    save_every: int
    trackers: list[str]
    parallel: Parallel | None
    processes: int | None
    machines: int
    rendezvous: str | None

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        guided = choices.model is not None and models.of(choices.model).guided(choices.model)
        rounded = choices.format is None or any(m.inputs for m in formats.methods(choices.format))
        blocks = choices.format is None or any(m.weights for m in formats.methods(choices.format))
        learned = blocks and (choices.train is None or choices.train.scales != "fixed")
        reads = {"unconditional": guided, "quantize_inputs": rounded, "scales": blocks, "scale_learning_rate": learned}
        return cls.fields_read() - {name for name, read in reads.items() if not read}

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """Without what has no part in the result: where it is told of, how often it is saved, and who computes it.

        Processes share one batch, whose noise follows from the step alone. Where micro_batch, which is not left out, says how
        many items a call has, any number of them makes the same calls, and only the order in which gradients are summed
        differs; without it they make smaller ones than one process, which is noise of rounding too. So a model that was
        trained on eight GPUs is found again on a machine with one. Nor is said of inputs that they are rounded, as they were
        before that could be chosen.
        """
        plain = {"quantize_inputs"} if self.quantize_inputs else set()
        plain |= {"scales", "scale_learning_rate"} if self.scales == "fixed" else set()
        plain |= {"scale_learning_rate"} if self.scale_learning_rate is None else set()
        found = {n: x for n, x in super().identity(used).items() if n not in {*MEANS, *plain}}
        if self.distillation and not self.distillation.trajectory:  # as it was before there was any
            found["distillation"] = {n: x for n, x in found["distillation"].items() if n != "trajectory"}
        return found

    @property
    def singly(self) -> int:
        """Optimizer steps, the first ones, that learn from single calls of the backbone."""
        drawing = trajectory(self)
        return self.steps - drawing.last if drawing else self.steps


def trajectory(train: Train | TrainView) -> Trajectory | None:
    """How the last steps learn from whole drawings; None where none does."""
    return train.distillation.trajectory if train.distillation else None
