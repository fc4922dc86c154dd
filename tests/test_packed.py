"""A packed backbone is read back as it was saved: the same codes, the same numbers, and nothing in full precision."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import some
from diffusers import FluxPipeline
from manual import page
from PIL import Image
from safetensors import safe_open
from test_quickstart import diffopt as diffopt_command
from tiny import LAYERS, Bench, bench, call, emoji, folder
from tiny_pipelines import COPIES, TINY

import diffopt
from diffopt import models
from diffopt.artifact import NativeCheckpoint
from diffopt.errors import ConfigError, PlanError, SourceError
from diffopt.files.native import NativeFile
from diffopt.jobs import objective
from diffopt.kernels.capability import KIND
from diffopt.kernels.convert import convert
from diffopt.kernels.kernel import Buffer, Kernel
from diffopt.kernels.kinds import KINDS
from diffopt.kernels.packed import _apart, kernels, save
from diffopt.quantization import checkpoint
from diffopt.report.run_directory import Run
from diffopt.report.run_page import summary
from diffopt.runtimes import RUNTIMES
from diffopt.stages.pack import ShardView, pack

FAMILIES = ("flux", "sdxl")


def packed(b: Bench, name: str, shard: str = "10GB") -> NativeCheckpoint:
    def make(ctx: Any) -> NativeCheckpoint:
        pack.run(ctx, ShardView(max_shard_size=shard), b.pipeline(), b.checkpoint(name))
        return NativeCheckpoint(ctx.out, "native")

    return b._once(("pack", name, shard), make)


def converted(b: Bench, name: str) -> Any:
    real = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    convert(real)
    real.load_state_dict({n: x.clone() for n, x in real.state_dict().items()}, assign=True)  # not where a file is mapped to
    return real


def benched(family: str) -> Bench:
    return bench() if family == "flux" else emoji() if family == "emoji" else bench(family=family)


SEARCHED = {(family, name) for family in ("sdxl", "emoji") for name in ("int4_awq", "nvfp4_svdquant")}
"""Whose calibration takes longest, and which differ from the others' by that alone."""
LOADED = [(family, name) for family in (*FAMILIES, "emoji") for name in KIND]


@pytest.mark.parametrize(("family", "name"), some(LOADED, {*LOADED} - SEARCHED))
def test_what_is_loaded_computes_bit_for_bit_what_was_packed(family: str, name: str) -> None:
    b = benched(family)
    loaded, real = diffopt.load(packed(b, name).path, "cpu"), converted(b, name)
    own, theirs = loaded.state_dict(), real.state_dict()
    assert own.keys() == theirs.keys()
    assert not [n for n in own if own[n].dtype != theirs[n].dtype or not torch.equal(own[n], theirs[n])]
    given = models.family(b.family).call(b.inputs())
    with torch.no_grad():
        assert torch.equal(call(loaded, given), call(real, given))


@pytest.mark.parametrize(
    "family", [pytest.param(n, marks=[pytest.mark.matrix] if n in COPIES else []) for n in TINY if n not in FAMILIES]
)
def test_every_family_is_loaded_in_16_bits_as_it_was_packed(family: str) -> None:
    b = bench("bfloat16", family=family)
    loaded, real = diffopt.load(packed(b, "int8").path, "cpu"), converted(b, "int8")
    pairs = [(loaded[n], real[n]) for n in loaded] if isinstance(loaded, dict) else [(loaded, real)]
    for own, theirs in pairs:
        for (name, ours), (_, other) in zip(tensors(own).items(), tensors(theirs).items(), strict=True):
            assert ours.dtype == other.dtype, name
            assert torch.equal(ours, other), name
    given = models.family(b.family).call(b.inputs())
    with torch.no_grad():
        assert torch.equal(call(pairs[0][0], given), call(pairs[0][1], given))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tables that are in no file too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def test_it_is_a_plain_module_of_diffusers_in_evaluation_mode() -> None:
    loaded = diffopt.load(packed(bench(), "fp8").path, device="cpu")
    assert type(loaded).__module__.startswith("diffusers")
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert not [n for n, x in tensors(loaded).items() if x.is_meta]
    assert len([m for m in loaded.modules() if isinstance(m, Kernel)]) == LAYERS


def test_no_quantized_weight_is_in_the_file_in_full_precision() -> None:
    made = packed(bench(), "int8")
    head = NativeFile.read(made.path)
    with safe_open(made.path / "model.safetensors", framework="pt") as file:
        types = {n: file.get_slice(f"{n}.weight").get_dtype() for n in head.layers}
        taken = sum(file.get_tensor(k).nbytes for k in file.keys())  # noqa: SIM118
    assert {*types.values()} == {"I8"}
    assert taken == head.bytes < (made.path / "model.safetensors").stat().st_size
    assert head.bytes_in_16_bits == 2 * sum(p.numel() for p in bench().backbone().parameters())


