"""How far each layer is off in each format: the figures are those of the shipped arithmetic, step by step."""

import json
import math
import re
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import some
from test_calibrate_once import pipeline_loop
from test_report import artifact, made, page, words
from tiny import BATCH, CHUNK, SEED, STEPS, Bench, bench

from diffopt.artifact import Sensitivity
from diffopt.data.prompts import PromptSet
from diffopt.errors import ConfigError, GateError, PlanError
from diffopt.files.layers import Layer
from diffopt.files.sensitivity import SensedLayer, SensitivityFile
from diffopt.formats.nvfp4 import WEIGHTS
from diffopt.groups import GROUPS
from diffopt.groups.format import measurable
from diffopt.groups.sense import SensedPromptsView, SenseView, trials
from diffopt.groups.validate import choose
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.layers import without
from diffopt.quantization.step_extremes import extremes_of
from diffopt.report import sensitivity_plot
from diffopt.report.sensitivity import Reading
from diffopt.stages.sense import sense

SIZE, ALPHA = 3, 0.5
MEASURABLE = tuple(measurable())


@cache
def measured(family: str = "flux", formats: tuple[str, ...] = MEASURABLE, size: int = SIZE) -> Sensitivity:
    return measure(bench(family=family), formats, size)


def measure(b: Bench, formats: tuple[str, ...], size: int, alpha: float = ALPHA) -> Sensitivity:
    ctx = b.context()
    prompts = PromptSet("tests", b.prompts[:size])
    view = SensedPromptsView(prompts=prompts, batch_size=BATCH, chunk=CHUNK, n_steps=STEPS, alpha=alpha)
    texts = tuple(b.texts(i, min(i + CHUNK, 7)) for i in range(0, 7, CHUNK))
    sense.run(ctx, b.call, SenseView(formats=list(formats)), view, b.pipeline(), b.stats(CHUNK), texts, SEED)
    return Sensitivity(ctx.out, "sensitivity")


def reading(family: str = "flux", **kw: Any) -> Reading:
    return Reading(SensitivityFile.read(measured(family, **kw).path))


@cache
def inputs() -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """By layer: its input and full-precision output in every backbone call of modelopt's own kind of loop."""
    b = bench(family="flux")
    pipe = open_pipeline(b.context(), b.pipeline())
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            seen = found.setdefault(name, [])
            module.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0].clone(), out.clone())))
    with torch.inference_mode():
        pipeline_loop(b, pipe, SIZE)(pipe.transformer)
    return found


@pytest.mark.parametrize("name", MEASURABLE)
def test_an_error_is_to_the_bit_that_of_the_layer_of_an_ordinary_checkpoint(name: str) -> None:
    b = bench(family="flux")
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, alpha=ALPHA))
    layers = {x["name"]: x for x in measured().json("sensitivity.json")["layers"]}
    assert set(layers) == set(checkpoint.quantized_layers(model))
    for layer, row in layers.items():
        sums = torch.zeros(2, STEPS, dtype=torch.float64)
        for call, (x, plain) in enumerate(inputs()[layer]):
            with torch.inference_mode(), simulated():
                error = model.get_submodule(layer)(x).float() - plain.float()
            sums[0, call % STEPS] += error.square().sum(dtype=torch.float64)
            sums[1, call % STEPS] += plain.float().square().sum(dtype=torch.float64)
        assert row["error"][name] == sums[0].tolist()
        assert row["energy"] == sums[1].tolist()


@cache
def tried() -> Sensitivity:
    """The formats that have options, with each of these otherwise."""
    b = bench(family="flux")
    ctx, view = b.context(), SenseView(formats=["nvfp4", "int8"], options=["weights", "inputs"])
    prompts = PromptSet("tests", b.prompts[:SIZE])
    calib = SensedPromptsView(prompts=prompts, batch_size=BATCH, chunk=CHUNK, n_steps=STEPS, alpha=ALPHA)
    chunks = {"hessians": b.hessians(CHUNK), "histograms": b.histograms(CHUNK)}
    texts = tuple(b.texts(i, min(i + CHUNK, 7)) for i in range(0, 7, CHUNK))
    sense.run(ctx, b.call, view, calib, b.pipeline(), b.stats(CHUNK), texts, SEED, **chunks)
    return Sensitivity(ctx.out, "sensitivity")


