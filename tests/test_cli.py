"""The command line: what it answers, what it refuses in a line with exit code 1, and what it completes.

`plan` and `store` run in this process, where an error that nothing foresaw ends the test; what goes through Hydra's main
runs as a user runs it.
"""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from diffopt import __version__
from diffopt.cli.commands import COMMANDS
from diffopt.cli.main import main
from diffopt.cli.searchpath import bundled, register
from diffopt.jobs import job
from diffopt.store.store import Store

RECIPES = sorted(p.stem for p in bundled("recipes").glob("*.yaml"))
GROUPS = ["model", "format", "calib", "sense", "cache", "train", "export", "eval"]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def diffopt(capsys):
    """`diffopt("plan", ...)` in this process."""

    def said(*arguments):
        try:
            main(list(arguments))
            code = 0
        except SystemExit as e:
            code = e.code or 0
        return Said(code, *capsys.readouterr())

    return said


@pytest.fixture
def shell(tmp_path):
    """`shell(...)` runs `python -m diffopt ...` in an empty directory."""

    def said(*arguments, **variables):
        command = [sys.executable, "-m", "diffopt", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True)
        return Said(done.returncode, done.stdout, done.stderr)

    return said


@pytest.fixture
def recipe(tmp_path):
    """`recipe("mine.yaml")` writes a recipe that extends quickstart by four calibration prompts."""

    def write(path, text="# @package _global_\ndefaults: [quickstart]\ncalib: {size: 4}\n"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return tmp_path / path

    return write


def refused(said, *names):
    """That it was refused in lines that have these names."""
    assert said.code == 1
    assert "Traceback" not in said.err
    assert "usage: " not in said.err
    assert said.out == ""
    for name in names:
        assert name in said.err
    return True


# help and plan


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    command = [sys.executable, "-m", "diffopt", "--help"]
    return subprocess.run(command, cwd=tmp_path_factory.mktemp("help"), capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("group", GROUPS)
def test_help_lists_every_group_with_its_options(help_text, group):
    (line,) = [x for x in help_text.splitlines() if x.startswith(f"{group}: ")]
    assert all(p.stem in line for p in (bundled("conf") / group).glob("*.yaml"))


def test_help_lists_every_recipe(help_text):
    (line,) = [x for x in help_text.splitlines() if x.startswith("recipe: ")]
    assert line.removeprefix("recipe: ").split(", ") == RECIPES


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_command(help_text, command):
    assert f"\ndiffopt {command}" in help_text


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"]], ids=str)
def test_help_is_shown_to_who_says_nothing_and_to_who_asks(help_text, shell, arguments):
    assert shell(*arguments) == Said(0, help_text, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(diffopt, command):
    said = diffopt("help", command)
    assert said.code == 0
    assert said.out.startswith(f"usage: diffopt {command}")
    assert said == diffopt(command, "--help")


def test_an_action_of_a_command_has_help_too(diffopt):
    assert diffopt("help", "store", "export").out.startswith("usage: diffopt store export")


@pytest.mark.parametrize("arguments", [["--version"], ["+recipe=quickstart", "--version"]], ids=" ".join)
def test_the_version_is_that_of_diffopt(diffopt, arguments):
    assert diffopt(*arguments) == Said(0, f"diffopt {__version__}\n", "")


def test_the_table_of_commands_has_the_actions_that_the_parsers_have():
    for command in COMMANDS.values():
        below = command.module.parser()._subparsers
        assert tuple(below._group_actions[0].choices if below else ()) == command.actions


TENSORS = ["torch", "diffusers", "transformers", "modelopt", "onnx", "onnxruntime", "numpy", "huggingface_hub"]
PAGES = ["jinja2", "matplotlib", "PIL"]
SWEEPS = ["diffopt.sweep.findings", "diffopt.sweep.page", "diffopt.sweep.plan"]
JOBS = ["pydantic", "diffopt.groups", "diffopt.jobs"]


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (["plan", "+recipe=emoji_fp8"], [*TENSORS, *PAGES, *SWEEPS]),
        (["--help"], [*TENSORS, *PAGES, *SWEEPS, *JOBS]),
        (["-sc", "query=bash"], [*TENSORS, *PAGES, *SWEEPS, *JOBS]),
        (["doctor"], [*TENSORS, *PAGES, *SWEEPS, "diffopt.groups", "diffopt.jobs"]),
        (["store", "--help"], [*TENSORS, *PAGES, *SWEEPS]),
        (["eval", "--help"], [*TENSORS, *PAGES, *SWEEPS]),
        (["--version"], [*TENSORS, *PAGES, *SWEEPS, *JOBS]),
        (["ls"], [*TENSORS, *PAGES, *SWEEPS]),
        (["copy", "quickstart", "recipes/mine.yaml"], [*TENSORS, *PAGES, *SWEEPS]),
    ],
    ids=["plan", "help", "completion", "doctor", "store", "eval", "version", "ls", "copy"],
)
def test_what_must_be_quick_imports_nothing_that_it_does_without(tmp_path, arguments, idle):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded:', *sorted({{*{idle}}} & set(sys.modules))))\n"
        "from diffopt.cli.main import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "main()\n"
    )
    asked = {**os.environ, "COMP_LINE": "diffopt +recipe=quicks"}  # what a shell wants completed
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_garbage_is_not_looked_for_among_the_libraries(tmp_path):
    code = "import gc; from diffopt.cli.main import main; main(); print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) > 10_000
    assert done.returncode == 0, done.stderr


