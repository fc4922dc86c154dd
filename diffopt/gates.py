"""Gates of a recipe: what a run must reach. They are read when the run is over, so a change of one computes nothing again."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffopt.errors import GateError
from diffopt.figure import figure, signed
from diffopt.metrics import METRICS

if TYPE_CHECKING:
    from diffopt.run import Run

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


@dataclass(frozen=True)
class Outcome:
    gate: Gate
    holds: bool
    found: str
    """What was reached, with its interval."""


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


def outcomes(run: "Run") -> list[Outcome]:
    """What became of every gate of a finished run. A gate on what the run did not measure is broken."""
    found = []
    for name, value in (run.config["eval"].get("gates") or {}).items():
        gate = parse(name, value)
        if name == LATENCY:
            speedup = run.speedup
            holds = speedup is not None and speedup["mean"] >= gate.limit
            found.append(Outcome(gate, holds, f"{figure(speedup)} x" if speedup else f"no speedup, {run.unclaimed}"))
        elif name not in run.metrics:
            found.append(Outcome(gate, False, "nothing, it was not measured"))
        else:
            found.append(_quality(gate, run.metrics[name]))
    return found


def _quality(gate: Gate, metric: dict[str, Any]) -> Outcome:
    sign = 1 if metric["better"] == "higher" else -1
    if gate.kind == "%":
        base = abs(metric["reference"]["mean"]) or 1.0
        change = {k: v if v is None or k == "n" else 100 * v / base for k, v in metric["difference"].items()}
        return Outcome(gate, sign * change["mean"] >= sign * gate.limit, signed(change, "%"))
    stat = metric["candidate"]
    return Outcome(gate, sign * stat["mean"] >= sign * gate.limit, figure(stat, metric["unit"]))


def enforce(run: "Run") -> None:
    """Raises GateError with a line for each broken gate."""
    broken = [o for o in outcomes(run) if not o.holds]
    if broken:
        raise GateError(
            "\n".join(
                f"eval.gates.{o.gate.name}: is not reached (got {o.found}, asked {o.gate}); "
                f"everything made is kept in {os.path.relpath(run.directory)}"
                for o in broken
            )
        )
