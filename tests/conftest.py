"""Fixtures that keep this machine out of a test: a fixed environment, fixed source digests, no variables of the user's.

`--golden` writes tests/golden.json anew (tests/test_golden.py); `--matrix -m ""` runs what is slow, and writes the support
matrix (tests/test_matrix.py).
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as cli.py does, before anything loads torch
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import gc
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import guardrail
import matrix_table
import other_packages
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from diffopt.cli.searchpath import bundled, register
from diffopt.jobs import job
from diffopt.machine import environment, worker
from diffopt.machine.environment import Environment
from diffopt.stage import stages
from diffopt.store.fingerprint import fingerprint
from diffopt.store.source import Source

other_packages.hide()
gc.set_threshold(200_000, 20, 20)
"""Searches for garbage are rarer than Python's, by 700: libraries and graphs are a million objects. Four files of tests took
135 s of processor time, and 125 so."""

sys.modules["cosmos_guardrail"] = guardrail.module()  # the real one needs models from the hub
LONG = ("matrix", "targets", "quickstart", "families", "cli", "runtimes", "graph", "caches", "training")
LONGEST = {f"test_{name}.py" for name in LONG}

PROBES: dict[str, Any] = {
    "numerics": {"torch": "2.11.0", "diffusers": "0.42.1", "transformers": "5.0.0", "device": "cpu+x86_64+avx2"},
    "modelopt": "0.47.0",
    "slimming": {"torchao": "0.18.0", "bitsandbytes": "0.50.2"},
    "onnx": "1.21.0",
    "onnxruntime": "1.24.0",
    "tensorrt": {"flavour": "tensorrt_rtx", "version": "1.7.1.116"},
    "simulation": None,
    "machine": {"host": "00000000", "cpu": "a CPU", "cores": 2, "gpus": []},
    "scorers": {"scikit-image": "0.25.0", "pytorch-msssim": "1.0.0", "torchmetrics": "1.9.0", "open-clip-torch": "3.3.0"},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="write tests/matrix.json and the manual's table of it anew")
    parser.addoption("--golden", action="store_true", help="write tests/golden.json anew from what the steps are keyed by now")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--matrix` what is slow alone. A family of the matrix, and each other file, go to one process: what a module's
    fixtures made is used again there. The longest begin first, so that no process ends long before the others."""
    matrix = {"test_matrix.py": "family", "test_targets.py": "family", "test_found_matrix.py": "name"}
    if config.getoption("--matrix"):
        kept = [x for x in items if x.path.name in matrix or x.get_closest_marker("matrix")]
        config.hook.pytest_deselected(items=[x for x in items if x not in {*kept}])
        items[:] = kept
    items.sort(key=lambda x: x.path.name not in LONGEST)
    for item in items:
        cell: Any = getattr(item, "callspec", None) if item.path.name in matrix else None
        of = cell.params.get(matrix[item.path.name]) if cell else None
        group = f"{item.path.name}-{of}" if of else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of xdist's has ended."""
    there = getattr(node, "workeroutput", {})
    for name, found in (("matrix", matrix_table.CELLS), ("targets", matrix_table.TARGETS)):
        for family, cells in there.get(name, {}).items():
            found.setdefault(family, {}).update(cells)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write those parts of the support matrix that were run whole and passed."""
    parts = {"cells": matrix_table.CELLS, "targets": matrix_table.TARGETS}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"matrix": parts["cells"], "targets": parts["targets"]}
    elif session.config.getoption("--matrix") and exitstatus == 0:
        from test_matrix import MODELS

        whole = {
            part: {f: {name: found[f][name] for name in matrix_table.FORMATS} for f in MODELS}
            for part, found in parts.items()
            if all(f in found and {*found[f]} == {*matrix_table.FORMATS} for f in MODELS)
        }
        for part, found in parts.items():
            if part in whole:  # and what is of no family, in some formats
                whole[part] |= {f: x for f, x in found.items() if f not in MODELS}
        if whole:
            matrix_table.write(whole, environment.machine()["cpu"])


@pytest.fixture(autouse=True, scope="module")
def frozen_libraries() -> None:
    """No collection looks again at what is there before a file's tests, libraries above all: they have many objects, and each
    step of a run collects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_variables_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIFFOPT_STORE", "DIFFOPT_RECIPES", "HYDRA_FULL_ERROR", *worker.VARIABLES):
        monkeypatch.delenv(name, raising=False)


