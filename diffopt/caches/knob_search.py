"""`cache.search`: the fastest value of a knob that keeps a floor under quality is found, not given."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, field_validator, model_validator

from diffopt.errors import suggestion
from diffopt.metrics import METRICS
from diffopt.schema import Group

FALLS = {"psnr": 3.0, "ssim": 0.05, "ms-ssim": 0.05, "lpips": 0.05, "clip": 1.0, "clip-iqa": 0.05, "imagereward": 0.2}
"""In each metric's unit: what is a cliff between two neighbouring values unless `cliff` says otherwise. 3 dB is twice
the noise's power; the others are a choice, not a measurement."""


def floors_text(floor: Mapping[str, float | str]) -> str:
    """`psnr=30, clip=-0.5%`."""
    limits = {name: limit if isinstance(limit, str) else f"{limit:g}" for name, limit in floor.items()}
    return ", ".join(f"{name}={limit}" for name, limit in limits.items())


class KnobSearch(Group):
    floor: dict[str, float | str] = Field(min_length=1)
    """By metric what must be kept, a limit as gates are: `30` the mean itself (at most, where lower is better), `-0.5%` the
    change from the reference's mean. Every metric is of the cached pictures beside those in full precision without a cache."""
    knob: str | None = None
    """The field to turn; null is the method's own."""
    low: float | None = None
    high: float | None = None
    """Between which values; null is the knob's own end."""
    points: int = Field(default=4, ge=2)
    """Values that are tried first, evenly from end to end (of a threshold by ratio), so that cliffs between are seen."""
    evaluations: int = Field(default=12, ge=2)
    """Values that are tried at most, those included; each is a run over the prompts."""
    tolerance: float = Field(default=0.05, gt=0, lt=1)
    """Of a knob that is no whole number: values that differ by less than this share are neighbours."""
    prompts: int | None = Field(default=None, ge=1)
    """Prompts to judge on, from the first of the evaluation's; null takes all."""
    cliff: dict[str, float] = Field(default_factory=dict)
    """By metric of the floor how much it may fall between two neighbouring values without being called a cliff."""
    jump: float = Field(default=0.1, gt=0, lt=1)
    """The same of the share of the arithmetic that is left out."""

    @field_validator("floor")
    @classmethod
    def _can_be_kept(cls, given: dict[str, float | str]) -> dict[str, float | str]:
        from diffopt.quality.limit import Limit

        for name in given:
            if name not in METRICS:
                raise ValueError(f"{name} is not a metric that is installed; {suggestion(name, METRICS)}")
            if METRICS[name].judges == "set":
                raise ValueError(f"{name} judges whole sets, of which a search draws too few; name psnr, ssim, lpips or clip")
        for name, amount in given.items():
            try:
                Limit.parse(name, amount)
            except ValueError as e:
                raise ValueError(f"{name} {e}") from None
        return given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"high: is not above low={self.low:g} (got {self.high:g}); raise it")
        if self.evaluations < self.points:
            raise ValueError(
                f"evaluations: is less than the points={self.points} that are tried first (got {self.evaluations}); raise it"
            )
        for name, fall in self.cliff.items():
            if name not in self.floor:
                raise ValueError(f"cliff: {name} has no floor (got {self.cliff}); {suggestion(name, self.floor)}")
            if fall <= 0:
                raise ValueError(f"cliff: is no fall (got {self.cliff}); give how much {name} may fall, above 0")
        return self

    def fall(self, metric: str) -> float | None:
        """Between neighbours what is a cliff in this metric; None where nobody says."""
        return self.cliff.get(metric, FALLS.get(metric))
