"""The plan is made backwards from what is wanted, and what cannot be made or would be ignored is refused."""

from importlib.metadata import EntryPoint

import pytest
from omegaconf import OmegaConf

import diffopt.stage
from diffopt.artifact import Artifact, Checkpoint, Pipeline
from diffopt.errors import ConfigError, PlanError
from diffopt.groups import CallView, Export, FormatView, Model
from diffopt.groups.validate import choose
from diffopt.jobs import export_checks
from diffopt.jobs.job import prepare
from diffopt.jobs.plan import make_plan
from diffopt.machine.environment import Environment
from diffopt.stage import Context, stage, stages
from diffopt.view import View

EMOJI = "model=emoji_flux"


def names(plan):
    return [s.name for s in plan.steps]


def refused(plan, *overrides, **more):
    """The lines with which the plan of these overrides is refused."""
    with pytest.raises((ConfigError, PlanError)) as caught:
        plan(*overrides, **more)
    return str(caught.value).splitlines()


# what is planned


def test_a_plain_graph_needs_no_calibration_and_no_checkpoint(plan):
    assert names(plan(EMOJI, "export=onnx")) == ["load", "export"]


def test_a_format_alone_makes_a_checkpoint_and_draws_nothing(plan):
    made = plan(EMOJI, "format=fp8", "calib=emoji", "calib.size=8")
    assert names(made) == ["load", "embed", "observe", "merge", "quantize"]
    assert [s.name for s in made.wanted] == ["quantize"]


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_a_format_that_searches_records_and_does_not_observe(plan, name):
    made = plan(EMOJI, f"format={name}", "calib=emoji", "calib.size=16")
    calibrating = [n.partition(".")[0] for n in names(made) if n != "load" and not n.startswith("embed")]
    correlating = ["correlate"] * 2 * (name != "w4a8_awq")
    assert calibrating == ["record", "record", *correlating, "quantize"]


@pytest.mark.parametrize("weights", ["max", "mse", "four_over_six"])
def test_local_hessians_are_made_where_a_format_asks_for_them_alone(plan, weights):
    asked, not_asked = (plan(EMOJI, "format=nvfp4", "calib=emoji", *more) for more in ([], [f"format.weights={weights}"]))
    assert {*names(asked)} - {*names(not_asked)} == {"correlate.0", "correlate.1"}
    shared = [{s.stage.name: s.fingerprint for s in made.steps if s.stage.name == "merge"} for made in (asked, not_asked)]
    assert shared[0] == shared[1]


@pytest.mark.parametrize(
    "given",
    [("format=int4_awq", "format.weights=four_over_six"), ("format=int4_awq", "format.awq=full", "format.weights=mse")],
)
def test_scales_that_a_format_does_not_search_are_refused(plan, given):
    with pytest.raises(ConfigError, match=r"format\.weights: .*\(got (four_over_six|mse)\)"):
        plan(EMOJI, "calib=emoji", *given)


def test_a_format_without_calibration_needs_none(plan):
    assert names(plan(EMOJI, "format=mxfp8")) == ["load", "quantize"]


def test_an_evaluation_alone_draws_and_scores_the_plain_model(plan):
    assert set(names(plan(EMOJI, "eval=emoji", "eval.latency=false"))) == {"load", "encode", "reference", "sample", "score"}


def test_export_onnx_builds_no_engine_plan(plan):
    assert "build" not in names(plan("+recipe=emoji_fp8", "export=onnx"))


@pytest.mark.parametrize("spelling", ["~export", "~export=null"])
def test_a_group_set_to_null_drops_the_values_that_a_recipe_gave_it(config, spelling):
    # `export=null` is the first in a single run, the second in a job of a sweep.
    given = OmegaConf.create(config("+recipe=emoji_fp4", "~export"))
    made = prepare(given, [spelling], dry=True, sweep=True).plan
    assert "export" not in names(made)


def test_export_tensorrt_builds_one(plan):
    assert "build" in {s.name for s in plan("+recipe=emoji_fp8", "export=tensorrt").wanted}


