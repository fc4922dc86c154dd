"""Several processes that train: they compute what one does, end together, and leave nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainsets
from safetensors.torch import load_file
from test_training import LORA, SEED, VALIDATION, about, data, same, trained, weights
from tiny import Bench, bench, folder
from waiting import until

from diffopt.artifact import Checkpoint
from diffopt.errors import GateError, PlanError
from diffopt.quantization import checkpoint
from diffopt.quantization.weight_scales import CODES
from diffopt.stages.train import train
from diffopt.store.files import sha256
from diffopt.training import machines
from diffopt.training.footprint import Footprint
from diffopt.training.processes import Processes, arrange

FEW, BIG = Footprint({"weights": 1 << 30}, 0), Footprint({"weights": 60 << 30}, 0)
SGD = {"optimizer": "sgd", "learning_rate": 0.05, "distillation": trainsets.QAD}
"""Adam divides what is rounding alone by its own size."""


def gpus(many: int) -> list[dict[str, Any]]:
    return [{"memory": 40 << 30}] * many


# Who trains.


@pytest.mark.parametrize(
    ("changes", "there", "need", "wanted"),
    [
        ({"parallel": "auto"}, 0, FEW, Processes("single", 1)),
        ({"parallel": "auto"}, 1, BIG, Processes("single", 1)),
        ({"parallel": "auto"}, 4, FEW, Processes("ddp", 4)),
        ({"parallel": "auto"}, 4, BIG, Processes("fsdp", 4)),
        ({"parallel": "auto"}, 3, FEW, Processes("ddp", 2)),
        ({"parallel": "fsdp", "processes": 2}, 4, FEW, Processes("fsdp", 2)),
        ({"parallel": "fsdp"}, 1, FEW, Processes("single", 1)),
        ({"parallel": "ddp", "processes": 2}, 0, FEW, Processes("ddp", 2)),
        ({"parallel": None}, 4, FEW, Processes("single", 1)),
        (
            {"parallel": "ddp", "machines": 2, "rendezvous": "a:1"},
            2,
            FEW,
            Processes("ddp", 2, 2, "a:1"),
        ),
    ],
)
def test_processes_are_as_many_as_gpus_that_share_the_batch(
    changes: dict[str, Any], there: int, need: Footprint, wanted: Processes
) -> None:
    assert arrange(trainsets.view(**changes), gpus(there), need) == wanted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"processes": 3}, "train.processes: are more than the GPUs that are there, 2 (got 3)"),
        ({"processes": 2, "batch_size": 5}, "train.batch_size: is not shared evenly by 2 processes (got 5)"),
        ({"parallel": "fsdp", "optimizer": "adafactor"}, "train.optimizer: adafactor wants whole rows and columns"),
        ({"parallel": "fsdp", "precision": "float16"}, "train.precision: gradients in shards are not scaled"),
    ],
)
def test_what_processes_cannot_share_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        arrange(trainsets.view(**{"parallel": "ddp"} | changes), gpus(2), FEW)
    assert str(caught.value).startswith(said)


ABORTED = """terminate called after throwing an instance of 'c10::AcceleratorError'
  what():  CUDA error: an illegal memory access
