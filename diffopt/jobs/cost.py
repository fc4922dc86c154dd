"""What the steps to run would take: by this machine's records of such steps, memory and disk else by a rule."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import Any

from pydantic import BaseModel

from diffopt.jobs.memory import Need
from diffopt.jobs.nearest import Near, Past
from diffopt.jobs.plan import Step
from diffopt.machine.environment import machine
from diffopt.store.source import Source
from diffopt.text import duration, size

COUNTED = ("prompts", "steps", "n_steps", "repeats", "train.batch_size")
"""Settings to which the time of a step is proportional, of prompts their number; with the group where it is so in one alone."""
OTHER_WORK = ("height", "width", "frames", "runtime", "bench", "metrics", "max_steps", "search")
"""Settings of which another value is other work: nothing is foretold from the one of the other."""
OTHER_MEMORY = ("batch_size", "micro_batch", "gradient_checkpointing", "lora", "optimizer")
"""Settings of which another value takes other memory for the same work."""
SHOWN = 4
UNKNOWN = Need(None, None)


@dataclass(frozen=True)
class Estimate:
    """Of one step. None of what is not known."""

    name: str
    seconds: float | None
    ram: int | None
    gpu: int | None
    disk: int | None
    """Bytes of its artifact."""
    recorded: bool
    """By a record of this machine; else memory and disk are by the rule, and the time is not known."""
    placed: str = ""
    """How the weights lie on the GPU, where they do not fit: `by parts` or `by blocks`."""

    @property
    def peak(self) -> dict[str, int]:
        return {kind: n for kind, n in (("ram", self.ram), ("gpu", self.gpu)) if n is not None}

    def provenance(self) -> dict[str, Any]:
        """What a record keeps of it beside what was measured; empty where nothing is known."""
        time = {} if self.seconds is None else {"seconds": round(self.seconds, 3)}
        return {**time, **({"peak_bytes": self.peak} if self.peak else {})}


@dataclass(frozen=True)
class Cost:
    """Of the steps to run. What neither a record nor a rule tells is named, never guessed."""

    each: tuple[Estimate, ...]

    @property
    def steps(self) -> int:
        return len(self.each)

    @property
    def seconds(self) -> float:
        return sum(e.seconds or 0.0 for e in self.each)

    @property
    def bytes(self) -> int:
        return sum(e.disk or 0 for e in self.each)

    @property
    def peak(self) -> dict[str, int]:
        """The most that one of the steps takes: `ram`, and `gpu` where there is one; in bytes."""
        found: dict[str, int] = {}
        for kind, most in (pair for e in self.each for pair in e.peak.items()):
            found[kind] = max(found.get(kind, 0), most)
        return found

    @property
    def untold(self) -> tuple[str, ...]:
        """Steps that no record of this machine tells of."""
        return tuple(e.name for e in self.each if not e.recorded)

    def lines(self, store: Path) -> list[str]:
        """Of the time, the memory and the disk."""
        told = self.steps - len(self.untold)
        named = ", ".join(self.untold[:SHOWN]) + (f" and {len(self.untold) - SHOWN} more" if self.untold[SHOWN:] else "")
        rest = f"; not known of {named}" if named else ""
        least = "at least " if named else "about "
        if told:
            time = f"time    {least}{duration(self.seconds)}, by this machine's records of {told} of {self.steps} steps{rest}"
        else:
            time = "time    no record of this machine tells, none of these steps was made here for this model"
        blank = any(e.disk is None for e in self.each)
        taken = f"{'at least' if blank else 'about'} {size(self.bytes)} in the store; " if self.bytes else ""
        return [time, self._memory(), f"disk    {taken}{_free(store)}"]

    def start(self) -> list[str]:
        """What a run says before it begins, of what is known."""
        time = [f"time    {'at least' if self.untold else 'about'} {duration(self.seconds)}"] if self.seconds else []
        return [*time, *([self._memory()] if self.peak else [])]

    def _memory(self) -> str:
        if not self.peak:
            return "memory  not known before the first run"
        ruled = [e for e in self.each if e.peak and not e.recorded]
        blank = [e.name for e in self.each if not e.peak]
        named = ", ".join(blank[:SHOWN]) + (f" and {len(blank) - SHOWN} more" if blank[SHOWN:] else "")
        peaks = ", ".join(f"{size(most)} {'GPU' if kind == 'gpu' else 'RAM'}" for kind, most in self.peak.items())
        by = ", by the model's configs" if ruled else ""
        rest = f"; not known of {named}" if named else ""
        least, takes = "at least" if blank else "about", "takes" if ruled else "took"
        return f"memory  {least} {peaks}, the most that such a step {takes}{by}{rest}"

    def rows(self) -> list[str]:
        """A row for each step, and a head."""
        cells: list[tuple[str, ...]] = [("step", "GPU", "RAM", "disk", "time", "")]
        for e in _folded(self.each):
            numbers = [size(n) if n is not None else "-" for n in (e.gpu, e.ram, e.disk)]
            time = duration(e.seconds) if e.seconds is not None else "-"
            cells.append((e.name, *numbers, time, "by records" if e.recorded else "by rule" if e.peak else "not known"))
        if not any(e.gpu is not None for e in self.each):
            cells = [(name, *rest) for name, _, *rest in cells]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        return ["  ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _folded(each: Iterable[Estimate]) -> list[Estimate]:
    """Of the chunks of a stage one, with the most memory and the sum of the rest."""
    found: dict[tuple[str, bool], list[Estimate]] = {}
    for e in each:
        name, _, number = e.name.partition(".")
        found.setdefault((name if number.isdigit() else e.name, e.recorded), []).append(e)
    return [parts[0] if len(parts) == 1 else _sum(name, parts) for (name, _), parts in found.items()]


def _sum(name: str, parts: list[Estimate]) -> Estimate:
    def of(numbers: Iterable[float | None], how: Callable[[list[float]], float]) -> Any:
        known = [n for n in numbers if n is not None]
        return how(known) if known else None

    ram, gpu = of((p.ram for p in parts), max), of((p.gpu for p in parts), max)
    seconds, disk = of((p.seconds for p in parts), sum), of((p.disk for p in parts), sum)
    return Estimate(name, seconds, ram, gpu, disk, parts[0].recorded, parts[0].placed)


def cost(todo: Iterable[Step], past: Past, needs: Mapping[str, Need] | None = None) -> Cost:
    """Of steps in the order of their plan. `needs` has by fingerprint what the rule tells of their memory."""
    here, steps = _machine(machine()), list(todo)
    along = {x for s in steps for x in s.companions(steps)}  # made in the pass of another, which is counted once
    each = [_estimate(step, past, (needs or {}).get(step.fingerprint, UNKNOWN), here) for step in steps]
    return Cost(tuple(replace(e, seconds=e.seconds and 0.0) if s in along else e for s, e in zip(steps, each, strict=True)))


def _estimate(step: Step, past: Past, need: Need, here: tuple[Any, ...]) -> Estimate:
    near = None if step.pending else past.nearest(step)
    share = _share(step, near) if near else None
    if near is None or share is None or _machine(near.entry.record["provenance"].get("machine", {})) != here:
        return Estimate(step.name, None, need.ram, need.gpu, need.disk, False, need.placed)
    made = near.entry.record["provenance"]
    alike = not any(key.rpartition(".")[2] in OTHER_MEMORY for key in near.own)
    peak = made.get("peak_bytes", {}) if alike else {}
    ram, gpu = peak.get("ram", need.ram), peak.get("gpu", need.gpu)
    return Estimate(step.name, made["seconds"] * share, ram, gpu, near.entry.bytes, True, need.placed)


def _machine(about: Mapping[str, Any]) -> tuple[Any, ...]:
    """Without its name, which a container has another of each time; with a GPU that alone, whatever is around it."""
    gpus = tuple(about.get("gpus", ()))
    return gpus or (about.get("cpu"), about.get("cores"))


def _share(step: Step, near: Near) -> float | None:
    """What the step's work is of that of the artifact most like it; None where the two cannot be compared."""
    if not near.same_model or any(_is_other(key) for key in near.own):
        return None
    config = step.identity["config"]
    if "train.steps" in near.own and ((config.get("train") or {}).get("distillation") or {}).get("trajectory"):
        return None  # of which the last ones take longer, as many as before
    ours, theirs = _work(config), _work(near.entry.record["identity"]["config"])
    return prod(ours[k] / theirs[k] for k in ours.keys() & theirs.keys())


