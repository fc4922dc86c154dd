"""What a config file from a stranger may not do: run code, read secrets, reach out of its directory, or take all memory."""

import os
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import Container, DictConfig, ListConfig, OmegaConf

from diffopt.errors import ConfigError

LARGEST = 1 << 20
"""Bytes of a config file; those of diffopt have at most some thousand."""
DEEPEST, MOST = 64, 100_000
"""Levels of nesting, and values once aliases are written out."""
READABLE = (
    *("DIFFOPT_STORE", "DIFFOPT_JOBS", "DIFFOPT_RECIPES", "DIFFOPT_DATA", "HOME", "TMPDIR", "SCRATCH", "HF_HOME"),
    *("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "SLURM_NTASKS"),
)
"""Variables of the environment that `${oc.env:NAME}` gives: places and numbers, of which none is a secret."""
RUNS = ("_target_", "env_set", "setup")
"""Keys by which Hydra and its launchers run what they are told to: a class, a program's environment, lines of a shell."""


def environment(name: str, default: Any = "???") -> Any:
    """`${oc.env:NAME}` and `${oc.env:NAME,DEFAULT}`. Raises ConfigError for a variable that may hold a secret."""
    if name not in READABLE:
        raise ConfigError(
            f"oc.env: the variable is not given to recipes, as what it holds would be written down (got {name!r}); put the "
            f"value into the recipe, or use one of {', '.join(READABLE[:3])} ..., which recipes/README.md lists"
        )
    found = os.environ.get(name)
    if found is None and default == "???":
        raise ConfigError(
            f"oc.env: the variable is not set (got {name!r}); set it, or give a default: ${{oc.env:{name},VALUE}}"
        )
    return default if found is None else found


def check_text(text: str, where: str) -> None:
    """Raises ConfigError for YAML that is not worth parsing."""
    if len(text) > LARGEST:
        raise ConfigError(f"{where}: is no config file of this size (got {len(text)} characters); at most {LARGEST}")
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ConfigError(f"{where}: is nested too deep (got {deepest} levels); at most {DEEPEST}")
    if "&" in text and "*" in text and (many := _expanded(text)) > MOST:
        raise ConfigError(f"{where}: has aliases that stand for too many values (got {many}); at most {MOST}")


def _expanded(text: str) -> int:
    """Values of a YAML text with its aliases written out, without writing them out."""
    root = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    counted: dict[int, int] = {}

    def count(node: yaml.Node | None) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in counted:
            counted[id(node)] = MOST  # of one that has itself within it
            parts = [x for pair in node.value for x in pair] if isinstance(node, yaml.MappingNode) else node.value
            counted[id(node)] = 1 + sum(map(count, parts))
        return counted[id(node)]

    return count(root)


def check_recipe(config: Container, where: str) -> None:
    """Raises ConfigError for a recipe that has more than picks and values."""
    for key in _keys(config):
        if key in RUNS:
            raise ConfigError(
                f"{where}: a recipe has picks and values, and no code (got the key {key!r}); leave it out, or give it on the "
                "command line"
            )


def _keys(config: Any) -> Iterator[str]:
    if isinstance(config, DictConfig) and not config._is_missing() and not config._is_none() and not config._is_interpolation():
        for key in config:
            yield str(key)
            yield from _keys(config._get_node(key))
    elif isinstance(config, ListConfig) and not config._is_missing() and not config._is_none():
        for node in config._iter_ex(resolve=False):
            yield from _keys(node)


def check_choices(arguments: list[str]) -> None:
    """Raises ConfigError for an option that leads out of its group's directories."""
    for argument in arguments:
        key, sign, value = argument.lstrip("+~").partition("=")
        if sign and os.pardir in value.split("/") and "." not in key and key != "store":  # groups alone have no dot in them
            raise ConfigError(f"{key}: is no name of an option (got {value!r}); `diffopt ls` lists them")


def register() -> None:
    OmegaConf.register_new_resolver("oc.env", environment, replace=True)
