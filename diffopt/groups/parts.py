"""Parts of the evaluation's pictures: with `eval.chunk` prompts are drawn and kept some at a time, and sets share them.

A part's fingerprint has its own prompts and place, not the size of the set.
"""

from typing import Self

from diffopt.groups.choices import Choices
from diffopt.groups.encoded import EncodedChunkView
from diffopt.groups.eval import DrawView, Eval, ReferenceView, RuntimeView
from diffopt.groups.format import slims
from diffopt.schema import Group


def parted(choices: Choices) -> bool:
    return choices.eval is not None and choices.eval.chunk is not None


def whole(choices: Choices) -> bool:
    return not parted(choices)


def slims_whole(choices: Choices) -> bool:
    """Whether all prompts are encoded at once by text encoders in fewer bits."""
    return slims(choices) and whole(choices)


def slims_parted(choices: Choices) -> bool:
    """Whether they are encoded so in parts."""
    return slims(choices) and parted(choices)


class PartPromptsView(EncodedChunkView, of=Eval):
    """The prompts of one part, and the batches in which they are encoded."""

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({"prompts", "size", "batch_size", "chunk"})

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        return [cls(prompts=part, batch_size=group.batch_size) for _, part in group.parts()]


class PartView(DrawView, of=Eval):
    """Of the view behind it in a class's bases what one part reads."""

    start: int = 0
    """Index of the first prompt, which decides the seeds."""

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return super().fields_read() | {"chunk"}

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Eval)
        (all,) = super().split(group, choices)
        return [all.model_copy(update={"prompts": part, "start": start}) for start, part in group.parts()]


class ReferencePartView(PartView, ReferenceView, of=Eval): ...


class RuntimePartView(PartView, RuntimeView, of=Eval): ...
