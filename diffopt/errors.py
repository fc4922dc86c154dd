"""Errors meant for the user: `<where>: <what is wrong> (got X); <what to do>`."""

import difflib
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from hydra.errors import CompactHydraException


class DiffoptError(CompactHydraException):
    """Base of every error meant for the user.

    Its text is printed alone, without a traceback, with exit code 1; in a sweep Hydra goes on with the other jobs.
    """


class ConfigError(DiffoptError):
    """A value of the recipe or of the command line is wrong. Holds all of them, one a line."""


class PlanError(DiffoptError):
    """The choices are valid one by one, but no chain of stages makes what they ask for on this machine."""


class SourceError(DiffoptError):
    """A model's files are there, but cannot be read."""


class StoreError(DiffoptError):
    """The artifact store cannot be read or written."""


class GateError(DiffoptError):
    """A stage finished, but what it made must not be trusted (nothing quantized, black images, ...)."""


class MetricError(DiffoptError):
    """A metric cannot be measured (weights that are not there, pictures too small); others can."""


class Terminated(BaseException):
    """By a scheduler, a container that is stopped, or a terminal that is closed."""

    received: ClassVar[int | None] = None
    """The number of the signal that this process got, if any: torch and other libraries may make another exception of one that
    a signal raises within them."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


SHORT = re.compile("cannot allocate memory|can't allocate memory|not enough memory|bad_alloc|out of memory", re.IGNORECASE)
"""What Python, the system, C++ and torch say where memory lacks; of a GPU's the text names CUDA."""


def pass_on(error: BaseException) -> None:
    """Raises MemoryError for an error that comes of a lack of memory, and Terminated for one that comes of a signal, before a
    file or the network is blamed for it."""
    terminated(error)
    if isinstance(error, MemoryError) or (not isinstance(error, DiffoptError) and SHORT.search(str(error))):
        raise MemoryError(str(error) or "MemoryError") from error


def terminated(error: BaseException) -> None:
    """Raises Terminated for an error after the signal."""
    if Terminated.received is not None and not isinstance(error, Terminated):
        raise Terminated(Terminated.received) from error


def lacks_gpu_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was full, whatever library said so."""
    return not isinstance(error, DiffoptError) and "CUDA" in str(error) and bool(SHORT.search(str(error)))


def memory(where: str, error: BaseException, setting: str = "", needed: Mapping[str, int] | None = None) -> GateError:
    """What a user is told of a MemoryError: what was estimated to be needed, and which setting lowers it."""
    first = (str(error).strip().splitlines() or ["MemoryError"])[0][:200]
    gpu = "CUDA" in first
    more = "a GPU with more memory" if gpu else "more memory (`ulimit -v`, the container's limit)"
    about = (needed or {}).get("gpu" if gpu else "ram")
    estimate = f", of an estimated need of {about / 2**30:.1f} GiB" if about else ""
    batches = setting or "calib.batch_size, eval.batch_size, train.micro_batch"
    return GateError(
        f"{where}: there is no more {'GPU memory' if gpu else 'memory'} (got {first}{estimate}); give it {more}, or take "
        f"smaller batches ({batches}); finished steps are in the store, the same command goes on"
    )


FEW = 16
"""Names that are all listed beside a suggestion; of more only how many there are."""


def suggestion(name: str, known: Iterable[str], listed: str = "") -> str:
    """What to do about a name that there is not: `did you mean x?`, and all that there are, in their order, or how to see them.

    `listed` says what lists them, where something does: a long list is left out then.
    """
    there = list(dict.fromkeys(known))
    close = closest(name, there) if len(there) > 1 else []
    everything = f"there are {', '.join(there)}" if there else "there are none"
    if len(there) > FEW and (close or listed):
        everything = listed or f"there are {len(there)} of them"
    if not close:
        return everything
    return f"did you mean {' or '.join(close)}? {everything}"


def closest(name: str, known: Sequence[str]) -> list[str]:
    """Those that begin as the name does, the shortest first and at most three, else the one that is spelled most alike."""
    plain = {k: k.lower().replace("-", "_") for k in known}
    asked = name.lower().replace("-", "_").strip()
    longer = [k for k in sorted(known, key=lambda k: (len(k), k)) if len(asked) > 1 and plain[k].startswith(asked)]
    if longer:
        return longer[:3]
    alike = difflib.get_close_matches(asked, plain.values(), 1)
    if alike:
        return [next(k for k in known if plain[k] == alike[0])]
    return [k for k in known if len(plain[k]) > 2 and (plain[k] in asked.split("_") or asked in plain[k].split("_"))][:3]
