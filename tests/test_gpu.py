"""What only a GPU can show: modelopt's kernels, and the chain on CUDA."""

import numpy as np
import pytest
import torch
from test_calibrate_once import differing, formats, ordinary, replayed
from tiny import bench, call

from diffopt import checkpoint
from diffopt.block_arithmetic import mxfp8, nvfp4, simulated
from diffopt.pipeline.open import open_pipeline
from diffopt.runtimes import RUNTIMES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SHAPES = [(512, 512), (2, 64, 320), (7, 16), (33, 48)]


def by_kernel(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    import modelopt.torch.quantization.tensor_quant as tensor_quant

    return tensor_quant.dynamic_block_quantize_op(x.cuda(), 16, amax.cuda(), 4, 2, 8, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loud", [False, True])
def test_nvfp4_on_a_cpu_is_modelopts_kernel_up_to_ties(dtype: torch.dtype, loud: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    off = total = 0
    for shape in SHAPES:
        x = torch.randn(*shape, generator=draw)
        x = (x * torch.exp(torch.randn(shape[-1], generator=draw)) if loud else x).to(dtype)
        ours, theirs = nvfp4(x, x.abs().max()), by_kernel(x, x.abs().max()).cpu()
        apart = (ours.float() - theirs.float()).abs()
        off += int((apart > 1e-6 * theirs.float().abs()).sum())
        total += x.numel()
        # A tie that goes the other way is off by one step of E2M1: a third of the larger value, or the smallest.
        blocks = torch.nn.functional.pad(theirs.float(), (0, -shape[-1] % 16)).unflatten(-1, (-1, 16))
        step = (blocks.abs().amax(-1, keepdim=True) / 3).expand_as(blocks).flatten(-2)[..., : shape[-1]]
        assert (apart <= step * 1.01).all()
    print(f"NVFP4 {dtype} loud={loud}: {off} of {total} elements differ from the kernel's")
    assert off <= 1e-3 * total


def by_mx_kernel(x: torch.Tensor) -> torch.Tensor:
    import modelopt.torch.quantization.tensor_quant as tensor_quant

    return tensor_quant.dynamic_block_quantize_op(x.cuda(), 32, None, 8, 4, 9, 8).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loud", [False, True])
def test_mxfp8_on_a_cpu_is_modelopts_kernel_bit_for_bit(dtype: torch.dtype, loud: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in [(512, 512), (2, 64, 320), (33, 64)]:
        x = torch.randn(*shape, generator=draw)
        x = (x * torch.exp(torch.randn(shape[-1], generator=draw)) if loud else x).to(dtype)
        assert torch.equal(mxfp8(x), by_mx_kernel(x))


def test_an_odd_last_axis_is_blocked_as_by_the_kernel() -> None:
    x = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    ours, theirs = nvfp4(x, x.abs().max()), by_kernel(x, x.abs().max()).cpu()
    assert (~torch.isclose(ours, theirs, rtol=1e-6, atol=0)).float().mean() < 2e-3


def test_within_simulated_a_cuda_tensor_is_left_to_the_kernel() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    wanted = by_kernel(x, x.abs().max())
    with simulated():
        found = by_kernel(x, x.abs().max())
    assert found.is_cuda
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@formats
def test_replayed_extremes_are_the_ordinary_loop_on_cuda(name: str, alpha: float, mha: bool, dtype: str) -> None:
    b = bench(dtype, device="cuda")
    ours, theirs = replayed(b, 7, name, alpha, mha), ordinary(b, 7, name, alpha, mha)
    assert differing(ours, theirs) == []
    assert torch.equal(call(ours, b.inputs()), call(theirs, b.inputs()))


@formats
def test_a_checkpoint_made_on_cuda_is_restored_and_runs_there(name: str, alpha: float, mha: bool) -> None:
    b = bench("bfloat16", device="cuda")
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name, alpha=alpha, mha=mha, size=7))
    assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert torch.equal(call(model, b.inputs()), call(ordinary(b, 7, name, alpha, mha), b.inputs()))


def test_a_pipeline_on_cuda_draws_what_a_cpu_draws() -> None:
    drawn = []
    for device in ("cpu", "cuda"):
        b = bench(device=device)
        pipe = open_pipeline(b.context(), b.pipeline())
        assert pipe.transformer.device.type == device
        drawn.append(b.draw(pipe, ["red apple", "banana"], [1, 2], 2))
    assert np.isfinite(drawn[1]).all()
    assert np.abs(drawn[0] - drawn[1]).max() < 0.02  # FP32 both, but sums are in another order


@pytest.mark.parametrize(("name", "mha"), [("int8_sq", False), ("fp8", True), ("nvfp4", False)])
def test_the_torch_runtime_draws_on_cuda(name: str, mha: bool) -> None:
    b = bench("bfloat16", device="cuda")
    with RUNTIMES["torch"].running(b.context(), b.pipeline(), b.checkpoint(name, mha=mha), None) as run:
        drawn = b.draw(run.pipe, ["red apple"], [1], 2)
    assert np.isfinite(drawn).all()
    assert np.ptp(drawn) > 0.01
