"""`diffopt store export` says what it wrote and how to load it: its own lines, run as they stand."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from test_packed import packed
from tiny import Bench, bench, call

from diffopt.artifact import Artifact
from diffopt.cli.loading import LINES
from diffopt.cli.store import command
from diffopt.kernels.kernel import Kernel
from diffopt.quantization import checkpoint
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

IDENTITY = {"stage": "x", "inputs": {}}
PIPELINE = fingerprint(IDENTITY)
FROM = {"stage": "x", "inputs": {"pipeline": PIPELINE}}
MADE = fingerprint(FROM)


def exported(b: Bench, made: Artifact, root: Path, *flags: str) -> str:
    """What is printed of one artifact of the bench's model."""
    store = Store(root / "store")
    for kind, path, identity in (("pipeline", b.pipeline().path, IDENTITY), (type(made).kind, made.path, FROM)):
        with store.publish(kind, fingerprint(identity), identity, {"seconds": 1.0}) as out:
            for file in (p for p in path.rglob("*") if p.is_file()):
                (out / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
                (out / file.relative_to(path)).write_bytes(file.read_bytes())
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command(["--store", str(store.root), "export", MADE, str(root / "out"), f"--source={b.source}", *flags])
    return said.getvalue()


def code(said: str) -> list[str]:
    return [line.strip() for line in said.splitlines() if line.startswith("    ")]


def run(said: str) -> dict[str, Any]:
    """What the lines leave behind."""
    lines = code(said)
    assert 0 < len(lines) <= LINES
    given: dict[str, Any] = {}
    exec("\n".join(lines), given)
    return given


@pytest.mark.parametrize(("dtype", "name"), [("float32", "int8"), ("bfloat16", "fp8")])
def test_a_checkpoint_is_restored_to_the_bit(dtype: str, name: str, tmp_path: Path) -> None:
    b = bench(dtype)
    backbone = run(exported(b, b.checkpoint(name), tmp_path))["backbone"]
    own = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    assert torch.equal(call(backbone, b.inputs()), call(own, b.inputs()))
    assert not torch.equal(call(backbone, b.inputs()), call(b.backbone(), b.inputs()))


def test_a_checkpoint_of_two_backbones_is_restored_with_both(tmp_path: Path) -> None:
    b = bench(family="wan")
    backbone = run(exported(b, b.checkpoint("int8"), tmp_path))["backbone"]
    own = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8")).state_dict()
    theirs = backbone.state_dict()
    assert theirs.keys() == own.keys()
    assert not [n for n in own if not torch.equal(own[n], theirs[n])]


def test_a_checkpoint_alone_says_what_it_lacks(tmp_path: Path) -> None:
    b = bench()
    said = exported(b, b.checkpoint("int8"), tmp_path, "--bare")
    assert run(said)["tensors"]
    assert "without --bare there is a modelopt.pt that mto.restore reads" in said


def test_a_graph_that_onnxruntime_has_kernels_for_is_run(tmp_path: Path) -> None:
    b = bench()
    found = run(exported(b, b.graph("int8"), tmp_path))
    assert found["output"].size > 0
    assert {x.name for x in found["session"].get_inputs()} == set(found["feeds"])


def test_a_graph_that_onnxruntime_has_no_kernels_for_is_read_and_what_runs_it_is_said(tmp_path: Path) -> None:
    b = bench("float16")
    said = exported(b, b.graph("fp8"), tmp_path)
    assert run(said)["graphs"][0].graph.node
    assert "onnxruntime has no kernels for fp8" in said


def test_the_command_that_builds_a_plan_of_a_graph_is_told_with_its_paths(tmp_path: Path) -> None:
    said = exported(bench(), bench().graph("int8"), tmp_path)
    (line,) = (x for x in said.splitlines() if x.startswith("  $ "))
    assert f"--onnx={tmp_path / 'out' / 'model.onnx'} --saveEngine={tmp_path / 'out' / 'model.plan'}" in line
    assert line.split()[1] in ("trtexec", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("family", "names"), [("flux", ["transformer"]), ("sdxl", ["unet"]), ("wan", ["transformer", "transformer_2"])]
)
def test_packed_weights_are_in_their_pipeline(family: str, names: list[str], tmp_path: Path) -> None:
    b = bench("bfloat16", family=None if family == "flux" else family)
    pipe = run(exported(b, packed(b, "fp8"), tmp_path))["pipe"]
    for name in names:
        assert [m for m in getattr(pipe, name).modules() if isinstance(m, Kernel)], name


def test_packed_weights_of_a_model_that_is_gone_are_loaded_alone(tmp_path: Path) -> None:
    b = bench()
    made = packed(b, "int8")
    said = exported(b, made, tmp_path, "--source=/nowhere")
    assert [m for m in run(said)["backbone"].modules() if isinstance(m, Kernel)]


def test_what_was_written_is_listed_with_sizes(tmp_path: Path) -> None:
    b = bench()
    said = exported(b, b.checkpoint("int8"), tmp_path).splitlines()
    assert said[0].startswith(f"{tmp_path / 'out'}: checkpoint {MADE}, ")
    listed = {line.split()[0] for line in said[1 : said.index("to load it in Python:")]}
    assert listed == {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