def test_a_large_model_is_split_and_read_from_its_files() -> None:
    b = emoji()
    made = packed(b, "fp8", "2MB")
    assert len([*made.path.glob("model-*.safetensors")]) > 2
    whole, split = (diffopt.load(packed(b, "fp8", shard).path, "cpu") for shard in ("10GB", "2MB"))
    assert {n: x.tolist() for n, x in tensors(whole).items()} == {n: x.tolist() for n, x in tensors(split).items()}


def test_tensors_that_share_memory_are_each_in_the_file() -> None:
    both = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
    both["b"].weight = both["a"].weight
    found = _apart(both.state_dict())
    assert [*found] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert found["a.weight"].data_ptr() != found["b.weight"].data_ptr()
    assert torch.equal(found["a.weight"], found["b.weight"])


def test_of_several_backbones_each_is_loaded_alone_or_all_by_name() -> None:
    made = packed(bench(family="wan"), "fp8")
    both = diffopt.load(made.path, "cpu")
    assert [*both] == ["transformer", "transformer_2"]
    one = diffopt.load(made.path / "transformer_2", "cpu")
    assert {n: x.tolist() for n, x in tensors(one).items()} == {
        n: x.tolist() for n, x in tensors(both["transformer_2"]).items()
    }
    head = NativeFile.read(made.path)
    assert head.bytes == sum(NativeFile.read(made.path / n).bytes for n in both)
    assert {n.partition(".")[0] for n in head.layers} == {*both}


def test_what_fell_back_is_named_with_the_reason() -> None:
    head = NativeFile.read(packed(bench(family="sdxl"), "fp8").path)
    assert head.fell_back
    assert all("convolution" in why for why in head.fell_back.values())
    assert not {*head.fell_back} & {*head.layers}


def test_a_cast_leaves_codes_and_scales_alone_and_casts_the_rest() -> None:
    plain = diffopt.load(packed(bench(), "int8_sq").path, "cpu")
    cast = diffopt.load(packed(bench(), "int8_sq").path, "cpu").to(torch.bfloat16)
    name = next(n for n, m in cast.named_modules() if isinstance(m, Kernel))
    own, other = (m.get_submodule(name) for m in (cast, plain))
    assert (own.weight.dtype, own.scale.dtype, own.smoothing.dtype) == (torch.int8, torch.float32, torch.bfloat16)
    assert torch.equal(own.scale, other.scale)
    eight = diffopt.load(packed(bench(), "fp8").path, "cpu").half().get_submodule(name)
    assert (eight.weight.dtype, eight.inverse.dtype, eight.bias.dtype) == (torch.float8_e4m3fn, torch.float32, torch.float16)


def copy(made: NativeCheckpoint) -> Path:
    directory = folder() / "packed"
    shutil.copytree(made.path, directory)
    return directory


def changed(**keys: Any) -> Path:
    """A packed model whose native.json says something else."""
    directory = copy(packed(bench(), "fp8"))
    path = directory / NativeFile.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return directory


def refused(directory: Path, kind: type[Exception] = SourceError, **how: Any) -> str:
    with pytest.raises(kind) as e:
        diffopt.load(directory, **{"device": "cpu"} | how)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_a_directory_that_is_none_is_refused_in_one_line() -> None:
    said = "is no packed backbone: it has no native.json (got '/nowhere'); give a directory that export=native has made"
    assert refused(Path("/nowhere")) == f"diffopt.load: {said}"


def test_another_precision_is_refused_in_one_line() -> None:
    said = refused(packed(bench(), "fp8").path, ConfigError, dtype=torch.float16)
    assert said.startswith("diffopt.load: what is not quantized is in float32 (got dtype float16); leave dtype out")
    assert all(diffopt.load(packed(bench(), "fp8").path, "cpu", same) for same in (torch.float32, "float32"))


def test_what_a_newer_diffopt_has_packed_is_refused_in_one_line() -> None:
    assert "has no kernel of the kind that b.0 is packed for (got 'fp3' in" in refused(changed(layers={"b.0": "fp3"}))
    assert "is of a form that diffopt 0.1.0 does not read (got 'diffopt.native/2')" in refused(
        changed(schema="diffopt.native/2")
    )


def test_files_that_are_torn_or_of_another_model_are_refused_in_one_line() -> None:
    torn = copy(packed(bench(), "fp8"))
    os.truncate(torn / "model.safetensors", 5000)
    assert refused(torn).startswith("diffopt.load: model.safetensors cannot be read: ")
    (torn / "model.safetensors").unlink()
    assert refused(torn).startswith("diffopt.load: model.safetensors cannot be read: ")
    (torn / NativeFile.NAME).write_text("{")
    assert refused(torn).startswith("diffopt.load: native.json cannot be read: ")
    other = copy(packed(bench(), "fp8"))
    shutil.copy(packed(emoji(), "fp8").path / "model.safetensors", other)
    assert "does not fit" in refused(other)
    shutil.copy(packed(bench(), "int8").path / "model.safetensors", other)
    assert ": a fp8 kernel has no scale (got" in refused(other)
    assert "has no place for" in refused(changed(layers={}))


