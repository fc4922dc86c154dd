"""Starts the processes of one training on this machine, by torch's elastic launcher, and brings back what became of them."""

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffopt import errors
from diffopt.errors import DiffoptError, GateError
from diffopt.machine import worker
from diffopt.stage import Context, Held
from diffopt.training.processes import Processes

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
WATCH = 0.2  # seconds between two looks at how far they are
MEETING = 3600  # seconds that a machine waits for the others, which may still calibrate


@dataclass(frozen=True)
class Within(Context):
    """The context of one of the processes: what it does is counted where the one that started it looks."""

    count: Any = None
    """A number that both see, of the process that tells; None for the others."""

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[], None]]:
        def tick() -> None:
            if self.count is not None:
                self.count.value += 1

        yield tick


def launch(ctx: Context, processes: Processes, machine: int, steps: int, work: Callable[..., None], *given: Any) -> None:
    """Call `work(context, *given)` in each process, the working directory and store being this one's; `given` is pickled.

    Raises what the first of them raised that failed, GateError for one that was killed, and KeyboardInterrupt on Ctrl-C;
    none of them is left, nor when this process is killed.
    """
    count = multiprocessing.get_context("spawn").RawValue("q", 0)
    plain = {f.name: getattr(ctx, f.name) for f in fields(Context)} | {"held": Held()}
    with tempfile.TemporaryDirectory() as logs, _handlers(), _followed(ctx, steps, count):
        config = LaunchConfig(
            min_nodes=processes.machines,
            max_nodes=processes.machines,
            nproc_per_node=processes.each,
            run_id=f"diffopt-{ctx.out.name.partition('-')[0]}",
            max_restarts=0,  # a new start goes on from the training checkpoint by itself
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.ERR),
            **_meeting(processes, machine),
        )
        try:
            elastic_launch(config, _work)(os.getpid(), plain, count, work, given)
        except ChildFailedError as e:
            _, first = e.get_first_failure()
            raise _error(first, processes, _said(logs, first.local_rank)) from None
        except SignalException as e:
            stopped = e.sigval
        else:
            return
        finally:
            for process in range(processes.each):
                print(_said(logs, process), file=sys.stderr, end="")  # where this process's own goes
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    os.kill(os.getpid(), stopped)  # it does what it did before the launcher came


def _meeting(processes: Processes, machine: int) -> dict[str, Any]:
    if processes.rendezvous is None:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    how = {"rank": machine, "timeout": MEETING}
    return {"rdzv_backend": "static", "rdzv_endpoint": processes.rendezvous, "rdzv_configs": how}


def _work(parent: int, context: dict[str, Any], count: Any, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    """One of the processes."""
    worker.end_with(parent)
    import torch

    local, many = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if context["device"] == "cuda":
        torch.cuda.set_device(local)
    else:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // many))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    work(Within(**context, count=count if local == 0 else None), *given)


@contextmanager
def _followed(ctx: Context, steps: int, count: Any) -> Iterator[None]:
    """The bar of this process goes with the count."""
    ended = threading.Event()
    with ctx.progress(steps) as tick:

        def follow() -> None:
            seen = 0
            while not ended.wait(WATCH):
                for _ in range(count.value - seen):
                    tick()
                    seen += 1

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _handlers() -> Iterator[None]:
    """The launcher takes over signals, and keeps them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in HANDLED}
    try:
        yield
    finally:
        for which, how in before.items():
            signal.signal(which, how)


def _said(logs: str, process: int) -> str:
    """What one of the processes has put on its stderr."""
    found = sorted(Path(logs).glob(f"*/attempt_*/{process}/stderr.log"))
    return "".join(p.read_text(errors="replace") for p in found)


def _last_words(said: str) -> str:
    """The line in which C++ or Python tells why it aborts, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"what\(\):|Fatal Python error|CUDA error|NCCL WARN", line)]
    return (telling or lines[-1:] or [""])[0][:300]


def _error(failure: ProcessFailure, processes: Processes, said: str) -> Exception:
    """What a process has raised, here."""
    if failure.exitcode < 0:
        killed = failure.signal_name()
        why = "perhaps for want of memory" if killed == "SIGKILL" else f"it said {_last_words(said)!r}"
        return GateError(
            f"train: process {failure.local_rank} of {processes.each} was killed (got {killed}), {why}; the same "
            "command goes on from the last training checkpoint"
        )
    message: Any = failure.message
    if isinstance(message, str):
        return RuntimeError(f"process {failure.local_rank} of the training ended (got exit code {failure.exitcode})")
    name, _, text = message["message"].partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, DiffoptError):
        return kind(text)
    if name == "OutOfMemoryError":
        return GateError(
            f"train: a GPU's memory is full (got {text.partition('. ')[0]}); set train.parallel=fsdp, train.micro_batch, "
            "train.optimizer=adamw8bit or train.distillation.teacher.offload=true; the same command goes on from the last "
            "training checkpoint"
        )
    return RuntimeError(f"in process {failure.local_rank} of the training:\n{message['extraInfo']['py_callstack']}")
