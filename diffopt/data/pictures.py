"""Pictures on disk: one PNG per prompt, and the gate that none of them is broken."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffopt.data.picture import pixels
from diffopt.errors import GateError
from diffopt.files.images import Drawn, ImagesFile, VideoFiles

SHOWN = 4
"""Frames of a video that stand for it."""


def strip(drawn: np.ndarray) -> np.ndarray:
    """One picture of each video, four frames evenly spaced from the first to the last side by side; pictures as they are.

    It stands for the video on pages; what is judged are the frames that diffopt/data/videos.py keeps.
    Takes [n, frames, height, width, 3], gives [n, height, 4 x width, 3].
    """
    if drawn.ndim == 4:
        return drawn
    frames = np.linspace(0, drawn.shape[1] - 1, SHOWN).round().astype(int)
    return np.concatenate([drawn[:, i] for i in frames], axis=2)


def check(pictures: np.ndarray, prompts: Sequence[str]) -> None:
    """Raises GateError for NaN and for pictures of one colour; `pictures` is float [n, height, width, 3] in 0..1, or
    of videos [n, frames, height, width, 3]."""
    for picture, prompt in zip(pictures, prompts, strict=True):
        if not np.isfinite(picture).all():
            raise GateError(
                f"sample: the picture of {prompt!r} has NaN in it (got a broken model); exclude layers by format.exclude, "
                "or set model.dtype=float32"
            )
        if np.ptp(picture.reshape(-1, picture.shape[-1]), axis=0).max() < 1 / 255:
            value = float(picture.mean())
            raise GateError(
                f"sample: the picture of {prompt!r} has one colour (got {value:.2f} everywhere); exclude more layers"
            )


def save(out: Path, first: int, pictures: np.ndarray) -> None:
    """Write `first.png` and on, 8 bits a channel."""
    for i, picture in enumerate(pictures):
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(out / f"{first + i:03}.png")


def write_index(
    out: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    about: ImagesFile,
    videos: Sequence[VideoFiles | None] | None = None,
    given: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write images.json: `about` all of them, and a row for each, with the files of its video where it is one, and those of
    its prompt's pictures where it has some."""
    none: list[None] = [None] * len(prompts)
    each = zip(prompts, seeds, videos or none, given or none, strict=True)
    rows = (
        Drawn(f"{i:03}.png", p, s, v.frames if v else None, v.plays if v else None, own)
        for i, (p, s, v, own) in enumerate(each)
    )
    replace(about, images=tuple(rows)).write(out)


def save_given(out: Path, given: Mapping[str, Sequence[np.ndarray]]) -> list[dict[str, str]]:
    """Write `NNN.ROLE.png` of the prompts' pictures, which are uint8 [height, width] or [height, width, 3]; of each prompt the
    names by role."""
    rows: list[dict[str, str]] = []
    for role, own in given.items():
        rows = rows or [{} for _ in own]
        for i, picture in enumerate(own):
            rows[i][role] = f"{i:03}.{role}.png"
            Image.fromarray(picture).save(out / rows[i][role])
    return rows


def check_distinct(out: Path, prompts: Sequence[str]) -> None:
    """Raises GateError where two prompts have the very same picture.

    Every prompt has a seed of its own, so equal pictures of two prompts come of a model that sees neither."""
    first: dict[bytes, str] = {}
    for i, prompt in enumerate(prompts):
        picture = (out / f"{i:03}.png").read_bytes()  # equal pixels are equal bytes: one encoder wrote them
        if first.setdefault(picture, prompt) != prompt:
            raise GateError(
                f"sample: two prompts have the very same picture (got it for {first[picture]!r} and {prompt!r}); "
                "exclude layers by format.exclude, or set model.dtype=float32"
            )


def paths(folder: Path) -> tuple[list[str], list[Path]]:
    """Prompts and their pictures' files, in order."""
    rows = ImagesFile.read(folder).images
    return [row.prompt for row in rows], [folder / row.file for row in rows]


def frames(folder: Path) -> list[list[Path]]:
    """What is judged of each prompt, in order: the frames of a video, or the one picture."""
    return [[folder / name for name in row.judged] for row in ImagesFile.read(folder).images]


def save_differences(folder: Path, ours: Sequence[Path], theirs: Sequence[Path], gain: int) -> None:
    """Write `NNN.png`, `gain` x the absolute difference of each pair, into the new `folder`."""
    folder.mkdir()
    for i, pair in enumerate(zip(ours, theirs, strict=True)):
        left, right = (pixels(p).astype(np.int16) for p in pair)
        Image.fromarray((np.abs(left - right) * gain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")


def read(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Prompt and picture, uint8 [height, width, 3], in order."""
    for row in ImagesFile.read(folder).images:
        yield row.prompt, pixels(folder / row.file)
