"""What is said is said in the same order in every run, whatever the seed of Python's hashes, and in the order declared."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from diffopt.errors import PlanError

AUTO = ("model=emoji_flux", "calib=emoji", "calib.size=64", "format=auto", "sense=default")
FORMATS = ["nvfp4", "mxfp8", "fp8", "int8_sq", "int8"]
CANDIDATES = (f"format.candidates=[{','.join(FORMATS)}]", "sense.formats=[int8]")
GPU = ("format.budget.bits=null", "+format.budget.time=50%", "+format.budget.gpu=h100")

COMMANDS: list[tuple[str, ...]] = [
    (*AUTO, *CANDIDATES, *GPU),  # formats that are not tried, and that the GPU has not
    ("+recipe=quickstart", "calib.alpha=7", "calib.size=0", "eval.metrics=[psnr,psnr]", "+eval.gates.fid=3", "seed=-1"),
    ("model=emoji_flux", "calib=emoji", "format=fp8", "calib.alpha=0.5", "+format.budget.bits=5", "+format.rank=8"),
    ("+recipe=quickstart", "+modle=1", "+sede=2", "+exprot=3", "+eval2=4"),
    ("+recipe=flux_fp4", "model=sdxl", "eval.runtime=onnxruntime", "cache=first_block", "export=null", "eval.steps=1"),
]
SAID = """
import sys
from importlib.metadata import EntryPoint
from hydra import compose, initialize_config_dir
from diffopt import stage
from diffopt.cli import hydra_errors
from diffopt.cli.searchpath import bundled, register
from diffopt.jobs import job

register()
with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
    for command in {commands!r}:
        print("#", *command)
        try:
            asked = [job.spelled(o) for o in command]
            given = [o for o in asked if not o.startswith("+recipe=")]
            prepared = job.prepare(compose("config", asked), given, dry=True, sweep=False)
            print("planned", *(s.name for s in prepared.plan.steps))
        except Exception as e:
            print(hydra_errors.line(e, list(command)))

points = stage.entry_points(group="diffopt.stages")
stage.entry_points = lambda group: [EntryPoint("50_ours", p.value, group) for p in points if p.value.startswith(group)]
print("stages of one place", *(s.name for s in stage.stages()))
assert not {{"torch", "diffusers", "modelopt"}} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def said() -> list[list[str]]:
    """By the hashes' seed, from 0 to 3, the lines of all commands."""
    code = SAID.format(commands=COMMANDS)
    env = [os.environ | {"PYTHONHASHSEED": str(seed)} for seed in range(4)]
    each = [subprocess.Popen([sys.executable, "-c", code], env=e, stdout=-1, stderr=-1, text=True) for e in env]
    ended = [p.communicate() for p in each]
    assert [p.returncode for p in each] == [0] * 4, ended
    return [out.splitlines() for out, _ in ended]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_line_is_where_it_was_under_another_seed(said: list[list[str]], seed: int) -> None:
    assert said[seed] == said[0]


def test_each_command_is_refused_and_most_for_several_reasons(said: list[list[str]]) -> None:
    text = "\n".join(said[0][:-1])
    assert "planned" not in text
    refused = [len(part.splitlines()) - 1 for part in text.split("# ")[1:]]
    assert len(refused) == len(COMMANDS)
    assert min(refused) >= 1
    assert sum(n > 1 for n in refused) >= 4, refused


def test_stages_of_one_place_and_name_are_in_the_order_of_what_they_point_at(said: list[list[str]]) -> None:
    names = said[0][-1].removeprefix("stages of one place ").split()
    assert len(names) > 20
    assert names == sorted(names)


def test_formats_are_refused_in_the_order_of_the_candidates(plan: Callable[..., Any]) -> None:
    with pytest.raises(PlanError) as caught:
        plan(*AUTO, *CANDIDATES, *GPU)
    lines = [x.split()[:2] for x in str(caught.value).splitlines() if x.startswith("format.candidates:")]
    assert [name for _, name in lines if name in FORMATS] == FORMATS[:4]
    tensor_cores = [x for x in str(caught.value).splitlines() if "tensor cores" in x]
    assert [x.partition(" no ")[2].split()[0] for x in tensor_cores] == ["nvfp4", "mxfp8"]
