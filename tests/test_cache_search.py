"""cache.search: the fastest value under a floor is that of the whole grid, told with its cliffs; a killed search goes on."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_plan import refused
from test_report import page, scored, stat, words
from tiny import SEED, bench, folder, prompt_set

from diffopt.artifact import CacheSearch, ReferenceImages
from diffopt.caches import METHODS
from diffopt.caches.knob import Knob
from diffopt.caches.knob_search import KnobSearch
from diffopt.errors import ConfigError, GateError
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.files.search import Cliff, TriedValue
from diffopt.groups import DrawView
from diffopt.groups.cache import SearchView
from diffopt.groups.validate import choose
from diffopt.report import run_page
from diffopt.stage import Context
from diffopt.stages.reference import reference
from diffopt.stages.search import JudgedView, search
from diffopt.tuning import bisection, explanation
from diffopt.tuning.bisection import Point, Scale
from diffopt.tuning.trial import Trial

# The search itself, on curves that are written down.

WHOLE, THRESHOLD = Knob("every", 2, 30, "higher", whole=True), Knob("threshold", 0.01, 1.0, "higher")
FLOOR = 30.0


def curve(quality: Callable[[float], float], share: Callable[[float], float], seen: list[float]) -> Callable[[float], Point]:
    def evaluate(value: float) -> Point:
        seen.append(value)
        mean, computed = quality(value), share(value)
        stats = Interval(mean, mean, mean, 10)
        metric = MetricResult(title="PSNR", unit="dB", better="higher", candidate=stats, values=[mean] * 10)
        margin = stats.mapped(lambda v: v - FLOOR)
        return Point(value, computed, round(100 * (1 - computed)), mean >= FLOOR, {"psnr": metric}, {"psnr": margin})

    return evaluate


def found(
    quality: Callable[[float], float],
    share: Callable[[float], float] = lambda v: 1 / v,
    knob: Knob = WHOLE,
    many: int = 4,
    most: int = 12,
    **fields: Any,
) -> tuple[bisection.Found, list[float], list[Cliff]]:
    """What is found, the values in the order in which they were tried, and what is not smooth."""
    seen: list[float] = []
    scale = Scale(knob, knob.low, knob.high or 30, 0.05)
    result = bisection.search(scale, curve(quality, share, seen), many, most)
    return result, seen, [*bisection.cliffs(scale, KnobSearch(floor={"psnr": FLOOR}, **fields), result.points)]


@pytest.mark.parametrize("last", range(2, 30))
def test_of_whole_numbers_the_last_that_keeps_the_floor_is_found(last: int) -> None:
    result, seen, _ = found(lambda v: FLOOR + last + 0.5 - v)
    assert result.chosen is not None
    assert result.chosen.value == last
    assert result.limit == "floor"
    assert len(seen) == len(set(seen)) <= 4 + math.ceil(math.log2(30 / 3))


def test_a_knob_that_leaves_out_more_where_it_is_lower_is_turned_down() -> None:
    start = Knob("start", 1, 30, "lower", whole=True)
    result, seen, _ = found(lambda v: 20 + v, lambda v: v / 31, start)
    assert result.chosen is not None
    assert result.chosen.value == 10
    assert seen[0] == 30
    assert [p.value for p in result.points] == sorted(seen, reverse=True)


def test_a_threshold_is_narrowed_to_the_tolerance() -> None:
    result, seen, _ = found(lambda v: FLOOR + 0.3 - v, lambda v: 1 - v / 2, THRESHOLD)
    assert result.chosen is not None
    assert 0.3 / 1.05 <= result.chosen.value <= 0.3
    assert seen[:4] == [0.01, 0.04642, 0.2154, 1.0]


def test_where_the_values_to_try_run_out_that_is_said() -> None:
    result, seen, _ = found(lambda v: FLOOR + 0.3 - v, lambda v: 1 - v / 2, THRESHOLD, most=5)
    assert result.limit == "evaluations"
    assert len(seen) == 5
    assert "raise cache.search.evaluations" in explanation.reason(Scale(THRESHOLD, 0.01, 1, 0.05), result)


def test_where_the_most_that_was_asked_for_keeps_the_floor_the_bound_is_said_to_limit() -> None:
    result, seen, _ = found(lambda v: 99 - v)
    assert (result.limit, len(seen)) == ("bound", 4)
    assert explanation.reason(Scale(WHOLE, 2, 30, 0.05), result).endswith("cache.search.high is what limits, raise it")


def test_where_it_leaves_out_no_more_the_knob_is_turned_least() -> None:
    result, _, _ = found(lambda v: 99, lambda v: max(0.4, 1 / v))
    assert result.chosen is not None
    assert result.chosen.value == 11  # of 2, 11, 21, 30
    assert "leaves out no more" in explanation.reason(Scale(WHOLE, 2, 30, 0.05), result)


def test_a_value_that_never_hits_is_not_chosen() -> None:
    result, _, _ = found(lambda v: 130 if v < 0.2 else 10, lambda v: 1.0 if v < 0.2 else 0.5, THRESHOLD)
    assert result.chosen is None
    line = explanation.nothing(Scale(THRESHOLD, 0.01, 1, 0.05), KnobSearch(floor={"psnr": 30}), result.points)
    assert line.startswith(
        "cache: no value of threshold from 0.01 to 1 that leaves anything out keeps the floor psnr=30 (got at"
    )
    assert "lower the floor, lower cache.search.low" in line


def test_a_cliff_is_told_between_the_two_neighbours_where_it_is() -> None:
    _, _, unsmooth = found(lambda v: 40 - v / 10 if v < 17 else 20 - v / 10)
    (cliff,) = [c for c in unsmooth if c.kind == "falls"]
    assert (cliff.after, cliff.before, cliff.metric) == (16, 17, "psnr")
    assert cliff.by == pytest.approx(20.1)
    assert not [c for c in found(lambda v: 40 - v)[2] if c.kind == "falls"]  # steep is no cliff: a dB for each value
    assert [c for c in found(lambda v: 40 - v, cliff={"psnr": 0.5})[2] if c.kind == "falls"]


def test_a_jump_of_the_share_is_told() -> None:
    _, _, unsmooth = found(lambda v: 40 - v, lambda v: 0.9 - v / 1000 if v < 11 else 0.5 - v / 1000)
    assert [(c.after, c.before) for c in unsmooth if c.kind == "jumps"] == [(10, 11)]


def test_a_metric_that_gets_better_and_a_share_that_grows_are_told() -> None:
    _, _, unsmooth = found(lambda v: {2: 40, 11: 31, 21: 36, 30: 31}[v])
    (rise,) = unsmooth
    assert (rise.kind, rise.after, rise.before, rise.by) == ("rises", 11, 21, 5)
    _, _, unsmooth = found(lambda v: 40, lambda v: {2: 0.5, 11: 0.3, 21: 0.4, 30: 0.2}[v])
    assert [(c.kind, c.after, c.before) for c in unsmooth] == [("slows", 11, 21)]


def test_below_a_dip_a_faster_value_that_keeps_the_floor_is_still_found() -> None:
    result, _, _ = found(lambda v: 25 if 8 <= v <= 14 else 53 - v)
    assert result.chosen is not None
    assert result.chosen.value == 23


# On a model.

STEPS, PROMPTS = 8, 2
FIRST = {"method": "first_block", "threshold": 0.1}


def asked(method: dict[str, Any], **fields: Any) -> SearchView:
    settings = METHODS[method["method"]].settings(**method, search=fields)
    low, high = settings.ends(STEPS)
    assert settings.search is not None
    filled = settings.search.model_copy(update={"knob": settings.knob.name, "low": low, "high": high})
    from diffopt import models

    return SearchView(method=settings.method, settings=settings.filled(models.family("flux")), search=filled)


@cache
def drawn() -> ReferenceImages:
    b = bench(family="flux")
    ctx = b.context()
    prompts = prompt_set(b.prompts[:PROMPTS])
    view = DrawView(prompts=prompts, batch_size=PROMPTS, steps=STEPS)
    reference.run(ctx, b.call, view, b.pipeline(), b.encoded(prompts, PROMPTS), SEED)
    return ReferenceImages(ctx.out, "reference")


def go(view: SearchView, many: int = PROMPTS, kept: Path | None = None) -> dict[str, Any]:
    b = bench(family="flux")
    own = {"clip": None, "imagereward": None, "features": None}
    judged = JudgedView(prompts=prompt_set(b.prompts[:many]), batch_size=PROMPTS, steps=STEPS, runtime="torch", **own)
    texts = b.encoded(prompt_set(b.prompts[:PROMPTS]), PROMPTS)
    out = b.context().out
    ctx = Context(out, b.sources.pinned, b.sources.locate, b.device, kept=kept)
    search.run(ctx, b.call, view, judged, b.pipeline(), texts, drawn(), None, None, SEED)
    assert {p.name for p in out.iterdir()} == {"search.json"}  # no picture stays
    result: dict[str, Any] = CacheSearch(out, "search").json("search.json")
    return result


def test_the_search_finds_the_best_of_the_whole_grid_and_judges_as_the_report_does() -> None:
    every = {"method": "cachify", "blocks": ["*", "!transformer_blocks.0"], "reuse": "output"}
    whole = go(asked(every, floor={"psnr": 0}, low=2, high=6, points=5))
    values = {p["value"]: p for p in whole["points"]}
    means = {v: p["metrics"]["psnr"]["candidate"]["mean"] for v, p in values.items()}
    assert [*values] == [2, 3, 4, 5, 6]
    floor = sorted(means.values())[2]
    best = min((v for v in values if means[v] >= floor), key=lambda v: (values[v]["computed"], v))
    ours = go(asked(every, floor={"psnr": floor}, low=2, high=6, points=2))
    assert ours["chosen"]["value"] == best
    assert {k: v for k, v in ours["chosen"].items() if k not in ("order", "margins", "keeps")} == {
        k: v for k, v in values[best].items() if k not in ("order", "margins", "keeps")
    }
    assert ours["chosen"]["margins"]["psnr"]["mean"] == pytest.approx(means[best] - floor, abs=1e-9)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Values that are run in this process."""
    values: list[float] = []
    call = Trial.__call__

    def noted(self: Trial, value: float, order: int) -> TriedValue:
        values.append(value)
        if len(values) == 3:
            raise KeyboardInterrupt
        return call(self, value, order)

    monkeypatch.setattr(Trial, "__call__", noted)
    return values


