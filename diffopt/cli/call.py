"""`diffopt.run`: a recipe run from Python, as the command line runs it."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffopt.cli import hydra_errors, unforeseen
from diffopt.cli.searchpath import GROUP, bundled, register
from diffopt.cli.singletons import apart
from diffopt.errors import ConfigError, DiffoptError, PlanError
from diffopt.groups import PICKS
from diffopt.groups.validate import choose
from diffopt.jobs import job
from diffopt.jobs.runner import let_go
from diffopt.report.outcome import Outcome
from diffopt.report.run_directory import RUN
from diffopt.sweep.untouched import Untouched
from diffopt.view import Choices

log = logging.getLogger("diffopt")
LOG = "diffopt.log"
FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""As conf/hydra/job_logging/diffopt.yaml has it."""
VARIABLES = {"GOMP_SPINCOUNT": "20000", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""As main sets them, and why."""


@dataclass(frozen=True)
class Composed:
    config: DictConfig
    name: str
    """The recipe's."""
    directory: Path
    """Of the run."""


def run(recipe: str, overrides: Mapping[str, Any], config_dir: Path | None, quiet: bool) -> Outcome | None:
    """As `diffopt.run`."""
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"diffopt.run: overrides are a dict (got {overrides!r}); as {{'calib.alpha': 0.5, 'format': 'fp8'}}")
    asked = [override(key, value) for key, value in overrides.items()]
    arguments = [f"+{GROUP}={recipe}", *asked]
    with _told(arguments):
        composed = _composed(arguments, config_dir)
        before = Untouched.of(composed.directory)
        with _logged(composed.directory, quiet), _variables():
            return _run(composed, asked, before)


def choices(overrides: Mapping[str, Any], config_dir: Path | None, *picks: str) -> Choices:
    """What the command line would make of these picks, as `model=flux_dev`, and overrides. Raises ConfigError for what is
    wrong in them."""
    asked = [*picks, *(override(key, value) for key, value in overrides.items())]
    with _told(asked):
        found: Any = OmegaConf.to_container(_composed(asked, config_dir).config, resolve=True)
        return choose(found)


@contextmanager
def _told(arguments: list[str]) -> Iterator[None]:
    """Within it Hydra's errors are ours, as the command line says them."""
    try:
        yield
    except DiffoptError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError) as e:
        raise ConfigError(hydra_errors.line(e, arguments)) from None
    except OSError as e:
        if (text := unforeseen.of_disk(e, arguments)) is None:
            raise
        raise DiffoptError(text) from None
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        if (text := hydra_errors.of_hydra(e, arguments)) is None:
            raise
        raise ConfigError(text) from None


def _composed(arguments: list[str], config_dir: Path | None) -> Composed:
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"config_dir: is not a directory (got {str(config_dir)!r}); check the path")
    with apart():
        register(config_dir, ours=True)
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            config = compose("config", arguments, return_hydra_config=True)
        settings = config.hydra
        if settings.mode == RunMode.MULTIRUN:
            raise ConfigError(
                f"diffopt.run: is of one run, and the recipe sweeps (got {arguments[0]}); set {{'hydra.mode': 'RUN'}} for a "
                f"single job, or run `diffopt {arguments[0]}`"
            )
        name, directory = str(settings.job.name), Path(settings.run.dir).absolute()
        with open_dict(config):
            del config["hydra"]
        OmegaConf.to_container(config, resolve=True)  # while the environment's secrets are refused
    return Composed(config, name, directory)


def _run(composed: Composed, overrides: list[str], before: Untouched) -> Outcome | None:
    try:
        job.run(composed.config, overrides, composed.directory, composed.name, sweep=False)
    except DiffoptError as e:
        if isinstance(e, ConfigError | PlanError) or not (composed.directory / LOG).exists():
            before.restore()  # nothing was made; after any other error the log is worth keeping
        raise
    finally:
        let_go()
    return Outcome(composed.directory) if (composed.directory / RUN).is_file() else None


def override(key: str, value: Any) -> str:
    """`calib.alpha=0.5`, as the command line has it. Raises ConfigError for what no override can say."""
    if not isinstance(key, str) or not key:
        raise ConfigError(f"diffopt.run: an override is called by a text (got {key!r}); as {{'calib.alpha': 0.5}}")
    if key in PICKS and (value is None or value == "null"):
        return f"~{key}"
    if isinstance(value, str) and key.lstrip("+") in (*PICKS, GROUP):
        return f"{key}={value}"
    return f"{key}={_written(key, value)}"


def _written(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str | os.PathLike):
        return str(QuotedString(os.fspath(value), Quote.single).with_quotes())
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_written(key, x)}" for k, x in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_written(key, x) for x in value) + "]"
    if callable(getattr(value, "item", None)):  # of numpy and torch
        return _written(key, value.item())
    raise ConfigError(f"{key}: is no value of a recipe (got {type(value).__name__}); give a number, a text, a list or a dict")


@contextmanager
def _logged(directory: Path, quiet: bool) -> Iterator[None]:
    """diffopt's lines to sys.stdout, and all that is said to the run's log; the caller's own logging is as it was after."""
    directory.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    file = logging.FileHandler(directory / LOG, delay=True, encoding="utf-8")
    file.setFormatter(logging.Formatter(FORM))
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.INFO)
    mine: list[logging.Handler] = [file] if quiet else [file, console]
    level, propagates = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False  # the caller's handlers are not for what libraries say
    for handler in mine:
        log.addHandler(handler)
    root.addHandler(file)
    try:
        yield
    finally:
        root.removeHandler(file)
        for handler in mine:
            log.removeHandler(handler)
        file.close()
        log.setLevel(level)
        log.propagate = propagates


@contextmanager
def _variables() -> Iterator[None]:
    """What is read when libraries are loaded, unless the caller has set it."""
    ours = [name for name in VARIABLES if name not in os.environ]
    os.environ.update({name: VARIABLES[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
