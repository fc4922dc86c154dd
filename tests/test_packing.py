"""Packed weights: what a graph's nodes make of the stored bits is what modelopt's quantizers compute."""

import copy
from typing import Any

import ml_dtypes
import modelopt.torch.quantization as mtq
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantized import FORMATS
from torch import nn

from diffopt.errors import GateError
from diffopt.graph.packing import pack
from diffopt.graph.packing.packed import Packed
from diffopt.graph.tensor import nibbles, tensor
from diffopt.quantization.block_codes import e2m1, exponents
from diffopt.quantization.block_fake_quant import simulated

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STEP = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}
"""Relative distance of neighbouring numbers."""
ROWS, COLUMNS = 48, 96


def layer(name: str, dtype: str, module: nn.Module | None = None, x: torch.Tensor | None = None) -> Any:
    """A quantized layer with uneven rows; one is zero but for two values."""
    torch.manual_seed(0)
    module = module or nn.Linear(COLUMNS, ROWS)
    x = torch.randn(7, COLUMNS) if x is None else x
    with torch.no_grad():
        module.weight *= torch.exp(torch.randn(module.weight.shape[0])).reshape(-1, *[1] * (module.weight.dim() - 1))
        module.weight[3] = 0
        module.weight[3].view(-1)[:2] = torch.tensor([0.25, -0.5])
    model = nn.Sequential(module).to(DTYPES[dtype])
    weight, inputs, algorithm = FORMATS[name]
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    rules += [{"quantizer_name": "*weight_quantizer", "cfg": copy.deepcopy(weight)}]
    rules += [{"quantizer_name": "*input_quantizer", "cfg": copy.deepcopy(inputs)}] if inputs else []
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": copy.deepcopy(algorithm)}, lambda m: m(x.to(DTYPES[dtype])))
    return model[0]


def fake(quantized: Any) -> np.ndarray:
    """The weight as the quantizer rounds it."""
    with torch.no_grad(), simulated():
        found: np.ndarray = quantized.weight_quantizer(quantized._parameters["weight"]).float().numpy()
    return found


def unpacked(packed: Packed) -> np.ndarray:
    """What the nodes compute, by ONNX's definition of them and an own decoding of the bits; in FP32."""
    values = {t.name: decoded(t.proto()) for t in packed.tensors}
    for node in packed.nodes:
        about = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[i] for i in node.input]
        values[node.output[0]] = computed(node.op_type, inputs, about)
    return values[packed.out]


def decoded(proto: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(proto)


def computed(operator: str, inputs: list[np.ndarray], about: dict[str, Any]) -> np.ndarray:
    x = inputs[0]
    if operator == "Transpose":
        return x.transpose(about["perm"])
    if operator == "Cast":
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(about["to"]))
    if operator == "QuantizeLinear":
        scaled = x.astype(np.float32) / inputs[1].astype(np.float32)
        return np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    axis = about.get("axis", 1)
    if operator == "TRT_MXFP8DequantizeLinear":
        scale = np.repeat(np.exp2(inputs[1].astype(np.float32) - 127), about["block_size"], axis)
        kind = onnx.helper.tensor_dtype_to_np_dtype(about["output_dtype"])
        return (x.astype(np.float32) * scale).astype(kind)
    assert operator == "DequantizeLinear"
    scale = inputs[1]
    if "block_size" in about:
        wide = np.repeat(scale, about["block_size"], axis)
    else:
        wide = scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)]) if scale.ndim == 1 else scale
    assert np.broadcast_shapes(wide.shape, x.shape) == x.shape
    return (x.astype(np.float32) * wide.astype(np.float32)).astype(scale.dtype)


