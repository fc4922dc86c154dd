"""A checkout that is not installed, or run where another version is: said, with what to do. Processes of their own, in which
every library but diffopt is installed."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from test_extending import install

from diffopt.machine import installation

ROOT = installation.CODE.parent
OURS = {p.name: p.value for p in entry_points(group="diffopt.stages") if p.value.startswith("diffopt.")}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of links to all that is installed but diffopt."""
    where = tmp_path_factory.mktemp("libraries")
    for folder in (Path(p) for p in sys.path if Path(p).name.endswith("-packages")):
        for entry in folder.iterdir():
            if not entry.name.lower().startswith(("diffopt", "_diffopt")) and not (where / entry.name).exists():
                (where / entry.name).symlink_to(entry)
    return where


def diffopt(libraries: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m diffopt` of this checkout, with these libraries and what is installed in `site`, and nothing else."""
    path = os.pathsep.join(map(str, (ROOT, site, libraries)))
    call = [sys.executable, "-S", "-m", "diffopt", *arguments]
    return subprocess.run(call, cwd=site, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_a_checkout_that_is_not_installed_is_told_so_and_how_to_install_it(libraries: Path, tmp_path: Path) -> None:
    said = diffopt(libraries, tmp_path, "plan", "+recipe=emoji_fp8", "export=onnx")
    line = (
        f"diffopt: is not installed, so it has no stages (got the code in {installation.CODE} alone); "
        f"pip install --editable {ROOT}\n"
    )
    assert (said.returncode, said.stdout, said.stderr) == (1, "", line)
    doctor = diffopt(libraries, tmp_path, "doctor")
    assert line in doctor.stdout
    assert f"code      {installation.CODE}\n" in doctor.stdout


def test_an_older_installation_is_told_by_the_stages_that_differ(libraries: Path, tmp_path: Path) -> None:
    older = {name: value for name, value in OURS.items() if name not in ("15_embed", "85_compare")}
    install(tmp_path, "diffopt", "0.0.1", {"diffopt.stages": older | {"12_tune": "diffopt.stages.tune:tune"}})
    said = diffopt(libraries, tmp_path, "plan", "+recipe=emoji_fp8", "export=onnx")
    line = (
        f"diffopt: another version is installed than the code in {installation.CODE} (got that of {tmp_path / 'diffopt'}: "
        f"it lacks the stages compare, embed and has tune, which this code has not); pip install --editable {ROOT}\n"
    )
    assert (said.returncode, said.stdout, said.stderr) == (1, "", line)


def test_another_checkouts_installation_with_the_same_stages_plans_and_the_doctor_tells(
    libraries: Path, tmp_path: Path
) -> None:
    install(tmp_path, "diffopt", "0.1.0", {"diffopt.stages": OURS})
    (info,) = tmp_path.glob("*.dist-info")
    (info / "direct_url.json").write_text('{"url": "file:///elsewhere/a%20b", "dir_info": {"editable": true}}')
    said = diffopt(libraries, tmp_path, "plan", "+recipe=emoji_fp8", "export=onnx")
    assert (said.returncode, said.stderr) == (0, "")
    line = f"code      {installation.CODE}, not what is installed: /elsewhere/a b/diffopt\n"
    assert line in diffopt(libraries, tmp_path, "doctor").stdout


def test_only_our_own_stages_must_be_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "installed", lambda: installation.CODE)
    points = [*entry_points(group="diffopt.stages"), EntryPoint("45_mine", "mine.stages:mine", "diffopt.stages")]
    assert installation.flaw(points) is None
    assert "(got an older one: it lacks the stage observe); " in str(installation.flaw(p for p in points if p.name[:2] != "20"))
