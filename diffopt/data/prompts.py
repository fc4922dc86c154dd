"""Prompt sets: read once, known by their content."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from diffopt.data import prompt_sets, text_file
from diffopt.data.pictured import Asked, Pictures, pictures_of
from diffopt.errors import closest, suggestion
from diffopt.store import assets, hub
from diffopt.store.fingerprint import fingerprint

T = TypeVar("T")

HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?:(?P<column>.+)")
"""A column of a data set on the Hugging Face hub: `hub:ORG/NAME[@REVISION]:COLUMN`."""
LONGEST = 20_000
"""Characters of a prompt: no text encoder takes as many, and to count their tokens takes long."""
ROWS = ["*.parquet", "*.csv", "*.json", "*.jsonl"]
"""Files of a data set on the hub that rows are read from."""
MOST = 10_000  # prompts taken of a data set, from its first row: a set of captions can have millions


TABLES = {".csv": ",", ".tsv": "\t"}
JSONS = (".json", ".jsonl")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
STRANGE = (".heic", ".heif", ".jxl", ".dng", ".cr2", ".nef", ".arw")
"""Pictures of phones and cameras that Pillow does not read."""


@dataclass(frozen=True)
class PromptSet:
    """An ordered list of prompts. Two files with the same prompts are the same set.

    Of a directory of pictures, which are the prompts of models that animate, they are the files' names.
    """

    where: str
    prompts: tuple[str, ...]
    folder: Path | None = field(default=None, compare=False)
    """Where the pictures lie; None of texts."""
    contents: tuple[str, ...] = ()
    """sha256 of each picture."""
    pictures: tuple[Pictures, ...] = ()
    """Of each prompt that is a text with pictures, by role; empty of plain texts."""

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> Self:
        return self.picked(range(len(self))[start:stop])

    def picked(self, numbers: Iterable[int]) -> Self:
        """Those of the prompts, in this order."""
        own = list(numbers)

        def of(each: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(each[i] for i in own) if each else ()

        return replace(self, prompts=of(self.prompts), contents=of(self.contents), pictures=of(self.pictures))

    def given(self) -> Self:
        """The same with what is encoded as prompts: texts, with the paths of their pictures, or paths of pictures alone."""
        if self.folder:
            return replace(self, prompts=tuple(str(self.folder / p) for p in self.prompts))
        if not self.pictures:
            return self
        each = zip(self.prompts, self.pictures, strict=True)
        return replace(self, prompts=tuple(Asked(p, {r: str(x.path) for r, x in own.items()}) for p, own in each))

    @property
    def roles(self) -> tuple[str, ...]:
        """What pictures each prompt has."""
        return tuple(self.pictures[0]) if self.pictures else ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of each prompt what it is told by: its text, and the contents of its pictures."""
        if not self.pictures:
            return self.prompts
        each = zip(self.prompts, self.pictures, strict=True)
        return tuple("\n".join([p, *(f"{r} {x.sha256}" for r, x in own.items())]) for p, own in each)

    @property
    def digest(self) -> str:
        if self.pictures:
            each = zip(self.prompts, self.pictures, strict=True)
            return fingerprint([[p, {r: x.sha256 for r, x in own.items()}] for p, own in each])
        if self.folder is None:
            return fingerprint(list(self.prompts))
        return fingerprint([list(pair) for pair in zip(self.prompts, self.contents, strict=True)])


def read(value: object) -> PromptSet:
    """Read a prompt set: a text file with a prompt a line, JSON or JSON lines (strings, or objects with a `prompt` and, of
    pictures beside the file, `image`, `mask`, `control`), a CSV or TSV with a column of prompts, each of
    these perhaps packed by gzip, a hub data set, a set of diffopt/data/prompt_sets.py by its name, or a directory of pictures.

    Raises ValueError, which names the file, for what cannot be read or holds no prompt.
    """
    if isinstance(value, PromptSet):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("is not the path of a file of prompts; give a .txt with a prompt a line, or a .json")
    name, file = prompt_sets.split(value)
    if name and not file:
        return _named(name)
    if value.startswith("hub:"):
        return PromptSet(value, _from_hub(value))
    path = assets.locate(file or value)
    if path.is_dir():
        return _pictures(value, path)
    try:
        text = text_file.read(path)
    except OSError as e:
        close = closest(value, prompt_sets.NAMES) if "/" not in value else []
        advice = f"did you mean {' or '.join(close)}?" if close else "check the path"
        raise ValueError(f"cannot be read ({(e.strerror or str(e)).lower()}); {advice}") from None
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    pictures: tuple[Pictures, ...] = ()
    if kind in TABLES:
        prompts = prompt_sets.from_table(text, TABLES[kind])
    elif kind in JSONS:
        rows = _parsed(text) if kind == ".json" else _lines(text)
        prompts, pictures = _from_json(rows), pictures_of(rows, path.parent) if isinstance(rows, list) else ()
    else:
        prompts = [line.strip() for line in text_file.lines(text)]
    if (kind in (*TABLES, *JSONS)) and not (name and not pictures) and "" in prompts:  # a blank line is none, a row is one
        first = f"row {prompts.index('') + 1} of {len(prompts)}"
        raise ValueError(f"holds an empty prompt, {first}; write it, or leave the row out")
    prompts = [p for p in prompts if p]
    if not prompts:
        raise ValueError("holds no prompt; write one a line")
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > LONGEST:
            raise ValueError(f"holds a prompt of {len(prompt)} characters, number {number}; at most {LONGEST}, shorten it")
        if any("\ud800" <= c <= "\udfff" for c in prompt):
            raise ValueError(f"holds half a character, a lone surrogate, in prompt {number}; take it out")
    return PromptSet(value, tuple(prompts), pictures=pictures)


