"""Values of pictures to means with intervals, paired differences and verdicts."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from diffopt.metrics import METRICS, Scorer, SetScorer
from diffopt.metrics.intervals import interval
from diffopt.quality import verdict
from diffopt.quality.direction import sign
from diffopt.quality.scoring import Measured


def summarise(name: str, measured: Measured, scorer: Scorer, reference: str | None) -> dict[str, dict[str, Any]]:
    """By model: `stat` {mean, low, high, n}; `values`, a list with None for a prompt that was left out, unless the
    metric judges sets; and beside a reference `difference` (of scores of one picture) and `verdict`.
    """
    metric, kept, found = METRICS[name], measured.kept, {}
    arrays = {m: a[kept] for m, a in measured.values[name].items()}
    for model, ours in arrays.items():
        if not len(ours):
            continue
        if metric.judges == "set":
            if model != reference and reference:
                assert isinstance(scorer, SetScorer)
                stat = scorer.distance(ours, arrays[reference])
                found[model] = {
                    "stat": stat,
                    "verdict": verdict.of_distance(stat, metric.unit, int(measured.same[model][kept].sum())),
                }
            continue
        entry: dict[str, Any] = {"stat": interval(ours)}
        entry["values"] = [None if np.isnan(v) else float(v) for v in measured.values[name][model]]
        if metric.judges == "pair":
            entry["verdict"] = verdict.of_distance(entry["stat"], metric.unit, int(measured.same[model][kept].sum()))
        elif reference and model != reference:
            theirs = arrays[reference]
            entry["difference"] = interval(ours - theirs)
            entry["verdict"] = verdict.of_difference(entry["difference"], float(np.std(theirs)), metric.better, metric.unit)
        found[model] = entry
    return found


def entries(measured: Measured, scorers: Mapping[str, Scorer]) -> dict[str, dict[str, Any]]:
    """By metric of the models `candidate` and `reference` what metrics.json has of it."""
    found: dict[str, dict[str, Any]] = {}
    for name, scorer in scorers.items():
        metric = METRICS[name]
        by_model = summarise(name, measured, scorer, "reference")
        candidate, base = by_model["candidate"], by_model.get("reference")
        found[name] = {"title": metric.title, "unit": metric.unit, "better": metric.better}
        found[name] |= {"candidate" if key == "stat" else key: value for key, value in candidate.items()}
        if base:
            found[name] |= {"reference": base["stat"], "reference_values": base["values"]}
    return found


def order(name: str, measured: Measured) -> list[str]:
    """Of a metric that judges pairs, a line for each two neighbours in the order of their means, the best first."""
    metric = METRICS[name]
    turn = sign(metric.better)
    arrays = {m: turn * a[measured.kept] for m, a in measured.values[name].items()}
    ranked = sorted(arrays, key=lambda m: -float(np.mean(arrays[m]))) if measured.kept.any() else []
    return [verdict.of_order(a, b, interval(arrays[a] - arrays[b]), metric.unit) for a, b in pairwise(ranked)]