def test_a_killed_search_goes_on_and_ends_as_one_that_was_not(tried: list[float]) -> None:
    view, kept = asked(FIRST, floor={"psnr": 1}, low=0.5, high=8.0, points=4), folder() / "kept"
    with pytest.raises(KeyboardInterrupt):
        go(view, many=1, kept=kept)
    assert tried == [0.5, 1.26, 3.175]
    resumed = go(view, many=1, kept=kept)
    assert tried[3:] == [3.175, 8.0]  # neither of the two that were finished
    assert [p["value"] for p in resumed["points"]] == [0.5, 1.26, 3.175, 8.0]
    assert [p["order"] for p in resumed["points"]] == [1, 2, 3, 4]
    assert json.loads((kept / "points.json").read_text()).keys() == {"0.5", "1.26", "3.175", "8.0"}


def test_where_nothing_keeps_the_floor_the_best_is_named_and_what_to_do() -> None:
    view, kept = asked(FIRST, floor={"psnr": 120}, low=3.0, high=8.0, points=2), folder() / "kept"
    with pytest.raises(GateError, match=r"^cache: no value of threshold from 3 to 8 that leaves anything out .*psnr=120 \(got"):
        go(view, many=1, kept=kept)


def test_a_value_that_breaks_the_pictures_does_not_keep_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.tuning import trial

    real = trial.draw_all

    def draw_all(ctx: Context, *arguments: Any) -> Any:
        if ctx.title.endswith("=8"):
            raise GateError("sample: the picture has NaN in it (got a broken model); exclude layers")
        return real(ctx, *arguments)

    monkeypatch.setattr(trial, "draw_all", draw_all)
    result = go(asked(FIRST, floor={"psnr": 0}, low=2.0, high=8.0, points=2, evaluations=2), many=1)
    assert [(p["value"], p["keeps"]) for p in result["points"]] == [(2.0, True), (8.0, False)]
    assert result["points"][1]["broken"].startswith("sample: the picture has NaN")
    assert result["chosen"]["value"] == 2.0


