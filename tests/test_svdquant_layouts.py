"""SVDQuant for vLLM-Omni and for Nunchaku's kernels: each number of the file is that of the layer that was scored."""

import importlib
import json
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_preflight import FINE, chosen, refused
from tiny import ONE, Bench, bench, called, folder, saved

from diffopt.artifact import DeployedCheckpoint
from diffopt.errors import GateError, PlanError
from diffopt.files.deploy import DeployFile
from diffopt.layouts import nunchaku, svdquant
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.stages.deploy import LayoutView, deploy

__all__ = ["chosen"]
NAME, SETTLED = "nvfp4_svdquant", {"share": True, "round": True}


@cache
def wide() -> Bench:
    """A FLUX whose layers have lengths that the kernels take: 128, 512 and 768."""
    source = saved("flux", num_attention_heads=4, **ONE)
    return Bench(folder(), str(source), "bfloat16", called(32, 16, long_prompts="cut"))


def written(b: Bench, kind: Any, **how: Any) -> DeployedCheckpoint:
    def make(ctx: Any) -> DeployedCheckpoint:
        deploy.run(ctx, LayoutView(kind=kind, max_shard_size="10GB"), b.pipeline(), b.checkpoint(NAME, **how))
        return DeployedCheckpoint(ctx.out, "deploy")

    return b._once((kind, NAME, *how.items()), make)


def tensors(found: DeployedCheckpoint) -> dict[str, torch.Tensor]:
    return load_file(found.path / "transformer" / "diffusion_pytorch_model.safetensors")


def of(layer: str, among: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(f"{layer}."): x for n, x in among.items() if n.rpartition(".")[0] == layer}


def scored(b: Bench, **how: Any) -> Any:
    return checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(NAME, **how))


def same_as_scored(layer: Any, found: dict[str, torch.Tensor]) -> None:
    """What a reader makes of a layer, bit for bit: x / smooth_factor, the weight, the low-rank part, the bias."""
    quantizer, smoothing = layer.weight_quantizer, layer.input_quantizer.pre_quant_scale.flatten()
    x = torch.randn(7, layer.in_features).bfloat16()
    with simulated(), torch.no_grad():
        weight = quantizer(layer.weight)
    assert svdquant.numbers(found).bfloat16().equal(weight)
    assert (x / found["smooth_factor"]).equal(x * smoothing)
    assert found["proj_down"].equal((quantizer.svdquant_lora_a.float() * smoothing.float()).T.bfloat16())
    assert (found["proj_down"].float() / smoothing.float()[:, None]).equal(quantizer.svdquant_lora_a.float().T)
    assert found["proj_up"].equal(quantizer.svdquant_lora_b)
    assert found["bias"].equal(layer.bias)


