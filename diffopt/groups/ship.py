"""`ship:` of a recipe: what is to be shipped, and how a race over a sweep's settings finds it."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from diffopt.errors import ConfigError, suggestion
from diffopt.groups.eval import Eval
from diffopt.groups.validate import explain
from diffopt.metrics import METRICS
from diffopt.quality.direction import sign
from diffopt.quality.floor import floors
from diffopt.quality.limit import Limit
from diffopt.schema import Group

Want = Literal["latency", "bytes", "memory", "steps", "quality"]
FEWEST = 8
"""Prompts in the first round: of fewer a deviation says little."""


class Ship(Group):
    floor: dict[str, float | str] = Field(default_factory=dict)
    """What must be kept, by metric: `psnr: 30` the mean itself, `clip: -0.5%` its change from full precision."""
    want: Want
    """What is to be least among what keeps every floor: time per picture, bytes of the weights, memory, denoising steps; or
    `quality`, the first metric's mean, to be best."""
    rounds: list[int] = Field(min_length=1)
    """Prompts that a setting has drawn when each round ends, from the first; the last is the whole sample."""
    chance: float = Field(default=0.05, gt=0, lt=0.5)
    """At most so often the right setting is dropped, however many rounds there are."""
    space: list[dict[str, str | int | float]] = Field(default_factory=list)
    """Grids of settings beside each other, each as hydra.sweeper.params has one, whose values they add to."""

    @property
    def floors(self) -> list[Limit]:
        return floors(self.floor)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.rounds[0] < FEWEST:
            raise ValueError(f"rounds: begins with too few prompts to tell anything (got {self.rounds}); begin with {FEWEST}")
        if sorted({*self.rounds}) != self.rounds:
            raise ValueError(f"rounds: does not rise (got {self.rounds}); give more prompts in each round than before")
        if self.want != "quality" and not self.floor:
            raise ValueError(
                f"floor: none is given, so the settings of the least {self.want} would win whatever they draw (got {{}}); "
                "give one, as {psnr: 30}, or ship.want=quality"
            )
        return self

    def check(self, eval: Eval) -> list[str]:
        """What of a job's evaluation does not go with it, a line each."""
        prompts, chunk, metrics = eval.prompts, eval.chunk, eval.metrics
        lines = []
        if self.rounds[-1] > len(prompts):
            lines.append(
                f"ship.rounds: ends at more than the {len(prompts)} prompts of {prompts.where} (got {self.rounds}); lower it, "
                "or give eval.prompts=FILE with more"
            )
        if chunk is None or any(many % chunk for many in self.rounds):
            lines.append(
                f"eval.chunk: does not divide ship.rounds={self.rounds}, so no round could use the one before (got {chunk}); "
                f"set eval.chunk={self.rounds[0]} and multiples of it"
            )
        for limit in self.floors:
            if limit.metric not in METRICS:
                lines.append(f"ship.floor: is no metric (got {limit.text}); {suggestion(limit.metric, METRICS)}")
            elif limit.metric not in metrics:
                lines.append(
                    f"ship.floor: is not measured (got {limit.text}; measured {', '.join(metrics) or 'nothing'}); add it to "
                    "eval.metrics"
                )
        if eval.gates:
            lines.append(
                f"eval.gates: would end a setting's job with its first pictures (got {eval.gates}); give them as ship.floor"
            )
        if not metrics:
            lines.append("eval.metrics: nothing is measured, so nothing can be judged (got []); name some")
        known = [limit for limit in self.floors if limit.metric in METRICS]
        asked = dict.fromkeys(metrics[:1], "eval.metrics") | {limit.metric: "ship.floor" for limit in known}
        for name, where in asked.items():
            if METRICS[name].judges == "set":
                lines.append(
                    f"{where}: {name} judges whole sets, so settings cannot be told apart prompt by prompt (got {name}); "
                    f"take a metric of pictures or pairs, as psnr or clip{', first' if where == 'eval.metrics' else ''}"
                )
        for limit in known:
            if limit.kind == "change" and limit.amount * sign(METRICS[limit.metric].better) > 0:
                lines.append(
                    f"ship.floor: full precision itself does not keep it, as changes are from what it has (got {limit.text}); "
                    "give one that lets the metric get worse, or 0"
                )
        return lines


def read(given: Any) -> Ship:
    """Of a composed config's key `ship`. Raises ConfigError, a line for each thing that is wrong."""
    if not isinstance(given, dict):
        raise ConfigError(
            f"ship: says nothing of what to ship (got {given!r}); choose +recipe=ship, or give ship.want and more"
        )
    try:
        found = Ship.model_validate(given)
    except ValidationError as e:
        raise ConfigError("\n".join(explain("ship", Ship, x) for x in e.errors())) from None
    floors(found.floor)  # raises ConfigError for what is no limit
    return found
