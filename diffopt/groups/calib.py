"""`calib=`: what the quantizers are calibrated on."""

from typing import Self

from pydantic import Field, model_validator

from diffopt.prompts import Prompts, PromptSet
from diffopt.view import Group


class Calib(Group):
    prompts: Prompts
    """File of prompts; `asset:FILE` for one in the package, `hub:ORG/NAME:COLUMN` for a data set on the hub."""
    size: int = Field(ge=1)
    """Prompts to use, from the first."""
    batch_size: int = Field(ge=1)
    """Prompts per pipeline call."""
    chunk: int = Field(ge=1)
    """Prompts per stored chunk of statistics; a larger `size` reuses the whole chunks of a smaller one."""
    n_steps: int = Field(ge=1)
    """Denoising steps per prompt."""
    alpha: float = Field(ge=0, le=1)
    """SmoothQuant's migration strength: at 1 all of the inputs' unevenness between channels moves into the weights, at 0
    all of the weights' into the inputs."""

    def chunks(self) -> list[tuple[int, PromptSet]]:
        """Index of the first prompt, and the prompts, of each chunk."""
        return [
            (start, self.prompts.part(start, min(start + self.chunk, self.size))) for start in range(0, self.size, self.chunk)
        ]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size > len(self.prompts):
            raise ValueError(
                f"size: is more than the {len(self.prompts)} prompts of {self.prompts.where} (got {self.size}); "
                "lower it, or give a longer file"
            )
        if self.chunk % self.batch_size:
            raise ValueError(
                f"chunk: is not a multiple of calib.batch_size={self.batch_size} (got {self.chunk}); "
                "batches must not cross chunks"
            )
        return self
