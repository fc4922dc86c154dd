"""The answer as a recipe: `ship.json` with what was chosen and why, and the same recipe as a file that runs."""

import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from diffopt.files.json_file import plain
from diffopt.files.race import RaceFile
from diffopt.groups import PICKS
from diffopt.report.run_directory import Run
from diffopt.store.files import publish
from diffopt.sweep.race import verdict

SHIP, RECIPE = "ship.json", "recipes/shipped.yaml"
"""In the race's directory, which is then given as --config-dir."""


def write(directory: Path, race: RaceFile, run: Run) -> str:
    """Write both. Returns a line for the console."""
    recipe = _recipe(run)
    command = f"diffopt +recipe={Path(RECIPE).stem} --config-dir {directory}"
    text = "\n".join(verdict(race))
    head = ["# @package _global_", *(f"# {line}" for line in text.splitlines()), f"# Run:   {command}"]
    (directory / RECIPE).parent.mkdir(exist_ok=True)
    publish(directory / RECIPE, "\n".join([*head, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)]))
    entries = {e.number: plain(e) for e in race.entries}
    ending = race.ending
    content = {
        "schema": "diffopt.ship/1",
        "want": race.want,
        "by": race.by,
        "floors": race.floors,
        "chance": race.chance,
        "chosen": entries[race.chosen or 0],
        "shown": race.shown,
        "runner_up": entries[ending.runner_up] if ending and ending.runner_up is not None else None,
        "ties": list(ending.ties) if ending else [],
        "doubtful": list(ending.doubtful) if ending else [],
        "pictures": {"drawn": race.pictures, "whole": race.whole},
        "said": verdict(race),
        "command": command,
        "recipe": recipe,
    }
    publish(directory / SHIP, json.dumps(content, indent=1))
    return "\n".join([*(f"ship    {line}" for line in verdict(race)), f"recipe  {directory / SHIP}; {command}"])


def _recipe(run: Run) -> dict[str, Any]:
    """What the run was asked for, its groups written out."""
    found: Any = OmegaConf.to_container(OmegaConf.create(run.content.config), resolve=False)
    picked = {g: found[g] for g in PICKS if found.get(g)}
    return {"seed": found["seed"], **picked}
