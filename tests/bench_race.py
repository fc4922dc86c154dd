"""Does a race name what drawing everything names, and by how many pictures? Every setting of a recipe is drawn whole, once;
then races are run over the kept scores, each with the prompts, and so the seeds, in another order.

    python tests/bench_race.py DIRECTORY [--races 20] -- +recipe=emoji_ship
    python tests/bench_race.py DIRECTORY --timed RACE -- +recipe=emoji_ship_native

DIRECTORY has the store, and the command goes on where it stopped. RACE is the directory of a race of the same recipe: the times
that it took of its programs are the costs, from the start, as they are in a race. A race agrees where it names the same
setting, or one that the whole sample does not tell from it: which that sample does not show to break a floor, and of which it
does not show that the other keeps the floors and costs less, or costs as much and is better.
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
from diffopt.race.costs import Shares, foreseen, program, timed
from diffopt.race.course import Course
from diffopt.report.weight_bytes import weight_bytes
from diffopt.sweep.job_table import table
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
    """As measured: bytes moved, or seconds."""
    share: float | None
    """What its cache left of the arithmetic."""


def drawn(
    planned: SweepPlan, loader: Any, config: Any, recipe: list[str], whole: int, times: Mapping[str, Cost] | None
) -> dict[int, Drawn]:
    """Every setting that can be drawn, whole and at once: the pictures are those of a race but for the last bits of larger
    batches. `times` are seconds per picture by program; None where work is what counts."""
    found: dict[int, Drawn] = {}
    for number, one in enumerate(planned.distinct):
        given = [o for o in one.overrides if not o.startswith("eval.size=")]
        at_once = [f"eval.size={whole}", f"eval.chunk={whole}", f"eval.batch_size={whole}", "eval.latency=false"]
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
        said = f"{work.value / 2**20:7.1f} MiB"
        if times is not None:
            work = times[program(planned.distinct[number].job.choices)]
            said = f"{work.value * 1000:7.2f} ms [{work.low * 1000:.2f}, {work.high * 1000:.2f}]"
        metrics = MetricsFile.read(paths["score"]).metrics
        ahead = foreseen(job.choices, pinned, layers)["bytes"]
        found[number] = Drawn(metrics, job.choices, ahead, work, cache.computed if cache else None)
        means = ", ".join(f"{n} {m.candidate.mean:.2f}" for n, m in metrics.items())
        print(f"drawn   {number:3} {means}  {said}  {' '.join(given)}", flush=True)
    return found


def times_of(planned: SweepPlan, directory: Path) -> dict[str, Cost]:
    """Seconds per picture by program, as a race took them."""
    found = timed(table(directory))
    known = {program(one.job.choices): found[str(n)] for n, one in enumerate(planned.distinct) if one.job and str(n) in found}
    lacking = [n for n, one in enumerate(planned.distinct) if one.job and program(one.job.choices) not in known]
    if lacking:
        raise SystemExit(f"--timed: the race has no time of some settings (got {lacking}); run it to its end")
    return known


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


def race(
    planned: SweepPlan, found: dict[int, Drawn], order: np.ndarray, first: str, known: bool
) -> tuple[Contestant | None, int]:
    """`known` says that costs are known before anything is drawn."""
    assert planned.ship is not None
    shares = Shares()
    field = [
        Contestant(n, planned.distinct[n].overrides, x.work if known else shares.work(x.choices, x.taken))
        for n, x in found.items()
    ]
    course = Course(planned.ship, field, first)
    ran: set[int] = set()

    def draw(due: list[tuple[Contestant, int]]) -> dict[int, dict[str, MetricResult]]:
        ran.update(c.number for c, _ in due)
        for number in ran:
            if (share := found[number].share) is not None:
                shares.add(found[number].choices, share)
        for one in field:
            of = found[one.number]
            one.cost = of.work if known or one.number in ran else shares.work(of.choices, of.taken)
        return {c.number: {k: part(m, order[:many]) for k, m in found[c.number].metrics.items()} for c, many in due}

    course.run(draw)
    return standing.chosen(field), sum(c.n for c in field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--timed", type=Path, metavar="RACE")
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
        times = times_of(planned, asked.timed) if asked.timed else None
        found = drawn(planned, hydra.config_loader, config, recipe, whole, times)
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
        order = np.random.default_rng(seed).permutation(whole)
        answer, pictures = race(planned, found, order, first, times is not None)
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
