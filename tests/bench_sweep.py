"""What a sweep costs beside its distinct jobs run one by one, each in a process and with a store of its own.

Prints both wall times and their ratio for the part that calibrates and quantizes, and with --pictures the wall time of the
whole sweep too. With --one-alpha, of jobs that differ in alpha alone, which costs them nothing, one is run by itself and
counted as often as there are such jobs.

Usage: bench_sweep.py DIRECTORY [--pictures] [--one-alpha] [--grid small|large] PICK ...
e.g. bench_sweep.py outputs/bench +recipe=emoji_int8_sq
     bench_sweep.py outputs/bench model=flux_dev model.weights=random calib=images calib.n_steps=2
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

GRIDS = {
    "small": ["calib.alpha=0.6,0.8,1.0", "calib.size=32,64,128", "format=int8_sq"],
    "large": ["calib.alpha=0.6,0.7,0.8,0.9,1.0", "calib.size=32,64,128", "format=int8_sq,fp8,nvfp4"],
}
QUANTIZED = ["export=null", "eval=null"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--grid", choices=GRIDS, default="small")
    parser.add_argument("--one-alpha", action="store_true")
    arguments, picks = parser.parse_known_args()
    where, grid = arguments.directory, GRIDS[arguments.grid]
    swept = diffopt(where, "sweep", *picks, *QUANTIZED, "--multirun", *grid)
    jobs = json.loads((where / "sweep" / "results.json").read_text())["jobs"]
    distinct = [j for j in jobs if not j["fell_together_with"]]
    assert not any(j["error"] for j in jobs), jobs
    print(f"sweep of {len(jobs)} jobs, {len(distinct)} distinct: {swept:.1f} s", flush=True)
    measured: dict[tuple[str, ...], float] = {}
    alone = 0.0
    for job in distinct:
        given = [f"{key}={value}" for key, value in job["overrides"].items() if f"{key}={value}" not in (*picks, *QUANTIZED)]
        key = tuple(o for o in given if not (arguments.one_alpha and o.startswith("calib.alpha=")))
        if key not in measured:
            measured[key] = diffopt(where, "alone", *picks, *QUANTIZED, *read(given))
            print(f"  alone {' '.join(given)}: {measured[key]:.1f} s", flush=True)
        alone += measured[key]
    how = f"one by one ({len(measured)} were run, of those that differ in alpha one)" if arguments.one_alpha else "one by one"
    print(f"{how}: {alone:.1f} s; calibrating and quantizing in the sweep is {alone / swept:.1f} times faster", flush=True)
    if arguments.pictures:
        print(f"the whole sweep with its pictures: {diffopt(where, 'pictures', *picks, '--multirun', *grid):.1f} s", flush=True)


def read(overrides: list[str]) -> list[str]:
    """Without alpha where the format does not read it: a single run refuses that."""
    return [o for o in overrides if not o.startswith("calib.alpha=") or "format=int8_sq" in overrides]


def diffopt(where: Path, name: str, *arguments: str) -> float:
    """Seconds of one command with a fresh store, in `where`/`name`."""
    directory = where / name
    shutil.rmtree(directory, ignore_errors=True)
    store = where / f"{name}-store"
    if store.exists():
        subprocess.run(["chmod", "-R", "u+w", store], check=True)
        shutil.rmtree(store)
    kind = "sweep" if "--multirun" in arguments else "run"
    command = [sys.executable, "-m", "diffopt", *arguments, f"hydra.{kind}.dir={directory}"]
    started = time.monotonic()
    done = subprocess.run(command, env=os.environ | {"DIFFOPT_STORE": str(store)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
