"""Folders that leave the store: other programs load them whole, and what they compute is what was scored."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import modelopt.torch.opt as mto
import numpy as np
import pytest
import torch
from adapters import adapter
from conftest import some
from contents import CHECKPOINT as CONTENT
from matrix_table import FORMATS
from modelopt.torch.opt.plugins import huggingface
from shipped import CHECKPOINT, DEPLOYED, PIPELINE, export, ran, store_of
from test_layouts import made
from tiny import Bench, aligned, bench, call, emoji, random_bench

from diffopt.errors import DiffoptError, StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.export import ExportFile
from diffopt.kernels.kernel import Kernel
from diffopt.pipeline.open import open_pipeline, open_texts
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.shipping import plain, shipment
from diffopt.shipping.ways import WAYS
from diffopt.store.files import sha256

HOUSE = r"store export: .* \(got .*\); .*"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny FLUX in FP8 for servers, with the rest of the pipeline."""
    b, root = bench(), tmp_path_factory.mktemp("hf")
    store = store_of(b, "fp8", root, made(b, "fp8"))
    ran(store, b, root / "run")
    export(store, DEPLOYED, root / "out")
    return root / "out"


@pytest.fixture
def as_before() -> Iterator[None]:
    """What Model-Optimizer replaces in the libraries' classes, for one test alone."""
    known = huggingface._LIBRARY_CLASSES_FOR_PATCHING.values()
    places = [(c, method) for classes, methods in known for c, each in zip(classes, methods, strict=True) for method, _ in each]
    before = [(c, method, c.__dict__[method]) for c, method in places if method in c.__dict__]
    yield
    for c, method, own in before:
        setattr(c, method, own)
    for c in {c for c, _ in places if "_modelopt_cache" in c.__dict__}:
        del c._modelopt_cache
    huggingface._PATCHED_CLASSES.clear()


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_weights_for_servers_come_with_the_rest_of_the_pipeline(exported: Path) -> None:
    source = Path(bench().source)
    rest = {n for n in tree(source) if not n.startswith("transformer/") and n != "model_index.json"}
    assert rest <= tree(exported)
    assert all((exported / n).read_bytes() == (source / n).read_bytes() for n in rest)
    assert "quantization_config" in json.loads((exported / "transformer/config.json").read_text())


def test_diffusers_reads_the_folder_with_a_backbone_that_is_given(exported: Path) -> None:
    b = bench()
    pipe = diffusers.DiffusionPipeline.from_pretrained(exported, transformer=b.backbone())
    own = diffusers.DiffusionPipeline.from_pretrained(b.source)
    assert {n: type(x) for n, x in pipe.components.items()} == {n: type(x) for n, x in own.components.items()}


def test_every_file_is_in_the_manifest_with_its_hash(exported: Path) -> None:
    head = ExportFile.read(exported)
    assert {*head.files} == tree(exported) - {ExportFile.NAME}
    assert head.artifacts == {"pipeline": PIPELINE, "checkpoint": CHECKPOINT, "deploy": DEPLOYED}
    assert shipment.differs(exported) is None


def test_a_folder_that_was_changed_says_what(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out/README.md").write_text("my own words")
    assert shipment.differs(tmp_path / "out") is None
    (tmp_path / "out/vae/config.json").write_text("{}")
    assert shipment.differs(tmp_path / "out") == "vae/config.json was changed"
    (tmp_path / "out/vae/config.json").unlink()
    assert shipment.differs(tmp_path / "out") == "vae/config.json is missing"


def test_the_rest_of_the_pipeline_can_be_left_out(tmp_path: Path) -> None:
    b = bench()
    export(store_of(b, "fp8", tmp_path, made(b, "fp8")), DEPLOYED, tmp_path / "out", "--backbone-only", f"--source={b.source}")
    assert {n.partition("/")[0] for n in tree(tmp_path / "out")} == {"transformer", "README.md", "export.json", "deploy.json"}


def test_a_backbone_alone_needs_no_model(tmp_path: Path) -> None:
    b = bench()
    export(store_of(b, "fp8", tmp_path, made(b, "fp8")), DEPLOYED, tmp_path / "out", "--backbone-only")
    assert "Unknown: the base model's files name none" in (tmp_path / "out/README.md").read_text()


def test_links_are_not_copies_and_leave_the_source_as_it_is(tmp_path: Path) -> None:
    b = bench()
    source = tmp_path / "source"
    shutil.copytree(b.source, source)
    export(store_of(b, "fp8", tmp_path, made(b, "fp8")), DEPLOYED, tmp_path / "out", "--link", f"--source={source}")
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).samefile(source / name)
    assert not (tmp_path / "out/model_index.json").samefile(source / "model_index.json")


