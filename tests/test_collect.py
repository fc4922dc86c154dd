"""What is trained on is collected once: of one's own pictures, or drawn by the full-precision model chunk by chunk."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures_with_captions import caption, describe, folder, shape
from safetensors.torch import load_file
from test_latents import taught
from tiny import Bench, bench, random_bench, saved

from diffopt.artifact import Pipeline, TrainSet
from diffopt.data.extent import Extent
from diffopt.data.frames import fitted
from diffopt.errors import ConfigError, GateError, PlanError
from diffopt.groups.validate import choose
from diffopt.jobs import checks, job, preflight
from diffopt.jobs.plan import Plan, make_plan
from diffopt.jobs.runner import run_plan
from diffopt.pipeline import items
from diffopt.pipeline.latents import encode
from diffopt.pipeline.open import open_vae
from diffopt.pipeline.texts import encoder
from diffopt.stages import collect as stage
from diffopt.store.source import Sources, read_data
from diffopt.store.store import Store

TRAINED = ("+recipe=emoji_fp8", "export=null", "eval=null", "train=qad", "train.validation=null")


def own(b: Bench, where: Path, **how: Any) -> TrainSet:
    """The set that the stage makes of a folder."""
    ctx = b.context()
    view = stage.SourceView(source=read_data(str(where)), **{"batch_size": 2} | how)
    stage.collect.run(ctx, call(b), view, b.pipeline(), (), ())
    return TrainSet(ctx.out, "set")


def call(b: Bench) -> stage.PictureView:
    return stage.PictureView(**{n: getattr(b.call, n) for n in stage.PictureView.model_fields})


def latents(found: TrainSet) -> torch.Tensor:
    return load_file(found.path / "latents.safetensors")["latents"]


def texts(found: TrainSet) -> dict[str, torch.Tensor]:
    return load_file(found.path / "texts.safetensors")


# one's own pictures


def test_a_set_has_a_latent_of_every_picture_as_the_vae_encodes_it(tmp_path):
    b = bench()
    found = own(b, folder(tmp_path, 5))
    side = Extent(b.call.height, b.call.width)
    pixels = torch.from_numpy(np.stack([fitted(shape(i), side) for i in range(5)])).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(latents(found), encode(open_vae(b.context(), b.pipeline()), pixels), rtol=1e-4, atol=1e-5)


def test_a_prompt_of_several_pictures_is_encoded_once(tmp_path):
    b, words = bench(), ["a cat", "a dog", "a cat", "a cat"]
    describe(folder(tmp_path, 4), [{"file_name": f"{i:03}.png", "text": w} for i, w in enumerate(words)])
    found = own(b, tmp_path)
    about = found.json("set.json")
    assert about == {
        "schema": "diffopt.trainset/1",
        "items": 4,
        "prompts": ["a cat", "a dog"],
        "text": [0, 1, 0, 0],
        "skipped": 0,
        "unreadable": [],
    }
    assert len(latents(found)) == 4
    for name, x in encoder(b.context(), b.pipeline(), b.call)(["a cat", "a dog"]).items():
        torch.testing.assert_close(texts(found)[name], x)


def test_an_unreadable_picture_is_counted_and_its_caption_left_out(tmp_path):
    data = folder(tmp_path, 100, (32, 32))
    (data / "041.png").write_bytes(b"no picture")
    found = own(bench(), data, batch_size=25)
    about = found.json("set.json")
    assert (about["items"], about["skipped"], about["unreadable"]) == (99, 1, ["041.png"])
    assert caption(41) not in about["prompts"]
    assert len(latents(found)) == len(about["text"]) == 99
    assert len(texts(found)["prompt_embeds"]) == 99


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_videos_become_latents_of_the_length_that_the_model_draws(name, tmp_path):
    b = bench(family=name)
    many = b.call.frames or 1
    folder(tmp_path, many, (b.call.width, b.call.height))
    describe(tmp_path, [{"frames_file_names": [f"{i:03}.png" for i in range(many)], "text": "moving"}])
    assert latents(own(b, tmp_path)).shape[1:] == taught(b).shape[1:]


def test_a_guided_model_s_set_has_the_negative_prompt_too(tmp_path):
    found = own(bench(family="sd3"), folder(tmp_path, 2))
    assert {"negative_prompt_embeds", "negative_pooled_prompt_embeds"} <= texts(found).keys()


def test_random_weights_make_a_set_of_the_right_shapes(tmp_path):
    b = random_bench("flux")
    found = own(b, folder(tmp_path, 2))
    assert latents(found).shape == (2, 4, 16, 16)


def test_pictures_are_looked_at_before_a_model_is_opened(tmp_path, monkeypatch):
    def opened(*_: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(items, "encoder", opened)
    monkeypatch.setattr(items, "open_vae", opened)
    data = folder(tmp_path, 3)
    (data / "001.png").write_bytes(b"no picture")
    with pytest.raises(PlanError, match=r"001\.png"):
        own(bench(), data)


def test_text_encoders_are_gone_before_the_vae_is_opened(tmp_path, monkeypatch):
    seen: list[Any] = []
    opened = items.encoder

    def encoding(ctx: Any, pipeline: Pipeline, model: Any) -> Any:
        found = opened(ctx, pipeline, model)
        seen.append(weakref.ref(ctx.held.get((pipeline.fingerprint, None), lambda: None).text_encoder_2))
        return found

    def vae(*arguments: Any) -> Any:
        gc.collect()
        assert seen[0]() is None
        return open_vae(*arguments)

    monkeypatch.setattr(items, "encoder", encoding)
    monkeypatch.setattr(items, "open_vae", vae)
    own(bench(), folder(tmp_path, 2))
    assert seen


def test_a_vae_that_gives_nan_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "encode", lambda vae, pixels: encode(vae, pixels) * float("nan"))
    with pytest.raises(GateError, match="collect: the latents have NaN"):
        own(bench(), folder(tmp_path, 2))


# what the model draws


@pytest.fixture
def planned(plan: Any) -> Any:
    """`planned("train.data.size=4")`: the steps of the embedded model's training with these overrides, by name."""

    def of(*overrides: str, **how: Any) -> dict[str, Any]:
        return {step.name: step for step in plan(*TRAINED, *overrides, **how).steps}

    return of


