"""eval.compare: further candidates of a run in the plan, at equal arithmetic, and in the comparison."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from test_report import CLIP, PSNR, artifact, scored, stat

from diffopt.artifact import Comparison, Images, Metrics
from diffopt.caches.schedule import passes
from diffopt.data import prompts
from diffopt.errors import ConfigError, PlanError
from diffopt.files.interval import Interval
from diffopt.quality import verdict
from diffopt.report import run_page
from diffopt.report.run_directory import Run
from diffopt.stage import Context
from diffopt.stages.alternative import equal
from diffopt.stages.compare import CompareView, compare
from diffopt.store import assets
from diffopt.sweep.results import as_json

QAD, CACHE = "+recipe=emoji_fp4_qad", "+recipe=emoji_cache"


def steps(plan: Any, *overrides: str) -> dict[str, Any]:
    return {s.name: s for s in plan(*overrides).steps}


@pytest.mark.parametrize("recipe", [QAD, CACHE])
def test_what_a_candidate_is_compared_with_does_not_key_its_own_steps(plan: Any, recipe: str) -> None:
    alone, beside = (steps(plan, recipe, *more) for more in (["eval.compare=[]"], []))
    assert {n: s.fingerprint for n, s in alone.items()} == {n: beside[n].fingerprint for n in alone}
    assert {n.partition("@")[0] for n in {*beside} - {*alone}} <= {"sample", "alternative", "score", "compare"}


def test_ptq_is_the_checkpoint_that_training_starts_from(plan: Any) -> None:
    planned = steps(plan, QAD)
    assert planned["sample@ptq"].inputs["subject"] is planned["train"].inputs["checkpoint"] is planned["quantize"]
    assert planned["compare"].inputs["others"] == [planned["score@ptq"]]
    assert planned["score@ptq"].inputs["reference"] is planned["score"].inputs["reference"]


def test_ptq_of_a_run_is_the_candidate_of_the_run_without_training(plan: Any) -> None:
    plain = steps(plan, "+recipe=emoji_fp4", "export=null", "format.weights=max")
    assert {n: s.fingerprint for n, s in steps(plan, QAD).items() if n.endswith("@ptq")} == {
        "sample@ptq": plain["sample"].fingerprint,
        "score@ptq": plain["score"].fingerprint,
    }


def test_fewer_steps_have_the_checkpoint_without_the_cache_and_know_the_cached_pictures(plan: Any) -> None:
    planned = steps(plan, CACHE, "eval.compare=[fewer_steps,uncached]")
    fewer = planned["alternative@fewer_steps"]
    assert fewer.inputs["cached"] is planned["sample"]
    assert fewer.inputs["subject"] is planned["sample@uncached"].inputs["subject"] is planned["quantize"]
    assert planned["sample@uncached"].views["cache"] is None
    assert [s.name for s in planned["compare"].inputs["pictures"]] == ["alternative@fewer_steps", "sample@uncached"]


def test_fewer_steps_run_the_graph_that_is_not_cut(plan: Any) -> None:
    planned = steps(plan, "+recipe=emoji_int8_cut", "eval.compare=[fewer_steps]", "export=onnx")
    assert planned["sample"].inputs["subject"].views["cache"] is not None
    assert planned["alternative@fewer_steps"].inputs["subject"].views["cache"] is None


def test_another_policy_makes_the_alternative_again(plan: Any) -> None:
    first, second = (steps(plan, CACHE, *more)["alternative@fewer_steps"] for more in ([], ["cache.every=3"]))
    assert first.fingerprint != second.fingerprint


def test_the_plan_names_what_is_compared(plan: Any) -> None:
    assert "compared with ptq: the checkpoint before it was trained" in plan(QAD).notes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("+recipe=emoji_fp8", "eval.compare=[ptq]"), r"eval.compare: nothing is trained, so .* \(got ptq\); leave it out"),
        (
            ("+recipe=emoji_fp8", "eval.compare=[fewer_steps]"),
            r"eval.compare: there is no cache, .* \(got fewer_steps\); leave",
        ),
        ((CACHE, "format=null", "calib=null", "eval.compare=[uncached]"), "eval.compare: without a format that is the ref"),
        ((CACHE, "eval.compare=[lcm]"), r"eval.compare.0: is nothing to compare with \(got 'lcm'\); there are ptq, fewer"),
        ((CACHE, "eval.compare=[fewer_steps,fewer_steps]"), "eval.compare: names one twice"),
        ((CACHE, "eval.metrics=[]"), r"eval.compare: compares in eval.metrics, of which there are none \(got"),
    ],
)
def test_what_cannot_be_compared_is_refused(plan: Any, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises((PlanError, ConfigError), match=said):
        plan(*overrides)


@pytest.mark.parametrize(("computed", "found"), [(0.5, 10), (0.500001, 10), (0.51, 11), (0.01, 1), (0.999999, 20)])
def test_fewer_steps_are_the_least_that_have_the_arithmetic(computed: float, found: int) -> None:
    assert equal(diffusers.EulerDiscreteScheduler(), 20, computed) == (found, found / 20)


def test_fewer_steps_of_second_order_count_both_passes() -> None:
    assert equal(diffusers.HeunDiscreteScheduler(), 20, 0.5) == (11, 21 / 39)  # 10 steps have 19 of 39 passes: too few


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
    ],
)
def test_passes_are_counted_as_the_scheduler_makes_them(name: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**settings)
    counted = passes(scheduler, 7)
    scheduler.set_timesteps(7)
    assert counted == len(scheduler.timesteps)


def folder(where: Path, psnr: list[float], clip: list[float], **index: Any) -> tuple[Metrics, Images]:
    metrics = {
        "psnr": {**PSNR, "candidate": stat(float(np.mean(psnr))), "values": psnr},
        "clip": {**CLIP, "candidate": stat(float(np.mean(clip))), "values": clip},
        "fid": {"title": "FID", "unit": "", "better": "lower", "candidate": stat(5.0)},
    }
    artifact(where, "score", {"metrics.json": {"prompts": [], "metrics": metrics, "difference_gain": 8}})
    artifact(where, "sample", {"images.json": index})
    return Metrics(where / "score", "score"), Images(where / "sample", "sample")


def test_differences_are_paired_by_prompt(tmp_path: Path) -> None:
    base = [20.0 + 5 * (i % 7) for i in range(40)]  # prompts differ by far more than the candidates do
    saved = {"hits": 44, "misses": 56, "computed": 0.56}
    ours = folder(tmp_path / "ours", [x + 1 + 0.1 * (i % 2) for i, x in enumerate(base)], base, cache=saved)
    theirs = folder(tmp_path / "theirs", base, [x + 0.5 - i % 2 for i, x in enumerate(base)], steps=12, arithmetic=0.6)
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", str, Path)
    compare.run(context, CompareView(compare=["fewer_steps"]), *ours, (theirs[0],), (theirs[1],))
    (row,) = Comparison(tmp_path / "out", "c").json("comparison.json")["compared"]
    assert row["title"] == "12 steps without a cache, 60.0% of the arithmetic"
    assert (row["steps"], row["computed"]) == (12, 0.56)
    psnr, clip, fid = (row["metrics"][n] for n in ("psnr", "clip", "fid"))
    assert 1 < psnr["difference"]["low"] < 1.05 < psnr["difference"]["high"] < 1.1
    assert psnr["verdict"].startswith("the cache won at n=40: +1.050 dB [+1.0")
    assert clip["verdict"].startswith("no difference shown at n=40: ")
    assert fid["compared"]["mean"] == 5
    assert "difference" not in fid


def test_who_won_depends_on_which_way_is_better() -> None:
    less = Interval(-2.0, -3.0, -1.0, 64)
    assert verdict.of_alternative("training", less, "higher", "dB") == "training lost at n=64: -2.0 dB [-3.0, -1.0]"
    assert verdict.of_alternative("training", less, "lower").startswith("training won at n=64")
    assert verdict.of_alternative("training", replace(less, n=9), "lower").startswith("too few to call at n=9")
    assert verdict.of_alternative("training", replace(less, high=0.1), "lower").startswith("no difference shown")


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """A run that lost against fewer steps."""
    directory = scored(tmp_path / "run")
    names = [f"{i:03}.png" for i in range(3)]
    content = json.loads((directory / "score/metrics.json").read_text())
    content["metrics"]["psnr"] |= {"values": [36.25, 35.5, 34.5], "candidate": stat(35.4)}
    artifact(directory, "score@fewer_steps", {"metrics.json": content})
    index = json.loads((directory / "sample/images.json").read_text())
    artifact(directory, "alternative@fewer_steps", {"images.json": index, **dict.fromkeys(names, ((0, 0, 9), 64))})
    metric = {
        **PSNR,
        "candidate": stat(30.0),
        "compared": stat(35.4),
        "difference": stat(-5.4, 0.2),
        "verdict": "the cache lost at n=3",
    }
    row = {"name": "fewer_steps", "title": "12 steps without a cache, 60.0% of the arithmetic"}
    row |= {"steps": 12, "arithmetic": 0.6, "computed": 0.562, "metrics": {"psnr": metric}}
    artifact(directory, "compare", {"comparison.json": {"compared": [row]}})
    whole = json.loads((directory / "run.json").read_text())
    more = {"alternative@fewer_steps": "images", "score@fewer_steps": "metrics", "compare": "comparison"}
    whole["steps"] += [{**whole["steps"][0], "name": n, "kind": k, "fingerprint": "e" * 16} for n, k in more.items()]
    (directory / "run.json").write_text(json.dumps(whole))
    return directory


def test_the_console_shows_both_and_who_lost(compared: Path) -> None:
    lines = [" ".join(line.split()) for line in run_page.summary(compared)]
    assert "beside fewer_steps 12 steps without a cache, 60.0% of the arithmetic; with the cache 56.2%" in lines
    assert "PSNR 35.4 dB [34.4, 36.4] the cache lost at n=3" in lines


def test_the_page_shows_both_with_their_pictures(compared: Path) -> None:
    text = run_page.write(compared).read_text()
    assert "Beside fewer_steps: 12 steps without a cache" in text
    assert "the cache lost at n=3" in text
    assert text.count('src="alternative%40fewer_steps/') == 3
    assert "<dt>PSNR, fewer_steps</dt><dd>36.2" in text
    kinds = list(Run(compared).pairs[0].files)
    assert kinds == ["reference", "candidate", "fewer_steps", "difference"]


def test_a_sweep_has_the_further_candidates_of_its_jobs_in_its_results(compared: Path, tmp_path: Path) -> None:
    from diffopt.sweep.findings import Findings

    sweep = tmp_path / "sweep"
    sweep.mkdir()
    compared.rename(sweep / "0")
    (job,) = json.loads(as_json(Findings(sweep, [])))["jobs"]
    assert job["compared"]["fewer_steps"]["psnr"]["mean"] == 35.4
    assert job["compared"]["fewer_steps"]["psnr"]["difference"]["mean"] == -5.4


def test_the_prompts_without_a_style_are_those_of_the_embedded_model() -> None:
    rows = json.loads(assets.locate("asset:emoji/prompts_eval.json").read_text())
    assert prompts.read("emoji_names").prompts == tuple(row["name"] for row in rows)


@pytest.mark.matrix
def test_a_run_draws_and_scores_both(tmp_path: Path) -> None:
    call = [CACHE, "format=null", "calib=null", "eval.size=2", "eval.steps=6", "eval.metrics=[psnr]"]
    done = subprocess.run([sys.executable, "-m", "diffopt", *call], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs/runs/emoji_cache").iterdir()
    images = json.loads((run / "alternative@fewer_steps/images.json").read_text())
    computed = json.loads((run / "sample/images.json").read_text())["cache"]["computed"]
    assert 1 < images["steps"] < 6
    assert (images["steps"] - 1) / 6 < computed <= images["steps"] / 6 == pytest.approx(images["arithmetic"], abs=1e-5)
    (row,) = json.loads((run / "compare/comparison.json").read_text())["compared"]
    ours, theirs = (json.loads((run / s / "metrics.json").read_text()) for s in ("score", "score@fewer_steps"))
    pairs = zip(ours["metrics"]["psnr"]["values"], theirs["metrics"]["psnr"]["values"], strict=True)
    assert row["metrics"]["psnr"]["difference"]["mean"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert "beside fewer_steps" in done.stdout


@pytest.mark.matrix
def test_a_training_has_the_pictures_of_the_checkpoint_that_it_started_from_beside_its_own(tmp_path: Path) -> None:
    drawn = ["eval.size=2", "eval.steps=3", "calib.size=4", "eval.metrics=[psnr]"]
    train = ["steps=2", "warmup=0", "batch_size=2", "data.size=16", "data.steps=2", "validation=null"]
    for call in ([QAD, *drawn, *(f"train.{x}" for x in train)], ["+recipe=emoji_fp4", *drawn, "export=null"]):
        done = subprocess.run([sys.executable, "-m", "diffopt", *call], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    trained, plain = (next((tmp_path / "outputs/runs" / name).iterdir()) for name in ("emoji_fp4_qad", "emoji_fp4"))
    before, own, alone = ((p / "000.png").read_bytes() for p in (trained / "sample@ptq", trained / "sample", plain / "sample"))
    assert before == alone != own
    assert (trained / "sample@ptq").resolve() == (plain / "sample").resolve()
