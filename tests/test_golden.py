"""Every checked-in recipe's step fingerprints, so that a change of key shows in review.

Rewrite them with `make golden`, and say in the commit why the keys changed.
"""

import json
from itertools import product
from pathlib import Path

import pytest
from conftest import registered, some
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffopt.cli.searchpath import bundled
from diffopt.jobs import runtime_checks

GOLDEN = Path(__file__).with_name("golden.json")
RECIPES = sorted(p.stem for p in bundled("recipes").glob("*.yaml"))
LAUNCHED = [f"emoji_int8_{launcher}" for launcher in ("joblib", "ray", "submitit")]
"""The jobs of emoji_int8_grid, which other launchers start."""


def jobs(recipe: str) -> list[list[str]]:
    """The overrides of every job of the recipe: one empty list, or the combinations that it sweeps over.

    Of a search, which chooses its jobs as it goes, one: the first value of each key.
    """
    if "hydra" not in (bundled("recipes") / f"{recipe}.yaml").read_text():  # its sweeper is where it would sweep
        return [[]]
    registered()
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        sweeper = compose("config", [f"+recipe={recipe}"], return_hydra_config=True).hydra.sweeper
    params = sweeper.params or {}
    swept = [OverridesParser.create().parse_override(f"{key}={values}") for key, values in params.items()]
    each = [
        [f"{s.get_key_element()}={v}" for v in s.sweep_string_iterator()] if s.is_sweep_override() else [s.input_line]
        for s in swept
    ]
    found = [list(combination) for combination in product(*each)]
    return found if sweeper._target_.endswith("BasicSweeper") else found[:1]


@pytest.fixture
def keys(plan, monkeypatch):
    """`keys(recipe)`: for every job of the recipe, the fingerprint of every step by its name."""
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ({"name": "NVIDIA H200", "capability": "9.0"},))  # as benches need

    def of(recipe: str) -> dict[str, dict[str, str]]:
        found = {}
        for job in jobs(recipe):
            steps = plan(f"+recipe={recipe}", *job, sweep=True).steps
            found[" ".join([recipe, *job])] = {s.name: s.fingerprint for s in steps}
        return found

    return of


@pytest.fixture
def rewrite(request) -> bool:
    return bool(request.config.getoption("--golden"))


@pytest.mark.parametrize("recipe", some(RECIPES, [r for r in RECIPES if r not in LAUNCHED]))
def test_the_steps_of_a_recipe_are_keyed_as_in_the_golden_file(recipe, keys, rewrite):
    now, golden = keys(recipe), json.loads(GOLDEN.read_text())
    others = {job: steps for job, steps in golden.items() if job.split()[0] != recipe}
    if rewrite:
        kept = {job: steps for job, steps in (others | now).items() if job.split()[0] in RECIPES}
        golden = dict(sorted(kept.items(), key=lambda item: RECIPES.index(item[0].split()[0])))
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert now == {job: steps for job, steps in golden.items() if job not in others}


@pytest.mark.parametrize("recipe", LAUNCHED)
def test_a_launcher_changes_no_key(recipe):
    golden = json.loads(GOLDEN.read_text())
    jobs = [{job.partition(" ")[2]: s for job, s in golden.items() if job.split()[0] == r} for r in (recipe, "emoji_int8_grid")]
    assert jobs[0] == jobs[1] != {}


def test_the_golden_file_has_no_recipe_that_is_gone():
    golden = json.loads(GOLDEN.read_text())
    assert {job.split()[0] for job in golden} == set(RECIPES)