def fingerprints(steps: dict[str, Any], stage: str) -> list[str]:
    return [s.fingerprint for s in steps.values() if s.stage.name == stage]


DRAWN = ("train.data.prompts=asset:emoji/prompts_calib.txt", "train.data.chunk=8", "train.data.size=16")


def test_a_larger_set_shares_the_chunks_of_a_smaller_one(planned):
    small, large = (fingerprints(planned(*DRAWN, f"train.data.size={n}"), "teach") for n in (16, 40))
    assert len(large) == 5
    assert large[:2] == small


@pytest.mark.parametrize(
    "override", ["train.learning_rate=1e-4", "train.steps=77", "train=qat", "format=nvfp4", "calib.size=8"]
)
def test_how_is_trained_does_not_collect_again(planned, override):
    assert fingerprints(planned(*DRAWN), "collect") == fingerprints(planned(*DRAWN, override), "collect")


@pytest.mark.parametrize(
    "override",
    [
        "train.data.size=15",
        "train.data.steps=3",
        "train.data.batch_size=2",
        "seed=1",
        "model.height=128",
        "model.dtype=bfloat16",
    ],
)
def test_what_is_drawn_is_known_by_what_it_is_drawn_by(planned, override):
    assert fingerprints(planned(*DRAWN), "collect") != fingerprints(planned(*DRAWN, override), "collect")


def test_defaults_spelled_out_are_the_same_set(planned):
    spelled = ("train.data.steps=20", "train.data.batch_size=4", "train.data.chunk=16", "train.data.size=128")
    cut = "model.long_prompts=cut"
    assert fingerprints(planned(cut), "collect") == fingerprints(planned(cut, *spelled), "collect")
    assert fingerprints(planned(cut), "collect") == fingerprints(planned(cut, "train.data=synthetic"), "collect")


