"""native: the checkpoint by real low-precision kernels in torch, the blocks compiled; full precision compiled the same way.

For an NVIDIA GPU. On a CPU the same layers run without being compiled, for tests: right, and slow.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.cache import CacheView
from diffopt.kernels.convert import Converted, convert
from diffopt.kernels.fuse import fuse
from diffopt.pipeline.open import by_name, family_of, open_backbone, open_pipeline
from diffopt.quantization.checkpoint import restore
from diffopt.runtimes import Running, Under
from diffopt.runtimes.compiled import compile_blocks, keep
from diffopt.runtimes.cuda_graph import Graphed
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.torch import cached
from diffopt.stage import Context

log = logging.getLogger("diffopt")

GRAPHS = frozenset({"UNet2DConditionModel"})
"""Backbones whose many small kernels take longer to launch than to run: one CUDA graph a call. A transformer of FLUX's size
gains nothing from it."""


@contextmanager
def running(
    ctx: Context, pipeline: Pipeline, subject: Checkpoint | None, cache: CacheView | None, *, texts: bool
) -> Iterator[Running]:
    """As the torch runtime's, of compiled blocks. The first call of a batch size compiles them."""
    with opened(ctx, pipeline, subject, texts=texts)(cache) as run:
        yield run
    if cache and (saved := run.saved()):
        check_hits(cache, saved)


def opened(ctx: Context, pipeline: Pipeline, subject: Checkpoint | None, *, texts: bool) -> Under:
    """The same under several caches in turn; one that never hits is let through."""
    backbone, _ = read(ctx, pipeline, subject)
    return ready(ctx, pipeline, backbone, texts=texts)


def read(ctx: Context, pipeline: Pipeline, subject: Checkpoint | None) -> tuple[torch.nn.Module, Converted | None]:
    """The backbone, fused but not compiled yet, and what became of a checkpoint's layers."""
    if subject is None:
        return fused(ctx, pipeline, open_backbone(ctx, pipeline)), None
    backbone, made = _converted(ctx, pipeline, subject)
    return fused(ctx, pipeline, backbone), made


def converted(ctx: Context, pipeline: Pipeline, subject: Checkpoint) -> torch.nn.Module:
    """The backbone with kernels, its layers where and as they were."""
    return _converted(ctx, pipeline, subject)[0]


def fused(ctx: Context, pipeline: Pipeline, backbone: torch.nn.Module) -> torch.nn.Module:
    """The same with its layers fused, and laid out as its GPU wants them, in place."""
    for each in by_name(PipelineFile.read(pipeline.path), backbone).values():
        fuse(each)
        if ctx.device == "cuda" and type(each).__name__ in GRAPHS:
            each.to(memory_format=torch.channels_last)  # as cuDNN's convolutions take it
    return backbone


def ready(ctx: Context, pipeline: Pipeline, backbone: torch.nn.Module, *, texts: bool) -> Under:
    """The pipeline around a fused backbone, which is compiled in place on a GPU."""
    keep(ctx.compiled)
    pipe = open_pipeline(ctx, pipeline, backbone, texts=texts)
    backbones = {name: getattr(pipe, name) for name in PipelineFile.read(pipeline.path).backbones}
    if ctx.device == "cuda":
        for module in backbones.values():
            compile_blocks(module, family_of(pipeline).blocks)
    return lambda cache: _graphed(pipe, pipeline, backbones, cache)


@contextmanager
def _graphed(pipe: Any, pipeline: Pipeline, backbones: dict[str, Any], cache: CacheView | None) -> Iterator[Running]:
    """A cache decides at every call what runs, which a graph cannot: with one there is none."""
    with ExitStack() as stack:
        for backbone in backbones.values():
            if cache is None and type(backbone).__name__ in GRAPHS and next(backbone.parameters()).is_cuda:
                backbone.forward = Graphed(backbone.forward)
                stack.callback(delattr, backbone, "forward")
        yield stack.enter_context(cached(pipe, pipeline, backbones, cache))


def _converted(ctx: Context, pipeline: Pipeline, subject: Checkpoint) -> tuple[torch.nn.Module, Converted]:
    backbone = restore(ctx, pipeline, subject)
    made = convert(backbone)
    _tell(made)
    return backbone, made


def _tell(made: Converted) -> None:
    kinds = ", ".join(f"{n} {kind}" for kind, n in made.kernels.items())
    log.info("native: kernels for %s layers%s", kinds or "no", f"; {len(made.left)} fall back" if made.left else "")
    for name, why in made.left.items():
        log.debug("native: %s falls back: %s", name, why)
    if made.attention or made.attention_left:
        log.info("native: FP8 attention in %d layers; %d stay in 16 bits", len(made.attention), len(made.attention_left))
    for why, n in Counter(made.attention_left.values()).items():
        log.info("native: %d attention layers stay in 16 bits: %s", n, why)
