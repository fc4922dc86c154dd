"""What comes from strangers runs nothing, reads no secret, leaves its directory nowhere, and takes neither long nor much."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import some
from PIL import Image

from diffopt.store.assets import ROOT

SECRET = "sesame-open-7"
HEAD = "# @package _global_\ndefaults:\n  - quickstart\n"
SECONDS, WAITS, BYTES, RESIDENT = 60, 600, 4 << 30, 1 << 30
"""SECONDS of a processor end what works without an end, WAITS what waits; a machine under load is no failure. BYTES are of the
address space, of which libraries take their share, and RESIDENT what is taken of memory. With `-rP` pytest prints what each
took."""


MEASURED = """
import re, sys
from pathlib import Path
from diffopt.cli.main import main

try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    Path(PEAK).write_text(peak[1])
"""
"""The most memory that the process itself had: what the system tells of one that has ended is at least its parent's."""


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def said(*arguments: str, cwd: Path, code: int = 1) -> str:
    """What a command says, which has to be no traceback, of a few lines, without what steers a terminal."""
    environment = os.environ | {"HF_TOKEN": SECRET, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("w+") as peak:
        command = [sys.executable, "-c", MEASURED.replace("PEAK", repr(peak.name)), *arguments]
        ran = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output, preexec_fn=limited)
        ends = threading.Timer(WAITS, ran.kill)
        ends.start()
        _, status, took = os.wait4(ran.pid, 0)
        ends.cancel()
        ran.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="surrogateescape")
        resident = int(peak.read() or 0) << 10
    print(f"{took.ru_utime + took.ru_stime:.1f} s of a processor, {resident >> 20} MiB: {text}")
    assert ran.returncode == code, text
    assert 0 < resident <= RESIDENT
    assert "Traceback" not in text
    assert "does not know" not in text
    assert SECRET not in text
    assert not {c for c in text if c < " " and c not in "\n\t"}
    assert text.count("\n") <= 3 or code == 0, text
    return text


