"""What only a GPU can show: modelopt's kernels, and the chain on CUDA."""

import numpy as np
import pytest
import torch
from test_calibrate_once import differing, formats, ordinary, replayed
from tiny import bench, call, recipe

from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import block_search, checkpoint, hessian, static_blocks
from diffopt.quantization.awq_svdquant import calibrate
from diffopt.quantization.block_fake_quant import VALUES, e2m1, mxfp8, nvfp4, simulated
from diffopt.quantization.channel_peaks import Raised, bits, raise_to_peaks
from diffopt.quantization.observer import observed
from diffopt.quantization.recorded_calls import replay
from diffopt.runtimes import RUNTIMES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SHAPES = [(512, 512), (2, 64, 320), (7, 16), (33, 48)]


SHARE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}
"""Of the values, those that may round to the other neighbour: the kernel divides to within 2 units of the last place, so a
quotient that lies that near to the middle of two codes is not bound to one of them."""


def by_kernel(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    import modelopt.torch.quantization.tensor_quant as tensor_quant

    return tensor_quant.dynamic_block_quantize_op(x.cuda(), 16, amax.cuda(), 4, 2, 8, 4)


def drawn(dtype: torch.dtype, loud: bool, shape: tuple[int, ...]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=draw)
    return (x * torch.exp(torch.randn(shape[-1], generator=draw)) if loud else x).to(dtype)


def near_a_middle(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Which values of x, or their block's scale, lie within 4 units of the last place of the middle of two codes."""
    blocks = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % 16)).unflatten(-1, (-1, 16))
    tensor_scale = (amax.float() * torch.tensor(1 / 2688.0)).double()
    ratio = blocks.abs().amax(-1, keepdim=True) / (6 * tensor_scale)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    middles = (codes[1:] + codes[:-1]) / 2
    of_scale = ((ratio[..., None] / middles - 1).abs() < 4 * 2**-23).any(-1)
    scale = ratio.float().clamp(max=448).to(torch.float8_e4m3fn).double() * tensor_scale
    quotient = blocks.abs() / scale
    values = (VALUES[1:] + VALUES[:-1]).double() / 2
    of_value = ((quotient[..., None] / values - 1).abs() < 4 * 2**-23).any(-1)
    return (of_scale | of_value).flatten(-2)[..., : x.shape[-1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loud", [False, True])
def test_nvfp4_on_a_cpu_is_modelopts_kernel_but_for_quotients_at_a_middle(dtype: torch.dtype, loud: bool) -> None:
    off = last = total = 0
    for shape in SHAPES:
        x = drawn(dtype, loud, shape)
        amax = x.abs().max()
        ours, theirs = nvfp4(x, amax), by_kernel(x, amax).cpu()
        apart = (ours.float() - theirs.float()).abs()
        other_code = apart > 1e-6 * theirs.float().abs()
        assert not (other_code & ~near_a_middle(x, amax)).any()
        off, last, total = off + int(other_code.sum()), last + int((apart > 0).sum()), total + x.numel()
    print(f"nvfp4 {dtype}, loud {loud}: {off} other codes and {last - off} other last bits of {total}")
    assert last == off
    assert off <= SHARE[dtype] * total + 16  # a block whose scale is another counts sixteen times


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 1e4])
def test_nvfp4_of_small_and_large_tensors_is_the_kernels(scale: float) -> None:
    x = drawn(torch.float32, True, (64, 64)) * scale
    amax = x.abs().max()
    ours, theirs = nvfp4(x, amax), by_kernel(x, amax).cpu()
    assert not ((ours != theirs) & ~near_a_middle(x, amax)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loud", [False, True])
def test_mxfp8_on_a_cpu_is_modelopts_kernel_to_the_bit(dtype: torch.dtype, loud: bool) -> None:
    import modelopt.torch.quantization.tensor_quant as tensor_quant

    for shape in SHAPES:
        x = drawn(dtype, loud, shape)
        x.view(-1)[:3] = torch.tensor([448.0, 7 * 2.0**-3, 0.0]).to(dtype)  # maxima at a power of two times 448
        theirs = tensor_quant.dynamic_block_quantize_op(x.cuda(), 32, None, 8, 4, 9, 8).cpu()
        assert torch.equal(mxfp8(x), theirs)


@pytest.mark.parametrize("shape", [(64, 40), (3, 5, 17)])
def test_an_odd_last_axis_is_blocked_as_by_the_kernel(shape: tuple[int, ...]) -> None:
    x = drawn(torch.float32, False, shape)
    amax = x.abs().max()
    assert not ((nvfp4(x, amax) != by_kernel(x, amax).cpu()) & ~near_a_middle(x, amax)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extremes_on_cuda_are_exact_and_nan_where_there_is_one(dtype: torch.dtype) -> None:
    b = bench(str(dtype).removeprefix("torch."), device="cuda")
    inputs, found = b.inputs(2), {}
    for name, model in (("cuda", b.backbone()), ("cpu", b.backbone())):
        seen: dict[str, torch.Tensor] = {}
        for layer, module in model.named_modules():
            if name == "cpu" and isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer, seen=seen: seen.__setitem__(layer, args[0].abs().flatten(0, -2).amax(0))
                )
        with torch.no_grad():
            if name == "cpu":
                model(**inputs)
                found[name] = {f"{n}.input_quantizer": x for n, x in seen.items()}
            else:
                with observed(model) as found[name]:
                    model(**inputs)
                    model(**inputs)
    assert all(torch.equal(found["cuda"][n], x) for n, x in found["cpu"].items())
    layer = torch.nn.Linear(32, 8).to("cuda", dtype)
    with observed(layer) as extremes, torch.no_grad():
        layer(torch.ones(4, 32, device="cuda", dtype=dtype))
        layer(torch.full((4, 32), torch.nan, device="cuda", dtype=dtype))
        layer(torch.ones(4, 32, device="cuda", dtype=dtype))
    assert extremes[".input_quantizer"].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_peaks_of_many_tensors_are_exact_in_one_launch(dtype: torch.dtype) -> None:
    shapes = [(4, 4096, 640), (2, 77, 2048), (3, 7, 40), (1, 8), (5, 136), (2, 1280), (600, 5120)]
    tensors, found = [], []
    for seed, shape in enumerate(shapes):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype) * 30
        if x.numel() > 1000:
            x.view(-1)[777], x.view(-1)[5], x.view(-1)[900] = torch.nan, -torch.inf, -1e-7
        tensors.append(Raised(x, 0, shape[-1]))
        found.append(bits(shape[-1], x.device))
    for _ in range(2):
        raise_to_peaks(found, tensors)
    for peaks, t in zip(found, tensors, strict=True):
        wanted = t.x.abs().flatten(0, -2).amax(0)
        assert torch.equal(peaks.view(torch.float32).to(dtype).nan_to_num(-1), wanted.nan_to_num(-1))


