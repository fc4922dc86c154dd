"""A recipe that writes out a whole group, and picks no option of it: what it writes is an option of its own.

Hydra lays a recipe's values over those of the option that is chosen: all that a recipe has written out would stay, whatever
option a command line, a sweep or a recipe that extends it chooses. So such a group is served as an option, of which the
recipe makes the choice, and another choice takes its place.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

PREFIX = "of-recipe-"
"""Of the options' names, before the recipe's."""
DECIDES = {"export": {"kind"}}
"""Of a group whose fields all have a default, those without which it is not whole all the same."""


def whole(config: Any) -> list[str]:
    """The groups that a recipe's file writes out whole, where nothing else in it chooses an option of them."""
    if not isinstance(config, DictConfig):
        return []
    defaults = config.get("defaults") or []
    if any(isinstance(d, str) and d != "_self_" for d in defaults):  # it extends a recipe, which picks
        return []
    keys = [str(k) for d in defaults if isinstance(d, DictConfig) for k in d]
    picked = {key.split()[-1].lstrip("/").partition("@")[0] for key in keys}
    found = [str(k) for k in config if k not in {*picked, "hydra"} and isinstance(config._get_node(k), DictConfig)]
    return [g for g in found if _is_whole(g, OmegaConf.to_container(config[g], resolve=False))]


def _is_whole(group: str, values: Any) -> bool:
    from diffopt.groups import GROUPS  # the schemas, for such a recipe alone: --help and completion do without

    if group not in GROUPS:
        return False
    needed = {name for name, field in GROUPS[group].shape(values).model_fields.items() if field.is_required()}
    return needed | DECIDES.get(group, set()) <= {name for name, value in values.items() if value != "???"}


def picking(config: DictConfig, groups: list[str], name: str) -> DictConfig:
    """The recipe of that name, with a choice in the place of each group."""
    left = OmegaConf.masked_copy(config, [str(k) for k in config if k not in groups])
    chosen = [{f"override /{group}": PREFIX + name} for group in groups]
    left["defaults"] = [*(config.get("defaults") or []), *chosen]
    return left
