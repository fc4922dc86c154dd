"""What a sweep costs beside its distinct jobs run one by one, each in a process and with a store of its own.

Prints both wall times and their ratio for the part that calibrates and quantizes, and with --pictures the wall time of the
whole sweep too. With --one-alpha, of jobs that differ in alpha alone, which costs them nothing, one is run by itself and
counted as often as there are such jobs. With --gpus as many commands run at a time as there are GPUs, each on its own. What
was measured is kept in DIRECTORY/seconds.json: a benchmark that was stopped goes on; remove the directory to measure again.

Usage: bench_sweep.py DIRECTORY [--pictures] [--one-alpha] [--grid small|large ...] [--gpus 0 1 ...] -- PICK ...
e.g. bench_sweep.py outputs/bench -- +recipe=emoji_int8_sq
     bench_sweep.py outputs/bench --grid small large -- model=flux_dev model.weights=random calib=images calib.n_steps=2
"""

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

GRIDS = {
    "small": ["calib.alpha=0.6,0.8,1.0", "calib.size=32,64,128", "format=int8_sq"],
    "large": ["calib.alpha=0.6,0.7,0.8,0.9,1.0", "calib.size=32,64,128", "format=int8_sq,fp8,nvfp4"],
}
QUANTIZED = ["export=null", "eval=null"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("picks", nargs="+")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--grid", nargs="+", choices=GRIDS, default=["small"])
    parser.add_argument("--one-alpha", action="store_true")
    parser.add_argument("--gpus", nargs="+", default=[""])
    given = parser.parse_args()
    bench = Bench(given.directory, given.picks, given.gpus)
    with ThreadPoolExecutor(len(given.gpus)) as pool:
        grids = {grid: pool.submit(bench.swept, grid) for grid in given.grid}
        distinct = {grid: [j for j in swept.result() if not j["fell_together_with"]] for grid, swept in grids.items()}
        keys = {grid: [key(j, bench.picks, given.one_alpha) for j in jobs] for grid, jobs in distinct.items()}
        alone: dict[str, Future[float]] = {}
        for name in sorted({k for found in keys.values() for k in found}, key=longest_first):
            alone[name] = pool.submit(bench.seconds, f"alone {name}", [*QUANTIZED, *name.split()])
        for grid, found in keys.items():
            one_by_one, swept = sum(alone[k].result() for k in found), bench.measured[f"sweep {grid}"]
            how = f"{len(set(found))} were run, of those that differ in alpha one" if given.one_alpha else "all were run"
            print(
                f"{grid} grid, {len(found)} distinct jobs: one by one {one_by_one:.1f} s ({how}), in the sweep {swept:.1f} s: "
                f"{one_by_one / swept:.1f} times faster",
                flush=True,
            )
    for grid in given.grid if given.pictures else ():
        whole = bench.seconds(f"pictures {grid}", ["--multirun", *GRIDS[grid]])
        print(f"the whole sweep of the {grid} grid with its pictures: {whole:.1f} s", flush=True)


class Bench:
    """Commands with fresh stores in a directory, each measured once."""

    def __init__(self, where: Path, picks: list[str], gpus: list[str]):
        self.where, self.picks, self.file = where, picks, where / "seconds.json"
        where.mkdir(parents=True, exist_ok=True)
        self.measured: dict[str, float] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.lock, self.free = threading.Lock(), queue.SimpleQueue[str]()
        for gpu in gpus:
            self.free.put(gpu)

    def swept(self, grid: str) -> list[dict]:
        """The jobs of the swept grid."""
        self.seconds(f"sweep {grid}", [*QUANTIZED, "--multirun", *GRIDS[grid]])
        jobs: list[dict] = json.loads((self.where / f"sweep_{grid}" / "results.json").read_text())["jobs"]
        assert not any(j["error"] for j in jobs), jobs
        return jobs

    def seconds(self, name: str, arguments: list[str]) -> float:
        """Of one command with a store of its own, which is removed."""
        if name not in self.measured:
            with self._gpu() as gpu:
                found = self._run(re.sub(r"[^\w.]+", "_", name), arguments, gpu)
            with self.lock:
                self.measured[name] = found
                self.file.write_text(json.dumps(self.measured, indent=1))
            print(f"  {name}: {found:.1f} s", flush=True)
        return self.measured[name]

    @contextmanager
    def _gpu(self):
        gpu = self.free.get()
        try:
            yield gpu
        finally:
            self.free.put(gpu)

    def _run(self, name: str, arguments: list[str], gpu: str) -> float:
        directory, store = self.where / name, self.where / f"{name}-store"
        remove(directory)
        remove(store)
        kind = "sweep" if "--multirun" in arguments else "run"
        command = [sys.executable, "-m", "diffopt", *self.picks, *arguments, f"hydra.{kind}.dir={directory}"]
        of_gpu = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        started = time.monotonic()
        done = subprocess.run(command, env=os.environ | of_gpu | {"DIFFOPT_STORE": str(store)}, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        remove(store)
        return seconds


def key(job: dict, picks: list[str], one_alpha: bool) -> str:
    """The overrides of a job by itself: without alpha where the format does not read it, which a single run refuses."""
    given = [
        f"{name.lstrip('~')}={value}" for name, value in job["overrides"].items()
    ]  # ~export=null is what export=null becomes
    given = [o for o in given if o not in (*picks, *QUANTIZED)]
    reads_alpha = "format=int8_sq" in given
    kept = [o for o in given if not o.startswith("calib.alpha=") or (reads_alpha and not one_alpha)]
    return " ".join(kept)


def longest_first(name: str) -> int:
    return -next(int(o.partition("=")[2]) for o in name.split() if o.startswith("calib.size="))


def remove(path: Path) -> None:
    if path.exists():
        subprocess.run(["chmod", "-R", "u+w", path], check=True)
        shutil.rmtree(path)


if __name__ == "__main__":
    main()
