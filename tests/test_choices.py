"""Every wrong value of a recipe or the command line gets a line `where: what (got X); what to do`, all at once."""

import re

import pytest

from diffopt.errors import ConfigError
from diffopt.groups.validate import choose, nearest

CACHE = {"method": "first_block", "threshold": 0.1}


@pytest.fixture
def quickstart(config):
    """`quickstart({"calib.size": 0})` is the composed recipe with these values in place of its own."""

    def changed(values):
        found = config("+recipe=quickstart") | {"cache": dict(CACHE)}
        for key, value in values.items():
            *groups, name = key.split(".")
            (found[groups[0]] if groups else found)[name] = value
        return found

    return changed


def refused(config):
    with pytest.raises(ConfigError) as caught:
        choose(config)
    return str(caught.value).splitlines()


def test_a_recipe_with_all_its_values_right_is_let_through(quickstart):
    choices = choose(quickstart({"calib.alpha": 0.25}))
    assert (choices.calib.alpha, choices.cache.threshold, choices.seed) == (0.25, 0.1, 0)


BAD = [
    ("model.family", "fluxx"),
    ("model.source", "/no/such/model"),
    ("model.source", "model"),
    ("model.source", 42),
    ("model.source", None),
    ("model.dtype", "int8"),
    ("model.height", 72),
    ("model.height", 4),
    ("model.width", 63.5),
    ("model.guidance_scale", -1),
    ("model.guidance_scale", float("inf")),
    ("model.max_sequence_length", 0),
    ("format.name", "fp9"),
    ("format.exclude", "proj_out"),
    ("format.quantize_mha", "perhaps"),
    ("calib.prompts", "/no/such/prompts.txt"),
    ("calib.prompts", 7),
    ("calib.size", 0),
    ("calib.size", 1000),
    ("calib.size", "many"),
    ("calib.size", 1.5),
    ("calib.size", True),
    ("calib.batch_size", 0),
    ("calib.chunk", 7),
    ("calib.n_steps", 0),
    ("calib.n_steps", None),
    ("calib.alpha", 1.5),
    ("calib.alpha", -0.1),
    ("calib.alpha", "high"),
    ("calib.alpha", float("nan")),
    ("cache.method", "deep"),
    ("cache.threshold", 0),
    ("cache.threshold", 10),
    ("export.engine", "perhaps"),
    ("export.opset", 18),
    ("export.opset", 22),
    ("export.batch_size", 0),
    ("export.max_batch_size", 0),
    ("export.high_precision_dtype", "float64"),
    ("export.builder_optimization_level", 6),
    ("eval.prompts", "/no/such/prompts.json"),
    ("eval.size", 0),
    ("eval.size", 1000),
    ("eval.batch_size", -1),
    ("eval.steps", 0),
    ("eval.runtime", "cuda"),
    ("eval.metrics", "psnr"),
    ("eval.metrics", ["psnr", "psnr"]),
    ("eval.clip", "/no/such/clip"),
    ("eval.clip", None),
    ("eval.latency", "perhaps"),
    ("eval.warmup", 0),
    ("eval.repeats", 2),
    ("seed", -1),
    ("seed", 2**32),
    ("seed", "x"),
    ("seed", True),
    ("seed", None),
    ("seed", 1.5),
]


@pytest.mark.parametrize(("where", "value"), BAD, ids=[f"{where}={value!r}" for where, value in BAD])
def test_a_wrong_value_is_one_line_with_its_place_what_was_given_and_what_to_do(quickstart, where, value):
    (line,) = refused(quickstart({where: value}))
    found = re.fullmatch(rf"{re.escape(where)}: .*\(got (.+)\); .+", line)
    assert found, line
    assert found[1] in (repr(value), str(value)), line