def test_every_step_comes_after_its_inputs(plan):
    order = plan("+recipe=quickstart").steps
    for step in order:
        assert all(order.index(parent) < order.index(step) for parent in step.parents())


def test_every_step_is_needed_by_something_that_is_wanted(plan):
    made = plan("+recipe=quickstart")
    needed, todo = set(), list(made.wanted)
    while todo:
        step = todo.pop()
        needed.add(step)
        todo += step.parents()
    assert needed == set(made.steps)


def test_a_graph_runtime_draws_what_the_graph_gives_and_torch_what_the_checkpoint_gives(plan):
    by_graph = plan("+recipe=quickstart", "eval.latency=false")
    by_torch = plan("+recipe=quickstart", "eval.latency=false", "eval.runtime=torch")

    def subject(made):
        return next(s for s in made.steps if s.name == "sample").inputs["subject"].name

    assert (subject(by_graph), subject(by_torch)) == ("export", "quantize")


def test_a_graph_is_timed_beside_a_full_precision_graph(plan):
    time = next(s for s in plan("+recipe=quickstart").steps if s.name == "time")
    baseline = time.inputs["baseline"]
    assert (baseline.name, baseline.inputs["checkpoint"]) == ("export.baseline", None)


def test_a_plain_graph_is_its_own_baseline(plan):
    made = plan(EMOJI, "export=onnx", "eval=emoji", "eval.runtime=onnxruntime")
    assert names(made).count("export") == 1
    assert "export.baseline" not in names(made)


def test_a_simulated_format_is_not_timed_and_a_note_says_so(plan):
    made = plan("+recipe=emoji_fp8")
    assert "time" not in names(made)
    assert any("fp8" in note and "torch" in note for note in made.notes)


def test_latency_is_not_timed_unasked(plan):
    made = plan("+recipe=quickstart", "eval.latency=false")
    assert "time" not in names(made)
    assert not made.notes


def test_what_depends_on_an_unresolved_source_is_pending(plan):
    made = plan("+recipe=emoji_fp8", digest=lambda source: None if "flux" in source.name else "sha256:0")
    assert all(s.pending for s in made.steps)


def test_what_does_not_depend_on_an_unresolved_source_is_not_pending(plan):
    made = plan("+recipe=emoji_fp8", digest=lambda source: None if "clip" in source.name else "sha256:0")
    assert [s.name for s in made.steps if s.pending] == ["score"]


# what is refused


def test_no_recipe_is_refused(plan):
    (line,) = refused(plan)
    assert "recipe" in line


def test_no_model_is_refused(plan):
    (line,) = refused(plan, "format=fp8", "calib=emoji")
    assert line.startswith("model: ")


def test_a_model_alone_is_refused(plan):
    (line,) = refused(plan, EMOJI)
    assert "nothing to make" in line


@pytest.mark.parametrize("name", ["int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant"])
def test_a_format_whose_calibration_is_missing_is_refused(plan, name):
    (line,) = refused(plan, EMOJI, f"format={name}")
    assert line.startswith("quantize: ")
    assert "choose calib=OPTION" in line


def test_a_graph_runtime_without_a_graph_is_refused(plan):
    lines = refused(plan, "+recipe=emoji_int8_sq", "eval.runtime=onnxruntime")
    assert any(line.startswith("export: ") and "onnxruntime" in line for line in lines)


@pytest.mark.parametrize(("recipe", "name"), [("emoji_fp8", "fp8"), ("emoji_fp4", "nvfp4")])
def test_a_runtime_without_kernels_for_the_format_is_refused(plan, recipe, name):
    lines = refused(plan, f"+recipe={recipe}", "eval.runtime=onnxruntime")
    assert any(line.startswith("eval.runtime: ") and name in line for line in lines)


def test_nvfp4_is_not_exported_from_float32(plan):
    (line,) = refused(plan, "+recipe=emoji_fp4", "export.high_precision_dtype=null")
    assert line.startswith("export.high_precision_dtype: ")
    assert "nvfp4" in line
    assert "got float32" in line