def _pictures(value: str, folder: Path) -> PromptSet:
    if strange := sorted(p.name for p in folder.iterdir() if p.suffix.lower() in STRANGE):
        raise ValueError(
            f"holds {len(strange)} pictures of a kind that is not read here, the first {strange[0]}; save them as "
            f"{PICTURES[0]} or {PICTURES[1]}, or take them out"
        )
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not files:
        raise ValueError(f"is a directory without a picture; put {', '.join(PICTURES)} files into it, or give a file of texts")
    contents = tuple(sha256(p.read_bytes()).hexdigest() for p in files)
    return PromptSet(value, tuple(p.name for p in files), folder.resolve(), contents)


def unreadable(path: str) -> str | None:
    """Why a file is no picture, by its first bytes; None where it is one."""
    from diffopt.data.picture import BROKEN, extent

    try:
        extent(path)
    except BROKEN as e:
        return (e.strerror if isinstance(e, OSError) else None) or "its format is not known"
    return None


def _named(name: str) -> PromptSet:
    if name in prompt_sets.PACKAGED:
        return PromptSet(name, read(prompt_sets.PACKAGED[name]).prompts)
    if name in prompt_sets.HUB_COLUMNS:
        return PromptSet(name, _from_hub(prompt_sets.HUB_COLUMNS[name]))
    repo, file = prompt_sets.HUB_FILES[name]
    try:
        path = hub.file(repo, file, "dataset")
    except Exception as e:  # the hub client has many errors
        raise ValueError(_unreachable(e) + f", or give a copy of its {file} by {name}:FILE") from None
    return PromptSet(name, read(str(path)).prompts)


def _unreachable(error: Exception) -> str:
    known = hub.refusal(error)
    return f"cannot be read from the hub ({known.what}); {known.advice}"


def _parsed(text: str, line: int = 0) -> Any:
    """Of JSON, or of one `line` of JSON lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"is not valid JSON (line {line or e.lineno}: {e.msg.lower()}); mend the file") from None
    except RecursionError:
        raise ValueError(
            'is nested too deep for a list of prompts; write ["a cat", ...] or [{"prompt": "a cat"}, ...]'
        ) from None


def _lines(text: str) -> list[Any]:
    return [_parsed(line, number) for number, line in enumerate(text_file.lines(text), 1) if line.strip()]


def _from_json(rows: Any) -> list[str]:
    if isinstance(rows, dict) and (of_set := prompt_sets.from_object(rows)) is not None:
        return of_set
    prompts = [row.get("prompt") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else [None]
    texts = [p for p in prompts if isinstance(p, str)]
    if len(texts) != len(prompts):
        raise ValueError('is not a list of prompts; write ["a cat", ...] or [{"prompt": "a cat"}, ...]')
    return [p.strip() for p in texts]


def _from_hub(value: str) -> tuple[str, ...]:
    """The rows of a data set's train split; from the local cache where it is there."""
    found = HUB.fullmatch(value)
    if found is None:
        raise ValueError("is not a data set; write hub:ORG/NAME:COLUMN or hub:ORG/NAME@REVISION:COLUMN")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("needs the package datasets; pip install 'diffopt[datasets]'") from None
    try:
        commit = hub.commit(found["repo"], found["revision"] or "main", "dataset")
        folder = str(hub.download(found["repo"], commit, "dataset", ROWS))
        rows = load_dataset(folder, split="train", streaming=True)
        texts = [row.get(found["column"]) for row in rows.take(MOST)]
    except Exception as e:  # the hub client, the network and the readers each have errors of their own
        raise ValueError(_unreachable(e)) from None
    texts = [t[0] if isinstance(t, list) and t else t for t in texts]  # of several captions of a picture the first
    prompts = tuple(t.strip() for t in texts if isinstance(t, str) and t.strip())
    if not prompts:
        raise ValueError(
            f"has no texts in the column {found['column']!r}; {suggestion(found['column'], rows.column_names or [])}"
        )
    return prompts


Prompts = Annotated[PromptSet, BeforeValidator(read), PlainSerializer(lambda p: f"{len(p)} prompts {p.digest}")]
"""A group's field: in YAML a file's path or a data set of the hub, in code a PromptSet, in a fingerprint the prompts."""
