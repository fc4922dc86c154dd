"""Milliseconds of a step by each contender of a bench, beside the floor of its arithmetic."""

from diffopt.files.bench import BenchFile
from diffopt.report.plots.canvas import COLOURS, INK, SOFT, sheet


def contenders(bench: BenchFile) -> str:
    """A bar each, in the bench's order, with the 10th to 90th percentile; empty where no step was timed."""
    rows = [(c, c.milliseconds_per_step) for c in bench.contenders if c.milliseconds_per_step]
    if not rows:
        return ""
    with sheet("Milliseconds of a denoising step, and the floor of its arithmetic", 6.4, 0.9 + 0.42 * len(rows)) as made:
        axes = made.axes()
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        most = max(step.p90 for _, step in rows)
        for i, (each, step) in enumerate(rows):
            colour = COLOURS[1] if each.name == bench.headline else COLOURS[0]
            reach = [[step.median - step.p10], [step.p90 - step.median]]
            axes.barh(i, step.median, height=0.62, color=colour, xerr=reach, ecolor=INK, capsize=2, zorder=2)
            axes.annotate(f"{step.median:.4g}", (step.p90, i), (5, 0), textcoords="offset points", va="center", fontsize=9)
            if each.floor:
                at, named = each.floor.milliseconds, "_" if any(c.floor for c, _ in rows[:i]) else "floor of its arithmetic"
                axes.plot([at, at], [i - 0.42, i + 0.42], color=INK, linewidth=2.2, zorder=4, label=named)
        axes.set_yticks(range(len(rows)), [each.title for each, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK, color=SOFT)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * most)
        axes.set(xlabel="ms per denoising step (less is better)")
        if any(c.floor for c, _ in rows):
            made.figure.legend(loc="outside upper right")
    return made.svg
