"""What a sweep answers, in lines for people: the best, and what to ship under the floors."""

from diffopt.sweep import race
from diffopt.sweep.findings import Findings
from diffopt.sweep.job_table import Row
from diffopt.sweep.pick import Pick, margin_text
from diffopt.text import SLOWER, pace


def apart(found: Findings) -> str:
    """Whether the best can be told apart from the others; empty where there is nothing to compare."""
    others = [r for r in found.compared if r.distinct and r is not found.best and found.first in r.metrics]
    if not found.best or not others:
        return ""
    if found.few and found.first:
        many = found.best.metrics[found.first].candidate.n
        return f"{_many(many, 'picture')} {'are' if many > 1 else 'is'} too few to tell it apart from any other"
    if not found.ties:
        return f"the sample tells it apart from the {_many(len(others), 'other distinct job')}"
    names = ", ".join(r.job for r in found.ties)
    return f"the sample does not tell it apart from job{'s' if len(found.ties) > 1 else ''} {names}"


def slower(found: Findings) -> str:
    """Which jobs are shown to be slower than what they were timed beside; empty where none is."""
    names = [r.job for r in found.rows if r.distinct and r.speedup and pace(r.speedup) == SLOWER]
    if not names:
        return ""
    return f"jobs {', '.join(names)} are slower than their baselines" if len(names) > 1 else f"job {names[0]} is {SLOWER}"


def under(found: Findings) -> list[str]:
    """What to ship under the stated floors; empty where none was stated."""
    if found.race:
        return race.verdict(found.race) or ["the race is not over: the same command goes on"]
    if not found.floors:
        return []
    stated = " and ".join(f.text for f in found.floors)
    if not found.first:
        return [f"nothing was measured, so no job can be judged by {stated}"]
    if found.picks:
        return _merged(found, stated)
    if found.nearest is None:
        return [f"no job was measured in all of {stated}"]
    row, verdict = found.nearest
    return [
        f"no job's mean keeps {stated}; nearest is {_named(found, row)}: {verdict.floor.text} by {margin_text(row, verdict)}"
    ]


def _merged(found: Findings, stated: str) -> list[str]:
    """A line or two a pick; one for both where the smallest is the fastest."""
    lines = []
    for job, picks in found.shipped.items():
        words = " and ".join(p.word for p in picks)
        costs = "".join(f", {p.cost.text(job)}" for p in picks if p.cost)
        measured = ", ".join(dict.fromkeys(found.measured(picks[0].row, f.metric) for f in found.floors))
        lines.append(f"{words} job {picks[0].keeps} {stated}: {_named(found, picks[0].row)}{costs}; {measured}")
        lines += [f"  {line}" for p in picks for line in caveats(found, p)]
    return list(dict.fromkeys(lines))


def caveats(found: Findings, pick: Pick) -> list[str]:
    """What the sample cannot show of a pick."""
    lines = []
    if not pick.shown:
        doubted = [v for v in found.verdicts[pick.row.job] if v.says != "kept"]
        for v in doubted:
            many = _many(v.margin.n, "picture")
            cannot = f"{'is' if v.margin.n == 1 else 'are'} too few to show it" if v.says == "too few" else "cannot show it"
            lines.append(f"its mean keeps {v.floor.text}, but {many} {cannot}: margin {margin_text(pick.row, v)}")
    if pick.cheaper and pick.cost:
        lines.append(
            f"job {pick.cheaper.job} is {'smaller' if pick.cost.name == 'size' else 'faster'} "
            f"({pick.cost.text(pick.cheaper.job)}) and may keep them too; the sample cannot show it"
        )
    if pick.cost and pick.row.job in pick.cost.ranges:
        low, high = pick.cost.ranges[pick.row.job]
        others = {p.job for p in found.rows if p.job in pick.cost.ranges and p is not pick.row and _keeps(found, p.job)}
        near = [j for j, (a, b) in pick.cost.ranges.items() if j in others and a <= high and b >= low]
        if near:
            lines.append(f"its time is not told apart from that of job{'s' if len(near) > 1 else ''} {', '.join(near)}")
    return lines


def _keeps(found: Findings, job: str) -> bool:
    return bool(found.verdicts.get(job)) and all(v.keeps for v in found.verdicts[job])


def _named(found: Findings, row: Row) -> str:
    given = found.given(row)
    return f"{row.name} ({given})" if given else row.name


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
