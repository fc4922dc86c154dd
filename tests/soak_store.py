"""Kills small chains at random moments, and lets several processes make one at once.

A store has to come out as one that was left alone.

    python tests/soak_store.py --seed 0 --kills 500 --workers 2
    python tests/soak_store.py --seed 0 --kills 500 --workers 14 --seconds 420 --minutes 0     # on 16 cores

Each kill is aimed at one of the stages in turn, in the chains of tests/soak_chains.py: what it and those after it make is taken
out of a store, a run begins, and is killed at a random moment of the stage; then perhaps again at any moment; then one runs to
its end, `verify` has to find nothing, and every file has to be as of a run that was left alone. Workers share nothing but what
was made alone; each draws from a seed of its own. Runs are forks of a process that has imported everything, as imports are most
of a small run; the turns of `--minutes` are processes from the start. Prints how many kills hit which stage, and which stages
none did and why. Exit code 1, with the seed and what was lost, where something is, or where `--seconds` were too few for all
kills; what lies in the stores is then kept.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soak_chains import CHAINS, FEW, PACKAGE, stages, unhit

from diffopt.store.store import Store

TIMED = ("record.json", "training.json", "latency.json", "bench.json", "search.json")
"""Files that tell how long something took."""
TOGETHER = ["+recipe=emoji_fp8", "export=null", *FEW]
LOADED = ("diffusers", "transformers", "modelopt.torch.quantization", "onnxruntime", "onnx", "peft", "accelerate", "torchao")
HANGS = 300
"""Seconds that no run of a chain takes, on a machine that is busy."""
BETWEEN = "between two"
fork = multiprocessing.get_context("fork")
KILLED = fork.Value("i", 0)
"""How often all workers have."""


def start(arguments: list[str], root: Path, store: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"DIFFOPT_STORE": str(store), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "diffopt", *arguments]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[bytes], what: str) -> None:
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{what}: ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}")


def content(store: Path) -> dict[str, str]:
    """The hash of every file that does not tell how long something took, by its path in the store."""
    artifacts = [e.path for e in Store(store).entries()]  # not what a killed run had written whole and not yet put there
    files = [p for a in artifacts for p in a.rglob("*") if p.is_file() and p.name not in TIMED and "logs" not in p.parts]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def compare(store: Path, whole: dict[str, str], what: str) -> None:
    found = content(store)
    if found != whole:
        other = sorted(k for k in {*found, *whole} if found.get(k) != whole.get(k))
        sys.exit(f"{what}: {len(other)} files are others than of a run that was left alone, the first {other[0]}")


def check(store: Path, root: Path, whole: dict[str, str], what: str) -> None:
    ended(start(["store", "--store", str(store), "verify"], root, store), f"{what}: verify")
    compare(store, whole, what)


def begin(arguments: list[str], place: Path, store: Path) -> Any:
    """A run as `diffopt ARGUMENTS` would be, in a fork. What it says is in `place/said`."""
    process = fork.Process(target=_run, args=(arguments, place, store))
    process.start()
    return process


def _run(arguments: list[str], place: Path, store: Path) -> None:
    os.setsid()
    os.chdir(place)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(said, number)
    os.environ["DIFFOPT_STORE"] = str(store)
    sys.argv = ["diffopt", *arguments]
    from diffopt.cli.main import main

    main()


def finish(arguments: list[str], place: Path, store: Path, what: str) -> None:
    process = begin(arguments, place, store)
    process.join(HANGS)
    if process.exitcode != 0:
        how = "hangs" if process.exitcode is None else f"ended with {process.exitcode}"
        process.kill()
        said = (place / "said").read_text(errors="replace")
        sys.exit(f"{what}: {how}: {said[-3000:]}")


@dataclass(frozen=True)
class Made:
    """A store in which one chain was run and left alone."""

    name: str
    picks: list[str]
    store: Path
    seconds: float
    whole: dict[str, str]
    stages: dict[str, str]
    """By fingerprint."""
    takes: dict[str, float]
    inputs: dict[str, set[str]]

    def after(self, one: str) -> set[str]:
        """It, and all that is made from it."""
        found, more = {one}, {one}
        while more:
            more = {f for f, inputs in self.inputs.items() if inputs & found} - found
            found |= more
        return found


def made(name: str, picks: list[str], place: Path, store: Path) -> Made:
    began = time.monotonic()
    finish(picks, place, store, f"{name} alone")
    seconds = time.monotonic() - began
    records = {p.parent.name: json.loads(p.read_text()) for p in store.glob("*/*/record.json")}
    inputs = {f: {*_named(r["identity"]["inputs"])} for f, r in records.items()}
    of = {f: r["identity"]["stage"] for f, r in records.items()}
    takes = {f: r["provenance"]["seconds"] for f, r in records.items()}
    return Made(name, picks, store, seconds, content(store), of, takes, inputs)


def _named(inputs: dict[str, Any]) -> Iterator[str]:
    for value in inputs.values():
        yield from (f for f in (value if isinstance(value, list) else [value]) if f)


@dataclass
class Worker:
    number: int
    root: Path
    draw: random.Random
    hit: Counter[str] = field(default_factory=Counter)
    turn: int = 0

    def __post_init__(self) -> None:
        self.place = place(self.root / f"worker-{self.number}")

    def aim(self, chain: Made, stage: str, most: int) -> None:
        """Kill runs of the chain, at most so many, the first at a moment of the stage; then let one end."""
        self.turn += 1
        store = self.place / f"store-{self.turn}"
        one = self.draw.choice(sorted(f for f, s in chain.stages.items() if s == stage))
        lost = chain.after(one)
        for record in chain.store.glob("*/*/record.json"):
            if record.parent.name not in lost:
                shutil.copytree(record.parent, store / record.parent.parent.name / record.parent.name)
        log = []
        for number in range(self.draw.randint(1, most)):
            before = scratch(store)
            process = begin(chain.picks, self.place, store)
            if number == 0:
                self._reach(process, store, one, before)
                moment = self.draw.uniform(0, 1.1 * chain.takes[one])
            else:
                moment = self.draw.uniform(0, chain.seconds)
            process.join(moment)
            if process.exitcode is None:
                working = {chain.stages[p.partition("-")[0]] for p in scratch(store) - before}
                how = self.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                os.kill(process.pid, how)
                log.append(f"{how.name} in {'+'.join(sorted(working)) or BETWEEN}")
                self.hit.update(working or {BETWEEN})
                self.hit["all"] += 1
            process.join(HANGS)
            if process.exitcode is None:
                process.kill()
                sys.exit(f"{chain.name}, {stage}, {', '.join(log)}: hangs after it was killed")
            if process.exitcode not in (0, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
                said = (self.place / "said").read_text(errors="replace")
                sys.exit(f"{chain.name}, {stage}, {', '.join(log)}: ended with {process.exitcode}: {said[-3000:]}")
        what = f"{chain.name}, {stage}, {', '.join(log)}"
        finish(chain.picks, self.place, store, what)
        finish(["store", "--store", str(store), "verify"], self.place, store, f"{what}: verify")
        compare(store, chain.whole, what)
        _clear(store)

    def _reach(self, process: Any, store: Path, one: str, before: set[str]) -> None:
        """Wait until the run makes it, or ends."""
        end = time.monotonic() + HANGS
        while process.exitcode is None and not any(p.startswith(one) for p in scratch(store) - before):
            if time.monotonic() > end:
                process.kill()
                sys.exit(f"{one} is not begun after {HANGS} s")
            time.sleep(0.002)


def scratch(store: Path) -> set[str]:
    """What is being made, as FINGERPRINT-RANDOM."""
    tmp = store / "tmp"
    return {p.name for p in tmp.iterdir() if "-" in p.name and not p.name.endswith("-kept")} if tmp.is_dir() else set()


def _clear(store: Path) -> None:
    subprocess.run(["chmod", "-R", "u+w", str(store)], check=True)
    shutil.rmtree(store)


def work(
    number: int, root: Path, seed: int, chains: list[Made], kills: int, workers: int, end: float
) -> tuple[Counter[str], str]:
    """Take stages in turn, each worker beginning at another, until all workers have killed so often; what is lost, said."""
    worker = Worker(number, root, random.Random(f"{seed}/{number}"))
    aims = [(chain, stage) for stage in stages() for chain in chains if stage in chain.stages.values()]
    turn = number * len(aims) // workers
    try:
        while KILLED.value < kills and time.monotonic() < end:
            chain, stage = aims[turn % len(aims)]
            turn, before = turn + 1, worker.hit["all"]
            worker.aim(chain, stage, 3)
            with KILLED.get_lock():
                KILLED.value += worker.hit["all"] - before
            print(f"{KILLED.value} kills: {stage} of {chain.name}", flush=True)
    except BaseException as e:
        print(f"worker {number}: {e}", flush=True)
        return worker.hit, f"seed {seed}, worker {number}: {''.join(traceback.format_exception_only(e))}"
    return worker.hit, ""


def place(path: Path) -> Path:
    """A working directory with the prompts."""
    path.mkdir()
    (path / "few.txt").write_text("a red apple\na blue fish\n")
    return path


def alone(root: Path, pool: ProcessPoolExecutor) -> tuple[list[Made], list[str]]:
    """All chains that can be here, several at once; and what is wrong with those that do not end."""
    found, lost = [], []
    there = {name: chain for name, chain in CHAINS.items() if not chain.lacks}
    print(*(f"not run: chain {n}, as {c.lacks} is not installed\n" for n, c in CHAINS.items() if c.lacks), sep="", end="")
    later = [n for n in there if any(PACKAGE in p for p in there[n].picks)]
    for names in ([n for n in there if n not in later], later):
        package = next((str(p) for p in (root / "alone-packed").glob("native/*")), "")
        picks = [[p.replace(PACKAGE, package) for p in there[name].picks] for name in names]
        places = [place(root / f"of-{name}") for name in names]
        given = zip(names, picks, places, strict=True)
        for doing in [pool.submit(made, name, asked, where, root / f"alone-{name}") for name, asked, where in given]:
            if error := doing.exception():
                lost.append(str(error))
                print(error, flush=True)
                continue
            found.append(one := doing.result())
            print(f"{one.name}: alone in {one.seconds:.1f} s, {len(one.whole)} files", flush=True)
    return found, lost


def kills(root: Path, seed: int, many: int, workers: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    with ProcessPoolExecutor(workers, mp_context=fork) as pool:
        chains, lost = alone(root, pool)
        doing = [pool.submit(work, i, root, seed, chains, many, workers, end) for i in range(workers)]
        results = [x.result() for x in doing]
    hit: Counter[str] = sum((found for found, _ in results), Counter())
    total, had = hit.pop("all", 0), {stage for chain in chains for stage in chain.stages.values()}
    lost += [said for _, said in results if said]
    print(f"\n{total} kills; by the stage that was at work:")
    print(*(f"  {name:16} {hit[name]}" for name in [*stages(), BETWEEN] if hit[name]), sep="\n")
    print(*(f"  {name:16} none{why and ': ' + why}" for name, why in unhit(hit, had).items()), sep="\n")
    lost += [f"{name}: no chain has it" for name, why in unhit(had, had).items() if not why]
    print(*lost, sep="\n")
    print(
        f"{len(lost)} lost or wrong" + ("" if total >= many else f"; {seconds:.0f} s were too few for {many} kills"), flush=True
    )
    return not lost and total >= many


def together(root: Path, processes: int, minutes: float) -> None:
    if minutes <= 0:
        return
    end, turn = time.monotonic() + 60 * minutes, 0
    here = place(root / "together")
    ended(start(TOGETHER, here, root / "one"), "one process")
    whole = content(root / "one")
    while time.monotonic() < end:
        store, turn = root / f"shared-{turn}", turn + 1
        running = [start(TOGETHER, here, store) for _ in range(processes)]
        for process in running:
            ended(process, f"one of {processes} processes")
        check(store, here, whole, f"{processes} processes")
        print(f"{processes} processes, turn {turn}: one store, {len(whole)} files", flush=True)


def load() -> None:
    """All that runs import, once; nothing is computed here, so that a fork has no threads to miss."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in (*(f"diffopt.stages.{s}" for s in stages()), *LOADED):
        if find_spec(name.partition(".")[0]):
            import_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that kill, each in stores of its own"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for the kills, the runs left alone included")
    parser.add_argument("--processes", type=int, default=8, help="on one store")
    parser.add_argument("--minutes", type=float, default=10, help="of them")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="diffopt-soak-"))
    print(f"seed {given.seed}, in {root}", flush=True)
    load()
    if given.kills and not kills(root, given.seed, given.kills, given.workers, given.seconds):
        sys.exit(f"seed {given.seed}: see above; the stores are kept in {root}")
    together(root, given.processes, given.minutes)
    _clear(root)


if __name__ == "__main__":
    main()
