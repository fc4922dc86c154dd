"""What became of a recipe's gates in a finished run."""

import os
from dataclasses import dataclass

from diffopt.errors import GateError
from diffopt.files.metrics import MetricResult
from diffopt.files.parity import ParityFile
from diffopt.quality.limit import PARITY, Limit
from diffopt.report.run_directory import Run
from diffopt.text import signed, with_interval


@dataclass(frozen=True)
class Outcome:
    name: str
    gate: str
    """As it was asked: `clip: -0.5%`."""
    holds: bool
    found: str
    """What was reached, with its interval."""


def outcomes(run: Run) -> list[Outcome]:
    """What became of every gate of a finished run. One on what the run did not measure is broken, and one that is no limit."""
    return [_outcome(run, name, value) for name, value in (run.config["eval"].get("gates") or {}).items()]


def _outcome(run: Run, name: str, value: float | str) -> Outcome:
    try:
        gate = Limit.parse(name, value)
    except ValueError as e:  # of a run that an older version made
        return Outcome(name, f"{name}: {value}", False, f"nothing, it {e}")
    if gate.kind == "speedup":
        speedup = run.gated_speedup
        holds = speedup is not None and speedup.mean >= gate.amount
        return Outcome(name, str(gate), holds, f"{with_interval(speedup)} x" if speedup else f"no speedup, {run.unclaimed}")
    if gate.metric == PARITY:
        parity = run.parity
        holds = parity is not None and parity.largest <= gate.amount
        return Outcome(name, str(gate), holds, largest(parity) if parity else "nothing, it was not measured")
    if name not in run.metrics:
        return Outcome(name, str(gate), False, "nothing, it was not measured")
    metric = run.metrics[name]
    return Outcome(name, str(gate), gate.keeps(metric), _reached(gate, metric))


def largest(parity: ParityFile) -> str:
    return f"{parity.largest:.3g} in step {parity.worst_step} of {len(parity.steps)}"


def _reached(gate: Limit, metric: MetricResult) -> str:
    if gate.kind != "change" or not metric.reference or not metric.difference:
        return with_interval(metric.candidate, metric.unit)
    size = abs(metric.reference.mean)
    return signed(metric.difference.mapped(lambda v: 100 * v / size), "%") if size else signed(metric.difference, metric.unit)


def enforce(run: Run) -> None:
    """Raises GateError with a line for each broken gate."""
    broken = [o for o in outcomes(run) if not o.holds]
    if broken:
        raise GateError(
            "\n".join(
                f"eval.gates.{o.name}: is not reached (got {o.found}, asked {o.gate}); "
                f"everything made is kept in {os.path.relpath(run.directory)}"
                for o in broken
            )
        )
