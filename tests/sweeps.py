"""Job directories of a sweep made by hand, with values picture by picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from contents import GRAPH, MACHINE
from test_report import artifact, scored

from diffopt.files.json_file import plain
from diffopt.metrics.intervals import interval
from diffopt.quality.floor import floors as limits
from diffopt.sweep.findings import Findings

SPREAD = np.array([-3.0, -1.5, -0.5, 0.0, 0.5, 1.5, 3.0, 0.0, -2.0, 2.0])
"""How the ten pictures differ from the mean, alike in all jobs."""


def measured(
    values: Any, reference: Any = None, title: str = "PSNR", unit: str = "dB", better: str = "higher"
) -> dict[str, Any]:
    """One metric of metrics.json."""
    ours = np.array(values, dtype=float)
    found: dict[str, Any] = {
        "title": title,
        "unit": unit,
        "better": better,
        "values": ours.tolist(),
        "candidate": plain(interval(ours)),
    }
    if reference is not None:
        theirs = np.array(reference, dtype=float)
        found |= {"reference": plain(interval(theirs)), "reference_values": theirs.tolist()}
        found["difference"] = plain(interval(ours - theirs))
    return found


def job(
    directory: Path,
    metrics: dict[str, dict[str, Any]],
    *,
    overrides: list[str] | None = None,
    same_as: str | None = None,
    graph: int | None = None,
    speedup: float | None = None,
    baseline: float = 0.4,
    machine: dict[str, Any] = MACHINE,
    simulated: bool = False,
    prompts: str = "p",
    steps: dict[str, tuple[str, str]] | None = None,
) -> Path:
    """One job. `steps` are {name: (fingerprint, state)} instead of its own; `same_as` is the job whose fingerprints it has."""
    scored(directory, fingerprint=(same_as or directory.name).rjust(16, "0"), overrides=overrides or [])
    index = json.loads((directory / "sample/images.json").read_text()) | {"simulated": simulated}
    (directory / "sample/images.json").write_text(json.dumps(index))
    count = max((len(m.get("values", [])) for m in metrics.values()), default=0)
    score = {"schema": "diffopt.metrics/1", "prompts": [f"{prompts} {i}" for i in range(count)], "metrics": metrics}
    artifact(directory, "score", {"metrics.json": score | {"difference_gain": 8}})
    content = json.loads((directory / "run.json").read_text())
    if graph is not None:
        artifact(directory, "export", {"graph.json": GRAPH, "model.onnx": graph})
    if speedup is not None:
        side = {"milliseconds_per_step": None, "seconds_per_call": []}
        ends = {"mean": speedup, "low": speedup * 0.99, "high": speedup * 1.01, "n": 3}
        timed = {
            "runtime": "onnxruntime", "machine": machine, "batch_size": 1, "steps": 20, "warmup": 1, "repeats": 3,
            "baseline": {**side, "seconds_per_image": {"median": baseline, "p10": baseline, "p90": baseline}},
            "candidate": {**side, "seconds_per_image": {"median": baseline / speedup, "p10": 0.1, "p90": 0.9}},
            "speedup": {"end_to_end": ends, "per_step": None},
        }  # fmt: skip
        artifact(directory, "time", {"latency.json": timed})
    if steps is not None:
        rows = [
            {"name": n, "kind": n.partition(".")[0], "fingerprint": f, "state": state, "seconds": 9.0, "inputs": []}
            for n, (f, state) in steps.items()
        ]
        (directory / "run.json").write_text(json.dumps({**content, "steps": rows, "wanted": ["score"]}))
    return directory


def psnr(mean: float, values: Any = SPREAD) -> dict[str, dict[str, Any]]:
    return {"psnr": measured(mean + np.array(values))}


def failed(directory: Path, *overrides: str, error: str = "out of memory") -> Path:
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra/overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides) or "[]")
    (directory / "error.txt").write_text(error)
    return directory


def findings(directory: Path, *floors: str) -> Findings:
    return Findings(directory, limits(floors))