TRIED = [("nvfp4", x, y) for x, ys in (("weights", WEIGHTS[:3]), ("inputs", ("headroom", "full"))) for y in ys]
TRIED += [("int8", "inputs", "percentile"), ("int8", "inputs", "mse")]


@pytest.mark.parametrize(("name", "field", "value"), some(TRIED, [TRIED[0], TRIED[3], TRIED[6]]))
def test_what_an_option_would_win_is_to_the_bit_of_a_checkpoint_that_has_it(name: str, field: str, value: Any) -> None:
    b = bench(family="flux")
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, **{field: value}))
    rows = {x.name: x for x in SensitivityFile.read(tried().path).layers}
    key = f"{name} {field}={value}"
    for layer, row in rows.items():
        sums = torch.zeros(STEPS, dtype=torch.float64)
        for call, (x, plain) in enumerate(inputs()[layer]):
            with torch.inference_mode(), simulated():
                error = model.get_submodule(layer)(x).float() - plain.float()
            sums[call % STEPS] += error.square().sum(dtype=torch.float64)
        assert row.error[key] == sums.tolist(), layer
    assert any(row.error[key] != row.error[name] for row in rows.values())


def test_every_option_of_a_format_is_tried_and_the_others_stay() -> None:
    found = SensitivityFile.read(tried().path)
    assert {*found.options} == {f"{n} {f}={v}" for n, f, v in TRIED}
    assert all({*x.error} == {*found.formats, *found.options} for x in found.layers)
    plain = {x["name"]: x["error"] for x in measured().json("sensitivity.json")["layers"]}
    assert all(x.error[n] == plain[x.name][n] for x in found.layers for n in found.formats)


def test_every_layer_has_an_error_for_every_step() -> None:
    found = reading()
    assert found.content.steps == STEPS
    for name in MEASURABLE:
        assert len(found.layers(name)) == len(found.content.layers)
        assert all(len(x.steps) == STEPS and all(0 < s < 1 for s in x.steps) for x in found.layers(name))
    assert any(x.steps[0] != x.steps[1] for x in found.layers("fp8"))


def test_four_bits_hurt_more_than_eight() -> None:
    found = reading()
    for four, eight in zip(found.layers("nvfp4"), found.layers("fp8"), strict=True):
        assert four.error > eight.error


def test_the_model_is_run_as_if_nothing_was_measured() -> None:
    """Full-precision inputs everywhere: an error is not what a layer inherits."""
    alone = measured(formats=("nvfp4",)).json("sensitivity.json")["layers"]
    together = measured().json("sensitivity.json")["layers"]
    assert [x["energy"] for x in alone] == [x["energy"] for x in together]
    assert [x["error"]["nvfp4"] for x in alone] == [x["error"]["nvfp4"] for x in together]


def test_products_are_counted_per_picture_and_step() -> None:
    rows = {x["name"]: x for x in measured().json("sensitivity.json")["layers"]}
    name = "transformer_blocks.0.ff.net.2"
    (x, _), *_ = inputs()[name]
    assert rows[name]["products"] == rows[name]["weights"] * x.shape[1]


def test_measuring_leaves_the_backbone_as_it_was() -> None:
    from diffopt.formats import method
    from diffopt.quantization.layer_errors import variants, watched

    b = bench(family="flux")
    model, name = b.backbone(), "transformer_blocks.0.attn.to_q"
    before = {n: x.clone() for n, x in model.state_dict().items()}
    layer = model.get_submodule(name)
    tried = variants({name: layer}, method("int8_sq"), ALPHA, extremes_of(b.stats(CHUNK).path, 1.0, "default"))
    with watched({name: layer}, {"int8_sq": tried}):
        pass
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert not layer._forward_hooks
    assert tried[name].layer.weight.data_ptr() == layer.weight.data_ptr()