def test_a_bfloat16_model_is_exported_as_it_is(plan):
    assert plan("+recipe=emoji_fp8", "model.dtype=bfloat16")


def test_an_engine_plan_without_a_builder_is_refused(plan):
    (line,) = refused(plan, "+recipe=emoji_fp8", probes={"tensorrt": None})
    assert line.startswith("export: ")
    assert "export=onnx" in line


def test_a_plan_that_can_be_refitted_is_refused_where_its_builder_lacks_a_gpu(plan, monkeypatch):
    monkeypatch.setattr(export_checks, "gpus", lambda: ())
    (line,) = refused(plan, "+recipe=emoji_fp8", "export.refit=true")
    assert line.startswith("export.refit: TensorRT-RTX builds a plan that can be refitted on a GPU alone")
    assert plan("+recipe=emoji_fp8", "export.refit=true", probes={"tensorrt": {"flavour": "tensorrt", "version": "11.4"}})


def fingerprints(made):
    return {s.name: s.fingerprint for s in made.steps}


SIZES = [
    (("+recipe=z_image_fp8", "export.max_batch_size=2"), "export.max_batch_size: a graph of z_image, which takes its rows one"),
    (("+recipe=ltx_fp8", "export.heights=[256,1024]"), "export.heights: a graph of ltx has the size in it"),
    (("+recipe=sdxl_fp8", "export.heights=[512,768]"), "model.height: is not within the graph's export.heights=[512, 768]"),
    (("+recipe=sdxl_fp8", "export.widths=[500,1024]"), "export.widths: is not a multiple of"),
    (("+recipe=sdxl_fp8", "export.frames=[5,9]"), "export.frames: sdxl makes no videos"),
    (
        ("+recipe=quickstart", "cache=cachify", "export.heights=[32,64]"),
        "export.heights: a graph that is cut for a cache takes one size",
    ),
    (("+recipe=sd21_fp8", "export.profiles=original"), "export.profiles: Model-Optimizer's example builds no plans of sd21"),
]


@pytest.mark.parametrize(("chosen", "said"), SIZES, ids=[said.split(" ")[0] + str(i) for i, (_, said) in enumerate(SIZES)])
def test_sizes_that_no_graph_takes_are_refused(plan, chosen, said):
    assert any(line.startswith(said) for line in refused(plan, *chosen))


def test_the_originals_batches_are_those_given_by_hand(plan):
    by_hand = plan("+recipe=sdxl_fp8", "export.batch_size=8", "export.max_batch_size=8")
    assert fingerprints(plan("+recipe=sdxl_fp8", "export.profiles=original")) == fingerprints(by_hand)
    assert fingerprints(by_hand) != fingerprints(plan("+recipe=sdxl_fp8"))


def test_no_builder_is_needed_for_a_graph(plan):
    assert plan("+recipe=emoji_fp8", "export=onnx", probes={"tensorrt": None})


def test_onnxruntime_that_is_not_installed_is_refused(plan):
    (line,) = refused(plan, "+recipe=quickstart", probes={"onnxruntime": None})
    assert line.startswith("eval.runtime: ")


def test_a_cache_that_decides_while_it_runs_is_refused_in_a_graph(plan):
    (line,) = refused(plan, "+recipe=quickstart", "cache=first_block")
    assert line.startswith("cache: onnxruntime runs a graph that is cut at blocks which are chosen beforehand")
    assert "cache=cachify" in line


def test_quantized_attention_of_a_format_that_has_none_is_refused(plan):
    (line,) = refused(plan, "+recipe=emoji_int8_sq", "+format.quantize_mha=true")
    assert line.startswith("format.quantize_mha: ")


def test_all_that_this_machine_cannot_do_is_said_at_once(plan):
    wrong = ("export.high_precision_dtype=null", "eval.runtime=onnxruntime")
    lines = refused(plan, "+recipe=emoji_fp4", *wrong, probes={"tensorrt": None})
    assert {line.split(":")[0] for line in lines} == {"export", "export.high_precision_dtype", "eval.runtime"}


