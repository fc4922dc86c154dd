"""Training in the plan: what it takes and gives, what keys it, and what is refused before it starts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import Bench, bench

from diffopt import models
from diffopt.errors import ConfigError, PlanError
from diffopt.groups import Train
from diffopt.groups.validate import choose
from diffopt.jobs import preflight
from diffopt.machine import environment
from diffopt.store.garbage import garbage
from diffopt.store.store import Store
from diffopt.training.footprint import footprint

QAD = "+recipe=emoji_fp4_qad"


def step(plan: Any, name: str, *overrides: str) -> Any:
    return next(s for s in plan(*overrides).steps if s.name == name)


def test_what_follows_takes_the_trained_checkpoint(plan: Any) -> None:
    planned = {s.name: s for s in plan(QAD, "export=onnx", "export.high_precision_dtype=float16").steps}
    trained = planned["train"]
    assert trained.inputs["checkpoint"] is planned["quantize"]
    assert planned["export"].inputs["checkpoint"] is trained
    assert planned["sample"].inputs["subject"] is trained


def test_without_training_every_step_is_as_it_was(plan: Any) -> None:
    trained, plain = plan(QAD).steps, plan("+recipe=emoji_fp4", "export=null", "format.weights=max").steps
    ours = {s.name: s.fingerprint for s in trained}
    assert all(ours[s.name] == s.fingerprint for s in plain if s.name not in ("sample", "score"))


@pytest.mark.parametrize("same", ["train.save_every=7", "train.trackers=[]", "train.unconditional=0.3"])
def test_what_does_not_change_the_result_does_not_key_it(plan: Any, config: Any, same: str) -> None:
    if same.startswith("train.unconditional"):  # a model without guidance does not read it, and says so
        with pytest.raises(PlanError, match=r"train\.unconditional: has no effect"):
            plan(QAD, same)
    else:
        assert step(plan, "train", QAD).fingerprint == step(plan, "train", QAD, same).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        "train.steps=7",
        "train.learning_rate=1e-3",
        "train.ema=0.9",
        "train.data.size=128",
        "seed=1",
        "train.distillation.task=0.5",
    ],
)
def test_what_changes_the_result_keys_it(plan: Any, other: str) -> None:
    changed = [other, "train.warmup=1"] if other == "train.steps=7" else [other]
    assert step(plan, "train", QAD).fingerprint != step(plan, "train", QAD, *changed).fingerprint


def test_rounding_inputs_keys_nothing_and_leaving_them_exact_does_where_the_format_has_any(plan: Any) -> None:
    def of(*picks: str) -> str:
        return step(
            plan, "train", "+recipe=emoji_fp4", "export=null", "train=qad", "model.long_prompts=cut", *picks
        ).fingerprint

    assert of() == of("train.quantize_inputs=true") != of("train.quantize_inputs=false")
    with pytest.raises(PlanError, match=r"train\.quantize_inputs: has no effect"):
        of("format=int4_awq", "format.block_size=64", "train.quantize_inputs=false")


def test_training_without_a_format_is_refused(plan: Any) -> None:
    with pytest.raises(PlanError, match="needs a checkpoint"):
        plan(QAD, "format=null", "calib=null")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.optimizer=lamb", "train.optimizer: is no optimizer that is known (got 'lamb'); there are adamw"),
        ("train.micro_batch=5", "train.micro_batch: does not divide train.batch_size=8 (got 5)"),
        ("train.warmup=1000", "train.warmup: is not less than train.steps=1000 (got 1000)"),
        ("train.distillation.output=0", "train.distillation: learns nothing from the teacher"),
        ("train.distillation.hidden=1", "train.distillation: hidden and blocks go together"),
        (
            "train.distillation.trajectory={steps: 4, length: 5, last: 1}",
            "train.distillation.trajectory.length: is more than steps=4 (got 5); lower it, or null goes all of them",
        ),
        (
            "train.distillation.trajectory={steps: 4, last: 1001}",
            "train.distillation.trajectory.last: is more than train.steps=1000 (got 1001); lower it, or raise train.steps",
        ),
        (
            "train.distillation.teacher=true",
            "train.distillation.teacher: must be a map (got True); give {offload: ..., storage: ...}",
        ),
        ("train.validation.metric=clip", "train.validation.metric: must be 'psnr' or 'ssim' (got 'clip')"),
        ("+train.lora.rank=4", "train.lora.alpha: is not set"),
        ("train.steps=0", "train.steps: must be greater than or equal to 1 (got 0); raise it"),
    ],
)
def test_values_that_mean_nothing_are_refused(config: Any, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(config("+recipe=emoji_fp4", "train=qad", override))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.trackers=[chalk]", "train.trackers: accelerate has no such tracker (got 'chalk'); there are tensorboard"),
        ("train.optimizer=adamw8bit", "train.optimizer: adamw8bit needs the package torchao"),
    ],
)
def test_what_is_not_installed_is_refused(plan: Any, monkeypatch: pytest.MonkeyPatch, override: str, said: str) -> None:
    monkeypatch.setattr("diffopt.jobs.checks.find_spec", lambda name: None if name == "torchao" else object())
    with pytest.raises(PlanError) as caught:
        plan(QAD, override)
    assert said in str(caught.value)


def test_a_family_whose_training_is_not_known_is_refused(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(models.family("flux"), conditions=None)
    monkeypatch.setattr(models, "of", lambda _: unknown)
    with pytest.raises(PlanError, match="train: how flux is trained is not known here"):
        plan(QAD)


# Before anything computes.


@pytest.fixture
def refused(config: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the preflight says of the tiny pipeline with these overrides, on a machine with so many bytes."""

    def of(b: Bench, *overrides: str, ram: int = 1 << 40, gpu: int | None = None) -> str:
        monkeypatch.setattr(environment, "ram", lambda: ram)
        monkeypatch.setattr(environment, "gpus", lambda: ({"memory": gpu},) if gpu else ())
        choices = choose(config(QAD, "model.long_prompts=cut", *overrides))
        with pytest.raises(PlanError) as caught:
            preflight.check(b.context(), choices, b.pipeline())
        return str(caught.value)

    return of


