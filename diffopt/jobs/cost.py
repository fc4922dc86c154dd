"""What the steps to run would cost: time, memory and disk as the store's records tell, downloads as the hub's cache does."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import Any

from pydantic import BaseModel

from diffopt.jobs.nearest import Near, Past
from diffopt.jobs.plan import Step
from diffopt.machine.environment import machine
from diffopt.store.source import Source
from diffopt.text import duration, size

COUNTED = ("prompts", "steps", "n_steps", "repeats")
"""Settings to which the time of a step is proportional; of prompts their number."""
OTHER_WORK = ("height", "width", "frames", "runtime", "bench", "metrics", "max_steps", "search")
"""Settings of which another value is other work: nothing is foretold from the one of the other."""
SHOWN = 4


@dataclass(frozen=True)
class Cost:
    """Of the steps to run. What no record tells is named, never guessed."""

    steps: int
    seconds: float
    bytes: int
    peak: Mapping[str, int]
    """The most that one of the steps took: `ram`, and `gpu` where there was one; in bytes."""
    untold: tuple[str, ...]
    """Steps that no record of this machine tells of."""

    def lines(self, store: Path) -> list[str]:
        """Of the time, the memory and the disk."""
        told = self.steps - len(self.untold)
        if not told:
            why = "no record of this machine tells, none of these steps was made here for this model"
            return [f"time    {why}", "memory  not known before the first run", f"disk    {_free(store)}"]
        named = ", ".join(self.untold[:SHOWN]) + (f" and {len(self.untold) - SHOWN} more" if self.untold[SHOWN:] else "")
        rest = f"; not known of {named}" if named else ""
        least = "at least " if named else "about "
        peaks = ", ".join(f"{size(most)} {'GPU' if kind == 'gpu' else 'RAM'}" for kind, most in self.peak.items())
        lines = [f"time    {least}{duration(self.seconds)}, by this machine's records of {told} of {self.steps} steps{rest}"]
        lines.append(f"memory  {least if peaks else ''}{peaks or 'not recorded'}, the most that such a step took")
        return [*lines, f"disk    {least}{size(self.bytes)} in the store; {_free(store)}"]


def cost(todo: Iterable[Step], past: Past) -> Cost:
    """Of steps in the order of their plan."""
    here, steps = _machine(machine()), list(todo)
    along = [s.companion(steps) for s in steps]  # made in the pass of another, which is counted once
    seconds, taken, peak, untold = 0.0, 0, dict[str, int](), []
    for step in steps:
        near = None if step.pending else past.nearest(step)
        share = _share(step, near) if near else None
        if near is None or share is None or _machine(near.entry.record["provenance"].get("machine", {})) != here:
            untold.append(step.name)
            continue
        made = near.entry.record["provenance"]
        seconds += made["seconds"] * share * (step not in along)
        taken += near.entry.bytes
        for kind, most in made.get("peak_bytes", {}).items():
            peak[kind] = max(peak.get(kind, 0), most)
    return Cost(len(steps), seconds, taken, peak, tuple(untold))


def _machine(about: Mapping[str, Any]) -> tuple[Any, ...]:
    """Without its name, which a container has another of each time."""
    return about.get("cpu"), about.get("cores"), tuple(about.get("gpus", ()))


def _share(step: Step, near: Near) -> float | None:
    """What the step's work is of that of the artifact most like it; None where the two cannot be compared."""
    if not near.same_model or any(key.rpartition(".")[2] in OTHER_WORK or key.startswith("inputs.") for key in near.own):
        return None
    ours, theirs = _work(step.identity["config"]), _work(near.entry.record["identity"]["config"])
    return prod(ours[k] / theirs[k] for k in ours.keys() & theirs.keys())


def _work(config: Mapping[str, Any]) -> dict[str, float]:
    """The counted settings of a step by `group.field`."""
    found = {}
    for group, fields in config.items():
        for name in COUNTED if isinstance(fields, Mapping) else ():
            value = fields.get(name)
            number = re.match(r"(\d+) prompts", value) if isinstance(value, str) else None
            amount = int(number[1]) if number else value
            if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
                found[f"{group}.{name}"] = float(amount)
    return found


def _free(store: Path) -> str:
    there = next(p for p in (store, *store.parents) if p.exists())
    return f"its disk has {size(disk_usage(there).free)} left"


def downloads(todo: Iterable[Step]) -> list[str]:
    """A line a repository of the hub that a step to run reads. Asks no network, so what a download takes it cannot say."""
    found: dict[Source, None] = {}
    for step in todo:
        for group, view in step.views.items():
            read = step.identity["config"].get(group) or {}  # a metric that is not measured reads no weights
            found |= dict.fromkeys(_sources([value for name, value in view if name in read])) if view is not None else {}
    return [f"hub     {source.hub[0]}: {_cached(source)}" for source in found if source.local is None]


def _sources(values: list[Any]) -> list[Source]:
    """Those among a view's values, also in a field of a field."""
    found: list[Source] = []
    pending = [*values]
    while pending:
        value = pending.pop()
        if isinstance(value, Source):
            found.append(value)
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, BaseModel):
            pending += [inner for _, inner in value]
    return found


def _cached(source: Source) -> str:
    from huggingface_hub import constants

    repo, _ = source.hub
    folder = Path(constants.HF_HUB_CACHE) / f"{source.repo_type}s--{repo.replace('/', '--')}"
    blobs = [p for p in (folder / "blobs").glob("*") if p.is_file()]
    there = sum(p.stat().st_size for p in blobs if p.suffix != ".incomplete")
    if not blobs:
        return "not in the hub's cache, running downloads it; how much that is the plan, which asks no network, does not know"
    half = any(p.suffix == ".incomplete" for p in blobs)
    return f"{size(there)} of it in the hub's cache" + (
        ", a download was interrupted" if half else "; what lacks is downloaded"
    )
