"""Any line of words plans or is refused in words: never a traceback, never without an end."""

import os
import random
import signal
from collections.abc import Iterator

import pytest

from diffopt.cli import unforeseen
from diffopt.cli.main import main

SEED = int(os.environ.get("DIFFOPT_SEED", "0"))
MANY = int(os.environ.get("DIFFOPT_LINES", "60"))
"""10,000 by `make soak`."""
LONGEST = 60
"""Seconds of a line."""

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


def line(draw: random.Random) -> list[str]:
    words = []
    if draw.random() < 0.9:
        words.append(f"{draw.choice(['+', '+', '+', '', '++', '~'])}recipe={draw.choice(RECIPES)}")
    for _ in range(draw.randrange(4)):
        key = draw.choice(GROUPS if draw.random() < 0.4 else FIELDS)
        words.append(f"{draw.choice(['', '', '', '+', '++', '~'])}{key}={draw.choice(VALUES)}")
    if draw.random() < 0.2:
        words.append(draw.choice(FLAGS))
    return words


@pytest.fixture
def _bounded() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("took too long"))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize("block", range((MANY + 19) // 20))
def test_a_line_of_words_plans_or_is_refused_in_words(
    block: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "sesame-open-7")
    os.mkfifo("fifo")
    with open("deep.json", "w") as f:
        f.write("[" * 100_000)
    for number in range(20 * block, 20 * block + 20):
        words = ["plan", *line(random.Random(f"{SEED}/{number}"))]
        signal.alarm(LONGEST)
        code: object = 0
        try:
            main(words)
        except SystemExit as e:
            code = e.code
        signal.alarm(0)
        said = "".join(capsys.readouterr())
        told = f"{words} of seed {SEED}, line {number}: {said}"
        assert code in (0, 1), told
        assert unforeseen.MARK not in said, told
        assert "Traceback" not in said, told
        assert "sesame-open-7" not in said, told
        assert not {c for c in said if c < " " and c not in "\n\t"}, told
        assert said.strip(), told
    assert {p.name for p in os.scandir(".")} == {"fifo", "deep.json"}
