"""Compiling a backbone by the parts that it repeats, and keeping what that makes."""

import os
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
KINDS = 64
"""Parts of one class and different shapes that a backbone may have: a UNet has a dozen."""


def compile_blocks(backbone: Any, lists: tuple[str, ...]) -> None:
    """Compile what the backbone repeats, once for each kind, so that it is soon done and caches can skip blocks.

    diffusers says what that is: a transformer's blocks, and of a UNet, whose blocks all differ, the transformers within them,
    to which its residual blocks are added here. `lists` names the blocks of a backbone of which diffusers says nothing.
    """
    torch._dynamo.config.recompile_limit = max(KINDS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = max(8 * KINDS, torch._dynamo.config.accumulated_recompile_limit)
    if not backbone._repeated_blocks:
        for name in lists:
            for block in getattr(backbone, name):
                block.compile()
        return
    backbone.compile_repeated_blocks()
    for part in backbone.modules():
        if type(part).__name__ == "ResnetBlock2D":
            part.compile()


def keep(directory: Path | None) -> None:
    """Have torch keep there what it compiles, and find what an earlier process left, unless the user chose a place.

    torch knows the code, the versions and the GPU by hashes of its own; Triton's kernels lie beside.
    """
    if directory is not None and os.environ.get(VARIABLE) in (None, default_cache_dir()):  # torch sets its default there
        os.environ[VARIABLE] = str(directory.absolute())
