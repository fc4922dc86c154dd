"""Gates of a recipe: what a run must reach. They are read when the run is over, so a change of one computes nothing again."""

from collections.abc import Mapping

from diffopt.errors import suggestion
from diffopt.metrics import METRICS
from diffopt.quality.limit import LATENCY, PARITY, Limit


def check(gates: Mapping[str, float | str], metrics: list[str], *, latency: bool, parity: bool) -> None:
    """Raises ValueError, in the words of a group's check, for a gate on what is not measured, and for what is no limit."""
    for name, value in gates.items():
        if name == LATENCY and not latency:
            raise ValueError(
                f"gates.{name}: nothing is timed (got {value!r} with latency: false); set eval.latency=true, or drop it"
            )
        if name == PARITY and not parity:
            raise ValueError(
                f"gates.{name}: nothing is compared (got {value!r}); set eval.runtime=native and eval.parity=true where a GPU "
                "has the kernels, or drop it"
            )
        if name not in (LATENCY, PARITY, *metrics):
            if name not in METRICS:
                there = suggestion(name, [*METRICS, LATENCY, PARITY])
                raise ValueError(f"gates.{name}: is no metric (got the limit {value!r}); {there}")
            measured = ", ".join([*metrics, LATENCY])
            raise ValueError(f"gates.{name}: is not measured (got {value!r}; measured {measured}); add it to eval.metrics")
        try:
            Limit.parse(name, value)
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            raise ValueError(f"gates.{name}: {what} (got {value!r}); {advice}") from None
