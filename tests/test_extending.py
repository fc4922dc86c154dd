"""A package of its own adds a part of every kind as diffopt/README.md says, and that page is true."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import other_packages
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import load_file
from test_plan import refused
from tiny import PROMPTS, bench, prompt_set
from tiny_unknown import aura_flow

from diffopt import formats
from diffopt.artifact import Artifact, CalibStats, Pipeline
from diffopt.caches import METHODS
from diffopt.cli.searchpath import bundled
from diffopt.errors import ConfigError, MetricError, PlanError
from diffopt.groups import GROUPS
from diffopt.groups.eval import RuntimeView
from diffopt.groups.validate import choose
from diffopt.jobs.plan import ENDS, wants
from diffopt.jobs.reach import unreached
from diffopt.metrics import METRICS
from diffopt.models import FAMILIES
from diffopt.runtimes import RUNTIMES
from diffopt.stage import Context, Stage, stage, stages

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tests" / "example_plugin"
ABOUT = tomllib.loads((PACKAGE / "pyproject.toml").read_text())
PAGE = (ROOT / "diffopt" / "README.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
BLOCKS = dict(re.findall(r"`([\w/.]+)`[^\n]*:\n```\w+\n(.*?)```", PAGE, re.DOTALL))
"""By the name of its file the code that the page shows."""
CHOICES = ["model=emoji_flux", "format=int6", "calib=emoji", "calib.n_steps=1", "calib.batch_size=2", "calib.chunk=2"]
CHOICES += ["eval=emoji", "eval.size=2", "eval.steps=4", "eval.latency=false", "cache=doubling", "headroom=whole"]


def install(site: Path, name: str, version: str, points: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a package besides its modules."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [[f"[{group}]", *(f"{k} = {v}" for k, v in of.items())] for group, of in points.items()]
    (info / "entry_points.txt").write_text("\n".join(line for lines in groups for line in lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the example is installed in, on nobody's path yet."""
    where = tmp_path_factory.mktemp("site")
    for package in ABOUT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(PACKAGE / package, where / package)
    install(where, ABOUT["project"]["name"], ABOUT["project"]["version"], ABOUT["project"]["entry-points"])
    return where


