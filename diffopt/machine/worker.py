"""One of the processes that run a sweep's jobs on this machine: its place, with a GPU or a share of the cores of its own.

Ray and Slurm give their jobs GPUs and cores themselves; joblib and submitit's local executor leave it to the job. A Ray that is
there already gives them neither the directory nor the variables of the sweep: those are told here.
"""

import fcntl
import logging
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from diffopt.errors import ConfigError
from diffopt.machine import environment

log = logging.getLogger("diffopt")

LOCAL = ("JoblibLauncher", "LocalLauncher")
"""Launchers (the last part of their `_target_`) that start processes of this machine and give them nothing."""

JOBS, GPUS, SWEEP, THREADS = "DIFFOPT_JOBS", "DIFFOPT_GPUS", "DIFFOPT_SWEEP", "DIFFOPT_THREADS"
"""Variables: of the user, how many jobs at once; of a sweep for its workers, its GPUs and its process; of a worker, the
threads of what does not read OMP_NUM_THREADS."""

DIRECTORY, STORE = "DIFFOPT_DIRECTORY", "DIFFOPT_STORE"
"""Variables of a sweep for its workers on a Ray that was there: where it was started, and its store."""

VARIABLES = (JOBS, GPUS, SWEEP, THREADS, DIRECTORY)

WAIT = 0.2  # seconds between two looks at what another process may have left
PATIENCE = 5  # seconds for a job to clean up after an interrupt


def jobs() -> int:
    """How many jobs this machine runs at once: `$DIFFOPT_JOBS`, else one for each GPU, else one for four cores, at least
    two (a job imports and composes on one core) and at most eight (each has a model of its own in memory).

    Raises ConfigError for a variable that is no such number.
    """
    if given := os.environ.get(JOBS):
        if not given.isdecimal() or int(given) < 1:
            raise ConfigError(f"{JOBS}: is not a number of jobs (got {given!r}); give 1 or more")
        return int(given)
    cores = len(os.sched_getaffinity(0))
    return len(environment.gpus()) or min(cores, max(2, min(8, cores // 4)))


def announce() -> None:
    """What the workers of this process must know, before a launcher starts them: submitit hides all GPUs from its own."""
    os.environ[JOBS] = str(jobs())
    os.environ[GPUS] = ",".join(g["visible"] for g in environment.gpus())
    os.environ[SWEEP] = str(os.getpid())
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # that two jobs say the same is something to know


def told() -> dict[str, str]:
    """The variables that a process on another node needs to run as one that was started here."""
    return {DIRECTORY: os.getcwd()} | {name: os.environ[name] for name in (STORE,) if name in os.environ}


def arrive() -> None:
    """Go where the sweep was started, before the first job of this process. Raises ConfigError where this node has no such
    directory."""
    directory = os.environ[DIRECTORY]
    try:
        os.chdir(directory)
    except OSError as e:
        raise ConfigError(
            f"hydra.launcher.ray: a node has not the directory of the sweep: {(e.strerror or str(e)).lower()} (got "
            f"{directory!r}); start it on a disk that all nodes share"
        ) from None


def started_by(launcher: str) -> bool:
    """Whether this process was started by a launcher of `LOCAL` (given its `_target_`), and is not the sweep's own."""
    return launcher.rpartition(".")[2] in LOCAL and os.environ.get(SWEEP, str(os.getpid())) != str(os.getpid())


_held: list[int] = []
"""The lock of this process's place. It is held until the process ends, as torch never lets go of its GPU either."""


def has_place() -> bool:
    """Whether this process is one of several that run jobs at once."""
    return bool(_held)


def take_place() -> None:
    """Wait for a place on this machine and take it, before anything loads torch; a process that has one keeps it.

    A place is a GPU where there are some, and a share of the cores. With more jobs at once than GPUs each GPU gets its
    first before any gets a second. Sweeps at the same time share the GPUs: the second waits.
    """
    if _held:
        return
    sweep, many, gpus = int(os.environ[SWEEP]), jobs(), [g for g in os.environ[GPUS].split(",") if g]
    end_with(sweep)
    folder = Path(tempfile.gettempdir()) / f"diffopt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if gpus:
        names = [f"gpu-{gpus[i % len(gpus)].replace('/', '_')}.{i // len(gpus)}" for i in range(many)]
    else:
        names = [f"cpu-{sweep}.{i}" for i in range(many)]
    taken = _first_free([folder / name for name in names])
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[taken % len(gpus)] if gpus else ""
    environment.gpus.cache_clear()
    os.environ[THREADS] = str(max(1, len(os.sched_getaffinity(0)) // many))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, os.environ[THREADS])


def _first_free(places: list[Path]) -> int:
    """The index of the first that no other process holds, which is held from then on; a killed process holds nothing."""
    started, announced = time.monotonic(), False
    while True:
        for i, path in enumerate(places):
            f = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(f)
                continue
            _held.append(f)
            return i
        if not announced and time.monotonic() - started > 5:
            log.info("waits for another job to end: %d run here at once (%s)", len(places), JOBS)
            announced = True
        time.sleep(WAIT)


def end_with(other: int) -> None:
    """Interrupt this process when another has ended, that of the sweep or of the training, and then end it: submitit's would
    go on after an interrupt, joblib's would wait for jobs, one of several that train would wait for the others.
    """

    def watch() -> None:
        while _alive(other):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True
