"""A checkpoint restores bit for bit, says so when it cannot, and is not made when layers are missing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import some
from safetensors.torch import load_file, save_file
from tiny import LAYERS, Bench, bench, call, recipe

from diffopt import formats as methods
from diffopt.artifact import CalibStats, Checkpoint
from diffopt.errors import GateError, StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.groups import FormatView, ScaleView
from diffopt.models.flux import FAMILY
from diffopt.quantization import checkpoint
from diffopt.quantization.awq_svdquant import calibrate
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.recorded_calls import replay
from diffopt.stages.quantize import quantize

FORMATS = [
    ("int8", False),
    ("int8_sq", False),
    ("fp8", False),
    ("fp8", True),
    ("nvfp4", False),
    ("nvfp4", True),
    ("mxfp8", False),
    ("int4_awq", False),
    ("w4a8_awq", False),
    ("nvfp4_svdquant", False),
    ("nvfp4_svdquant", True),
]
QUICK = ("int8_sq", "fp8", "nvfp4", "mxfp8")
formats = pytest.mark.parametrize(("name", "mha"), some(FORMATS, [x for x in FORMATS if x[0] in QUICK]))


def as_made(b: Bench, name: str, mha: bool = False) -> torch.nn.Module:
    """The model as the stage quantized it, not as it was restored."""

    def make(_: object) -> torch.nn.Module:
        model, (rules, algorithm), method = b.backbone(), recipe(name, mha=mha), methods.method(name)
        if method.records:
            calibrate(model, rules, algorithm, replay([r.path for r in b.recordings(4)]))
        else:
            extremes = load_file(b.stats(4).path / "extremes.safetensors") if method.observes else {}
            checkpoint.quantize(model, rules, algorithm, extremes)
        return model

    return b._once(("as made", name, mha), make)


FRESH = """
import json, sys
from pathlib import Path
import torch
from diffopt.artifact import Checkpoint, Pipeline
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.checkpoint import restore
from diffopt.stage import Context
source, pipeline, inputs, out, *checkpoints = map(Path, sys.argv[1:])
ctx = Context(out, lambda s: "", lambda digest: source)
found = {}
for path in checkpoints:
    model = restore(ctx, Pipeline(pipeline, "p"), Checkpoint(path, "c"))
    with torch.no_grad(), simulated():
        output = model(**torch.load(inputs), return_dict=False)[0]
    found[str(path)] = (output, dict(model.named_parameters()), dict(model.named_buffers()))
torch.save(found, out / "found.pt")
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[torch.Tensor, dict, dict]]:
    """Output, parameters and buffers of every format's checkpoint, restored in another process."""
    b, out = bench(), tmp_path_factory.mktemp("fresh")
    torch.save(b.inputs(), out / "inputs.pt")
    paths = [b.checkpoint(name, mha=mha).path for name, mha in FORMATS]
    arguments = [b.source, b.pipeline().path, out / "inputs.pt", out, *paths]
    subprocess.run([sys.executable, "-c", FRESH, *map(str, arguments)], check=True, capture_output=True)
    return torch.load(out / "found.pt", weights_only=False)


@formats
@pytest.mark.matrix
def test_a_fresh_process_restores_every_tensor_and_the_output(name: str, mha: bool, fresh: dict) -> None:
    b = bench()
    output, parameters, buffers = fresh[str(b.checkpoint(name, mha=mha).path)]
    model = as_made(b, name, mha)
    for stored, made in ((parameters, dict(model.named_parameters())), (buffers, dict(model.named_buffers()))):
        assert stored.keys() == made.keys()
        assert all(torch.equal(stored[n], made[n]) for n in made)
    assert torch.equal(output, call(model, b.inputs()))
    assert not torch.equal(output, call(b.backbone(), b.inputs()))


@formats
def test_a_restored_model_has_the_same_quantizers_enabled(name: str, mha: bool) -> None:
    b = bench()
    model = as_made(b, name, mha)
    restored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, mha=mha))
    assert {n for n, q in quantizers(restored) if q.is_enabled} == {n for n, q in quantizers(model) if q.is_enabled}
    assert [(n, type(m).__name__) for n, m in restored.named_modules()] == [
        (n, type(m).__name__) for n, m in model.named_modules()
    ]


@pytest.mark.matrix
def test_a_search_in_16_bit_is_restored_to_the_bit() -> None:
    # Weights are divided by scales in FP32, of which the quantizers keep 16 bits.
    b = bench("bfloat16")
    made, restored = as_made(b, "int4_awq"), checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int4_awq"))
    ours, theirs = restored.state_dict(), made.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.matrix
