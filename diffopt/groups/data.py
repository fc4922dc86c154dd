"""`train.data`: what is trained on, and the parts of it that stages read."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from diffopt import models
from diffopt.data.extent import Small
from diffopt.data.prompts import Prompts, PromptSet, read
from diffopt.groups.choices import Choices
from diffopt.store.source import Source, read_data

SYNTHETIC = "synthetic"
BATCH, CHUNK, STEPS = 4, 16, 20
"""What null means. 20 steps are what NVIDIA's Model-Optimizer draws its calibration pictures with."""
PACKAGED, PACKAGED_VIDEOS = "asset:prompts/calibration.txt", "asset:prompts/videos.txt"


def _read(value: object) -> Source | None:
    return None if value is None or value == SYNTHETIC else read_data(value)


DataSource = Annotated[
    Source | None, BeforeValidator(_read), PlainSerializer(lambda source: source.name if source else SYNTHETIC)
]
"""None stands for `synthetic`."""


class Data(BaseModel):
    """What is trained on: pictures of one's own with captions, or none, and the full-precision model draws the latents.

    `train.data=SOURCE` is short for a source with all else left to its defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    source: DataSource
    """`synthetic`; a directory as Hugging Face's imagefolder has it (pictures and a metadata.jsonl), or of Parquet files;
    `hub:ORG/NAME[@REVISION]`, a data set of the hub."""
    size: int | None = Field(default=None, ge=1)
    """Items to use, from the first; null takes all. Of `synthetic` more than there are prompts draws each several times."""
    batch_size: int | None = Field(default=None, ge=1)
    """Prompts per pipeline call, or pictures per VAE call; null takes 4."""
    prompts: Prompts | None = None
    """Of `synthetic`: a file of prompts, as calib.prompts; null takes the 128 captions in the package, or 64 of videos."""
    steps: int | None = Field(default=None, ge=1)
    """Of `synthetic`: denoising steps per item; null takes 20."""
    chunk: int | None = Field(default=None, ge=1)
    """Of `synthetic`: items per stored chunk; a larger `size` reuses the whole chunks of a smaller one; null takes 16."""
    caption: str | None = None
    """Of one's own data: the column of captions; null takes the first of prompt, prompts, caption and text that is there."""
    small: Small | None = None
    """Of one's own data: what becomes of a picture with fewer pixels than model.height x model.width; null refuses it."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @property
    def synthetic(self) -> bool:
        return self.source is None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        idle: dict[str, Any] = {"caption": self.caption, "small": self.small}
        if not self.synthetic:
            idle = {"prompts": self.prompts and self.prompts.where, "steps": self.steps, "chunk": self.chunk}
        for name, value in idle.items():
            if value is not None:
                reads = "the data are synthetic" if self.synthetic else "only source=synthetic reads it"
                raise ValueError(f"{name}: has no effect, since {reads} (got {value!r}); drop it, or all by train.data=SOURCE")
        if self.synthetic and (chunk := self.chunk or CHUNK) % self.batch:
            raise ValueError(
                f"chunk: is not a multiple of train.data.batch_size={self.batch} (got {chunk}); batches must not cross chunks"
            )
        return self

    def item_prompts(self, choices: Choices) -> PromptSet:
        """The prompt of every item that the model draws, in order."""
        assert choices.model is not None
        videos = models.of(choices.model).frame_step is not None
        found = self.prompts or read(PACKAGED_VIDEOS if videos else PACKAGED)
        many = self.size or len(found)
        return found.picked(i % len(found) for i in range(many))

    def chunks(self, choices: Choices) -> list[tuple[int, PromptSet]]:
        """Index of the first item, and the prompts, of each chunk of those."""
        items, chunk = self.item_prompts(choices), self.chunk or CHUNK
        return [(start, items.part(start, min(start + chunk, len(items)))) for start in range(0, len(items), chunk)]

    @property
    def batch(self) -> int:
        return self.batch_size or BATCH


def synthetic(choices: Choices) -> bool:
    return choices.train is not None and choices.train.data.synthetic
