"""Errors meant for the user: `<where>: <what is wrong> (got X); <what to do>`."""

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
