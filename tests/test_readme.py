"""The README's tables and commands are true."""

import json
import re
import shlex
from pathlib import Path

import matrix_table
import pytest
from hydra import compose, initialize_config_dir
from test_matrix import MODELS

from diffopt.cli.main import COMMANDS
from diffopt.cli.searchpath import bundled, register
from diffopt.groups import PICKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """First cell, without its backticks, to second cell, of the table under a heading."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {c[0].strip().strip("`"): c[1].strip() for c in cells}


def first_sentence(recipe: Path) -> str:
    comments = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("# ")]
    return " ".join(comments[1:]).split(". ")[0].split(" Needs:")[0].rstrip(".")


def test_the_table_of_groups_names_every_option():
    there = {g: {p.stem for p in (bundled("conf") / g).glob("*.yaml")} for g in PICKS}
    told = {g.rstrip("="): set(re.findall(r"`([\w.]+)`", cell)) for g, cell in rows("Groups").items()}
    assert told == there


def test_the_table_of_recipes_has_every_recipe_with_its_own_first_sentence():
    there = {p.stem: first_sentence(p) for p in bundled("recipes").glob("*.yaml")}
    assert {name: text.rstrip(".") for name, text in rows("Recipes").items()} == there


def test_every_recipe_opens_with_what_it_makes_needs_and_how_to_run_it():
    for path in bundled("recipes").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# @package _global_\n# ")
        for part in ("# Needs:", f"# Run:   diffopt +recipe={path.stem}", "# Expect:"):
            assert part in text, f"{path.name} lacks {part}"


def test_every_make_target_that_the_readme_names_is_there():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make (\w+)`?", README))
    assert named
    assert named <= targets


def commands() -> list[str]:
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("diffopt ")]


@pytest.mark.parametrize("command", commands())
def test_every_diffopt_command_in_the_readme_is_one(command):
    words = shlex.split(command)[1:]
    if (words[0] in COMMANDS and words[0] != "plan") or words[0].startswith("-"):
        return
    overrides = [w for w in words if "=" in w and "," not in w.partition("=")[2] and not w.startswith("-")]
    if any("my_" in w or "PATH" in w for w in overrides):
        return
    register()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        assert compose("config", overrides)


def test_the_support_matrix_is_that_of_the_last_results():
    found = json.loads(matrix_table.FOUND.read_text())
    assert matrix_table.table(found) in README
    assert {name: set(cells) for name, cells in found["cells"].items()} == {n: set(matrix_table.FORMATS) for n in MODELS}
