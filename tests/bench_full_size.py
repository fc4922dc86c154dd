"""Full-size models with random weights through calibration and export, on this machine: `make bench`.

Prints a row a step: wall time and peak memory, and the size of what it made. A GPU of 80 GB takes FLUX.1-dev whole;
smaller ones stream it. Usage: bench_full_size.py DIRECTORY MODEL:FORMAT ... [-- OVERRIDE ...]
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ORDER = ("load", "embed", "observe", "merge", "record", "quantize", "export")
CALIBRATION = ["calib=images", "calib.size=4", "calib.batch_size=2", "calib.chunk=4", "calib.n_steps=4"]


def main() -> None:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    directory, *jobs = arguments[:cut]
    store = Path(directory) / "store"
    environment = os.environ | {"DIFFOPT_STORE": str(store)}
    failed = 0
    for job in jobs:
        model, _, name = job.partition(":")
        picks = [
            *arguments[cut + 1 :],
            f"model={model}",
            "model.weights=random",
            "export=onnx",
            "export.high_precision_dtype=float16",
        ]
        picks += [f"format={name}", *CALIBRATION] if name != "plain" else []
        command = [sys.executable, "-m", "diffopt", *picks, f"hydra.run.dir={directory}/{model}-{name}"]
        print("$ diffopt", *command[3:-1], flush=True)
        failed += bool(subprocess.run(command, env=environment).returncode)
        print(table(store), flush=True)
    sys.exit(failed)


def table(store: Path) -> str:
    """Every artifact of the store: step, format, seconds, peak RAM and GPU memory in GiB, size in MiB."""
    rows = [f"{'step':10} {'format':16} {'seconds':>8} {'RAM GiB':>8} {'GPU GiB':>8} {'MiB':>9}"]
    records = [json.loads(p.read_text()) for p in store.glob("*/*/record.json")]
    records.sort(key=lambda r: ORDER.index(r["identity"]["stage"]) if r["identity"]["stage"] in ORDER else len(ORDER))
    for record in records:
        made, identity = record["provenance"], record["identity"]
        ram, gpu = (f"{made['peak_bytes'][k] / 2**30:8.1f}" if k in made["peak_bytes"] else " " * 8 for k in ("ram", "gpu"))
        name = identity["config"].get("format", {}) or {}
        size = sum(f["size"] for f in record["files"].values()) / 2**20
        rows.append(f"{identity['stage']:10} {name.get('name', ''):16} {made['seconds']:8.1f} {ram} {gpu} {size:9.1f}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
