"""What a pipeline's directory holds and lacks, by its index, its configs and the headers of its weights. Imports no torch."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffopt.models.family import Family
from diffopt.models.pipelines import GUIDER
from diffopt.store import coded
from diffopt.store.composed import ORIGINAL
from diffopt.store.files import json_object
from diffopt.store.tensor_file import tensors

INDEX = "model_index.json"
SPARE = ("safety_checker", "feature_extractor", "image_encoder", "image_processor")
"""Parts that every pipeline of ours marks optional (`_optional_components`), where its prompts are texts."""
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<old>[\w-]+))?\.(?:safetensors|bin)"
)
"""Names of weights' files; a variant is `fp16` in `model.fp16.safetensors` and `model.fp16-00001-of-00002.safetensors`."""
SHARDS = re.compile(r".+\.(?:safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
"""Names of the files that list the shards of weights."""
PROCESSORS = ("feature_extractor", "processor", "image_processor")
"""Parts that make a text encoder's or an image encoder's input of a picture: they have no weights."""
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
BYTES = "ByT5Tokenizer"
"""The tokenizer that has no vocabulary: its tokens are bytes."""
TOKENIZER = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Parts:
    """Of a directory with a model_index.json that names a pipeline of the family."""

    directory: Path
    family: Family
    asked: str | None = None
    """The variant of the weights that is asked for; None takes plain ones, or the only variant that there is."""
    pickles: bool = True
    """Whether weights as .bin files, which are pickles, are no problem."""

    @cached_property
    def index(self) -> dict[str, Any]:
        found = json_object(self.directory / INDEX)
        return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 2}

    @property
    def named(self) -> dict[str, str]:
        """Classes of the parts that it has, by name."""
        return {k: v[1] for k, v in self.index.items() if v[0] and k not in self.left_out}

    @cached_property
    def left_out(self) -> list[str]:
        """Parts that the index does without, and optional ones whose folder is not there."""
        null = [k for k, v in self.index.items() if not v[0] or (k in self._spare and not (self.directory / k).is_dir())]
        return [*null, *(k for k in self.family.spare if k not in self.index)]

    @property
    def _spare(self) -> Collection[str]:
        return () if self.family.animates else SPARE

    @cached_property
    def variant(self) -> str | None:
        """The one that is read: the asked one, or the only one there is where some part has no plain weights."""
        if self.asked:
            return self.asked
        lacking = [there for name in self._models if (there := self._variants(name)) and None not in there]
        common = set.intersection(*lacking) if lacking else set()
        return next(iter(common)) if len(common) == 1 else None

    def variant_of(self, name: str) -> str | None:
        """The same of one part: None where it has plain weights alone."""
        return self.variant if self.variant in self._variants(name) else None

    def original(self, name: str) -> Path | None:
        """The file that has a part's weights under their makers' names, where it is one."""
        path = self.directory / name / ORIGINAL
        return path.resolve() if path.exists() else None

    def read_here(self, name: str) -> list[Path]:
        """The files of a part that neither diffusers nor transformers read: the one that has it under its makers' names, or
        those that have it in FP8."""
        if path := self.original(name):
            return [path]
        files = self.weights(name) if name in self._models else []
        return files if coded.own(files) else []

    def weights(self, name: str) -> list[Path]:
        """The safetensors files of a part that are read."""
        return [
            p for p in sorted((self.directory / name).glob("*.safetensors")) if _variant(p.name) == (self.variant_of(name),)
        ]

    def problems(self, *, pretrained: bool = True, needed: Collection[str] = ()) -> Iterator[tuple[str, str]]:
        """What is wrong, and what to do. `needed` are parts that the pipeline's class takes.

        Random weights need the configs of what draws alone: the backbone, what runs beside it, the VAE and the scheduler.
        """
        first = [*self.family.backbones[:1], *self.family.beside, "vae", "scheduler"]
        wanted = list(dict.fromkeys([*first, *self.index, *needed])) if pretrained else first
        may_lack = {*self._spare, *self.family.spare, *self.family.backbones[1:]}
        for name in wanted:
            if not (self.index.get(name) or [None])[0]:
                told = self.family.asks and name not in (*first, *needed)  # by its class, which loading looks at
                if name not in may_lack and not told:
                    what = f"names no {name} in its {INDEX}, which the pipeline needs"
                    yield what, "give a whole pipeline, or name that part there and put it beside"
            elif name not in self.left_out:
                yield from self._part(name, pretrained)
        if pretrained:
            yield from self._asked_problems()
            if misfit := self.family.misfit(self._configs(self.named)):
                gone = [n for n in self.family.spare if n in self.left_out]
                what = f"is without {' and '.join(gone)}, so that " if gone else "has parts that do not go together: "
                yield what + misfit, "give the whole pipeline that the backbone was trained in"

    def _configs(self, names: Iterable[str]) -> dict[str, Any]:
        """Of the models among the parts, those that can be read; what cannot is a problem of its own."""
        found = {}
        for name in names:
            with suppress(OSError, ValueError):
                found[name] = json_object(self.directory / name / "config.json")
        return found

    @property
    def _models(self) -> list[str]:
        return [n for n in self.named if n not in ("scheduler", GUIDER, *PROCESSORS) and not n.startswith("tokenizer")]

    def _part(self, name: str, pretrained: bool) -> Iterator[tuple[str, str]]:
        folder = self.directory / name
        if not folder.is_dir():
            without = ", ".join(f'"{n}": [null, null]' for n in self.family.spare if n in self.index)
            fits = self.family.misfit(self._configs(n for n in self.named if n not in self.family.spare)) is None
            advice = f", or do without it by {without} in its {INDEX}" if name in self.family.spare and fits else ""
            yield f"has no folder {name}, the {self.index[name][1]} that its {INDEX} names", f"download that folder{advice}"
        elif name == "scheduler":
            yield from self._config(name, "scheduler_config.json")
        elif name.startswith("tokenizer"):
            if self.index[name][1] != BYTES and not any((folder / file).is_file() for file in VOCABULARIES):
                yield f"has no vocabulary in {name} (there is {_files(folder)})", "download that folder's tokenizer.json"
            yield from self._tokens(name)
        elif name in PROCESSORS:
            if not any((folder / file).is_file() for file in PREPROCESSORS):
                yield f"has no {PREPROCESSORS[0]} in {name} (there is {_files(folder)})", "download that folder"
        elif name in self._models:
            yield from self._config(name, "config.json")
            if pretrained and not self.original(name):  # whose header was read when it was put there
                yield from self._weights(name)

    def _config(self, name: str, file: str) -> Iterator[tuple[str, str]]:
        path = self.directory / name / file
        if not path.is_file():
            yield f"has no {name}/{file}", "download that file"
            return
        try:
            json_object(path)
        except (OSError, ValueError):
            yield f"has a broken {name}/{file}, which is no JSON object", "download that file again"

    def _tokens(self, name: str) -> Iterator[tuple[str, str]]:
        """Of how many a tokenizer takes, which callers count with."""
        path = self.directory / name / TOKENIZER
        if path.is_file():
            yield from self._config(name, TOKENIZER)
            with suppress(OSError, ValueError):
                most = json_object(path).get("model_max_length")
                if most is not None and not isinstance(most, int | float):
                    yield (
                        f"has {most!r} as model_max_length in {name}/{TOKENIZER}, which is no number",
                        "download that file again",
                    )

    def _weights(self, name: str) -> Iterator[tuple[str, str]]:
        folder, there, variant = self.directory / name, self._variants(name), self.variant_of(name)
        if not there:
            yield (
                f"has no weights in {name} (there is {_files(folder)})",
                "download that folder's .safetensors, or set model.variant where the repository has them as *.VARIANT.* alone",
            )
        elif variant not in there:
            variants = ", ".join(sorted(str(v) for v in there))
            which = f"of the variant {self.asked}, nor plain ones" if self.asked else "but in variants"
            yield f"has no weights in {name} {which} (there is {variants})", f"set model.variant to one of {variants}"
        else:
            yield from self._whole(name, variant)

    def _whole(self, name: str, variant: str | None) -> Iterator[tuple[str, str]]:
        """Files of the weights that are read: whether all are there, whole by their headers, and no pickles."""
        folder = self.directory / name
        if not self.pickles and not self.weights(name):
            yield (
                f"has the weights of {name} as a pickle alone (there is {_files(folder)}), which could hold code",
                "convert that folder to .safetensors, or set model.trust=pickle to have its tensors read",
            )
        for listing in sorted(folder.glob("*.json")):
            found = SHARDS.fullmatch(listing.name)
            if ".bin." in listing.name and self.weights(name):  # of pickles, which nobody reads then nor downloads
                continue
            if found and found["variant"] == variant and (lacking := _lacking(listing)):
                more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
                yield f"lacks {name}/{lacking[0]}{more}, which {name}/{listing.name} names", "download what is missing"
        broken = {p.name: r for p in self.weights(name) if (r := _broken(p))}
        for file, reason in broken.items():
            yield f"has a broken {name}/{file}: {reason}", "download that file again"
        try:
            if not broken:
                coded.check(self.weights(name))
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            yield f"has a {name} in which {what}", advice

    def _asked_problems(self) -> Iterator[tuple[str, str]]:
        there = {v for name in self._models for v in self._variants(name)}
        if self.asked and self.asked not in there:
            others = ", ".join(sorted(v for v in there if v))
            advice = f"set model.variant to one of {others}, or to null" if others else "set model.variant=null"
            yield f"has no weights of the variant {self.asked}", advice

    def _variants(self, name: str) -> set[str | None]:
        """Of the weights of a part; None are plain ones."""
        folder = self.directory / name
        return {v for path in folder.glob("*") for v in _variant(path.name)} if folder.is_dir() else set()


def _variant(file: str) -> tuple[str | None, ...]:
    """Of a file of weights, in a tuple; of another file nothing."""
    found = WEIGHTS.fullmatch(file)
    return (found["variant"] or found["old"],) if found else ()


def _lacking(listing: Path) -> list[str]:
    try:
        files = json_object(listing)["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError):
        return [listing.name]
    return sorted({str(f) for f in files if not (listing.parent / str(f)).is_file()})


def _broken(path: Path) -> str | None:
    try:
        tensors(path)
    except OSError as e:
        return (e.strerror or str(e)).lower()
    except ValueError as e:
        return f"it {str(e).partition('; ')[0].removeprefix(f'{path.name} ')}"
    return None


def _files(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "") if names else "nothing"