def test_weights_of_a_variant_are_written_under_their_plain_names(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    root.mkdir()
    diffusers.FluxPipeline.from_pretrained(bench().source).save_pretrained(source, variant="fp16", max_shard_size="100KB")
    (source / "vae/diffusion_pytorch_model.bin").write_bytes(b"old")
    b = Bench(root, str(source), variant="fp16")
    assert any("fp16" in n for n in tree(source))
    export(store_of(b, "fp8", tmp_path), CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={source}")
    assert not [n for n in tree(tmp_path / "out") if "fp16" in n or n.endswith(".bin")]
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", transformer=None)
    own = diffusers.DiffusionPipeline.from_pretrained(source, variant="fp16", transformer=None)
    assert _same(pipe.vae, own.vae)
    assert _same(pipe.text_encoder, own.text_encoder)


def _same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_another_scheduler_is_the_folders_own(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path)
    path = store.root / "pipeline" / PIPELINE / "pipeline.json"
    path.chmod(0o644)
    content = json.loads(path.read_text()) | {"scheduler": "FlowMatchHeunDiscreteScheduler"}
    path.write_text(json.dumps(content))
    record = path.with_name("record.json")
    record.chmod(0o644)
    known = json.loads(record.read_text())
    known["files"]["pipeline.json"] = {"size": path.stat().st_size, "sha256": sha256(path)}
    record.write_text(json.dumps(known))
    export(store, CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={b.source}")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", transformer=None)
    assert type(pipe.scheduler).__name__ == "FlowMatchHeunDiscreteScheduler"


@pytest.mark.parametrize("name", some(FORMATS, ["fp8", "int8_sq"]))
def test_plain_weights_are_those_that_were_scored(name: str) -> None:
    b = bench()
    scored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    for module in scored.modules():
        if hasattr(module, "input_quantizer"):
            module.input_quantizer.disable()  # which leaves its scale
    expected = call(aligned(scored), b.inputs())
    own = aligned(b.backbone())
    own.load_state_dict(plain.unquantized(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))))
    found = call(own, b.inputs())
    if name == "fp8":
        assert torch.equal(found, expected)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(call(b.backbone(), b.inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.matrix
def test_plain_weights_of_convolutions_are_those_that_were_scored() -> None:
    b = bench(family="sd21")
    scored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))
    for module in scored.modules():
        if hasattr(module, "input_quantizer"):
            module.input_quantizer.disable()
    own = b.backbone()
    own.load_state_dict(plain.unquantized(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq"))))
    assert torch.allclose(call(own, b.inputs()), call(scored, b.inputs()), rtol=1e-4, atol=1e-5)
    changed = {n for n, x in b.backbone().state_dict().items() if not torch.equal(x, own.state_dict()[n])}
    assert "down_blocks.0.resnets.0.conv1.weight" in changed


@pytest.mark.usefixtures("as_before")
def test_diffusers_with_model_optimizer_draws_the_scored_pictures_to_the_bit(tmp_path: Path) -> None:
    """And diffusers alone draws with the rounded weights."""
    b = emoji()
    store = store_of(b, "fp8", tmp_path)
    draw: Any = {"prompts": list(b.prompts[:1]), "seeds": [1], "steps": 2}
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8"))
    scored = b.draw(aligned(open_pipeline(b.context(), b.pipeline(), backbone)), **draw)
    for way in ("modelopt", "diffusers"):
        export(store, CHECKPOINT, tmp_path / way, "--as", way, "--source=asset:emoji/emoji-flux")
    rounded = b.draw(aligned(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "diffusers")), **draw)
    mto.enable_huggingface_checkpointing()
    theirs = b.draw(aligned(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "modelopt")), **draw)
    assert np.array_equal(theirs, scored)
    assert not np.array_equal(rounded, scored)
    for module in backbone.modules():
        if hasattr(module, "input_quantizer"):
            module.input_quantizer.disable()
    with simulated():
        assert np.array_equal(rounded, b.draw(aligned(open_pipeline(b.context(), b.pipeline(), backbone)), **draw))


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_checkpoint_goes_every_way_and_is_left_as_it_was(way: str, tmp_path: Path) -> None:
    b = bench("bfloat16")
    store = store_of(b, "fp8", tmp_path)  # without one scale of q, k and v
    if way in ("comfyui", "svdquant", "nunchaku"):
        shared = r"transformer_blocks\.0\.attn\.to_q .* set format\.share_scales=true"
        wrong = shared if way == "comfyui" else f"--as {way} takes"
        with pytest.raises(DiffoptError, match=wrong):
            export(store, CHECKPOINT, tmp_path / "out", "--as", way, f"--source={b.source}")
        assert not [p for p in tmp_path.iterdir() if "out" in p.name]
        return
    before = {e.fingerprint: e.record["files"] for e in store.entries()}
    export(store, CHECKPOINT, tmp_path / "out", "--as", way, f"--source={b.source}")
    assert (tmp_path / "out/README.md").is_file()
    assert {e.fingerprint: e.record["files"] for e in store.entries()} == before
    assert not [e for e in store.entries() if e.problems()]


