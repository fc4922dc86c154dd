"""What a training is given: on from which checkpoint, on what data, and how."""

from dataclasses import dataclass

from diffopt.artifact import Checkpoint, Pipeline, TrainSet
from diffopt.groups import CallView, TrainView


@dataclass(frozen=True)
class Task:
    """Every process of a training is given the same."""

    model: CallView
    """At which size and guidance the backbone is called."""
    train: TrainView
    pipeline: Pipeline
    checkpoint: Checkpoint
    """The calibrated one, whose quantizers stay in place."""
    data: TrainSet
    seed: int

    @property
    def held(self) -> int:
        """Prompts of the data, the last ones, that are validated on."""
        return self.train.validation.size if self.train.validation else 0
