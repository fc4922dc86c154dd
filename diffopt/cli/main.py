"""The command line: Hydra composes and runs recipes; the small sub-commands look at what there is."""

import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffopt import __version__
from diffopt.cli import strangers
from diffopt.cli.arguments import Parser
from diffopt.cli.commands import COMMANDS
from diffopt.cli.completion import complete
from diffopt.cli.searchpath import bundled, register
from diffopt.errors import ConfigError, DiffoptError, GateError, PlanError, Terminated, memory, pass_on, suggestion, terminated
from diffopt.machine import worker
from diffopt.machine.termination import catch
from diffopt.sweep.callback import Refused, WriteReport
from diffopt.text import printable

log = logging.getLogger("diffopt")
CONFIG = "config"
ASKING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
"""Hydra's flags that show something, and run nothing."""


def main(argv: list[str] | None = None) -> None:
    """Entry point `diffopt`. Every foreseen error is a line or a few on stderr and exit code 1."""
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None:  # the process is ours
        catch()
        gc.freeze()  # the libraries stay: to look through them for garbage was a tenth of `diffopt plan`
    if os.environ.get("HYDRA_FULL_ERROR") == "1":  # the user asks for tracebacks
        _main(arguments)
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print; we say it our way
    try:
        _passing_on(arguments)
    except (DiffoptError, HydraException, OmegaConfBaseException, YAMLError) as e:
        from diffopt.cli import hydra_errors

        print(printable(hydra_errors.line(e, arguments)), file=sys.stderr)
        for beside in getattr(e, "__notes__", ()):
            print(printable(beside), file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `diffopt store ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Terminated as e:
        print(f"terminated by {e}; finished steps are in the store, the same command goes on from them", file=sys.stderr)
        sys.exit(128 + e.number)
    except KeyboardInterrupt:
        print("interrupted; finished steps are in the store, the same command goes on from them", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        print(printable(_said(e, arguments)), file=sys.stderr)
        sys.exit(1)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]


def _passing_on(arguments: list[str]) -> None:
    try:
        _main(arguments)
    except Exception as e:
        terminated(e)
        raise


def _said(error: Exception, arguments: list[str]) -> str:
    """The line for an error that is none of ours, nor one of the classes that are Hydra's."""
    from diffopt.cli import hydra_errors, unforeseen

    try:
        pass_on(error)
    except MemoryError as e:
        return str(memory("diffopt", e))
    known = unforeseen.of_disk(error, arguments) if isinstance(error, OSError) else hydra_errors.of_hydra(error, arguments)
    return known or unforeseen.line(error, arguments)


def _main(arguments: list[str]) -> None:
    # Threads that wait for others spin; on a machine that is busy they spin the others out (FLUX blocks on 2 cores, one
    # taken: 1362 ms with libgomp's default, 528 with this; alone 156 and 162). Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # CUDA's numbers are the driver's, which environment.py reads
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no traceback on the terminal
    strangers.check_choices(arguments)
    register(_config_dir(arguments), ours=arguments[:1] in (["plan"], ["ls"], ["copy"]))
    if complete(arguments):
        return
    if "--version" in arguments and arguments[0] not in COMMANDS:
        print(f"diffopt {__version__}")
        return
    if not arguments:
        overview()
        return
    if arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
        return
    if not any(a.startswith("-") or "=" in a for a in arguments):
        from diffopt.cli import hydra_errors

        raise DiffoptError(hydra_errors.unknown_command(arguments[0], list(COMMANDS)))
    _hydra(arguments)


def overview() -> None:
    """What `diffopt --help` says."""
    _hydra(["--help"])


def _config_dir(arguments: list[str]) -> Path | None:
    """What `--config-dir` names, which Hydra's parser or that of `plan` reads again later."""
    parser = Parser("diffopt", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    found: Path | None = parser.parse_known_args(arguments)[0].config_dir
    if found is not None and not found.is_dir():
        raise ConfigError(f"--config-dir: is not a directory (got {str(found)!r}); check the path")
    return found


def _hydra(arguments: list[str]) -> None:
    known = get_args_parser()._option_string_actions
    flags = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    if wrong := [f for f in flags if f not in known]:
        there = suggestion(wrong[0], [f for f in known if f.startswith("--")], "`diffopt --hydra-help` lists them")
        raise DiffoptError(f"{wrong[0]}: no such flag (got {wrong[0]}); {there}")
    # Hydra's argparse takes one run of overrides only: `+recipe=x -m calib.alpha=1,2` is "unrecognized arguments".
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    if sys.stderr.isatty() and not ASKING & {*flags}:  # what follows takes seconds
        print("loading ...", file=sys.stderr)
    sys.argv[1:] = [*map(_spelled, overrides), *(a for a in arguments if a not in overrides)]
    decorated: Callable[[], Any] = hydra.main(version_base="1.3", config_path=str(bundled("conf")), config_name=CONFIG)(_job)
    WriteReport.over = None
    try:
        decorated()
    except Refused as e:
        raise e.error from None
    except BaseException as e:
        WriteReport.close()
        if isinstance(e, Exception):
            from diffopt.cli import hydra_errors

            if reason := hydra_errors.of_launcher(e):
                raise DiffoptError(reason) from None
            WriteReport.check()  # a search in which every job failed ends in an error of Optuna's
        raise
    if _refused:
        raise _refused.pop()
    WriteReport.check()


def _spelled(override: str) -> str:
    if not override.endswith("=null"):
        return override
    from diffopt.jobs import job  # for the groups' names, with their schemas: --help and completion do without

    return job.spelled(override)


_refused: list[Exception] = []
"""The error of a single run, past Hydra, which would put a line of its own in front of it."""


def _job(config: DictConfig) -> float | list[float] | None:
    from diffopt.jobs import job

    strangers.register()  # in a worker of a launcher too
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    # As they were given: an interpolation in one is of the recipe's config, not of Hydra's.
    given: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)
    overrides = [o for o in given if not o.startswith("+recipe=")]
    if settings.mode == RunMode.MULTIRUN:
        return _one_of_many(config, settings, directory, overrides)
    try:
        return job.run(config, overrides, directory, settings.job.name, sweep=False)
    except Exception as e:
        if isinstance(e, ConfigError | PlanError) and WriteReport.began:  # nothing was made; else the log is worth keeping
            WriteReport.began.restore()
        _refused.append(e)
        return None


def _one_of_many(config: DictConfig, settings: Any, directory: Path, overrides: list[str]) -> float | list[float] | None:
    """A job of a sweep, in whatever process its launcher runs it.

    A failure stays here, in `error.txt`, where the sweep's page and its exit code find it: raised, it would end a search
    and the batches of a sweep, and not every exception survives the way back from another process.
    """
    from diffopt.jobs import job
    from diffopt.quality.floor import floors
    from diffopt.report.run_directory import RUN
    from diffopt.sweep.job_table import ERROR

    if not settings.launcher._target_.endswith("BasicLauncher"):
        for handler in log.handlers:  # the console, on which several jobs write
            handler.setFormatter(logging.Formatter(f"[{settings.job.num}] %(message)s"))
    if worker.started_by(settings.launcher._target_):
        worker.take_place()
    error = directory / ERROR
    error.unlink(missing_ok=True)  # of an earlier sweep into this directory
    search = not settings.sweeper._target_.endswith("BasicSweeper")
    try:
        stated = floors(settings.callbacks.sweep.get("floor")) if search else []
        return job.run(config, overrides, directory, settings.job.name, sweep=True, floors=stated)
    except Exception as e:
        terminated(e)  # no failure of this job, and the next ones are not to begin
        text = str(e) if isinstance(e, DiffoptError | OSError) else f"{type(e).__name__}: {e}"
        log.debug("the job failed", exc_info=True)
        log.error("job %s failed, the sweep goes on: %s", settings.job.num, text)
        if not isinstance(e, GateError):  # what a gate was broken by is a result; another is of an earlier sweep
            (directory / RUN).unlink(missing_ok=True)
        error.write_text(text)
        return None


if __name__ == "__main__":
    main()
