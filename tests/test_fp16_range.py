"""Weights and scales beyond FP16's 65504 are named with their value, before calibration where the weights tell it."""

import shutil
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_preflight import FINE, chosen, refused
from tiny import Bench, bench, called, folder, saved

from diffopt.errors import GateError
from diffopt.jobs import preflight
from diffopt.quantization.narrow import narrow

__all__ = ["chosen"]
LAYER = "transformer_blocks.0.ff.net.0.proj"
HALF = (*FINE, "format=fp8", "export=onnx", "eval=null", "export.high_precision_dtype=float16")


@cache
def loud(most: float, name: str = f"{LAYER}.weight") -> Bench:
    """The tiny FLUX, one of whose weights goes up to `most`."""
    where = folder() / "model"
    shutil.copytree(saved("flux", num_layers=1, num_single_layers=1), where)
    path = where / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors[name] *= most / tensors[name].abs().max()
    save_file(tensors, path, {"format": "pt"})
    return Bench(folder(), str(where), call=called(32, 16, long_prompts="cut"))


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_an_input_whose_extreme_fp16_cannot_hold_is_named_with_its_value(format: str) -> None:
    with pytest.raises(GateError) as e:
        loud(6e4).graph(format, dtype="float16")
    said = str(e.value)
    assert said.startswith("export: transformer_blocks.0.ff.net.2.input_quantizer has an amax of ")
    assert float(said.partition("an amax of ")[2].partition(",")[0]) > 65504
    assert said.endswith(
        "which float16 cannot hold (got float16, up to 65504); set export.high_precision_dtype=bfloat16 or float32"
    )


def test_smoothing_can_bring_it_within_the_range() -> None:
    assert (loud(6e4).graph("int8_sq", dtype="float16").path / "model.onnx").is_file()


def test_the_same_is_exported_in_float32() -> None:
    assert (loud(6e4).graph("fp8").path / "model.onnx").is_file()


def test_a_weight_that_fp16_cannot_hold_is_told_before_anything_is_calibrated(chosen: Any) -> None:
    said = refused(loud(1e5), chosen(*HALF))
    what = f"{LAYER}.weight_quantizer has an amax of 100000, which float16 cannot hold (got float16, up to 65504)"
    assert said == f"export.high_precision_dtype: {what}; set export.high_precision_dtype=bfloat16 or float32"


def test_a_weight_of_a_layer_that_is_not_quantized_is_told_as_such(chosen: Any) -> None:
    said = refused(loud(1e5, "x_embedder.weight"), chosen(*HALF))
    assert said.startswith("export.high_precision_dtype: x_embedder.weight has values up to 100000, which float16 cannot hold")
    assert f"{LAYER}.weight has values up to" in refused(loud(1e5), chosen(*HALF, f"format.exclude=[{LAYER}]"))


def test_a_model_that_is_opened_in_fp16_is_told_of_its_weights(chosen: Any) -> None:
    b = loud(1e5)
    halved = Bench(folder(), b.source, dtype="float16", call=b.call)
    assert refused(halved, chosen(*FINE, "format=fp8", "eval=null", "model.dtype=float16")).startswith(
        f"model.dtype: {LAYER}.weight_quantizer has an amax of 100000, which float16 cannot hold"
    )


def test_weights_that_fit_and_wider_dtypes_pass(chosen: Any) -> None:
    preflight.check(bench().context(), chosen(*HALF), bench().pipeline())
    wide = HALF[:-1]
    preflight.check(loud(1e5).context(), chosen(*wide), loud(1e5).pipeline())
    preflight.check(loud(1e5).context(), chosen(*wide, "export.high_precision_dtype=bfloat16"), loud(1e5).pipeline())


class Quantizer(torch.nn.Module):
    def __init__(self, amax: float):
        super().__init__()
        self.register_buffer("_amax", torch.tensor(amax))


def layer(amax: float) -> torch.nn.Module:
    found = torch.nn.Linear(4, 4)
    found.input_quantizer = Quantizer(amax)
    return found


def test_a_scale_that_fp16_rounds_to_zero_is_named() -> None:
    with pytest.raises(GateError, match=r"export: input_quantizer has an amax of 1e-06, whose scale float16 rounds to zero"):
        narrow(layer(1e-6), torch.float16)
    narrow(layer(1e-6), torch.bfloat16)
    narrow(layer(1.0), torch.float16)


def test_nothing_is_converted_where_something_is_refused() -> None:
    found = layer(1e6)
    amax = r"input_quantizer has an amax of 1e\+06, which float16 cannot hold .*; set "
    with pytest.raises(GateError, match=f"{amax}export.high_precision_dtype=bfloat16"):
        narrow(found, torch.float16)
    with pytest.raises(GateError, match=f"{amax}format.inputs=max$"):
        narrow(found, torch.float16, "headroom")
    assert found.weight.dtype == torch.float32