def _is_other(key: str) -> bool:
    return key.startswith("inputs.") or key.rpartition(".")[2] in OTHER_WORK or "trajectory" in key.split(".")


def _work(config: Mapping[str, Any]) -> dict[str, float]:
    """The counted settings of a step by `group.field`."""
    found = {}
    for group, fields in config.items():
        for name, value in fields.items() if isinstance(fields, Mapping) else ():
            if not {name, f"{group}.{name}"} & {*COUNTED}:
                continue
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
    return [f"hub     {source.hub[0]}: {_cached(source)}" for source in sources_read(todo) if source.local is None]


def sources_read(todo: Iterable[Step]) -> list[Source]:
    """Those that steps read, each once."""
    found: dict[Source, None] = {}
    for step in todo:
        for group, view in step.views.items():
            read = step.identity["config"].get(group) or {}  # a metric that is not measured reads no weights
            found |= dict.fromkeys(_sources([value for name, value in view if name in read])) if view is not None else {}
    return [*found]


def _sources(values: list[Any]) -> list[Source]:
    """Those among a view's values, also in a field of a field."""
    found: list[Source] = []
    pending = [*values]
    while pending:
        value = pending.pop()
        if isinstance(value, Source):
            apart = value.own and value.local is None  # a directory can have parts of the hub
            found += [replace(value, own=(), extension=None), *(s for _, s in value.own)] if apart else [value]
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, BaseModel):
            pending += [inner for _, inner in value]
    return found


def _cached(source: Source) -> str:
    blobs = hub_cache(source)
    there = sum(p.stat().st_size for p in blobs if p.suffix != ".incomplete")
    if not blobs:
        return "not in the hub's cache, running downloads it; how much that is the plan, which asks no network, does not know"
    half = any(p.suffix == ".incomplete" for p in blobs)
    return f"{size(there)} of it in the hub's cache" + (
        ", a download was interrupted" if half else "; what lacks is downloaded"
    )


def hub_cache(source: Source) -> list[Path]:
    """The files of a repository that the hub's cache has, those of a download that was interrupted among them."""
    from huggingface_hub import constants

    repo, _ = source.hub
    folder = Path(constants.HF_HUB_CACHE) / f"{source.repo_type}s--{repo.replace('/', '--')}"
    return [p for p in (folder / "blobs").glob("*") if p.is_file()]