def test_steps_of_a_cache_outside_the_schedule_are_refused(plan):
    (line,) = refused(plan, EMOJI, "eval=emoji", "cache=cachify", "cache.steps=[3,20]")
    assert line.startswith("cache.steps: the run's steps are 0 to 19 (got 20); ")


def test_a_cache_that_reuses_nothing_in_a_run_is_refused(plan):
    (line,) = refused(plan, EMOJI, "eval=emoji", "eval.steps=1", "cache=cachify")
    assert line.startswith("cache.every: reuses nothing in 1 steps (got 2); ")


def test_a_cache_that_does_not_know_the_family_is_refused_with_one_that_does(plan):
    (line,) = refused(plan, "model=sdxl", "eval=images", "cache=mag_cache_flux")
    assert line == (
        "cache: diffusers' MagCache does not know the blocks of sdxl (got cache=mag_cache); "
        "choose cache=cachify, or drop the cache"
    )


def test_a_cache_of_a_package_that_is_not_installed_is_refused(plan, monkeypatch):
    monkeypatch.setattr("diffopt.jobs.checks.package", lambda _: None)
    (line,) = refused(plan, EMOJI, "eval=emoji", "cache=cache_dit")
    assert line == "cache: cache-dit is not installed (got cache=cache_dit); `pip install 'diffopt[cache-dit]'`"


# nothing chosen is ignored


@pytest.mark.parametrize(
    ("group", "overrides"),
    [
        ("cache", [EMOJI, "export=onnx", "cache=first_block"]),
        ("cache", [EMOJI, "format=fp8", "calib=emoji", "cache=first_block"]),
        ("calib", [EMOJI, "eval=emoji", "calib=emoji"]),
        ("calib", [EMOJI, "export=onnx", "calib=emoji"]),
        ("calib", [EMOJI, "format=mxfp8", "calib=emoji"]),
    ],
)
def test_a_group_that_nothing_reads_is_refused(plan, group, overrides):
    (line,) = refused(plan, *overrides)
    assert line.startswith(f"{group}: ")


def test_a_group_that_nothing_reads_is_refused_in_a_sweep_too(plan):
    (line,) = refused(plan, EMOJI, "export=onnx", "cache=first_block", sweep=True)
    assert line.startswith("cache: ")


def test_training_that_no_stage_does_is_refused(plan):
    lines = refused(plan, "+recipe=emoji_fp8", "+train.steps=100")
    assert any(line.startswith("train") for line in lines)


IDLE = [
    ("+recipe=emoji_fp8", "+format.block_size=64"),
    ("+recipe=emoji_fp8", "+format.rank=8"),
    ("+recipe=emoji_int8_sq", "calib.percentile=0.5"),
    ("+recipe=emoji_int8_sq", "calib.collect_method=min-mean"),
    ("+recipe=emoji_fp8", "calib.alpha=0.5"),
    ("+recipe=emoji_fp8", "eval.repeats=20"),
    ("+recipe=emoji_fp8", "eval.warmup=2"),
    ("+recipe=emoji_int8_sq", "+format.quantize_mha=false"),
]


@pytest.mark.parametrize(("recipe", "override"), IDLE)
def test_an_override_without_an_effect_is_refused_in_a_single_run(plan, recipe, override):
    (line,) = refused(plan, recipe, override)
    key, _, value = override.lstrip("+").partition("=")
    assert line.startswith(f"{key}: ")
    assert f"got {value}" in line


@pytest.mark.parametrize(("recipe", "override"), IDLE)
def test_an_override_without_an_effect_is_let_through_in_a_sweep(plan, recipe, override):
    assert names(plan(recipe, override, sweep=True)) == names(plan(recipe))


def test_every_override_without_an_effect_is_named(plan):
    lines = refused(plan, "+recipe=emoji_fp8", "calib.alpha=0.5", "eval.repeats=20", "calib.size=8")
    assert {line.split(":")[0] for line in lines} == {"calib.alpha", "eval.repeats"}


