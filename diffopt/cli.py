"""The command line: Hydra composes and runs recipes; the small sub-commands look at what there is."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffopt import complaint, job
from diffopt.completion import complete
from diffopt.errors import ConfigError, DiffoptError, PlanError
from diffopt.searchpath import bundled, register

CONFIG = "config"


def main(argv: list[str] | None = None) -> None:
    """Entry point `diffopt`. Every foreseen error is a line or a few on stderr and exit code 1."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if "HYDRA_FULL_ERROR" in os.environ:  # the user asks for tracebacks
            _main(arguments)
            return
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print; we say it our way
        try:
            _main(arguments)
        finally:
            del os.environ["HYDRA_FULL_ERROR"]
    except (DiffoptError, HydraException, OmegaConfBaseException) as e:
        print(complaint.line(e, arguments), file=sys.stderr)
        sys.exit(1)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        where = e.filename or "outputs"
        print(
            f"outputs: cannot be written ({os.strerror(e.errno).lower()}) (got {where!r}); run where you may write",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; finished steps are in the store, the same command goes on from them", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `diffopt store ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(arguments: list[str]) -> None:
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no traceback on the terminal
    register()
    if complete(arguments):
        return
    command = next((c for c in arguments[:1] if c in COMMANDS), None)
    if command:
        COMMANDS[command](arguments[1:])
        return
    if arguments and not any(a.startswith("-") or "=" in a for a in arguments):
        raise DiffoptError(complaint.unknown_command(arguments[0], list(COMMANDS)))
    _hydra(arguments)


def _hydra(arguments: list[str]) -> None:
    known = get_args_parser()._option_string_actions
    flags = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    if wrong := [f for f in flags if f not in known]:
        raise DiffoptError(f"{wrong[0]}: no such flag (got {wrong[0]}); `diffopt --hydra-help` lists them")
    # Hydra's argparse takes one run of overrides only: `+recipe=x -m calib.alpha=1,2` is "unrecognized arguments".
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    sys.argv[1:] = [*map(job.spelled, overrides), *(a for a in arguments if a not in overrides)]
    decorated: Callable[[], Any] = hydra.main(version_base="1.3", config_path=str(bundled("conf")), config_name=CONFIG)(_job)
    decorated()
    if _refused:
        raise _refused.pop()


_refused: list[DiffoptError | OSError] = []
"""The error of a single run, past Hydra, which would put a line of its own in front of it."""


def _job(config: DictConfig) -> float | None:
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    sweep = settings.mode == RunMode.MULTIRUN
    overrides = [o for o in settings.overrides.task if not o.startswith("+recipe=")]
    try:
        return job.run(config, overrides, directory, settings.job.name, sweep=sweep)
    except (DiffoptError, OSError) as e:
        if sweep:
            (directory / "error.txt").write_text(str(e))
            raise
        if isinstance(e, ConfigError | PlanError):  # nothing was made; after any other error the log is worth keeping
            shutil.rmtree(directory, ignore_errors=True)
        _refused.append(e)
        return None
    except Exception as e:  # no error of the user's: the traceback is right, but the sweep's page needs a word too
        if sweep:
            (directory / "error.txt").write_text(f"{type(e).__name__}: {e}")
        raise


def _plan(arguments: list[str]) -> None:
    from diffopt import explain

    explain.command(arguments)


def _report(arguments: list[str]) -> None:
    from diffopt import report

    report.command(arguments)


def _store(arguments: list[str]) -> None:
    from diffopt import shelf

    shelf.command(arguments)


def _doctor(arguments: list[str]) -> None:
    from diffopt import doctor

    doctor.command(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "plan": _plan,
    "report": _report,
    "store": _store,
    "doctor": _doctor,
}

if __name__ == "__main__":
    main()
