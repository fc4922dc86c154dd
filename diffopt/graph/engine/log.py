"""What an engine builder says while it works: its errors, its layers, and the GPUs that it gives up."""

import logging
import re
from typing import Any

log = logging.getLogger("diffopt")

LAYERS = "Layers:\n"
"""How the list of a plan's layers begins, which a builder of detailed verbosity logs when it is done."""
GIVEN_UP = re.compile(r"not be able to run on target\(s\): ((?:sm\d+(?:, )?)+)")
NOISE = "checkMacros.cpp::catchCudaError"
"""Of TensorRT-RTX on a machine without a GPU, beside every other error."""


class BuilderLog:
    """Errors are kept for the user, up to INFO goes to the log at debug level; of the rest the plan's layers are kept.

    `sink` is what TensorRT takes.
    """

    def __init__(self, trt: Any):
        self.errors: list[str] = []
        self.layers = ""
        """The list of the plan's layers; empty where the builder logged none."""
        self.given_up: set[str] = set()
        """Compute capabilities that cannot run the plan, as 8.6, though the builder would have targeted them."""
        outer = self

        class Sink(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                outer.take(int(severity) <= int(trt.ILogger.Severity.ERROR), message)
                if int(severity) <= int(trt.ILogger.Severity.INFO):
                    log.debug("%s", message)

        self.sink = Sink()

    def take(self, error: bool, message: str) -> None:
        if error and NOISE not in message:
            self.errors.append(" ".join(message.split()))
        elif message.startswith(LAYERS):
            self.layers = message
        elif found := GIVEN_UP.search(message):
            self.given_up |= {f"{n[:-1]}.{n[-1]}" for n in re.findall(r"sm(\d+)", found[1])}
