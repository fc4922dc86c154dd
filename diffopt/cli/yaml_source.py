"""Hydra's config files as people have them: in UTF-8, with the mark that Windows puts in front or without."""

import os
from io import StringIO
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from diffopt.cli import strangers
from diffopt.data import text_file
from diffopt.errors import ConfigError
from diffopt.registry import named

MAIN = "config.yaml"
HEADER = 512  # characters in which Hydra looks for `# @package`


class YamlSource(FileConfigSource):
    def load_config(self, config_path: str) -> ConfigResult:
        """Raises ConfigError for a file in another encoding, and for one that would take all memory."""
        path = Path(os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path))))
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        if os.pardir in Path(config_path).parts:
            raise ConfigError(f"{config_path}: leads out of its directory (got {config_path!r}); name an option that is there")
        try:
            text = text_file.read(path)
        except OSError as e:
            reason = (e.strerror or str(e)).lower()
            raise ConfigError(f"{path.name}: cannot be read ({reason}) (got {str(path)!r}); mend the file") from None
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            raise ConfigError(f"{path.name}: {what} (got {str(path)!r}); {advice}") from None
        strangers.check_text(text, path.name)
        stream = StringIO(text)
        stream.name = str(path)  # which the errors of YAML name
        where, header = f"{self.scheme()}://{self.path}", ConfigSource._get_header_dict(text[:HEADER])
        config = OmegaConf.load(stream)
        check_defaults(config, path.name)
        if self._normalize_file_name(config_path) == MAIN:
            _let_in(config)
        return ConfigResult(config=config, path=where, provider=self.provider, header=header)


def _let_in(config: Any) -> None:
    """Give the main config, which picks no option of ours, the groups of other packages too."""
    last = next((i for i, x in enumerate(config.defaults) if str(next(iter(x))).startswith("override ")), len(config.defaults))
    added = [{name: None} for name in named("diffopt.groups", ())]
    config.defaults = [*config.defaults[:last], *added, *config.defaults[last:]]


def check_defaults(config: Any, where: str) -> None:
    """Raises ConfigError for a list of defaults that is none."""
    if not isinstance(config, DictConfig) or "defaults" not in config:
        return
    given = OmegaConf.to_container(config, resolve=False)["defaults"]  # type: ignore[call-overload,index]
    if not isinstance(given, list) or not all(isinstance(x, str | dict) for x in given):
        raise ConfigError(f"{where}: its defaults are no list (got {given!r}); write each on a line of its own: `- {given}`")


def register() -> None:
    """Let Hydra's own source for files read them like this, once Hydra has registered it. Its registry refuses another class
    for them in a launcher's worker, which is given the registry and then registers its own."""
    registered().load_config = YamlSource.load_config


def registered() -> Any:
    """Hydra's class for files. Its scan for plugins makes it anew, so that it is not the one that is imported."""
    return SourcesRegistry.instance().types[FileConfigSource.scheme()]
