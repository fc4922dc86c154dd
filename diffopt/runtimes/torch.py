"""torch: the plain backbone, or the fake-quantized one (simulated: right pictures, no speed), with or without a cache."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.caches import METHODS
from diffopt.caches.target import Target, session
from diffopt.errors import PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.cache import CacheView
from diffopt.pipeline.open import family_of, open_pipeline
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.checkpoint import restore
from diffopt.quantization.folding import fold
from diffopt.quantization.range_counter import counted
from diffopt.runtimes import Counting, Running, Under
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.simulation import compiled
from diffopt.stage import Context


@contextmanager
def running(
    ctx: Context, pipeline: Pipeline, subject: Checkpoint | None, cache: CacheView | None, *, texts: bool
) -> Iterator[Running]:
    """A pipeline whose backbone is the checkpoint's, for any batch size.

    Raises GateError for a cache that never hit, and PlanError for one that does not fit this model.
    """
    with opened(ctx, pipeline, subject, texts=texts)(cache) as run:
        yield run
    if cache and (saved := run.saved()):
        check_hits(cache, saved)


def opened(ctx: Context, pipeline: Pipeline, subject: Checkpoint | None, *, texts: bool) -> Under:
    """The same under several caches in turn; one that never hits is let through."""
    backbone = None
    if subject:
        backbone = restore(ctx, pipeline, subject)
        fold(backbone, ctx.device)
    pipe = open_pipeline(ctx, pipeline, backbone, texts=texts)
    backbones = {name: getattr(pipe, name) for name in PipelineFile.read(pipeline.path).backbones}
    if subject:
        compiled(pipeline, backbones, ctx.device)
    counting = partial(counted, backbones) if subject else None
    return lambda cache: _simulated(cached(pipe, pipeline, backbones, cache), counting)


@contextmanager
def _simulated(running: AbstractContextManager[Running], counting: Counting | None) -> Iterator[Running]:
    with simulated(), running as run:
        yield replace(run, counted=counting)


@contextmanager
def cached(pipe: Any, pipeline: Pipeline, backbones: dict[str, Any], cache: CacheView | None) -> Iterator[Running]:
    """A pipeline with its backbones, by its names for them, and with a cache where one is given.

    Raises PlanError for one that does not fit this model.
    """
    if cache is None:
        yield Running(pipe, None)
        return
    with ExitStack() as stack:
        try:
            attached = METHODS[cache.method].attach(Target(pipe, family_of(pipeline), backbones), cache.settings)
            stack.callback(attached.detach)
            stack.enter_context(session(attached))
        except ValueError as e:
            raise PlanError(f"cache: {e}") from None
        yield Running(pipe, None, attached.statistics)
