"""collect: the set that is trained on, latents and texts, of one's own pictures or of what the full-precision model drew."""

from typing import Annotated, Any, Literal, Self

from diffopt.artifact import Pipeline, TrainLatents, TrainSet, TrainTexts
from diffopt.data.extent import Small
from diffopt.data.prompts import Prompts
from diffopt.groups import Model, Train
from diffopt.groups.data import BATCH, DataSource, synthetic
from diffopt.groups.model import GuidedView
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices, Group, View


class PictureView(GuidedView, of=Model):
    """The size of a picture, and what the embeddings of its caption depend on."""

    height: int
    width: int
    frames: int | None
    guidance_scale: float
    negative_prompt: str
    max_sequence_length: int | None
    long_prompts: Literal["refuse", "cut"]


class SourceView(View, of=Train):
    """Where the items come from. Of drawn ones the prompts; all else about them is in the identity of their chunks."""

    source: DataSource
    prompts: Prompts | None = None
    size: int | None = None
    caption: str | None = None
    small: Small = "refuse"
    batch_size: int = BATCH

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"data"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Train)
        data = group.data
        if data.synthetic:
            return [cls(source=None, prompts=data.item_prompts(choices))]
        small = data.small or "refuse"
        return [cls(source=data.source, size=data.size, caption=data.caption, small=small, batch_size=data.batch)]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"size", "caption", "small", "batch_size"} if self.prompts else {"prompts"})


@stage(version=1, when="train", probes=("numerics",))
def collect(
    ctx: Context,
    model: PictureView,
    train: SourceView,
    pipeline: Pipeline,
    texts: Annotated[tuple[TrainTexts, ...], Under(synthetic)],
    latents: Annotated[tuple[TrainLatents, ...], Under(synthetic)],
) -> TrainSet:
    from diffopt.data.imagefolder import ImageFolder
    from diffopt.pipeline.items import from_imagefolder
    from diffopt.pipeline.items import synthetic as synthetic_items

    if train.source is None:
        assert train.prompts is not None
        items = synthetic_items(ctx, pipeline, model, train.prompts, texts, latents)
    else:
        directory = ctx.locate(ctx.digest(train.source))
        data = ImageFolder(directory, train.source.name, train.size, train.caption)
        items = from_imagefolder(ctx, pipeline, model, data, train.small, train.batch_size)
    items.save(ctx.out)
