"""Whatever goes wrong ends in a line and exit code 1: an error that nothing foresaw too, whose traceback is in a file."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffopt.cli import plan, unforeseen
from diffopt.cli.main import COMMANDS, main
from diffopt.jobs import job
from diffopt.store.store import Store


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_handlers: None
) -> Callable[..., str]:
    """`refused("plan", ...)` is the one line that a command ends with, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*arguments])
        err = capsys.readouterr().err
        assert (end.value.code, err.count("\n")) == (1, 1), err
        return err

    return said


def raises(error: Exception) -> Callable[..., Any]:
    def instead(*_: Any, **__: Any) -> Any:
        raise error

    return instead


def traceback_of(said: str) -> str:
    found = re.search(r"; its traceback is in (\S+)$", said)
    assert found, said
    return Path(found[1]).read_text()


ERRORS = [
    ValueError("of a library\nwith a second line"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere"),
    KeyError("name"),
    RuntimeError(""),
    TypeError("unhashable"),
    RecursionError("too deep"),
    ArithmeticError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_of_a_run_names_the_runs_log(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    monkeypatch.setattr(job, "run", raises(error))
    said = refused("+recipe=emoji_fp8", f"hydra.run.dir={tmp_path}/mine")
    assert said.startswith(f"diffopt: {unforeseen.MARK}: {type(error).__name__}")
    assert said.endswith("its traceback is in mine/diffopt.log\n")
    assert f"Traceback (most recent call last):\n  File {__file__!r}".replace("'", '"')[:34] in traceback_of(said)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_of_another_command_names_a_file_of_its_own(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(plan, "prepare", raises(error))
    said = refused("plan", "+recipe=emoji_fp8")
    assert said.startswith(f"diffopt: {unforeseen.MARK}: {type(error).__name__}")
    assert "(got diffopt plan +recipe=emoji_fp8)" in said
    assert "in instead" in traceback_of(said)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_in_a_traceback(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setitem(COMMANDS, command, raises(LookupError("none of them")))
    assert refused(command, "x").startswith(f"diffopt: {unforeseen.MARK}: LookupError: none of them (got diffopt {command} x);")


def test_without_room_for_a_file_the_line_says_how_to_see_the_traceback(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "prepare", raises(KeyError("name")))
    monkeypatch.setattr(unforeseen.tempfile, "mkstemp", raises(OSError(errno.ENOSPC, "No space left on device")))
    assert refused("plan", "+recipe=emoji_fp8").endswith("; HYDRA_FULL_ERROR=1 shows its traceback\n")


def test_a_file_that_may_not_be_read_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.json").touch()
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.json"))
    monkeypatch.setattr(plan, "prepare", raises(error))
    monkeypatch.setattr(unforeseen.os, "access", lambda *_: False)
    assert refused("plan", "+recipe=emoji_fp8").startswith("a.json: cannot be read (permission denied) (got ")


@pytest.mark.parametrize("flags", [("--multirun", "--cfg", "job"), ("-m", "--info"), ("--run", "--multirun")])
def test_two_flags_of_what_to_do_are_refused(refused: Callable[..., str], flags: tuple[str, ...]) -> None:
    said = refused("+recipe=quickstart", "calib.alpha=0.2,0.8", *flags)
    assert said.startswith("flags: of --run, --multirun, --cfg and --info one goes at a time (got ")


@pytest.mark.parametrize("before", [(), ("plan",), ("-m",), ("+recipe=quickstart",)])
def test_an_override_without_a_key_is_refused(refused: Callable[..., str], before: tuple[str, ...]) -> None:
    assert refused(*before, "=3") == "override: names no field (got '=3'); write key=value\n"


LONG = "x" * 300


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("model.source", ("plan", "+recipe=quickstart", f"model.source={LONG}")),
        ("calib.prompts", ("plan", "+recipe=quickstart", f"calib.prompts={LONG}")),
        ("model.parts", ("plan", "+recipe=quickstart", f"model.parts={{vae: {LONG}}}")),
        ("--config-dir", ("plan", "+recipe=quickstart", f"--config-dir={LONG}")),
        ("diffopt", ("inspect", LONG)),
    ],
)
def test_a_text_that_is_too_long_to_name_a_file_is_told(
    refused: Callable[..., str], key: str, arguments: tuple[str, ...]
) -> None:
    said = f"no file can have so long a name (got 300 characters, '{LONG[:40]}'...); check the path\n"
    assert refused(*arguments) == f"{key}: {said}"


@pytest.mark.parametrize("override", ["hydra.run.dir=/proc/no/run", "hydra.sweep.dir=/proc/no/sweep"])
def test_a_directory_of_a_run_that_cannot_be_made_is_named(refused: Callable[..., str], override: str) -> None:
    sweep = ["-m"] if "sweep" in override else []
    said = refused("+recipe=emoji_fp8", override, *sweep)
    assert said == "outputs: cannot be written (no such file or directory) (got '/proc/no'); run where you may write\n"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/no"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_store_that_cannot_be_made_is_said_to_be_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: OSError) -> None:
    monkeypatch.setattr(Path, "mkdir", raises(error))
    store = Store(tmp_path / "store")
    for act in (store.open, lambda: store.refer(tmp_path, []), lambda: store.lock("0").__enter__()):
        with pytest.raises(Exception, match=r"^store: (cannot be written|is not a directory)"):
            act()
