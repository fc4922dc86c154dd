"""Kills a small chain at random moments, and lets several processes make it at once.

A store has to come out as one that was left alone.

    python tests/soak_store.py --seed 0 --kills 100 --processes 8 --minutes 10

Prints a line each time, and the seed and the moment of a kill after which something was lost. Exit code 1 then.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEW = [
    "eval.prompts=few.txt",
    "eval.size=2",
    "eval.steps=2",
    "eval.metrics=[psnr]",
    "calib.prompts=few.txt",
    "calib.size=2",
    "calib.n_steps=2",
]
CHAINS = [
    ["+recipe=emoji_fp8", "export=null", *FEW],
    [
        "+recipe=emoji_fp4_qad",
        *FEW,
        "train.steps=6",
        "train.warmup=2",
        "train.save_every=1",
        "train.validation=null",
        "train.data.size=4",
    ],
]


def start(arguments: list[str], root: Path, store: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"DIFFOPT_STORE": str(store), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "diffopt", *arguments]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[bytes], what: str) -> None:
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{what}: ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}")


def content(store: Path) -> dict[str, bytes]:
    """Of all that does not tell how long it took."""
    skipped = ("record.json", "training.json", "latency.json")
    artifacts = [p.parent for p in store.glob("*/*/record.json")]
    files = [p for a in artifacts for p in a.rglob("*") if p.is_file() and p.name not in skipped and "logs" not in p.parts]
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def check(store: Path, root: Path, whole: dict[str, bytes], what: str) -> None:
    ended(start(["store", "--store", str(store), "verify"], root, store), f"{what}: verify")
    found = content(store)
    if found != whole:
        other = sorted(k for k in {*found, *whole} if found.get(k) != whole.get(k))
        sys.exit(f"{what}: {len(other)} files are others than of a run that was left alone, the first {other[0]}")


def kills(root: Path, draw: random.Random, many: int) -> None:
    done = 0
    for number, chain in enumerate(CHAINS):
        alone = root / f"alone-{number}"
        began = time.monotonic()
        ended(start(chain, root, alone), " ".join(chain))
        whole, takes = content(alone), time.monotonic() - began
        share, turn = many * (number + 1) // len(CHAINS), 0
        while done < share:
            store, turn = root / f"killed-{number}-{turn}", turn + 1
            for _ in range(draw.randrange(1, 6)):
                process, moment = start(chain, root, store), draw.uniform(0, takes)
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                    done += 1
                process.communicate()
            what = f"{chain[0]}, after {done} kills"
            ended(start(chain, root, store), what)
            check(store, root, whole, what)
            print(f"{what}: {len(whole)} files as of a run that was left alone", flush=True)


def together(root: Path, processes: int, minutes: float) -> None:
    chain, end, turn = CHAINS[0], time.monotonic() + 60 * minutes, 0
    whole = content(root / "alone-0")
    while time.monotonic() < end:
        store, turn = root / f"shared-{turn}", turn + 1
        running = [start(chain, root, store) for _ in range(processes)]
        for process in running:
            ended(process, f"one of {processes} processes")
        check(store, root, whole, f"{processes} processes")
        print(f"{processes} processes, turn {turn}: one store, {len(whole)} files", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffopt-soak-") as root:
        print(f"seed {given.seed}", flush=True)
        (Path(root) / "few.txt").write_text("a red apple\na blue fish\n")
        kills(Path(root), random.Random(given.seed), given.kills)
        together(Path(root), given.processes, given.minutes)


if __name__ == "__main__":
    main()
