"""Making a simulated backbone cheap to run: weights rounded once, and on a GPU what is rounded on the way compiled.

On a CPU modelopt's own quantizers stay, bit for bit. On a GPU the last bits are otherwise, since a compiler fuses what it
computes: the probe `simulation` of diffopt/machine/environment.py keys that.
"""

import logging
from typing import Any

from diffopt.artifact import Pipeline
from diffopt.files.pipeline import PipelineFile
from diffopt.pipeline.open import family_of
from diffopt.quantization.traceable import traceable

log = logging.getLogger("diffopt")
LARGE = 5 * 10**8
"""Parameters from which on it pays to compile: a smaller backbone has drawn its pictures before it is compiled."""


def compiled(pipeline: Pipeline, backbones: dict[str, Any], device: str) -> None:
    """Compile the blocks of folded backbones that lie on a GPU, where they are large and their quantizers can be compiled."""
    if PipelineFile.read(pipeline.path).parameters < LARGE:
        return
    for name, backbone in backbones.items():
        if device != "cuda" or next(backbone.parameters()).device.type != "cuda":
            continue
        try:
            traceable(backbone)
        except ValueError as e:
            log.info("torch: %s is simulated without a compiler: %s", name, e)
            continue
        from diffopt.runtimes.compiled import compile_blocks  # which imports this room's torch

        compile_blocks(backbone, family_of(pipeline).blocks)