frame #0: c10::Error::Error
"""


def abort(ctx: Any) -> None:
    if int(os.environ["LOCAL_RANK"]) == 1:
        os.write(2, ABORTED.encode())
        os.abort()
    signal.pause()


@pytest.mark.matrix
def test_the_last_words_of_a_process_that_aborts_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffopt.training.launch import launch

    with pytest.raises(GateError) as caught:
        launch(replace(bench().context(), out=tmp_path), Processes("ddp", 2), 0, 1, abort)
    assert "process 1 of 2 was killed (got SIGABRT), it said 'what():  CUDA error: an illegal memory access'" in str(
        caught.value
    )
    assert ABORTED in capfd.readouterr().err


def test_the_library_is_as_it_was_after_sharding_even_after_an_error() -> None:
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    from diffopt.training.shards import MARK, sharding

    class Accelerator:
        device = torch.device("cpu")

        def prepare(self) -> None: ...

    before, accelerator = FSDPParamGroup.post_backward, Accelerator()

    def fail() -> None:
        with sharding(accelerator):  # type: ignore[arg-type]
            assert FSDPParamGroup.post_backward is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert FSDPParamGroup.post_backward is before
    assert not hasattr(FSDPParamGroup, MARK)
    assert "prepare" not in vars(accelerator)


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (
            SimpleNamespace(exitcode=1, local_rank=1, message={"message": "PlanError: train: bad (got 1); mend it"}),
            PlanError,
            "train: bad (got 1); mend it",
        ),
        (
            SimpleNamespace(exitcode=-9, local_rank=1, message="", signal_name=lambda: "SIGKILL"),
            GateError,
            "train: process 1 of 2 was killed (got SIGKILL)",
        ),
        (
            SimpleNamespace(exitcode=-6, local_rank=0, message="", signal_name=lambda: "SIGABRT"),
            GateError,
            "train: process 0 of 2 was killed (got SIGABRT), it said 'what():  CUDA error: an illegal memory access'; the same",
        ),
        (
            SimpleNamespace(exitcode=1, local_rank=0, message={"message": "OutOfMemoryError: CUDA out of memory. Tried x"}),
            GateError,
            "train: a GPU's memory is full (got CUDA out of memory)",
        ),
    ],
)
def test_what_ended_a_process_is_told_in_a_line(failure: Any, kind: type[Exception], said: str) -> None:
    from diffopt.training.launch import _error

    found = _error(failure, Processes("ddp", 2), ABORTED)
    assert type(found) is kind
    assert str(found).startswith(said)


# Several machines.


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of Slurm or machines."""
    for name in [n for n in os.environ if n.startswith("SLURM_")] + [machines.NUMBER]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_slurm_tells_which_machine_this_is_and_where_they_meet(bare: pytest.MonkeyPatch) -> None:
    view = trainsets.view(parallel="ddp", machines=2)
    for name, value in {"SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "31234"}.items():
        bare.setenv(name, value)
    assert machines.number(view) == 1
    assert machines.rendezvous(view) == "10.0.0.7:21234"
    assert arrange(view, gpus(2), FEW) == Processes("ddp", 2, 2, "10.0.0.7:21234")


def test_a_machine_that_is_not_told_is_refused(bare: pytest.MonkeyPatch) -> None:
    view = trainsets.view(parallel="ddp", machines=2)
    with pytest.raises(PlanError, match=r"DIFFOPT_MACHINE: does not tell which of the train\.machines=2 this is"):
        machines.number(view)
    with pytest.raises(PlanError, match=r"train\.rendezvous: is where the train\.machines=2 meet"):
        machines.rendezvous(view)
    assert machines.number(trainsets.view()) == 0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


@pytest.mark.matrix
def test_two_machines_train_one_model_and_the_first_goes_on(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    few = ["train.steps=2", "train.warmup=1", "train.batch_size=4", "train.data.size=8", "train.data.batch_size=8"]
    few += ["train.data.chunk=8", "train.data.steps=2", "train.validation=null", "train.optimizer=sgd", "calib.size=4"]
    few += ["train.parallel=fsdp", "train.processes=1", "train.machines=2", f"train.rendezvous=localhost:{free_port()}"]
    few += ["eval.size=2", "eval.steps=2", "eval.metrics=[psnr]", f"store={tmp_path / 'store'}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "diffopt", "+recipe=emoji_fp4_qad", *few, f"hydra.run.dir={tmp_path / str(machine)}"],
            cwd=tmp_path,
            env=os.environ | {machines.NUMBER: str(machine)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for machine in range(2)
    ]
    said = [p.communicate()[0] for p in started]
    assert [p.returncode for p in started] == [0, 0], said
    told = json.loads((tmp_path / "0" / "train" / "training.json").read_text())
    assert (told["parallel"], len(told["peak_bytes"]), told["steps"]) == ("fsdp", 2, 2)
    assert (tmp_path / "0" / "score" / "metrics.json").is_file()
    assert "helped; the first machine goes on" in said[1]
    assert not (tmp_path / "1" / "run.json").exists()
    assert not list((tmp_path / "store" / "tmp").glob("*-kept"))


# What they compute.


def near(a: Checkpoint, b: Checkpoint, start: dict[str, torch.Tensor], share: float) -> bool:
    """That what two trainings changed differs by less than such a share of it."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    moved = torch.cat([(theirs[n] - start[n]).flatten() for n in theirs]).norm()
    apart = torch.cat([(theirs[n] - ours[n]).flatten() for n in theirs]).norm()
    assert moved > 0
    return bool(apart < share * moved)


def losses(made: Checkpoint) -> list[float]:
    return [x["loss"] for x in about(made)["losses"]]


def compare(how: str, micro: int | None = 2, share: float = 1e-3, **changes: Any) -> Checkpoint:
    """Two processes, after it was seen that they made what one makes with as many items a call, to such a share.

    With other numbers of items a call what is rounded to 8 bits falls to either side here and there, and a training on one
    process comes out a hundredth otherwise too.
    """
    b = bench()
    one = trained(b, micro_batch=micro, **SGD | changes)
    two = trained(b, micro_batch=micro, parallel=how, processes=2, **SGD | changes)
    assert losses(two) == pytest.approx(losses(one), rel=share / 10)
    start = dict(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8")).named_parameters())
    assert near(two, one, start, share)
    told = about(two)
    assert told["teacher"] == about(one)["teacher"]
    assert (told["parallel"], len(told["peak_bytes"]), len(told["seconds"])) == (how, 2, told["steps"])
    return two


@pytest.mark.matrix
def test_shards_over_two_processes_train_as_one_does() -> None:
    compare("fsdp", micro=1, gradient_checkpointing=True, steps=3)


@pytest.mark.matrix
def test_copies_in_two_processes_train_as_one_does() -> None:
    compare("ddp", micro=1, share=1e-2)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_blocks_are_compared_in_two_processes(how: str) -> None:
    # What a call compares is relative to the whole batch, however many share it, but not of however many calls.
    compare(
        how,
        micro=None,
        share=2e-2,
        distillation=trainsets.QAD | {"output": 0.0, "hidden": 1.0, "blocks": ["transformer_blocks.*"]},
    )


@pytest.mark.matrix
@pytest.mark.parametrize(("how", "again"), [("ddp", False), ("ddp", True), ("fsdp", True)])
def test_trajectories_train_in_two_processes(how: str, again: bool) -> None:
    drawing = trainsets.QAD | {"trajectory": {"steps": 3, "last": 2}}
    compare(how, share=1e-2, gradient_checkpointing=again, steps=3, distillation=drawing)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_adapters_train_in_two_processes(how: str) -> None:
    compare(how, lora=LORA, learning_rate=0.2)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_pictures_are_judged_in_two_processes(how: str) -> None:
    made = compare(how, ema=0.5, steps=4, validation=VALIDATION)
    one = trained(bench(), **SGD, micro_batch=2, ema=0.5, steps=4, validation=VALIDATION)
    scores = [[v["score"] for v in about(x)["validations"]] for x in (one, made)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert (made.path / "validation" / "000004.png").is_file()


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_best_weights_come_back_in_two_processes(how: str) -> None:
    b = bench()
    view = VALIDATION | {"every": 1, "patience": 1}
    made = trained(b, steps=6, learning_rate=0.3, clip=None, validation=view, parallel=how, processes=2)
    assert about(made)["steps"] == about(made)["best"]["step"] + 1
    if about(made)["best"]["step"] == 0:
        before = dict(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8")).named_parameters())
        assert all(torch.equal(x, before[n]) for n, x in weights(made).items())


@pytest.mark.matrix
def test_a_model_of_16_bits_trains_in_shards_in_its_own_precision() -> None:
    b = bench("bfloat16", family="flux")
    how = {"precision": "bfloat16", "weights": None, "distillation": trainsets.QAD}
    one, two = trained(b, **how), trained(b, **how, parallel="fsdp", processes=2)
    assert {x.dtype for x in weights(two).values()} == {torch.bfloat16}
    assert losses(two) == pytest.approx(losses(one), rel=0.05)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["nvfp4", "int8_sq", "nvfp4_svdquant"])
def test_formats_train_in_shards(name: str) -> None:
    b = bench()
    one, two = trained(b, name, **SGD, micro_batch=2), trained(b, name, **SGD, parallel="fsdp", processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("scales", ["learned", "tied"])
def test_scales_learn_in_two_processes(how: str, scales: str) -> None:
    b, given = bench(), {**SGD, "scales": scales, "scale_learning_rate": 0.3}
    one, two = trained(b, "nvfp4", **given, micro_batch=2), trained(b, "nvfp4", **given, parallel=how, processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
    start = trained(b, "nvfp4", **given | {"scale_learning_rate": 1e-6}, micro_batch=2)
    ours, theirs, still = (_codes(made) for made in (one, two, start))
    assert len(ours) == len(theirs)
    assert (ours != theirs).sum() <= 0.1 * (ours != still).sum() > 0


def _codes(made: Checkpoint) -> torch.Tensor:
    stored = load_file(made.path / checkpoint.STATE)
    return torch.cat([stored[n].float().flatten() for n in sorted(stored) if n.endswith(CODES)])


@pytest.mark.matrix
@pytest.mark.parametrize("tiny", ["sdxl", "wan", "sd3"])
def test_families_train_in_shards(tiny: str) -> None:
    b = bench(family=tiny)
    one, two = trained(b, **SGD, steps=2, micro_batch=2), trained(b, **SGD, steps=2, parallel="fsdp", processes=2)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)


# How they end.


def huge(b: Bench) -> Any:
    stored = data(b)
    about = stored.json("set.json")
    texts = load_file(stored.path / "texts.safetensors")
    latents = load_file(stored.path / "latents.safetensors")["latents"] * 1e18
    return trainsets.write(folder(), latents, texts, about["prompts"], about["text"])


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_arrives_as_its_line(how: str) -> None:
    b = bench()
    view = trainsets.view(learning_rate=0.9, clip=None, optimizer="sgd", parallel=how, processes=2)
    with pytest.raises(GateError, match=r"^train: the loss or its gradient is inf or NaN in step \d+ .*lower train"):
        train.run(b.context(), b.call, view, b.pipeline(), huge(b), b.checkpoint("fp8"), SEED)


KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import trainsets
    from test_training import SEED, data
    from tiny import bench
    from diffopt.stages.train import train
from diffopt.store.files import sha256

    if __name__ == "__main__":
        b = bench()
        view = trainsets.view(**{view!r})
        train.run(b.context(Path({out!r})), b.call, view, b.pipeline(), data(b), b.checkpoint("fp8"), SEED)
    """
)


def processes_of(parent: int) -> list[int]:
    """Its children that are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.matrix
@pytest.mark.parametrize(("how", "end"), [("ddp", signal.SIGINT), ("fsdp", signal.SIGKILL)])
def test_a_killed_training_leaves_no_process_and_goes_on_bit_equal(how: str, end: signal.Signals, tmp_path: Path) -> None:
    b = bench()
    view = {"steps": 10_000, "save_every": 1, "ema": 0.9, "parallel": how, "processes": 2, "distillation": trainsets.QAD}
    out, script = tmp_path / "out", tmp_path / "killed.py"
    out.mkdir()
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), view=view, out=str(out)))
    started = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, start_new_session=True)
    kept = tmp_path / "out-kept"
    until(lambda: started.poll() is not None or [p for p in kept.glob("step-*") if p.suffix != ".partial"])
    workers = processes_of(started.pid)
    started.send_signal(end)
    assert len(workers) >= 2
    assert started.wait() != 0
    until(lambda: not any(Path(f"/proc/{w}").exists() for w in workers))
    assert not (out / "weights.safetensors").exists()
    first = max(int(p.name.partition("-")[2]) for p in kept.glob("step-*") if p.suffix != ".partial")
    view |= {"steps": first + 2, "save_every": 100}
    train.run(b.context(out), b.call, trainsets.view(**view), b.pipeline(), data(b), b.checkpoint("fp8"), SEED)
    gone_on = Checkpoint(out, "trained")
    assert len(about(gone_on)["losses"]) == first + 2
    assert same(gone_on, trained(b, **view))


@pytest.mark.matrix
def test_shards_of_other_processes_are_refused(tmp_path: Path) -> None:
    b = bench()
    out, kept = tmp_path / "out", tmp_path / "out-kept"
    step = kept / "step-2"
    step.mkdir(parents=True)
    (step / "log.json").write_text('{"step": 2}')
    (step / "part-0-of-3.json").write_text("{}")
    sums = {p.name: sha256(p) for p in step.iterdir()}
    (step / "manifest.json").write_text(json.dumps({"files": sums, "best": {}}))
    out.mkdir()
    view = trainsets.view(parallel="fsdp", processes=2)
    with pytest.raises(
        PlanError, match=r"^train\.processes: the training checkpoint to go on from is in shards of 3 processes"
    ):
        train.run(b.context(out), b.call, view, b.pipeline(), data(b), b.checkpoint("fp8"), SEED)
