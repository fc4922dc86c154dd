"""The rules of the key: what enters a step's fingerprint and what stays out. One test each."""

import shutil
from dataclasses import replace

import pytest

from diffopt.machine import environment
from diffopt.stage import stages
from diffopt.store import assets
from diffopt.store.fingerprint import fingerprint
from diffopt.store.source import Sources
from diffopt.store.store import Store

CALIBRATED = {"merge", "quantize"}
"""What every change of the observed chunks changes, whatever is made of the checkpoint then."""


def keys(plan):
    return {s.name: s.fingerprint for s in plan.steps}


def step(plan, name):
    return next(s for s in plan.steps if s.name == name)


def changed(before, after):
    """Names of the steps that have another fingerprint, of two plans of the same steps."""
    before, after = keys(before), keys(after)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def rekeyed(before, after):
    """Names of those steps among them that read something else themselves, and not only take another input."""

    def own(s):
        return {key: value for key, value in s.identity.items() if key != "inputs"}

    assert keys(before).keys() == keys(after).keys()
    return {s.name for s in before.steps if own(s) != own(step(after, s.name))}


@pytest.fixture
def int8(plan):
    """`int8(*overrides)` plans INT8 by onnxruntime: every built-in stage has a step."""
    return lambda *overrides, **more: plan("+recipe=quickstart", *overrides, **more)


@pytest.fixture
def fp8(plan):
    """`fp8(*overrides)` plans simulated FP8, with an engine plan."""
    return lambda *overrides, **more: plan("+recipe=emoji_fp8", *overrides, **more)


# what a change of the recipe makes again


def test_the_same_recipe_has_the_same_key_twice(int8):
    assert keys(int8()) == keys(int8())


def test_alpha_does_not_observe_again_but_changes_quantize_and_all_that_follows(int8):
    assert changed(int8(), int8("calib.alpha=0.35")) == {"quantize", "export", "build", "sample", "score", "time"}


def test_alpha_has_no_effect_under_fp8(fp8):
    assert keys(fp8()) == keys(fp8("calib.alpha=0.35", sweep=True))


def test_equal_alphas_written_otherwise_have_the_same_key(int8):
    assert keys(int8("calib.alpha=1")) == keys(int8("calib.alpha=1.0"))
    assert keys(int8("calib.alpha=0.8")) == keys(int8("calib.alpha=0.79999999999999993"))


def test_a_metric_changes_only_the_score(int8):
    assert changed(int8(), int8("eval.metrics=[psnr]")) == {"score"}


def test_the_clip_model_is_no_part_of_the_score_without_its_metric(int8):
    assert keys(int8("eval.metrics=[psnr]")) == keys(int8("eval.metrics=[psnr]", "eval.clip=org/other", sweep=True))


def test_the_clip_model_is_part_of_the_score_with_its_metric(int8):
    assert changed(int8(), int8("eval.clip=org/other")) == {"score"}


def test_a_larger_calibration_shares_the_chunks_of_a_smaller_one(int8):
    small, large = keys(int8("calib.size=8")), keys(int8("calib.size=16"))
    assert small["observe"] == large["observe.0"]
    assert large["observe.0"] != large["observe.1"]
    assert small["merge"] != large["merge"]


def test_the_whole_chunks_before_a_part_of_one_are_shared(int8):
    part, whole = keys(int8("calib.size=12")), keys(int8("calib.size=16"))
    assert part["observe.0"] == whole["observe.0"]
    assert part["observe.1"] != whole["observe.1"]


def test_a_chunk_larger_than_the_set_is_the_same_chunk(int8):
    assert keys(int8("calib.size=8")) == keys(int8("calib.size=8", "calib.chunk=16"))


