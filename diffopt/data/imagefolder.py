"""Pictures with captions of the user's own, or a data set of the hub: opened, checked whole, and cut to the model's size.

The library `datasets` reads them, row by row, so that its conventions are the ones that hold and nothing is copied. Pictures
are decoded here, because the library stops at the first one that is broken.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diffopt.data.extent import Extent, Small
from diffopt.data.frames import fitted, frames
from diffopt.data.picture import BROKEN
from diffopt.data.prompt_sets import COLUMNS
from diffopt.errors import PlanError, pass_on

WHERE = "train.data.source"
UNREADABLE = 0.01
"""Share of the pictures that may be unreadable and are skipped."""
WINDOW = 64  # pictures that are decoded at a time


@dataclass(frozen=True)
class ImageFolder:
    """The first `size` rows of the data set in `directory`, all without a size; `name` is what the user called it.

    Raises PlanError, one line, for what is no data set, has no pictures or a picture without a caption.
    """

    directory: Path
    name: str
    size: int | None = None
    column: str | None = None
    """Of the captions; None finds it."""

    @cached_property
    def _rows(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(str(self.directory), split="train", streaming=True).decode(False)
        except Exception as e:  # the library's readers each have errors of their own
            pass_on(e)
            raise self._refusal(
                f"is no data set that can be read: {_first_line(e)}",
                "give pictures and a metadata.jsonl with file_name and text of each, or Parquet files",
            ) from None

    @cached_property
    def _pictures(self) -> str:
        """The column of pictures, or of lists of a video's frames."""
        from datasets import Image as Picture
        from datasets import List, Video

        columns = self._rows.features or {}
        for name, kind in columns.items():
            if isinstance(kind, Picture) or (isinstance(kind, List) and isinstance(kind.feature, Picture)):
                return str(name)
        if any(isinstance(kind, Video) for kind in columns.values()):
            raise self._refusal(
                "holds films, which are not decoded here",
                "write each one's frames as pictures, and their names in metadata.jsonl as frames_file_names",
            )
        raise self._refusal("holds no pictures", "put some in it, or name another directory")

    @cached_property
    def captions(self) -> list[str]:
        """Of every row, in order."""
        pictures, there = self._pictures, list(self._rows.features)
        column = self.column or next((c for c in COLUMNS if c in there), None)
        if column not in there or column == pictures:
            others = ", ".join(c for c in there if c != pictures) or "no column but the pictures"
            what = f"has no captions in a column {column!r}" if column else "has no captions"
            raise self._refusal(
                f"{what} (there is {others})",
                "write a metadata.jsonl with file_name and text, or name it by train.data.caption",
            )
        found = [_text(row[column]) for row in islice(self._rows.select_columns([column]), self.size)]
        if self.size and len(found) < self.size:
            raise PlanError(
                f"train.data.size: is more than the {len(found)} pictures of {self.name} (got {self.size}); lower it"
            )
        if empty := [i for i, text in enumerate(found) if not text]:
            raise self._refusal(
                f"{len(empty)} of {len(found)} pictures have no caption, the first is {self._named(empty[0])}",
                "write one, or leave the picture out",
            )
        if not found:
            raise self._refusal("holds no pictures", "put some in it, or name another directory")
        return found

    def unreadable(self, extent: Extent, small: Small) -> dict[int, str]:
        """Decode every picture; by row the names of those that cannot be.

        Raises PlanError where these are more than 1%, where a picture is smaller than `extent` and `small` is to refuse
        it, and where a video has too few frames.
        """
        broken: dict[int, str] = {}
        tiny: list[str] = []
        short: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first, rows in self._windows(WINDOW):
                for i, seen in enumerate(pool.map(lambda row: self._inspect(row, extent), rows)):
                    name = _name(rows[i][self._pictures], first + i)
                    if seen is None:
                        broken[first + i] = name
                    elif extent.frames and seen.frames and seen.frames < extent.frames:
                        short.append(f"{name} with {seen.frames}")
                    elif seen.height < extent.height or seen.width < extent.width:
                        tiny.append(f"{name} with {seen.width}x{seen.height}")
        total = len(self.captions)
        if len(broken) > UNREADABLE * total:
            names = ", ".join([*broken.values()][:3])
            raise self._refusal(
                f"{len(broken)} of {total} pictures cannot be read, more than {UNREADABLE:.0%}; the first are {names}",
                "mend them, or leave them out",
            )
        if short:
            raise self._refusal(
                f"{len(short)} of {total} videos have fewer than model.frames={extent.frames} frames, the first is {short[0]}",
                "lower model.frames, or leave them out",
            )
        if tiny and small == "refuse":
            raise self._refusal(
                f"{len(tiny)} of {total} pictures are smaller than model.width x model.height = "
                f"{extent.width}x{extent.height}, the first is {tiny[0]}",
                "leave them out, lower the size, or set train.data.small=enlarge",
            )
        return broken

    def pixels(self, extent: Extent, batch_size: int, skipped: Sequence[int]) -> Iterator[np.ndarray]:
        """Batches of all but the skipped rows, uint8 [b, frames, height, width, 3]: see `fitted`."""
        left = set(skipped)
        batch: list[np.ndarray] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first, rows in self._windows(WINDOW):
                good = [row for i, row in enumerate(rows, first) if i not in left]
                for made in pool.map(lambda row: self._fitted(row, extent), good):
                    batch.append(made)
                    if len(batch) == batch_size:
                        yield np.stack(batch)
                        batch = []
        if batch:
            yield np.stack(batch)

    def _windows(self, many: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The index of the first row, and the rows, so many at a time."""
        rows = enumerate(islice(self._rows.select_columns([self._pictures]), self.size))
        while window := [*islice(rows, many)]:
            yield window[0][0], [row for _, row in window]

    def _inspect(self, row: dict[str, Any], extent: Extent) -> Extent | None:
        """The extent of a row's picture or video as it is stored, or None where it cannot be decoded."""
        try:
            seen = [frame.size for frame in frames(row[self._pictures], extent.frames)]
        except BROKEN:
            return None
        return Extent(min(h for _, h in seen), min(w for w, _ in seen), len(seen)) if seen else None

    def _fitted(self, row: dict[str, Any], extent: Extent) -> np.ndarray:
        return np.stack([fitted(frame, extent) for frame in frames(row[self._pictures], extent.frames)])

    def _named(self, index: int) -> str:
        row = next(islice(self._rows.select_columns([self._pictures]), index, None))
        return _name(row[self._pictures], index)

    def _refusal(self, what: str, advice: str) -> PlanError:
        return PlanError(f"{WHERE}: {what} (got {self.name!r}); {advice}")


def _name(stored: Any, index: int) -> str:
    """The file's name, or the number of the row where it has none."""
    first = stored[0] if isinstance(stored, list) and stored else stored
    path = first.get("path") if isinstance(first, dict) else None
    return path.partition("::")[0].rpartition("/")[2] if path else f"row {index}"


def _text(value: Any) -> str:
    """Of several captions of a picture the first."""
    value = value[0] if isinstance(value, list) and value else value
    return value.strip() if isinstance(value, str) else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
