"""Whether drawn pictures keep a floor: its metrics beside the reference's pictures, and the margins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffopt.artifact import ReferenceImages
from diffopt.data import pictures
from diffopt.errors import GateError, MetricError
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.groups.eval import RuntimeView
from diffopt.metrics import METRICS, Weights
from diffopt.quality.limit import Limit
from diffopt.quality.scoring import measure
from diffopt.quality.summary import entries
from diffopt.stage import Context


@dataclass(frozen=True)
class Verdict:
    margins: dict[str, Interval]
    """By metric of the floor by how much it is kept; below 0 it is not."""
    keeps: bool
    """Whether the means keep every floor."""
    shown: bool
    """Whether the sample shows that they do."""


class Judge:
    """The scorers are opened once, for all pictures that are judged."""

    def __init__(self, ctx: Context, floors: Sequence[Limit], eval: RuntimeView, reference: ReferenceImages):
        """`eval` has the sources of the scorers too. Raises MetricError for one that cannot be opened."""
        self.floors, self.prompts, self.device = floors, eval.prompts.prompts, ctx.device
        self.theirs = pictures.frames(reference.path)[: len(self.prompts)]
        names = [f.metric for f in floors]
        needed = dict.fromkeys(source for name in names for source in METRICS[name].needs)
        weights = Weights({s: ctx.locate(ctx.digest(getattr(eval, s))) for s in needed}, ctx.device)
        self.scorers = {name: METRICS[name].open(weights) for name in names}

    def metrics(self, drawn: Path) -> dict[str, MetricResult]:
        """Those of the floor, as in metrics.json, of the pictures in the directory `drawn`.

        Raises MetricError for one that cannot be measured, GateError for pictures that are broken.
        """
        judged = {"reference": self.theirs, "candidate": pictures.frames(drawn)}
        measured = measure(self.prompts, judged, self.scorers, "reference", device=self.device)
        if measured.failed:
            raise MetricError("\n".join(measured.failed.values()))
        if measured.flaws:
            raise GateError("\n".join(measured.flaws))
        return entries(measured, self.scorers)

    def verdict(self, metrics: Mapping[str, MetricResult]) -> Verdict:
        """Without metrics nothing is kept."""
        margins = {f.metric: f.margin(metrics[f.metric]) for f in self.floors} if metrics else {}
        keeps = bool(margins) and all(f.keeps(metrics[f.metric]) for f in self.floors)
        shown = keeps and all(m.ends is not None and m.ends[0] >= 0 for m in margins.values())
        return Verdict(margins, keeps, shown)