def test_equal_chunks_at_different_places_are_different_because_their_seeds_are(int8, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n" * 16)
    made = keys(int8(f"calib.prompts={file}"))
    assert made["observe.0"] != made["observe.1"]


def test_the_chunks_of_one_set_are_observed_once_for_every_format(plan):
    made = [keys(plan(f"+recipe=emoji_{name}")) for name in ("int8_sq", "fp8", "fp4")]
    assert {k["merge"] for k in made} == {made[0]["merge"]}
    assert len({k["quantize"] for k in made}) == 3


def test_the_reference_is_drawn_once_for_every_format(plan):
    made = [keys(plan(f"+recipe=emoji_{name}")) for name in ("int8_sq", "fp8", "fp4")]
    assert {k["reference"] for k in made} == {made[0]["reference"]}
    assert {k["encode"] for k in made} == {made[0]["encode"]}


def test_a_cache_changes_the_candidates_pictures_and_not_the_reference(fp8):
    assert changed(fp8(), fp8("cache=first_block")) == {"sample", "score"}


def test_a_policy_left_out_and_the_familys_spelled_out_are_the_same(fp8):
    spelled = ('\'cache.blocks=["*","!transformer_blocks.0"]\'', "cache.every=2", "cache.reuse=residual")
    assert changed(fp8("cache=cachify"), fp8("cache=cachify", *(s.strip("'") for s in spelled))) == set()
    assert changed(fp8("cache=cachify"), fp8("cache=cachify", "cache.every=3")) == {"sample", "score"}


def test_a_cache_threshold_is_in(fp8):
    assert changed(fp8("cache=first_block"), fp8("cache=first_block", "cache.threshold=0.3")) == {"sample", "score"}


def test_an_excluded_module_quantizes_again(fp8):
    again = changed(fp8(), fp8("format.exclude=['transformer_blocks.0.*']"))
    assert again == {"quantize", "export", "build", "sample", "score"}


def test_block_size_and_rank_are_in_where_they_are_read_and_defaults_are_what_they_stand_for(plan):
    def awq(*overrides):
        return plan("model=emoji_flux", "format=int4_awq", "calib=emoji", *overrides)

    assert changed(awq(), awq("format.block_size=64")) == {"quantize"}
    assert keys(awq()) == keys(awq("format.block_size=null"))
    svd = plan("model=emoji_flux", "format=nvfp4_svdquant", "calib=emoji")
    assert (
        keys(svd)["quantize"]
        != keys(plan("model=emoji_flux", "format=nvfp4_svdquant", "calib=emoji", "format.rank=8"))["quantize"]
    )


def test_a_recording_is_shared_by_every_format_that_searches(plan):
    made = [keys(plan("model=emoji_flux", f"format={n}", "calib=emoji")) for n in ("int4_awq", "w4a8_awq", "nvfp4_svdquant")]
    assert len({tuple(v for n, v in k.items() if n.startswith("record")) for k in made}) == 1


def test_the_builders_effort_changes_only_the_engine_plan(fp8):
    assert changed(fp8(), fp8("export.builder_optimization_level=1")) == {"build"}


def test_the_opset_exports_again_and_draws_again_only_what_runs_the_graph(int8, fp8):
    assert changed(fp8(), fp8("export.opset=21")) == {"export", "build"}
    assert changed(int8(), int8("export.opset=21")) == {
        *("export", "export.baseline", "build"),
        *("sample", "score", "time"),
    }


# prompts


def test_the_prompts_are_in_and_the_path_of_their_file_is_out(int8, tmp_path):
    one, same, other = (tmp_path / name for name in ("one.txt", "same.txt", "other.txt"))
    one.write_text("\n".join(f"prompt {i}" for i in range(16)))
    same.write_bytes(one.read_bytes())
    other.write_text(one.read_text().replace("prompt 3", "prompt three"))
    first, second, third = (int8(f"calib.prompts={p}") for p in (one, same, other))
    assert keys(first) == keys(second)
    assert rekeyed(first, third) == {"embed.0", "observe.0"}


def test_prompts_that_are_not_used_are_out(int8, tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("\n".join(f"prompt {i}" for i in range(16)))
    long.write_text("\n".join(f"prompt {i}" for i in range(40)))
    assert keys(int8(f"calib.prompts={short}")) == keys(int8(f"calib.prompts={long}"))


def test_the_number_of_pictures_draws_again_and_does_not_time_again(int8):
    assert changed(int8(), int8("eval.size=32")) == {"encode", "reference", "sample", "score"}


# seed, batches, steps


def test_the_seed_is_in_for_what_draws_noise(int8):
    assert rekeyed(int8(), int8("seed=1")) == {"observe.0", "observe.1", "reference", "sample", "time"}


def test_the_calibrations_batch_size_is_in(int8):
    again = changed(int8(), int8("calib.batch_size=4"))
    assert {"observe.0", "observe.1", *CALIBRATED} <= again
    assert not {"load", "reference", "export.baseline"} & again


def test_the_calibrations_denoising_steps_are_in(int8):
    assert rekeyed(int8(), int8("calib.n_steps=5")) == {"observe.0", "observe.1"}


def test_the_evaluations_batch_size_is_in_for_torch(fp8):
    assert changed(fp8(), fp8("eval.batch_size=4")) == {"encode", "reference", "sample", "score"}


def test_the_evaluations_batch_size_is_out_for_a_graph_that_brings_its_own(int8):
    assert rekeyed(int8(), int8("eval.batch_size=4")) == {"encode", "reference"}
    assert rekeyed(int8(), int8("export.batch_size=2")) == {"export", "export.baseline"}


def test_the_evaluations_denoising_steps_are_in(int8):
    assert rekeyed(int8(), int8("eval.steps=3")) == {"reference", "sample", "time"}


def test_repeats_and_warm_up_time_again_and_no_more(int8):
    assert changed(int8(), int8("eval.repeats=5", "eval.warmup=2")) == {"time"}


def test_the_runtime_is_in_for_what_it_draws(int8):
    by_graph, by_torch = int8("eval.latency=false"), int8("eval.latency=false", "eval.runtime=torch")
    assert changed(by_graph, by_torch) == {"sample", "score"}


# the model


def test_height_is_in_for_every_call_and_for_the_graph(int8):
    assert rekeyed(int8(), int8("model.height=32")) == {
        *("observe.0", "observe.1", "reference", "sample", "time"),
        *("export", "export.baseline"),
    }


def test_guidance_is_in_for_every_call_and_not_for_the_graph(int8):
    assert rekeyed(int8(), int8("model.guidance_scale=2")) == {"observe.0", "observe.1", "reference", "sample", "time"}


def test_the_models_precision_changes_everything(fp8):
    graph = "export.high_precision_dtype=float32"
    before, after = fp8(graph), fp8(graph, "model.dtype=float16")
    assert rekeyed(before, after) == {"load"}
    assert changed(before, after) == set(keys(before))


def test_the_content_of_a_model_directory_is_in_and_its_path_is_out(fp8, tmp_path):
    one, same, other = tmp_path / "one", tmp_path / "elsewhere" / "same", tmp_path / "other"
    for where in (one, same, other):
        shutil.copytree(assets.locate("asset:emoji/emoji-flux"), where)
    with (other / "transformer" / "config.json").open("a") as file:
        file.write("\n")
    digest = Sources(tmp_path / "memory.json", dry=True).digest
    first, second, third = (fp8(f"model.source={p}", digest=digest) for p in (one, same, other))
    assert keys(first) == keys(second)
    assert rekeyed(first, third) == {"load"}
    assert changed(first, third) == set(keys(first))


def test_a_hub_model_is_known_by_its_commit_and_not_by_its_revisions_name(fp8, tmp_path):
    commit = "0" * 40
    memory = tmp_path / "memory.json"
    memory.write_text(f'{{"org/name@v1": "{commit}", "org/name@v2": "{"1" * 40}"}}')

    def digest(source):
        return Sources(memory, dry=True).digest(source)

    by_tag, by_commit, by_other = (fp8(f"model.source=org/name@{r}", digest=digest) for r in ("v1", commit, "v2"))
    assert keys(by_tag) == keys(by_commit)
    assert rekeyed(by_tag, by_other) == {"load"}


# the environment


@pytest.mark.parametrize(
    "other",
    [{"torch": "2.12.0"}, {"diffusers": "0.42.2"}, {"transformers": "5.1.0"}, {"device": "NVIDIA H200 sm9.0"}],
    ids=lambda o: next(iter(o)),
)
def test_what_computes_numbers_is_in_for_every_stage_that_computes(int8, fixed_probes, other):
    probes = {"numerics": fixed_probes["numerics"] | other}
    assert rekeyed(int8(), int8(probes=probes)) == set(keys(int8())) - {"merge", "build"}


def test_the_modelopt_version_is_in_for_what_quantizes(int8):
    again = rekeyed(int8(), int8(probes={"modelopt": "0.48.0"}))
    assert again == {"observe.0", "observe.1", "quantize", "export", "export.baseline"}


def test_the_modelopt_version_is_in_for_a_simulated_format_and_not_for_the_reference(fp8):
    again = rekeyed(fp8(), fp8(probes={"modelopt": "0.48.0"}))
    assert "sample" in again
    assert "reference" not in again


def test_the_onnxruntime_version_is_in_only_where_it_runs(int8, fp8):
    assert rekeyed(int8(), int8(probes={"onnxruntime": "1.25.0"})) == {"sample", "time"}
    assert changed(fp8(), fp8(probes={"onnxruntime": "1.25.0"})) == set()


def test_the_tensorrt_version_is_in_only_for_the_build(int8):
    assert changed(int8(), int8(probes={"tensorrt": {"flavour": "tensorrt", "version": "10.8"}})) == {"build"}


def test_tensorrt_builds_again_on_another_gpu_and_tensorrt_rtx_does_not(int8, monkeypatch):
    def plans(flavour):
        monkeypatch.setattr(environment, "tensorrt", lambda: {"flavour": flavour, "version": "1"})
        for name in ("A", "B"):
            monkeypatch.setattr(environment, "device", lambda name=name: name)
            yield int8(probes={"tensorrt": environment.builder()})

    assert changed(*plans("tensorrt")) == {"build"}
    assert changed(*plans("tensorrt_rtx")) == set()


def test_a_plans_own_fields_build_it_again_and_export_no_graph_again(int8):
    tensorrt = {"tensorrt": {"flavour": "tensorrt", "version": "11.4", "gpu": "A"}}
    for field in ("refit=true", "weight_streaming=true", "workspace=2GB", "builder_optimization_level=1"):
        assert changed(int8(probes=tensorrt), int8(f"export.{field}", probes=tensorrt)) == {"build"}


def test_the_onnx_version_is_in_only_for_the_export(int8):
    assert rekeyed(int8(), int8(probes={"onnx": "1.21.1"})) == {"export", "export.baseline"}


def test_the_versions_of_what_scores_are_in_only_for_the_score(int8):
    assert changed(int8(), int8(probes={"scorers": {"scikit-image": "0.26.0"}})) == {"score"}


def test_the_machine_is_in_only_for_time(int8):
    assert changed(int8(), int8(probes={"machine": {"host": "another"}})) == {"time"}


# what is out


def test_where_the_store_and_the_runs_are_is_out(int8, tmp_path):
    assert keys(int8()) == keys(int8(f"store={tmp_path}/elsewhere"))


def test_the_log_is_out(int8):
    assert keys(int8()) == keys(int8("hydra.verbose=true", "hydra.job_logging.root.level=DEBUG", "hydra.run.dir=elsewhere"))


def test_the_name_of_the_recipe_is_out(plan):
    by_recipe = plan("+recipe=emoji_int8_sq")
    by_hand = plan("model=emoji_flux", "format=int8_sq", "calib=emoji", "eval=emoji")
    assert keys(by_recipe) == keys(by_hand)


# the rules of the identity itself


def test_the_version_of_a_stage_is_in(int8):
    raised = [replace(s, version=s.version + 1) if s.name == "merge" else s for s in stages()]
    assert rekeyed(int8(), int8(installed=raised)) == {"merge"}


def test_an_input_enters_by_its_fingerprint(int8):
    plan = int8()
    assert step(plan, "merge").identity["inputs"] == {
        "chunks": [step(plan, "observe.0").fingerprint, step(plan, "observe.1").fingerprint]
    }


def test_a_record_says_by_what_the_step_was_keyed(int8, tmp_path):
    made, store = step(int8(), "quantize"), Store(tmp_path)
    with store.publish(made.kind, made.fingerprint, made.identity, {}) as out:
        (out / "x").write_text("x")
    entry = store.entry(made.kind, made.fingerprint)
    assert fingerprint(entry.record["identity"]) == made.fingerprint