def test_a_wrong_item_of_a_list_is_named_by_its_place(quickstart):
    (line,) = refused(quickstart({"eval.metrics": ["psnr", "vqa"]}))
    assert line.startswith("eval.metrics.1: ")
    assert "'vqa'" in line


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("format.name", ["int8_sq", "fp8", "nvfp4"]),
        ("model.family", ["flux"]),
        ("eval.runtime", ["torch", "onnxruntime"]),
        ("model.dtype", ["float32", "bfloat16", "float16"]),
    ],
)
def test_a_wrong_choice_names_those_there_are(quickstart, where, options):
    (line,) = refused(quickstart({where: "nothing"}))
    assert all(option in line for option in options)


def test_a_set_that_is_too_small_says_how_large_it_is(quickstart, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    (line,) = refused(quickstart({"calib.prompts": str(tmp_path / "p.txt"), "calib.size": 5}))
    assert line.startswith("calib.size: ")
    assert "the 2 prompts" in line
    assert "p.txt" in line


def test_all_that_is_wrong_is_said_at_once(quickstart):
    bad = {"calib.alpha": 1.5, "calib.size": 0, "model.height": "tall", "eval.steps": 0, "seed": -1, "fromat": {}}
    assert {line.split(":")[0] for line in refused(quickstart(bad))} == set(bad)


@pytest.mark.parametrize("where", ["calib.prompts", "calib.size", "model.source"])
def test_a_value_that_was_left_open_is_said_to_be_unset(quickstart, where):
    (line,) = refused(quickstart({where: "???"}))
    assert line.startswith(f"{where}: is not set")


def test_a_value_that_is_not_there_is_said_to_be_unset(quickstart):
    config = quickstart({})
    del config["calib"]["size"]
    (line,) = refused(config)
    assert line.startswith("calib.size: is not set")


@pytest.mark.parametrize(("typo", "meant"), [("calib.alhpa", "alpha"), ("model.heigth", "height"), ("eval.metric", "metrics")])
def test_a_misspelt_key_of_a_group_is_told_what_was_meant(quickstart, typo, meant):
    (line,) = refused(quickstart({typo: 1}))
    assert line.startswith(f"{typo}: ")
    assert f"did you mean {meant}?" in line


def test_a_misspelt_group_is_told_what_was_meant(quickstart):
    (line,) = refused(quickstart({"fromat": {"name": "fp8"}}))
    assert line.startswith("fromat: ")
    assert "did you mean format?" in line


def test_a_key_like_no_other_is_told_what_there_is(quickstart):
    (line,) = refused(quickstart({"cache.zzz": 1}))
    assert "method" in line
    assert "threshold" in line


@pytest.mark.parametrize("value", ["fp8", 7, ["fp8"]])
def test_a_group_that_is_no_group_is_refused(quickstart, value):
    (line,) = refused(quickstart({"format": value}))
    assert line.startswith("format: ")
    assert repr(value) in line


def test_nearest_names_what_is_close_or_all_there_is():
    assert "did you mean quickstart?" in nearest("quickstrat", ["quickstart", "emoji"])
    assert nearest("zzz", ["b", "a"]) == "there are a, b"


# the directory of a model


def test_a_directory_that_holds_no_pipeline_is_refused(quickstart, tmp_path):
    (line,) = refused(quickstart({"model.source": str(tmp_path)}))
    assert line.startswith("model.source: ")
    assert "model_index.json" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("content", ["", "{}", "[]", '"FluxPipeline"', "\x00"])
def test_a_pipeline_that_names_no_class_is_refused(quickstart, tmp_path, content):
    (tmp_path / "model_index.json").write_text(content)
    (line,) = refused(quickstart({"model.source": str(tmp_path)}))
    assert line.startswith("model.source: ")
    assert "class" in line


def test_a_pipeline_of_another_family_is_refused_by_name(quickstart, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (line,) = refused(quickstart({"model.source": str(tmp_path)}))
    assert "StableDiffusionXLPipeline" in line
    assert "FluxPipeline" in line


def test_a_hub_model_is_not_looked_at_while_choosing(quickstart):
    assert choose(quickstart({"model.source": "org/name"})).model.source.name == "org/name"
