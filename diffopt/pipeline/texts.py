"""Prompts as the backbone sees them: embeddings by the text encoders, or random ones of their shape for random weights."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch

from diffopt.artifact import Pipeline
from diffopt.errors import PlanError
from diffopt.models import family
from diffopt.stage import Context

Texts = dict[str, torch.Tensor]
"""Pipeline arguments that stand for a batch of prompts."""


def encode(ctx: Context, pipe: Any, pipeline: Pipeline, prompts: Sequence[str], model: Any) -> Texts:
    """The embeddings of a batch of prompts, by a pipeline that has its text encoders.

    A prompt that is too long is cut: `check_length` has refused it before, unless `model.long_prompts` is `cut`.
    """
    pinned = pipeline.json("pipeline.json")
    if pinned["weights"] == "random":
        return _drawn(ctx, pinned, prompts, model)
    with torch.inference_mode():
        return family(pinned["family"]).embed(pipe, list(prompts), model)


def check_length(pipe: Any, prompts: Sequence[str], model: Any, where: str) -> None:
    """Raises PlanError for a prompt of more tokens than the longest text encoder takes: the rest would be cut off.

    `pipe` has tokenizers; `where` names the prompts' field.
    """
    tokenizer = next(t for n in ("tokenizer_3", "tokenizer_2", "tokenizer") if (t := getattr(pipe, n, None)) is not None)
    most = model.max_sequence_length or tokenizer.model_max_length
    for prompt in prompts:
        if (length := len(tokenizer(prompt, truncation=False, verbose=False).input_ids)) > most:
            shown = prompt if len(prompt) < 60 else prompt[:57] + "..."
            raise PlanError(
                f"{where}: {shown!r} has {length} tokens, but the text encoder takes {most} (got {length}); "
                "shorten it, or set model.long_prompts=cut"
            )


def _drawn(ctx: Context, pinned: dict[str, Any], prompts: Sequence[str], model: Any) -> Texts:
    kind, device = family(pinned["family"]), torch.device(ctx.device)
    directory = ctx.locate(pinned["source"])
    config = json.loads((directory / pinned["backbones"][0] / "config.json").read_text())
    found: Texts = {}
    for name, (_, *shape) in kind.embeddings(config, len(prompts), model).items():
        if name.endswith("mask"):
            found[name] = torch.ones(len(prompts), *shape, dtype=torch.bool, device=device)
            continue
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(sha256(f"{name} {prompt}".encode()).digest()[:6])
            rows.append(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
        found[name] = torch.stack(rows).to(device, getattr(torch, pinned["dtype"]))
    return found
