"""The page of one run: a view of what run.json links to, made anew at any time. Imports no torch and no numpy."""

from collections import Counter
from pathlib import Path

from diffopt.caches.knob_search import floors_text
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.comparison import Compared
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.json_file import plain
from diffopt.files.metrics import MetricResult
from diffopt.files.mix import MixFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import EnginePlanFile
from diffopt.files.ratios import MagRatiosFile
from diffopt.files.search import CacheSearchFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.files.training import TrainingFile
from diffopt.quality.limit import PARITY
from diffopt.report.form import products
from diffopt.report.gallery import SCRIPT, SHOWN, of_run
from diffopt.report.gate_outcomes import outcomes
from diffopt.report.html import PAGE, render
from diffopt.report.parity import summary as parity_said
from diffopt.report.parity import worst_layers
from diffopt.report.plot_cache import drawn
from diffopt.report.ranges import percent
from diffopt.report.run_directory import Run
from diffopt.report.sensitivity import WORST, Reading
from diffopt.store.files import publish
from diffopt.text import machine, pace, size, with_interval
from diffopt.tuning import explanation

CARD = "card.md"
"""The card of the weights that a run made for other programs, which shipping/run_card.py writes beside the page."""
FAR = 0.25
"""Of what was measured."""
INLINED = 200
"""SHOWN of a page that has the pictures in it."""


def write(directory: Path, inline: bool = False) -> Path:
    """Write the run's page, report.html. Raises ConfigError where `directory` is not a run's.

    The page shows the pictures of the run's directory; with `inline` it has small copies of them, and can be passed on alone.
    """
    run = Run(directory)
    shown = of_run(run, INLINED if inline else SHOWN, inline)
    records = {s.name: run.read(s.name, "record.json") for s in run.content.steps}
    plan, sensed = run.stored("build", EnginePlanFile), run.stored("sense", SensitivityFile)
    reading = Reading(sensed) if sensed else None
    content = {
        "beside": beside,
        "far": far,
        "card": CARD if (directory / CARD).is_file() and not inline else None,
        "searched_cache": run.stored("search", CacheSearchFile),
        "checkpoint": run.stored("quantize", CheckpointFile),
        "graph": run.stored("export", OnnxGraphFile),
        "plan": plan,
        "plan_products": products(plan) if plan else "",
        "mix": run.stored("mix", MixFile),
        "ratios": run.stored("ratios", MagRatiosFile),
        "training": run.stored("train", TrainingFile),
        "pipeline": run.stored("load", PipelineFile),
        "reading": reading,
        "maps": _maps(run, reading) if reading else {},
        "worst": WORST,
        "percent": percent,
        "plots": _plots(run),
        "agreed": _agreed(run),
        "parity_layers": worst_layers(run.parity) if run.parity else [],
        "parity_said": parity_said(run.parity) if run.parity else "",
        "outcomes": outcomes(run),
        "searches": _searches(run),
        "bars": _bars(run),
        "chosen_text": explanation.chosen,
        "cliff_text": explanation.cliff,
        "floors_text": floors_text,
    }
    text = render("run.html", script=SCRIPT, run=run, gallery=shown, records=records, **content)
    return publish(directory / PAGE, text)


def far(estimated: float | None, measured: float) -> bool:
    """Whether what was estimated is off by more than FAR, and is shown beside what was measured."""
    return bool(estimated) and bool(measured) and abs(float(estimated or 0) / measured - 1) > FAR


def _maps(run: Run, reading: Reading) -> dict[str, str]:
    """SVGs of a sensitivity: by `heat` or `bars`, and the format, in the order in which they are shown."""

    def draw() -> dict[str, str]:
        from diffopt.report.sensitivity_plot import bars, heats

        kinds = {"heat": heats(reading), "bars": bars(reading)}
        return {f"{kind} {name}": svg for kind, found in kinds.items() for name, svg in found.items()}

    return drawn(run.directory / "sense", plain(reading.content), draw)


def _plots(run: Run) -> dict[str, str]:
    """By metric, of those that have a value for each pair: an SVG of them. Where nothing was measured nothing is imported."""
    metrics = {name: m for name, m in run.metrics.items() if m.values is not None}

    def draw() -> dict[str, str]:
        from diffopt.report.plots.differences import differences

        return {name: differences(m) for name, m in metrics.items()}

    return drawn(run.directory / "score", plain(metrics), draw) if metrics else {}


def _agreed(run: Run) -> str:
    """An SVG of the parity in every step; empty where there is none."""
    parity = run.parity
    if parity is None:
        return ""
    given = (run.config["eval"].get("gates") or {}).get(PARITY)
    gate = None if given is None else float(given)

    def draw() -> dict[str, str]:
        from diffopt.report.plots.agreement import agreement

        return {"steps": agreement(parity, gate)}

    return drawn(run.directory / "parity", [plain(parity), gate], draw)["steps"]


