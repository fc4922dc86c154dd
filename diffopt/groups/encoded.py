"""The prompts that text encoders are given, of each group that has some: they are encoded once, in steps of their own."""

from typing import Any, Self

from diffopt.data.prompts import Prompts
from diffopt.groups.calib import Calib
from diffopt.groups.choices import Choices
from diffopt.groups.eval import Eval
from diffopt.groups.train import Train
from diffopt.groups.view import View
from diffopt.schema import Group


class EncodedView(View):
    """Prompts, and the batches in which they are encoded."""

    prompts: Prompts
    batch_size: int


class EncodedChunkView(EncodedView):
    """Those of one chunk, whose identity is theirs alone: sets of other sizes share chunks."""

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        return self.model_dump(mode="json")


class CalibPromptsView(EncodedChunkView, of=Calib):
    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Calib)
        return [cls(prompts=part, batch_size=group.batch_size) for _, part in group.chunks()]


class TrainPromptsView(EncodedChunkView, of=Train):
    """Of the prompts that training data are made from."""

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"data"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Train)
        return [cls(prompts=part, batch_size=group.data.batch) for _, part in group.data.chunks(choices)]


class EvalPromptsView(EncodedView, of=Eval):
    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        return [cls(prompts=group.prompts.part(0, group.size), batch_size=group.batch_size)]
