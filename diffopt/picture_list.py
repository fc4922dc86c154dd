"""The JSON that names prompts and each model's picture of them: `[{"prompt": ..., "images": {"MODEL": "PATH"}}]`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.errors import ConfigError


@dataclass(frozen=True)
class PictureList:
    prompts: list[str]
    pictures: dict[str, list[Path]]
    """By model, one path for each prompt; models in the order of the first entry."""


def read(path: Path, root: Path | None = None) -> PictureList:
    """Paths in the file are relative to it; with `root`, none may lead out of that directory.

    Raises ConfigError, a line for each thing that is wrong. Whether the pictures can be read shows when they are.
    """
    where = f"--data-path {path}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ConfigError(
            f"--data-path: cannot be read ({(e.strerror or str(e)).lower()}) (got {str(path)!r}); check the path"
        ) from None
    except ValueError as e:
        raise ConfigError(f"--data-path: is not valid JSON ({e}) (got {str(path)!r}); mend the file") from None
    if not isinstance(rows, list) or not rows:
        raise ConfigError(
            f'{where}: is not a list of entries (got {type(rows).__name__}); write [{{"prompt": ..., "images": ...}}]'
        )
    errors: list[str] = []
    models: list[str] = list(rows[0]["images"]) if _has_images(rows[0]) else []
    prompts: list[str] = []
    pictures: dict[str, list[Path]] = {m: [] for m in models}
    for i, row in enumerate(rows):
        if problem := _problem(row, models):
            errors.append(f"{where}: entry {i} {problem}")
            continue
        prompts.append(row["prompt"])
        for model in models:
            picture = path.parent / row["images"][model]
            if root is not None and not picture.resolve().is_relative_to(root.resolve()):
                errors.append(
                    f"{where}: entry {i} leads out of --root {root} (got {row['images'][model]!r}); move the picture into it"
                )
            pictures[model].append(picture)
    if errors:
        raise ConfigError("\n".join(errors))
    return PictureList(prompts, pictures)


def _has_images(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("images"), dict) and bool(row["images"])


def _problem(row: Any, models: list[str]) -> str | None:
    if not isinstance(row, dict):
        return f'is no object (got {row!r}); write {{"prompt": ..., "images": {{"MODEL": "PATH"}}}}'
    if odd := sorted({*row} ^ {"prompt", "images"}):
        what = f"has the key {odd[0]!r}" if odd[0] in row else f"has no {odd[0]!r}"
        return f"{what} (got {', '.join(sorted(row))}); its keys are prompt and images"
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        return f"has no prompt (got {row['prompt']!r}); give a text"
    if not _has_images(row):
        return f'names no pictures (got {row["images"]!r}); write {{"MODEL": "PATH"}}'
    if odd := [m for m, p in row["images"].items() if not isinstance(p, str) or not p]:
        return f"has no path for {odd[0]!r} (got {row['images'][odd[0]]!r}); give a file's path"
    if {*row["images"]} != {*models}:
        ours, first = ", ".join(row["images"]), ", ".join(models)
        return f"has other models than the first entry (got {ours}; there {first}); name the same in all"
    return None
