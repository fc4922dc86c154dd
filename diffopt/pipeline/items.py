"""The items of a training set: latents, and the embeddings of the distinct prompts among theirs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diffopt.artifact import Pipeline, TrainLatents, TrainTexts
from diffopt.data.extent import Extent, Small
from diffopt.data.imagefolder import ImageFolder
from diffopt.data.prompts import PromptSet
from diffopt.errors import GateError
from diffopt.files.trainset import TrainSetFile
from diffopt.machine.memory import release
from diffopt.pipeline.latents import encode
from diffopt.pipeline.open import family_of, open_vae
from diffopt.pipeline.texts import CONDITION, Texts, encoder, load, regroup
from diffopt.stage import Context


@dataclass(frozen=True)
class Items:
    """`prompts` of every item, its latents FP32 [n, ...], and a row of `texts` for each distinct prompt, in their order."""

    prompts: PromptSet
    latents: torch.Tensor
    texts: Texts
    skipped: Sequence[str] = field(default=())
    """Names of the pictures that could not be read."""

    def save(self, out: Path) -> None:
        """Raises GateError for latents with NaN or inf in them."""
        if not self.latents.isfinite().all():
            raise GateError("collect: the latents have NaN or inf in them (got a broken VAE); check the model's files")
        texts = dict(zip(self.prompts.keys, self.prompts.prompts, strict=True))
        place = {key: i for i, key in enumerate(texts)}
        text = [place[k] for k in self.prompts.keys]
        TrainSetFile(len(self.prompts), [*texts.values()], text, len(self.skipped), self.skipped).write(out)
        save_file({"latents": self.latents.contiguous()}, out / "latents.safetensors")
        save_file({name: x.contiguous() for name, x in self.texts.items()}, out / "texts.safetensors")


def synthetic(
    ctx: Context,
    pipeline: Pipeline,
    model: Any,
    prompts: PromptSet,
    texts: Sequence[TrainTexts],
    latents: Sequence[TrainLatents],
) -> Items:
    """Of what the full-precision model drew, chunk by chunk; `prompts` are those of all chunks."""
    made = [load_file(chunk.path / "latents.safetensors")["latents"] for chunk in latents]
    parts: list[Texts] = []
    seen: set[str] = set()
    start = 0
    for chunk, several in zip(texts, made, strict=True):
        of_chunk = prompts.keys[start : start + len(several)]
        start += len(several)
        fresh = [i for i, p in enumerate(of_chunk) if p not in seen and p not in of_chunk[:i]]
        seen.update(of_chunk)
        if fresh:
            (rows,) = regroup(load(chunk, "cpu"), len(of_chunk))
            parts.append({name: x[fresh] for name, x in rows.items()})
    rows = _joined(parts)
    return Items(prompts, torch.cat(made), rows | _conditions(ctx, pipeline, model, rows))


def _conditions(ctx: Context, pipeline: Pipeline, model: Any, rows: Texts) -> Texts:
    """What the prompts' pictures are in training, one by one; nothing of texts alone."""
    family = family_of(pipeline)
    if family.condition is None:
        return {}
    vae = open_vae(ctx, pipeline)
    each = [{n: rows[n][i : i + 1] for n in family.pictures.values()} for i in range(len(next(iter(rows.values()))))]
    return {CONDITION: torch.cat([family.condition(partial(encode, vae), pictures, model) for pictures in each]).contiguous()}


def from_imagefolder(ctx: Context, pipeline: Pipeline, model: Any, data: ImageFolder, small: Small, batch_size: int) -> Items:
    """Of pictures with captions. No model is opened before every picture has been looked at."""
    extent = Extent(model.height, model.width, model.frames)
    unreadable = data.unreadable(extent, small)
    prompts = [c for i, c in enumerate(data.captions) if i not in unreadable]
    distinct = list(dict.fromkeys(prompts))
    texts = encoder(ctx, pipeline, model)
    batches = [distinct[i : i + batch_size] for i in range(0, len(distinct), batch_size)]
    rows = _joined([{name: x.cpu() for name, x in texts(batch).items()} for batch in batches])
    del texts
    ctx.held.drop()
    release()  # the text encoders, before the VAE is opened
    vae, timed = open_vae(ctx, pipeline), family_of(pipeline).timed
    made = []
    with ctx.progress(-(-len(prompts) // batch_size)) as tick:
        for batch in data.pixels(extent, batch_size, [*unreadable]):
            pixels = torch.from_numpy(batch).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            made.append(encode(vae, pixels if timed else pixels[:, :, 0]))
            tick()
    return Items(PromptSet(data.name, tuple(prompts)), torch.cat(made), rows, [*unreadable.values()])


def _joined(parts: Sequence[Texts]) -> Texts:
    """All rows in one batch; where parts were padded to different lengths, the shorter ones get zeros."""
    return regroup(parts, sum(len(next(iter(part.values()))) for part in parts))[0]
