"""A metric against the arithmetic that a cache leaves out: the values of a knob that were tried, the floor, the chosen one."""

from diffopt.caches.knob_search import floors_text
from diffopt.files.search import CacheSearchFile
from diffopt.report.plots.canvas import ACCENT, COLOURS, INK, SLIM, annotate, reach, sheet, titled


def tried(found: CacheSearchFile, name: str) -> str:
    """`name` is a metric of its floor.

    Values that never hit or that broke the pictures have no point: the one has no noise at all, the other no metric.
    """
    points = [p for p in found.points if p.metrics and p.hits]
    metric = points[0].metrics[name]
    at = [(100 * (1 - p.computed), p.metrics[name].candidate) for p in points]
    with sheet(f"{metric.title} against the arithmetic that {found.method} leaves out", SLIM, 3.6) as made:
        axes = made.axes()
        axes.grid(True)
        axes.margins(0.08, 0.12)
        axes.plot([x for x, _ in at], [s.mean for _, s in at], "-", color=COLOURS[0], linewidth=1, alpha=0.5, zorder=2)
        for point, (x, stat) in zip(points, at, strict=True):
            mark = "o" if point.keeps else "X"
            colour = COLOURS[0] if point.keeps else COLOURS[1]
            axes.errorbar([x], [stat.mean], yerr=reach([stat]), fmt=mark, color=colour, capsize=2, elinewidth=1, zorder=3)
        value = found.chosen.value
        x, stat = next(place for point, place in zip(points, at, strict=True) if point.value == value)
        label = f"chosen: {found.knob}={value:g}"
        ring = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": ACCENT, "markeredgewidth": 1.8}
        axes.plot([x], [stat.mean], "o", label=label, zorder=4, **ring)
        by_value = {p.value: place for p, place in zip(points, at, strict=True)}
        sharp = [c for c in found.cliffs if c.kind in ("falls", "jumps") and c.metric in (None, name)]
        for i, about in enumerate(sharp):
            ends = [by_value[end] for end in (about.after, about.before) if end in by_value]
            axes.plot(
                [x for x, _ in ends],
                [s.mean for _, s in ends],
                "--",
                color=COLOURS[1],
                linewidth=2.2,
                zorder=2,
                label="_" if i else "cliff",
            )
        label = f"floor: {floors_text({name: found.floor[name]})}"
        axes.axhline(_limit(found, name), color=INK, linestyle=":", linewidth=1.2, label=label)
        axes.set(xlabel="arithmetic left out, %", ylabel=f"{titled(metric)} ({metric.better} is better)")
        axes.ticklabel_format(useOffset=False)
        made.figure.legend(loc="outside upper left", ncols=2)
        places = [(x, stat.mean) for x, stat in at]
        annotate(
            made.figure,
            axes,
            [(a, f"{p.value:g}", p.value == value) for p, a in zip(points, places, strict=True)],
            places,
        )
    return made.svg


def _limit(found: CacheSearchFile, name: str) -> float:
    """The floor in the metric's unit."""
    from diffopt.quality.limit import Limit

    return Limit.parse(name, found.floor[name]).bound(found.chosen.metrics[name])
