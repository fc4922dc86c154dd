"""A training that is killed goes on from its last training checkpoint, and ends as if it had not been."""

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trainsets
from accelerate import Accelerator
from safetensors.torch import load_file
from test_training import SEED, about, data, weights
from tiny import bench, folder

from diffopt.artifact import Checkpoint
from diffopt.errors import GateError, PlanError
from diffopt.stage import Context
from diffopt.stages.train import train
from diffopt.training import state
from diffopt.training.loop import Training
from diffopt.training.resume import Keeper

HOW: dict[str, Any] = {
    "steps": 10,
    "save_every": 1,
    "ema": 0.95,
    "schedule": "cosine",
    "warmup": 2,
    "learning_rate": 1e-3,
    "distillation": trainsets.QAD,
}
CHILD = """
import os, signal, sys
from pathlib import Path
from tiny import bench
from diffopt.training.resume import Keeper
import test_resume

save = Keeper.save

def killed(self, step, log):
    if step == 4:  # while the next checkpoint is being written
        partial = self.directory / f"step-{step}.partial"
        partial.mkdir()
        (partial / "whole.json").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step, log)

Keeper.save = killed
test_resume.go(Path(sys.argv[1]), Path(sys.argv[2]), bench())
"""


def go(out: Path, kept: Path, b: Any, **changes: Any) -> Checkpoint:
    out.mkdir(exist_ok=True)
    ctx = Context(out, b.sources.pinned, b.sources.locate, b.device, kept=kept)
    train.run(ctx, b.call, trainsets.view(**HOW | changes), b.pipeline(), data(b), b.checkpoint("fp8"), SEED)
    return Checkpoint(out, "trained")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the steps that are trained in this process."""
    made: list[int] = []
    step = Training._step

    def noted(self: Training, number: int) -> None:
        made.append(number)
        step(self, number)

    monkeypatch.setattr(Training, "_step", noted)
    return made


@pytest.mark.matrix
def test_a_killed_training_ends_bit_equal_to_one_that_was_not(counted: list[int]) -> None:
    b, root = bench(), folder()
    whole = go(root / "whole", root / "none", b)
    assert counted == [*range(10)]
    kept = root / "kept"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(root / "killed"), str(kept)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    counted.clear()
    resumed = go(root / "resumed", kept, b)
    assert counted == [*range(3, 10)]
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    told = [{n: x for n, x in about(m).items() if n not in ("seconds", "peak_bytes")} for m in (resumed, whole)]
    assert told[0] == told[1]


class Stop(Exception):
    """Stands for a kill between two steps."""


def stopped_at(number: int, *given: Any, **changes: Any) -> None:
    """Train up to this step."""
    step = Training._step

    def stopped(self: Training, now: int) -> None:
        if now == number:
            raise Stop
        step(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_step", stopped)
        with pytest.raises(Stop):
            go(*given, **changes)


@pytest.mark.matrix
def test_half_a_training_checkpoint_is_not_taken(counted: list[int]) -> None:
    b, root = bench(), folder()
    kept = root / "kept"
    stopped_at(3, root / "a", kept, b, steps=6, save_every=2)
    (kept / "step-4.partial").mkdir()
    counted.clear()
    go(root / "b", kept, b, steps=6, save_every=2)
    assert counted == [2, 3, 4, 5]
    assert not [*kept.glob("*.partial")]


def test_a_loss_of_nan_leaves_the_last_good_training_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffopt.training.loss import Loss

    b, root = bench(), folder()
    call = Loss.__call__
    calls = []

    def broken(self: Loss, *args: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        found = call(self, *args)
        return found | {"loss": found["loss"] * float("nan")} if len(calls) == 6 else found

    monkeypatch.setattr(Loss, "__call__", broken)
    kept = root / "kept"
    with pytest.raises(GateError, match=r"inf or NaN in step 6 \(got a loss of nan\).*checkpoint of step 4 is kept in"):
        go(root / "a", kept, b, save_every=2)
    stored = load_file(kept / "step-4" / "whole.0.safetensors")
    assert all(torch.isfinite(x).all() for x in stored.values())


def harmed(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": path.read_bytes()[: path.stat().st_size // 2], "other": b"{}"}[how])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("whole.0.safetensors", "empty"),
        pytest.param("whole.0.safetensors", "half", marks=pytest.mark.matrix),
        ("whole.json", "missing"),
        pytest.param("whole.json", "other", marks=pytest.mark.matrix),
        pytest.param("log.json", "half", marks=pytest.mark.matrix),
        ("manifest.json", "half"),
        pytest.param("manifest.json", "other", marks=pytest.mark.matrix),
        pytest.param("manifest.json", "missing", marks=pytest.mark.matrix),
    ],
)
def test_a_torn_training_checkpoint_is_dropped_with_a_line_and_the_one_before_is_taken(
    name: str, how: str, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    b, root = bench(), folder()
    kept = root / "kept"
    stopped_at(5, root / "a", kept, b, steps=6, save_every=2)
    assert sorted(p.name for p in kept.glob("step-*")) == ["step-2", "step-4"]
    harmed(kept / "step-4" / name, how)
    counted.clear()
    caplog.set_level("INFO", logger="diffopt")
    go(root / "b", kept, b, steps=6, save_every=2)
    assert counted == [2, 3, 4, 5]
    assert "the training checkpoint of step 4 is dropped: " in caplog.text
    assert "; that of step 2 is taken" in caplog.text
    assert re.findall(r"goes on from the training checkpoint of step (\d+)", caplog.text) == ["2"]


def test_what_goes_on_says_where(caplog: pytest.LogCaptureFixture) -> None:
    b, root = bench(), folder()
    caplog.set_level("INFO", logger="diffopt")
    stopped_at(3, root / "a", root / "kept", b, steps=4, save_every=2)
    assert "goes on" not in caplog.text
    go(root / "b", root / "kept", b, steps=4, save_every=2)
    assert caplog.text.count("train: goes on from the training checkpoint of step 2") == 1


def test_a_training_whose_only_checkpoint_is_torn_starts_anew(counted: list[int], caplog: pytest.LogCaptureFixture) -> None:
    b, root = bench(), folder()
    kept = root / "kept"
    stopped_at(3, root / "a", kept, b, steps=4, save_every=2)
    harmed(kept / "step-2" / "whole.0.safetensors", "half")
    counted.clear()
    go(root / "b", kept, b, steps=4, save_every=2)
    assert counted == [0, 1, 2, 3]
    assert "training starts anew" in caplog.text


class Bomb:
    """A pickle that leaves a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


