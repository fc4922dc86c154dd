"""`diffopt store export` of a checkpoint writes what plain modelopt restores, in a process that knows no diffopt."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contents import RUN
from tiny import Bench, bench, call

from diffopt import formats
from diffopt.artifact import Checkpoint
from diffopt.cli.modelopt_file import FILE, portable
from diffopt.cli.store import command
from diffopt.errors import StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.run import RunFile
from diffopt.quantization import checkpoint
from diffopt.store.fingerprint import fingerprint
from diffopt.store.store import Store

NAMES = ["int8", "int8_sq", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "nvfp4_svdquant", "mxfp8"]
BLOCKS = [n for n in NAMES if "fp4" in n or n == "mxfp8"]
"""Formats that modelopt has no arithmetic for on a CPU; there ours is put in."""

PLAIN = """
import contextlib, sys
import torch
import modelopt.torch.opt as mto
import modelopt.torch.quantization
from diffusers import FluxTransformer2DModel
source, inputs, out, *files = sys.argv[1:]
found = {}
for file in files:
    arithmetic = contextlib.nullcontext()
    if file.startswith("simulated:"):
        from diffopt.quantization.block_fake_quant import simulated
        file, arithmetic = file.removeprefix("simulated:"), simulated()
    else:
        assert "diffopt" not in sys.modules
    backbone = FluxTransformer2DModel.from_pretrained(source, subfolder="transformer").eval()
    mto.restore(backbone, file)
    with torch.no_grad(), arithmetic:
        found[file] = backbone(**torch.load(inputs), return_dict=False)[0]
torch.save(found, out)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By format: our output, and that of plain modelopt in another process."""
    b, where = bench(), tmp_path_factory.mktemp("portable")
    torch.save(b.inputs(), where / "inputs.pt")
    ours = {}
    for name in NAMES:
        model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
        portable(model, where / name)
        ours[name] = call(model, b.inputs())
    files = [str(where / n) for n in NAMES if n not in BLOCKS] + [f"simulated:{where / n}" for n in BLOCKS]
    arguments = [b.source, str(where / "inputs.pt"), str(where / "found.pt"), *files]
    subprocess.run([sys.executable, "-c", PLAIN, *arguments], check=True, capture_output=True)
    theirs = torch.load(where / "found.pt")
    return {name: (ours[name], theirs[str(where / name)]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.matrix
def test_plain_modelopt_restores_the_output_to_the_bit(name: str, plain: dict) -> None:
    ours, theirs = plain[name]
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, call(bench().backbone(), bench().inputs()))


# From the store.

IDENTITY: dict[str, Any] = {"stage": "x", "inputs": {}}
PIPELINE = fingerprint(IDENTITY)
FROM: dict[str, Any] = {"stage": "x", "inputs": {"pipeline": PIPELINE, "stats": "c" * 16, "recordings": []}}
MADE = fingerprint(FROM)


def stored(b: Bench, name: str, root: Path) -> Store:
    """A store with the bench's pipeline and a checkpoint of it."""
    store = Store(root)
    made: Checkpoint = b.checkpoint(name)
    for kind, path, identity in (("pipeline", b.pipeline().path, IDENTITY), ("checkpoint", made.path, FROM)):
        with store.publish(kind, fingerprint(identity), identity, {"seconds": 1.0}) as out:
            for file in path.iterdir():
                (out / file.name).write_bytes(file.read_bytes())
    return store


def export(store: Store, *arguments: str) -> None:
    command(["--store", str(store.root), "export", *arguments])


def test_an_exported_checkpoint_has_its_portable_file_beside_it(tmp_path: Path) -> None:
    b = bench()
    export(stored(b, "fp8", tmp_path / "store"), MADE, str(tmp_path / "out"), f"--source={b.source}")
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {FILE, CheckpointFile.NAME, checkpoint.STATE, "record.json"}
    saved = torch.load(tmp_path / "out" / FILE, weights_only=False)
    name = "transformer_blocks.0.attn.to_q"
    assert torch.equal(saved["model_state_dict"][f"{name}.weight"], b.backbone().get_submodule(name).weight)
    assert saved["modelopt_state"]["modelopt_state_dict"][0][0] == "quantize"


def test_the_model_is_found_by_a_run_that_made_the_checkpoint(tmp_path: Path) -> None:
    b, run = bench(), tmp_path / "run"
    store = stored(b, "fp8", tmp_path / "store")
    run.mkdir()
    replace(RunFile.of(RUN), config=f"model: {{source: {b.source}}}").write(run)
    store.refer(run, [("checkpoint", MADE)])
    export(store, MADE, str(tmp_path / "out"))
    assert (tmp_path / "out" / FILE).is_file()


@pytest.mark.parametrize("source", [[], ["--source=/nowhere"], ["--source=asset:emoji/emoji-flux"]], ids=str)
def test_a_checkpoint_whose_model_is_not_there_is_not_half_exported(source: list[str], tmp_path: Path) -> None:
    store = stored(bench(), "fp8", tmp_path / "store")
    with pytest.raises(StoreError, match=r"store export: the model .* \(got .*\); name it with --source="):
        export(store, MADE, str(tmp_path / "out"), *source)
    assert not (tmp_path / "out").exists()


def test_a_bare_export_needs_no_model(tmp_path: Path) -> None:
    export(stored(bench(), "fp8", tmp_path / "store"), MADE, str(tmp_path / "out"), "--bare")
    assert not (tmp_path / "out" / FILE).exists()
    assert (tmp_path / "out" / checkpoint.STATE).is_file()


def test_every_format_is_in_the_list() -> None:
    assert {n for n in NAMES if formats.method(n)} == {p.stem for p in Path(formats.__path__[0]).glob("*.py")} - {
        "__init__",
        "auto",
        "method",
    }
