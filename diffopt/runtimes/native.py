"""native: the checkpoint by real low-precision kernels in torch, the blocks compiled; full precision compiled the same way.

For an NVIDIA GPU. On a CPU the same layers run without being compiled, for tests: right, and slow.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffopt.artifact import Checkpoint, Pipeline
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.cache import CacheView
from diffopt.kernels.convert import Converted, convert
from diffopt.pipeline.open import family_of, open_backbone, open_pipeline
from diffopt.quantization.checkpoint import restore
from diffopt.runtimes import Running, Under
from diffopt.runtimes.hits import check_hits
from diffopt.runtimes.torch import cached
from diffopt.stage import Context

log = logging.getLogger("diffopt")


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
    if subject is None:
        backbone = open_backbone(ctx, pipeline)
    else:
        backbone = restore(ctx, pipeline, subject)
        _tell(convert(backbone))
    pipe = open_pipeline(ctx, pipeline, backbone, texts=texts)
    backbones = {name: getattr(pipe, name) for name in PipelineFile.read(pipeline.path).backbones}
    if ctx.device == "cuda":
        for module in backbones.values():
            compile_blocks(module, family_of(pipeline).blocks)
    return lambda cache: cached(pipe, pipeline, backbones, cache)


def compile_blocks(backbone: Any, lists: tuple[str, ...]) -> None:
    """Compile what the backbone repeats, once for each kind, so that it is soon done and caches can skip blocks.

    diffusers says what that is: a transformer's blocks, and of a UNet, whose blocks all differ, the transformers within them.
    """
    if backbone._repeated_blocks:
        backbone.compile_repeated_blocks()
        return
    for name in lists:
        for block in getattr(backbone, name):
            block.compile()


def _tell(made: Converted) -> None:
    kinds = ", ".join(f"{n} {kind}" for kind, n in made.kernels.items())
    log.info("native: kernels for %s layers%s", kinds or "no", f"; {len(made.left)} fall back" if made.left else "")
    for name, why in made.left.items():
        log.debug("native: %s falls back: %s", name, why)
    if made.attention:
        log.info("native: %d attention layers are not in FP8 yet: their products are in the model's precision", made.attention)
