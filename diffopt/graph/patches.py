"""What must be otherwise while a backbone is traced: one context manager for each reason, all undone afterwards."""

import contextlib
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import modelopt.torch.quantization.plugins.diffusion.diffusers as attention
import modelopt.torch.quantization.tensor_quant as tensor_quant
import torch
from diffusers.models.transformers import transformer_qwenimage, transformer_z_image
from torch.onnx import symbolic_helper, symbolic_opset13
from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

from diffopt.pipeline.unsorted import unsorted_texts

ONNX_TYPES = {"Float": 1, "Half": 10, "Double": 11, "BFloat16": 16}


@contextlib.contextmanager
def traceable(opset: int) -> Iterator[None]:
    """All of them."""
    with (
        rms_norm(opset),
        unflatten(opset),
        repeat_interleave(opset),
        real_rotations(),
        even_rows(),
        idle_squeezes(),
        idle_block_kernels(),
        shapes_alone(),
        given_scales(),
        unsorted_texts(),
    ):
        yield


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """The exporter infers shapes node by node, and serializes into each the weights that it reads: a 12B FLUX did not
    come to an end in eight minutes on an H100. Shapes of weights are known without their values."""
    names = ("_jit_pass_onnx_graph_shape_type_inference", "_jit_pass_onnx_node_shape_type_inference")
    own = {name: getattr(torch._C, name) for name in names}
    for name, infer in own.items():
        setattr(torch._C, name, lambda what, _values, opset, infer=infer: infer(what, {}, opset))
    try:
        yield
    finally:
        for name, infer in own.items():
            setattr(torch._C, name, infer)


@contextlib.contextmanager
def given_scales() -> Iterator[None]:
    """Attention that is given its scale, as AuraFlow's: modelopt's symbolic hands the number where a tensor is taken."""
    own: Any = attention.export_fp8_mha
    place = list(signature(own).parameters).index("scale")
    kinds = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}

    def export(g: Any, query: Any, *others: Any) -> Any:
        given = [g, query, *others]
        number = symbolic_helper._maybe_get_const(given[place], "f")
        if isinstance(number, float):
            given[place] = torch.tensor(number, dtype=kinds[query.type().scalarType()])
        return own(*given)

    attention.export_fp8_mha = export
    try:
        yield
    finally:
        attention.export_fp8_mha = own


@contextlib.contextmanager
def idle_block_kernels() -> Iterator[None]:
    """The exporter emits an operator for block quantization; what it computes meanwhile is thrown away."""
    kernel = tensor_quant.dynamic_block_quantize_op
    tensor_quant.dynamic_block_quantize_op = lambda inputs, *_: inputs.clone()
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = kernel


@contextlib.contextmanager
def idle_squeezes() -> Iterator[None]:
    """PixArt squeezes the axis of its tokens, which does nothing. Where the exporter does not know the axis' extent, as behind
    block quantization, it writes a Squeeze, which no runtime takes."""
    own = torch.Tensor.squeeze

    def squeeze(x: torch.Tensor, *dims: Any, **named: Any) -> torch.Tensor:
        axis = named.get("dim", dims[0] if dims else None)
        return x if isinstance(axis, int) and x.shape[axis] != 1 else own(x, *dims, **named)

    setattr(torch.Tensor, "squeeze", squeeze)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.Tensor, "squeeze", own)  # noqa: B010


