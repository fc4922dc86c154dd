"""Parts of a set of pictures put together: the files are linked where the disk can, so that they take no room twice."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffopt.files.cache_summary import CacheSummary
from diffopt.files.images import Drawn, ImagesFile
from diffopt.files.ranges import RangesFile, merged


def join(out: Path, parts: Sequence[Path]) -> None:
    """Write the pictures of the parts into `out`, numbered through, with images.json, and ranges.json where each has one."""
    files = [ImagesFile.read(p) for p in parts]
    rows: list[Drawn] = []
    for folder, file in zip(parts, files, strict=True):
        rows += [_taken(out, folder, row, i) for i, row in enumerate(file.images, len(rows))]
    replace(files[0], cache=_cache(files), images=tuple(rows)).write(out)
    if all((p / RangesFile.NAME).is_file() for p in parts):
        merged([RangesFile.read(p) for p in parts]).write(out)


def _taken(out: Path, folder: Path, row: Drawn, number: int) -> Drawn:
    """The row under its new number, and its files."""

    def take(name: str) -> str:
        first, *within = Path(name).parts
        new = Path(f"{number:03}{''.join(Path(first).suffixes)}", *within)
        (out / new).parent.mkdir(exist_ok=True)
        try:
            os.link(folder / name, out / new)
        except OSError:  # another disk, or one without links
            shutil.copyfile(folder / name, out / new)
        return new.as_posix()

    frames = None if row.frames is None else [take(name) for name in row.frames]
    if (folder / (sound := Path(row.file).with_suffix(".wav"))).is_file():
        take(sound.name)
    given = row.given and {role: take(name) for role, name in row.given.items()}
    return replace(row, file=take(row.file), frames=frames, plays=row.plays and take(row.plays), given=given)


def _cache(files: Sequence[ImagesFile]) -> CacheSummary | None:
    """Over all pictures."""
    found = [(f.cache, len(f.images)) for f in files if f.cache]
    if not found:
        return None
    computed = sum(c.computed * many for c, many in found) / sum(many for _, many in found)
    return CacheSummary(sum(c.hits for c, _ in found), sum(c.misses for c, _ in found), round(computed, 6))
