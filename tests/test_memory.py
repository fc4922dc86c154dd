"""Peak memory is that of the work, not of the process before it."""

import numpy as np
import pytest

from diffopt.machine.memory import RESET, STATUS, peaks

pytestmark = pytest.mark.skipif(not STATUS.is_file() or not RESET.exists(), reason="only Linux tells a process's peak")
MANY = 256 << 20


def test_what_is_allocated_and_freed_within_is_in_the_peak():
    with peaks() as nothing:
        pass
    with peaks() as much:
        np.ones(MANY, np.uint8)
    assert much["ram"] > nothing["ram"] + 0.9 * MANY


def test_what_was_freed_before_is_not_in_the_peak():
    with peaks() as much:
        np.ones(MANY, np.uint8)
    with peaks() as later:
        pass
    assert later["ram"] < much["ram"] - 0.9 * MANY


def test_without_a_gpu_in_use_there_is_no_peak_of_one():
    import torch

    with peaks() as found:
        pass
    assert ("gpu" in found) == (torch.cuda.is_available() and torch.cuda.is_initialized())
