"""Fusions of UNets and of Wan: one product for q, k and v, one row of modulations, and the numbers of the layers apart."""

import copy
from typing import Any

import pytest
import torch
from tiny import bench

from diffopt.kernels.convert import convert
from diffopt.kernels.fp8 import JoinedFp8Linear
from diffopt.kernels.fuse import fuse
from diffopt.kernels.int8 import JoinedInt8Linear
from diffopt.kernels.kernel import Kernel
from diffopt.quantization import checkpoint

CASES = [("sdxl", "fp8", JoinedFp8Linear), ("sdxl", "int8", JoinedInt8Linear), ("wan", "fp8", JoinedFp8Linear)]


def converted(family: str, name: str) -> Any:
    b = bench(family=family)
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    convert(backbone)
    return first(backbone)


def first(backbone: Any) -> Any:
    """Of Wan's two."""
    return (backbone["transformer"] if isinstance(backbone, torch.nn.ModuleDict) else backbone).eval()


def given(family: str) -> dict[str, torch.Tensor | Any]:
    draw = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    if family == "sdxl":
        added = {"text_embeds": normal(2, 32), "time_ids": torch.full((2, 6), 32.0)}
        return {"sample": normal(2, 4, 8, 8), "timestep": torch.tensor(500.0), "encoder_hidden_states": normal(2, 7, 64),
                "added_cond_kwargs": added}  # fmt: skip
    return {"hidden_states": normal(1, 16, 2, 8, 8), "timestep": torch.tensor([500]), "encoder_hidden_states": normal(1, 7, 32)}


@pytest.mark.parametrize(("family", "name", "kind"), CASES)
def test_what_is_fused_computes_what_the_layers_do_apart(family: str, name: str, kind: Any) -> None:
    apart = converted(family, name)
    fused = copy.deepcopy(apart)
    fuse(fused)
    layers = [n for n, m in fused.named_modules() if isinstance(m, kind)]
    assert {n.rpartition(".")[2] for n in layers} == {"to_qkv", "to_kv"}
    assert not [n for n, m in fused.named_modules() if n.rpartition(".")[2] in ("to_k", "to_v") and isinstance(m, Kernel)]
    with torch.no_grad():
        for layer in layers:
            attention, last = layer.rpartition(".")[::2]
            old: list[Any] = [apart.get_submodule(f"{attention}.to_{x}") for x in last.removeprefix("to_")]
            queried: Any = apart.get_submodule(f"{attention}.to_q")
            x, y = torch.randn(1, 5, old[0].weight.shape[1]), torch.randn(1, 9, int(queried.weight.shape[1]))
            assert off(fused.get_submodule(layer)(x), torch.cat([each(x) for each in old], -1)) < 1e-6
            # A last bit of a product turns a code of the layer after it.
            whole = [m.get_submodule(attention)(*((x,) if last == "to_qkv" else (y, x))) for m in (fused, apart)]
            assert off(*whole) < 0.01


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_a_processor_of_somebody_else_keeps_its_layers() -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    class Own(AttnProcessor2_0):
        pass

    backbone = converted("sdxl", "fp8")
    backbone.set_attn_processor(Own())
    fuse(backbone)
    assert not [n for n, m in backbone.named_modules() if isinstance(m, JoinedFp8Linear)]


def test_tokens_of_one_time_step_are_modulated_by_one_row() -> None:
    b = bench(family="wan")
    plain = first(b.backbone())
    fused = copy.deepcopy(plain)
    fuse(fused)
    rows: list[int] = []
    fused.condition_embedder.time_proj.register_forward_pre_hook(
        lambda _, args: rows.append(args[0].numel() // args[0].shape[-1])
    )
    x = given("wan")
    one, two = torch.full((1, 32), 500), torch.cat([torch.zeros(1, 16), torch.full((1, 16), 500.0)], 1)
    with torch.no_grad():
        for steps, expected in ((one, 1), (two, 32)):
            x["timestep"] = steps
            found = off(*(m(**x, return_dict=False)[0] for m in (fused, plain)))
            assert (rows.pop(), found < 1e-5) == (expected, True)
