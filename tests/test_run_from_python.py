"""`diffopt.run`: what the command line runs and refuses, from Python, with nothing left behind in the process."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from manual import page
from omegaconf.basecontainer import BaseContainer
from test_progress import LINE

import diffopt
from diffopt.cli.call import override
from diffopt.cli.main import main
from diffopt.errors import ConfigError, DiffoptError
from diffopt.report.outcome import Outcome

SMALL = {
    "calib.size": 2,
    "calib.chunk": 2,
    "calib.batch_size": 2,
    "calib.n_steps": 1,
    "eval.size": 2,
    "eval.steps": 2,
    "eval.latency": False,
}

NOTEBOOK = """
import asyncio, io, json, logging, os, sys
import hydra, omegaconf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

with open("conf.yaml", "w") as f:
    f.write("a: 1\\n")
with hydra.initialize_config_dir(os.getcwd(), version_base="1.3"):  # the notebook's own use of it
    own = GlobalHydra.instance().hydra
    before = {k: v for k, v in Singleton._instances.items()}
    variables, here = dict(os.environ), os.getcwd()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    handlers = [*logging.getLogger().handlers]
    level = logging.getLogger("diffopt").level

    import diffopt
    assert "torch" not in sys.modules
    from diffopt.machine import progress
    progress.EVERY = 0.02

    class Cell(io.StringIO):  # a notebook's output has no file descriptor
        isatty = lambda self: False

    async def cell():  # which runs within a loop
        return diffopt.run("emoji_int8_sq", json.loads(sys.argv[1]))

    shell, sys.stdout = sys.stdout, Cell()
    found = asyncio.run(cell())
    said, sys.stdout = sys.stdout.getvalue(), shell
    assert GlobalHydra.instance().hydra is own
    assert hydra.compose("conf").a == 1
    assert {k: v for k, v in Singleton._instances.items() if k in before} == before
    assert not omegaconf.OmegaConf.has_resolver("diffopt.jobs")
    assert {k for k, _ in dict(os.environ).items() ^ variables.items()} <= {"TORCHINDUCTOR_CACHE_DIR"}  # which torch sets
    assert os.getcwd() == here
    assert logging.getLogger().handlers == handlers and logging.getLogger("diffopt").level == level
    assert logging.getLogger("diffopt").handlers == [] and logging.getLogger("diffopt").propagate
from diffopt.jobs.runner import _held
assert _held._value is None  # no model stays in memory
print(json.dumps({
    "said": said, "text": str(found), "report": str(found.report), "directory": str(found.directory),
    "artifacts": {k: str(v) for k, v in found.artifacts.items()},
    "psnr": found.metrics["psnr"].candidate.mean, "speedup": found.speedup,
}))
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_in_a_notebook_returns_what_was_made_and_leaves_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"calib.alpha": 0.5, **SMALL}
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, json.dumps(given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    run = Path(found["directory"])
    assert run.parent == tmp_path / "outputs/runs/emoji_int8_sq"
    assert [Path(found["report"]).is_file(), (run / "diffopt.log").stat().st_size > 0] == [True, True]
    kept = json.loads((run / "run.json").read_text())
    assert found["artifacts"] == {
        s["name"]: str(tmp_path / "outputs/store" / s["kind"] / s["fingerprint"]) for s in kept["steps"]
    }
    assert found["psnr"] == json.loads((run / "score/metrics.json").read_text())["metrics"]["psnr"]["candidate"]["mean"]
    assert found["speedup"] is None
    lines = [x for x in found["said"].splitlines() if not LINE.fullmatch(x)]
    assert [line.split()[0] for line in lines][:10] == ["memory", *(s["name"] for s in kept["steps"])]
    going = {m.groups()[:3] for x in found["said"].splitlines() if (m := LINE.fullmatch(x))}
    assert ("load", None, None) in going  # a step that counts nothing
    assert any(total for _, _, total in going)  # and one that does
    assert lines[-1].startswith("report  outputs/runs/emoji_int8_sq/")
    assert ":diffopt:" not in done.stderr  # the caller's handlers get none of it twice
    main(["plan", "+recipe=emoji_int8_sq", *(override(k, v) for k, v in given.items())])  # the same run to the command line
    assert "9 steps, 0 to run" in capsys.readouterr().out
    again = diffopt.run("emoji_int8_sq", given, quiet=True)
    assert isinstance(again, Outcome)
    assert again.artifacts == {k: Path(v) for k, v in found["artifacts"].items()}
    assert capsys.readouterr().out == ""
    (code,) = page("recipes/README.md").blocks("python")  # as it stands, but for the recipe, which is in the store
    code = code.replace("quickstart", "emoji_int8_sq").replace('{"calib.alpha": 0.5}', repr(given))
    exec(code, {})
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == f"{again.artifacts['quantize']} {again.metrics['psnr'].candidate.mean}"
    assert Path(said[-1]).is_file()


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("quickstrat", {}),
    ("quickstart", {"calib.alpha": 1.5, "calib.size": 0}),
    ("quickstart", {"calib.alhpa": 0.5}),
    ("quickstart", {"format": "int9"}),
    ("quickstart", {"format": 8}),
    ("quickstart", {"format": "fp8"}),
    ("quickstart", {"calib": None}),
    ("quickstart", {"eval.metrics": "psnr"}),
    ("quickstart", {"model.source": "/no/such/model"}),
    ("emoji_int8_sq", {"store": "${no.such}"}),
    ("emoji_int8_sq", {"store": "file/store"}),
    ("emoji_int8_sq", {"hydra.run.dir": "file/run"}),
    ("emoji_fp8", {"calib.alpha": 0.5}),
    ("broken", {}),
]