def test_weights_that_the_store_has_are_taken_from_it(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path, made(b, "fp8"))
    export(store, CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={b.source}")
    assert ExportFile.read(tmp_path / "out").artifacts["deploy"] == DEPLOYED


def test_a_run_is_named_for_what_it_made(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path)
    run = ran(store, b, tmp_path / "run")
    export(store, run, tmp_path / "out", "--as", "diffusers")
    assert ExportFile.read(tmp_path / "out").artifacts["checkpoint"] == CHECKPOINT


def test_random_weights_have_no_rest_of_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = random_bench("flux")
    export(store_of(b, "mxfp8", tmp_path), CHECKPOINT, tmp_path / "out", "--as", "hf", f"--source={b.source}")
    assert "weights were random: there is no rest of the pipeline to copy" in capsys.readouterr().out
    assert not (tmp_path / "out/model_index.json").exists()
    assert "**The base model's weights were random" in (tmp_path / "out/README.md").read_text()


def test_several_backbones_are_written_each(tmp_path: Path) -> None:
    b = bench("bfloat16", family="wan")
    export(store_of(b, "fp8", tmp_path), CHECKPOINT, tmp_path / "out", "--as", "diffusers", f"--source={b.source}")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert type(pipe.transformer) is type(pipe.transformer_2) is diffusers.WanTransformer3DModel
    own = b.backbone().state_dict()
    theirs = {f"{n}.{k}": x for n in ("transformer", "transformer_2") for k, x in getattr(pipe, n).state_dict().items()}
    assert theirs.keys() == own.keys()
    assert {k.partition(".")[0] for k in own if not torch.equal(own[k], theirs[k])} == {"transformer", "transformer_2"}


@pytest.mark.parametrize(("way", "name"), [("diffusers", "int8"), ("modelopt", "int8"), ("hf", "nvfp4"), ("native", "int8")])
@pytest.mark.parametrize("alone", [False, True], ids=["whole", "alone"])
@pytest.mark.usefixtures("as_before")
def test_the_code_of_a_card_loads_the_folder(way: str, name: str, alone: bool, tmp_path: Path) -> None:
    b = bench("bfloat16")
    flags = ["--backbone-only"] if alone else []
    export(store_of(b, name, tmp_path), CHECKPOINT, tmp_path / "out", "--as", way, f"--source={b.source}", *flags)
    text = (tmp_path / "out/README.md").read_text()
    blocks = [x.partition("```")[0] for x in text.split("```python\n")[1:] if "from diffusers" in x.partition("```")[0]]
    code = blocks[-1].replace('"DIR', f'"{tmp_path / "out"}').replace('"BASE"', f'"{b.source}"')
    given: dict[str, Any] = {}
    exec(code.replace('.to("cuda")', ""), given)
    loaded = given["pipe"].transformer
    scored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    if way == "modelopt":
        assert torch.equal(call(loaded, b.inputs()), call(scored, b.inputs()))
    elif way == "diffusers":
        expected = plain.unquantized(scored)
        assert {n: x.tolist() for n, x in loaded.state_dict().items()} == {n: x.tolist() for n, x in expected.items()}
    elif way == "native":
        assert [m for m in loaded.modules() if isinstance(m, Kernel)]
    else:
        assert loaded.transformer_blocks[0].attn.to_q.weight.dtype == torch.uint8


def test_a_text_encoder_that_an_adapter_changed_is_written_as_it_was_scored(tmp_path: Path) -> None:
    b, root = bench(), tmp_path / "root"
    root.mkdir()
    pipe = diffusers.FluxPipeline.from_pretrained(b.source)
    file = adapter(tmp_path / "lora", pipe, text=("text_encoder",))
    tuned = Bench(root, b.source, lora=[{"path": str(file), "scale": 0.5}])
    lora = (f"--lora={file}", f"--source={b.source}")
    export(store_of(tuned, "mxfp8", tmp_path), CHECKPOINT, tmp_path / "out", "--as", "hf", *lora)
    own = open_texts(tuned.context(), tuned.pipeline())
    written = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", transformer=None)
    base = diffusers.DiffusionPipeline.from_pretrained(b.source, transformer=None)
    assert _same(written.text_encoder, own.text_encoder)
    assert not _same(written.text_encoder, base.text_encoder)
    assert _same(written.text_encoder_2, base.text_encoder_2)


# Refused, and nothing half-written.


def refused(store: Any, out: Path, *arguments: Any) -> str:
    before = {*out.parent.iterdir()}
    with pytest.raises(StoreError, match=HOUSE) as caught:
        export(store, *arguments)
    assert {*out.parent.iterdir()} == before
    return str(caught.value)


def test_a_disk_that_is_too_small_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path, made(b, "fp8"))
    few = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    line = refused(store, tmp_path / "out", DEPLOYED, tmp_path / "out", f"--source={b.source}")
    assert "takes about" in line
    assert "--backbone-only" in line


