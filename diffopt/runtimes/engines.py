"""TensorRT in this process: opens plans, and holds what they share: one memory, one stream, and TensorRT-RTX's kernels."""

import logging
import re
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch

from diffopt.errors import PlanError
from diffopt.files.plan import EnginePlanFile
from diffopt.graph import engine
from diffopt.graph.engine.log import BuilderLog
from diffopt.graph.engine.validity import unusable
from diffopt.machine import environment
from diffopt.runtimes.cuda_graph import Graphed
from diffopt.runtimes.cut_graph import Run
from diffopt.runtimes.engine_session import EngineSession, Lane, Scratch

log = logging.getLogger("diffopt")


class Engines:
    """To be closed when nothing runs any more. Raises PlanError where no TensorRT is installed."""

    def __init__(self, device: str, kept: Path | None = None, cuda_graph: bool = False):
        """`kept` is a directory, perhaps not there yet, for the kernels that TensorRT-RTX compiles on this GPU."""
        found = environment.tensorrt()
        if found is None:
            raise PlanError("tensorrt: no TensorRT is installed (got none); `pip install 'diffopt[tensorrt-rtx]'`")
        self.flavour, self.version = found["flavour"], found["version"]
        self.trt = engine.module(self.flavour)
        self.device = torch.device(device)
        self.cuda_graph = cuda_graph
        self.scratch, self.lane = Scratch(self.device), Lane(self.device)
        self._errors = BuilderLog(self.trt)
        self._runtime = self.trt.Runtime(self._errors.sink)
        self._kernels: Any = None
        self._file = kept and kept / f"{self.flavour}-{self.version}-{_slug(environment.device())}.kernels"

    def open(self, path: Path, head: EnginePlanFile) -> Run:
        """What runs the plan at `path`, of which `head` tells, as `EngineSession` does.

        Raises PlanError for a plan of another flavour, version or GPU.
        """
        if (head.builder, head.version) != (self.flavour, self.trt.__version__):
            raise self._refused(path, head, ["it is of another builder than is installed"])
        here = {"tensorrt": {"flavour": self.flavour, "version": self.version}}
        if self.device.type == "cuda" and (reason := unusable(head, here)):
            raise PlanError(reason)
        if path.stat().st_size == 0:
            raise self._refused(path, head, ["it is empty"])
        del self._errors.errors[:]
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:  # no copy of it in RAM
            reasons = self._flaws(content)
            found = None if reasons else self._runtime.deserialize_cuda_engine(content)
        if found is None:
            raise self._refused(path, head, reasons or self._errors.errors)
        session = EngineSession(found, lambda: self._context(found, path.name), self.scratch, self.lane, path.name)
        # TensorRT-RTX captures by itself, once it has the kernels for a shape.
        return Graphed(session) if self.cuda_graph and not self._rtx and self.device.type == "cuda" else session

    def close(self) -> None:
        """Keep TensorRT-RTX's kernels for the next process."""
        if self._kernels is None or self._file is None:
            return
        partial = self._file.with_suffix(".partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(bytes(self._kernels.serialize()))
            partial.replace(self._file)
        except OSError as e:  # what was drawn is as good without
            log.info("tensorrt: the kernels cannot be kept: %s", e)

    @property
    def _rtx(self) -> bool:
        return self.flavour == "tensorrt_rtx"

    def _flaws(self, content: mmap) -> list[str]:
        """Why TensorRT-RTX cannot run a plan here, by its header; TensorRT tells when it reads all of it."""
        if not self._rtx:
            return []
        validity, flags = self._runtime.get_engine_validity(content)
        if validity == self.trt.EngineValidity.SUBOPTIMAL:
            log.info("tensorrt: the plan runs here, but was built for another GPU and may be slow")
        if validity != self.trt.EngineValidity.INVALID:
            return []
        names = [x.name for x in self.trt.EngineInvalidityDiagnostics.__members__.values() if int(flags) & int(x)]
        said = [n.lower().replace("_", " ").replace("cc", "compute capability") for n in names]
        return said or ["it is not for this GPU" if environment.gpus() else "there is no GPU"]

    def _context(self, engine: Any, what: str) -> Any:
        own = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._rtx:
            context = engine.create_execution_context(own)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(own)
            if self.cuda_graph:
                config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.set_runtime_cache(self._shared(config))
            context = engine.create_execution_context(config)
        if context is None:
            raise PlanError(f"tensorrt: {what} cannot be made ready (got {_said(self._errors.errors)}); free memory of the GPU")
        return context

    def _shared(self, config: Any) -> Any:
        """The kernels of all contexts; those of another driver, GPU or version are not taken, and are made again."""
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            if self._file is not None and self._file.is_file() and not self._kernels.deserialize(self._file.read_bytes()):
                log.info("tensorrt: the kernels that are kept are of another driver, and are compiled again")
        return self._kernels

    def _refused(self, path: Path, head: EnginePlanFile, reasons: list[str]) -> PlanError:
        gpus = environment.gpus()
        here = f"{self.flavour} {self.version} on {gpus[0]['name'] if gpus else 'a machine without a GPU'}"
        return PlanError(
            f"tensorrt: {path.name} does not run here: {_said(reasons)} (got a plan of {head.builder} {head.version} for "
            f"{head.target}; here is {here}); build it again"
        )


def _said(reasons: list[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))[:500] or "TensorRT gives no reason"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)
