"""Where Hydra finds conf/ and recipes/: in a checkout, in a wheel, and in the user's own directories."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from diffopt.cli import commands, overrides, own_options, strangers, yaml_source
from diffopt.cli.yaml_source import YamlSource
from diffopt.errors import ConfigError
from diffopt.machine import environment, worker

GROUP = "recipe"
VARIABLE = "DIFFOPT_RECIPES"
READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of YAML's two, the one in C, where it was built
PLUGINS = Path(__file__).parent / "plugins"
"""Our settings of Hydra's launchers and sweepers, in place of the plugins' own; there also where a plugin is not installed."""

SWEEPER = Path(__file__).parent.parent / "race" / "plugin"
"""Where our sweeper is: Hydra takes one from the namespace `hydra_plugins` alone, which packages of others share."""


def bundled(name: str) -> Path:
    """The directory `name`: inside the package in a wheel, beside the package in a checkout."""
    package = Path(__file__).parent.parent
    for root in (package, package.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"diffopt was installed without its {name}/ directory")


def recipe_dirs(config_dir: Path | None = None) -> list[Path]:
    """Directories of recipes: ours, those that $DIFFOPT_RECIPES names, ./recipes, and `recipes` and `recipe` in --config-dir.

    Raises ConfigError when two of them have a recipe of the same name, of which Hydra would take one without a word.
    """
    named = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    if gone := [p for p in named if not p.is_dir()]:
        raise ConfigError(f"{VARIABLE}: is not a directory (got {str(gone[0])!r}); mend the variable")
    own = [config_dir / "recipes", config_dir / GROUP] if config_dir else []
    found = list(dict.fromkeys(d.resolve() for d in [bundled("recipes"), *named, Path("recipes"), *own] if d.is_dir()))
    seen: dict[str, Path] = {}
    for path in (p for d in found for p in sorted(d.glob("*.yaml"))):
        if path.name in seen:
            raise ConfigError(f"recipe: two are called {path.stem!r} (got {seen[path.name]} and {path}); rename one")
        seen[path.name] = path
    return found


class RecipeSource(YamlSource):
    """Serves a flat directory of YAML files as the config group `recipe`, and what one writes out as options of its groups."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.rpartition("/")
        recipe = super().load_config(name.removeprefix(own_options.PREFIX))
        strangers.check_recipe(recipe.config, f"{name}.yaml")
        if group != GROUP:
            return replace(recipe, config=recipe.config[group], header={"package": None})
        if groups := own_options.whole(recipe.config):
            assert isinstance(recipe.config, DictConfig)
            recipe.config = own_options.picking(recipe.config, groups, name)
        return recipe

    def available(self) -> bool:
        return os.path.isdir(self.path)

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.rpartition("/")
        if group == GROUP:
            return bool(name) and bool(super().is_config(name))
        recipe = name.removeprefix(own_options.PREFIX)
        if recipe == name or not super().is_config(recipe):
            return False
        return group in own_options.whole(super().load_config(recipe).config)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [GROUP]
        if results_filter == ObjectType.GROUP:
            return []
        return sorted(p.stem for p in Path(self.path).glob("*.yaml"))


class RecipeSearchPath(SearchPathPlugin):
    config_dir: Path | None = None
    ours = False

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for d in recipe_dirs(self.config_dir):
            search_path.append("diffopt", f"recipes://{d}")
        if self.config_dir and self.ours:
            search_path.append("command-line", f"file://{self.config_dir.resolve()}")


def _directions(objective: Any) -> str | list[str]:
    from diffopt.jobs.objective import directions

    return directions(objective)


RESOLVERS: dict[str, Callable[..., Any]] = {
    "jobs": worker.jobs,
    "gpus_per_job": lambda: min(1, len(environment.gpus())),
    "cores_per_job": lambda: max(1, len(os.sched_getaffinity(0)) // worker.jobs()),
    "at_once": lambda launcher: 1 if launcher.endswith("BasicLauncher") else worker.jobs(),
    "directions": _directions,
    "commands": commands.lines,
}
"""What the launchers' and the sweeper's settings take from this machine and from the recipe, and the help from the table of
commands: `${diffopt.jobs:}`."""


def register(config_dir: Path | None = None, *, ours: bool = False) -> None:
    """Teach Hydra both; before anything is composed.

    `ours` says that nobody else puts `config_dir` on the search path; where Hydra's own main runs, it does.
    """
    RecipeSearchPath.config_dir, RecipeSearchPath.ours = config_dir, ours
    if str(SWEEPER) not in sys.path:
        sys.path.append(str(SWEEPER))
    overrides.let_in()
    strangers.register()
    Plugins.instance().register(RecipeSource)
    yaml_source.register()
    Plugins.instance().register(RecipeSearchPath)
    # As structured configs, of which the last one stored counts: a file would take the plugin's of the same name for its
    # schema, with a warning.
    store = ConfigStore.instance()
    for path in sorted(PLUGINS.rglob("*.yaml")):
        group = f"hydra/{path.parent.relative_to(PLUGINS).as_posix()}"
        store.store(path.stem, yaml.load(path.read_text(), READER), group=group, provider="diffopt")
    # Hydra copies all its sources for each group that it lists: 102 times for --help, most of its time where launchers are
    # installed. The store of structured configs is only read by then, and gives out copies itself.
    vars(store)["__deepcopy__"] = lambda _: store
    for name, resolve in RESOLVERS.items():
        OmegaConf.register_new_resolver(f"diffopt.{name}", resolve, replace=True)