def rows(said):
    assert said.code == 0, said.err
    return {line.split()[0]: line for line in said.out.splitlines() if line[:1].strip()}


def test_plan_has_a_row_for_every_step(diffopt, plan):
    chunks = {"embed.0": "embed.0-1", "embed.1": "embed.0-1", "observe.0": "observe.0-1", "observe.1": "observe.0-1"}
    names = {chunks.get(s.name, s.name) for s in plan("+recipe=emoji_fp8", "export=onnx").steps}
    assert names <= set(rows(diffopt("plan", "+recipe=emoji_fp8", "export=onnx")))


def test_plan_writes_nothing(diffopt, tmp_path):
    diffopt("plan", "+recipe=emoji_fp8", "export=onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def filled(tmp_path):
    """A store in which everything of these overrides is finished."""

    def fill(*overrides):
        register()
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            config = compose("config", list(overrides))
        OmegaConf.update(config, "store", str(tmp_path / "store"))
        prepared = job.prepare(config, [], dry=True, sweep=False)
        for step in prepared.plan.steps:
            with prepared.store.publish(step.kind, step.fingerprint, step.identity, {"seconds": 0.0}):
                pass
        return Store(tmp_path / "store")

    return fill


def test_plan_says_what_is_cached(diffopt, filled):
    store = filled("+recipe=emoji_int8_sq")
    said = rows(diffopt("plan", "+recipe=emoji_int8_sq", f"store={store.root}"))
    assert all("cached" in said[name] for name in ("load", "observe.0-1", "quantize", "sample", "score"))


def test_plan_says_what_is_to_run_and_what_of_the_recipe_is_why(diffopt, filled):
    store = filled("+recipe=emoji_int8_sq", "calib.alpha=0.5")
    said = rows(diffopt("plan", "+recipe=emoji_int8_sq", "calib.alpha=0.75", f"store={store.root}"))
    assert "cached" in said["merge"]
    assert "to run" in said["quantize"]
    assert "0.5" in said["quantize"]
    assert "0.75" in said["quantize"]
    assert "quantize" in said["sample"].removeprefix("sample")


def test_plan_shows_a_hub_model_that_was_never_resolved_as_pending(diffopt):
    said = rows(diffopt("plan", "+recipe=emoji_fp8", "export=onnx", "model.source=org/name"))
    assert "pending" in said["load"]
    assert "pending" in said["quantize"]


# what is refused


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["plna"], ["plna", "plan"]),
        (["quickstart"], ["quickstart", "+recipe=quickstart"]),
        (["quickstart", "calib.size=8"], ["quickstart"]),
        (["plan"], ["recipe"]),
        (["plan", "+recipe=quickstrat"], ["quickstrat", "quickstart"]),
        (["plan", "+recipe="], ["recipe", "quickstart"]),
        (["plan", "+recipe=quickstart", "format=int9"], ["format", "int9", "int8_sq"]),
        (["plan", "+recipe=quickstart", "train=qta"], ["train", "qta", "qat"]),
        (["plan", "+recipe=quickstart", "calib.alhpa=0.5"], ["calib.alhpa", "0.5", "alpha"]),
        (["plan", "+recipe=quickstart", "+calib.alhpa=0.5"], ["calib.alhpa", "0.5", "alpha"]),
        (["plan", "+recipe=quickstart", "cache={method: cachify}"], ["cache", "plus", "'+cache={method: cachify}'"]),
        (["plan", "+recipe=quickstart", "fromat=fp8"], ["fromat", "fp8", "format"]),
        (["plan", "+recipe=quickstart", "+fromat=fp8"], ["fromat", "fp8", "format"]),
        (["plan", "+recipe=quickstart", "fromat.name=fp8"], ["fromat", "format"]),
        (["plan", "+recipe=quickstart", "+recipe=emoji_fp8"], ["recipe", "twice"]),
        (["plan", "+recipe=quickstart", "calib.alpha=1.5"], ["calib.alpha", "got 1.5"]),
        (["plan", "+recipe=quickstart", "calib.size=0"], ["calib.size", "got 0"]),
        (["plan", "+recipe=quickstart", "calib.size=0", "calib.alpha=1.5", "seed=-1"], ["calib.size", "calib.alpha", "seed"]),
        (["plan", "+recipe=quickstart", "calib.prompts=nowhere.txt"], ["calib.prompts", "nowhere.txt"]),
        (["plan", "+recipe=quickstart", "calib=default"], ["calib.prompts", "not set"]),
        (["plan", "+recipe=quickstart", "model.source=no/such/model"], ["model.source", "no/such/model"]),
        (["plan", "+recipe=quickstart", "model.source=."], ["model.source", "model_index.json"]),
        (["plan", "+recipe=quickstart", "model.guidance_scale=inf"], ["model.guidance_scale", "inf"]),
        (["plan", "+recipe=emoji_int8_sq", "store=null"], ["store"]),
        (["plan", "+recipe=quickstart", "calib.prompts=[a"], ["calib.prompts=[a"]),
        (["plan", "+recipe=quickstart", "calib.size=8,16"], ["calib.size", "8,16"]),
        (["plan", "+recipe=emoji_int8_sq", "store=${no.such}"], ["no.such"]),
        (["plan", "+recipe=emoji_int8_sq", "--config-dir", "nowhere"], ["nowhere"]),
        (["plan", "+recipe=emoji_int8_sq", "--config-dir"], ["--config-dir", "expected one argument"]),
        (["+recipe=emoji_int8_sq", "--config-dir"], ["--config-dir", "expected one argument"]),
        (["plan", "--no-such-flag"], ["--no-such-flag"]),
        (["store", "lss"], ["lss", "ls"]),
        (["store", "ls"], ["outputs/store"]),
        (["help", "plna"], ["plna", "plan"]),
        (["ls", "fromat"], ["fromat", "format"]),
        (["copy", "quickstrat", "recipes/mine.yaml"], ["quickstrat", "quickstart"]),
        (["report", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_refused_in_a_line_that_names_it(diffopt, arguments, names):
    assert refused(diffopt(*arguments), *names)


def test_a_recipe_that_is_no_yaml_is_refused_by_name(diffopt, recipe):
    recipe("recipes/broken.yaml", "# @package _global_\ncalib: [\n")
    assert refused(diffopt("plan", "+recipe=broken"), "broken.yaml")


def test_a_recipe_that_extends_one_that_is_not_there_is_refused_by_name(diffopt, recipe):
    recipe("recipes/mine.yaml", "# @package _global_\ndefaults: [quickstrat]\n")
    assert refused(diffopt("plan", "+recipe=mine"), "quickstrat", "quickstart")


def test_a_run_without_a_recipe_is_refused(shell):
    assert refused(shell("seed=1"), "recipe", "diffopt ls recipe")


def test_a_run_of_a_recipe_that_is_not_there_is_refused(shell):
    assert refused(shell("+recipe=quickstrat"), "quickstrat", "quickstart")


def test_a_refused_run_says_all_that_is_wrong_and_leaves_no_run_behind(shell, tmp_path):
    assert refused(
        shell("+recipe=quickstart", "calib.alpha=1.5", "calib.size=0"), "calib.alpha", "got 1.5", "calib.size", "got 0"
    )
    assert [p for p in tmp_path.rglob("*") if not p.is_dir()] == []
    assert not (tmp_path / "outputs" / "runs" / "quickstart").exists()


def test_a_recipe_asked_for_without_its_plus_is_told_of_it(diffopt):
    assert refused(diffopt("plan", "recipe=quickstart"), "+recipe=quickstart")


def test_a_recipe_that_extends_itself_is_refused(diffopt, recipe):
    recipe("recipes/mine.yaml", "# @package _global_\ndefaults: [mine]\n")
    assert refused(diffopt("plan", "+recipe=mine"), "extends itself")


def test_a_recipe_without_its_first_line_is_told_of_it(diffopt, recipe):
    recipe("recipes/mine.yaml", "defaults: [quickstart]\ncalib: {alpha: 0.5}\n")
    assert refused(diffopt("plan", "+recipe=mine"), "@package _global_")


def test_two_runs_of_one_second_have_directories_of_their_own(shell, tmp_path):
    asked = ("+recipe=quickstart", "--cfg", "hydra", "--package", "hydra.run", "--resolve")
    settings = {shell(*asked).out for _ in range(2)}
    assert len(settings) == 2


def test_a_refused_run_takes_away_nothing_that_it_did_not_make(shell, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert refused(shell("+recipe=quickstart", "hydra.run.dir=mine", "calib.alpha=1.5"), "calib.alpha")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("override", ["store=file/store", "hydra.run.dir=file/run"])
def test_a_run_that_would_write_below_a_file_is_refused_by_name(shell, tmp_path, override):
    (tmp_path / "file").touch()
    assert refused(shell("+recipe=emoji_int8_sq", override), "file")


def test_a_flag_that_there_is_not_is_refused(shell):
    assert refused(shell("+recipe=quickstart", "--no-such-flag"), "--no-such-flag")


def test_a_config_directory_that_is_not_there_is_refused(shell):
    assert refused(shell("+recipe=quickstart", "--config-dir", "nowhere"), "nowhere")


def test_a_traceback_is_shown_to_who_asks_for_it(shell):
    said = shell("plan", "+recipe=quickstart", "calib.size=0", HYDRA_FULL_ERROR="1")
    assert said.code == 1
    assert "Traceback" in said.err


# recipes of the user's own


def observed_once(said):
    """That the four prompts of `recipe` were planned: one part of a chunk."""
    return "observe" in rows(said)


def test_recipes_in_the_working_directory_extend_ours(diffopt, recipe):
    recipe("recipes/mine.yaml")
    assert observed_once(diffopt("plan", "+recipe=mine", "export=onnx"))


def test_recipes_in_named_directories_extend_ours(diffopt, recipe, tmp_path, monkeypatch):
    recipe("here/mine.yaml")
    recipe("there/yours.yaml")
    monkeypatch.setenv("DIFFOPT_RECIPES", f"{tmp_path}/here{os.pathsep}{tmp_path}/there")
    assert observed_once(diffopt("plan", "+recipe=mine", "export=onnx"))
    assert observed_once(diffopt("plan", "+recipe=yours", "export=onnx"))


@pytest.mark.parametrize("flag", [["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]], ids=" ".join)
def test_recipes_in_a_config_directory_extend_ours(diffopt, recipe, flag):
    recipe("own/recipe/mine.yaml")
    assert observed_once(diffopt("plan", *flag, "+recipe=mine", "export=onnx"))


def test_a_config_directory_may_have_odd_characters_in_its_name(diffopt, recipe):
    recipe("my, own/recipe/mine.yaml")
    assert observed_once(diffopt("plan", "--config-dir", "my, own", "+recipe=mine", "export=onnx"))


def test_a_run_takes_recipes_of_a_config_directory_too(shell, recipe):
    recipe("own/recipe/mine.yaml")
    said = shell("+recipe=mine", "--config-dir", "own", "--cfg", "job", "--package", "calib")
    assert said.code == 0, said.err
    assert "size: 4" in said.out


def test_options_in_a_config_directory_are_added_to_our_groups(diffopt, recipe):
    recipe("own/calib/tiny.yaml", "defaults: [emoji]\nsize: 4\n")
    assert observed_once(diffopt("plan", "--config-dir", "own", "+recipe=emoji_fp8", "calib=tiny", "export=onnx"))


def test_two_recipes_of_one_name_are_refused_by_their_paths(diffopt, recipe, tmp_path):
    recipe("recipes/quickstart.yaml")
    assert refused(diffopt("plan", "+recipe=quickstart"), "'quickstart'", str(tmp_path / "recipes"), str(bundled("recipes")))


def test_two_recipes_of_one_name_are_refused_in_named_directories(diffopt, recipe, tmp_path, monkeypatch):
    recipe("recipes/mine.yaml")
    recipe("other/mine.yaml")
    monkeypatch.setenv("DIFFOPT_RECIPES", str(tmp_path / "other"))
    assert refused(diffopt("plan", "+recipe=mine"), "'mine'")


def test_two_recipes_of_one_name_are_refused_in_a_config_directory(diffopt, recipe):
    recipe("own/recipe/emoji_fp8.yaml")
    assert refused(diffopt("plan", "--config-dir", "own", "+recipe=emoji_fp8", "export=onnx"), "emoji_fp8")


def test_a_directory_that_is_named_twice_is_one(diffopt, recipe, tmp_path, monkeypatch):
    recipe("recipes/mine.yaml")
    monkeypatch.setenv("DIFFOPT_RECIPES", str(tmp_path / "recipes"))
    assert observed_once(diffopt("plan", "+recipe=mine", "export=onnx"))


def test_a_named_directory_that_is_not_there_is_refused(diffopt, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFOPT_RECIPES", str(tmp_path / "nowhere"))
    assert refused(diffopt("plan", "+recipe=quickstart"), "DIFFOPT_RECIPES", "nowhere")


def test_the_store_is_where_the_variable_says(diffopt, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFOPT_STORE", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in diffopt("plan", "+recipe=emoji_int8_sq").out


# completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diffopt pl", {"plan"}),
        ("diffopt store v", {"verify"}),
        ("diffopt ev", {"eval"}),
        ("diffopt eval --me", {"--metrics"}),
        ("diffopt eval --data-path a.json --metrics psnr lp", {"lpips"}),
        ("diffopt store export --b", {"--backbone-only", "--bare"}),
        ("diffopt store export --r", {"--refit"}),
        ("diffopt store export 0123 out --as h", {"hf"}),
        ("diffopt store export 0123", set()),
        ("diffopt report --f", {"--floor"}),
        ("diffopt plan --m", {"--multirun"}),
        ("diffopt ls for", {"format"}),
        ("diffopt copy quick", {"quickstart"}),
        ("diffopt help st", {"store"}),
        ("diffopt doctor ", set()),
        ("diffopt plan +recipe=qu", {"+recipe=quickstart"}),
        ("diffopt +recipe=emoji_int8_sq calib.al", {"calib.alpha="}),
        ("diffopt plan +recipe=emoji_int8_sq form", {"format.", "format="}),
        ("diffopt +recipe=", {f"+recipe={name}" for name in RECIPES}),
    ],
)
def test_the_shell_completes(shell, line, expected):
    said = shell("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert set(said.out.split()) == expected
    assert said.err == ""


def test_the_shell_is_offered_commands_and_recipes_at_first(shell):
    said = shell("-sc", "query=bash", COMP_LINE="diffopt ", COMP_POINT="8")
    assert {*COMMANDS, "+recipe="} <= set(said.out.split())


def test_completion_after_a_recipe_that_is_not_there_is_no_traceback(shell):
    said = shell("-sc", "query=bash", COMP_LINE="diffopt +recipe=no_such calib.al", COMP_POINT="32")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("calib.alpha=0.5", "SmoothQuant alone reads it"),
        ("calib.percentile=0.5", "the INT8 convolution of a UNet alone reads it"),
        ("calib.collect_method=min-mean", "the INT8 convolution of a UNet alone reads it"),
        ("format.block_size=32", "a format whose blocks can be chosen (int4_awq, w4a8_awq) alone reads it"),
        ("format.rank=8", "SVDQuant alone reads it"),
        ("format.rank_iterations=4", "SVDQuant alone reads it"),
        ("format.rounding=gptq", "a format of blocks (int4_awq, nvfp4, nvfp4_svdquant, or auto with nvfp4) alone reads it"),
        ("format.damping=0.1", "format.rounding=gptq alone reads it"),
        ("model.architecture=asset:emoji/emoji-flux", "a model with random weights alone reads it"),
    ],
)
def test_a_knob_without_effect_is_refused_with_the_reason(diffopt, override, reason):
    assert refused(diffopt("plan", "+recipe=emoji_fp8", override), override.partition("=")[0], "has no effect", reason)
