"""How many tokens prompts have, by the tokenizer of the longest text encoder. Imports no torch until one may be too long."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

from diffopt import models
from diffopt.errors import pass_on
from diffopt.groups.model import Model
from diffopt.models.parts import BYTES
from diffopt.pipeline.foreign import config_of
from diffopt.store.files import json_object

NAMES = ("tokenizer_3", "tokenizer_2", "tokenizer")
"""Of a pipeline's tokenizers, that of the encoder which takes the longest prompts first."""
AROUND = 8
"""Tokens that a tokenizer adds at most, such as the beginning and the end."""
TALK = 160
"""Tokens that a chat's template has at most, with the system's message."""


def too_long(directory: Path, prompts: Sequence[str], model: Model, where: str) -> str | None:
    """Of a prompt with more tokens than the text encoder takes, whose rest would be cut off; None where all fit.

    `where` names the prompts' field. The tokenizer is the pipeline's own, by transformers; it is only asked of prompts that a
    quicker look does not clear.
    """
    name = _last(directory)
    if name is None:
        return None
    spared = "tokenizer_3" in _index(directory) and name != "tokenizer_3"  # SD3 without its T5, which the length is for
    most = (None if spared else model.max_sequence_length) or _declared(directory / name)
    template = models.of(model).template
    plain = None if most is None else most - TALK if template else most
    doubtful = [p for p in prompts if plain is None or not _clears(directory / name, p, plain)]
    if not doubtful:
        return None
    tokenizer = _tokenizer(directory, name)
    most = most or int(tokenizer.model_max_length)
    for prompt in doubtful:
        own = template or (lambda tokenizer, text: len(tokenizer(text, truncation=False, verbose=False).input_ids))
        if (length := own(tokenizer, prompt)) > most:
            shown = prompt if len(prompt) < 60 else prompt[:57] + "..."
            around = " with the chat around it" if template else ""
            return (
                f"{where}: {shown!r} has {length} tokens{around}, but the text encoder takes {most} (got {length}); "
                "shorten it, or set model.long_prompts=cut"
            )
    return None


def _index(directory: Path) -> dict[str, Any]:
    return dict(config_of(directory / "model_index.json"))


def _last(directory: Path) -> str | None:
    index = _index(directory)
    named = {n: index[n] for n in NAMES if isinstance(index.get(n), list) and index[n][0]}
    there = [n for n, (_, kind) in named.items() if kind != BYTES and (directory / n).is_dir()]  # that sees words in quotes
    return next(iter(there), None)


def _declared(folder: Path) -> int | None:
    """The most tokens, as the tokenizer's own config says."""
    try:
        found = json_object(folder / "tokenizer_config.json").get("model_max_length")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, int) else None


def _clears(folder: Path, prompt: str, most: int) -> bool:
    """Whether a prompt fits for sure: a token is a byte of its normal form at least; or by the tokenizer's file alone."""
    if len(normalize("NFKC", prompt).encode()) + AROUND <= most:
        return True
    path = folder / "tokenizer.json"
    count = _counter(path, path.stat().st_mtime_ns) if path.is_file() else None
    return count is not None and count(prompt) <= most


@lru_cache(maxsize=8)
def _counter(path: Path, _changed: int) -> Callable[[str], int] | None:
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(path))
    except Exception as e:  # the library's errors are plain exceptions; transformers is asked then
        pass_on(e)
        return None
    found.no_truncation()
    found.no_padding()
    return lambda prompt: len(found.encode(prompt).ids)


@lru_cache(maxsize=8)
def _tokenizer(directory: Path, name: str) -> Any:
    import transformers

    return getattr(transformers, _index(directory)[name][1]).from_pretrained(directory / name)
