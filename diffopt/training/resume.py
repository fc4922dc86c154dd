"""Training checkpoints, outside of the artifact: a run that was killed goes on from the last one.

A checkpoint is a directory `step-N` of what accelerate saves (weights, optimizer, scaler, random states, moving average,
schedule) and `log.json`; of a training in shards each process saves its own part of that. It is written under another name
and renamed, so that one that is there is whole.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from diffopt.errors import PlanError
from diffopt.training.shards import LocalShards

LOG, PARTIAL = "log.json", ".partial"


class State(Protocol):
    """What has a state: an optimizer, a schedule, a moving average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Keeper:
    def __init__(
        self, directory: Path, accelerator: Accelerator, weights: LocalShards | None = None, states: Sequence[State] = ()
    ):
        """Of a training in shards `weights` are this process's parts, and `states` what has a state besides."""
        self.directory, self.accelerator, self.weights, self.states = directory, accelerator, weights, states

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [p for p in self.directory.glob("step-*") if p.suffix != PARTIAL]
        return max(found, default=None, key=_step)

    def load(self) -> dict[str, Any] | None:
        """Put everything back to the newest checkpoint; what was logged until then."""
        if (path := self.last) is None:
            return None
        self._check(path)
        if self.weights:
            self._load_part(path)
        else:
            self.accelerator.load_state(str(path))
        log: dict[str, Any] = json.loads((path / LOG).read_text())
        return log

    def save(self, step: int, log: dict[str, Any]) -> None:
        """Keep what is there after so many steps, in the place of the checkpoint before."""
        final = self.directory / f"step-{step}"
        partial = final.with_name(final.name + PARTIAL)
        if self.accelerator.is_main_process and partial.exists():  # of a run that was killed while it wrote
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        if self.weights:
            self._save_part(partial)
        else:
            self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        (partial / LOG).write_text(json.dumps(log))
        partial.rename(final)
        best = f"best-{log['best']['step']}." if log["best"] else final.name
        for path in [*self.directory.glob("step-*"), *self.directory.glob("best-*")]:
            if path.name != final.name and not path.name.startswith(best):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save_best(self, step: int, weights: dict[str, Any]) -> None:
        """Keep the weights of the validation that was best so far; of shards every process its own."""
        if self.accelerator.is_main_process or self.weights:
            final = self.directory / self._best(step)
            partial = final.with_name(f"{final.name}{PARTIAL}")
            save_file({n: x.detach().cpu().contiguous() for n, x in weights.items()}, partial)
            partial.rename(final)
        self.accelerator.wait_for_everyone()

    def load_best(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = load_file(self.directory / self._best(step))
        return found

    def _best(self, step: int) -> str:
        return f"best-{step}.{self.accelerator.process_index}.safetensors" if self.weights else f"best-{step}.safetensors"

    def _part(self, path: Path) -> Path:
        return path / f"part-{self.accelerator.process_index}-of-{self.accelerator.num_processes}.pt"

    def _save_part(self, path: Path) -> None:
        assert self.weights is not None
        path.mkdir(parents=True, exist_ok=True)
        weights = [p.detach() for p in self.weights.parts]
        torch.save({"weights": weights, "states": [x.state_dict() for x in self.states]}, self._part(path))

    @torch.no_grad()
    def _load_part(self, path: Path) -> None:
        assert self.weights is not None
        # What is loaded was saved here: EMA's and the schedule's states are more than tensors.
        found = torch.load(self._part(path), map_location="cpu", weights_only=False)
        for own, kept in zip(self.weights.parts, found["weights"], strict=True):
            own.copy_(kept)
        for x, state in zip(self.states, found["states"], strict=True):
            x.load_state_dict(state)

    def _check(self, path: Path) -> None:
        """Raises PlanError where the checkpoint is of other processes, whose parts nobody has here."""
        if parts := [*path.glob("part-*")]:
            many = int(parts[0].stem.rpartition("-")[2])
            here = self.accelerator.num_processes if self.weights else 0
            if many != here:
                raise PlanError(
                    f"train.processes: the training checkpoint to go on from is in shards of {many} processes (got "
                    f"{here or 'no shards'}); set train.parallel=fsdp and train.processes={many}, or remove {path.parent}"
                )
        elif self.weights:
            raise PlanError(
                f"train.parallel: the training checkpoint to go on from is whole, not in shards (got fsdp); set "
                f"train.parallel=ddp, or remove {path.parent}"
            )


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])
