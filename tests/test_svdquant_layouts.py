"""SVDQuant for vLLM-Omni and for Nunchaku's kernels: each number of the file is that of the layer that was scored."""

import copy
import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nunchaku_lanes import unpacked
from safetensors.torch import load_file
from targets import backbones, in_rows, made, of, settings, written
from test_preflight import FINE, chosen, refused
from tiny import bench

from diffopt.artifact import DeployedCheckpoint
from diffopt.errors import GateError, PlanError
from diffopt.files.deploy import DeployFile
from diffopt.layouts import nunchaku, svdquant
from diffopt.stages.deploy import LayoutView, deploy

__all__ = ["chosen"]
NAME, SETTLED = "nvfp4_svdquant", {"share": True, "round": True}


def tensors(found: DeployedCheckpoint) -> dict[str, torch.Tensor]:
    return load_file(found.path / "transformer" / "diffusion_pytorch_model.safetensors")


def test_vllm_omnis_file_is_what_was_scored_bit_for_bit() -> None:
    b = bench("bfloat16")
    in_rows(b, NAME, SETTLED)
    found = written(b, "svdquant", NAME, **SETTLED)
    shapes = {
        "qweight": lambda n, k: ((n, k // 2), torch.int8), "wscales": lambda n, k: ((k // 16, n), torch.float8_e4m3fn),
        "proj_down": lambda n, k: ((k, 8), torch.bfloat16), "proj_up": lambda n, k: ((n, 8), torch.bfloat16),
        "smooth_factor": lambda n, k: ((k,), torch.bfloat16), "wcscales": lambda n, k: ((n,), torch.bfloat16),
        "wtscale": lambda n, k: ((1,), torch.bfloat16), "bias": lambda n, k: ((n,), torch.bfloat16),
    }  # fmt: skip
    for name in DeployFile.read(found.path).layers:
        own, lengths = of(name, tensors(found)), b.backbone().get_submodule(name).weight.shape
        assert {n: (tuple(x.shape), x.dtype) for n, x in own.items()} == {n: shape(*lengths) for n, shape in shapes.items()}


def test_vllm_omnis_config_names_no_part_of_a_quantized_layers_name() -> None:
    found = written(bench("bfloat16"), "svdquant", NAME, **SETTLED)
    config = json.loads((found.path / "transformer/config.json").read_text())["quantization_config"]
    assert {n: config[n] for n in ("quant_method", "precision", "rank")} == {
        "quant_method": "svdquant", "precision": "nvfp4", "rank": 8,
    }  # fmt: skip
    named, layers = config["modules_to_not_convert"], DeployFile.read(found.path).layers
    assert "x_embedder" in named
    assert "proj_out" not in named  # of single_transformer_blocks.0.proj_out
    assert not [(part, n) for part in named for n in layers if part in n]


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
    b = made("flux", wide=True)
    found = written(b, "nunchaku", NAME, **settings(b, NAME))
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
    b = bench("bfloat16")
    _, _, scored = backbones(b, NAME, SETTLED)[0]
    layer = copy.deepcopy(scored.get_submodule("transformer_blocks.0.ff.net.2"))
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
