"""What is foretold of memory and time beside what a run then measures, a row a step.

    python tests/bench_preflight.py DIRECTORY [JOB ...] [-- OVERRIDE ...]
    python tests/bench_preflight.py DIRECTORY --short       # FLUX.1-dev and SDXL once each, to their times

A JOB is the picks of one command, in quotes; without any those of JOBS, which download nothing and want a GPU of 80 GB. Each
runs in a store of its own under DIRECTORY, then once more with another seed, whose times are foretold by the records of the
first. The parts of each peak stand below: what a rule foretells of weights, of the neediest call and of libraries, what they
were, and what the constants of diffopt/jobs/memory.py would have to be. Ends with the share of peaks that were foretold within
a quarter; exit code 1 where a job failed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CALIBRATED = "calib=images calib.size=4 calib.batch_size=2 calib.chunk=4 calib.n_steps=2"
TIMED = "eval=images eval.metrics=[] eval.latency=true eval.runtime=native eval.steps=4 eval.warmup=1 eval.repeats=3"
JOBS = (
    f"model=flux_dev model.weights=random format=fp8 {CALIBRATED} export=onnx export.high_precision_dtype=float16",
    f"model=flux_dev model.weights=random format=fp8 {CALIBRATED} {TIMED}",
    f"model=sdxl model.weights=random format=int8_sq {CALIBRATED} export=onnx",
    f"model=sdxl model.weights=random format=fp8 {CALIBRATED} {TIMED}",
    f"model=sd3_medium model.weights=random format=nvfp4_svdquant {CALIBRATED} export=native",
    "+recipe=bench_flux_fp8",
    "+recipe=bench_sdxl_fp8",
)
SHORT = (
    f"model=flux_dev model.weights=random format=fp8 {CALIBRATED} {TIMED}",
    f"model=sdxl model.weights=random format=int8_sq {CALIBRATED} {TIMED}",
)
QUARTER = 0.25
MIB, GIB = 2**20, 2**30


def run(store: Path, picks: list[str], directory: Path) -> bool:
    """With the parts of its steps in DIRECTORY.json."""
    watched = [sys.executable, str(Path(__file__).with_name("memory_parts.py")), f"{directory}.json"]
    print("$ diffopt", *picks, flush=True)
    environment = os.environ | {"DIFFOPT_STORE": str(store)}
    return subprocess.run([*watched, *picks, f"hydra.run.dir={directory}"], env=environment).returncode == 0


def rows(store: Path, seen: set[str]) -> list[tuple[str, str, float, float]]:
    """Step, what, estimated and measured, of the artifacts that are not in `seen`, to which they are added."""
    found = []
    for path in sorted(store.glob("*/*/record.json"), key=lambda p: p.stat().st_mtime):
        if path.parent.name in seen:
            continue
        seen.add(path.parent.name)
        record = json.loads(path.read_text())
        made, stage = record["provenance"], record["identity"]["stage"]
        foretold = made.get("estimated", {})
        for kind, most in foretold.get("peak_bytes", {}).items():
            if kind in made.get("peak_bytes", {}):
                found.append((stage, kind, most / GIB, made["peak_bytes"][kind] / GIB))
        if "seconds" in foretold:
            found.append((stage, "seconds", foretold["seconds"], made["seconds"]))
    return found


def table(found: list[tuple[str, str, float, float]]) -> str:
    lines = [f"{'step':12} {'what':8} {'estimated':>10} {'measured':>10} {'off by':>8}"]
    for stage, what, foretold, measured in found:
        off = foretold / measured - 1 if measured else 0.0
        lines.append(f"{stage:12} {what:8} {foretold:10.2f} {measured:10.2f} {off:+8.0%}{' *' if abs(off) > QUARTER else ''}")
    return "\n".join(lines)


def in_parts(found: list[dict[str, Any]]) -> str:
    """Foretold, and what it was, in GiB; of RAM what is foretold without CUDA's libraries, and what it was beyond that."""
    heads = ["GPU", "was", "weights", "were", "call", "was", "", "context", "RAM bare", "was", "beyond"]
    lines = [" ".join([f"{'step':16}", *(f"{h:>9}" for h in heads)])]
    for p in found:
        gpu = [p["gpu"], p["gpu_was"], p["weights"], p["weights_were"], p["call"], p["call_was"]]
        ram = [p["context"], p["plain_ram"], p["ram_was"], beyond(p)]
        cells = [*map(_gib, gpu), "elsewhere" if p["outside"] else "in call" if p["gpu_was"] else "", *map(_gib, ram)]
        lines.append(" ".join([f"{p['step']:16}", *(f"{c:>9}" for c in cells)]))
    return "\n".join(lines)


def _gib(many: int | None) -> str:
    return "-" if many is None else f"{many / GIB:.2f}"


def beyond(p: dict[str, Any]) -> int | None:
    """What OF_GPU would have to be for this step."""
    return p["ram_was"] - p["plain_ram"] if p["gpu_was"] is not None and p["plain_ram"] is not None else None


def constants(found: list[dict[str, Any]]) -> str:
    """What they are, and what these steps say; nothing without a GPU."""
    from diffopt.jobs.memory import CONTEXT, OF_GPU, WORK

    contexts = [p["context"] for p in found if p["context"] is not None]
    rams = [b for p in found if (b := beyond(p)) is not None]
    works = [
        p["call_was"] - p["call"] for p in found if p["call_was"] is not None and p["call"] is not None and not p["outside"]
    ]
    lines = []
    for name, now, seen in (("CONTEXT", CONTEXT, contexts), ("OF_GPU", sum(OF_GPU.values()), rams), ("WORK", WORK, works)):
        if seen:
            low, middle, high = min(seen), sorted(seen)[len(seen) // 2], max(seen)
            said = ", ".join(f"{what} {n / MIB:.0f}" for what, n in (("least", low), ("middle", middle), ("most", high)))
            lines.append(f"{name:8} is {now / MIB:.0f} MiB; of {len(seen)} steps: {said}")
    return "\n".join(lines)


def main() -> None:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    (directory, *jobs), more = given[:cut], given[cut + 1 :]
    short = "--short" in jobs
    jobs = [*SHORT] if short else jobs or [*JOBS]
    failed, peaks, parts = 0, [], []
    for number, job in enumerate(jobs):
        store, seen = Path(directory) / f"store-{'short' if short else number}", set()
        for turn in range(1 if short else 2):
            picks = [*job.split(), *more, *([f"seed={turn}"] if turn else [])]
            where = Path(directory) / f"run-{number}-{turn}"
            before = {p.parent.name for p in store.glob("*/*/record.json")}
            failed += not run(store, picks, where)
            found = rows(store, seen | before)
            seen |= before
            peaks += [(e, m) for _, what, e, m in found if what != "seconds"]
            print(table(found), flush=True)
            steps = json.loads(Path(f"{where}.json").read_text())
            parts += steps
            print(in_parts(steps), flush=True)
    near = sum(abs(e / m - 1) <= QUARTER for e, m in peaks if m)
    print(constants(parts))
    print(f"{near} of {sum(1 for _, m in peaks if m)} peaks foretold within {QUARTER:.0%}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
