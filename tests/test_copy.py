"""`diffopt copy`: a recipe of one's own with every value written out, which then runs as the one that it is of."""

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import composed, registered, some
from omegaconf import OmegaConf

from diffopt.cli import copy, own_options
from diffopt.cli.main import main
from diffopt.cli.plan import composed as as_run
from diffopt.cli.searchpath import RecipeSearchPath, bundled, recipe_dirs
from diffopt.errors import ConfigError
from diffopt.groups import GROUPS, PICKS
from diffopt.jobs import runtime_checks

RECIPES = sorted(p.stem for p in bundled("recipes").glob("*.yaml"))
NUMBERS = count()
FEW = {"quickstart", "emoji_formats", "emoji_search", "emoji_int8_joblib", "emoji_cache_search", "emoji_fp4_qad", "wan_fp8"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered()
    monkeypatch.chdir(tmp_path)


def copied(recipe: str, *overrides: str, name: str = "") -> str:
    """The name of the copy, one that no other test has: what is composed is remembered."""
    name = name or f"my_{recipe}_{next(NUMBERS)}"
    copy.command([recipe, f"recipes/{name}.yaml", *overrides])
    return name


def steps(plan: Callable[..., Any], *overrides: str, **how: Any) -> dict[str, str]:
    return {s.name: s.fingerprint for s in plan(*overrides, **how).steps}


@pytest.mark.parametrize("recipe", some(RECIPES, FEW))
def test_a_copy_plans_the_same_steps_with_the_same_fingerprints(
    recipe: str, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ({"name": "NVIDIA H200", "capability": "9.0"},))  # as some recipes need
    mine = copied(recipe)
    assert steps(plan, f"+recipe={mine}", sweep=True) == steps(plan, f"+recipe={recipe}", sweep=True)


@pytest.mark.parametrize("recipe", some(RECIPES, FEW))
def test_a_copy_has_the_same_settings_of_hydra(recipe: str) -> None:
    mine, theirs = (as_run([f"+recipe={name}"], sweep=False).hydra for name in (copied(recipe), recipe))
    assert mine.mode == theirs.mode
    for node in ("sweeper", "launcher", "callbacks"):
        assert OmegaConf.to_container(mine[node], resolve=False) == OmegaConf.to_container(theirs[node], resolve=False)


@pytest.mark.parametrize("recipe", some(RECIPES, FEW))
def test_every_value_is_written_out(recipe: str) -> None:
    mine = yaml.safe_load(Path(f"recipes/{copied(recipe)}.yaml").read_text())
    theirs: Any = OmegaConf.to_container(composed(f"+recipe={recipe}"), resolve=False)
    swept = {k for k in ((mine.get("hydra") or {}).get("sweeper") or {}).get("params", {}) if k in PICKS}
    for group in {*PICKS} - swept:
        assert (mine.get(group) or {}).items() >= (theirs.get(group) or {}).items()
    assert mine["seed"] == theirs["seed"]


def test_a_copy_says_what_it_is_of_and_how_it_is_run() -> None:
    text = Path(f"recipes/{copied('quickstart', name='spoken')}.yaml").read_text()
    assert text.startswith(
        "# @package _global_\n# A copy of quickstart, every value written out. The main job, offline, on a CPU:"
    )
    assert "# Run:   diffopt +recipe=spoken\n" in text
    assert "# model=emoji_flux: 64x64 emoji, " in text
    assert "# Nothing is chosen of: sense, cache, train.\n" in text
    assert max(map(len, text.splitlines())) <= 128


def test_a_copy_with_other_values_has_them(plan: Callable[..., Any]) -> None:
    mine = copied("quickstart", "calib.alpha=0.5", "export=onnx", "~sense")
    changed = steps(plan, "+recipe=quickstart", "calib.alpha=0.5", "export=onnx")
    assert steps(plan, f"+recipe={mine}") == changed
    assert "with calib.alpha=0.5 export=onnx" in Path(f"recipes/{mine}.yaml").read_text()


def test_its_values_are_overridden_as_any_others(plan: Callable[..., Any]) -> None:
    mine = copied("quickstart")
    changed = ("calib.alpha=0.5", "seed=3", "eval.size=8")
    assert steps(plan, f"+recipe={mine}", *changed) == steps(plan, "+recipe=quickstart", *changed)


def test_another_option_takes_the_place_of_all_that_is_written_of_a_group(plan: Callable[..., Any]) -> None:
    """Hydra would lay what the recipe says over the option: name: int8_sq over that of fp8, without a word."""
    mine = copied("emoji_int8_sq")
    for pick in ("format=fp8", "format=nvfp4_svdquant", "calib=images", "cache=first_block_loose", "eval=images"):
        picks = [pick, "model.long_prompts=cut"]
        assert steps(plan, f"+recipe={mine}", *picks) == steps(plan, "+recipe=emoji_int8_sq", *picks), pick
    assert steps(plan, f"+recipe={mine}", "calib=null", "format=null") == steps(
        plan, "+recipe=emoji_int8_sq", "calib=null", "format=null"
    )


def test_a_recipe_that_extends_a_copy_may_choose_another_option(plan: Callable[..., Any]) -> None:
    mine = copied("emoji_int8_sq")
    Path("recipes/extends_a_copy.yaml").write_text(
        f"# @package _global_\ndefaults: [{mine}, override /format: fp8]\ncalib: {{size: 8}}\n"
    )
    assert steps(plan, "+recipe=extends_a_copy") == steps(plan, "+recipe=emoji_int8_sq", "format=fp8", "calib.size=8")


def test_a_sweep_of_a_copy_is_over_options_too(capsys: pytest.CaptureFixture[str]) -> None:
    mine = copied("emoji_int8_sq")
    capsys.readouterr()
    said = []
    for name in (mine, "emoji_int8_sq"):
        main(["plan", f"+recipe={name}", "--multirun", "format=int8_sq,fp8"])
        said.append(re.sub(r"[0-9.]+ GiB left", "", capsys.readouterr().out))
    assert said[0] == said[1]
    assert "2 jobs, 2 distinct" in said[0]


def test_a_copy_is_itself_copied(plan: Callable[..., Any]) -> None:
    mine = copied(copied("quickstart"), "calib.size=8")
    assert steps(plan, f"+recipe={mine}") == steps(plan, "+recipe=quickstart", "calib.size=8")


def test_a_recipe_that_says_some_of_a_group_alone_leaves_the_rest_to_the_option_that_is_chosen() -> None:
    text = "# @package _global_\neval: {runtime: onnxruntime}\n"
    assert own_options.whole(OmegaConf.create(text)) == []
    whole = {g: yaml.safe_load(Path(f"recipes/{copied('quickstart')}.yaml").read_text())[g] for g in ("format", "export")}
    assert own_options.whole(OmegaConf.create(whole)) == ["format", "export"]
    assert own_options.whole(OmegaConf.create({"defaults": ["quickstart"], **whole})) == []
    assert own_options.whole(OmegaConf.create({"defaults": [{"override /format": "fp8"}], **whole})) == ["export"]
    assert set(own_options.DECIDES) == {
        n for n, g in GROUPS.items() if not any(f.is_required() for f in g.model_fields.values())
    }


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("recipes/told.yaml", "diffopt +recipe=told"),
        ("told.yaml", "DIFFOPT_RECIPES=. diffopt +recipe=told"),
        ("deep/er/told.yaml", "DIFFOPT_RECIPES=deep/er diffopt +recipe=told"),
    ],
)
def test_the_command_that_it_prints_runs_it(
    file: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["copy", "quickstart", file])
    assert capsys.readouterr().out.splitlines()[-1].strip() == told
    variable, _, command = told.rpartition("diffopt ")
    if variable:
        monkeypatch.setenv("DIFFOPT_RECIPES", variable.strip().partition("=")[2])
    main(["plan", command])
    assert capsys.readouterr().out.splitlines()[-1].startswith("15 steps")


