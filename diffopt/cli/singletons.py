"""Hydra as if nobody had used it: what `diffopt.run` teaches it and composes leaves no trace in the caller's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import hydra.conf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer

from diffopt.cli.searchpath import RecipeSearchPath
from diffopt.cli.yaml_source import registered

LOCK = threading.Lock()
"""Hydra's state is one of the process; threads take turns."""


@contextmanager
def apart() -> Iterator[None]:
    """Within, Hydra's singletons, OmegaConf's resolvers and what `register` keeps are copies, which go at the end.

    Hydra's own settings and its plugins are registered when they are first imported: that is done before, since it would be
    lost with the copies, and the caller may want them.
    """
    assert hydra.conf
    with LOCK:
        Plugins.instance()
        instances, resolvers = Singleton._instances, dict(BaseContainer._resolvers)
        files, search = registered(), (RecipeSearchPath.config_dir, RecipeSearchPath.ours)
        reads = files.load_config
        Singleton._instances = {k: deepcopy(v) for k, v in instances.items() if k not in (GlobalHydra, HydraConfig)}
        try:
            yield
        finally:
            Singleton._instances = instances
            BaseContainer._resolvers = resolvers
            RecipeSearchPath.config_dir, RecipeSearchPath.ours = search
            files.load_config = reads
