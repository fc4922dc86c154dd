"""Every embedded recipe twice, each time in a process and a store of its own: all that they make is the same to the byte.

    python tests/soak_fresh.py [--workers 14] [--seconds 420] [RECIPE ...]

Of a sweep each job is run by itself, and of a search its first. Sizes are small, those apart that a recipe sweeps over. What
wants a package that is not there, or a GPU, is named and left out. Exit code 1 where a file differs, a job fails, or the
`--seconds` were too few.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from conftest import composed
from soak_chains import FOR
from soak_store import content, start
from test_golden import LAUNCHED, jobs

from diffopt.cli.searchpath import bundled

SMALL = {
    "calib": ("calib.size=4", "calib.batch_size=2", "calib.chunk=2", "calib.n_steps=2"),
    "sense": ("sense.size=2",),
    "eval": ("eval.size=2", "eval.steps=4", "eval.batch_size=2", "eval.latency=false"),
    "train": (*FOR, "train.data.size=8", "train.data.batch_size=4", "train.data.chunk=4", "train.data.steps=2"),
}
"""By group, where a recipe chooses one."""


RACE = [
    *("ship.space=[{format: 'int8_sq,fp8', eval.steps: '2,4'}]", "eval.reference_steps=4", "ship.floor={psnr: 15}"),
    *(*SMALL["calib"], "hydra.sweep.dir=swept"),
]
"""Of a race, which is a sweep that chooses its jobs."""


def recipes() -> list[str]:
    """Those of the embedded models, which need no download and no GPU; of a grid's launchers the grid alone."""
    named = sorted(p.stem for p in bundled("recipes").glob("*.yaml"))
    return [n for n in named if n.startswith("emoji_") and n not in LAUNCHED] + ["quickstart"]


def asked(recipe: str, job: list[str]) -> list[str]:
    chosen = composed(f"+recipe={recipe}", *job)
    if chosen.get("ship") is not None:
        return [f"+recipe={recipe}", *RACE]
    small = [o for group, fields in SMALL.items() if chosen.get(group) is not None for o in fields]
    if (chosen.get("cache") or {}).get("search"):  # of so few steps none can be left out under the recipe's floor
        small.append("cache.search.floor={psnr: 20}")
    return [f"+recipe={recipe}", "hydra.mode=RUN", *small, *job]


def lacks(line: list[str]) -> str:
    """The module or the device without which it cannot run here: the GPU is hidden."""
    chosen = composed(*(o for o in line if not o.startswith("hydra.")))
    wants = chosen.get("export") is not None and chosen.export.get("engine") is not None
    if (chosen.get("eval") or {}).get("runtime") == "native":
        return "a GPU"
    return "tensorrt_rtx" if wants and not find_spec("tensorrt_rtx") else ""


def twice(line: list[str], root: Path, end: float) -> str:
    """What is wrong, empty where nothing is."""
    found = []
    for name in ("one", "other"):
        if time.monotonic() > end:
            return "not run: the time was out"
        place = root / name
        place.mkdir(parents=True)
        process = start(line, place, place / "store")
        said, _ = process.communicate()
        if process.returncode:
            return f"ended with {process.returncode}: {said.decode(errors='replace')[-1500:]}"
        found.append(content(place / "store"))
    one, other = found
    differ = sorted(k for k in {*one, *other} if one.get(k) != other.get(k) and not reordered(root, k))
    print(f"{' '.join(line[:1] + line[-2:])}: {len(one)} files, {len(differ)} differ", flush=True)
    return f"{len(differ)} files differ, the first {differ[0]}" if differ else ""


def reordered(root: Path, name: str) -> bool:
    """Whether it is an engine plan that has the same bytes in another order: TensorRT-RTX 1.7 lists the outputs of a graph that
    has several in no fixed order, as of the first part of recipe emoji_int8_cut, built twice from one graph."""
    plans = [root / which / "store" / name for which in ("one", "other")]
    return name.endswith(".plan") and all(p.is_file() for p in plans) and len({*(_many(p) for p in plans)}) == 1


def _many(plan: Path) -> tuple[tuple[int, int], ...]:
    """How often each byte is in it."""
    return tuple(sorted(Counter(plan.read_bytes()).items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    lines = [asked(recipe, job) for recipe in given.recipes or recipes() for job in jobs(recipe)]
    for line in [x for x in lines if lacks(x)]:
        print(f"not run: {line[0]}, for want of {lacks(line)}", flush=True)
    lines = [x for x in lines if not lacks(x)]
    with tempfile.TemporaryDirectory(prefix="diffopt-fresh-") as root, ThreadPoolExecutor(given.workers) as pool:
        results = list(pool.map(lambda i: twice(lines[i], Path(root) / str(i), end), range(len(lines))))
    wrong = [f"{' '.join(line)}: {said}" for line, said in zip(lines, results, strict=True) if said]
    print(*wrong, sep="\n")
    print(f"{len(lines)} jobs of embedded recipes, each in two fresh stores; {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
