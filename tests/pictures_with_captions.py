"""Small folders of drawn shapes with captions, laid out as Hugging Face's imagefolder has them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "orange": (240, 150, 30)}


def shape(i: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The i-th picture: a disc or a square of a colour on white, which no two of the first 64 have at the same place."""
    picture = Image.new("RGB", size, "white")
    side = min(size) // 2
    left, top = (i * 7) % (size[0] - side), (i * 11) % (size[1] - side)
    draw, colour = ImageDraw.Draw(picture), [*COLOURS.values()][i % 4]
    (draw.ellipse if i % 2 else draw.rectangle)((left, top, left + side, top + side), colour)
    return picture


def caption(i: int) -> str:
    return f"{[*COLOURS][i % 4]} {'disc' if i % 2 else 'square'}, number {i}"


def folder(where: Path, many: int, size: tuple[int, int] = (64, 64), column: str = "text", suffix: str = "png") -> Path:
    """`many` pictures and their metadata.jsonl in a new folder."""
    where.mkdir(parents=True, exist_ok=True)
    for i in range(many):
        shape(i, size).save(where / f"{i:03}.{suffix}")
    describe(where, [{"file_name": f"{i:03}.{suffix}", column: caption(i)} for i in range(many)])
    return where


def describe(where: Path, rows: Sequence[dict[str, object]]) -> None:
    (where / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """dB, of pictures in 0..255."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