PICKLED = ["custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt", "part-0-of-1.pt"]
"""Names under which training checkpoints have had pickles, here or by accelerate."""


def test_no_pickle_in_a_training_checkpoint_is_read(counted: list[int]) -> None:
    b, root = bench(), folder()
    kept = root / "kept"
    stopped_at(3, root / "a", kept, b, steps=4, save_every=2)
    step, mark = kept / "step-2", root / "ran"
    attack = pickle.dumps(Bomb(mark))
    for name in [*PICKLED, *(p.name for p in step.iterdir() if p.name != "manifest.json")]:
        (step / name).write_bytes(attack)
    told = json.loads((step / "manifest.json").read_text())  # whoever writes files can write their sums
    told["files"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in step.iterdir() if p.name != "manifest.json"}
    (step / "manifest.json").write_text(json.dumps(told))
    counted.clear()
    go(root / "b", kept, b, steps=4, save_every=2)
    assert counted == [0, 1, 2, 3]
    assert not mark.exists()


def test_a_training_checkpoint_of_other_weights_is_refused_by_name() -> None:
    b, root = bench(), folder()
    kept = root / "kept"
    stopped_at(3, root / "a", kept, b, steps=4, save_every=2)
    with pytest.raises(PlanError, match=r"train: the training checkpoint is none of this training .*; remove "):
        go(root / "b", kept, b, steps=4, save_every=2, lora={"rank": 2, "alpha": 2, "targets": ["*"]})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(6.0).reshape(2, 3)[:, 1:]}, 1: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "fused": None, "dtype": torch.bfloat16}],
        "empty": torch.zeros(0, 3),
    }
    state.write(tmp_path, "x", given)
    found = state.read(tmp_path, "x")
    assert found["param_groups"] == given["param_groups"]
    assert torch.equal(found["state"][0]["exp_avg"], given["state"][0]["exp_avg"])
    assert found["state"][0]["step"].shape == ()
    assert found["state"][1] == {}
    assert found["empty"].shape == (0, 3)


def test_a_state_with_code_in_it_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is no state"):
        state.write(tmp_path, "x", {"lr_lambdas": [lambda step: step]})


def test_the_best_weights_survive_a_kill() -> None:
    how = {"steps": 5, "save_every": 1, "validation": {"every": 1, "size": 1, "steps": 1, "metric": "psnr", "patience": 4}}
    b, root = bench(), folder()
    whole = go(root / "whole", root / "none", b, **how)
    kept = root / "kept"
    stopped_at(3, root / "a", kept, b, **how)
    resumed = go(root / "b", kept, b, **how)
    told = [{n: x for n, x in about(m).items() if n not in ("seconds", "peak_bytes")} for m in (resumed, whole)]
    assert told[0] == told[1]
    assert all(torch.equal(x, weights(whole)[n]) for n, x in weights(resumed).items())


@pytest.mark.matrix
@torch.compiler.set_stance("force_eager")  # compiling a step for each shape takes minutes on a CPU
def test_moments_of_8_bits_go_on_bit_equal_where_adamw_goes() -> None:
    pytest.importorskip("torchao")
    how = {"steps": 4, "save_every": 1, "schedule": "cosine", "warmup": 1}
    b, root = bench(), folder()
    whole = go(root / "whole", root / "none", b, optimizer="adamw8bit", **how)
    kept = root / "kept"
    stopped_at(2, root / "a", kept, b, optimizer="adamw8bit", **how)
    resumed = go(root / "b", kept, b, optimizer="adamw8bit", **how)
    ours, theirs, start = weights(whole), weights(go(root / "c", root / "d", b, **how)), dict(b.backbone().named_parameters())
    assert all(torch.equal(x, ours[n]) for n, x in weights(resumed).items())
    moved = torch.cat([(theirs[n] - start[n]).flatten() for n in theirs]).norm()
    apart = torch.cat([(theirs[n] - ours[n]).flatten() for n in theirs]).norm()
    assert 0 < apart < 0.1 * moved  # 0.052 was measured


@pytest.mark.parametrize("in_shards", [False, True])
def test_what_is_kept_is_put_back_whole_and_in_shards(in_shards: bool, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)

    def keeper(start: float) -> tuple[Keeper, torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.full((2, 3), start))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        states: dict[str, Any] = {"optimizer": optimizer}
        return Keeper(tmp_path, accelerator, {"w": weight}, states, in_shards), weight, optimizer

    one, weight, optimizer = keeper(1.0)
    for step in range(1, 4):
        weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        one.save(step, {"step": step, "best": None})
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-2", "step-3"]
    other, theirs, again = keeper(9.0)
    assert other.load() == {"step": 3, "best": None}
    assert torch.equal(theirs, weight)
    assert torch.equal(again.state[theirs]["exp_avg"], optimizer.state[weight]["exp_avg"])
    assert again.state[theirs]["step"] == 3