EXACT = {"nvfp4", "nvfp4_svdquant", "mxfp8"}
"""Formats whose scales are stored as they are computed. The others' are rounded to the weight's precision."""


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_weight_is_what_its_quantizer_computes(name: str, dtype: str, transpose: bool) -> None:
    quantized = layer(name, dtype)
    ours = unpacked(pack("w", quantized._parameters["weight"], quantized.weight_quantizer, transpose))
    assert ours.dtype == onnx.helper.tensor_dtype_to_np_dtype(tensor("", torch.zeros(1, dtype=DTYPES[dtype])).kind)
    ours, theirs = (ours.T if transpose else ours).astype(np.float32), fake(quantized)
    if name in EXACT:
        assert np.allclose(ours, theirs, rtol=2**-22, atol=0)
    elif name == "w4a8_awq":  # a rounded INT4 value near the middle of two FP8 values may go either way
        assert np.mean(~np.isclose(ours, theirs, rtol=2 * STEP[dtype], atol=1e-7)) < (1e-3 if dtype == "float32" else 0.1)
        assert np.allclose(ours, theirs, rtol=2**-3, atol=1e-7)
    else:
        assert np.allclose(ours, theirs, rtol=2 * STEP[dtype], atol=1e-7)


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_weight_differs_from_the_weight(name: str) -> None:
    quantized = layer(name, "float32")
    assert np.abs(fake(quantized) - quantized._parameters["weight"].detach().numpy()).max() > 1e-4


BITS = {
    "int8": 8,
    "int8_sq": 8,
    "fp8": 8,
    "int4_awq": 4 + 16 / 32,
    "w4a8_awq": 4 + 16 / 32,
    "nvfp4": 4.5,
    "nvfp4_svdquant": 4.5,
    "mxfp8": 8.25,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_weight_takes_the_bits_of_its_format(name: str) -> None:
    quantized = layer(name, "float16")
    packed = pack("w", quantized._parameters["weight"], quantized.weight_quantizer, True)
    stored = sum(len(t.data) for t in packed.tensors if len(t.shape) == 2)
    assert stored * 8 == ROWS * COLUMNS * BITS[name]


@pytest.mark.parametrize("name", ["int8", "int8_sq", "fp8"])
def test_a_convolution_is_packed_as_its_quantizer_rounds_it(name: str) -> None:
    x = torch.randn(2, 16, 8, 8)
    quantized = layer("int8" if name == "int8_sq" else name, "float32", nn.Conv2d(16, 24, 3), x)
    packed = pack("w", quantized._parameters["weight"], quantized.weight_quantizer, False)
    assert np.allclose(unpacked(packed), fake(quantized), rtol=2**-22, atol=1e-7)


def test_a_convolution_in_blocks_is_refused() -> None:
    quantizer = layer("nvfp4", "float32").weight_quantizer
    with pytest.raises(GateError, match="convolutions"):
        pack("w", torch.ones(16, 16, 3, 3), quantizer, False)


def test_a_quantizer_that_no_graph_can_hold_is_refused() -> None:
    quantizer = layer("int8", "float32").weight_quantizer
    quantizer.num_bits = 5
    with pytest.raises(GateError, match="got int5"):
        pack("w", torch.ones(16, 16), quantizer, False)


def test_codes_of_e2m1_are_those_of_the_nearest_value() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    x = torch.cat([torch.linspace(-7, 7, 4001), torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])])
    theirs = x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    codes = e2m1(x)
    ours = values[(codes & 7).long()] * torch.where(codes >= 8, -1, 1)
    assert np.array_equal(ours.numpy(), theirs)


def test_a_blocks_exponent_is_the_smallest_with_which_it_fits() -> None:
    peaks = torch.exp(torch.randn(2000) * 10).clamp(1e-30, 1e30)
    powers = exponents(peaks).double()
    assert (peaks.double() / 2**powers <= 448).all()
    assert (peaks.double() / 2 ** (powers - 1) > 448).all()


def test_four_bit_values_lie_two_to_a_byte_the_first_one_low() -> None:
    assert nibbles("x", onnx.TensorProto.INT4, torch.tensor([[1, 2], [3, 15]])).data == bytes([0x21, 0xF3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.int8])
def test_a_tensor_is_stored_as_onnx_reads_it(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4).mul(3).to(dtype).T
    assert np.array_equal(numpy_helper.to_array(tensor("x", x).proto()).astype(np.float32), x.float().numpy())
