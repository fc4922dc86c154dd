"""Numbers that follow from the size of a backbone call, as arithmetic in text: `batch`, `height / 8`, `77 + text`."""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from math import prod
from typing import Any

from diffopt.models.family import Size

NAMES = ("batch", "height", "width", "text", "frames")
"""The fields of a Size."""
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
Number = int | float


def evaluated(expression: str | int, size: Size) -> int:
    """Raises ValueError for what is no arithmetic of NAMES and numbers, or gives no whole number."""
    if isinstance(expression, int):
        return expression
    try:
        found = _value(ast.parse(expression, mode="eval").body, asdict(size))
    except (SyntaxError, ZeroDivisionError):
        raise ValueError(f"is no arithmetic of {', '.join(NAMES)} (got {expression!r}); write such as 'height / 8'") from None
    if found.denominator != 1:
        raise ValueError(f"{expression} is no whole number at {size} (got {found}); mend it, or change the size")
    return int(found)


def _value(node: ast.expr, names: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        found = OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
        assert isinstance(found, Fraction)
        return found
    if isinstance(node, ast.Name) and node.id in names:
        return Fraction(names[node.id])
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    raise ValueError(f"is no arithmetic of {', '.join(NAMES)} (got {ast.unparse(node)!r}); write such as 'height / 8'")


def fitted(values: Sequence[int], sizes: Sequence[Size]) -> str | int | None:
    """The arithmetic that gives all `values` at these sizes; None where none of the forms below does.

    The first size is the base; for each name that matters there is one that differs from it in that name alone. Forms are a
    constant, and a product of names times a factor plus a constant, beside which there may be a multiple of `text`.
    """
    known = [{k: Fraction(v) for k, v in asdict(s).items()} for s in sizes]
    given = [Fraction(v) for v in values]
    names = [n for n in NAMES if any(v != given[0] for v, k in zip(given, known, strict=True) if _alone(n, k, known[0]))]
    if not names:
        return int(given[0]) if len({*given}) == 1 else None
    forms = [names] if "text" not in names or len(names) == 1 else [names, [n for n in names if n != "text"]]
    for factors in forms:
        found = _form(factors, names, given, known)
        if found and all(_exact(found, s) == v for v, s in zip(values, sizes, strict=True)):
            return found
    return None


def _exact(expression: str, size: Size) -> Fraction:
    return _value(ast.parse(expression, mode="eval").body, asdict(size))


def _alone(name: str, one: Mapping[str, Fraction], base: Mapping[str, Fraction]) -> bool:
    return [n for n in NAMES if one[n] != base[n]] == [name]


def _form(
    factors: Sequence[str], names: Sequence[str], given: Sequence[Fraction], known: Sequence[Mapping[str, Fraction]]
) -> str | None:
    """factor x product of `factors` + constant, and of what else of `names` there is a multiple."""
    base = known[0]
    single = {n: i for n in names for i, k in enumerate(known) if _alone(n, k, base)}
    beside = {n: (given[single[n]] - given[0]) / (known[single[n]][n] - base[n]) for n in names if n not in factors}
    rest = [v - sum(beside[n] * k[n] for n in beside) for v, k in zip(given, known, strict=True)]
    shift = Fraction(0)
    if "frames" in factors and len(factors) > 1:  # (frames + shift) latent frames, times the others
        i = single["frames"]
        if rest[i] == rest[0]:
            return None
        shift = (rest[0] * known[i]["frames"] - rest[i] * base["frames"]) / (rest[i] - rest[0])
    products = [prod((k[n] + (shift if n == "frames" else 0) for n in factors), start=Fraction(1)) for k in known]
    i = single[factors[0]]
    if products[i] == products[0]:
        return None
    factor = (rest[i] - rest[0]) / (products[i] - products[0])
    constant = rest[0] - factor * products[0]
    terms = [_term(factor, [f"({n} {_signed(shift)})" if n == "frames" and shift else n for n in factors])]
    terms += [_term(x, [n]) for n, x in beside.items()]
    return " + ".join(terms) + (f" {_signed(constant)}" if constant else "")


def _term(factor: Fraction, names: Sequence[str]) -> str:
    times = [] if factor.numerator == 1 else [str(factor.numerator)]
    return " * ".join([*times, *names]) + (f" / {factor.denominator}" if factor.denominator != 1 else "")


def _signed(x: Fraction) -> str:
    whole = str(abs(x)).replace("/", " / ")
    return f"{'-' if x < 0 else '+'} {whole}"
