"""What `diffopt plan` says of a step to run: what it differs in from the artifact most like it, and what it would cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffopt.cli.plan import folded, table
from diffopt.jobs import job
from diffopt.jobs.cost import Cost, cost, downloads
from diffopt.jobs.nearest import Past
from diffopt.jobs.runner import missing
from diffopt.machine.environment import machine
from diffopt.text import duration

QUICK, GIB = "+recipe=emoji_int8_sq", 1 << 30
Prepare = Callable[..., job.Job]


def fill(made: job.Job, seconds: float = 10.0, peak: int = GIB, **about: Any) -> None:
    """Publish every step that is not there, each with a file of 100 bytes."""
    provenance = {"seconds": seconds, "machine": machine(), "peak_bytes": {"ram": peak}} | about
    for step in made.plan.steps:
        if made.store.entry(step.kind, step.fingerprint) is None:
            with made.store.publish(step.kind, step.fingerprint, step.identity, provenance) as out:
                (out / "x").write_bytes(bytes(100))


def costs(made: job.Job) -> Cost:
    todo = missing(made.plan, made.store)
    return cost([s for s in made.plan.steps if s in todo], Past(made.store))


def by_name(made: job.Job) -> dict[str, Any]:
    return {e.name: e for e in made.cost.each}


def line(made: job.Job, name: str) -> str:
    return next(row for row in table(made).splitlines() if row.split()[:1] == [name])


# What it differs in.


def test_the_nearest_artifact_is_of_the_same_model_even_where_another_ones_has_more_in_common(prepare: Prepare) -> None:
    fill(prepare(QUICK, "calib.alpha=0.9", "seed=3", "eval.size=8"))
    fill(prepare("+recipe=emoji_int8_sq", "model=emoji_sdxl", "eval.size=32"))
    made = prepare(QUICK, "eval.size=32")
    sample = next(s for s in made.plan.steps if s.name == "sample")
    near = Past(made.store).nearest(sample)
    assert near is not None
    assert near.same_model
    assert {"seed", "eval.prompts"} <= set(near.own)
    assert "seed 3 -> 0" in line(made, "sample")


def test_what_was_made_of_other_models_only_is_called_so(prepare: Prepare) -> None:
    fill(prepare("+recipe=emoji_int8_sq", "model=emoji_sdxl"))
    made = prepare(QUICK)
    assert line(made, "quantize").endswith("never made of this model")
    assert costs(made).untold == tuple(s.name for s in made.plan.steps)


def test_the_plain_graph_is_not_what_a_quantized_one_is_like(prepare: Prepare) -> None:
    fill(prepare("+recipe=quickstart", "calib.alpha=0.9"))
    made = prepare("+recipe=quickstart", "calib.alpha=0.8")
    assert line(made, "export").endswith("new quantize")
    assert line(made, "time").endswith("new export")


def test_an_input_that_is_there_but_another_is_named(prepare: Prepare) -> None:
    fill(prepare("+recipe=quickstart", "calib.alpha=0.9"))
    fill(prepare(QUICK, "calib.alpha=0.8"))
    assert line(prepare("+recipe=quickstart", "calib.alpha=0.8"), "export").endswith("another quantize than before")


def test_chunks_in_one_state_for_one_reason_are_one_row(prepare: Prepare) -> None:
    made = prepare(QUICK, "calib.batch_size=2", "calib.chunk=2")
    assert line(made, "embed.0-7").split()[1:5] == ["8", "artifacts", "to", "run"]
    fill(made)
    more = prepare(QUICK, "calib.batch_size=2", "calib.chunk=2", "calib.size=20")
    rows = [row.split()[0] for row in table(more).splitlines() if row.startswith(("embed", "observe"))]
    assert rows == ["embed.0-7", "embed.8-9", "observe.0-7", "observe.8-9"]
    assert line(more, "merge").endswith("new observe.8-9")


def test_chunks_that_do_not_follow_each_other_stay_apart(prepare: Prepare) -> None:
    chunks = [s for s in prepare(QUICK, "calib.batch_size=2", "calib.chunk=2").plan.steps if s.name.startswith("observe")]
    rows = folded([(chunks[0], "", ""), (chunks[2], "", ""), (chunks[3], "", "")])
    assert [name for name, *_ in rows] == ["observe.0", "observe.2-3"]


# What it costs.


def test_time_memory_and_disk_are_those_of_the_nearest_artifacts(prepare: Prepare) -> None:
    fill(prepare(QUICK, "calib.alpha=0.9"), seconds=10, peak=2 * GIB)
    found = costs(prepare(QUICK, "calib.alpha=0.8"))  # quantize, sample, score
    assert (found.steps, found.seconds, found.bytes, found.peak, found.untold) == (3, 30, 300, {"ram": 2 * GIB}, ())
    text = table(prepare(QUICK, "calib.alpha=0.8"))
    assert "time    about 30 s, by this machine's records of 3 of 3 steps" in text
    assert "memory  about 2.0 GiB RAM, the most that such a step took" in text
    assert "disk    about 300 B in the store; its disk has " in text


def test_time_grows_with_prompts_and_denoising_steps(prepare: Prepare) -> None:
    fill(prepare(QUICK, "eval.size=8", "eval.steps=10"))
    made = prepare(QUICK, "eval.size=32", "eval.steps=20")
    by_name = {s.name: cost([s], Past(made.store)).seconds for s in made.plan.steps}
    assert (by_name["sample"], by_name["reference"], by_name["encode"], by_name["score"]) == (80, 80, 40, 10)


def test_a_trainings_time_grows_with_its_steps_and_its_batch(prepare: Prepare) -> None:
    job = ("+recipe=emoji_fp4_qad", "train.warmup=1")
    fill(prepare(*job, "train.steps=100", "train.batch_size=8"))
    for steps, batch, seconds in ((200, 32, 80), (100, 8, 10), (50, 64, 40)):
        made = prepare(*job, f"train.steps={steps}", f"train.batch_size={batch}", "train.learning_rate=1e-4")
        assert {e.name: e.seconds for e in costs(made).each}["train"] == seconds


def test_neither_single_calls_nor_other_drawings_tell_how_long_drawings_take(prepare: Prepare) -> None:
    job = ("+recipe=emoji_fp4_qad", "train.steps=100", "train.warmup=1")
    fill(prepare(*job))
    short, long = (f"train.distillation.trajectory={{steps: {n}, last: 10}}" for n in (4, 8))
    assert "train" in costs(prepare(*job, short)).untold
    fill(prepare(*job, short))
    assert "train" in costs(prepare(*job, long, "train.learning_rate=1e-4")).untold
    assert "train" not in costs(prepare(*job, short, "train.learning_rate=1e-4")).untold
    assert "train" in costs(prepare(*job, short, "train.steps=200")).untold  # of which as many as before are of drawings


def test_a_training_that_keeps_less_of_its_calls_takes_other_memory(prepare: Prepare) -> None:
    job = ("+recipe=emoji_fp4_qad", "train.steps=100", "train.warmup=1")
    fill(prepare(*job), peak=7 * GIB)
    assert by_name(prepare(*job, "train.learning_rate=1e-4"))["train"].ram == 7 * GIB
    spared = by_name(prepare(*job, "train.gradient_checkpointing=true"))["train"]
    assert spared.ram < 2 * GIB
    assert spared.seconds == 10


@pytest.mark.parametrize("override", ["model.height=128", "eval.runtime=onnxruntime"])
def test_other_work_is_not_foretold(prepare: Prepare, override: str) -> None:
    exported = [QUICK, "export=onnx"]
    fill(prepare(*exported))
    assert "sample" in costs(prepare(*exported, override)).untold


def test_another_machines_records_tell_nothing_and_a_containers_name_does_not_matter(prepare: Prepare) -> None:
    fill(prepare(QUICK, "calib.alpha=0.9"), machine=machine() | {"cpu": "another"})
    made = prepare(QUICK, "calib.alpha=0.8")
    assert costs(made).untold == ("quantize", "sample", "score")
    assert "time    no record of this machine tells" in table(made)
    fill(prepare(QUICK, "calib.alpha=0.7"), machine=machine() | {"host": "another"})
    assert costs(made).untold == ()


def test_where_a_part_is_unknown_the_sum_is_at_least_and_names_it(prepare: Prepare) -> None:
    fill(prepare(QUICK, "calib.alpha=0.9"))
    text = table(prepare("+recipe=quickstart", "calib.alpha=0.8"))
    assert "time    at least 20 s, by this machine's records of 2 of 7 steps" in text
    assert "not known of export, build, sample, export.baseline and 1 more" in text


def test_a_plan_with_nothing_to_run_costs_nothing_and_says_nothing(prepare: Prepare) -> None:
    fill(prepare(QUICK))
    assert "time " not in table(prepare(QUICK))


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5300, "88 min"), (7500, "2 h 5 min")]
)
def test_a_duration_is_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# What is downloaded.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_repository_that_is_not_in_the_cache_is_said_to_be_downloaded(prepare: Prepare, cache: Path) -> None:
    made = prepare(QUICK, "model.source=org/name")
    (said,) = downloads(made.plan.steps)
    assert said.startswith("hub     org/name: not in the hub's cache, running downloads it; ")
    assert said in table(made)


def test_what_is_in_the_cache_is_said_with_its_size(prepare: Prepare, cache: Path) -> None:
    blobs = cache / "models--org--name/blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(bytes(3 << 20))
    made = prepare(QUICK, "model.source=org/name")
    assert downloads(made.plan.steps) == ["hub     org/name: 3.0 MiB of it in the hub's cache; what lacks is downloaded"]
    (blobs / "b.incomplete").write_bytes(bytes(1 << 20))
    assert downloads(made.plan.steps) == ["hub     org/name: 3.0 MiB of it in the hub's cache, a download was interrupted"]


def test_the_embedded_model_downloads_nothing(prepare: Prepare, cache: Path) -> None:
    assert downloads(prepare("+recipe=quickstart").plan.steps) == []


def test_a_sweeps_plan_tells_its_cost_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from diffopt.cli.main import main

    monkeypatch.chdir(tmp_path)
    main(["plan", "+recipe=emoji_int8_grid"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:-2]] == ["time", "memory", "disk"]
