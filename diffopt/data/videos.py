"""Videos on disk: of each the frames that are judged, PNG without loss, and one file that plays."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffopt.data import pictures
from diffopt.files.images import VideoFiles

QUALITY = 80
"""Of the file that plays, WebP: for people, never judged."""


def sampled(there: int, asked: int | None) -> list[int]:
    """Numbers of the frames that are judged, evenly spaced from the first to the last, each once; without `asked` all."""
    many = there if asked is None else min(asked, there)
    return [int(i) for i in np.linspace(0, there - 1, many).round()]


def save(out: Path, first: int, drawn: np.ndarray, asked: int | None, rate: int) -> list[VideoFiles | None]:
    """Write what was drawn of prompt `first` and on; of each the files of its video, None of a picture.

    `drawn` is float in 0..1. A picture, [n, height, width, 3], is `NNN.png` and nothing more. A video, [n, frames, height,
    width, 3], is `NNN.png`, four frames side by side that stand for it; `NNN/FFF.png`, each frame of `sampled` under its
    number; and `NNN.webp`, all frames at `rate` a second.
    """
    pictures.save(out, first, pictures.strip(drawn))
    if drawn.ndim == 4:
        return [None] * len(drawn)
    rows: list[VideoFiles | None] = []
    for i, video in enumerate(drawn, first):
        frames = [Image.fromarray(f) for f in (video * 255).round().astype(np.uint8)]
        (out / f"{i:03}").mkdir()
        names = [f"{i:03}/{k:03}.png" for k in sampled(len(frames), asked)]
        for k, name in zip(sampled(len(frames), asked), names, strict=True):
            frames[k].save(out / name)
        # Method 0: the others are several times slower, for a tenth of the size.
        plays: dict[str, Any] = {"append_images": frames[1:], "duration": round(1000 / rate), "loop": 0, "method": 0}
        frames[0].save(out / f"{i:03}.webp", save_all=True, quality=QUALITY, **plays)
        rows.append(VideoFiles(names, f"{i:03}.webp"))
    return rows
