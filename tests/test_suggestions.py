"""A name that there is not is answered by what was meant, in one way everywhere."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import diffopt
from diffopt.cli.main import main
from diffopt.errors import closest, suggestion
from diffopt.metrics import METRICS

FORMATS = ["auto", "fp8", "int4_awq", "int8", "int8_sq", "mxfp8", "nvfp4", "nvfp4_svdquant", "w4a8_awq"]


@pytest.mark.parametrize(
    ("asked", "known", "meant"),
    [
        ("int4", FORMATS, ["int4_awq"]),
        ("awq", FORMATS, ["int4_awq", "w4a8_awq"]),
        ("svdquant", FORMATS, ["nvfp4_svdquant"]),
        ("int9", FORMATS, ["int8"]),
        ("INT8-SQ", FORMATS, ["int8_sq"]),
        ("nvf4", FORMATS, ["nvfp4"]),
        ("clpi", [*METRICS], ["clip"]),
        ("psrn", [*METRICS], ["psnr"]),
        ("ms_ssim", [*METRICS], ["ms-ssim"]),
        ("flux", ["flux_dev", "flux_schnell", "emoji_flux"], ["flux_dev", "flux_schnell"]),
        ("zzz", FORMATS, []),
    ],
)
def test_what_begins_so_is_meant_and_else_what_is_spelled_alike(asked: str, known: list[str], meant: list[str]) -> None:
    assert closest(asked, known) == meant


def test_few_names_are_all_listed() -> None:
    assert suggestion("int4", FORMATS) == "did you mean int4_awq? there are " + ", ".join(FORMATS)
    assert suggestion("zzz", ["b", "a"]) == "there are b, a"


def test_many_names_are_not_listed_beside_a_suggestion() -> None:
    many = [f"recipe_{i:02}" for i in range(48)]
    assert suggestion("recipe_0", many, "`diffopt --help` lists them") == (
        "did you mean recipe_00 or recipe_01 or recipe_02? `diffopt --help` lists them"
    )
    assert suggestion("zzz", many, "`diffopt --help` lists them") == "`diffopt --help` lists them"
    assert suggestion("recipe_47x", many) == "did you mean recipe_47? there are 48 of them"
    assert suggestion("zzz", many).count(",") == 47  # nothing else lists them


def test_where_there_are_none_that_is_said() -> None:
    assert suggestion("x", []) == "there are none"


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_handlers: None
) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main([*arguments])
        return capsys.readouterr().err

    return said


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("format=int4", "int4_awq"),
        ("model=emoji_flx", "emoji_flux"),
        ("cache=deepcach", "deepcache"),
        ("calib.alhpa=1", "alpha"),
        ("clib.size=1", "calib"),
        ("sed=1", "seed"),
        ("eval.metrics=[clpi]", "clip"),
        ("eval.metrics=[psrn]", "psnr"),
        ("eval.gates.psrn=20", "psnr"),
        ("eval.compare=[ptg]", "ptq"),
        ("eval.runtime=onnx", "onnxruntime"),
        ("eval.bench=[egaer]", "eager"),
        ("eval.prompts=drawbnch", "drawbench"),
        ("objective=psrn", "psnr"),
        ("model.family=fluxx", "flux"),
        ("model.dtype=bfloat", "bfloat16"),
        ("model.scheduler=FlowMatchEulerDiscrete", "FlowMatchEulerDiscreteScheduler"),
        ("model.long_prompts=ct", "cut"),
        ("calib.collect_method=min_mean", "min-mean"),
        ("+cache={method: cachfy}", "cachify"),
    ],
)
def test_a_misspelt_name_is_told_what_was_meant(refused: Callable[..., str], override: str, meant: str) -> None:
    assert f"; did you mean {meant}?" in refused("plan", "+recipe=emoji_int8_sq", override)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("plan", "+recipe=quickstrat"), "quickstart"),
        (("plan", "+recipe=emoji_fp4_qad", "train.optimizer=adamww"), "adamw"),
        (("plan", "+recipe=emoji_fp4_qad", "train.trackers=[wandbb]"), "wandb"),
        (("plan", "+recipe=emoji_cache_search", "cache.search.floor={psrn: 30}"), "psnr"),
        (("plan", "+recipe=emoji_cache_search", "cache.search.knob=treshold"), "threshold"),
        (("plna",), "plan"),
        (("+recipe=quickstart", "--multrun"), "--multirun"),
    ],
)
def test_so_is_one_of_a_recipe_a_command_or_a_flag(refused: Callable[..., str], arguments: tuple[str, ...], meant: str) -> None:
    assert f"; did you mean {meant}" in refused(*arguments)


def test_an_unknown_recipe_is_not_answered_by_all_of_them(refused: Callable[..., str]) -> None:
    for name in ("quickstrat", "zzz"):
        said = refused("plan", f"+recipe={name}")
        assert "`diffopt ls recipe` lists them" in said
        assert len(said) < 200


def test_every_list_of_names_is_made_by_one_function() -> None:
    """A list of what there is, after a name that there is not, is `suggestion`'s."""
    exempt = {"errors.py", "stage.py"}  # itself, and an error of a stage's author
    found = [
        f"{path.name}:{number}"
        for path in Path(diffopt.__file__).parent.rglob("*.py")
        if path.name not in exempt
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"no such|is no metric|not a metric|nothing to compare with \(|is no optimizer|no such class", line)
        and re.search(r"there are \{|one of \{", line)
    ]
    assert found == []
