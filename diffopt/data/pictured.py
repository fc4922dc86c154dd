"""Prompts that carry pictures: what is edited, its mask, or what steers, known by content and cut to the size that is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import PlanError

if TYPE_CHECKING:
    from PIL import Image

MASK = "mask"
ROLES = ("image", MASK, "control")
"""Keys of a row: what is edited or begins a video, what of it is drawn anew (white), what steers a ControlNet."""


@dataclass(frozen=True)
class Shown:
    """A picture of a prompt. It is the same wherever its file lies."""

    path: Path = field(compare=False)
    sha256: str


Pictures = Mapping[str, Shown]
"""Of one prompt, by role."""


class Asked(str):
    """A prompt's text that has the paths of its pictures with it, by role: what a family's `embed` is given."""

    pictures: Mapping[str, str]

    def __new__(cls, text: str, pictures: Mapping[str, str]) -> "Asked":
        made = super().__new__(cls, text)
        made.pictures = pictures
        return made


def pictures_of(rows: Sequence[Any], folder: Path) -> tuple[Pictures, ...]:
    """Of each row of a file in `folder`; empty where no row has any.

    Raises ValueError, which names the row, for one that lacks a picture that another row has, for what is no picture, and for
    a mask of another size than its image.
    """
    roles = [r for r in ROLES if any(isinstance(row, dict) and row.get(r) is not None for row in rows)]
    if not roles:
        return ()
    return tuple(_row(row, f"row {n} of {len(rows)}", roles, folder) for n, row in enumerate(rows, 1))


def _row(row: Any, where: str, roles: Sequence[str], folder: Path) -> Pictures:
    found, sizes = {}, {}
    for role in roles:
        name = row.get(role) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"holds no {role} in {where}, as other rows do; name its file there, or leave the row out")
        path = folder / name
        found[role] = Shown(path.resolve(), _digest(path, role, where))
        sizes[role] = _size(path, role, where)
    if MASK in sizes and "image" in sizes and sizes[MASK] != sizes["image"]:
        mask, image = ("{}x{}".format(*sizes[r]) for r in (MASK, "image"))
        raise ValueError(f"holds a mask of {mask} for an image of {image} in {where}; make it as large as the image")
    return found


def _digest(path: Path, role: str, where: str) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise ValueError(
            f"holds the {role} {path.name} in {where}, which cannot be read ({reason}); paths are relative to that file"
        ) from None


def _size(path: Path, role: str, where: str) -> tuple[int, int]:
    from diffopt.data.picture import BROKEN, extent

    try:
        return extent(path)
    except BROKEN as e:
        known = str(e) if isinstance(e, ValueError) and not isinstance(e, OSError) else ""
        reason = f"which {known.partition('; ')[0]}" if known.startswith("has ") else "which is no picture that is read here"
        raise ValueError(f"holds the {role} {path.name} in {where}, {reason}; mend it, or leave the row out") from None


def unfit(family: str, takes: Sequence[str], there: Sequence[str], where: str = "") -> str | None:
    """Why prompts with the pictures `there` are none for a family that `takes` such, and what to do; None where they are.

    `where` is what the user called the prompts.
    """
    if {*takes} == {*there}:
        return None
    got = where or ", ".join(there) or "texts"
    if not takes:
        return f"{family} takes texts, not pictures (got {got}); give a file of texts"
    rows = ", ".join(f'"{n}": ...' for n in ("prompt", *takes))
    advice = f"give a .json or .jsonl with rows {{{rows}}}, whose paths are relative to it"
    lacking, extra = [r for r in takes if r not in there], [r for r in there if r not in takes]
    if lacking:
        return (
            f"{family} takes {_and(takes)} with every prompt, and there is no {' and no '.join(lacking)} (got {got}); {advice}"
        )
    return f"{family} takes {_and(takes)} with every prompt, and no {' or '.join(extra)} (got {got}); leave it out of the rows"


def _and(roles: Sequence[str]) -> str:
    return " and ".join(f"an {r}" if r[0] in "aeiou" else f"a {r}" for r in roles)


def fitted(path: str | Path, width: int, height: int) -> "Image.Image":
    """The picture in the size that is drawn, cropped about its middle. Raises PlanError for a file that is no picture."""
    from PIL import Image, ImageOps

    from diffopt.data import picture

    try:
        return ImageOps.fit(picture.opened(path), (width, height), Image.Resampling.LANCZOS)
    except picture.BROKEN as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:160]
        raise PlanError(f"prompts: a picture cannot be read: {reason} (got {str(path)!r}); mend or remove it") from None
