"""Layers of one input with the same scales: who shares, what it comes to, and that all that reads a checkpoint has them."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_scales import FORMATS, both, same
from tiny import bench

from diffopt import formats
from diffopt.errors import PlanError
from diffopt.kernels.convert import convert
from diffopt.kernels.fuse import fuse
from diffopt.kernels.int8 import JoinedInt8Linear
from diffopt.quantization import checkpoint
from diffopt.quantization.shared_scales import groups

SHARING = ["fp8", "int8_sq", "nvfp4"]


def extremes(family: str = "flux", dtype: str = "float32") -> dict[str, torch.Tensor]:
    return load_file(bench(dtype, family=family).stats(4).path / "extremes.safetensors")


def test_formats_that_can_share_are_these() -> None:
    others = ["nvfp4_svdquant"]  # by one low-rank part too: test_svdquant_scales.py
    assert sorted(n for n in FORMATS if formats.method(n).shares) == sorted([*SHARING, *others])


def test_layers_of_one_input_share_and_the_query_of_a_text_does_not() -> None:
    seen = extremes("wan")
    found = groups([n.rpartition(".")[0] for n in seen], seen)
    block = next(n for n in seen if "attn2.to_q" in n).rpartition(".attn2.")[0]
    assert [f"{block}.attn1.to_{x}" for x in "qkv"] in found
    assert [f"{block}.attn2.to_{x}" for x in "kv"] in found
    assert not any(f"{block}.attn2.to_q" in group for group in found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHARING)
def test_a_group_has_one_scale_of_its_largest_and_others_stay(name: str, dtype: str) -> None:
    b, seen = bench(dtype), extremes(dtype=dtype)
    ours, restored = both(b, name, 0.5, False, seen, share=True)
    assert same(ours, restored)
    apart, _ = both(b, name, 0.5, False, seen)
    quantized = {n.rpartition(".weight_quantizer")[0] for n in ours if ".weight_quantizer." in n}
    backbone, shared = b.backbone(), groups(quantized, seen)
    assert shared
    for group in shared:
        keys = ("input_quantizer._pre_quant_scale",) if name == "int8_sq" else ("weight_quantizer._amax",)
        for key in (*keys, "input_quantizer._amax"):
            assert all(torch.equal(ours[f"{n}.{key}"], ours[f"{group[0]}.{key}"]) for n in group), key
        weights = torch.cat([backbone.get_submodule(n).weight for n in group])
        if name != "int8_sq":
            assert ours[f"{group[0]}.weight_quantizer._amax"] == weights.abs().max()
        else:
            scale = (weights.float().abs().amax(0) / seen[f"{group[0]}.input_quantizer"].float()).sqrt()
            assert torch.allclose(ours[f"{group[0]}.input_quantizer._pre_quant_scale"].float(), scale, rtol=0.01)
    alone = {n for n in ours if not any(n.startswith(f"{x}.") for group in shared for x in group)}
    assert alone
    assert all(torch.equal(ours[n], apart[n]) for n in alone)
    assert not same(ours, apart)


@pytest.mark.parametrize("name", SHARING)
def test_a_checkpoint_that_shares_is_restored_as_it_was_stored(name: str) -> None:
    b = bench()
    made = b.checkpoint(name, share=True)
    state = checkpoint.state(checkpoint.restore(b.context(), b.pipeline(), made))
    assert same(load_file(made.path / checkpoint.STATE), state)


def test_smoothed_layers_of_one_input_are_one_product_where_they_share() -> None:
    b, joined = bench(), {}
    for share in (False, True):
        backbone: Any = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq", share=share))
        convert(backbone)
        fuse(backbone)
        joined[share] = sum(isinstance(m, JoinedInt8Linear) for m in backbone.modules())
    assert joined[False] == 0
    assert joined[True] > 0


@pytest.mark.parametrize("name", ["int8", "mxfp8", "int4_awq"])
def test_formats_without_scales_to_share_say_so(plan: Any, name: str) -> None:
    calib = [] if name == "mxfp8" else ["calib=emoji"]
    with pytest.raises(PlanError, match=r"format\.share_scales: .*\(got true\)"):
        plan("model=emoji_flux", f"format={name}", *calib, "eval=emoji", "+format.share_scales=true")


def test_sharing_is_another_checkpoint_and_not_sharing_the_same_as_ever(plan: Any) -> None:
    def made(*more: str) -> str:
        return next(s.fingerprint for s in plan("+recipe=emoji_fp8", *more).steps if s.name == "quantize")

    assert made() == made("+format.share_scales=false") != made("+format.share_scales=true")
