"""Values of pictures to means with intervals, paired differences and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np

from diffopt.files.evaluation import ModelResult
from diffopt.files.metrics import MetricResult
from diffopt.metrics import METRICS, Scorer, SetScorer
from diffopt.metrics.intervals import interval
from diffopt.quality import verdict
from diffopt.quality.direction import sign
from diffopt.quality.scoring import Measured


def summarise(name: str, measured: Measured, scorer: Scorer, reference: str | None) -> dict[str, ModelResult]:
    """By model; beside a reference there is `difference` of scores of one picture, and `verdict`."""
    metric, kept = METRICS[name], measured.kept
    found: dict[str, ModelResult] = {}
    arrays = {m: a[kept] for m, a in measured.values[name].items()}
    for model, ours in arrays.items():
        if not len(ours):
            continue
        if metric.judges == "set":
            if model != reference and reference:
                assert isinstance(scorer, SetScorer)
                stat = scorer.distance(ours, arrays[reference])
                said = verdict.of_distance(stat, metric.unit, int(measured.same[model][kept].sum()))
                found[model] = ModelResult(stat, verdict=said)
            continue
        values = [None if np.isnan(v) else float(v) for v in measured.values[name][model]]
        entry = ModelResult(interval(ours), values)
        if metric.judges == "pair":
            said = verdict.of_distance(entry.stat, metric.unit, int(measured.same[model][kept].sum()))
            entry = replace(entry, verdict=said)
        elif reference and model != reference:
            theirs = arrays[reference]
            difference = interval(ours - theirs)
            said = verdict.of_difference(difference, float(np.std(theirs)), metric.better, metric.unit)
            entry = replace(entry, difference=difference, verdict=said)
        found[model] = entry
    return found


def entries(measured: Measured, scorers: Mapping[str, Scorer]) -> dict[str, MetricResult]:
    """By metric of the models `candidate` and `reference`, of which every picture could be read."""
    found = {}
    for name, scorer in scorers.items():
        metric = METRICS[name]
        by_model = summarise(name, measured, scorer, "reference")
        candidate, base = by_model["candidate"], by_model.get("reference")
        found[name] = MetricResult(
            title=metric.title,
            unit=metric.unit,
            better=metric.better,
            candidate=candidate.stat,
            values=_whole(candidate),
            difference=candidate.difference,
            verdict=candidate.verdict,
            reference=base.stat if base else None,
            reference_values=_whole(base) if base else None,
        )
    return found


def _whole(model: ModelResult) -> Sequence[float] | None:
    return cast("Sequence[float] | None", model.values)  # none is left out: every picture could be read


def order(name: str, measured: Measured) -> list[str]:
    """Of a metric that judges pairs, a line for each two neighbours in the order of their means, the best first."""
    metric = METRICS[name]
    turn = sign(metric.better)
    arrays = {m: turn * a[measured.kept] for m, a in measured.values[name].items()}
    ranked = sorted(arrays, key=lambda m: -float(np.mean(arrays[m]))) if measured.kept.any() else []
    return [verdict.of_order(a, b, interval(arrays[a] - arrays[b]), metric.unit) for a, b in pairwise(ranked)]
