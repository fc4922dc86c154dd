"""How large a function may be: one that takes or does more lacks a noun, which a type of its own would say."""

import ast
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest
from test_rooms import MODULES

LINES = 60
"""Of a function with its signature, without its docstring."""
PARAMETERS = 8
"""Without `self`, `cls` and the context of a stage."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines(function: Function) -> int:
    whole = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return whole
    doc = function.body[0]
    return whole - (doc.end_lineno - doc.lineno + 1)


def parameters(function: Function) -> int:
    given = function.args
    named = [p.arg for p in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([n for n in named if n not in ("self", "cls", "ctx")]) + bool(given.vararg) + bool(given.kwarg)


def is_stage(function: Function) -> bool:
    """Its parameters declare what a stage reads and takes: there are as many as there are of those."""
    return any(
        isinstance(d, ast.Call) and isinstance(d.func, ast.Name) and d.func.id == "stage" for d in function.decorator_list
    )


def is_kernel(function: Function) -> bool:
    """A GPU's function takes addresses and lengths one by one."""
    return any(isinstance(d, ast.Attribute) and ast.unparse(d) == "triton.jit" for d in function.decorator_list)


def too_large(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        if (many := lines(node)) > LINES:
            yield f"{node.name} has {many} lines"
        if (many := parameters(node)) > PARAMETERS and not (is_stage(node) or is_kernel(node)):
            yield f"{node.name} takes {many} parameters"


@pytest.mark.parametrize("module", sorted(MODULES), ids=str)
def test_a_function_is_short_and_takes_few_parameters(module: str) -> None:
    path: Path = MODULES[module]
    assert not [*too_large(path.read_text())], f"{path}: find the noun that groups what belongs together"


def written(names: str, body: int = 1, before: str = "") -> str:
    return f"{before}def f({names}):\n" + "    '''What\n\n    it does.'''\n" + "    x = 1\n" * body


def test_what_is_too_large_is_found_wherever_it_stands() -> None:
    eight, nine = ("a, b, c, d, e, f, g" + rest for rest in (", h", ", *, h, i"))
    assert not [*too_large(written(f"self, ctx, {eight}", LINES - 1))]
    assert [*too_large(written(eight, LINES))] == [f"f has {LINES + 1} lines"]
    assert [*too_large(written(nine))] == ["f takes 9 parameters"]
    assert [*too_large(written("a, b, c, d, e, f, g, *h, **i"))] == ["f takes 9 parameters"]
    assert [*too_large("class A:\n" + indent(written(nine), "    "))] == ["f takes 9 parameters"]
    assert not [*too_large(written(nine, before="@stage(version=1)\n"))]
    assert not [*too_large(written(nine, before="@triton.jit\n"))]
    assert [*too_large(written(nine, LINES, before="@stage(version=1)\n"))] == [f"f has {LINES + 1} lines"]
    assert [*too_large(written(nine, before="@cache\n"))] == ["f takes 9 parameters"]
