"""The table of what training wins back, on the embedded model: paired PSNR and CLIP score with 95% intervals.

    python tests/bench_train.py DIRECTORY [ROW ...] [-- OVERRIDE ...]

Full precision, NVFP4 calibrated alone, SVDQuant, NVFP4 by QAT and by QAD, INT4 calibrated alone and by QAT, each by diffopt's
own recipes in one store, which lies in DIRECTORY, and all at once, since one leaves most of a GPU idle; at most ten minutes on
an H100. ROW names some of the rows; an OVERRIDE (train.steps=200 train.learning_rate=5e-5) goes to those that train. Runs again
only what is not in the store.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffopt.metrics.intervals import interval
from diffopt.text import signed

INT4 = ["format=int4_awq", "format.block_size=64"]  # its default of 128 does not divide all layers of this model
BARE = ["export=null"]
MAXIMA = ["format.weights=max"]
"""Where training starts from."""
ROWS: dict[str, list[str]] = {
    "full": ["+recipe=emoji_fp8", "format=null", "calib=null", *BARE],
    "nvfp4": ["+recipe=emoji_fp4", *MAXIMA, *BARE],
    "svdquant": ["+recipe=emoji_fp4", "format=nvfp4_svdquant", "format.rank_iterations=0", *MAXIMA, *BARE],
    "int4": ["+recipe=emoji_fp4", *INT4, *MAXIMA, *BARE],
    "nvfp4_qat": ["+recipe=emoji_fp4_qat"],
    "nvfp4_qad": ["+recipe=emoji_fp4_qad"],
    "int4_qat": ["+recipe=emoji_fp4_qat", *INT4],
    "int4_qad": ["+recipe=emoji_fp4_qad", *INT4],
}
TOLD = {
    "full": "full precision",
    "nvfp4": "NVFP4",
    "svdquant": "NVFP4 SVDQuant",
    "int4": "INT4 AWQ",
    "nvfp4_qat": "NVFP4 QAT",
    "nvfp4_qad": "NVFP4 QAD",
    "int4_qat": "INT4 QAT",
    "int4_qad": "INT4 QAD",
}


def main() -> None:
    given = sys.argv[1:]
    overrides = given[given.index("--") + 1 :] if "--" in given else []
    where, *names = given[: given.index("--")] if "--" in given else given
    started, found = time.monotonic(), {}
    names = names or [n for n in ROWS if n != "int4_qad"]
    picks = {n: [*ROWS[n], *(overrides if n.endswith(("qat", "qad")) else [])] for n in names}
    with ThreadPoolExecutor(len(names)) as pool:  # each waits for what another makes already
        running = {n: pool.submit(run, Path(where).absolute(), n, picks[n]) for n in names}
        for name in names:
            found[name] = running[name].result()
            print(line(name, *found[name]), flush=True)
    print(f"all in {time.monotonic() - started:.0f} s")
    for name, start in (("nvfp4_qat", "nvfp4"), ("nvfp4_qad", "nvfp4"), ("nvfp4_qad", "svdquant"), ("int4_qat", "int4")):
        if name in found and start in found:
            ours, theirs = (np.array(found[n][0]["psnr"]["values"]) for n in (name, start))
            stat = interval(ours - theirs)
            print(f"{TOLD[name]} is {signed(stat, 'dB')} from {TOLD[start]}")


def run(where: Path, name: str, arguments: list[str]) -> tuple[dict[str, Any], float, dict[str, Any] | None]:
    """Metrics, seconds, and what training says of itself."""
    directory = where / name
    command = [sys.executable, "-m", "diffopt", *arguments, f"hydra.run.dir={directory}"]
    started = time.monotonic()
    done = subprocess.run(command, env=os.environ | {"DIFFOPT_STORE": str(where / "store")}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    training = directory / "train" / "training.json"
    metrics = json.loads((directory / "score" / "metrics.json").read_text())["metrics"]
    told = json.loads(training.read_text()) if training.is_file() else None
    return metrics, time.monotonic() - started, told


def line(name: str, metrics: dict[str, Any], seconds: float, training: dict[str, Any] | None) -> str:
    parts = [f"{TOLD[name]:15} {seconds:6.1f} s"]
    for metric in ("psnr", "ssim", "clip"):
        stat = metrics[metric]["candidate"]
        parts.append(f"{metric} {stat['mean']:.3f} [{stat['low']:.3f}, {stat['high']:.3f}]")
    if training:
        scores = [v["score"] for v in training["validations"]]
        parts.append(f"validated {' '.join(f'{s:.2f}' for s in scores)}; {training['steps']} steps")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