def test_vllm_omnis_file_is_what_was_scored_bit_for_bit() -> None:
    b = bench("bfloat16")
    found, model = written(b, "svdquant", **SETTLED), scored(b, **SETTLED)
    read, head, plain = tensors(found), DeployFile.read(found.path), b.backbone().state_dict()
    shapes = {
        "qweight": lambda n, k: ((n, k // 2), torch.int8), "wscales": lambda n, k: ((k // 16, n), torch.float8_e4m3fn),
        "proj_down": lambda n, k: ((k, 8), torch.bfloat16), "proj_up": lambda n, k: ((n, 8), torch.bfloat16),
        "smooth_factor": lambda n, k: ((k,), torch.bfloat16), "wcscales": lambda n, k: ((n,), torch.bfloat16),
        "wtscale": lambda n, k: ((1,), torch.bfloat16), "bias": lambda n, k: ((n,), torch.bfloat16),
    }  # fmt: skip
    for name in head.layers:
        layer, own = model.get_submodule(name), of(name, read)
        assert {n: (tuple(x.shape), x.dtype) for n, x in own.items()} == {
            n: shape(*layer.weight.shape) for n, shape in shapes.items()
        }
        same_as_scored(layer, own)
    rest = {n: x for n, x in read.items() if n.rpartition(".")[0] not in head.layers}
    assert rest
    assert all(x.equal(plain[n]) for n, x in rest.items())


def test_vllm_omnis_config_names_no_part_of_a_quantized_layers_name() -> None:
    found = written(bench("bfloat16"), "svdquant", **SETTLED)
    config = json.loads((found.path / "transformer/config.json").read_text())["quantization_config"]
    assert {n: config[n] for n in ("quant_method", "precision", "rank")} == {
        "quant_method": "svdquant", "precision": "nvfp4", "rank": 8,
    }  # fmt: skip
    named, layers = config["modules_to_not_convert"], DeployFile.read(found.path).layers
    assert "x_embedder" in named
    assert "proj_out" not in named  # of single_transformer_blocks.0.proj_out
    assert not [(part, n) for part in named for n in layers if part in n]


# Where a code, a scale and a low-rank factor lie, from the fragments of PTX's mma.m16n8k64 (for 4 bits) and m16n8k16.


def code_at(packed: torch.Tensor, n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 8) + (k % 32) / 8 has eight codes a register; four registers: two along K, for two halves of 16 outputs."""
    tiles = packed.shape[1] * 2 // 64
    tile, pack, half = (n // 128) * tiles + k // 64, n % 128 // 16, n % 16 // 8
    lane = 4 * (n % 8) + k % 32 // 8
    word = ((tile * 8 + pack) * 32 + lane) * 4 + 2 * half + k % 64 // 32
    byte = packed.view(torch.uint8).flatten()[4 * word + k % 8 // 2]
    return torch.where(k % 2 == 1, byte >> 4, byte & 15)


def block_scale_at(packed: torch.Tensor, n: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 8) + (n % 32) / 8 has four outputs, 32 apart, of four groups each."""
    tile = (n // 128) * (len(packed) // 4) + group // 4
    lane = 4 * (n % 8) + n % 32 // 8
    return packed.view(torch.uint8).flatten()[((tile * 32 + lane) * 4 + n % 128 // 32) * 4 + group % 4].view(packed.dtype)


def vector_at(packed: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Lane 4 (n % 128 / 16) + n % 8 / 2 has outputs n, n + 1, n + 8, n + 9."""
    lane = 4 * (n % 128 // 16) + n % 8 // 2
    return packed[n // 128 * 128 + lane * 4 + 2 * (n % 16 // 8) + n % 2]


def low_rank_at(packed: torch.Tensor, tile: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Of a tile of 16 x 16, lane 4 (row % 8) + (column % 8) / 2 has two columns, of two halves of rows by two of columns."""
    lane = 4 * (row % 8) + column % 8 // 2
    return packed.flatten()[tile * 256 + lane * 8 + 4 * (row // 8) + 2 * (column // 8) + column % 2]


def unpacked(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows again, by the places above."""
    (out, half), (depth, rank) = found["qweight"].shape, found["proj_down"].shape
    n, k, r = torch.arange(out)[:, None], torch.arange(depth)[:, None], torch.arange(rank)
    pairs = torch.arange(half)
    codes = code_at(found["qweight"], n, 2 * pairs) | code_at(found["qweight"], n, 2 * pairs + 1) << 4
    tiles = rank // 16
    return {
        "qweight": codes.view(torch.int8),
        "wscales": block_scale_at(found["wscales"], n.T, torch.arange(depth // 16)[:, None]),
        "proj_up": low_rank_at(found["proj_up"], n // 16 * tiles + r // 16, n % 16, r % 16),
        "proj_down": low_rank_at(found["proj_down"], k // 16 * tiles + r // 16, r % 16, k % 16),
        "wtscale": found["wtscale"],
        **{name: vector_at(found[name], torch.arange(len(found[name]))) for name in ("bias", "wcscales", "smooth_factor")},
    }


def test_packed_factors_lie_where_the_kernels_lanes_look_for_them() -> None:
    torch.manual_seed(0)
    n, k, rank = 256, 384, 32
    rows = {
        "qweight": torch.randint(-128, 128, (n, k // 2), dtype=torch.int8),
        "wscales": torch.rand(k // 16, n).to(torch.float8_e4m3fn),
        "proj_down": torch.randn(k, rank).bfloat16(), "proj_up": torch.randn(n, rank).bfloat16(),
        "smooth_factor": torch.randn(k).bfloat16(), "wcscales": torch.randn(n).bfloat16(), "bias": torch.randn(n).bfloat16(),
        "wtscale": torch.ones(1).bfloat16(),
    }  # fmt: skip
    found = nunchaku.packed(rows)
    assert {x: (y.shape, y.dtype) for x, y in found.items()} == {x: (y.shape, y.dtype) for x, y in rows.items()}
    again = unpacked(found)
    assert {*again} == {*rows}
    assert all(again[name].float().equal(x.float()) for name, x in rows.items())
    assert not any(found[name].float().equal(x.float()) for name, x in rows.items() if name != "wtscale")


HOW = {"round": True, "rank": 16}


@pytest.mark.matrix  # the packing has a test of its own
def test_nunchakus_file_is_what_was_scored_bit_for_bit() -> None:
    b = wide()
    read, model = tensors(written(b, "nunchaku", **HOW)), scored(b, **HOW)
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_v"):
        same_as_scored(model.get_submodule(name), unpacked(of(name, read)))


@pytest.mark.matrix
def test_diffusers_takes_nunchakus_file_into_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader is that of the library; the package that would fetch the kernels is stood in for."""
    from diffusers import FluxTransformer2DModel
    from diffusers.quantizers.quantization_config import NunchakuLiteQuantizationConfig

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_kernel=lambda *_, **__: SimpleNamespace(ops=None)))
    monkeypatch.setattr("diffusers.utils.is_kernels_available", lambda: True)
    monkeypatch.setattr("diffusers.utils.is_kernels_version", lambda *_: False)
    monkeypatch.setattr("diffusers.utils.constants.DIFFUSERS_TRUST_REMOTE_KERNELS", True)
    reader = importlib.import_module("diffusers.quantizers.nunchaku.utils")
    found = written(wide(), "nunchaku", **HOW)
    config = json.loads((found.path / "transformer/config.json").read_text())
    described = NunchakuLiteQuantizationConfig(**config.pop("quantization_config"))
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config).to(torch.bfloat16)
    count = reader.replace_with_nunchaku_linear(model, described.to_dict(), described.compute_dtype)
    assert count == len(DeployFile.read(found.path).layers)
    read = tensors(found)
    reader.check_strict_state_dict_match(model, read)
    expected = {n: (x.shape, x.dtype) for n, x in model.state_dict().items()}
    assert {n: (x.shape, x.dtype) for n, x in read.items()} == expected


@pytest.mark.parametrize(
    ("kind", "name", "how", "line"),
    [
        ("svdquant", "nvfp4", {}, r"\S+: it is in nvfp4, and the layout has SVDQuant alone; leave it out by format\.exclude"),
        ("nunchaku", NAME, SETTLED, r"\S+: its 384 outputs and 64 inputs are not multiples of 128 and 128; leave it out"),
    ],
)
def test_what_cannot_be_written_is_refused_by_layer_and_reason(kind: Any, name: str, how: dict[str, Any], line: str) -> None:
    b = bench("bfloat16")
    ctx = b.context()
    with pytest.raises(GateError, match=f"export: .*{line}"):
        deploy.run(ctx, LayoutView(kind=kind, max_shard_size="10GB"), b.pipeline(), b.checkpoint(name, **how))
    assert not list(ctx.out.iterdir())


def test_a_number_that_bfloat16_does_not_hold_is_refused() -> None:
    layer = scored(bench("bfloat16"), **SETTLED).get_submodule("transformer_blocks.0.ff.net.2")
    layer.input_quantizer.pre_quant_scale = layer.input_quantizer.pre_quant_scale * 1.1
    with pytest.raises(ValueError, match=r"its smooth_factor has numbers that BF16 does not hold; set format"):
        svdquant.rows(layer, NAME)


TAKEN = "model=emoji_flux calib=emoji model.dtype=bfloat16 format=nvfp4_svdquant +format.round_scales=true"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("model=emoji_flux calib=emoji format=nvfp4 export=svdquant", r"export: vLLM-Omni's layout has SVDQuant alone"),
        ("model=emoji_flux calib=emoji format=nvfp4_svdquant export=nunchaku", r"model\.dtype: Nunchaku computes .* in BF16"),
        ("model=flux_dev calib=images format=nvfp4_svdquant export=nunchaku", r"format\.round_scales: .*\(got false\); set"),
        (f"{TAKEN} export=svdquant", r"format\.share_scales: q, k and v are one layer for vLLM-Omni"),
        (f"{TAKEN} export=nunchaku format.rank=24", r"format\.rank: Nunchaku takes multiples of 16 \(got 24\)"),
    ],
)
def test_what_they_do_not_read_is_told_by_the_plan(plan: Any, given: str, line: str) -> None:
    with pytest.raises(PlanError, match=line):
        plan(*given.split())


def test_what_they_read_is_planned(plan: Any) -> None:
    for more in ("export=svdquant +format.share_scales=true", "export=nunchaku"):
        assert "deploy" in [s.name for s in plan(*TAKEN.split(), *more.split()).steps]


def test_lengths_that_the_kernels_do_not_take_are_told_before_anything_is_calibrated(chosen: Any) -> None:
    b = bench("bfloat16")
    given = (
        *FINE,
        "format=nvfp4_svdquant",
        "+format.round_scales=true",
        "model.dtype=bfloat16",
        "export=nunchaku",
        "eval=null",
    )
    assert "are not multiples of 128 and 128 (got nunchaku; 20 such layers)" in refused(b, chosen(*given))