# Knobs and methods.


def test_every_knob_is_a_field_with_the_value_of_its_file_as_the_usual_one(config: Any) -> None:
    for name, method in METHODS.items():
        given = config("model=emoji_flux", f"cache={name}")["cache"]
        assert "search" in given
        for knob in method.settings.knobs:
            assert given[knob.name] == knob.usual


def test_every_method_of_ours_can_be_searched_over_its_usual_knob(plan: Any) -> None:
    for name, method in METHODS.items():
        for knob in method.settings.knobs[:1] if name != "cache_dit" else ():  # a package of its own
            planned = steps(
                plan,
                "model=emoji_flux",
                "eval=emoji",
                f"cache={name}",
                f"cache.search={{knob: {knob.name}, floor: {{psnr: 9}}}}",
            )
            found = planned["search"].views["cache"]
            low, high = found.search.low, found.search.high
            assert (low, high) == (knob.low, knob.high or 19)
            assert getattr(found.settings.turned(high), knob.name) == high


# The plan.

MAG = ("model=emoji_flux", "cache=mag_cache", "eval=emoji")
SEARCH = "cache.search={floor: {psnr: 30}}"


def steps(plan: Any, *overrides: str, **kw: Any) -> dict[str, Any]:
    return {s.name: s for s in plan(*overrides, **kw).steps}


