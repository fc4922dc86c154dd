"""SVDQuant with shared and rounded scales: what servers keep of a layer is what was scored."""

from typing import Any

import pytest
import torch
from conftest import some
from tiny import CHUNK, Bench, bench

from diffopt.files.checkpoint import CheckpointFile
from diffopt.quantization import checkpoint
from diffopt.quantization.awq_svdquant import calibrate, rebuild
from diffopt.quantization.block_codes import tensor_scale
from diffopt.quantization.recorded_calls import replay
from diffopt.quantization.rules import rule
from diffopt.quantization.svdquant_scales import next_in_bfloat16, power_of_two

NAME = "nvfp4_svdquant"


def restored(b: Bench, **how: Any) -> Any:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(NAME, **how))


def layers(model: Any) -> dict[str, Any]:
    return {name: model.get_submodule(name) for name in checkpoint.quantized_layers(model)}


def held(x: torch.Tensor) -> bool:
    return x.bfloat16().float().equal(x.float())


@pytest.mark.parametrize("share", some([False, True], {True}))
def test_rounded_scales_are_numbers_of_bfloat16(share: bool) -> None:
    for name, layer in layers(restored(bench("bfloat16"), share=share, round=True)).items():
        smoothing, scale = layer.input_quantizer.pre_quant_scale.float(), tensor_scale(layer.weight_quantizer.amax)
        assert held(scale), name
        assert held(1 / smoothing), name
        assert held(layer.weight_quantizer.svdquant_lora_a.float() * smoothing), name


@pytest.mark.matrix
def test_without_the_choice_they_are_not() -> None:
    found = layers(restored(bench("bfloat16"))).values()
    assert not all(held(tensor_scale(x.weight_quantizer.amax)) for x in found)
    assert not all(held(1 / x.input_quantizer.pre_quant_scale.float()) for x in found)


def test_layers_of_one_input_have_one_scale_and_one_projection_down() -> None:
    model = restored(bench("bfloat16"), share=True, round=True)
    groups = [
        [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
        [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
        [*(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.0.proj_mlp"],
    ]
    for group in groups:
        first, *rest = [model.get_submodule(n) for n in group]
        for other in rest:
            assert other.weight_quantizer.svdquant_lora_a.equal(first.weight_quantizer.svdquant_lora_a)
            assert other.weight_quantizer.amax.equal(first.weight_quantizer.amax)
            assert other.input_quantizer.amax.equal(first.input_quantizer.amax)
            assert other.input_quantizer.pre_quant_scale.equal(first.input_quantizer.pre_quant_scale)
    alone = [model.get_submodule(n).weight_quantizer.svdquant_lora_a for n in (groups[0][0], groups[1][0])]
    assert not alone[0].equal(alone[1])


def test_weight_and_low_rank_part_together_are_the_source_s_weight() -> None:
    b = bench("float32")
    plain = b.backbone()
    for name, layer in layers(restored(b, share=True, round=True)).items():
        quantizer, smoothing = layer.weight_quantizer, layer.input_quantizer.pre_quant_scale.flatten()
        whole = (layer.weight + quantizer.svdquant_lora_b @ quantizer.svdquant_lora_a) * smoothing
        assert torch.allclose(whole, plain.get_submodule(name).weight, atol=1e-5), name


def test_one_projection_of_a_group_is_the_best_of_its_rank() -> None:
    """Of the stacked weights: by the singular values that it leaves."""
    model = restored(bench("float32"), share=True, round=True)
    three = [model.get_submodule(f"transformer_blocks.0.attn.to_{x}") for x in "qkv"]
    left = torch.cat([x.weight for x in three]).double()
    low = (
        torch.cat([x.weight_quantizer.svdquant_lora_b for x in three]).double()
        @ three[0].weight_quantizer.svdquant_lora_a.double()
    )
    expected = torch.linalg.svdvals(left + low)[len(three[0].weight_quantizer.svdquant_lora_a) :].pow(2).sum()
    assert torch.allclose(left.pow(2).sum(), expected, rtol=1e-4)


def test_what_is_restored_is_what_was_calibrated_bit_for_bit() -> None:
    b = bench("bfloat16")
    head = CheckpointFile.read(b.checkpoint(NAME, share=True, round=True).path)
    rules, loop = [rule(r) for r in head.rules], replay([r.path for r in b.recordings(CHUNK)])
    made, again = b.backbone(), b.backbone()
    found = calibrate(made, rules, head.algorithm, loop, share=True, round=True)
    rebuild(again, rules, head.algorithm, found)
    expected, read = made.state_dict(), again.state_dict()
    assert {*expected} == {*read}
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype, name
        assert read[name].equal(tensor), name


def test_next_in_bfloat16_is_the_least_from_there_on() -> None:
    amax = torch.rand(200) * 10 + 1e-3
    for x in amax:
        found = next_in_bfloat16(x)
        scale = tensor_scale(found)
        assert held(scale)
        assert found >= x * (1 - 1e-6)
        assert float(scale) * (1 - 2.0**-7) < float(tensor_scale(x)) * (1 + 1e-6)
    assert next_in_bfloat16(next_in_bfloat16(amax[:1])).equal(next_in_bfloat16(amax[:1]))


def test_a_power_of_two_is_the_nearest_by_ratio() -> None:
    assert power_of_two(torch.tensor([0.7, 0.71, 1.4, 1.42, 3.0])).tolist() == [0.5, 1.0, 1.0, 2.0, 4.0]


def test_a_choice_changes_the_checkpoint_s_key_and_its_absence_does_not(plan: Any) -> None:
    def made(*more: str) -> str:
        steps = plan("model=emoji_flux", f"format={NAME}", "calib=emoji", "eval=emoji", *more).steps
        return next(s.fingerprint for s in steps if s.name == "quantize")

    keys = [made(), made("format.round_scales=true"), made("format.share_scales=true")]
    assert len({*keys}) == 3
    assert made("+format.round_scales=false") == keys[0]
