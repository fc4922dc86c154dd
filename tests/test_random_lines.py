"""Any line of words plans or is refused in words: never a traceback, never without an end."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soak_lines
from fuzzing import SEED, fuzzed
from hypothesis import given, note

from diffopt.cli.unforeseen import MARK


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the lines find there, and this process as it was after them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")
    before = {number: signal.getsignal(number) for number in soak_lines.LIMITS}
    soak_lines.prepare()
    yield
    soak_lines.limit(False)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("place")
def test_a_line_of_words_plans_or_is_refused_in_words() -> None:
    codes = set()

    @fuzzed(50)
    @given(soak_lines.lines)
    def planned(line: list[str]) -> None:
        note(f"seed {SEED}")
        codes.add(soak_lines.attempt(line))

    planned()
    assert {0, 1} <= codes  # both are tried


def ends() -> None:
    print("x: is wrong (got y); mend it")
    sys.exit(2)


def hangs() -> None:
    raise soak_lines.Endless("took more than a minute")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "traceback": (lambda: print("Traceback (most recent call last):"), "says 'Traceback'"),
    "secret": (lambda: print(soak_lines.SECRET), f"says {soak_lines.SECRET!r}"),
    "unforeseen": (lambda: print(MARK), f"says {MARK!r}"),
    "terminal": (lambda: print("\x1b[31m"), r"prints '\x1b'"),
    "nothing": (lambda: None, "says nothing"),
    "code": (ends, "ends with 2"),
    "file": (lambda: print(Path("x").write_text("y")), "writes or removes {'x'}"),
    "endless": (hangs, "took more than a minute"),
}
"""What a command does, and what is found of it."""


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_neither_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, found = WRONG[case]
    monkeypatch.setattr(soak_lines, "diffopt", lambda line: act())
    with pytest.raises(AssertionError, match=re.escape(found)):
        soak_lines.attempt([])
