"""What a search of a cache's knob found, in words. Plain Python: the report says them too."""

from diffopt.caches.knob_search import KnobSearch, floors_text
from diffopt.files.search import CacheSearchFile, Cliff
from diffopt.text import with_interval
from diffopt.tuning.bisection import Found, Point, Scale


def reason(scale: Scale, found: Found) -> str:
    """Why no faster value was chosen."""
    knob, chosen = scale.knob, found.chosen
    assert chosen is not None
    end, turn = ("high", "raise") if knob.more == "higher" else ("low", "lower")
    if found.limit == "bound" and chosen is found.points[-1]:
        return f"the most that was asked for keeps the floor too: cache.search.{end} is what limits, {turn} it"
    if found.limit == "bound":
        return f"turned further, to {found.points[-1].value:g}, it leaves out no more and keeps the floor too"
    if found.next is None:
        return "no more values were to be tried: raise cache.search.evaluations"
    broken = f"{knob.name}={found.next.value:g}, {_missed(found.next)}, does not keep it"
    if found.limit == "evaluations":
        return f"{broken}, and no more values between were to be tried: raise cache.search.evaluations"
    if scale.between(chosen.value, found.next.value) is None:
        return f"the next value, {broken}"
    return f"{broken}, and what lies between leaves out no more"


def nothing(scale: Scale, search: KnobSearch, points: list[Point]) -> str:
    """The line for a search in which no value can be chosen."""
    knob = scale.knob
    span = f"from {scale.low:g} to {scale.high:g}"
    mild, bold = ("low", "high") if knob.more == "higher" else ("high", "low")
    turn = {"low": "lower", "high": "raise"}
    hit = [p for p in points if p.hits]
    if not hit:
        return f"cache: never hit with {knob.name} {span} (got {len(points)} values); {turn[bold]} cache.search.{bold}"
    measured = [p for p in hit if p.metrics]
    if not measured:
        return f"cache: every value of {knob.name} {span} breaks the pictures (got {len(hit)}); choose another cache"
    best = max(measured, key=lambda p: min(_share(p, name) for name in p.margins))
    got = f"at best {_missed(best)} at {knob.name}={best.value:g}, {1 - best.computed:.1%} of the arithmetic left out"
    return (
        f"cache: no value of {knob.name} {span} that leaves anything out keeps the floor {floors_text(search.floor)} "
        f"(got {got}); lower the floor, {turn[mild]} cache.search.{mild}, or choose another cache"
    )


def _missed(point: Point) -> str:
    """The metrics whose floors are not kept."""
    missed = [point.metrics[n] for n, m in point.margins.items() if m.mean < 0]
    return ", ".join(f"{m.title} {with_interval(m.candidate, m.unit)}" for m in missed) or "with broken pictures"


def _share(point: Point, name: str) -> float:
    return point.margins[name].mean / (abs(point.metrics[name].candidate.mean) or 1.0)


def cliff(about: Cliff, found: CacheSearchFile) -> str:
    """One of the cliffs of what was found."""
    span = f"from {found.knob}={about.after:g} to {about.before:g}"
    by = about.by
    if about.kind == "jumps":
        return f"{span} the share that is left out jumps by {by:.1%}, with no value between"
    if about.kind == "slows":
        return f"{span} {by:.1%} more of the arithmetic is computed, though the knob is turned on"
    assert about.metric is not None
    metric = next(p.metrics[about.metric] for p in found.points if p.metrics)
    size = f"{by:.3g}{' ' if metric.unit else ''}{metric.unit}"
    if about.kind == "falls":
        return f"{span} {metric.title} gets worse by {size}: a cliff, with no value between"
    return f"{span} {metric.title} gets better by {size}, though less is computed"


def chosen(found: CacheSearchFile) -> str:
    """`threshold=0.21, 38.0% of the arithmetic left out, PSNR 31.2 dB [30.1, 32.3]`."""
    point = found.chosen
    kept = [f"{m.title} {with_interval(m.candidate, m.unit)}" for m in point.metrics.values()]
    left = f"{1 - point.computed:.1%} of the arithmetic left out"
    return ", ".join([f"{found.knob}={point.value:g}", left, *kept])