def test_a_search_whose_scales_do_not_fit_its_weights_is_detected(tmp_path: Path) -> None:
    def halved(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in sorted(tensors) if n.endswith("_pre_quant_scale"))
        tensors[name] = tensors[name] / 2

    b = bench()
    broken = tampered(b.checkpoint("int4_awq"), tmp_path, checkpoint.STATE, halved)
    with pytest.raises(StoreError, match="come out otherwise"):
        checkpoint.restore(b.context(), b.pipeline(), broken)


def test_without_a_checkpoint_the_plain_backbone_is_restored() -> None:
    b = bench()
    restored = checkpoint.restore(b.context(), b.pipeline(), None)
    assert torch.equal(call(restored, b.inputs()), call(b.backbone(), b.inputs()))
    assert not list(quantizers(restored))


SHARES = [("int8_sq", 0.1), ("fp8", 0.1), ("nvfp4", 0.1), ("int4_awq", 0.15), ("mxfp8", 0.05)]


@pytest.mark.parametrize(("name", "share"), SHARES)
def test_a_checkpoint_holds_no_weights(name: str, share: float) -> None:
    path = bench().checkpoint(name).path
    weights = sum(p.numel() * p.element_size() for p in bench().backbone().parameters())
    assert sum(f.stat().st_size for f in path.iterdir()) < weights * share


def copied(original: Checkpoint, folder: Path) -> Checkpoint:
    return Checkpoint(Path(shutil.copytree(original.path, folder / "copy")), original.fingerprint)


def tampered(original: Checkpoint, folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Checkpoint:
    copy = copied(original, folder)
    tensors = load_file(copy.path / file)
    change(tensors)
    save_file(tensors, copy.path / file)
    return copy


def louder(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n in sorted(tensors) if "input_quantizer" in n)
    tensors[name] = tensors[name] * 1.01


def without_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(n for n in sorted(tensors) if "input_quantizer" in n))


@pytest.mark.parametrize("change", [louder, without_one])
@pytest.mark.parametrize("file", [checkpoint.EXTREMES, checkpoint.STATE])
@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
def test_tampered_tensors_are_detected(name: str, file: str, change: Callable, tmp_path: Path) -> None:
    b = bench()
    broken = tampered(b.checkpoint(name), tmp_path, file, change)
    with pytest.raises(StoreError, match="come out otherwise"):
        checkpoint.restore(b.context(), b.pipeline(), broken)


def test_a_copy_that_was_not_tampered_with_is_restored(tmp_path: Path) -> None:
    b = bench()
    checkpoint.restore(b.context(), b.pipeline(), copied(b.checkpoint("nvfp4"), tmp_path))


def test_a_changed_smoothing_strength_is_detected(tmp_path: Path) -> None:
    b = bench()
    copy = copied(b.checkpoint("int8_sq", alpha=0.5), tmp_path)
    head = copy.json(CheckpointFile.NAME)
    head["algorithm"]["alpha"] = 0.6
    (copy.path / CheckpointFile.NAME).write_text(json.dumps(head))
    with pytest.raises(StoreError, match="come out otherwise"):
        checkpoint.restore(b.context(), b.pipeline(), copy)


def test_a_dropped_rule_is_detected(tmp_path: Path) -> None:
    b = bench()
    copy = copied(b.checkpoint("fp8", exclude=("transformer_blocks.0",)), tmp_path)
    head = copy.json(CheckpointFile.NAME)
    head["rules"].pop()
    (copy.path / CheckpointFile.NAME).write_text(json.dumps(head))
    with pytest.raises(StoreError, match="come out otherwise"):
        checkpoint.restore(b.context(), b.pipeline(), copy)


# The layers.


def linear(model: torch.nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("name", some(dict(FORMATS), [*QUICK, "int8"]))
def test_every_linear_layer_of_a_block_is_quantized_and_no_other(name: str) -> None:
    b = bench()
    layers = set(b.checkpoint(name).json(CheckpointFile.NAME)["layers"])
    wanted = {n for n in linear(b.backbone()) if n.startswith(("transformer_blocks.", "single_transformer_blocks."))}
    assert layers == wanted
    assert len(layers) == LAYERS


@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
def test_the_output_projection_of_every_single_block_is_quantized(name: str) -> None:
    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    for i in range(len(model.single_transformer_blocks)):
        projection = model.single_transformer_blocks[i].proj_out
        assert projection.weight_quantizer.is_enabled
        assert projection.input_quantizer.is_enabled


@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
@pytest.mark.parametrize("kept", ["proj_out", "x_embedder", "context_embedder", "time_text_embed", "norm_out"])
def test_what_the_family_keeps_is_as_it_was(name: str, kept: str) -> None:
    b = bench()
    model, plain = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)), b.backbone()
    inside = [n for n in linear(plain) if n == kept or n.startswith(f"{kept}.")]
    assert inside
    for layer in inside:
        assert torch.equal(model.get_submodule(layer).weight, plain.get_submodule(layer).weight)
    assert not any(q.is_enabled for n, q in quantizers(model) if n.startswith(f"{kept}."))