def test_what_draws_and_what_is_timed_take_the_value_that_is_found(plan: Any) -> None:
    planned = steps(plan, *MAG, SEARCH)
    assert planned["sample"].inputs["search"] is planned["time"].inputs["search"] is planned["search"]
    assert planned["search"].inputs["ratios"] is planned["ratios"]
    assert planned["search"].inputs["reference"] is planned["reference"]
    assert "threshold" not in planned["sample"].identity["config"]["cache"]
    assert "search" not in planned["sample"].identity["config"]["cache"]


def test_without_a_search_no_step_is_keyed_by_it(plan: Any) -> None:
    assert "search" not in steps(plan, *MAG)
    assert not {"search"} & {*steps(plan, *MAG)["sample"].identity["inputs"]}


def test_another_search_is_made_anew(plan: Any) -> None:
    wide = "cache.search={floor: {psnr: 30}, low: 0.01, prompts: 64}"
    changes = ["cache.most=4", "cache.search.floor.psnr=31", "cache.search.low=0.02", "cache.search.prompts=8"]
    keys = {steps(plan, *MAG, wide, *more)["search"].fingerprint for more in [[], *([c] for c in changes)]}
    assert len(keys) == 5


def test_a_metric_of_the_report_and_a_format_of_the_graph_do_not_search_anew(plan: Any) -> None:
    a, b = (steps(plan, *MAG, SEARCH, *more)["search"].fingerprint for more in ([], ["eval.metrics=[ssim]", "eval.repeats=5"]))
    assert a == b


def test_a_checkpoint_before_training_is_drawn_with_the_value_that_the_trained_one_found(plan: Any) -> None:
    planned = steps(plan, "+recipe=emoji_fp4_qad", "export=null", "cache=first_block", SEARCH)
    assert planned["sample@ptq"].inputs["search"] is planned["sample"].inputs["search"]
    assert planned["search"].inputs["subject"] is planned["train"]
    assert "search@ptq" not in planned


def test_the_plan_tells_where_is_searched_and_how_much_is_drawn(plan: Any) -> None:
    (note,) = [n for n in plan(*MAG, "cache.search={floor: {psnr: 30}, prompts: 8}").notes if "searched" in n]
    assert note == (
        "cache.threshold is searched from 0.01 to 1 under the floor psnr=30: at most 12 values, each drawing 8 prompts"
    )


