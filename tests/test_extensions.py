"""Marks of builds that were killed: removed, and those of builds that go on are left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffopt.machine import extensions


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(extensions, "WAIT", 0.01)
    extensions.free.cache_clear()
    found = tmp_path / "py311_cu130" / "modelopt_cuda_ext_fp8" / "lock"
    found.parent.mkdir(parents=True)
    found.touch()
    return found


def aged(mark: Path) -> None:
    then = time.time() - extensions.PATIENCE - 60
    os.utime(mark, (then, then))


def test_what_a_killed_build_left_is_removed_and_said(mark: Path, caplog: pytest.LogCaptureFixture) -> None:
    aged(mark)
    caplog.set_level("INFO")
    extensions.free()
    assert not mark.exists()
    assert str(mark) in caplog.text


def test_one_that_a_process_holds_stays_however_old(mark: Path) -> None:
    aged(mark)
    code = f"import sys; f = open({str(mark)!r}); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        extensions.free()
        assert mark.exists()
    extensions.free.cache_clear()
    extensions.free()
    assert not mark.exists()


def test_a_fresh_one_that_nobody_here_holds_is_waited_for(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another machine's, which ends its build meanwhile, or never."""
    looks: list[float] = []

    def look(until: Callable[[], None]) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                until()

        return sleep

    monkeypatch.setattr(extensions.time, "sleep", look(mark.unlink))
    extensions.free()
    assert len(looks) == 3
    mark.touch()
    looks.clear()
    extensions.free.cache_clear()
    monkeypatch.setattr(extensions.time, "sleep", look(lambda: aged(mark)))
    extensions.free()
    assert len(looks) == 3
    assert not mark.exists()


def test_torchs_own_builder_holds_its_mark_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.file_baton import FileBaton

    baton = FileBaton(str(tmp_path / "lock"))
    assert baton.try_acquire()
    assert extensions._held(tmp_path / "lock")
    baton.release()