def _searches(run: Run) -> list[str]:
    """By metric of the floor an SVG of the values of a cache's knob that were tried."""
    found = run.stored("search", CacheSearchFile)
    if found is None:
        return []

    def draw() -> dict[str, str]:
        from diffopt.report.plots.tried import tried

        return {name: tried(found, name) for name in found.floor}

    return [*drawn(run.directory / "search", plain(found), draw).values()]


def _bars(run: Run) -> str:
    """An SVG of a bench's steps."""
    found = run.bench
    if found is None:
        return ""

    def draw() -> dict[str, str]:
        from diffopt.report.plots.contenders import contenders

        return {"bars": contenders(found)}

    return drawn(run.directory / "bench", plain(found), draw)["bars"]


def summary(directory: Path) -> list[str]:
    """The run in a few lines for the console: metrics, size, speed."""
    run = Run(directory)
    rows = [(m.title, measured(m)) for m in run.metrics.values()]
    for other in run.compared:
        rows.append((f"beside {other.name}", beside(other)))
        for each in other.metrics.values():
            said = each.verdict or f"n={each.compared.n}"
            rows.append((f"  {each.title}", f"{with_interval(each.compared, each.unit)}  {said}"))
    base = run.size_of("export.baseline")
    for step, what in (("export", "graph"), ("build", "plan")):
        if row := run.size_of(step):
            share = f", {row.share:.1%} of the plain graph's {size(base.bytes)}" if base else ""
            rows.append((what, size(row.bytes) + share))
    if (plan := run.stored("build", EnginePlanFile)) and (counts := products(plan)):
        rows.append(("products", counts))
    for step, what in (("deploy", "deployed"), ("pack", "packed"), ("weights", "weights")):
        if (row := run.size_of(step)) and (source := run.size_of("load")):
            share = f"{size(row.bytes)}, {row.bytes / source.bytes:.1%} of the source's {size(source.bytes)}"
            rows.append((what, share + ("; as its kernels would keep them, nothing was exported" if step == "weights" else "")))
    for row in (r for r in run.sizes if r.step == "slim"):
        rows.append((row.what, f"{size(row.bytes)}, {row.share:.1%} of its own in the model's precision; {row.note}"))
    if run.ranges and (line := run.ranges.line):
        rows.append(("ranges", line))
    if sensed := run.stored("sense", SensitivityFile):
        reading = Reading(sensed)
        for name in reading.formats:
            top = reading.worst(name)[0]
            rows.append((f"worst {name}", f"{top.name}: output off by {top.error:.2%}"))
            if best := reading.best(name):
                taken = reading.won(name, reading.layers(name), best) or 0.0
                rows.append((f"best {name}", f"format.{best.partition(' ')[2]}: takes {taken:.1%} of its summed squared error"))
    if search := run.stored("search", CacheSearchFile):
        rows.append(("cache", f"{explanation.chosen(search)}; {search.reason}"))
        rows += [("cliff", explanation.cliff(about, search)) for about in search.cliffs]
    if mix := run.stored("mix", MixFile):
        counted = Counter(x.format for x in mix.layers)
        rows.append(("mix", f"{mix.bits:.3f} bits per weight: " + ", ".join(f"{n} {f}" for f, n in counted.most_common())))
    if training := run.stored("train", TrainingFile):
        rows.append(("training", trained(training)))
    if run.parity:
        rows.append(("parity", parity_said(run.parity)))
    if run.bench:
        rows += [("bench", c.verdict) for c in run.bench.contenders if c.verdict]
    if run.latency or not run.bench:
        rows.append(("speed", speed(run)))
    rows += [("gate", f"{o.gate} {'holds' if o.holds else 'is broken'}: {o.found}") for o in outcomes(run)]
    width = max(len(title) for title, _ in rows)
    return [f"{title:{width}}  {text}" for title, text in rows]


def measured(metric: MetricResult) -> str:
    """The candidate's mean, its interval, and for a score of single pictures the verdict on the paired difference."""
    text = with_interval(metric.candidate, metric.unit)
    if metric.difference and metric.verdict:
        return f"{text}  {metric.verdict}"
    return f"{text}  n={metric.candidate.n}"


def beside(other: Compared) -> str:
    """What a further candidate is, and beside fewer steps how much of the arithmetic the cached run did."""
    return other.title + (f"; with the cache {other.computed:.1%}" if other.arithmetic is not None else "")


def trained(training: TrainingFile) -> str:
    """The method, the steps, and the validated metric before and after."""
    text = f"{training.method.upper()}, {training.steps} steps"
    if training.scales != "fixed":
        text += f", scales {training.scales}"
    if scores := [v.score for v in training.validations]:
        text += f": {training.metric} in validation from {scores[0]:.2f} to {scores[-1]:.2f}, best {max(scores):.2f}"
    return text


def speed(run: Run) -> str:
    """The speedup with its interval and its machine, or that there is none and why."""
    if not (run.speedup and run.latency):
        return f"not claimed: {run.unclaimed}"
    return f"{with_interval(run.speedup)} x end to end, {pace(run.speedup)}; {machine(run.latency.machine)}"
