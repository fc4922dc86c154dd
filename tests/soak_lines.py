"""Random command lines, each planned or refused in words: by many processes, for as long as they are given.

    python tests/soak_lines.py --seed 0 --lines 10000 --workers 2
    python tests/soak_lines.py --seed 0 --lines 10000 --workers 14 --seconds 420      # on 16 cores

Each worker draws by hypothesis from a seed of its own, in a directory and store of its own. Exit code 1, with the line made as
short as it goes and its seed, where one ends in a traceback, in no word, in a secret, or not within a minute; or where
`--seconds` were too few.
"""

import argparse
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from fuzzing import limits
from hypothesis import given, seed
from hypothesis import strategies as st

from diffopt.cli import unforeseen
from diffopt.cli.main import main as diffopt

LONGEST, WAITS = 60, 600
"""Seconds of a processor that no line takes, and seconds by the clock, on a machine that is busy."""
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


LIMITS = {signal.SIGPROF: f"{LONGEST} s of a processor", signal.SIGALRM: f"{WAITS} s"}


class Endless(BaseException):
    """A line that takes longer than LONGEST or WAITS."""


def prepare() -> None:
    """The working directory with a pipe and JSON that is nested too deep, a secret, and a limit of time for each line."""
    os.mkfifo("fifo")
    Path("deep.json").write_text("[" * 100_000)
    os.environ["HF_TOKEN"] = SECRET
    for number in LIMITS:
        signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    raise Endless(f"took more than {LIMITS[signal.Signals(number)]}")


def limit(on: bool) -> None:
    """Of time, for a line."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST if on else 0)
    signal.alarm(WAITS if on else 0)


def attempt(line: list[str]) -> int:
    """Plan it; the exit code. Raises AssertionError where it is neither planned nor refused in words."""
    line = [w for w in line if "\0" not in w]  # which no system passes on
    said, code, wrong = io.StringIO(), 0, []
    limit(True)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            diffopt(["plan", *line])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except Endless as e:
        wrong.append(str(e))
    except Exception:
        said.write(traceback.format_exc())
    finally:
        limit(False)
    text = said.getvalue()
    if code not in (0, 1):
        wrong.append(f"ends with {code}")
    wrong += [f"says {x!r}" for x in (unforeseen.MARK, "Traceback", SECRET) if x in text]
    wrong += [f"prints {c!r}" for c in sorted({*text}) if c < " " and c not in "\n\t"]
    if not text.strip():
        wrong.append("says nothing")
    if more := {p.name for p in os.scandir(".")} ^ {"fifo", "deep.json"}:
        wrong.append(f"writes or removes {more}")
    assert not wrong, f"diffopt plan {line}: {', '.join(wrong)}\n{text}"
    return code


def work(number: int, root: Path, first: int, many: int, end: float) -> tuple[Counter[int], str]:
    """How often each exit code came, and what is wrong."""
    place = root / str(number)
    place.mkdir()
    os.chdir(place)
    prepare()
    codes: Counter[int] = Counter()

    @seed(f"{first}/{number}")
    @limits(many, times=1)
    @given(lines)
    def planned(line: list[str]) -> None:
        if time.monotonic() < end:
            codes[attempt(line)] += 1

    try:
        planned()
    except BaseException as e:
        return codes, f"seed {first}, worker {number}: {''.join(traceback.format_exception(e))}"
    return codes, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    asked = parser.parse_args()
    for name in ("DIFFOPT_STORE", "DIFFOPT_RECIPES"):
        os.environ.pop(name, None)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    end, share = time.monotonic() + asked.seconds, -(-asked.lines // asked.workers)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="diffopt-lines-") as root, ProcessPoolExecutor(asked.workers, spawn) as pool:
        doing = [pool.submit(work, i, Path(root), asked.seed, share, end) for i in range(asked.workers)]
        results = [x.result() for x in doing]
    codes: Counter[int] = sum((found for found, _ in results), Counter())
    wrong = [said for _, said in results if said]
    print(*wrong, sep="\n")
    words = ", ".join(f"{n} {WORDS[code]}" for code, n in sorted(codes.items()))
    print(f"{codes.total()} lines of seed {asked.seed}: {words}; {len(wrong)} workers found one that is neither")
    if codes.total() < asked.lines and not wrong:
        print(f"{asked.seconds:.0f} s were too few for {asked.lines} lines")
    sys.exit(bool(wrong) or codes.total() < asked.lines)


WORDS = {0: "planned", 1: "refused"}


if __name__ == "__main__":
    main()
