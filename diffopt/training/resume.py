"""Training checkpoints, outside of the artifact: a run that was killed goes on from the last one.

A checkpoint is a directory `step-N`: weights and the states of the optimizer, the schedule, the scaler and the moving
average as `state.py` writes them, `log.json`, and `manifest.json` with the sha256 of every file. Of a training in shards each
process writes its own part. It is written under another name, put on the disk and renamed. The last two are kept: one that
is not as it was made is dropped, and the one before is taken.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file

from diffopt.errors import PlanError, pass_on
from diffopt.store.files import flush, flush_all, remove, sha256
from diffopt.training import state

LOG, MANIFEST, PARTIAL, WHOLE = "log.json", "manifest.json", ".partial", "whole"
KEPT = 2
log = logging.getLogger("diffopt")


class State(Protocol):
    """What has a state: an optimizer, a schedule, a moving average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Keeper:
    def __init__(
        self,
        directory: Path,
        accelerator: Accelerator,
        weights: Mapping[str, torch.Tensor],
        states: Mapping[str, State],
        in_shards: bool = False,
    ):
        """`weights` are those that are trained; in shards this process's parts of them. The directory may not be there yet."""
        self.directory, self.accelerator, self.weights, self.states = directory, accelerator, weights, states
        self.in_shards = in_shards

    @property
    def last(self) -> Path | None:
        """The newest checkpoint."""
        return next(iter(self._found()), None)

    def _found(self) -> list[Path]:
        """The newest first."""
        steps = [p for p in self.directory.glob("step-*") if p.name.removeprefix("step-").isdecimal()]
        return sorted(steps, key=_step, reverse=True)

    def load(self) -> dict[str, Any] | None:
        """Put everything back to the newest checkpoint that is as it was made; what was logged until then.

        Raises PlanError for one of other processes than these.
        """
        while path := self.last:
            trouble = self._agreed(self._trouble, path)
            if trouble is None:
                found = self._put_back(path)
                if self.accelerator.is_main_process:
                    log.info("train: goes on from the training checkpoint of step %s", _step(path))
                return found
            if self.accelerator.is_main_process:
                remove(path)
                before = self.last
                then = f"that of step {_step(before)} is taken" if before else "there is none before it, training starts anew"
                log.warning("train: the training checkpoint of step %s is dropped: %s; %s", _step(path), trouble, then)
            self.accelerator.wait_for_everyone()
        return None

    def save(self, step: int, log: dict[str, Any]) -> None:
        """Keep what is there after so many steps, and the checkpoint before."""
        final = self.directory / f"step-{step}"
        partial = final.with_name(final.name + PARTIAL)
        if self.accelerator.is_main_process:
            self._make_room()
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        files: dict[str, str] = {}
        if self.in_shards or self.accelerator.is_main_process:
            states = {n: x.state_dict() for n, x in self.states.items()}
            written = state.write(partial, self._stem, {"weights": self.weights, "states": states})
            files = {p.name: sha256(p) for p in written}
        files = {k: v for each in gather_object([files]) for k, v in each.items()}
        if self.accelerator.is_main_process:
            (partial / LOG).write_text(json.dumps(log), encoding="utf-8")
            best = {p.name: sha256(p) for p in self._best_files(log)}
            manifest = {"files": files | {LOG: sha256(partial / LOG)}, "best": best}
            (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            flush_all(partial)
            partial.rename(final)
            flush(self.directory)
        self.accelerator.wait_for_everyone()

    def save_best(self, step: int, weights: dict[str, Any]) -> None:
        """Keep the weights of the validation that was best so far; of shards every process its own."""
        if self.accelerator.is_main_process or self.in_shards:
            final = self.directory / self._best(step)
            partial = final.with_name(f"{final.name}{PARTIAL}")
            save_file({n: x.detach().cpu().contiguous() for n, x in weights.items()}, partial)
            flush(partial)
            partial.rename(final)
            flush(self.directory)
        self.accelerator.wait_for_everyone()

    def load_best(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = load_file(self.directory / self._best(step))
        return found

    def _best(self, step: int) -> str:
        return f"best-{step}.{self.accelerator.process_index}.safetensors" if self.in_shards else f"best-{step}.safetensors"

    def _best_files(self, log: Mapping[str, Any]) -> Iterable[Path]:
        """Of all processes, of what a log calls the best; none where nothing waits for a better one."""
        return self.directory.glob(f"best-{log['best']['step']}.*safetensors") if log["best"] else ()

    def _make_room(self) -> None:
        """Leave the newest checkpoint and what it calls the best, so that with the next there are KEPT, on the disk too."""
        stay = self._found()[: KEPT - 1]
        best = {name for path in stay for name in _manifest(path)["best"]}
        newest = max((_step(p) for p in stay), default=-1)
        for path in [*self.directory.glob("step-*"), *self.directory.glob("best-*")]:
            fresh = path.name.startswith("best-") and int(path.name.split("-")[1].split(".")[0]) > newest
            if path not in stay and path.name not in best and (path.name.endswith(PARTIAL) or not fresh):
                remove(path)

    @property
    def _stem(self) -> str:
        of = self.accelerator
        return f"part-{of.process_index}-of-{of.num_processes}" if self.in_shards else WHOLE

    def _trouble(self, path: Path) -> str | None:
        """What is not as it was made; None for a sound checkpoint."""
        try:
            manifest = _manifest(path)
            places = {n: path / n for n in manifest["files"]} | {n: self.directory / n for n in manifest["best"]}
            for name, place in places.items():
                if place.parent not in (path, self.directory) or not place.is_file():
                    return f"{name} is missing"
                if sha256(place) != (manifest["files"] | manifest["best"])[name]:
                    return f"{name} has other bytes than when it was made"
            json.loads((path / LOG).read_text(encoding="utf-8"))["step"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
            pass_on(e)
            return f"it cannot be read ({type(e).__name__}: {e})"
        return None

    def _agreed(self, look: Any, path: Path) -> str | None:
        """What the first process finds, for all of them: they go on from the same checkpoint."""
        found = look(path) if self.accelerator.is_main_process else None
        told: str | None = broadcast_object_list([found])[0]
        return told

    @torch.no_grad()
    def _put_back(self, path: Path) -> dict[str, Any]:
        self._check(path)
        try:
            found = state.read(path, self._stem)
            there, own = found["weights"], self.weights
            if {n: x.shape for n, x in there.items()} != {n: x.shape for n, x in own.items()}:
                raise ValueError("it is of other weights")
            for name, weight in own.items():
                weight.copy_(there[name])
            for name, x in self.states.items():
                x.load_state_dict(found["states"][name])
        except Exception as e:  # its bytes are those of its manifest: someone has written both
            pass_on(e)
            raise PlanError(
                f"train: the training checkpoint is none of this training (got {type(e).__name__}: {e}); remove {path.parent}"
            ) from None
        content: dict[str, Any] = json.loads((path / LOG).read_text(encoding="utf-8"))
        return content

    def _check(self, path: Path) -> None:
        """Raises PlanError where the checkpoint is of other processes, whose parts nobody has here."""
        if parts := [*path.glob("part-*.json")]:
            many = int(parts[0].stem.rpartition("-")[2])
            here = self.accelerator.num_processes if self.in_shards else 0
            if many != here:
                raise PlanError(
                    f"train.processes: the training checkpoint to go on from is in shards of {many} processes (got "
                    f"{here or 'no shards'}); set train.parallel=fsdp and train.processes={many}, or remove {path.parent}"
                )
        elif self.in_shards:
            raise PlanError(
                f"train.parallel: the training checkpoint to go on from is whole, not in shards (got fsdp); set "
                f"train.parallel=ddp, or remove {path.parent}"
            )


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    """By name the sha256 of the checkpoint's `files`, and of the `best` weights beside it."""
    found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return {kind: {str(n): str(x) for n, x in found[kind].items()} for kind in ("files", "best")}


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])
