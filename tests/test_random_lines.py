"""Any line of words plans or is refused in words: never a traceback, never without an end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import SEED, fuzzed
from hypothesis import given, note
from hypothesis import strategies as st

from diffopt.cli import unforeseen
from diffopt.cli.main import main

LONGEST = 60
"""Seconds of a line."""
SECRET = "sesame-open-7"

RECIPES = [
    "quickstart",
    "emoji_fp8",
    "emoji_fp4_qad",
    "emoji_search",
    "emoji_cache",
    "sdxl_int8",
    "flux_fp4",
    "wan_fp8",
    "nowhere",
]
GROUPS = [
    "model",
    "format",
    "calib",
    "sense",
    "cache",
    "train",
    "export",
    "eval",
    "recipe",
    "hydra",
    "store",
    "seed",
    "objective",
]
FIELDS = [
    *(
        "model.source",
        "model.dtype",
        "model.lora",
        "model.height",
        "format.exclude",
        "format.name",
        "calib.alpha",
        "calib.size",
    ),
    *(
        "calib.prompts",
        "cache.every",
        "cache.blocks",
        "train.steps",
        "train.lora",
        "train.lora.rank",
        "export.kind",
        "eval.runtime",
    ),
    *("eval.metrics", "eval.compare", "eval.gates", "eval.prompts", "hydra.launcher", "hydra.sweeper", "hydra.run.dir"),
    *(
        "hydra/launcher",
        "hydra/sweeper",
        "hydra.mode",
        "hydra.job.name",
        "hydra.callbacks.sweep.floor",
        "a.b",
        "",
        "model.",
        ".x",
    ),
]
VALUES = [
    *("fp8", "int8_sq", "emoji", "null", "1", "-1", "0.5", "1e999", "nan", "true", "[]", "[1,2]", "{}", "{a: 1}", "x", "''"),
    *(
        '""',
        "???",
        "${seed}",
        "${model}",
        "${oc.env:HF_TOKEN}",
        "${oc.env:HOME}",
        "${nowhere}",
        "${",
        "[",
        "{a:",
        "../x",
        "/dev/null",
    ),
    *("fifo", "deep.json", "a b", "é", "\x1b[31m", "\udcff", "x" * 3000, "1,2", "range(1,3)", "choice(fp8,int8_sq)", "glob(*)"),
    *(
        "[[[[]]]]",
        "{a: {b: {c: 1}}}",
        "9" * 40,
        "0x10",
        "1_000",
        "asset:prompts/evaluation.txt",
        "hub:",
        "@",
        "~",
        "%s",
        "\\",
        "\n",
    ),
]
FLAGS = ["--multirun", "-m", "--config-dir", "--config-dir=.", "--nothing", "-x", "--"]


signs = st.sampled_from(["", "", "", "+", "++", "~"])
keys = st.sampled_from(FIELDS) | st.sampled_from(GROUPS) | st.text(max_size=12)
values = st.sampled_from(VALUES) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=20)
recipes = st.builds("{}recipe={}".format, st.sampled_from(["+", "+", "+", "", "++", "~"]), st.sampled_from(RECIPES))
overrides = st.builds("{}{}={}".format, signs, keys, values)
words = overrides | st.sampled_from(FLAGS) | st.text(max_size=8)
lines = st.builds(lambda first, more: [*first, *more], st.lists(recipes, min_size=0, max_size=1), st.lists(words, max_size=3))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory with a pipe and JSON that is nested too deep, and a limit of time for each line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    os.mkfifo("fifo")
    Path("deep.json").write_text("[" * 100_000)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("took too long"))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("place")
def test_a_line_of_words_plans_or_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    @fuzzed(50)
    @given(lines)
    def planned(line: list[str]) -> None:
        line = [w for w in line if "\0" not in w]  # which no system passes on
        note(f"seed {SEED}: diffopt plan {line}")
        signal.alarm(LONGEST)
        code: object = 0
        try:
            main(["plan", *line])
        except SystemExit as e:
            code = e.code
        signal.alarm(0)
        said = "".join(capsys.readouterr())
        note(said)
        asked = code == 2 and said.startswith("usage")
        assert code in (0, 1) or asked
        assert unforeseen.MARK not in said
        assert "Traceback" not in said
        assert SECRET not in said
        assert not {c for c in said if c < " " and c not in "\n\t"}
        assert said.strip()
        assert {p.name for p in os.scandir(".")} == {"fifo", "deep.json"}

    planned()
