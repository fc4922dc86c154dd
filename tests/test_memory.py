"""Peak memory is that of the work, not of the process before it."""

import subprocess
import sys

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


FIRST_IMPORT = """
import weakref
from diffopt.machine.memory import release

class Model:
    pass

def step():  # the first of a process that needs modelopt, with a model at hand
    import modelopt.torch.quantization
    model = Model()
    model.itself = model  # as backbones have cycles
    return weakref.ref(model)

model = step()
release()
print("freed:", model() is None)
"""


def test_the_step_that_first_imports_modelopt_leaves_nothing_behind():
    done = subprocess.run([sys.executable, "-c", FIRST_IMPORT], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["freed: True"], done.stderr
