"""Overrides of fields that a group has and the chosen option's YAML leaves out: `model.long_prompts=cut` needs no plus.

What a field may be is said by the group's schema, not by which of its fields an option writes down.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

_apply = ConfigLoaderImpl._apply_overrides_to_config


def let_in() -> None:
    """Have Hydra take them, wherever it applies overrides: in a run, in a plan, and in each job of a sweep."""
    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(_with_fields)  # type: ignore[method-assign]


def _with_fields(overrides: Sequence[Override], cfg: DictConfig) -> None:
    for override in overrides:
        try:
            _apply([override], cfg)
        except ConfigCompositionException:
            if override.type != OverrideType.CHANGE or not _left_out(override.key_or_group, cfg):
                raise
            _apply([replace(override, type=OverrideType.FORCE_ADD)], cfg)


def _left_out(key: str, cfg: DictConfig) -> bool:
    """Whether a key is a field of the option that is chosen in its group, or one within such a field."""
    from diffopt.groups import GROUPS
    from diffopt.groups.ship import Ship
    from diffopt.schema import has

    schemas: dict[str, Any] = {**GROUPS, "ship": Ship}
    group, _, within = key.partition(".")
    node = cfg._get_node(group) if group in schemas else None
    if not within or not isinstance(node, DictConfig) or node._is_none():
        return False
    value: Any = OmegaConf.to_container(node, resolve=False)
    return has(schemas[group].shape(value), within.split("."))