def diffopt(site: Path, where: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, in a process that the packages in `site` are installed for."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("DIFFOPT_", "HYDRA_"))}
    command = [sys.executable, *(["-c", code] if code else ["-m", "diffopt"]), *arguments]
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(command, cwd=where, env={**plain, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def ran(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that uses them."""
    where = tmp_path_factory.mktemp("run")
    done = diffopt(site, where, *CHOICES, "calib.size=2", "eval.metrics=[contrast]", "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    return where / "run"


# what it adds


@pytest.mark.parametrize("steps", [0, pytest.param(2, marks=pytest.mark.matrix)])
def test_its_family_goes_through_the_chain(site: Path, tmp_path: Path, steps: int) -> None:
    """Planned, and where there are steps, run."""
    torch.manual_seed(0)
    aura_flow().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red apple\nbanana\n")
    given = ["model.source=model", "model.dtype=float32", "model.height=32", "model.width=32", "model.max_sequence_length=16"]
    given += ["format=fp8", "calib=default", "calib.prompts=prompts.txt", "calib.size=2", f"calib.n_steps={steps or 2}"]
    given += [
        "eval=default",
        "eval.prompts=prompts.txt",
        "eval.size=2",
        "eval.steps=2",
        "eval.latency=false",
        "eval.metrics=[psnr]",
    ]
    done = diffopt(
        site, tmp_path, *([] if steps else ["plan"]), "model=aura_flow", *given, "export=onnx", "export.batch_size=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("PSNR" if steps else "export") in done.stdout


def test_its_metric_is_measured(ran):
    found = json.loads((ran / "score" / "metrics.json").read_text())["metrics"]["contrast"]
    red, green, blue = (
        np.stack([Image.open(ran / "sample" / f"{i:03}.png") for i in range(2)]).astype(float).transpose(3, 0, 1, 2)
    )
    assert found["values"] == pytest.approx((0.2126 * red + 0.7152 * green + 0.0722 * blue).std((1, 2)))
    assert found["title"] == "RMS contrast"


def test_its_cache_method_reuses_blocks_and_they_are_counted(ran):
    found = json.loads((ran / "sample" / "images.json").read_text())["cache"]
    assert (found["hits"], found["misses"]) == (6, 18)  # 8 blocks but the first and the last; of 4 steps the last
    assert found["computed"] < 0.9


def test_its_stage_stands_between_ours(ran):
    steps = {s["name"]: s["inputs"] for s in json.loads((ran / "run.json").read_text())["steps"]}
    assert steps["headroom"] == ["merge"]
    assert "headroom" in steps["quantize"]
    assert "merge" not in steps["quantize"]


def test_what_its_stage_makes_is_what_the_checkpoint_is_made_of(ran):
    before, after, taken = (load_file(ran / name / "extremes.safetensors") for name in ("merge", "headroom", "quantize"))
    assert before.keys() == after.keys()
    assert all(np.allclose(after[name], before[name] * 4 / 3) for name in before)
    assert taken
    assert all(np.array_equal(taken[name], after[name]) for name in taken)


def test_its_stage_of_a_kind_of_its_own_runs_for_its_own_sake(ran):
    found = json.loads((ran / "outliers" / "outliers.json").read_text())
    extremes = load_file(ran / "headroom" / "extremes.safetensors")
    assert found.keys() == extremes.keys()
    assert all(ratio >= 1 for ratio in found.values())
    run = json.loads((ran / "run.json").read_text())
    assert "outliers" in run["wanted"]
    assert next(s["inputs"] for s in run["steps"] if s["name"] == "outliers") == ["headroom"]


def test_the_doctor_has_nothing_to_say_of_its_stages(site, tmp_path):
    assert "stages:" not in diffopt(site, tmp_path, "doctor").stdout


def test_its_format_is_what_the_layers_have(ran):
    head = json.loads((ran / "quantize" / "checkpoint.json").read_text())
    assert head["format"] == "int6"
    assert head["weight_bits"] == 6
    assert len(head["layers"]) > 10
    assert {"num_bits": 6, "axis": 0} in [rule.get("cfg") for rule in head["rules"]]
    assert json.loads((ran / "sample" / "images.json").read_text())["simulated"] is True


REFUSED = {
    "export=onnx": "export: no graph holds the weights of int6 (got int6); choose another format, or no export",
    "export=huggingface": "export: no layout is known here of int6, another package's format (got huggingface); choose no",
    "eval.runtime=native": "eval.runtime: native has no kernels for int6 (got native); set eval.runtime=torch",
    "headroom.share=2": "headroom.share: must be less than or equal to 1 (got 2); lower it",
    "headroom=hole": "headroom: no such option (got 'hole'); there are whole",
    "headroom.chair=2": "headroom.chair: no such key here (got 2); there are share",
    "calib.collect_method=min-mean": "headroom: nothing in this plan reads it (got headroom=...)",
}
ALL = """
import contextlib, io, json, sys
from diffopt.cli.main import main
said = []
for given in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as caught, contextlib.suppress(SystemExit):
        main(["plan", *given])
    said.append(caught.getvalue())
print(json.dumps(said))
"""


def test_what_its_parts_cannot_do_is_refused_in_the_plan(site, tmp_path):
    said = diffopt(site, tmp_path, json.dumps([[*CHOICES, given] for given in REFUSED]), code=ALL).stdout
    for line, found in zip(REFUSED.values(), json.loads(said.splitlines()[-1]), strict=True):
        assert line in found


PLAIN = """
from diffopt.artifact import Checkpoint
from diffopt.runtimes import Runtime
from diffopt.runtimes.torch import opened as torch_opened

calls = []
RUNTIME = Runtime("plain", Checkpoint, frozenset({None}), simulates=True, probes=(), module="plain_runtime")


def opened(ctx, pipeline, subject, *, texts, **options):
    calls.append(subject)
    return torch_opened(ctx, pipeline, subject, texts=texts)
"""


def test_a_runtime_of_another_package_draws_and_its_name_is_known(tmp_path, monkeypatch):
    install(tmp_path, "a-plug-in", "1.2", {"diffopt.runtimes": {"plain": "plain_runtime:RUNTIME"}})
    (tmp_path / "plain_runtime.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    own = bench()
    view = RuntimeView(prompts=prompt_set(PROMPTS[:2]), batch_size=2, steps=1, runtime="plain")
    with RUNTIMES["plain"].running(own.context(), own.pipeline(), None, None, texts=False) as run:
        assert run.pipe.transformer is not None
    assert import_module("plain_runtime").calls == [None]
    assert view.runtime == "plain"
    with pytest.raises(ValidationError, match="is not a runtime that is installed; did you mean plain"):
        RuntimeView(prompts=prompt_set(PROMPTS[:2]), batch_size=2, steps=1, runtime="plane")


def test_its_stage_and_group_are_not_there_where_the_group_is_not_chosen(site, tmp_path):
    planned = diffopt(site, tmp_path, "plan", *CHOICES[:-1]).stdout
    assert "merge" in planned
    assert "headroom" not in planned
    listed = diffopt(site, tmp_path, "ls", "headroom", "format").stdout
    assert "whole" in listed
    assert "int6" in listed


def test_its_metric_is_listed_among_ours(site, tmp_path):
    said = diffopt(site, tmp_path, "plan", *CHOICES, "eval.metrics=[nothing]").stderr
    assert f"there are {', '.join(METRICS)}, contrast" in said


def test_nothing_of_it_is_there_where_it_is_not_installed():
    assert "contrast" not in [*METRICS]
    assert "doubling" not in [*METHODS]
    assert "headroom" not in [s.name for s in stages()]


def test_where_a_package_like_it_is_installed_the_tests_find_our_own_parts_alone(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    assert other_packages.others() == ["diffopt-example"]
    assert "contrast" in [*METRICS]
    monkeypatch.setattr(sys, "path", [*sys.path])
    other_packages.hide(tmp_path)
    assert other_packages.others() == []
    assert "contrast" not in [*METRICS]
    assert "doubling" not in [*METHODS]
    assert "headroom" not in [s.name for s in stages()]
    asked = [sys.executable, "-c", "from diffopt.metrics import METRICS; print(*METRICS)"]
    assert subprocess.run(asked, capture_output=True, text=True).stdout.split() == [*METRICS]


# a package at fault

FAULTS = {
    "os:nothing": "(got AttributeError: module 'os' has no attribute 'nothing')",
    "nowhere:x": "(got ModuleNotFoundError: No module named 'nowhere')",
    "os:getcwd": "(got a builtin_function_or_method)",
}


@pytest.mark.parametrize("point", FAULTS)
@pytest.mark.parametrize(
    ("group", "name", "use", "error"),
    [
        ("diffopt.stages", "26_bad", stages, PlanError),
        ("diffopt.metrics", "bad", lambda: METRICS["bad"], MetricError),
        ("diffopt.caches", "bad", lambda: METHODS["bad"], ConfigError),
        ("diffopt.models", "bad", lambda: FAMILIES["bad"], PlanError),
        ("diffopt.formats", "bad", lambda: formats.METHODS["bad"], ConfigError),
        ("diffopt.runtimes", "bad", lambda: RUNTIMES["bad"], ConfigError),
        ("diffopt.groups", "bad", lambda: GROUPS["bad"], ConfigError),
    ],
)
def test_a_package_that_cannot_be_used_is_named(tmp_path, monkeypatch, group, name, use, error, point):
    install(tmp_path, "a-plug-in", "1.2", {group: {name: point}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=re.escape(FAULTS[point])) as caught:
        use()
    assert f"{point} of a-plug-in 1.2 " in str(caught.value)


@pytest.mark.parametrize(("name", "reason"), [("bad", "not called PLACE_NAME"), ("26_merge", "two are called merge")])
def test_a_stage_that_has_no_place_or_the_name_of_another_is_refused(tmp_path, monkeypatch, name, reason):
    install(tmp_path, "a-plug-in", "1.2", {"diffopt.stages": {name: "diffopt.stages.merge:merge"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PlanError, match=f"{reason}.*a-plug-in 1.2|a-plug-in 1.2.*{reason}"):
        stages()


def test_a_metric_of_another_name_than_its_entry_point_is_refused(tmp_path, monkeypatch):
    install(tmp_path, "a-plug-in", "1.2", {"diffopt.metrics": {"other": "diffopt.metrics.psnr:METRIC"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MetricError, match=r"a-plug-in 1\.2 .*got 'psnr'"):
        METRICS["other"]


# what a stage of another package can make


class Note(Artifact):
    kind = "note"


class Echo(Artifact):
    kind = "echo"


@stage(version=1, when="calib")
def note(ctx: Context, pipeline: Pipeline) -> Note: ...


@stage(version=1, when="calib")
def noted(ctx: Context, note: Note, stats: CalibStats) -> CalibStats: ...


def beside(*added: Stage, after: str = "merge") -> list[Stage]:
    """Our stages and others' behind one of them."""
    ours = stages()
    place = [s.name for s in ours].index(after) + 1
    return [*ours[:place], *added, *ours[place:]]


@pytest.mark.parametrize(("added", "expected"), [([note, noted], {"note", "noted"}), ([note], set())])
def test_a_kind_of_its_own_is_made_where_another_stage_takes_it(plan, added, expected):
    made = plan("model=emoji_flux", "format=int8", "calib=emoji", installed=beside(*added))
    assert {"note", "noted"} & {s.name for s in made.steps} == expected


@stage(version=1, when="eval", asked=lambda choices: choices.eval is not None and choices.eval.size > 2)
def remark(ctx: Context, pipeline: Pipeline) -> Note: ...


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["eval=emoji"], ["metrics", "note"]), (["eval=emoji", "eval.size=2"], ["metrics"]), (["export=onnx"], ["onnx"])],
)
def test_a_stage_says_which_choices_ask_for_it(plan, given, expected):
    made = plan("model=emoji_flux", "format=int8", "calib=emoji", *given, installed=beside(remark))
    assert [s.kind for s in made.wanted if s.kind != "latency"] == expected


@stage(version=1, asked=lambda choices: True)
def always(ctx: Context, pipeline: Pipeline) -> Note: ...


def test_a_plan_may_end_in_it_alone(plan):
    assert [s.name for s in plan("model=emoji_flux", installed=beside(always)).wanted] == ["always"]


def test_what_a_stage_asks_for_and_cannot_have_is_refused(plan):
    @stage(version=1, asked=lambda choices: True)
    def eager(ctx: Context, stats: CalibStats) -> Note: ...

    (line,) = refused(plan, "model=emoji_flux", "export=onnx", installed=beside(eager))
    assert line == "eager: needs a calib-stats (got no calib); choose calib=OPTION"


# what no plan comes to


@stage(version=1, when="calib")
def early(ctx: Context, pipeline: Pipeline) -> CalibStats: ...


@stage(version=1, when="calib", only=lambda choices: False)
def sometimes(ctx: Context, pipeline: Pipeline) -> CalibStats: ...


@stage(version=1, when="calib", asked=lambda choices: True)
def reader(ctx: Context, note: Note) -> Echo: ...


UNREACHED = "which no stage takes and nothing asks for; give it `asked`, or a stage that takes it"


@pytest.mark.parametrize(
    ("added", "after", "said"),
    [
        ([], "merge", {}),
        ([note], "merge", {"note": f"makes a note, {UNREACHED}"}),
        ([note, noted], "merge", {}),
        ([remark], "merge", {}),
        (
            [early],
            "record",
            {"early": "makes a calib-stats, and so does merge after it, which is taken; let merge take its calib-stats"},
        ),
        ([sometimes], "merge", {}),
        ([reader], "merge", {"reader": "takes a note, which no stage before it makes; install one, or give it a later place"}),
    ],
    ids=["ours", "no taker", "taker", "asked", "hidden", "only", "lacking"],
)
def test_a_stage_that_no_plan_can_come_to_is_found(added, after, said):
    assert unreached(beside(*added, after=after)) == said


def test_the_doctor_names_an_installed_stage_that_never_runs_with_its_package(tmp_path):
    (tmp_path / "lonely.py").write_text(
        "from diffopt.artifact import Artifact, Pipeline\n"
        "from diffopt.stage import Context, stage\n\n\n"
        "class Note(Artifact):\n    kind = 'note'\n\n\n"
        "@stage(version=1, when='calib')\n"
        "def lonely(ctx: Context, pipeline: Pipeline) -> Note: ...\n"
    )
    install(tmp_path, "a-plug-in", "1.2", {"diffopt.stages": {"26_lonely": "lonely:lonely"}})
    said = diffopt(tmp_path, tmp_path, "doctor")
    assert said.returncode == 0
    assert f"stages: lonely never runs (got lonely:lonely of a-plug-in 1.2): it makes a note, {UNREACHED}" in said.stdout


def test_the_doctor_names_a_package_whose_stage_cannot_be_loaded(tmp_path):
    install(tmp_path, "a-plug-in", "1.2", {"diffopt.stages": {"26_bad": "nowhere:x"}})
    said = diffopt(tmp_path, tmp_path, "doctor")
    assert "stages: nowhere:x of a-plug-in 1.2 cannot be loaded" in said.stdout


@pytest.mark.parametrize("option", sorted(p.stem for p in (bundled("conf") / "export").glob("*.yaml")))
def test_a_kind_that_an_option_asks_for_is_known_as_such(config, option):
    chosen = choose(config("model=emoji_flux", "format=int8_sq", "calib=emoji", f"export={option}"))
    assert {*wants(chosen)[0]} <= {*ENDS}


def test_the_page_has_every_kind_that_an_option_asks_for():
    told = PROSE.split("ours ask for")[1].split(". A stage")[0]
    assert {*re.findall(r"`(\w+)`", told)} == {kind.__name__ for kind in ENDS}


# the page


def public() -> dict[str, list[str]]:
    """By module what the page says that it has."""
    rows = [line.split("|")[1:3] for line in PROSE.splitlines() if line.startswith("| `diffopt.")]
    return {m: re.findall(r"`(\w+)`", names) for modules, names in rows for m in re.findall(r"`([\w.]+)`", modules)}


def test_the_page_shows_all_code_of_the_example():
    files = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".toml", ".yaml") and p.stat().st_size]
    assert {*BLOCKS} == {p.relative_to(PACKAGE).as_posix() for p in files}
    for path in files:
        shown = BLOCKS[path.relative_to(PACKAGE).as_posix()]
        rest = path.read_text().removesuffix(shown)
        assert rest != path.read_text(), f"{path.name} is not what the page shows"
        if path.suffix == ".py":
            assert all(isinstance(x, ast.Expr) for x in ast.parse(rest).body), (
                f"{path.name} has code that the page does not show"
            )
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_everything_that_the_page_names_is_there():
    surface = public()
    assert surface.keys() > {"diffopt.metrics", "diffopt.caches", "diffopt.stage", "diffopt.artifact", "diffopt.view"}
    modules = {name: import_module(name) for name in re.findall(r"`(diffopt(?:\.\w+)+)`", PROSE)}
    together: dict[str, Any] = {}
    for name in surface:
        together |= vars(modules[name])
    assert not {n for names in surface.values() for n in names} - together.keys()
    named = re.findall(r"`([A-Z][a-z]\w*)(?:\.(\w+))?`", PROSE)
    assert len(named) > 50
    for name, member in named:
        assert name in together, name
        of = together[name]
        has = {*dir(of)}.union(*(vars(c).get("__annotations__", ()) for c in of.__mro__))
        assert not member or member in has, f"{name}.{member}"


def test_the_example_imports_no_more_than_the_page_names():
    surface = public()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("diffopt."):
                assert {a.name for a in node.names} <= {*surface[str(node.module)]}, f"{path.name}: {node.module}"
            if isinstance(node, ast.Import):
                assert not [a for a in node.names if a.name.startswith("diffopt")]


def test_the_page_has_our_stages_with_their_places():
    ours = {p.name for p in entry_points(group="diffopt.stages") if p.value.startswith("diffopt.stages.")}
    listed = PROSE.split("Ours are ")[1].split(".")[0].split()
    assert listed == sorted(ours)


def test_the_page_has_every_probe(fixed_probes):
    told = PROSE.split("and its `probes`:")[1].split(". Other")[0]
    assert {*re.findall(r"`(\w+)`", told)} == fixed_probes.keys()
