"""Hydra's plug-in: a sweep as a race. `hydra/sweeper=race`, with `ship` to say what it is to find.

Hydra imports it whenever it starts, so it imports nothing of diffopt before it runs.
"""

from collections.abc import Mapping
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class RaceSweeper(Sweeper):
    """Each round is a launch of the settings that draw in it, by whatever launcher; workers share the store alone."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from diffopt.race.race import Race
        from diffopt.sweep.callback import WriteReport
        from diffopt.sweep.plan import plan_sweep

        assert self.launcher is not None
        assert self.config is not None
        assert self.context is not None
        loader, beside = self.context.config_loader, self.context.callbacks.callbacks
        planned = next((c.planned for c in beside if isinstance(c, WriteReport)), None) or plan_sweep(self.config, loader)
        return Race(self.config, loader, self.launcher, planned).run()
