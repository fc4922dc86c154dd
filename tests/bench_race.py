"""Does a race name what drawing everything names, and by how many pictures? Every setting of a recipe is drawn whole, once;
then races are run over the kept scores, each with the prompts, and so the seeds, in another order.

    python tests/bench_race.py DIRECTORY [--races 20] -- +recipe=emoji_ship

DIRECTORY has the store, and the command goes on where it stopped. A race agrees where it names the same setting, or one that
the whole sample does not tell from it: which that sample does not show to break a floor, and of which it does not show that the
other keeps the floors and costs less, or costs as much and is better.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffopt.artifact import Pipeline
from diffopt.cli import plan
from diffopt.cli.searchpath import bundled, register
from diffopt.errors import GateError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.images import ImagesFile
from diffopt.files.interval import Interval
from diffopt.files.layers import read_layers
from diffopt.files.metrics import MetricResult, MetricsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.jobs.job import prepare
from diffopt.jobs.runner import run_plan
from diffopt.metrics.intervals import interval
from diffopt.race import standing
from diffopt.race.contestant import Contestant, Cost, Scores
from diffopt.race.costs import Shares, foreseen
from diffopt.race.course import Course
from diffopt.report.weight_bytes import weight_bytes
from diffopt.sweep.plan import SweepPlan, plan_sweep
from diffopt.view import Choices


@dataclass(frozen=True)
class Drawn:
    """One setting."""

    metrics: Mapping[str, MetricResult]
    """Of the whole sample."""
    choices: Choices
    taken: Cost
    """Bytes of its weights, as foreseen."""
    work: Cost
    """As measured."""
    share: float | None
    """What its cache left of the arithmetic."""


def drawn(planned: SweepPlan, loader: Any, config: Any, recipe: list[str], whole: int) -> dict[int, Drawn]:
    """Every setting that can be drawn, whole and at once: the pictures are those of a race but for the last bits of larger
    batches."""
    found: dict[int, Drawn] = {}
    for number, one in enumerate(planned.distinct):
        given = [o for o in one.overrides if not o.startswith("eval.size=")]
        at_once = [f"eval.size={whole}", f"eval.chunk={whole}", f"eval.batch_size={whole}"]
        full = loader.load_sweep_config(config, [*recipe, *given, *at_once])
        job = prepare(OmegaConf.masked_copy(full, [str(k) for k in full if k != "hydra"]), given, dry=False, sweep=True)
        try:
            run_plan(job.plan, job.choices, job.store, job.sources)
        except GateError as e:
            print(f"drawn   {number:3} failed: {e}  {' '.join(given)}", flush=True)
            continue
        paths = {s.name: e.path for s in job.plan.steps if (e := job.store.entry(s.kind, s.fingerprint))}
        load = next(paths[s.name] for s in job.plan.steps if s.kind == Pipeline.kind)
        pinned, layers, cache = PipelineFile.read(load), read_layers(load), ImagesFile.read(paths["sample"]).cache
        assert job.choices.eval is not None
        taken = weight_bytes(pinned, CheckpointFile.read(paths["quantize"]), layers)
        work = Cost.exact(taken * job.choices.eval.steps * (cache.computed if cache else 1.0))
        metrics = MetricsFile.read(paths["score"]).metrics
        ahead = foreseen(job.choices, pinned, layers)["bytes"]
        found[number] = Drawn(metrics, job.choices, ahead, work, cache.computed if cache else None)
        means = ", ".join(f"{n} {m.candidate.mean:.2f}" for n, m in metrics.items())
        print(f"drawn   {number:3} {means}  {work.value / 2**20:7.1f} MiB  {' '.join(given)}", flush=True)
    return found


def part(metric: MetricResult, order: np.ndarray) -> MetricResult:
    """Of some prompts."""

    def of(values: Any) -> Any:
        return None if values is None else [values[i] for i in order]

    values, theirs = of(metric.values), of(metric.reference_values)
    around = [None if v is None else Interval(float(np.mean(v)), None, None, len(v)) for v in (values, theirs)]
    return replace(metric, values=values, candidate=around[0], reference_values=theirs, reference=around[1])


def apart(best: Contestant, other: Contestant) -> bool:
    """Whether the whole sample tells that `other` is not as good an answer as `best`."""
    if any((ends := interval(m).ends) is not None and ends[1] < 0 for m in other.drawn.margins):
        return True
    if best.cost.below(other.cost):
        return standing.kept(best)
    ends = interval(best.drawn.worth - other.drawn.worth).ends
    return not other.cost.below(best.cost) and ends is not None and ends[0] > 0


def race(planned: SweepPlan, found: dict[int, Drawn], order: np.ndarray, first: str) -> tuple[Contestant | None, int]:
    assert planned.ship is not None
    shares = Shares()
    field = [Contestant(n, planned.distinct[n].overrides, shares.work(x.choices, x.taken)) for n, x in found.items()]
    course = Course(planned.ship, field, first)
    ran: set[int] = set()

    def draw(due: list[tuple[Contestant, int]]) -> dict[int, dict[str, MetricResult]]:
        ran.update(c.number for c, _ in due)
        for number in ran:
            if (share := found[number].share) is not None:
                shares.add(found[number].choices, share)
        for one in field:
            of = found[one.number]
            one.cost = of.work if one.number in ran else shares.work(of.choices, of.taken)
        return {c.number: {k: part(m, order[:many]) for k, m in found[c.number].metrics.items()} for c, many in due}

    course.run(draw)
    return standing.chosen(field), sum(c.n for c in field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("overrides", nargs="+")
    asked = parser.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    os.environ["DIFFOPT_STORE"] = str(asked.directory.resolve() / "store")
    register()
    config = plan.composed(asked.overrides, sweep=True)
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        planned = plan_sweep(config, hydra.config_loader)
        print(planned.summary, flush=True)
        assert planned.ship is not None
        whole, recipe = planned.ship.rounds[-1], [o for o in asked.overrides if o.startswith("+recipe=")]
        found = drawn(planned, hydra.config_loader, config, recipe, whole)
    first = next(iter(next(iter(found.values())).metrics))
    all_drawn = [
        Contestant(n, planned.distinct[n].overrides, x.work, scores=Scores(x.metrics, planned.ship.floors, first))
        for n, x in found.items()
    ]
    best = standing.chosen(all_drawn)
    assert best is not None
    print(f"whole   {len(found) * whole} pictures name setting {best.number}: {' '.join(best.overrides)}", flush=True)
    agreed, shares = 0, []
    for seed in range(asked.races):
        answer, pictures = race(planned, found, np.random.default_rng(seed).permutation(whole), first)
        same = answer is not None and (answer.number == best.number or not apart(best, all_drawn[answer.number]))
        agreed += same
        shares.append(pictures / (len(found) * whole))
        named = answer.number if answer else None
        print(
            f"race    {seed:3} names {named}, {'agrees' if same else 'differs'}, with {shares[-1]:.1%} of the pictures",
            flush=True,
        )
    said = f"{agreed} of {asked.races} races agree, with {np.mean(shares):.1%} of the pictures on average"
    print(f"{said}, {max(shares):.1%} at most")


if __name__ == "__main__":
    main()
