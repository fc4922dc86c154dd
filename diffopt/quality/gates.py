"""Gates of a recipe: what a run must reach. They are read when the run is over, so a change of one computes nothing again."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffopt.metrics import METRICS

LATENCY = "latency"
FORMS = re.compile(r"(?P<number>[+-]?\d+(\.\d+)?)(?P<kind>%|x|)")


@dataclass(frozen=True)
class Gate:
    """`clip: -0.5%`, `psnr: 20` or `latency: 1.0x`."""

    name: str
    limit: float
    kind: str
    """`%` of the reference's mean, `x` the speedup, or nothing: the candidate's own mean."""

    def __str__(self) -> str:
        return f"{self.name}: {self.limit:+g}%" if self.kind == "%" else f"{self.name}: {self.limit:g}{self.kind}"


def parse(name: str, value: float | str) -> Gate:
    """Raises ValueError, in the words of a group's check, for what is no gate."""
    found = FORMS.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(f"gates.{name}: is not a limit (got {value!r}); write 20, -0.5% or, for latency, 1.0x")
    gate = Gate(name, float(found["number"]), found["kind"])
    if (name == LATENCY) != (gate.kind == "x"):
        form = "the least speedup, such as 1.0x" if name == LATENCY else "a mean such as 20, or a change such as -0.5%"
        raise ValueError(f"gates.{name}: is not a limit of {name} (got {value!r}); write {form}")
    if gate.kind == "%" and METRICS[name].judges != "picture":
        raise ValueError(
            f"gates.{name}: is a distance from the reference already (got {value!r}); give its own limit, without %"
        )
    return gate


def check(gates: Mapping[str, float | str], metrics: list[str], latency: bool) -> None:
    """Raises ValueError for a gate on what is not measured."""
    for name, value in gates.items():
        if name == LATENCY and not latency:
            raise ValueError(f"gates.{name}: nothing is timed (got {value!r} with latency: false); set latency, or drop it")
        if name != LATENCY and name not in metrics:
            if name not in METRICS:
                there = ", ".join([*METRICS, LATENCY])
                raise ValueError(f"gates.{name}: is no metric (got the limit {value!r}); there are {there}")
            measured = ", ".join([*metrics, LATENCY])
            raise ValueError(f"gates.{name}: is not measured (got {value!r}; measured {measured}); add it to eval.metrics")
        parse(name, value)