def test_a_folder_needs_about_as_much_as_it_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    whole = shipment.Shipment.check_room
    monkeypatch.setattr(shipment.Shipment, "check_room", lambda self, where: (said.append(self.bytes), whole(self, where))[1])
    b = bench()
    store = store_of(b, "fp8", tmp_path)
    for way in ("hf", "diffusers", "modelopt"):
        export(store, CHECKPOINT, tmp_path / way, "--as", way, f"--source={b.source}")
        taken = sum(p.stat().st_size for p in (tmp_path / way).rglob("*") if p.is_file())
        assert taken < said[-1] < taken + 2 * shipment.SPARE, way


def test_an_artifact_without_weights_is_refused(tmp_path: Path) -> None:
    b = bench()
    line = refused(store_of(b, "fp8", tmp_path), tmp_path / "out", f"pipeline/{PIPELINE[:4]}", tmp_path / "out", "--as", "hf")
    assert f"--as hf takes a checkpoint, deploy or native artifact (got pipeline/{PIPELINE})" in line


def test_a_format_that_a_way_does_not_take_is_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    store = store_of(bench(), "int8_sq", tmp_path)
    line = refused(store, tmp_path / "out", CHECKPOINT, tmp_path / "out", "--as", "comfyui", "--source=/nowhere")
    assert "transformer_blocks.0.norm1.linear is in int8_sq, and --as comfyui takes fp8, " in line


def test_of_a_mix_of_formats_each_layers_own_is_asked_for() -> None:
    head = replace(CheckpointFile.of(CONTENT), format="auto", layers=("a", "b"), mix={"a": "fp8", "b": "w4a8_awq"})
    assert (WAYS["native"].refusal(head) or "").startswith("b is in w4a8_awq, and --as native takes fp8, ")
    assert WAYS["hf"].refusal(head) is None


def test_a_model_that_is_not_here_is_asked_for(tmp_path: Path) -> None:
    b = bench()
    line = refused(store_of(b, "fp8", tmp_path, made(b, "fp8")), tmp_path / "out", DEPLOYED, tmp_path / "out")
    assert "name it with --source=DIRECTORY, or leave the rest of the pipeline out with --backbone-only" in line


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path, made(b, "fp8"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shipment.others, "write", full)
    line = refused(store, tmp_path / "out", DEPLOYED, tmp_path / "out", f"--source={b.source}")
    assert "no space left" in line


def test_weights_that_were_changed_in_the_store_are_not_passed_on(tmp_path: Path) -> None:
    b = bench()
    store = store_of(b, "fp8", tmp_path, made(b, "fp8"))
    path = store.root / "deploy" / DEPLOYED / "transformer/diffusion_pytorch_model.safetensors"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"diffusion_pytorch_model\.safetensors has other bytes than when it was made"):
        export(store, DEPLOYED, tmp_path / "out", f"--source={b.source}")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_bare_and_a_way_out_contradict_each_other(tmp_path: Path) -> None:
    store = store_of(bench(), "fp8", tmp_path)
    assert "drop one of them" in refused(store, tmp_path / "out", CHECKPOINT, tmp_path / "out", "--as", "hf", "--bare")
