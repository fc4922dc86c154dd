"""Any line of words plans or is refused in words: never a traceback, never without an end."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import soak_lines
from fuzzing import SEED, fuzzed
from hypothesis import given, note


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


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("wrong", ["Traceback (most recent call last):", soak_lines.SECRET, "\x1b[31m", ""])
def test_what_is_neither_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_lines, "diffopt", lambda line: print(wrong))
    with pytest.raises(AssertionError):
        soak_lines.attempt([])
