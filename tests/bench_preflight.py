"""What is foretold of memory and time beside what a run then measures, a row a step.

    python tests/bench_preflight.py DIRECTORY [JOB ...] [-- OVERRIDE ...]

A JOB is the picks of one command, in quotes; without any those of JOBS, which download nothing and want a GPU of 80 GB. Each
runs in a store of its own under DIRECTORY, then once more with another seed, whose times are foretold by the records of the
first. Ends with the share of peaks that were foretold within a quarter; exit code 1 where a job failed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

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
QUARTER = 0.25
GIB = 2**30


def run(store: Path, picks: list[str], directory: Path) -> bool:
    command = [sys.executable, "-m", "diffopt", *picks, f"hydra.run.dir={directory}"]
    print("$ diffopt", *picks, flush=True)
    return subprocess.run(command, env=os.environ | {"DIFFOPT_STORE": str(store)}).returncode == 0


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


def main() -> None:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    (directory, *jobs), more = given[:cut], given[cut + 1 :]
    failed, peaks = 0, []
    for number, job in enumerate(jobs or JOBS):
        store, seen = Path(directory) / f"store-{number}", set()
        for turn in range(2):
            picks = [*job.split(), *more, *([f"seed={turn}"] if turn else [])]
            failed += not run(store, picks, Path(directory) / f"run-{number}-{turn}")
            found = rows(store, seen)
            peaks += [(e, m) for _, what, e, m in found if what != "seconds"]
            print(table(found), flush=True)
    near = sum(abs(e / m - 1) <= QUARTER for e, m in peaks if m)
    print(f"{near} of {sum(1 for _, m in peaks if m)} peaks foretold within {QUARTER:.0%}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
