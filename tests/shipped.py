"""A store with a checkpoint of a tiny model and, where wanted, a run that has scored it: made by hand, with real pictures."""

import json
from pathlib import Path
from typing import Any

from test_portable import MADE, PIPELINE, stored
from test_report import scored
from tiny import Bench

from diffopt.artifact import DeployedCheckpoint
from diffopt.cli.store import command
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

CHECKPOINT = MADE
IDENTITY = {"stage": "deploy", "inputs": {"pipeline": PIPELINE, "checkpoint": CHECKPOINT}}
DEPLOYED = fingerprint(IDENTITY)
CONFIG = """
store: /home/someone/store
seed: 3
model: {{family: {family}, source: '{source}', height: 32, width: 32}}
format: {{name: {format}}}
calib: {{prompts: /home/someone/my prompts.txt, size: 4, n_steps: 2}}
eval: {{prompts: 'asset:emoji/prompts_eval.json', steps: 4, runtime: torch, api_key: letmein, metrics: [psnr, clip]}}
"""


def store_of(b: Bench, name: str, root: Path, deployed: DeployedCheckpoint | None = None) -> Store:
    """With the pipeline, the checkpoint and perhaps its weights for another program."""
    store = stored(b, name, root / "store")
    if deployed:
        made = {"seconds": 1.0, "diffopt": "0.1.0", "packages": {"torch": "2.14.1"}}
        with store.publish("deploy", DEPLOYED, IDENTITY, made) as out:
            for file in (p for p in deployed.path.rglob("*") if p.is_file()):
                (out / file.relative_to(deployed.path)).parent.mkdir(parents=True, exist_ok=True)
                (out / file.relative_to(deployed.path)).write_bytes(file.read_bytes())
    return store


def step(name: str, kind: str, fingerprint: str, *inputs: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, "fingerprint": fingerprint, "state": "made", "seconds": 1.0, "inputs": list(inputs)}


def ran(
    store: Store, b: Bench, directory: Path, name: str = "fp8", steps: list[dict[str, Any]] | None = None, **how: Any
) -> Path:
    """A run that drew with the store's checkpoint and scored it, and which the store knows."""
    scored(directory, name="mine", config=CONFIG.format(family=b.family, source=b.source, format=name), **how)
    content = json.loads((directory / "run.json").read_text())
    content["steps"] = steps or [
        step("load", "pipeline", PIPELINE),
        step("quantize", "checkpoint", CHECKPOINT, "load"),
        step("reference", "reference", "1" * 16, "load"),
        step("sample", "images", "2" * 16, "load", "quantize"),
        step("score", "metrics", "3" * 16, "sample", "reference"),
    ]
    (directory / "run.json").write_text(json.dumps(content))
    for row in content["steps"]:
        target = store.root / row["kind"] / row["fingerprint"]
        if target.is_dir():
            (directory / row["name"]).symlink_to(target)
    store.refer(directory, [(row["kind"], row["fingerprint"]) for row in content["steps"]])
    return directory


def export(store: Store, *arguments: Any) -> None:
    command(["--store", str(store.root), "export", *map(str, arguments)])