def test_pictures_come_before_the_calibration(planned, tmp_path):
    """A folder that is refused is refused before the GPU has worked for nothing."""
    names = [*planned(f"train.data={folder(tmp_path / 'mine', 3)}")]
    assert names.index("collect") < names.index("observe.0")


def ours(where: Path) -> Any:
    """How a run resolves sources."""
    return Sources(where / "memory.json").digest


def test_a_set_is_known_by_its_pictures_and_captions_not_by_where_they_are(planned, tmp_path):
    one, same, other, said = (folder(tmp_path / n, 3) for n in ("one", "same", "other", "said"))
    shape(9).save(other / "001.png")
    describe(said, [{"file_name": f"{i:03}.png", "text": "another"} for i in range(3)])
    found = [fingerprints(planned(f"train.data={w}", digest=ours(tmp_path)), "collect") for w in (one, same, other, said)]
    assert found[0] == found[1]
    assert len({f[0] for f in found}) == 3


def test_one_s_own_pictures_are_drawn_by_no_model(planned, tmp_path):
    steps = planned(f"train.data={folder(tmp_path / 'mine', 3)}")
    assert "collect" in steps
    assert not {"teach", "phrase"} & {s.stage.name for s in steps.values()}


def test_the_seed_is_nothing_to_one_s_own_pictures(planned, tmp_path):
    data = f"train.data={folder(tmp_path / 'mine', 3)}"
    assert fingerprints(planned(data), "collect") == fingerprints(planned(data, "seed=5"), "collect")


