"""`set.json`: which items a training set has, and the prompts that they are of."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffopt.files.json_file import JsonFile, later


@dataclass(frozen=True)
class TrainSetFile(JsonFile):
    NAME = "set.json"
    SCHEMA = "diffopt.trainset/1"
    ASCII = False

    items: int
    prompts: Sequence[str]
    """Each once; their embeddings are the rows of texts.safetensors."""
    text: Sequence[int]
    """Of each item its prompt's index."""
    skipped: int = later(0)
    """Pictures that could not be read."""
    unreadable: Sequence[str] = later(())
    """Their names."""