def some(values: Iterable[Any], few: Collection[Any]) -> list[Any]:
    """What a test is parametrized with: all of it in `make matrix`, a few in every run of the tests."""
    each = [(x, x if isinstance(x, tuple) else (x,)) for x in values]
    return [pytest.param(*given, marks=[] if x in few else [pytest.mark.matrix]) for x, given in each]


@cache
def registered() -> None:
    """Once in a process: a fifth of composing was to read the launchers' settings again."""
    register()


@cache
def composed(*overrides: str) -> DictConfig:
    """What Hydra composes of these overrides, its own settings left out. Shared: not to be changed."""
    registered()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        return compose("config", [job.spelled(o) for o in overrides])


def digest_by_name(source: Source) -> str:
    return "sha256:" + fingerprint(source.name)


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """`config("+recipe=quickstart", "seed=1")` is the composed config as a dict of one's own."""
    return lambda *overrides: OmegaConf.to_container(composed(*overrides), resolve=True)


@pytest.fixture
def fixed_probes() -> dict[str, Any]:
    return dict(PROBES)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`plan("+recipe=quickstart", "seed=1")` plans these overrides as one run does.

    `probes` replaces some of the `fixed_probes`, `digest` how sources are resolved, `installed` the list of stages;
    `sweep` plans as one of several jobs.
    """
    installed_here = cache(stages)

    def planned(
        *overrides: str,
        probes: dict[str, Any] | None = None,
        digest: Callable[[Source], str | None] = digest_by_name,
        installed: list[Any] | None = None,
        sweep: bool = False,
    ) -> Any:
        values = PROBES | (probes or {})
        fixed = Environment({name: lambda value=value: value for name, value in values.items()})
        sources = type("FixedSources", (), {"digest": staticmethod(digest), "at_hand": staticmethod(lambda x: x.local)})()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(job, "Environment", lambda: fixed)
            patch.setattr(job, "Sources", lambda *_, **__: sources)
            patch.setattr(job, "stages", lambda: installed or installed_here())
            given = [job.spelled(o) for o in overrides if not o.startswith("+recipe=")]
            return job.prepare(composed(*overrides), given, dry=True, sweep=sweep).plan

    return planned


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., job.Job]:
    """`prepare("+recipe=quickstart", "seed=1")` is a recipe's job in a store of the test's own."""

    def prepared(*overrides: str) -> job.Job:
        config = composed(*overrides).copy()
        OmegaConf.update(config, "store", str(tmp_path / "store"))
        return job.prepare(config, [], dry=True, sweep=False)

    return prepared


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 TiB of free memory, as much of disk, and no GPU: what is warned of is the choices' and no machine's."""
    for name, found in (("gpus", ()), ("ram", 1 << 40), ("ram_free", 1 << 40)):
        monkeypatch.setattr(environment, name, lambda found=found: found)
    monkeypatch.setattr("diffopt.jobs.warnings.disk_usage", lambda _: SimpleNamespace(free=1 << 40))


@pytest.fixture
def no_handlers() -> Iterator[None]:
    """No log handlers at first, and as they were at the end: a run in this process puts up those of its directory."""
    loggers = [logging.getLogger(), logging.getLogger("diffopt")]
    before = [([*x.handlers], x.level) for x in loggers], logging.raiseExceptions
    for x in loggers:
        x.handlers = []
    yield
    for x, (handlers, level) in zip(loggers, before[0], strict=True):
        x.handlers = handlers
        x.setLevel(level)
    logging.raiseExceptions = before[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this user may mount one."""
    where = tmp_path / "disk"
    where.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def pipeline_directory() -> Callable[[Path], Path]:
    """Makes a directory that passes for a FLUX pipeline while nothing loads it."""

    def make(where: Path) -> Path:
        (where / "transformer").mkdir(parents=True)
        (where / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        (where / "transformer" / "weights.safetensors").write_bytes(b"weights")
        return where

    return make
