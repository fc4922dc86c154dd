"""A few pictures of a run for its card: base and candidate side by side, small."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffopt.report.pair import RunPair
from diffopt.shipping.evidence import Evidence
from diffopt.text import number

FOLDER = "samples"
FIRST = 3
"""Of the prompts, in their order; the worst is one more."""
SIDE, QUALITY = 512, 85
"""Most pixels of the longer side, and WebP's quality."""


@dataclass(frozen=True)
class Sample:
    prompt: str
    seed: int
    base: str
    candidate: str
    """Files, as the card links them."""
    said: str = ""
    """What a metric says of the pair."""


def chosen(evidence: Sequence[Evidence]) -> list[RunPair]:
    """Of the newest run that has pictures of its own candidate and of the base: its first prompts, and the worst."""
    for x in evidence:
        pairs = [p for p in x.run.pairs if {"reference", "candidate"} <= set(p.files)] if not x.ending else []
        if pairs:
            first = sorted(pairs, key=lambda p: p.number)[:FIRST]
            return [*first, *(p for p in pairs[:1] if p not in first)]
    return []


def linked(pairs: Sequence[RunPair], directory: Path) -> list[Sample]:
    """For a card in the run's own directory."""
    return [_sample(p, *(p.files[k].relative_to(directory).as_posix() for k in ("reference", "candidate"))) for p in pairs]


def written(pairs: Sequence[RunPair], out: Path) -> list[Sample]:
    """Small copies in the folder `out`, for a card in it."""
    return [_sample(p, *(_copy(p.files[kind], out, f"{i}-{name}.webp") for kind, name in NAMES)) for i, p in enumerate(pairs)]


NAMES = (("reference", "base"), ("candidate", "candidate"))


def _copy(source: Path, out: Path, name: str) -> str:
    from PIL.Image import Resampling

    from diffopt.data.picture import opened

    (out / FOLDER).mkdir(exist_ok=True)
    image = opened(source)
    image.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    image.save(out / FOLDER / name, "WEBP", quality=QUALITY)
    return f"{FOLDER}/{name}"


def _sample(pair: RunPair, base: str, candidate: str) -> Sample:
    found = Sample(pair.prompt, pair.seed, base, candidate)
    for name, value in list(pair.values.items())[:1]:
        return replace(found, said=f"{name} {number(value, 2)}")
    return found