def test_convolutions_are_measured_in_the_formats_that_quantize_them() -> None:
    rows = measured("sd21", ("int8_sq", "nvfp4"), 2).json("sensitivity.json")["layers"]
    convolutions = [x for x in rows if x["kind"] == "convolution"]
    assert convolutions
    assert all(set(x["error"]) == ({"int8_sq"} if x["kind"] == "convolution" else {"int8_sq", "nvfp4"}) for x in rows)


def test_a_backbone_that_is_not_called_in_a_step_has_no_error_there() -> None:
    found = reading("wan", formats=("fp8",), size=2)
    each = {x.name.partition(".")[0]: x.steps for x in found.layers("fp8")}
    assert set(each) == {"transformer", "transformer_2"}
    for steps in zip(*each.values(), strict=True):
        assert sum(s is None for s in steps) == 1


def test_a_layer_that_was_never_observed_is_refused() -> None:
    from diffopt.formats import method
    from diffopt.quantization.layer_errors import variants

    name = "transformer_blocks.0.attn.to_q"
    with pytest.raises(GateError, match=name):
        variants({name: bench(family="flux").backbone().get_submodule(name)}, method("fp8"), None, {})


# What is asked for.


def refused(plan: Any, *overrides: str) -> str:
    with pytest.raises((ConfigError, PlanError)) as caught:
        plan("model=emoji_flux", *overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_a_format_that_searches_is_refused_with_the_reason(name: str, config: Any) -> None:
    given = config("model=emoji_flux", "calib=emoji", "sense=default", f"sense.formats=[fp8,{name}]")
    with pytest.raises(ConfigError, match=rf"sense\.formats: {name} is found by a search .* \(got .*\); choose of int8, "):
        choose(given)


def test_a_sensitivity_is_planned_without_a_format(plan: Any) -> None:
    steps = [s.name for s in plan("+recipe=emoji_sensitivity").steps]
    assert steps == ["load", "embed.0", "embed.1", "observe.0", "observe.1", "merge", "sense"]


def test_a_sensitivity_without_a_calibration_set_is_refused(plan: Any) -> None:
    assert "choose calib=OPTION" in refused(plan, "sense=default")


def test_more_prompts_than_are_calibrated_on_are_refused(plan: Any) -> None:
    said = refused(plan, "calib=emoji", "sense=default", "sense.size=17")
    assert said == "sense.size: is more than the calib.size=16 prompts (got 17); lower it"


def test_the_number_of_prompts_that_are_measured_on_is_a_choice_of_its_own(plan: Any) -> None:
    sensed = [plan("+recipe=emoji_sensitivity", f"sense.size={n}").steps[-1] for n in (2, 16)]
    assert [len(step.views["calib"].prompts) for step in sensed] == [2, 16]


def test_every_field_of_a_group_is_read_by_a_stage_or_steers_the_plan() -> None:
    """Else whoever sets it is told that it has no effect, whatever it does."""
    params = [p for e in entry_points(group="diffopt.stages") for p in e.load().params if p.role == "view"]
    read = {(p.name, field) for p in params for view in p.types for field in view.fields_read()}
    assert [(n, f) for n, g in GROUPS.items() for f in g.model_fields if (n, f) not in read and f not in g.steers] == []


def test_options_take_what_they_need_of_the_calibration_and_nothing_else_does(plan: Any) -> None:
    def made(*given: str) -> dict[str, str]:
        return {s.name: s.fingerprint for s in plan("+recipe=emoji_sensitivity", *given).steps}

    plain, same = made(), made("sense.options=[]")
    weights, both = made("sense.options=[weights]"), made("sense.options=[weights,inputs]")
    assert plain == same
    assert {*weights} - {*plain} == {"correlate.0", "correlate.1"}
    assert {*both} - {*weights} == {"count.0", "count.1"}
    assert len({x["sense"] for x in (plain, weights, both)}) == 3
    assert all(both[n] == plain[n] for n in plain if n != "sense")


def test_an_option_that_none_of_the_formats_has_is_refused(config: Any) -> None:
    given = config("model=emoji_flux", "calib=emoji", "sense=default", "sense.formats=[fp8,int8_sq]", "sense.options=[weights]")
    with pytest.raises(ConfigError, match=r"sense\.options: none of fp8, int8_sq has a choice of weights .*add nvfp4"):
        choose(given)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("weight", r"is no field whose values can be tried \(got 'weight'\); did you mean weights"),
        ("weights=hessian", r"is no value of format\.weights \(got 'weights=hessian'\); did you mean local_hessian"),
        ("inputs=mse", r"none of nvfp4 has a choice of inputs=mse"),
        ("weights=max", r"is what every format is tried with \(got 'weights=max'\); drop it"),
        ("weights=", r"is no value of format\.weights \(got 'weights='\)"),
    ],
)
def test_an_option_that_is_none_is_refused(config: Any, option: str, said: str) -> None:
    given = config("model=emoji_flux", "calib=emoji", "sense=default", "sense.formats=[nvfp4]", f'sense.options=["{option}"]')
    with pytest.raises(ConfigError, match=said):
        choose(given)


