"""A race over a sweep's settings: its promise on scores with a known truth, who leaves and why, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from races import course, metric, ship

from diffopt.cli import plan
from diffopt.cli.searchpath import bundled, register
from diffopt.errors import ConfigError, DiffoptError, GateError
from diffopt.quality.limit import Limit
from diffopt.race import bounds, standing
from diffopt.race.contestant import Contestant, Cost, Scores
from diffopt.race.course import Course
from diffopt.sweep.plan import SweepPlan, plan_sweep

LOOKS = (8, 16, 32, 64)


def shapes(rng: np.random.Generator, many: int) -> dict[str, np.ndarray]:
    """Scores of mean 0, [many, 64]: normal, with heavy tails, and skewed to both sides."""
    lognormal = rng.lognormal(0, 0.5, (many, 64)) - np.exp(0.125)
    gamma = rng.gamma(4, 1, (many, 64)) - 4
    tails = rng.standard_t(3, (many, 64))
    return {"normal": rng.normal(size=(many, 64)), "tails": tails, "right": lognormal, "left": -lognormal, "gamma": -gamma}


def test_what_the_looks_spend_adds_up_to_the_chance() -> None:
    total = sum(bounds.spent(0.05, k) for k in range(1, 10_000))
    assert 0.0499 < total < 0.05


@pytest.mark.parametrize("shape", ["normal", "tails", "right", "left", "gamma"])
def test_a_bound_fails_at_any_look_no_more_often_than_is_stated(shape: str) -> None:
    many, chance = 2000, 0.05
    values = shapes(np.random.default_rng(5), many)[shape]
    over = [any(bounds.least(v[:n], bounds.spent(chance, k)) > 0 for k, n in enumerate(LOOKS, 1)) for v in values]
    under = [any(bounds.most(v[:n], bounds.spent(chance, k)) < 0 for k, n in enumerate(LOOKS, 1)) for v in values]
    noise = 3 * (chance * (1 - chance) / many) ** 0.5
    assert max(np.mean(over), np.mean(under)) <= chance + noise


def test_a_bound_tells_a_difference_of_a_deviation_in_sixteen_values_mostly() -> None:
    rng = np.random.default_rng(6)
    alpha = bounds.spent(0.05, 2)
    told = [bounds.least(rng.normal(1, 1, 16), alpha) > 0 for _ in range(300)]
    assert np.mean(told) > 0.6


def field(rng: np.random.Generator, settings: int = 10) -> tuple[np.ndarray, np.ndarray, list[dict[str, np.ndarray]]]:
    """Costs, true means, and scores of settings that draw the same prompts: what is hard for one is hard for all."""
    costs = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], settings)
    means = 25 + 2 * costs + rng.normal(0, 2, settings)
    hard = -(rng.gamma(4, 1, 64) - 4)
    return costs, means, [{"psnr": m + hard - (rng.gamma(4, 0.5, 64) - 2)} for m in means]


def test_the_right_setting_is_dropped_no_more_often_than_is_stated_and_few_pictures_are_drawn() -> None:
    rng, chance = np.random.default_rng(7), 0.1
    dropped, named, drawn = [], [], []
    for _ in range(60):
        costs, means, scores = field(rng)
        keeping = [i for i, m in enumerate(means) if m >= 30]
        if not keeping:
            continue
        true = min(keeping, key=lambda i: (costs[i], -means[i]))
        over, pictures = course(ship(chance=chance), costs, scores)
        answer = standing.chosen(over.field)
        dropped.append(not over.field[true].lives)
        named.append(answer is not None and answer.number == true)
        drawn.append(pictures / (len(costs) * 64))
    assert np.mean(dropped) <= chance
    assert np.mean(named) > 0.6  # the rest lie too near to the floor, or to each other, for 64 prompts
    assert np.mean(drawn) < 0.4


FLAT = np.linspace(-1, 1, 64)[np.random.default_rng(0).permutation(64)]


def test_a_setting_below_a_floor_leaves_and_one_that_costs_more_than_one_that_keeps_it_is_never_drawn() -> None:
    over, pictures = course(ship(), [1, 2, 3, 4, 5, 6, 7, 8], [{"psnr": FLAT + m} for m in (20, 40, 50, 50, 50, 50, 50, 50)])
    first, second, *rest = over.field
    assert (first.left and first.left.why, first.left and first.left.floor, first.n) == ("below", "psnr=30", 8)
    assert standing.chosen(over.field) is second
    assert [(c.left.why, c.left.by, c.n) for c in rest if c.left] == [("dearer", 1, 8)] * 2 + [("dearer", 1, 0)] * 4
    assert pictures == 4 * 8  # of those that enter together


def test_of_equal_costs_the_better_one_is_found_by_what_differs_prompt_by_prompt() -> None:
    scores = [{"psnr": 40 + 5 * FLAT + 0.01 * np.roll(FLAT, i) + 0.3 * i} for i in range(3)]
    over, pictures = course(ship(), [1, 1, 1], scores)
    assert standing.chosen(over.field) is over.field[2]
    assert [c.left and c.left.why for c in over.field] == ["worse", "worse", None]
    assert pictures < 3 * 64


def test_the_best_is_sought_whatever_it_costs() -> None:
    scores = [{"psnr": m + FLAT} for m in (31, 45, 29)]
    over, _ = course(ship(want="quality"), [1, 9, 1], scores)
    answer = standing.chosen(over.field, costs=False)
    assert answer is over.field[1]
    assert standing.ending(over.field, over.field[1], costs=False).runner_up == 0


def test_settings_that_64_prompts_do_not_tell_apart_are_told_as_ties() -> None:
    noise = np.random.default_rng(3).normal(0, 1, (2, 64))
    over, _ = course(ship(), [1, 1], [{"psnr": 40 + n - n.mean()} for n in noise])
    answer = standing.chosen(over.field)
    assert answer is not None
    assert standing.ending(over.field, answer).ties == [1 - answer.number]


def test_a_race_with_more_rounds_goes_on_from_the_same_decisions() -> None:
    costs, _, scores = field(np.random.default_rng(11), 12)
    short, _ = course(ship(rounds=[8, 16]), costs, scores)
    long, _ = course(ship(rounds=[8, 16, 32, 64]), costs, scores)
    early = [(c.number, c.left) for c in long.field if c.left and c.left.look <= 2]
    assert [(c.number, c.left) for c in short.field if c.left and c.left.look <= 2] == early
    assert early


def test_a_setting_whose_job_fails_leaves_and_the_race_goes_on() -> None:
    asked = ship()
    made = Course(asked, [Contestant(i, (), Cost.exact(i + 1.0)) for i in range(2)], "psnr")
    made.run(lambda due: {c.number: {"psnr": metric((40 + FLAT)[:many])} for c, many in due if c.number})
    assert made.field[0].left is not None
    assert made.field[0].left.why == "failed"
    assert standing.chosen(made.field) is made.field[1]


def test_a_floor_that_full_precision_does_not_keep_ends_the_race() -> None:
    made = Course(ship(floor={"clip": 90}), [Contestant(i, (), Cost.exact(1.0)) for i in range(2)], "clip")
    with pytest.raises(
        GateError, match=r"full precision itself does not keep it \(got clip=90, and a mean of 79.84 over the 8 prompts"
    ):
        made.run(lambda due: {c.number: {"clip": metric(80 + FLAT[:n], 80 + FLAT[:n])} for c, n in due})


def test_a_change_is_judged_against_the_full_precision_of_the_same_prompts() -> None:
    floor = Limit.parse("clip", "-1%")
    scores = Scores({"clip": metric(80 - 0.5 + 9 * FLAT, 80 + 9 * FLAT)}, [floor], "clip")
    assert scores.keeps
    assert np.ptp(scores.margins[0]) < 1e-9  # the prompts' own spread is in both
    assert scores.margins[0].mean() == pytest.approx(0.01 * (80 + 9 * FLAT).mean() - 0.5)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepPlan]:
    """`planned("ship.want=bytes")` plans the race of the embedded model."""
    monkeypatch.chdir(tmp_path)

    def planned(*overrides: str) -> SweepPlan:
        register()
        config: Any = plan.composed(["+recipe=emoji_ship", *overrides], sweep=True)
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            return plan_sweep(config, hydra.config_loader)

    return planned


def test_the_space_of_the_embedded_models_race_has_at_least_60_distinct_settings(planned: Callable[..., SweepPlan]) -> None:
    assert len(planned().distinct) >= 60


FEW = "ship.space=[{eval.steps: '4,8'}]"
REFUSED = {
    "ship.space=[{eval.steps: 4}]": r"ship: a race needs two settings at least \(got one setting\)",
    "ship.space=[{format: fp8, calib.alpha: '0.2,0.5'}]": r"got 2 settings that come to one",
    "eval.metrics=[psnr,fid] ship.floor.fid=9": r"fid judges whole sets, .*\(got fid\); take a metric of pictures or pairs",
    "ship.floor.lpips=0.2": r"ship.floor: is not measured \(got lpips=0.2; measured psnr, clip\)",
    "ship.floor.clip=-1% eval.clip=null": r"^eval.clip: the metric clip needs it \(got None\); give a CLIP model",
    "eval.metrics=[cmmd,psnr]": r"^eval.metrics: cmmd judges whole sets",
    "ship.floor.clip=+1%": r"^ship.floor: full precision itself does not keep it, .*\(got clip=\+1%\)",
    "ship.floor.beauty=1": r"^ship.floor: is no metric \(got beauty=1\)",
    "ship.want=latency eval.latency=false ~format ~calib": r"^eval.latency: is what ship.want=latency asks for",
    "ship.rounds=[8,16,128]": r"ship.rounds: ends at more than the 64 prompts of emoji_names \(got \[8, 16, 128\]\)",
    "ship.rounds=[4,8]": r"ship.rounds: begins with too few prompts .*\(got \[4, 8\]\)",
    "ship.rounds=[16,8]": r"ship.rounds: does not rise",
    "ship.rounds=[8,20]": r"eval.chunk: does not divide ship.rounds=\[8, 20\]",
    "+eval.gates.psnr=20": r"eval.gates: would end a setting's job .*\(got {'psnr': 20.0}\); give them as ship.floor",
    "ship.want=speed": r"ship.want: must be 'latency', .*\(got 'speed'\)",
    "ship.chance=0.7": r"ship.chance: .*\(got 0.7\)",
    "eval.size=16": r"eval.size: a race draws as many as its rounds say",
    "hydra/sweeper=basic": r"ship: is found by a race alone \(got hydra/sweeper=basic\)",
}


@pytest.mark.parametrize(("given", "line"), REFUSED.items(), ids=REFUSED)
def test_a_race_that_cannot_answer_is_refused_in_one_line(planned: Callable[..., SweepPlan], given: str, line: str) -> None:
    given = given if "space" in given else f"{FEW} {given}"
    with pytest.raises(DiffoptError, match=line) as refused:
        planned(*_split(given))
    assert len(str(refused.value).splitlines()) == 1


def _split(given: str) -> list[str]:
    """The overrides, which are parted by blanks outside brackets."""
    found, depth = [""], 0
    for c in given:
        depth += (c in "[{") - (c in "]}")
        found[-1:] = [found[-1], ""] if c == " " and not depth else [found[-1] + c]
    return found


def test_what_to_ship_is_refused_in_a_single_run(config: Callable[..., dict[str, Any]]) -> None:
    from conftest import composed

    from diffopt.jobs import job

    with pytest.raises(ConfigError, match=r"^ship: is found by a race over several settings \(got a single run\)"):
        job.prepare(composed("+recipe=emoji_ship", "hydra.mode=RUN"), [], dry=True, sweep=False)