@pytest.mark.parametrize("sought", [False, True], ids=["mse", "local_hessian"])
def test_modelopts_kernels_choose_the_scales_that_a_cpu_does(sought: bool) -> None:
    weight, x = drawn(torch.float32, True, (96, 256)) / 10, drawn(torch.float32, True, (300, 256))
    means = hessian.products(x) / len(x) if sought else None
    ours = block_search.nvfp4(weight, weight.abs().max(), means)
    theirs = block_search.nvfp4(weight.cuda(), weight.abs().max().cuda(), None if means is None else means.cuda()).cpu()
    assert (ours.float() != theirs.float()).float().mean() < 2e-3  # two scales may be as good as each other


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 4096, 640), (4, 77, 2048), (2, 4608, 3072), (999, 32)])
def test_products_on_cuda_are_those_of_exact_arithmetic_and_the_same_again(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    found = hessian.products(x)
    blocks = x.double().reshape(-1, shape[-1] // 16, 16)
    wanted = torch.einsum("rbi,rbj->bij", blocks, blocks)
    assert found.dtype == torch.float32
    assert (found.double() - wanted).norm() < 1e-5 * wanted.norm()
    assert torch.equal(hessian.products(x), found)


def test_values_of_learned_scales_are_cast_on_a_cpu_as_by_modelopts_kernel() -> None:
    import modelopt.torch.kernels.quantization.gemm.fp4_kernel as kernels

    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0])
    x = torch.cat([ties, -ties, torch.randn(4076, generator=torch.Generator().manual_seed(0)) * 3]).reshape(-1, 16)
    assert torch.equal(kernels.static_blockwise_fp4_cast(x.cuda()).cpu(), e2m1(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_blocks_on_a_cpu_are_modelopts_kernel_to_the_bit(dtype: torch.dtype) -> None:
    import modelopt.torch.kernels.quantization.gemm as kernels

    weight = drawn(dtype, True, (96, 256))
    amax, peak = weight.float().reshape(-1, 16).abs().amax(-1, keepdim=True) * 0.9, weight.float().abs().max()
    theirs = kernels.static_blockwise_fp4_fake_quant(weight.reshape(-1, 16).cuda(), amax.cuda(), peak.cuda())
    ours = static_blocks.fake_quant(weight.reshape(-1, 16), amax, peak)
    assert (ours != theirs.cpu()).float().mean() <= SHARE[dtype]


def test_attention_operands_on_cuda_are_exact_and_nan_where_there_is_one() -> None:
    q = torch.randn(2, 3, 40, 16, device="cuda", dtype=torch.bfloat16)
    strided = q.transpose(1, 2)
    peaks = torch._foreach_norm([q, strided, torch.full_like(q, torch.nan)], torch.inf)
    assert [float(x) for x in peaks[:2]] == [float(q.abs().max())] * 2
    assert peaks[2].isnan()


@pytest.mark.parametrize("name", ["int4_awq", "w4a8_awq", "nvfp4_svdquant"])
def test_a_search_on_cuda_is_restored_to_the_bit(name: str) -> None:
    b = bench("bfloat16", device="cuda")
    model, (rules, algorithm) = b.backbone(), recipe(name)
    calibrate(model, rules, algorithm, replay([r.path for r in b.recordings(4)]))
    restored = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    assert differing(restored, model) == []
    assert torch.equal(call(restored, b.inputs()), call(model, b.inputs()))


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
    with RUNTIMES["torch"].running(b.context(), b.pipeline(), b.checkpoint(name, mha=mha), None, texts=True) as run:
        drawn = b.draw(run.pipe, ["red apple"], [1], 2)
    assert np.isfinite(drawn).all()
    assert np.ptp(drawn) > 0.01
