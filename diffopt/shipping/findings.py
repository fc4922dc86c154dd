"""What the runs found, as a card says it: quality with intervals, verdicts, gates, speed where it was measured, recipes."""

import re
from collections.abc import Iterator, Sequence
from shlex import quote

import yaml

from diffopt.files.bench import Contender
from diffopt.files.images import ImagesFile
from diffopt.files.latency import LatencyFile
from diffopt.files.metrics import MetricResult
from diffopt.report.run_directory import Run
from diffopt.shipping import private
from diffopt.shipping.evidence import Evidence
from diffopt.shipping.markdown import cell, table
from diffopt.shipping.subject import Subject
from diffopt.text import machine, pace, signed, with_interval

SHOWN = 8
"""Runs whose figures are all given; of more the newest."""


def section(subject: Subject, evidence: Sequence[Evidence]) -> Iterator[str]:
    if not evidence:
        return
    yield "## What was measured"
    yield ""
    yield "Brackets are 95% bootstrap intervals over prompts, n is their number. Every figure is from a run that drew with"
    yield "exactly this checkpoint; the artifacts are named below."
    for x in evidence[:SHOWN]:
        yield ""
        yield f"### {cell(x.name)}"
        yield ""
        yield from _one(x)
    if (more := len(evidence) - SHOWN) > 0:
        yield ""
        yield f"{more} older runs have drawn with it too."


def _one(x: Evidence) -> Iterator[str]:
    yield _how(x)
    if x.score:
        yield ""
        rows = [_row(m) for m in x.score.metrics.values()]
        yield from table(("metric", "these weights", "full precision", "paired difference", "better", "n"), rows)
        verdicts = [f"- {m.title}: {m.verdict}" for m in x.score.metrics.values() if m.verdict]
        if verdicts:
            yield ""
            yield from verdicts
    else:
        yield ""
        yield "It was drawn and not scored."
    if x.gates:
        yield ""
        yield from (f"- Gate `{o.gate}` {'holds' if o.holds else '**is broken**'}: {o.found}" for o in x.gates)
    ranges = x.run.ranges if not x.ending else None
    if ranges and ranges.beyond:
        yield ""
        yield f"{len(ranges.beyond)} of {len(ranges.content.inputs)} inputs left the range that they were calibrated for."
    yield ""
    yield from _speed(x)


def _row(metric: MetricResult) -> tuple[str, ...]:
    reference = with_interval(metric.reference, metric.unit) if metric.reference else "it is compared with it"
    difference = signed(metric.difference, metric.unit) if metric.difference else "-"
    found = with_interval(metric.candidate, metric.unit)
    return (cell(metric.title), found, reference, difference, metric.better, str(metric.candidate.n))


def _how(x: Evidence) -> str:
    """What drew, and what was no kernel."""
    images, about = x.images, x.run.config["eval"]
    runtime = images.runtime or about.get("runtime") or "?"
    size = f"{x.run.config['model'].get('width')}x{x.run.config['model'].get('height')}"
    steps = images.steps or about.get("steps")
    seed = _seed(x.run, images)
    parts = [f"Drawn by `{runtime}` at {size} in {steps} steps{seed}."]
    if images.simulated:
        parts.append(
            "**Simulated**: torch rounds weights and inputs as the format does and computes in the model's precision. So the "
            "quality is the format's, and there is no speed: no kernel of it ran."
        )
    elif images.simulated is False:
        parts.append("Its kernels ran; nothing is simulated.")
    if images.cache:
        method = x.run.config["cache"].get("method") or "a cache"
        parts.append(
            f"With the cache {cell(str(method))} on top, which computes {images.cache.computed:.1%}: not these weights alone."
        )
    return " ".join(parts)


def _seed(run: Run, images: ImagesFile) -> str:
    seeds = [row.seed for row in images.images]
    return f", seeds {seeds[0]} to {seeds[-1]}, one a prompt" if seeds else ""


def _speed(x: Evidence) -> Iterator[str]:
    said = [*(_timed(x.latency) if x.latency else ()), *(_benched(x) if x.bench else ())]
    if said:
        yield from said
    elif x.ending:
        yield "Its speed was not measured."
    else:
        yield f"No speed is claimed: {cell(x.run.unclaimed)}."


def _timed(found: LatencyFile) -> Iterator[str]:
    if not (found.candidate and found.speedup):
        return
    ours, theirs = found.candidate.seconds_per_image.median, found.baseline.seconds_per_image.median
    ratio = found.speedup.end_to_end
    yield (
        f"Speed on {machine(found.machine)} by diffopt's `{found.runtime}`, batch {found.batch_size}, {found.steps} "
        f"steps: {ours:.3g} s a picture, full precision {theirs:.3g} s; {with_interval(ratio)} x end to end, {pace(ratio)}. "
        "Other programs have kernels of their own."
    )


def _benched(x: Evidence) -> Iterator[str]:
    found = x.bench
    assert found is not None
    rows = [_contender(c) for c in found.contenders]
    yield f"Speed on {machine(found.machine)}, contenders timed in turn:"
    yield ""
    yield from table(("contender", "ms a step", "end to end, beside full precision"), rows)


def _contender(c: Contender) -> tuple[str, str, str]:
    step = f"{c.milliseconds_per_step.median:.4g}" if c.milliseconds_per_step else "-"
    return cell(c.name), step, f"{with_interval(c.over_base.end_to_end)} x" if c.over_base else "1"


def recipes(evidence: Sequence[Evidence], run: Run | None) -> Iterator[str]:
    """The commands of the runs, and the newest one's whole recipe."""
    runs = [x.run for x in evidence[:SHOWN]] or ([run] if run else [])
    commands = list(dict.fromkeys(map(command, runs)))
    if commands:
        yield ""
        yield "The commands of its runs, the newest first:"
        yield ""
        yield "```sh"
        yield from commands
        yield "```"
    if run:
        config = run.content.config
        calibrated = _calibration(config)
        if calibrated:
            yield ""
            yield calibrated
        yield ""
        yield "<details><summary>The recipe as composed</summary>"
        yield ""
        yield "```yaml"
        yield private.config(config).rstrip().replace("```", "'''")
        yield "```"
        yield ""
        yield "</details>"


def command(run: Run, without: str | None = None) -> str:
    """That made a run, without what says where things lie here, nor the choice of the group `without`. Of a race's answer it
    is the run alone."""
    content = run.content
    recipe = [f"+recipe={content.name}"] if content.name and content.name != "config" else []
    given = [private.override(o) for o in content.overrides if o.partition("=")[0].lstrip("~") != without]
    if yaml.safe_load(content.config).get("ship"):
        given = [o for o in given if re.split(r"[.=]", o)[0] != "ship"] + ["hydra.mode=RUN", "ship=null"]
    return " ".join(["diffopt", *recipe, *map(quote, given)]).replace("```", "'''")


def _calibration(config: str) -> str:
    found = yaml.safe_load(private.config(config))
    calib = found.get("calib") or {}
    if not calib:
        return "Nothing was calibrated: the format finds its scales as it computes."
    said = f"Calibrated on {calib.get('size')} prompts of `{calib.get('prompts')}`"
    return (
        said + (f", {calib['n_steps']} denoising steps each" if calib.get("n_steps") else "") + f", seed {found.get('seed')}."
    )