def test_a_gpu_without_the_kernels_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(bench(), "fp8").path
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(path, PlanError, device="cuda") == (
        "diffopt.load: torch sees no NVIDIA GPU here (got device 'cuda'); give device='cpu'"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert refused(path, PlanError, device="cuda").startswith(
        "diffopt.load: fp8 has kernels from compute capability 8.9 on (got NVIDIA A100 with 8.0); use a newer GPU"
    )


def test_importing_diffopt_imports_no_library_that_computes() -> None:
    code = "import sys, diffopt; diffopt.load; print(*{'torch', 'diffusers', 'modelopt', 'hydra'} & {*sys.modules})"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_loading_imports_no_model_optimizer() -> None:
    code = f"import sys, diffopt; diffopt.load({str(packed(bench(), 'fp8').path)!r}, 'cpu'); print('modelopt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_the_lines_of_the_manual_draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As they stand, but for the names of what is the reader's, and for what a CPU takes too long for."""
    b = bench("bfloat16")
    code = next(x for x in page("diffopt/models/README.md").blocks("python") if "diffopt.load" in x)
    assert len([*filter(None, code.splitlines())]) == 5
    size = "height=32, width=32, num_inference_steps=2, max_sequence_length=16"
    for theirs, ours in (
        ('"MODEL"', repr(b.source)),
        ('"DIRECTORY"', repr(str(packed(b, "fp8").path))),
        ('"cuda"', '"cpu"'),
        ('"a red apple on a table"', f'"a red apple on a table", {size}'),
    ):
        assert theirs in code
        code = code.replace(theirs, ours)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}
    with torch.compiler.set_stance("force_eager"):
        exec(code, given)
    assert Image.open("apple.png").size == (32, 32)
    assert [m for m in given["pipe"].transformer.modules() if isinstance(m, Kernel)]


def test_a_pipelines_own_backbone_is_replaced_in_one_call() -> None:
    b = bench()
    pipe = FluxPipeline.from_pretrained(b.source)
    pipe.transformer = diffopt.load(packed(b, "int8").path, "cpu")
    drawn = b.draw(pipe, ["apple"], [1], 2)
    with RUNTIMES["native"].running(b.context(), b.pipeline(), b.checkpoint("int8"), None, texts=True) as run:
        assert (drawn == b.draw(run.pipe, ["apple"], [1], 2)).mean() > 0.99  # sums on a CPU have other last bits


def test_a_run_packs_a_model_that_the_store_copies_out_whole(tmp_path: Path) -> None:
    small = ("calib.size=2", "calib.chunk=2", "calib.batch_size=2", "calib.n_steps=1", "eval=null", "export.max_shard_size=4MB")
    diffopt_command(tmp_path, "+recipe=emoji_fp8", "export=native", *small)
    (run,) = (tmp_path / "outputs/runs/emoji_fp8").iterdir()
    (kept,) = (tmp_path / "outputs/store/native").iterdir()
    diffopt_command(tmp_path, "store", "export", f"native/{kept.name}", "out")
    own, copied = (diffopt.load(path, "cpu").state_dict() for path in (run / "pack", tmp_path / "out"))
    assert own.keys() == copied.keys()
    assert not [n for n in own if not torch.equal(own[n], copied[n])]
    head, about = NativeFile.read(tmp_path / "out"), Run(run)
    assert sum(x.nbytes for x in own.values()) == head.bytes
    assert about.size_of("pack").bytes == sum(p.stat().st_size for p in kept.iterdir() if p.name != "record.json")
    assert [line for line in summary(run) if line.startswith("packed") and "of the source's" in line]
    assert objective.of(about, "bytes") == about.size_of("pack").bytes


class Beside(Kernel):
    """A kernel that is put beside layers."""

    kind, adds = "beside", True

    @classmethod
    def layout(cls, layer: Any) -> dict[str, Buffer]:
        assert layer is None
        return {"scales": Buffer((3,), torch.float32)}


def test_a_kernel_may_stand_beside_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(KINDS, "beside", Beside)
    real, name = converted(bench(), "fp8"), "transformer_blocks.0.attn.products"
    Beside.of(None, {"scales": torch.arange(3.0)}).put(real, name)
    head = NativeFile.read(packed(bench(), "fp8").path)
    save(tmp_path, real, replace(head, layers=kernels(real)), "10GB")
    loaded = diffopt.load(tmp_path, "cpu")
    assert type(loaded.get_submodule(name)) is Beside
    assert loaded.get_submodule(name).scales.tolist() == [0, 1, 2]
