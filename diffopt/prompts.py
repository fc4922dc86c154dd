"""Prompt sets: read once, known by their content."""

import json
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BeforeValidator, PlainSerializer

from diffopt import asset
from diffopt.fingerprint import fingerprint


@dataclass(frozen=True)
class PromptSet:
    """An ordered list of prompts. Two files with the same prompts are the same set."""

    where: str
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> Self:
        return type(self)(self.where, self.prompts[start:stop])

    @property
    def digest(self) -> str:
        return fingerprint(list(self.prompts))


def read(value: object) -> PromptSet:
    """Read a prompt set: a text file with a prompt a line, or JSON (strings, or objects with a `prompt`).

    Raises ValueError, which names the file, for what cannot be read or holds no prompt.
    """
    if isinstance(value, PromptSet):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("is not the path of a file of prompts; give a .txt with a prompt a line, or a .json")
    path = asset.locate(value)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not a text file; give a .txt with a prompt a line, or a .json") from None
    except OSError as e:
        raise ValueError(f"cannot be read ({(e.strerror or str(e)).lower()}); check the path") from None
    prompts = _from_json(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    prompts = [p for p in prompts if p]
    if not prompts:
        raise ValueError("holds no prompt; write one a line")
    return PromptSet(value, tuple(prompts))


def _from_json(text: str) -> list[str]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"is not valid JSON (line {e.lineno}: {e.msg.lower()}); mend the file") from None
    prompts = [row.get("prompt") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else [None]
    texts = [p for p in prompts if isinstance(p, str)]
    if len(texts) != len(prompts):
        raise ValueError('is not a list of prompts; write ["a cat", ...] or [{"prompt": "a cat"}, ...]')
    return [p.strip() for p in texts]


Prompts = Annotated[PromptSet, BeforeValidator(read), PlainSerializer(lambda p: f"{len(p)} prompts {p.digest}")]
"""A group's field: in YAML the path of a file, in code a PromptSet, in a fingerprint the prompts themselves."""
