"""FLUX.1-dev with random weights trained (QAD, all weights, NVFP4) over this machine's GPUs: memory and time of each.

    python tests/bench_fsdp.py DIRECTORY                                    # all GPUs: two of 80 GB are enough
    python tests/bench_fsdp.py DIRECTORY train.optimizer=adamw              # moments of 16 bits: the comparison
    python tests/bench_fsdp.py DIRECTORY train.processes=2 train.batch_size=4
    python tests/bench_fsdp.py DIRECTORY --tiny                             # the embedded model, two processes on a CPU

It runs `diffopt +recipe=flux_fp4_qad` in shards, from loading to the trained checkpoint of 24 GB, and prints what its
training.json has, and the seconds of every step of the plan. What is before the training is as cheap as it can be and still
be real: two prompts are calibrated on and four items taught, one denoising step each, and nothing is validated, as noise has
no quality. Each GPU takes one item a step. Needs 120 GB of RAM for two GPUs (each process reads the model and the teacher
before they are cut) and 30 GB of disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from diffopt.machine.environment import gpus

CHEAP = [
    "export=null",
    "eval=null",
    "calib.size=2",
    "calib.n_steps=1",
    "calib.batch_size=1",
    "calib.chunk=2",
    "train.data.size=4",
    "train.data.steps=1",
    "train.data.batch_size=1",
    "train.data.chunk=4",
    "train.validation=null",
    "train.steps=6",
    "train.warmup=1",
    "train.trackers=[]",
    "train.parallel=fsdp",
]
FULL = [
    "+recipe=flux_fp4_qad",
    "model.weights=random",
    "train.lora=null",
    "train.weights=null",
    "train.optimizer=adamw8bit",
    "train.learning_rate=1e-5",
    "train.distillation.teacher.offload=false",
]
TINY = ["+recipe=emoji_fp4_qad", "train.processes=2", "train.batch_size=4", "train.optimizer=adamw8bit"]


def main() -> None:
    directory, tiny = Path(sys.argv[1]).absolute(), "--tiny" in sys.argv[2:]
    given = [a for a in sys.argv[2:] if a != "--tiny"]
    named = {a.partition("=")[0] for a in given}
    picks = [*(TINY if tiny else [*FULL, f"train.batch_size={len(gpus())}"]), *CHEAP]
    picks = [p for p in picks if p.partition("=")[0] not in named] + given
    environment = os.environ | {"DIFFOPT_STORE": str(directory / "store")}
    print("$ diffopt", *picks, flush=True)
    command = [sys.executable, "-m", "diffopt", *picks, f"hydra.run.dir={directory / 'run'}"]
    if failed := subprocess.run(command, env=environment).returncode:
        sys.exit(failed)
    print(table(directory / "run"))


def table(run: Path) -> str:
    """Of each process its peaks, of each step its seconds and loss."""
    told = json.loads((run / "train" / "training.json").read_text())
    rows = [f"{told['trained'] / 1e9:.4g} B parameters, {told['parallel']}, {len(told['peak_bytes'])} processes"]
    for i, peak in enumerate(told["peak_bytes"]):
        rows.append(f"process {i}: " + ", ".join(f"{where} {size / 2**30:.2f} GiB at most" for where, size in peak.items()))
    for seconds, x in zip(told["seconds"], told["losses"], strict=True):
        rows.append(f"step {x['step']}: {seconds:.2f} s, loss {x['loss']:.4e}")
    later = sorted(told["seconds"][1:])
    rows.append(f"median of the steps after the first: {later[len(later) // 2]:.3f} s")
    for step in json.loads((run / "run.json").read_text())["steps"]:
        rows.append(f"{step['name']:10} {step['seconds']:8.1f} s  {step['state']}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
