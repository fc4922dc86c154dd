"""What is otherwise while a backbone is traced: it computes the same, and is undone afterwards."""

from pathlib import Path
from typing import Any

import modelopt.torch.quantization.tensor_quant as tensor_quant
import onnx
import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage
from test_backbone_graphs import apart, computed

from diffopt.graph import patches
from diffopt.graph.trace import trace
from diffopt.graph.write import write


class Calls(torch.nn.Module):
    """A function as a backbone."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (self.function(x),)


def rotations(tokens: int, size: int) -> torch.Tensor:
    angles = torch.randn(tokens, size // 2, generator=torch.Generator().manual_seed(0)) * 3
    return torch.polar(torch.ones_like(angles), angles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_real_rotations_equal_the_complex_ones(dtype: torch.dtype) -> None:
    x, by = torch.randn(2, 9, 3, 16).to(dtype), rotations(9, 16)
    theirs = transformer_qwenimage.apply_rotary_emb_qwen(x, by, use_real=False)
    with patches.real_rotations():
        ours = transformer_qwenimage.apply_rotary_emb_qwen(x, by, use_real=False)
    assert ours.dtype == theirs.dtype
    assert torch.allclose(ours.float(), theirs.float(), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_rotations_in_a_graph_are_constants(tmp_path: Path) -> None:
    x, by = torch.randn(2, 9, 3, 16), rotations(9, 16)
    model = Calls(lambda x: transformer_qwenimage.apply_rotary_emb_qwen(x, by, use_real=False))
    write(model, {"x": x}, tmp_path / "model.onnx", 20)
    assert apart(computed(tmp_path / "model.onnx", {"x": x}), model(x, False)[0].numpy()) < 1e-6
    assert not {"Sin", "Cos"} & {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node}


def test_a_repeat_leaves_other_negative_axes_alone(tmp_path: Path) -> None:
    # The axis -1 of three axes is 2; of the two that come after, it must stay the last.
    def repeated(x: torch.Tensor) -> torch.Tensor:
        wide = x.repeat_interleave(2, dim=-1)
        flat = wide.sum(1)
        return torch.cat([flat, -flat], dim=-1)

    x = torch.randn(2, 3, 4)
    write(Calls(repeated), {"x": x}, tmp_path / "model.onnx", 20)
    assert apart(computed(tmp_path / "model.onnx", {"x": x}), repeated(x).numpy()) < 1e-6


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_dynamic_axis_outlives_an_unflatten(rows: int, tmp_path: Path) -> None:
    def split(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (4, -1))
        return heads.reshape(heads.shape[0], -1) * 2

    write(Calls(split), {"x": torch.randn(3, 5, 8)}, tmp_path / "model.onnx", 20, {"x": 0})
    x = torch.randn(rows, 5, 8)
    assert (computed(tmp_path / "model.onnx", {"x": x}) == split(x).numpy()).all()


def test_an_inner_axis_is_unflattened_too(tmp_path: Path) -> None:
    x = torch.randn(2, 6, 5)
    write(Calls(lambda x: x.unflatten(1, (3, 2)).transpose(1, 2)), {"x": x}, tmp_path / "model.onnx", 20, {"x": 0})
    assert (computed(tmp_path / "model.onnx", {"x": x}) == x.unflatten(1, (3, 2)).transpose(1, 2).numpy()).all()


def test_a_squeeze_of_an_axis_that_is_longer_than_one_leaves_no_trace() -> None:
    x = torch.randn(2, 3, 1, 4)
    with patches.idle_squeezes():
        assert torch.Tensor.squeeze(x, 1) is x
        assert x.squeeze(dim=-2).shape == (2, 3, 4)
        assert x.squeeze(2).shape == x.squeeze().shape == (2, 3, 4)


def patched() -> tuple[Any, ...]:
    return transformer_qwenimage.apply_rotary_emb_qwen, tensor_quant.dynamic_block_quantize_op, torch.Tensor.squeeze


def test_everything_is_as_before_after_a_trace(tmp_path: Path) -> None:
    before = patched()
    trace(Calls(lambda x: x + 1), {"x": torch.ones(2, 2)}, tmp_path / "model.onnx", 20)
    assert before == patched()


def test_everything_is_as_before_after_a_trace_that_failed(tmp_path: Path) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("as it should")

    before = patched()
    with pytest.raises(RuntimeError, match="as it should"):
        trace(Calls(fail), {"x": torch.ones(2, 2)}, tmp_path / "model.onnx", 20)
    assert before == patched()


@pytest.mark.parametrize("training", [False, True])
def test_a_trace_leaves_the_mode_of_the_backbone(training: bool, tmp_path: Path) -> None:
    model = Calls(lambda x: x + 1).train(training)
    trace(model, {"x": torch.ones(2, 2)}, tmp_path / "model.onnx", 20)
    assert model.training == training
