"""The JSON that names prompts and each model's picture of them: `[{"prompt": ..., "images": {"MODEL": "PATH"}}]`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffopt.data.text_file import MOST
from diffopt.errors import ConfigError
from diffopt.report.run_directory import RUN, Run
from diffopt.store.files import content


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
    if root is not None and not root.is_dir():
        raise ConfigError(f"--root: is no directory (got {str(root)!r}); name the one that all pictures are in")
    try:
        rows = json.loads(content(path, MOST).decode("utf-8-sig"))
    except OSError as e:
        raise ConfigError(
            f"--data-path: cannot be read ({(e.strerror or str(e)).lower()}) (got {str(path)!r}); check the path"
        ) from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"--data-path: is not valid JSON ({e}) (got {str(path)!r}); mend the file") from None
    if not isinstance(rows, list) or not rows:
        kind = "an empty one" if rows == [] else type(rows).__name__
        raise ConfigError(f'{where}: is not a list of entries (got {kind}); write [{{"prompt": ..., "images": ...}}]')
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


FULL = "full precision"


def of_runs(directories: list[Path]) -> PictureList:
    """The pictures of runs, and of all jobs of sweeps, beside the first one's full-precision reference.

    A model is called by what tells its run from the others (`format=fp8` is `fp8`), or else by its format. Raises
    ConfigError where the runs did not draw the same prompts and seeds.
    """
    files: list[Path] = []
    for directory in directories:
        there = directory / RUN
        files += [there] if there.is_file() else sorted(directory.glob(f"**/{RUN}"), key=_number)
    runs = [Run(path.parent) for path in files]
    found: dict[str, list[Path]] = {}
    drawn: list[tuple[str, int]] = []
    for name, run in zip(_names(runs), runs, strict=True):
        images, base = run.images.images, run.references.images
        these = [(row.prompt, row.seed) for row in images]
        if not images or not base:
            raise ConfigError(f"--data-path: a run has no pictures with references (got {str(run.directory)!r}); leave it out")
        if drawn and these != drawn:
            raise ConfigError(
                f"--data-path: a run drew other prompts or seeds than {str(runs[0].directory)!r} "
                f"(got {str(run.directory)!r}); their pictures are no pairs"
            )
        drawn = these
        found.setdefault(FULL, [run.directory / "reference" / row.file for row in base])
        found[name] = [run.directory / "sample" / row.file for row in images]
    if not found:
        raise ConfigError(f"--data-path: is no run or sweep (got {', '.join(map(str, directories))}); name one, or a JSON file")
    return PictureList([prompt for prompt, _ in drawn], found)


def _number(path: Path) -> list[int | str]:
    """Job 10 comes after job 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _names(runs: list[Run]) -> list[str]:
    """What tells each run from the others: the overrides that not all have, or the format where there are none."""
    given = [dict(o.lstrip("+").split("=", 1) for o in run.content.overrides if "=" in o) for run in runs]
    distinguishing = [{k: v for k, v in mine.items() if any(other.get(k) != v for other in given)} for mine in given]
    return [
        ", ".join(v if k == "format" else f"{k}={v}" for k, v in mine.items())
        or run.config["format"].get("name")
        or "candidate"
        for mine, run in zip(distinguishing, runs, strict=True)
    ]


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
