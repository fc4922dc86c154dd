"""Kernels that Model-Optimizer has torch compile at their first use on a GPU: a build that was killed is made again.

torch marks a build by a file beside it, which the builder holds open and removes at its end. Whoever needs the kernels waits
until it is gone: without end, and without a word, where the builder was killed.
"""

import logging
import os
import time
from functools import cache
from pathlib import Path

log = logging.getLogger("diffopt")

OURS = "**/modelopt_cuda_ext*/lock"
PATIENCE = 300
"""Seconds after which a mark that no process here holds is nobody's: another machine or container with this directory builds in
half a minute."""
WAIT = 1.0


@cache
def free() -> None:
    """Remove the marks of builds that nobody makes any more, once in a process."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    for mark in Path(root).glob(OURS):
        _free(mark)


def _free(mark: Path) -> None:
    said = False
    while not _held(mark):
        try:
            age = abs(time.time() - mark.stat().st_mtime)
            if age > PATIENCE:
                mark.unlink()
                log.info("note: %s was left by a build that was killed: it is removed, and the kernels are built again", mark)
                return
        except FileNotFoundError:
            return
        except PermissionError as e:
            log.info("note: %s; another user's build of Model-Optimizer's kernels is waited for", e)
            return
        if not said:
            said = True
            log.info("note: waiting for %s, of a build by no process here, until it is gone or %d s old", mark, PATIENCE)
        time.sleep(WAIT)


def _held(mark: Path) -> bool:
    """Whether a process of this machine that can be looked at has it open."""
    for held in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if held.samefile(mark):
                return True
        except OSError:  # closed, ended, another user's, or the mark is gone
            continue
    return False
