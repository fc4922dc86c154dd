"""Training checkpoints, outside of the artifact: a run that was killed goes on from the last one.

A checkpoint is a directory `step-N` of what accelerate saves (weights, optimizer, scaler, random states, moving average,
schedule) and `log.json`. It is written under another name and renamed, so that one that is there is whole.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

LOG, PARTIAL = "log.json", ".partial"


class Keeper:
    def __init__(self, directory: Path, accelerator: Accelerator):
        self.directory, self.accelerator = directory, accelerator

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [p for p in self.directory.glob("step-*") if p.suffix != PARTIAL]
        return max(found, default=None, key=_step)

    def load(self) -> dict[str, Any] | None:
        """Put everything back to the newest checkpoint; what was logged until then."""
        if (path := self.last) is None:
            return None
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
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        (partial / LOG).write_text(json.dumps(log))
        partial.rename(final)
        kept = {final.name, _best(log["best"]["step"]) if log["best"] else ""}
        for path in [*self.directory.glob("step-*"), *self.directory.glob("best-*")]:
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save_best(self, step: int, weights: dict[str, Any]) -> None:
        """Keep the weights of the validation that was best so far."""
        if self.accelerator.is_main_process:
            partial = self.directory / f"best{PARTIAL}"
            save_file({n: x.detach().cpu().contiguous() for n, x in weights.items()}, partial)
            partial.rename(self.directory / _best(step))

    def load_best(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = load_file(self.directory / _best(step))
        return found


def _best(step: int) -> str:
    return f"best-{step}.safetensors"


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])