BAD = [
    (
        "{floor: {psnr: 30}, knob: every}",
        "search.knob: mag_cache has no such knob (got 'every'); there are threshold",
    ),
    ("{floor: {psnr: 30}, low: 0.5, high: 0.2}", "search.high: is not above low=0.5 (got 0.2); raise it"),
    ("{floor: {psnr: 30}, low: 2}", "search.low: leaves nothing between it and high=1 (got 2); lower it"),
    (
        "{floor: {psnr: 30}, low: 0}",
        "search.low: is no value of threshold: input should be greater than 0 (got 0)",
    ),
    ("{floor: {psnr: 30}, knob: most, low: 1.5}", "search.low: most is a whole number (got 1.5); round it"),
    ("{floor: {pnsr: 30}}", "search.floor: pnsr is not a metric that is installed"),
    ("{floor: {fid: 30}}", "search.floor: fid judges whole sets"),
    ("{floor: {psnr: -1%}}", "search.floor: psnr is a distance from the reference already"),
    ("{floor: {psnr: much}}", "search.floor: psnr is not a limit (got {'psnr': 'much'}); write a mean such as 20"),
    ("{floor: {}}", "search.floor: "),
    ("{low: 0.1}", "search.floor: is not set"),
    ("{floor: {psnr: 30}, evaluations: 3}", "search.evaluations: is less than the points=4"),
    ("{floor: {psnr: 30}, cliff: {ssim: 1}}", "search.cliff: ssim has no floor"),
    ("{floor: {psnr: 30}, hihg: 1}", "search.hihg: no such key (got 1); did you mean high?"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_a_wrong_search_gets_one_line(config: Any, given: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(config(*MAG) | {"cache": {**config(*MAG)["cache"], "search": yaml.safe_load(given)}})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"cache.{said}")
    assert "; " in line


def test_a_value_by_hand_beside_the_search_is_refused(plan: Any) -> None:
    (line,) = refused(plan, *MAG, SEARCH, "cache.threshold=0.3")
    assert line.startswith("cache.threshold: is what cache.search looks for (got 0.3); set it to null, or name another")
    (line,) = refused(plan, *MAG, SEARCH, "cache.threshold=0.06")  # the file's own, but said
    assert line == "cache.threshold: has no effect under these choices, since cache.search looks for it (got 0.06); drop it"
    assert "search" in steps(plan, *MAG, SEARCH, "cache.threshold=null")


@pytest.mark.parametrize("sign", ["", "+"])
def test_what_a_recipe_does_not_say_of_its_search_is_added_with_a_plus_or_without(plan: Any, sign: str) -> None:
    more = steps(plan, "+recipe=emoji_cache_search", sign + "cache.search={floor: {ssim: 0.9}, low: 0.1}")
    assert more["search"].views["cache"].search.floor == {"psnr": 38, "ssim": 0.9}


def test_a_search_without_pictures_is_refused(plan: Any) -> None:
    lines = refused(plan, "model=emoji_flux", "cache=cachify", "export=onnx", SEARCH)
    assert lines == [
        "cache.search: is judged on the evaluation's pictures (got eval=null); choose eval=OPTION, or drop cache.search"
    ]


def test_a_search_of_more_prompts_or_steps_than_there_are_or_by_a_clip_that_is_not_given_is_refused(plan: Any) -> None:
    many = refused(plan, *MAG, "cache.search={floor: {psnr: 30}, prompts: 65}")
    assert many[0].startswith("cache.search.prompts: is more than the eval.size=64 prompts (got 65); lower it")
    clip = refused(plan, *MAG, "cache.search={floor: {clip: -0.5%}}", "eval.metrics=[psnr]", "eval.clip=null")
    assert clip[0].startswith("cache.search.floor: clip needs eval.clip (got None); give a CLIP model")
    start = "cache.search={knob: start, low: 3, floor: {psnr: 9}}"
    few = refused(plan, "model=emoji_flux", "eval=emoji", "eval.steps=3", "cache=cachify", start)
    assert few[0].startswith("cache.search.low: leaves nothing up to 2, the last of the run's 3 steps (got 3); lower it")


# The page.


def test_the_page_shows_the_points_the_cliff_and_the_choice(tmp_path: Path) -> None:
    def entry(value: float, computed: float, psnr: float, keeps: bool, order: int, broken: str | None = None) -> dict[str, Any]:
        metric = {"title": "PSNR", "unit": "dB", "better": "higher", "candidate": stat(psnr)}
        about = {"value": value, "order": order, "hits": 4, "misses": 4, "computed": computed, "keeps": keeps, "shown": False}
        return about | {"metrics": {} if broken else {"psnr": metric}, "margins": {}, "broken": broken}

    points = [entry(0.1, 0.8, 41, True, 1), entry(0.2, 0.6, 35, True, 3), entry(0.21, 0.4, 22, False, 4)]
    points += [entry(1.0, 0.2, 0, False, 2, "sample: NaN")]
    content = {
        "schema": "diffopt.cache-search/1", "method": "mag_cache", "knob": "threshold", "more": "higher", "low": 0.1,
        "high": 1.0, "floor": {"psnr": 30}, "prompts": 3, "steps": 20, "points": points, "chosen": points[1],
        "cliffs": [{"after": 0.2, "before": 0.21, "kind": "falls", "metric": "psnr", "by": 13.0}],
        "limit": "floor", "reason": "the next value, threshold=0.21, PSNR 22.0 dB, does not keep it",
    }  # fmt: skip
    directory = scored(tmp_path / "run")
    (directory / "search").mkdir()
    (directory / "search" / "search.json").write_text(json.dumps(content))
    text = words(page(directory))
    assert "Chosen: threshold=0.2, 40.0% of the arithmetic left out, PSNR 35.0 dB [34.0, 36.0] Why none" in text
    assert "from threshold=0.2 to 0.21 PSNR gets worse by 13 dB: a cliff, with no value between" in text
    assert "0.2 40.0 4 35.0 [34.0, 36.0] kept, not shown; chosen 3" in text
    assert "sample: NaN" in text
    svg = page(directory).split("arithmetic that mag_cache leaves out")[1].split("</svg>")[0]
    assert all(label in svg for label in ("floor: psnr=30", "chosen: threshold=0.2", "cliff", ">0.21<"))
    assert any("cache" in line and "threshold=0.2" in line for line in run_page.summary(directory))
    points[1]["metrics"]["psnr"]["candidate"] |= {"n": 2, "low": None, "high": None, "values": [34.0, 36.0]}
    (directory / "search" / "search.json").write_text(json.dumps(content))
    assert "0.2 40.0 4 35.0 of 34.0, 36.0 kept by the mean; chosen 3" in words(page(directory))