def test_a_clip_model_without_its_metric_is_refused(plan):
    (line,) = refused(plan, "+recipe=emoji_fp8", "eval.metrics=[psnr]", "eval.clip=org/other")
    assert line.startswith("eval.clip: ")


def test_a_seed_where_nothing_is_drawn_is_refused(plan):
    (line,) = refused(plan, EMOJI, "export=onnx", "seed=3")
    assert line.startswith("seed: ")


@pytest.mark.parametrize(
    "override", ["eval.runtime=torch", "eval.latency=false", "export.engine=true", "calib.chunk=16", "seed=3", "format=fp8"]
)
def test_an_override_that_decides_what_is_planned_or_made_is_let_through(plan, override):
    assert plan("+recipe=emoji_fp8", override)


# stages of third parties


@stage(version=1, when="format")
def prune(ctx: Context, format: FormatView, pipeline: Pipeline) -> Checkpoint: ...


@stage(version=1, when="train")
def untimely(ctx: Context, pipeline: Pipeline) -> Checkpoint: ...


@stage(version=1, when="format")
def tune(ctx: Context, pipeline: Pipeline, checkpoint: Checkpoint) -> Checkpoint: ...


def test_the_later_maker_of_a_kind_is_taken(plan):
    made = plan(EMOJI, "format=fp8", installed=[*stages(), prune])
    assert names(made) == ["load", "prune"]


def test_the_earlier_maker_of_a_kind_is_not(plan):
    made = plan(EMOJI, "format=fp8", "calib=emoji", installed=[prune, *stages()])
    assert "quantize" in names(made)
    assert "prune" not in names(made)


def test_a_later_maker_that_nothing_calls_for_is_not_taken(plan):
    assert "quantize" in names(plan("+recipe=emoji_fp8", installed=[*stages(), untimely]))


def test_a_later_maker_can_take_what_the_earlier_makes(plan):
    made = plan(EMOJI, "format=fp8", "calib=emoji", "calib.size=8", installed=[*stages(), tune])
    assert names(made) == ["load", "embed", "observe", "merge", "quantize", "tune"]


def test_a_kind_that_no_stage_makes_is_named(plan):
    (line,) = refused(plan, "+recipe=emoji_fp8", installed=[s for s in stages() if s.name != "merge"])
    assert "calib-stats" in line


def test_stages_come_in_the_order_of_the_numbers_in_front_of_their_names(monkeypatch):
    places = {"score": "100_last", "merge": "20_second", "load": "9_first"}
    modules = [s.run.__module__.rpartition(".")[2] for s in stages()]
    points = [EntryPoint(places.get(m, f"50_{m}"), f"diffopt.stages.{m}:{m}", "diffopt.stages") for m in modules]
    monkeypatch.setattr(diffopt.stage, "entry_points", lambda group: points)
    found = [s.name for s in stages()]
    assert (found[:2], found[-1], len(found)) == (["load", "merge"], "score", len(modules))


def test_the_installed_stages_are_the_built_in_ones_in_their_order():
    built_in = ["load", "embed", "observe", "record", "correlate", "count", "merge", "sense", "mix", "quantize"]
    built_in += ["phrase", "teach", "collect", "adopt", "train", "slim"]
    built_in += [
        "export",
        "pack",
        "deploy",
        "build",
        "encode",
        "encode_part",
        "recode",
        "recode_part",
        "reference_part",
        "reference",
        "ratios",
        "search",
        "sample_part",
        "sample",
        "alternative",
        "parity",
        "time",
        "bench",
        "score",
        "compare",
    ]
    assert [s.name for s in stages() if s.run.__module__.startswith("diffopt.stages.")] == built_in


# signatures


def test_a_view_that_names_a_field_that_the_group_lacks_is_an_error():
    with pytest.raises(TypeError, match="hieght"):

        class Bad(View, of=Model):
            hieght: int


def test_a_view_that_gives_a_field_another_type_is_an_error():
    with pytest.raises(TypeError, match=r"Bad\.height"):

        class Bad(View, of=Model):
            height: float


