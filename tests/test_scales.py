"""The scales that a checkpoint is made of, computed layer by layer, are bit for bit those of modelopt's own calibration."""

import copy
from functools import partial

import pytest
import torch
from conftest import some
from matrix_table import FORMATS
from safetensors.torch import load_file
from tiny import BLOCK, Bench, bench, emoji

from diffopt import formats
from diffopt.errors import GateError
from diffopt.files.pipeline import PipelineFile
from diffopt.formats.method import Rule
from diffopt.pipeline.open import empty_backbone, family_of
from diffopt.quantization import checkpoint
from diffopt.quantization.scales import Plain, scales

OBSERVED = [n for n in FORMATS if formats.method(n).observes]
ALPHAS = (0.0, 0.35, 1.0)


def made(dtype: str, family: str) -> Bench:
    return emoji() if family == "emoji" else bench(dtype, family=family)


def rules(b: Bench, name: str, mha: bool) -> list[Rule]:
    family, pinned, method = family_of(b.pipeline()), PipelineFile.read(b.pipeline().path), formats.method(name)
    kept = family.kept(pinned.blocks, pinned.backbones)
    return method.rules(kept, [], mha, BLOCK if method.block_size else None, bool(method.convolution) and family.convolutions)


def plain(b: Bench) -> Plain:
    return Plain(b.backbone(), partial(empty_backbone, b.context(), b.pipeline()))


def both(
    b: Bench, name: str, alpha: float, mha: bool, extremes: dict[str, torch.Tensor], share: bool = False
) -> tuple[dict, dict]:
    chosen, model = rules(b, name, mha), b.backbone()
    checkpoint.quantize(model, chosen, formats.method(name).calibration(alpha), extremes, share)
    opened = plain(b)
    return scales(opened.backbone, opened.switched_on(chosen), extremes, alpha, share), checkpoint.state(model)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return list(ours) == list(theirs) and all(
        x.dtype == theirs[n].dtype and x.shape == theirs[n].shape and torch.equal(x, theirs[n]) for n, x in ours.items()
    )


@pytest.mark.parametrize("family", some(["flux", "sdxl", "wan", "emoji"], ["flux"]))
@pytest.mark.parametrize("name", OBSERVED)
def test_they_are_those_of_modelopt(name: str, family: str) -> None:
    b = made("float32", family)
    extremes = load_file(b.stats(4).path / "extremes.safetensors")
    for alpha in ALPHAS if formats.method(name).algorithm == "smoothquant" else ALPHAS[:1]:
        ours, theirs = both(b, name, alpha, False, extremes)
        assert ours
        assert same(ours, theirs)


@pytest.mark.parametrize("name", some(["int8_sq", "fp8", "nvfp4"], ["int8_sq"]))
def test_they_are_those_of_modelopt_for_a_16_bit_model(name: str) -> None:
    b = bench("bfloat16")
    extremes = load_file(b.stats(4).path / "extremes.safetensors")
    for alpha in ALPHAS:
        assert same(*both(b, name, alpha, formats.method(name).attention, extremes))


def test_a_channel_that_never_fires_is_scaled_as_modelopt_does() -> None:
    b = bench()
    extremes = load_file(b.stats(4).path / "extremes.safetensors")
    extremes["transformer_blocks.0.ff.net.2.input_quantizer"][3] = 0
    assert same(*both(b, "int8_sq", 0.5, False, extremes))


def test_a_channel_that_no_weight_reads_is_refused_by_the_name_of_its_layer() -> None:
    b = bench()
    opened, extremes = plain(b), load_file(b.stats(4).path / "extremes.safetensors")
    opened.backbone.transformer_blocks[0].ff.net[2].weight.data[:, 3] = 0
    with pytest.raises(GateError, match=r"transformer_blocks\.0\.ff\.net\.2 has an input channel that no weight reads"):
        scales(opened.backbone, opened.switched_on(rules(b, "int8_sq", False)), extremes, 0.5)


def test_the_backbone_stays_as_it_was_and_serves_the_next_format() -> None:
    b, opened = bench(), plain(bench())
    before = copy.deepcopy(opened.backbone.state_dict())
    extremes = load_file(b.stats(4).path / "extremes.safetensors")
    for name in ("int8_sq", "fp8", "int8_sq"):
        scales(opened.backbone, opened.switched_on(rules(b, name, False)), extremes, 0.5)
    after = opened.backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], x) for n, x in before.items())