@pytest.mark.parametrize(("recipe", "overrides"), REFUSED, ids=str)
def test_what_the_command_refuses_is_refused_with_the_same_words(
    recipe: str, overrides: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    Path("recipes").mkdir()
    Path("recipes/broken.yaml").write_text("# @package _global_\ncalib: [\n")
    there = {*Path().rglob("*")}
    with pytest.raises(diffopt.DiffoptError) as caught:
        diffopt.run(recipe, overrides)
    made = {*Path().rglob("*")} - there
    assert not [p for p in made if p.parts[:2] != ("outputs", "store") and not p.is_dir()]
    assert not [*Path().glob("outputs/runs/*")]
    if not {"hydra.run.dir", "store"} & {*overrides} or "$" in str(overrides):  # of which a plan makes nothing
        with pytest.raises(SystemExit):
            main(["plan", f"+recipe={recipe}", *(override(k, v) for k, v in overrides.items())])
        assert capsys.readouterr().err.strip() == str(caught.value)
    assert "; " in str(caught.value)


def test_a_refused_run_leaves_the_process_as_it_was() -> None:
    log = logging.getLogger("diffopt")
    GlobalHydra.instance()

    def state() -> tuple[Any, ...]:
        return (
            Singleton._instances,
            {**Singleton._instances},
            {**BaseContainer._resolvers},
            GlobalHydra.instance().is_initialized(),
            [*logging.getLogger().handlers],
            [*log.handlers],
            (log.level, log.propagate),
            {**os.environ},
            Path.cwd(),
        )

    before = state()
    for overrides in ({"calib.alpha": 1.5}, {"format": "int9"}):
        with pytest.raises(DiffoptError):
            diffopt.run("quickstart", overrides)
    after = state()
    assert before[0] is after[0]
    assert before[1:] == after[1:]


def test_a_sweep_is_refused_and_what_is_advised_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"the recipe sweeps \(got \+recipe=emoji_int8_grid\); set \{'hydra\.mode': 'RUN'\}"):
        diffopt.run("emoji_int8_grid")
    with pytest.raises(ConfigError, match=r"^calib\.alpha: .* \(got 7\)"):  # of the single job
        diffopt.run("emoji_int8_grid", {"hydra.mode": "RUN", "calib.alpha": 7})


def test_options_of_a_directory_of_ones_own_are_taken(tmp_path: Path) -> None:
    (tmp_path / "own/recipe").mkdir(parents=True)
    (tmp_path / "own/recipe/mine.yaml").write_text("# @package _global_\ndefaults: [quickstart]\ncalib: {alpha: 7}\n")
    with pytest.raises(ConfigError, match=r"calib\.alpha: .*\(got 7\)"):
        diffopt.run("mine", config_dir=tmp_path / "own")
    with pytest.raises(ConfigError, match=r"config_dir: is not a directory \(got 'nowhere'\)"):
        diffopt.run("mine", config_dir="nowhere")
    with pytest.raises(ConfigError, match="no such option"):
        diffopt.run("mine")


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("calib.alpha", 0.5, 0.5),
        ("calib.alpha", 1e-07, 1e-07),
        ("calib.size", 8, 8),
        ("calib.size", np.int64(8), 8),
        ("calib.alpha", np.float32(0.5), 0.5),
        ("eval.latency", True, True),
        ("eval.latency", np.bool_(False), False),
        ("model.scheduler", None, None),
        ("calib.prompts", "a, b: 'c' {d} \"e\" \\ f=g.txt", "a, b: 'c' {d} \"e\" \\ f=g.txt"),
        ("calib.prompts", "", ""),
        ("calib.prompts", "8", "8"),
        ("calib.prompts", PurePosixPath("x/y.txt"), "x/y.txt"),
        ("eval.metrics", ["psnr", "ssim"], ["psnr", "ssim"]),
        ("format.exclude", (), []),
        ("model.lora", [{"path": "a b.safetensors", "scale": 0.9}], [{"path": "a b.safetensors", "scale": 0.9}]),
        ("eval.gates", {"psnr": 40, "clip": "-0.5%"}, {"psnr": 40, "clip": "-0.5%"}),
        ("+format", "fp8", "fp8"),
    ],
    ids=str,
)
def test_a_value_is_written_as_the_command_line_reads_it(key: str, value: Any, read: Any) -> None:
    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {str(k): plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list) else getattr(x, "text", x)

    parsed = OverridesParser.create().parse_override(override(key, value))
    assert (parsed.key_or_group, plain(parsed.value())) == (key.lstrip("+"), read)
    assert type(plain(parsed.value())) is type(read)


@pytest.mark.parametrize("given", [{"calib.alpha": {1j}}, {3: 4}, {"": 1}, ["calib.alpha=0.5"]], ids=str)
def test_what_is_no_override_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"\(got .+\); "):
        diffopt.run("quickstart", given)


def test_importing_diffopt_loads_neither_hydra_nor_torch() -> None:
    code = "import sys, diffopt; diffopt.run; print(*{'torch', 'hydra', 'pydantic', 'diffusers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
    code = "import sys, diffopt; diffopt.DiffoptError; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