def test_a_view_drawn_by_hand_still_names_only_fields_that_there_are():
    with pytest.raises(TypeError, match="no_such"):

        class Bad(View, of=Export):
            opsets: tuple[int, ...]

            @classmethod
            def fields_read(cls):
                return frozenset({"no_such"})

            @classmethod
            def draw(cls, group, choices):
                return [cls(opsets=(group.opset,))]


def test_a_stage_that_returns_no_artifact_is_an_error():
    with pytest.raises(TypeError, match=r"bad.*str"):

        @stage(version=1)
        def bad(ctx: Context) -> str: ...


def test_a_stage_that_declares_no_return_is_an_error():
    with pytest.raises(TypeError, match="bad"):

        @stage(version=1)
        def bad(ctx: Context): ...


@pytest.mark.parametrize("hint", [int, str, dict, Pipeline | str, CallView | Pipeline], ids=str)
def test_a_parameter_that_is_neither_view_nor_artifact_nor_seed_is_an_error(hint):
    def bad(ctx: Context, thing: hint) -> Checkpoint: ...

    with pytest.raises(TypeError, match="thing"):
        stage(version=1)(bad)


def test_a_parameter_without_a_type_is_an_error():
    with pytest.raises(TypeError, match="thing"):

        @stage(version=1)
        def bad(ctx: Context, thing) -> Checkpoint: ...


def test_a_view_under_a_name_that_is_not_its_groups_is_an_error():
    with pytest.raises(TypeError, match="exprot"):

        @stage(version=1)
        def bad(ctx: Context, exprot: CallView) -> Checkpoint: ...


def test_a_stage_called_for_by_a_group_that_there_is_not_is_an_error():
    with pytest.raises(TypeError, match="exprot"):

        @stage(version=1, when="exprot")
        def bad(ctx: Context) -> Checkpoint: ...


def test_a_signature_says_what_is_read_taken_and_made():
    @stage(version=3, when="export", probes=("onnx",))
    def good(ctx: Context, model: CallView | None, one: Pipeline, some: tuple[Checkpoint, ...], seed: int) -> Checkpoint: ...

    assert (good.name, good.version, good.when, good.probes, good.makes) == ("good", 3, "export", ("onnx",), Checkpoint)
    assert [(p.name, p.role, p.optional, p.many) for p in good.params] == [
        ("model", "view", True, False),
        ("one", "artifact", False, False),
        ("some", "artifact", False, True),
        ("seed", "seed", False, False),
    ]


def test_planning_asks_the_environment_only_for_what_the_steps_name(config):
    asked = []

    class Watched(Environment):
        def __getitem__(self, name):
            asked.append(name)
            return "x"

    make_plan(choose(config(EMOJI, "export=onnx")), stages(), Watched(), lambda source: "sha256:0")
    assert set(asked) == {"numerics", "modelopt", "onnx"}


def test_every_kind_has_a_name_of_its_own():
    kinds = [k.kind for k in Artifact.__subclasses__() if k.__module__ == "diffopt.artifact"]
    assert len(kinds) == len(set(kinds))


def test_export_native_packs_the_checkpoint_and_writes_no_graph(plan):
    made = plan("+recipe=emoji_fp8", "export=native", "eval=null")
    assert [s.name for s in made.wanted] == ["pack"]
    assert names(made)[-2:] == ["quantize", "pack"]
    assert "export" not in names(made)


def test_packed_weights_are_refused_where_no_kernel_takes_the_format(plan):
    (line,) = refused(plan, "+recipe=emoji_fp8", "format=w4a8_awq", "export=native")
    assert line.startswith("export: there are no native kernels for w4a8_awq (got native); choose format=fp8")


def test_a_field_of_graphs_is_refused_beside_packed_weights(plan):
    (line,) = refused(plan, "+recipe=emoji_fp8", "export=native", "+export.opset=20")
    assert line == "export.opset: has no effect under format=fp8, since there is no graph (got 20); drop it"
