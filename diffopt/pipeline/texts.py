"""Prompts as the backbone sees them: embeddings by the text encoders, or random ones of their shape for random weights."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diffopt.artifact import Components, Embeddings, EvalTexts, Pipeline, TrainTexts
from diffopt.data.prompts import PromptSet
from diffopt.files.pipeline import PipelineFile
from diffopt.models import of
from diffopt.pipeline.foreign import config_of
from diffopt.pipeline.open import open_texts
from diffopt.pipeline.pixels import pixels
from diffopt.stage import Context

Texts = dict[str, torch.Tensor]
"""Pipeline arguments that stand for a batch of prompts."""
CONDITION = "condition"
"""Beside those in a training set: what the family's `condition` made of the prompts' pictures."""


def encode(ctx: Context, pipe: Any, pipeline: Pipeline, prompts: Sequence[str], model: Any) -> Texts:
    """The embeddings of a batch of prompts, by a pipeline that has its text encoders, and their pictures as they are drawn.

    A prompt that is too long is cut: `lengths.too_long` has refused it before, unless `model.long_prompts` is `cut`.
    Raises PlanError for a picture that cannot be read, and for prompts without those that the model takes.
    """
    pinned = PipelineFile.read(pipeline.path)
    shown = {name: x.to(ctx.device) for name, x in pixels(of(pinned), prompts, model).items()}
    if pinned.weights == "random":
        return _random(ctx, pinned, prompts, model) | shown
    with torch.inference_mode():
        return of(pinned).embed(pipe, list(prompts), model) | shown


def encoder(
    ctx: Context, pipeline: Pipeline, model: Any, components: Components | None = None
) -> Callable[[Sequence[str]], Texts]:
    """Encodes a batch of prompts by the text encoders alone, which are held for the stage's next step."""
    random = PipelineFile.read(pipeline.path).weights == "random"
    key = (pipeline.fingerprint, components and components.fingerprint)
    pipe = None if random else ctx.held.get(key, lambda: open_texts(ctx, pipeline, components))
    return lambda prompts: encode(ctx, pipe, pipeline, prompts, model)


FILE = "embeddings.safetensors"


def encode_all(
    ctx: Context,
    pipeline: Pipeline,
    model: Any,
    prompts: PromptSet,
    batch_size: int,
    components: Components | None = None,
) -> None:
    """Encode prompts batch by batch, by the text encoders alone, into the stage's artifact."""
    encoded = encoder(ctx, pipeline, model, components)
    save(ctx.out, (encoded(prompts.prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)))


def save(out: Path, batches: Iterable[Texts]) -> None:
    """Write them as `BATCH.ARGUMENT`, to `embeddings.safetensors` of the directory."""
    stored = {f"{i:04}.{name}": x.cpu().contiguous() for i, texts in enumerate(batches) for name, x in texts.items()}
    save_file(stored, out / FILE)


def load(embeddings: Embeddings | EvalTexts | TrainTexts, device: str) -> list[Texts]:
    """Batch by batch what `save` has written."""
    found: dict[str, Texts] = {}
    for key, x in sorted(load_file(embeddings.path / FILE, device).items()):
        number, _, name = key.partition(".")
        # Cloned, because tensors of a mapped file lie where they lie, and some CPU kernels sum otherwise there.
        found.setdefault(number, {})[name] = x.clone()
    return list(found.values())


def regroup(batches: Sequence[Texts], size: int) -> list[Texts]:
    """The same rows in batches of `size`, the last one filled up with its last row.

    Where batches are padded to different lengths, the shorter ones get zeros, and False in their masks.
    """
    found: Texts = {}
    for name in batches[0]:
        parts = [texts[name] for texts in batches]
        longest = max(x.shape[1] for x in parts) if parts[0].dim() > 1 else 0
        rows = torch.cat([padded(x, longest) if longest else x for x in parts])
        found[name] = torch.cat([rows, rows[-1:].expand(-len(rows) % size, *rows.shape[1:])])
    many = len(next(iter(found.values())))
    return [{name: x[i : i + size].clone() for name, x in found.items()} for i in range(0, many, size)]


def first(batches: Sequence[Texts], many: int) -> list[Texts]:
    """The first `many` rows in the same batches, the last one of them cut."""
    found: list[Texts] = []
    for texts in batches:
        rows = min(many, len(next(iter(texts.values()))))
        found += [{name: x[:rows].clone() for name, x in texts.items()}] if rows else []
        many -= rows
    return found


def singly(batches: Sequence[Texts], many: int) -> list[Texts]:
    """The first `many` rows one by one, padded as their batch is."""
    return [
        {name: x[i : i + 1].clone() for name, x in texts.items()}
        for texts in first(batches, many)
        for i in range(len(next(iter(texts.values()))))
    ]


def padded(x: torch.Tensor, length: int) -> torch.Tensor:
    """[b, tokens, ...] with zeros behind the tokens, False in a mask."""
    return torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], 1)


def _random(ctx: Context, pinned: PipelineFile, prompts: Sequence[str], model: Any) -> Texts:
    kind, device = of(pinned), torch.device(ctx.device)
    directory = ctx.locate(pinned.source)
    config = config_of(directory / pinned.backbones[0] / "config.json")
    dtype = getattr(torch, pinned.dtype)
    found: Texts = {}
    for name, (_, *shape) in kind.embeddings(config, len(prompts), model).items():
        if name.endswith("mask"):
            found[name] = torch.ones(len(prompts), *shape, dtype=torch.bool, device=device)
            continue
        rows = []
        for prompt in prompts:
            called = Path(prompt).name if kind.animates else prompt  # wherever the picture lies
            seed = int.from_bytes(sha256(f"{name} {called}".encode()).digest()[:6])
            rows.append(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
        drawn = torch.stack(rows)
        pixels = name == "image"
        found[name] = (drawn * 64 + 128).clamp(0, 255).byte().to(device) if pixels else drawn.to(device, dtype)
    return found
