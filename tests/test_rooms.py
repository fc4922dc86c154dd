"""Where things are: each package of diffopt holds one subject, and imports only from packages below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffopt

ROOT = Path(diffopt.__file__).parent
LOOSE = 10
"""Modules that may stand beside the packages, without `__init__` and `__main__`."""

FLOORS = """
errors
files
text artifact schema
registry machine store
data formats
models metrics
quality
caches
cachify groups
view
stage
pipeline
quantization
graph kernels training finding
layouts runtimes
tuning
stages report
shipping
jobs
sweep
race
cli
__main__
""".strip().splitlines()
"""From the ground up: what stands in a line imports from the lines above alone, and not from its neighbours."""

FLOOR = {room: i for i, line in enumerate(FLOORS) for room in line.split()}


def modules() -> dict[str, Path]:
    """By dotted name, without the embedded models' own scripts."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "assets":
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Modules of diffopt that a module's code imports anywhere in it: at its top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("diffopt").lstrip(".") for a in node.names if a.name.split(".")[0] == "diffopt")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this test does not read"
            if node.module and node.module.split(".")[0] == "diffopt":
                base = node.module.removeprefix("diffopt").lstrip(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".lstrip(".")
                    yield inner if inner in MODULES else base


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_package_has_its_place_on_a_floor():
    assert {room(m) for m in MODULES} - {""} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m), ids=str)
def test_imports_run_downwards_lazy_ones_included(module):
    up = [m for m in imported(MODULES[module]) if m and room(m) != room(module) and FLOOR[room(m)] >= FLOOR[room(module)]]
    assert not up, f"{module} imports {up}, which is not below it; move one of them"


def test_few_modules_stand_loose_and_every_package_says_what_it_holds():
    loose = [p.stem for p in ROOT.glob("*.py") if not p.stem.startswith("__")]
    assert len(loose) <= LOOSE, sorted(loose)
    for path in ROOT.rglob("__init__.py"):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, f"{path} does not say what its package holds"
        assert len(doc.splitlines()[0]) < 128
