"""Milliseconds of a step by each contender of a bench, beside the floor of its arithmetic."""

from diffopt.files.bench import BenchFile
from diffopt.report.plots.canvas import BAR, COLOURS, INK, named_rows


def contenders(bench: BenchFile) -> str:
    """A bar each, in the bench's order, with the 10th to 90th percentile; empty where no step was timed."""
    timed = [(c, c.milliseconds_per_step) for c in bench.contenders if c.milliseconds_per_step]
    if not timed:
        return ""
    titles = [each.title for each, _ in timed]
    with named_rows("Milliseconds of a denoising step, and the floor of its arithmetic", titles) as (made, axes, marks):
        most = max(step.p90 for _, step in timed)
        for i, (each, step) in enumerate(timed):
            colour = COLOURS[1] if each.name == bench.headline else COLOURS[0]
            reach, at = [[step.median - step.p10], [step.p90 - step.median]], marks[i]
            axes.barh(at, step.median, height=BAR, color=colour, xerr=reach, ecolor=INK, capsize=2, zorder=2)
            axes.annotate(f"{step.median:.4g}", (step.p90, at), (5, 0), textcoords="offset points", va="center", fontsize=9)
            if each.floor:
                ms, named = each.floor.milliseconds, "_" if any(c.floor for c, _ in timed[:i]) else "floor of its arithmetic"
                axes.plot([ms, ms], [at - 0.7 * BAR, at + 0.7 * BAR], color=INK, linewidth=2.2, zorder=4, label=named)
        axes.set_xlim(0, 1.16 * most)
        axes.set(xlabel="ms per denoising step (less is better)")
        if any(c.floor for c, _ in timed):
            made.figure.legend(loc="outside upper right")
    return made.svg
