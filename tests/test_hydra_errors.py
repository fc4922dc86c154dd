"""What Hydra, OmegaConf and YAML raise, as lines of our own: read from their exceptions' fields, since texts may change."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError, ConfigTypeError

from diffopt.cli import hydra_errors
from diffopt.cli.main import main
from diffopt.errors import ConfigError


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("+recipe=no")` is the one line that `diffopt plan +recipe=no` ends with, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["plan", *arguments])
        out, err = capsys.readouterr()
        assert (end.value.code, out, len(err.splitlines())) == (1, "", 1), err
        return err

    return said


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("calib.prompts=[a", "override: cannot be read (got calib.prompts=[a); write key=value"),
        ("calib.size=int(a)", "override: cannot be read, invalid literal for int() with base 10: 'a' (got calib.size=int(a));"),
        ("calib=3", "calib: is chosen by the name of an option (got 3);"),
        ("calib=[1,2]", "calib: is chosen by the name of an option (got [1,2]);"),
        ("~calib=3", "calib: is chosen by the name of an option (got 3);"),
        ("=3", "override: names no field (got '=3'); write key=value"),
        ("calib.alhpa=1", "calib.alhpa: no such key here (got 1); did you mean alpha?"),
        ("calib={alpha: 1, b: 3}", "calib.b: no such key here (got {alpha: 1, b: 3}); there are alpha,"),
        ("train.validation.stesp=1", "train.validation.stesp: no such key here (got 1); did you mean steps?"),
        ("train.lora.rank=1", "train.lora.rank: the group is not chosen (got 1); choose train=OPTION, or drop it"),
        ("clib.size=1", "clib.size: no such group (got 'clib'); did you mean calib?"),
        ("eval.metrics={a: 1}", "eval.metrics: is a list in the recipe (got {a: 1}); write it as one: [{a: 1}]"),
        ("eval.metrics.7=a", "eval.metrics.7: list index out of range (got a);"),
        ("+calib.size=3", "calib.size: is in the recipe already (got it with a plus); without: calib.size=3"),
        ("~calib.b", "calib.b: is not in the recipe, so it cannot be left out (got ~calib.b);"),
        ("calib.size=range(1,3)", "calib.size: reads as several values (got range(1,3));"),
        ("calib.size=1,2", "calib.size: reads as several values (got 1,2);"),
        ("calib.size=${b}", "calib.size: interpolation key 'b' not found (got ${b});"),
        ("eval.metrics=[${b}]", "eval.metrics.0: interpolation key 'b' not found (got ${b});"),
        ("seed=${oc.decode:'['}", "seed: GrammarParseError raised while resolving interpolation: mismatched input"),
        ("format=int9", "format: no such option (got 'int9'); did you mean int8? there are auto,"),
        ("calib=a b", "calib: no such option (got 'a b'); there are controls, default,"),
        ("hydra/launcher=a", "hydra/launcher: no such option (got 'a'); there are basic"),
        ("+recipe=emoji_fp8", "recipe: is chosen twice (got it as an override);"),
    ],
)
def test_what_cannot_be_composed_is_refused_in_a_line(refused: Callable[..., str], override: str, line: str) -> None:
    assert refused("+recipe=quickstart", override).startswith(line)


@pytest.mark.parametrize("out", ["calib=null", "~calib"])
@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("calib.size=16", "calib.size: the group is not chosen (got 16); choose calib=OPTION, or drop it"),
        ("calib.sizze=16", "calib.sizze: no such key here (got 16); did you mean size?"),
    ],
)
def test_a_field_of_a_group_that_is_left_out_is_named(refused: Callable[..., str], out: str, field: str, line: str) -> None:
    for given in ((field, out), (out, field)):
        assert refused("+recipe=emoji_fp4", *given).startswith(line)


def test_a_recipe_that_extends_one_that_is_not_there_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("# @package _global_\ndefaults: [emoji_fp9]\n")
    said = "recipe/mine: extends what is not there (got 'recipe/emoji_fp9'); did you mean emoji_fp8?"
    assert refused("+recipe=mine").startswith(said)


def test_a_recipe_that_is_no_yaml_is_named_with_the_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.yaml").write_text("# @package _global_\ncalib: [\n")
    assert re.search(r"broken\.yaml: is no YAML, .* \(got it in line 3\); mend it$", refused("+recipe=broken"))


def caused(error: Exception, cause: Exception, **fields: Any) -> Exception:
    for name, value in fields.items():
        setattr(cause, name, value)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MissingConfigException("x", "format/int9", ["fp8", "int8"]),
            "format: no such option (got 'int9'); did you mean int8?",
        ),
        (MissingConfigException("x", "mine/a", []), "mine: has no options yet (got 'a'); drop it"),
        (MissingConfigException("x", "other"), "other: no such config (got 'other');"),
        (OverrideParseException("a=[", "x"), "override: cannot be read (got a=[);"),
        (caused(ConfigCompositionException("x"), ConfigKeyError("x"), full_key="calib.alhpa"), "calib.alhpa: no such key here"),
        (
            caused(ConfigCompositionException("x"), ConfigTypeError("x"), full_key="eval.metrics", object_type=list),
            "eval.metrics: is a list in the recipe (got psnr); write it as one: [psnr]",
        ),
        (ConfigError("calib.prompts: mismatched input (got a); mend it"), "calib.prompts: mismatched input (got a); mend it"),
        (caused(HydraException("x"), ConfigError("a: b (got c); d")), "a: b (got c); d"),
    ],
)
def test_an_error_is_told_by_its_fields_whatever_its_text(error: Exception, line: str) -> None:
    assert hydra_errors.line(error, ["calib.alhpa=1", "eval.metrics=psnr"]).startswith(line)


def test_an_interpolation_in_an_override_is_of_the_recipe(tmp_path: Path) -> None:
    """Also where a run reads which overrides there were."""
    asked = ("+recipe=quickstart", "calib.size=${seed}", "seed=7", "calib.alpha=1.5")
    done = subprocess.run([sys.executable, "-m", "diffopt", *asked], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "calib.alpha: must be less than or equal to 1 (got 1.5); lower it\n"


def test_jobs_that_slurm_does_not_take_are_not_called_lost() -> None:
    refusal = type("FailedJobError", (Exception,), {"__module__": "submitit.core.utils"})
    said = hydra_errors.of_launcher(refusal("sbatch: error: Invalid generic resource (gres) specification\n"))
    assert said
    assert said.startswith("sweep: Slurm does not take the jobs (got sbatch: error: Invalid generic resource (gres) ")
    assert "; set hydra.launcher.gpus_per_node" in said
    assert "lost a process" in str(hydra_errors.of_launcher(refusal("Job 3 was killed")))
    trace = "Traceback (most recent call last):\n  File 'x'\nModuleNotFoundError: No module named 'mine'\n"
    failed = f"Job (task=0) failed during processing with trace:\n{'-' * 22}\n{trace}\n{'-' * 22}\nYou can check full logs"
    said = str(hydra_errors.of_launcher(refusal(failed)))
    assert said.startswith(
        "sweep: a process of submitit failed outside its job (got ModuleNotFoundError: No module named 'mine'); "
    )
