"""A long step shows that it goes on: lines where output is piped, at once and as a bar on a terminal."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manual import ROOT

from diffopt.machine import progress

STEPS = """
import logging, sys, time
from diffopt.machine import output, progress
progress.EVERY = 0.2
log = logging.getLogger("diffopt")
console = logging.StreamHandler(sys.stdout)
console.setFormatter(logging.Formatter(sys.argv[1] + "%(message)s"))
console.setLevel(logging.INFO)
log.addHandler(console)
log.setLevel(logging.DEBUG)
with output.to_log(), progress.step("reference"):
    print("a library says something")
    with progress.bar("reference", 64) as tick:
        for _ in range(24):
            tick()
        time.sleep(0.7)
    time.sleep(0.5)
with output.to_log(), progress.step("build"):
    time.sleep(0.5)
with progress.step("plan"):
    pass
log.info("ended")
"""
LINE = re.compile(r"(\w+)(?: (\d+)/(\d+))?, (\d+) s")


def test_half_a_minute_never_passes_without_a_line() -> None:
    assert progress.EVERY <= 30


def test_where_output_is_piped_a_long_step_says_how_far_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, ""], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    found = [m.groups()[:3] for line in lines if (m := LINE.fullmatch(line))]
    assert len(found) == len(lines)  # what libraries print is not among them
    assert list(dict.fromkeys(found)) == [("reference", "24", "64"), ("reference", None, None), ("build", None, None)]
    assert found.count(("reference", "24", "64")) >= 2  # a single tick may take longer than that
    assert (last, done.stderr) == ("ended", "")


def test_a_job_of_several_says_which_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, "[3] "], capture_output=True, text=True, check=True)
    assert all(line.startswith("[3] ") for line in done.stdout.splitlines())


def on_a_terminal(*command: str, cwd: Path, until: str = "", both: bool = True) -> str:
    """What it says on a terminal. `until` ends it where that was said."""
    ours, its = pty.openpty()
    run = subprocess.Popen(command, cwd=cwd, stdout=its if both else subprocess.DEVNULL, stderr=its, close_fds=True)
    os.close(its)
    said = ""
    while True:
        try:
            more = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        said += more.decode(errors="replace")
        if until and until in said:
            run.terminate()
    run.wait()
    os.close(ours)
    return said


def test_a_terminal_has_a_bar_and_no_lines(tmp_path: Path) -> None:
    said = on_a_terminal(sys.executable, "-c", STEPS, "", cwd=tmp_path)
    assert "24/64" in said
    assert "build" in said
    assert not LINE.search(said)


def test_where_only_the_output_is_piped_there_are_lines_in_it_and_a_bar_on_the_terminal(tmp_path: Path) -> None:
    code = STEPS.replace("sys.stdout)", "open('said', 'w'))")
    said = on_a_terminal(sys.executable, "-c", code, "", cwd=tmp_path, both=False)
    assert "24/64" in said
    assert "reference 24/64, " in (tmp_path / "said").read_text()


def test_a_terminal_says_at_once_that_a_run_is_loading(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "diffopt", "+recipe=emoji_int8_sq")
    said = on_a_terminal(*command, "calib.alpha=1.5", cwd=tmp_path)
    assert said.splitlines()[0] == "loading ..."
    assert "calib.alpha: " in said
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:], "calib.alpha=1.5"], cwd=tmp_path, capture_output=True
    )
    assert b" torch\n" not in loaded.stderr  # it comes before what takes long
    said = on_a_terminal(*command, cwd=tmp_path, until="embed")
    assert said.splitlines()[0] == "loading ..."
    assert re.search(r"load +\S*━", said)  # the first step, while it goes on


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["+recipe=quickstart", "--cfg", "job"], ["plan", "+recipe=emoji_fp8"]]
)
def test_what_runs_nothing_loads_nothing(arguments: list[str], tmp_path: Path) -> None:
    said = on_a_terminal(sys.executable, "-m", "diffopt", *arguments, cwd=tmp_path)
    assert "loading" not in said


def test_a_pipe_has_no_word_of_loading(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffopt", "+recipe=emoji_int8_sq", "calib.alpha=1.5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "loading" not in done.stdout + done.stderr


# make

PYTHON = """#!/bin/sh
case "$1 $2" in
"--version ") echo Python 3.11.7 ;;
"-m venv") mkdir -p "$3/bin" "$3/lib"; for x in pip python diffopt; do cp "$0" "$3/bin/$x"; done ;;
"install --quiet") case "$*" in *"$FAILS"*) exit 3 ;; esac ;;
"-c "*) exit $OLD ;;
"+recipe=quickstart ") echo the quickstart ;;
esac
"""


def made(where: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make demo` with a Python that installs nothing."""
    (where / "python").write_text(PYTHON)
    (where / "python").chmod(0o755)
    if not (where / "pyproject.toml").exists():  # the installation is as old as that
        (where / "pyproject.toml").touch()
        (where / "tests").mkdir()
        (where / "tests" / "constraints.txt").write_text("torch==2.14.1\ntorchvision==0.29.1\n")
    command = ["make", "-f", str(ROOT / "Makefile"), "demo", f"PYTHON={where / 'python'}"]
    ours = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}  # of the make that tests
    env = {**ours, "FAILS": "nothing fails", "OLD": "0", **variables}
    return subprocess.run(command, cwd=where, capture_output=True, text=True, env=env)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_demo_says_what_it_is_doing_and_how_to_go_on(tmp_path: Path) -> None:
    done = made(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "installing diffopt into .venv: about 8 GB, and a few minutes with a fast network",
        "1 of 4: a virtual environment with Python 3.11.7 and the newest pip",
        "2 of 4: torch 2.14.1 and torchvision 0.29.1: most of it",
        "3 of 4: diffopt, with the engine builder and what tests need",
        "4 of 4: bytecode of all that",
        "running diffopt +recipe=quickstart: a line for each step, one to three minutes on 2 cores",
        "the quickstart",
        "the report is a page for a browser. To go on: source .venv/bin/activate, then diffopt ls",
    ]
    assert made(tmp_path).stdout.splitlines() == done.stdout.splitlines()[5:]  # what is installed is not installed again


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_demo_stops_where_an_installation_fails(tmp_path: Path) -> None:
    done = made(tmp_path, FAILS="torch torchvision")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith("2 of 4")
    assert not (tmp_path / ".venv/installed").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_demo_refuses_an_old_python_before_it_makes_anything(tmp_path: Path) -> None:
    done = made(tmp_path, OLD="1")
    assert done.returncode != 0
    assert done.stdout.startswith("make: Python 3.11 or newer is needed (got Python 3.11.7); name one")
    assert not (tmp_path / ".venv").exists()
