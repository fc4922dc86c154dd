"""What became of a recipe's gates in a finished run."""

import os
from dataclasses import dataclass

from diffopt.errors import GateError
from diffopt.files.metrics import MetricResult
from diffopt.quality.direction import sign
from diffopt.quality.gates import LATENCY, Gate, parse
from diffopt.report.run_directory import Run
from diffopt.text import signed, with_interval


@dataclass(frozen=True)
class Outcome:
    gate: Gate
    holds: bool
    found: str
    """What was reached, with its interval."""


def outcomes(run: Run) -> list[Outcome]:
    """What became of every gate of a finished run. A gate on what the run did not measure is broken."""
    found = []
    for name, value in (run.config["eval"].get("gates") or {}).items():
        gate = parse(name, value)
        if name == LATENCY:
            speedup = run.speedup
            holds = speedup is not None and speedup.mean >= gate.limit
            found.append(Outcome(gate, holds, f"{with_interval(speedup)} x" if speedup else f"no speedup, {run.unclaimed}"))
        elif name not in run.metrics:
            found.append(Outcome(gate, False, "nothing, it was not measured"))
        else:
            found.append(_quality(gate, run.metrics[name]))
    return found


def _quality(gate: Gate, metric: MetricResult) -> Outcome:
    turn = sign(metric.better)
    if gate.kind == "%" and metric.reference and metric.difference:
        base = abs(metric.reference.mean) or 1.0
        change = metric.difference.mapped(lambda v: 100 * v / base)
        return Outcome(gate, turn * change.mean >= turn * gate.limit, signed(change, "%"))
    stat = metric.candidate
    return Outcome(gate, turn * stat.mean >= turn * gate.limit, with_interval(stat, metric.unit))


def enforce(run: Run) -> None:
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