@pytest.fixture(scope="module")
def flux_dev() -> torch.nn.Module:
    """FLUX.1-dev's architecture, without its weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def test_494_layers_of_flux_dev_are_to_be_quantized(flux_dev: torch.nn.Module) -> None:
    expected = checkpoint.expected_layers(flux_dev, list(FAMILY.keep))
    assert len(flux_dev.transformer_blocks) == 19
    assert len(flux_dev.single_transformer_blocks) == 38
    # A double block: 2 modulations, q k v and output for picture and text, 2 feed-forwards of 2. A single one:
    # modulation, q k v, mlp and output.
    assert len(set(expected)) == len(expected) == 19 * (2 + 8 + 4) + 38 * (1 + 3 + 1 + 1) == 494


def test_almost_all_parameters_of_flux_dev_are_to_be_quantized(flux_dev: torch.nn.Module) -> None:
    layers = checkpoint.expected_layers(flux_dev, list(FAMILY.keep))
    weights = sum(flux_dev.get_submodule(n).weight.numel() for n in layers)
    assert 0.99 < weights / sum(p.numel() for p in flux_dev.parameters()) < 1


def test_every_single_blocks_output_projection_of_flux_dev_is_to_be_quantized(flux_dev: torch.nn.Module) -> None:
    expected = set(checkpoint.expected_layers(flux_dev, list(FAMILY.keep)))
    assert {f"single_transformer_blocks.{i}.proj_out" for i in range(38)} <= expected
    assert "proj_out" not in expected


@pytest.mark.parametrize(
    ("excluded", "count"),
    [
        ("transformer_blocks.0", 14),
        ("transformer_blocks.0.*", 14),
        ("transformer_blocks.*", 28),
        ("single_transformer_blocks.*.proj_out", 2),
        ("*.norm1*", 4),
        ("*attn*", 22),
    ],
)
def test_an_exclusion_takes_out_the_layers_it_names(excluded: str, count: int) -> None:
    b = bench(family="flux")
    kept = set(b.checkpoint("fp8").json(CheckpointFile.NAME)["layers"])
    left = set(b.checkpoint("fp8", exclude=(excluded,)).json(CheckpointFile.NAME)["layers"])
    assert left < kept
    assert len(kept - left) == count
    assert left == set(checkpoint.expected_layers(b.backbone(), [*FAMILY.keep, excluded]))


# The gates.


def quantized_on(b: Bench, folder: Path, extremes: dict[str, torch.Tensor], name: str) -> None:
    save_file(extremes, folder / "extremes.safetensors")
    chosen = FormatView(name=name, exclude=[], quantize_mha=False)
    quantize.run(b.context(), chosen, ScaleView(alpha=0.5), b.pipeline(), CalibStats(folder, "stats"), ())


LAYER = "single_transformer_blocks.0.proj_out"


@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
def test_a_layer_that_was_never_observed_is_refused(name: str, tmp_path: Path) -> None:
    extremes = load_file(bench().stats(4).path / "extremes.safetensors")
    extremes.pop(f"{LAYER}.input_quantizer")
    with pytest.raises(GateError, match=rf"calibration never reached {LAYER} .*format.exclude"):
        quantized_on(bench(), tmp_path, extremes, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
def test_meaningless_extremes_are_refused(name: str, value: float, tmp_path: Path) -> None:
    extremes = load_file(bench().stats(4).path / "extremes.safetensors")
    extremes[f"{LAYER}.input_quantizer"].fill_(value)
    with pytest.raises(
        GateError, match=rf"nothing but zeros enter {LAYER} " if value == 0 else rf"{LAYER}\.input_quantizer saw inf or NaN"
    ):
        quantized_on(bench(), tmp_path, extremes, name)


def test_a_layer_that_lost_its_quantizer_is_refused() -> None:
    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8"))
    expected = checkpoint.quantized_layers(model)
    checkpoint.check(model, expected)
    model.get_submodule(LAYER).weight_quantizer.disable()
    with pytest.raises(GateError, match=rf"1 of {LAYERS} layers were not quantized \(got {LAYER}"):
        checkpoint.check(model, expected)


def test_a_layer_whose_input_is_not_quantized_is_refused() -> None:
    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8"))
    expected = checkpoint.quantized_layers(model)
    model.get_submodule(LAYER).input_quantizer.disable()
    with pytest.raises(GateError):
        checkpoint.check(model, expected)