@pytest.fixture
def drawn_plan(config: Any, tmp_path: Path) -> Any:
    """A plan that collects 5 items of 3 prompts in chunks of 2 by the tiny FLUX, its choices, store and sources."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na tree\n")
    data = f"train.data={{source: synthetic, prompts: {tmp_path}/prompts.txt, size: 5, chunk: 2, batch_size: 2, steps: 2}}"
    size = (
        "model.height=32",
        "model.width=32",
        "model.max_sequence_length=16",
        "model.long_prompts=cut",
        f"model.source={saved('flux')}",
    )
    choices = choose(config(*TRAINED, data, *size))
    store = Store(tmp_path / "store")
    store.open()
    sources = Sources(tmp_path / "memory.json")
    whole = make_plan(choices, job.stages(), job.Environment(), sources.digest)
    last = next(s for s in whole.steps if s.stage.name == "collect")
    wanted = [s for s in whole.steps if s.stage.name in ("load", "phrase", "teach", "collect")]
    return Plan(wanted, [last], []), choices, store, sources


def test_more_items_than_prompts_are_other_pictures_of_the_same_prompts(drawn_plan):
    plan, choices, store, sources = drawn_plan
    run_plan(plan, choices, store, sources)
    entry = store.entry("train-set", plan.wanted[0].fingerprint)
    found = TrainSet(entry.path, "set")
    about, made = found.json("set.json"), latents(found)
    assert about["prompts"] == ["a cat", "a dog", "a tree"]
    assert about["text"] == [0, 1, 2, 0, 1]
    assert len(texts(found)["prompt_embeds"]) == 3
    assert not torch.equal(made[0], made[3])
    teaching = [store.entry("train-latents", s.fingerprint) for s in plan.steps if s.stage.name == "teach"]
    chunks = [load_file(e.path / "latents.safetensors")["latents"] for e in teaching]
    assert torch.equal(made, torch.cat(chunks))


def test_the_embeddings_of_a_drawn_set_are_those_of_its_prompts(drawn_plan):
    plan, choices, store, sources = drawn_plan
    run_plan(plan, choices, store, sources)
    found = TrainSet(store.entry("train-set", plan.wanted[0].fingerprint).path, "set")
    b = bench()
    for name, x in encoder(b.context(), b.pipeline(), b.call)(["a cat", "a dog", "a tree"]).items():
        torch.testing.assert_close(texts(found)[name], x)


def test_a_killed_run_loses_no_chunk_that_it_finished(drawn_plan, monkeypatch):
    from diffopt.pipeline import calibration

    plan, choices, store, sources = drawn_plan
    drawn, calls = calibration.draw, []

    def killed(*arguments: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return drawn(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, choices, store, sources)
    done = {d.step.name: d.state for d in run_plan(plan, choices, store, sources)}
    assert {n: s for n, s in done.items() if n.startswith("teach")} == {
        "teach.0": "cached",
        "teach.1": "cached",
        "teach.2": "made",
    }


def test_a_teacher_that_draws_nan_is_caught(monkeypatch):
    from diffopt.pipeline import calibration

    drawn = calibration.draw
    monkeypatch.setattr(calibration, "draw", lambda *a, **k: drawn(*a, **k) * np.nan)
    with pytest.raises(GateError, match="teach: the model draws NaN"):
        taught(bench())


# what is refused


def lines(config: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        choose(config(*TRAINED, *overrides))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "train.data={source: SELF, steps: 3}",
            "train.data.steps: has no effect, since only source=synthetic reads it (got 3)",
        ),
        ("train.data={source: SELF, chunk: 4}", "train.data.chunk: has no effect"),
        ("train.data={source: synthetic, caption: words}", "train.data.caption: has no effect, since the data are synthetic"),
        ("train.data={source: synthetic, small: enlarge}", "train.data.small: has no effect"),
        ("train.data={source: synthetic, chunk: 6}", "train.data.chunk: is not a multiple of train.data.batch_size=4 (got 6)"),
        ("train.data=no/such/place", "train.data.source: is not a directory (got 'no/such/place'); check the path"),
        ("train.data=hub:alone", "train.data.source: is not a data set (got 'hub:alone'); write hub:ORG/NAME"),
        ("train.data.size=0", "train.data.size: "),
        ("+train.data.sizes=3", "train.data.sizes: no such key (got 3); did you mean size?"),
    ],
)
def test_wrong_data_is_one_line_before_anything_runs(config, tmp_path, given, line):
    (found,) = lines(config, given.replace("SELF", str(folder(tmp_path, 1))))
    assert found.startswith(line)
    assert "; " in found


def test_an_empty_folder_is_one_line_before_anything_runs(config, tmp_path):
    (found,) = lines(config, f"train.data={tmp_path}")
    assert found.startswith("train.data.source: is an empty directory (got ")


def test_pictures_need_the_package_that_reads_them(config, tmp_path, monkeypatch):
    choices = choose(config(*TRAINED, f"train.data={folder(tmp_path, 1)}"))
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"train\.data\.source: .*pip install 'diffopt\[datasets\]'"):
        checks.check(choices, job.Environment())


def test_captions_that_are_too_long_are_refused(config, tmp_path):
    describe(folder(tmp_path, 2), [{"file_name": f"{i:03}.png", "text": "word " * (3 + 90 * i)} for i in range(2)])
    b = bench()
    choices = choose(config(*TRAINED, "calib.size=1", f"train.data={tmp_path}"))
    with pytest.raises(PlanError, match=r"train\.data\.source: 'word .* tokens, but the text encoder takes 32"):
        preflight.check(b.context(), choices, b.pipeline())


def test_captions_are_looked_for_before_anything_computes(config, tmp_path):
    (folder(tmp_path, 2) / "metadata.jsonl").unlink()
    choices = choose(config(*TRAINED, f"train.data={tmp_path}"))
    b = bench()
    with pytest.raises(PlanError, match=r"train\.data\.source: has no captions"):
        preflight.check(b.context(), choices, b.pipeline())


def test_more_denoising_steps_than_the_scheduler_has_are_refused(config):
    choices = choose(config(*TRAINED, "train.data.steps=5000"))
    b = bench()
    with pytest.raises(PlanError, match=r"train\.data\.steps: .*\(got 5000\)"):
        preflight.check(b.context(), choices, b.pipeline())