def test_too_little_memory_is_told_with_what_takes_it(refused: Any) -> None:
    said = refused(bench(), ram=4 << 20)
    assert said.startswith("train: takes about ")
    assert "optimizer" in said
    assert "teacher" in said
    assert "but RAM has 4" in said


def test_what_is_named_in_vain_is_told(refused: Any) -> None:
    assert "train.distillation.blocks: matches no block (got 'block.*')" in refused(
        bench(), "train.distillation.hidden=1", "train.distillation.blocks=[block.*]"
    )
    assert "train.precision: float16 is for GPUs" in refused(bench(), "train.precision=float16")


def of(config: Any, *overrides: str) -> Train:
    found = choose(config(QAD, *overrides)).train
    assert found is not None
    return found


def test_the_memory_of_a_12_billion_model(config: Any) -> None:
    billion = 10**9
    plain = footprint(of(config), 12 * billion, 0, "bfloat16", gpu=True)
    assert plain.parts == {
        "weights": 48 * billion,
        "gradients": 48 * billion,
        "optimizer": 96 * billion,
        "moving average": 0,
        "teacher": 24 * billion,
    }
    small = ("train.optimizer=adamw8bit", "train.weights=null", "train.distillation.teacher.offload=true")
    less = footprint(of(config, *small), 12 * billion, 0, "bfloat16", gpu=True)
    assert less.offloaded == 24 * billion
    assert less.total < 0.4 * plain.total
    learned = footprint(of(config, "train.scales=learned"), 12 * billion, 0, "bfloat16", gpu=True)
    assert learned.parts == plain.parts | {"scales": 12 * billion // 16 * 20}
    for how, numbers in {"tied": 4, "dual": 8}.items():  # one or two, each with its gradient and two states, none as it began
        found = footprint(of(config, f"train.scales={how}"), 12 * billion, 0, "bfloat16", gpu=True)
        assert found.parts["scales"] == 12 * billion // 16 * 4 * numbers
    drawing = "train.distillation.trajectory={steps: 20, length: 8, last: 1}"
    kept, again = (of(config, drawing, f"train.gradient_checkpointing={x}") for x in ("false", "true"))
    assert footprint(again, 12 * billion, 0, "bfloat16", gpu=True) == plain
    found = footprint(kept, 12 * billion, 0, "bfloat16", gpu=True)
    assert found.parts == plain.parts
    assert found.total == pytest.approx(plain.total * 1.8 / 1.1)  # the activations of 8 calls
    lora = footprint(of(config, "train.lora={rank:4,alpha:4,targets:['*']}"), 12 * billion, billion, "bfloat16", gpu=True)
    assert lora.parts["gradients"] == 4 * billion


# The store.


def test_what_a_killed_step_kept_stays_while_a_run_wants_it(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "store"), tmp_path / "run"
    store.open()
    store.kept("0123456789abcdef").mkdir()
    run.mkdir()
    store.refer(run, [("checkpoint", "0123456789abcdef")])
    assert garbage(store)[1] == []
    run.rmdir()
    assert store.kept("0123456789abcdef") in garbage(store)[1]


# The whole.


@pytest.mark.matrix
def test_a_recipe_trains_on_a_cpu_from_the_command_line(tmp_path: Path) -> None:
    few = ["train.steps=3", "train.warmup=1", "train.batch_size=8", "train.data.size=16", "train.data.batch_size=8"]
    few += ["train.data.chunk=16", "train.data.steps=4", "train.validation.size=2", "train.validation.steps=2"]
    few += ["eval.size=2", "eval.steps=2", "eval.metrics=[psnr]", "calib.size=8"]
    done = subprocess.run(
        [sys.executable, "-m", "diffopt", QAD, *few, f"store={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "run" / "train" / "training.json").read_text())
    assert told["steps"] == 3
    assert [v["step"] for v in told["validations"]] == [0, 3]
    assert list((tmp_path / "run" / "train" / "logs").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "store" / "tmp").glob("*-kept"))
    score = json.loads((tmp_path / "run" / "score" / "metrics.json").read_text())
    assert 10 < score["metrics"]["psnr"]["candidate"]["mean"] < 60