@contextlib.contextmanager
def rms_norm(opset: int) -> Iterator[None]:
    """The legacy exporter has no symbolic for aten::rms_norm."""
    register_custom_op_symbolic("aten::rms_norm", _rms_norm_symbolic, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic("aten::rms_norm", opset)


def _rms_norm_symbolic(g: Any, x: Any, shape: Any, weight: Any = None, eps: Any = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight, the mean in FP32 whatever the model's precision."""

    def absent(value: Any) -> bool:
        return value is None or symbolic_helper._is_none(value)

    rank = len(symbolic_helper._get_const(shape, "is", "normalized_shape"))
    dtype = x.type().scalarType()
    wide = x if dtype == "Float" else g.op("Cast", x, to_i=ONNX_TYPES["Float"])
    axes = g.op("Constant", value_t=torch.tensor(range(-rank, 0)))
    mean = g.op("ReduceMean", g.op("Mul", wide, wide), axes, keepdims_i=1)
    epsilon = torch.finfo(torch.float32).eps if absent(eps) else symbolic_helper._get_const(eps, "f", "eps")
    shifted = g.op("Add", mean, g.op("Constant", value_t=torch.tensor(epsilon, dtype=torch.float32)))
    out = g.op("Div", wide, g.op("Sqrt", shifted))
    if dtype != "Float":
        out = g.op("Cast", out, to_i=ONNX_TYPES[dtype])
    if not absent(weight):
        out = g.op("Mul", out, weight)
    return out


@contextlib.contextmanager
def unflatten(opset: int) -> Iterator[None]:
    """The exporter's own symbolic computes the new shape in the graph, so that its shape inference loses a dynamic axis
    and writes down the one that was traced; attention would then only run with the traced batch."""
    register_custom_op_symbolic("aten::unflatten", _unflatten_symbolic, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic("aten::unflatten", opset)


def _unflatten_symbolic(g: Any, x: Any, dim: Any, sizes: Any) -> Any:
    """A Reshape that copies the axes before `dim` (0 in its shape); those after it must be static.

    One of the new sizes is always left to be found (-1): the exporter's shape inference fails on a 0 without a -1.
    """
    axis, new = symbolic_helper._get_const(dim, "i", "dim"), symbolic_helper._maybe_get_const(sizes, "is")
    if not isinstance(new, list):  # sizes that are computed of other shapes, as Wan's timesteps of patches
        return symbolic_opset13.unflatten(g, x, dim, sizes)
    old = x.type().varyingSizes()
    axis %= len(old)
    if None in old[axis + 1 :]:  # as of Sana's linear attention
        return symbolic_opset13.unflatten(g, x, dim, sizes)
    if -1 not in new:
        new = [-1, *new[1:]]
    shape = [*[0] * axis, *new, *old[axis + 1 :]]
    return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


@contextlib.contextmanager
def repeat_interleave(opset: int) -> Iterator[None]:
    """The exporter's own symbolic adds the rank to a negative axis in place, and the tensor that holds the -1 is shared by
    all of the graph: in LTX-Video every other -1 became a 2."""
    register_custom_op_symbolic("aten::repeat_interleave", _repeat_interleave_symbolic, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic("aten::repeat_interleave", opset)


def _repeat_interleave_symbolic(g: Any, x: Any, repeats: Any, dim: Any = None, output_size: Any = None) -> Any:
    if dim is not None and not symbolic_helper._is_none(dim):
        axis = symbolic_helper._get_const(dim, "i", "dim") % symbolic_helper._get_tensor_rank(x)
        dim = g.op("Constant", value_t=torch.tensor(axis))
    return symbolic_opset13.repeat_interleave(g, x, repeats, dim, output_size)


@contextlib.contextmanager
def real_rotations() -> Iterator[None]:
    """Qwen-Image and Z-Image rotate queries and keys as complex numbers, which ONNX has not. Others do so too whose rotations
    follow from a mask, and would be wrong as constants."""
    modules: list[Any] = [transformer_qwenimage, transformer_z_image]
    for module in modules:
        module.torch = Real()
    try:
        yield
    finally:
        for module in modules:
            module.torch = torch


class Real:
    """torch, with pairs of real numbers in the place of complex ones."""

    view_as_complex = staticmethod(lambda values: Pairs(values))
    view_as_real = staticmethod(lambda pairs: pairs.values)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def even_rows() -> Iterator[None]:
    """Z-Image pads its rows to the longest, for which the exporter has no operator. In a graph all are of one length."""
    module: Any = transformer_z_image
    own = module.pad_sequence

    def pad(rows: Sequence[torch.Tensor], **how: Any) -> torch.Tensor:
        lengths = {len(x) for x in rows}  # shapes are tensors while a model is traced
        return torch.stack([*rows]) if len(lengths) == 1 else own(rows, **how)

    module.pad_sequence = pad
    try:
        yield
    finally:
        module.pad_sequence = own


class Pairs:
    """Complex numbers as pairs of real ones [..., 2]."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __mul__(self, rotations: torch.Tensor) -> "Pairs":
        """By `rotations`, one for each token, the same in every row.

        Those are constants of the graph: nothing of how they were computed is traced.
        """
        rows = (
            rotations[:1]
            if rotations.dim() == self.values.dim() - 1 and bool((rotations == rotations[:1]).all())
            else rotations
        )
        numbers = rows.cpu().numpy()
        cos, sin = (torch.from_numpy(part.copy()).to(self.values.device) for part in (numbers.real, numbers.imag))
        real, imaginary = self.values.unbind(-1)
        return Pairs(torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1))