def test_one_value_of_an_option_is_tried_alone_and_none_twice() -> None:
    assert [t.name for t in trials(["nvfp4", "int8"], ["weights=mse", "inputs"])] == [
        "nvfp4 weights=mse",
        "nvfp4 inputs=headroom",
        "nvfp4 inputs=full",
        "int8 inputs=percentile",
        "int8 inputs=mse",
    ]
    assert trials(["nvfp4"], ["weights", "weights=mse"]) == trials(["nvfp4"], ["weights"])


def test_in_whatever_order_options_are_asked_for_they_are_measured_once(plan: Any) -> None:
    def made(*options: str) -> str:
        asked = ",".join(f'"{o}"' for o in options)
        return plan("+recipe=emoji_sensitivity", f"sense.options=[{asked}]").steps[-1].fingerprint

    assert made("inputs", "weights") == made("weights", "inputs") == made("weights", "weights=mse", "inputs")
    assert made("weights=mse", "weights=local_hessian") == made("weights=local_hessian", "weights=mse") != made("weights")


def test_alpha_is_part_of_the_key_only_where_something_is_smoothed(plan: Any) -> None:
    def key(*overrides: str) -> str:
        return plan("+recipe=emoji_sensitivity", *overrides, sweep=True).steps[-1].fingerprint

    assert key() != key("calib.alpha=0.7")
    assert key("sense.formats=[fp8]") == key("sense.formats=[fp8]", "calib.alpha=0.7")


# What is shown.


def test_the_exclusions_are_the_worst_layers_and_name_nothing_else() -> None:
    found = reading()
    out = [x.name for x in found.exclusions("nvfp4")]
    assert out == [x.name for x in found.worst("nvfp4")][: len(out)]
    every = [Layer(x.name, x.kind, ()) for x in found.content.layers]
    left = {x.name for x in without(every, out)}
    assert {x.name for x in every} - left == set(out)
    assert 1 <= len(out) <= len(every) / 10


def test_the_exclusions_can_be_pasted_into_a_recipe(config: Any) -> None:
    pasted = yaml.safe_load(reading().block("nvfp4"))
    given = config("model=emoji_flux", "format=nvfp4", "calib=emoji")
    given["format"] |= pasted["format"]
    chosen = choose(given).format
    assert chosen is not None
    assert chosen.exclude == [x.name for x in reading().exclusions("nvfp4")]


def test_one_layer_with_most_of_the_error_is_excluded_alone() -> None:
    errors = [0.5 if i == 3 else 0.001 for i in range(40)]
    rows = [SensedLayer(f"b.{i}", "linear", 4, 4, [1.0], {"fp8": [error]}) for i, error in enumerate(errors)]
    found = Reading(SensitivityFile(["fp8"], 1, 1, None, tuple(rows)))
    assert [x.name for x in found.exclusions("fp8")] == ["b.3"]
    assert found.worst("fp8")[0].error == pytest.approx(math.sqrt(0.5))