def recipe(root: Path, text: str | bytes) -> None:
    (root / "recipes").mkdir(exist_ok=True)
    (root / "recipes" / "theirs.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


def bomb() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return HEAD + "\n".join(lines)


RECIPES: list[tuple[str, str | bytes, str]] = [
    ("runs", HEAD + "hydra: {callbacks: {x: {_target_: os.mkdir, path: ran}}}", "theirs.yaml: a recipe has picks and values"),
    ("environment", HEAD + "hydra: {job: {env_set: {LD_PRELOAD: x}}}", "theirs.yaml: a recipe has picks and values"),
    ("shell", HEAD + "hydra: {launcher: {setup: [touch ran]}}", "theirs.yaml: a recipe has picks and values"),
    ("secret", HEAD + "format: {exclude: ['${oc.env:HF_TOKEN}']}", "the variable is not given to recipes"),
    ("within", HEAD + "calib: {prompts: 'x${oc.env:HF_TOKEN,y}'}", "the variable is not given to recipes"),
    ("unset", HEAD + "calib: {prompts: '${oc.env:SCRATCH}'}", "the variable is not set"),
    ("up", "# @package _global_\ndefaults: [../outside]\n", "extends what is not there"),
    ("text", "# @package _global_\ndefaults: quickstart\n", "its defaults are no list (got 'quickstart')"),
    ("latin", (HEAD + "# caf\xe9\n").encode("latin-1"), "is not UTF-8 but cp1252"),
    ("bomb", bomb(), "has aliases that stand for too many values"),
    ("deep", HEAD + "a: " + "[" * 100_000 + "]" * 100_000, "is nested too deep"),
    ("long", HEAD + "#" * (2 << 20), "is no config file of this size"),
]


@pytest.mark.parametrize(("text", "line"), [pytest.param(t, x, id=n) for n, t, x in RECIPES])
def test_a_recipe_of_a_stranger_is_refused_in_a_line(text: str | bytes, line: str, tmp_path: Path) -> None:
    recipe(tmp_path, text)
    (tmp_path / "outside.yaml").write_text(HEAD)
    assert line in said("plan", "+recipe=theirs", cwd=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"recipes", "outside.yaml"}


OVERRIDES = [
    (["+recipe=../outside"], "recipe: is no name of an option (got '../outside')"),
    (["+recipe=quickstart", "format=../calib/emoji"], "format: is no name of an option"),
    (["+recipe=quickstart", "++model=x"], "model: is chosen by the name of an option (got x with ++)"),
    (["+recipe=a\x1b[31mb"], r"a\x1b[31mb"),
    (["\x1b]0;owned\x07"], r"\x1b]0;owned"),
    (["+recipe=quickstart", "calib.prompts=fifo"], "it is no plain file"),
    (["+recipe=quickstart", "calib.prompts=/dev/zero"], "it is no plain file"),
    (["+recipe=quickstart", "calib.prompts=deep.json"], "is nested too deep"),
    (["+recipe=quickstart", "calib.prompts=wide.csv"], "field larger than field limit"),
    (["+recipe=quickstart", "calib.prompts=half.json"], "a lone surrogate"),
    (["+recipe=quickstart", "calib.prompts=long.txt"], "holds a prompt of 200000 characters"),
    (["+recipe=quickstart", "format=8"], "format: is chosen by the name of an option"),
    (["+recipe=quickstart", "+sense=null"], "sense: is chosen by the name of an option"),
    (["+recipe=null"], "recipe: is chosen by the name of an option"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    os.mkfifo(root / "fifo")
    (root / "outside.yaml").write_text(HEAD)
    (root / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (root / "wide.csv").write_text(f"prompt\n{'x' * 200_000}\n")
    (root / "half.json").write_text('["a \\ud800 b"]')
    (root / "long.txt").write_text("x" * 200_000)
    return root


@pytest.mark.parametrize(("overrides", "line"), OVERRIDES, ids=[repr(o[-1]) for o, _ in OVERRIDES])
def test_a_hostile_override_is_refused_in_a_line(overrides: list[str], line: str, hostile: Path) -> None:
    command = ["plan", *overrides] if overrides[0].startswith("+") else overrides
    assert line in said(*command, cwd=hostile)


@pytest.mark.parametrize(("override", "key"), [("hydra.launcher=null", "launcher"), ("hydra.sweeper=1", "sweeper")])
def test_a_part_of_hydra_that_is_none_is_refused_in_a_line(override: str, key: str, tmp_path: Path) -> None:
    assert f"hydra.{key}: is chosen by the name" in said("+recipe=quickstart", "-m", override, cwd=tmp_path)


def test_a_directory_that_no_run_can_have_is_refused_in_a_line(tmp_path: Path) -> None:
    assert "outputs: cannot be written" in said("+recipe=quickstart", "hydra.run.dir=/proc/x", cwd=tmp_path)


def test_a_secret_in_the_name_of_a_runs_directory_is_refused_and_makes_none(tmp_path: Path) -> None:
    line = said("+recipe=quickstart", "hydra.run.dir=outputs/${oc.env:HF_TOKEN}", cwd=tmp_path)
    assert line.startswith("hydra.run.dir: the variable is not given to recipes")
    assert not [*tmp_path.iterdir()]


def test_a_refused_override_leaves_a_finished_runs_directory_as_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    for name in ("diffopt.log", "run.json", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        (run / name).write_text(f"{name} of the finished run\n")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    said("+recipe=quickstart", "calib.alpha=7", f"hydra.run.dir={run}", cwd=tmp_path)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_refused_override_leaves_no_directory(tmp_path: Path) -> None:
    said("+recipe=quickstart", "calib.alpha=7", cwd=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_pictures_that_would_fill_the_memory_are_refused_by_eval(tmp_path: Path) -> None:
    large = Image.fromarray(np.zeros((8200, 8200), np.uint8))
    large.save(tmp_path / "large.png")
    from diffopt.data import picture

    for read in (picture.opened, picture.extent, picture.pixels):
        with pytest.raises(ValueError, match="8200 x 8200 = 67240000 pixels, and at most 67108864 are read"):
            read(tmp_path / "large.png")


def test_a_list_of_pictures_that_is_a_pipe_or_nested_too_deep_is_refused_in_a_line(hostile: Path) -> None:
    for name in ("fifo", "deep.json"):
        assert said("eval", "--data-path", name, cwd=hostile).startswith("--data-path: ")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 8 << 30)


CONFIGS = ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
HOSTILE = [(config, how) for config in CONFIGS for how in (deep, os.mkfifo, zeros, huge)]


@pytest.mark.parametrize(("config", "how"), some(HOSTILE, [(CONFIGS[0], deep), (CONFIGS[1], os.mkfifo), (CONFIGS[3], huge)]))
def test_a_pipeline_of_a_stranger_is_refused_in_a_line(config: str, how: Callable[[Path], None], tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(ROOT / "emoji" / "emoji-flux", tmp_path / "theirs"))
    (theirs / config).unlink()
    how(theirs / config)
    asked = ("model=emoji_flux", f"model.source={theirs}", "format=fp8", "calib=emoji", "calib.size=1", "calib.batch_size=1")
    line = said("plan", *asked, cwd=tmp_path)
    assert "model.source: " in line
    assert config in line
