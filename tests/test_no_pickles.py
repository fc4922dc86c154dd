"""Nothing that is read can run: no pickle is loaded but by torch's reader of weights alone."""

import ast
from pathlib import Path

import pytest

import diffopt

ROOT = Path(diffopt.__file__).parent
MODULES = [p for p in sorted(ROOT.rglob("*.py")) if "assets" not in p.relative_to(ROOT).parts]
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {"load_state", "register_for_checkpointing", "load_accelerator_state", "load_custom_state", "read_pickle"}


def faults(code: str) -> list[str]:
    """What in a module's code reads a pickle."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).partition(".")[0] in UNPICKLERS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole, name = ast.unparse(node.func), node.func.attr
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            unsafe = whole == "torch.load" and given.get("weights_only") != "True"
            if unsafe or name in LOADERS or given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
                found.append(whole)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "accelerator.load_state(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_grep_finds_what_reads_pickles(code: str) -> None:
    assert faults(code)


def test_no_module_reads_a_pickle() -> None:
    assert len(MODULES) > 200
    assert {p: found for p in MODULES if (found := faults(p.read_text(encoding="utf-8")))} == {}