def test_the_command_names_the_config_directory_that_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own/recipe").mkdir(parents=True)
    try:
        main(["copy", "quickstart", "own/recipe/told.yaml", "--config-dir", "own"])
        assert capsys.readouterr().out.splitlines()[-1].strip() == "diffopt +recipe=told --config-dir own"
        main(["plan", "+recipe=told", "format=fp8", "export=onnx", "eval=null", "--config-dir", "own"])
        assert "quantize" in capsys.readouterr().out
    finally:
        RecipeSearchPath.config_dir, RecipeSearchPath.ours = None, False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["quickstrat", "recipes/a.yaml"], r"no such recipe \(got 'quickstrat'\); did you mean quickstart\?"),
        (["quickstart", "mine"], r"ends in \.yaml \(got 'mine'\); give recipes/mine\.yaml"),
        (["quickstart", "recipes/mine.yml"], r"ends in \.yaml .*give recipes/mine\.yaml"),
        (["quickstart", "my recipe.yaml"], r"letters, digits and _ .*give my_recipe\.yaml"),
        (["quickstart", "recipes/emoji_fp8.yaml"], r"a recipe emoji_fp8 already"),
        (["quickstart", "taken.yaml"], r"is there already \(got 'taken\.yaml'\)"),
        (["quickstart", "taken.yaml/mine.yaml"], r"cannot be written \(.*\) \(got 'taken\.yaml/mine\.yaml'\)"),
        (["quickstart", "a.yaml", "calib.alpha=3"], r"calib\.alpha: .*got 3"),
        (["quickstart"], r"FILE"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_copied_is_refused_in_a_line_and_nothing_is_written(arguments: list[str], reason: str) -> None:
    Path("taken.yaml").touch()
    with pytest.raises(ConfigError, match=reason) as caught:
        copy.command(arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("recipes").exists()
    assert Path("taken.yaml").read_text() == ""


def test_what_a_message_advises_is_taken() -> None:
    with pytest.raises(ConfigError) as caught:
        copy.command(["quickstart", "my 1st-recipe.yaml"])
    advised = re.search(r"give (\S+)$", str(caught.value))
    assert advised
    copy.command(["quickstart", f"recipes/{advised[1]}"])
    assert Path("recipes").resolve() in recipe_dirs()