def test_what_an_option_wins_is_a_share_of_all_squared_errors() -> None:
    rows = [
        SensedLayer(
            "a", "linear", 4, 4, [1.0], {"nvfp4": [0.06], "nvfp4 weights=mse": [0.03], "nvfp4 inputs=full": [0], "fp8": [0.01]}
        ),
        SensedLayer(
            "b", "linear", 4, 4, [2.0], {"nvfp4": [0.08], "nvfp4 weights=mse": [0.10], "nvfp4 inputs=full": [0], "fp8": [0.02]}
        ),
    ]
    found = Reading(SensitivityFile(["nvfp4", "fp8"], 1, 1, None, tuple(rows), ["nvfp4 weights=mse", "nvfp4 inputs=full"]))
    a, b = found.layers("nvfp4")
    assert found.options("nvfp4") == ["nvfp4 weights=mse", "nvfp4 inputs=full", "fp8", "full precision"]
    assert found.won("nvfp4", [a], "nvfp4 weights=mse") == pytest.approx(0.3)
    assert found.won("nvfp4", [b], "nvfp4 weights=mse") == pytest.approx(-0.1)
    assert found.won("nvfp4", [a, b], "fp8") == pytest.approx(0.8)
    assert found.won("nvfp4", [a, b], "full precision") == pytest.approx(1)
    assert found.won("nvfp4", [a], "nothing that was tried") is None
    assert (found.best("nvfp4"), found.best("fp8")) == ("nvfp4 weights=mse", None)  # what rounds no inputs is another format
    worse = SensedLayer("a", "linear", 4, 4, [1.0], {"nvfp4": [0.06], "nvfp4 weights=mse": [0.09]})
    assert Reading(SensitivityFile(["nvfp4"], 1, 1, None, (worse,), ["nvfp4 weights=mse"])).best("nvfp4") is None
    assert found.formats == ["nvfp4", "fp8"]


def texts(svg: str) -> str:
    """Of a plot; a label's lines are joined."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


@pytest.mark.parametrize("draw", [sensitivity_plot.heats, sensitivity_plot.bars])
def test_a_plot_names_formats_layers_and_units(draw: Any) -> None:
    found = reading()
    plots = draw(found)
    assert [*plots] == found.formats == [*MEASURABLE]
    for name, svg in plots.items():
        assert "relative output error, %" in texts(svg)
        assert name in texts(svg)
        assert found.worst(name)[0].name in texts(svg).replace(" .", ".")
        assert draw is sensitivity_plot.bars or "denoising step" in texts(svg)


def test_every_layer_of_a_small_model_is_named_whole_on_the_map() -> None:
    found = reading()
    for svg in sensitivity_plot.heats(found).values():
        assert {x.name for x in found.content.layers} <= set(texts(svg).replace(" .", ".").split())


def test_a_plot_has_the_same_bytes_every_time() -> None:
    assert sensitivity_plot.heats(reading()) == sensitivity_plot.heats(reading())


def test_the_page_shows_the_worst_layers_the_plots_and_the_exclusions(tmp_path: Path) -> None:
    content = measured().json("sensitivity.json")
    artifact(tmp_path, "sense", {"sensitivity.json": json.loads(json.dumps(content))})
    html = page(made(tmp_path, {"sense": "5" * 16}))
    found = reading()
    for name in MEASURABLE:
        worst = found.worst(name)[0]
        assert f"{worst.name} {100 * worst.error:.2f} " in words(html)
        assert found.block(name) in html
    for name in MEASURABLE:
        assert f'aria-label="Relative output error of every layer in every denoising step, {name}"' in html
        assert f'aria-label="Relative output error, {name}: the worst ' in html
    assert not re.search(r"https?://", html)


def test_the_page_says_what_each_option_would_win_for_the_worst_layers(tmp_path: Path) -> None:
    artifact(tmp_path, "sense", {"sensitivity.json": json.loads(json.dumps(tried().json("sensitivity.json")))})
    html = words(page(made(tmp_path, {"sense": "5" * 16})))
    found = Reading(SensitivityFile.read(tried().path))
    heads = "Layer weights=local_hessian weights=mse weights=four_over_six inputs=headroom inputs=full int8 full precision"
    assert heads in html
    worst = found.worst("nvfp4")[0]
    row = " ".join(f"{100 * (found.won('nvfp4', [worst], x) or 0):z.1f}" for x in found.options("nvfp4"))
    assert f"{worst.name} {row}" in html
    assert f"the best for all layers is format.{(found.best('nvfp4') or '').partition(' ')[2]}." in html
