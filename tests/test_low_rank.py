"""SVDQuant's low-rank part, fitted in turn with the rounding of the rest."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from conftest import some
from tiny import CHUNK, Bench, bench

from diffopt.formats.method import Weights
from diffopt.quantization import block_search, checkpoint
from diffopt.quantization.block_fake_quant import e2m1, simulated
from diffopt.quantization.companions import means
from diffopt.quantization.hessian import smoothed
from diffopt.quantization.low_rank import Alternation, Parts, Smoothed, start
from diffopt.quantization.static_blocks import tensor_scale
from diffopt.quantization.svdquant_scales import Settled, next_in_bfloat16
from diffopt.quantization.weight_scales import Search, lost

NAME = "nvfp4_svdquant"
RANK = 4
KINDS: list[Weights] = [*get_args(Weights)]


def best(weight: torch.Tensor) -> Parts:
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :RANK] * s[:RANK]).to(weight.dtype), v[:RANK].to(weight.dtype)


def maximum(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax().float()


def of(weight: torch.Tensor, peak: Callable[[torch.Tensor], torch.Tensor] = maximum) -> Smoothed:
    return Smoothed("it", weight, torch.ones(weight.shape[1]), peak)


@pytest.fixture
def weight() -> torch.Tensor:
    """With a few large directions and outliers, as trained ones."""
    torch.manual_seed(0)
    found = torch.randn(48, 64) + 3 * torch.randn(48, 3) @ torch.randn(3, 64)
    found[:, 7] *= 6
    return found


def hessians() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(500, 64) * torch.rand(64).add(0.2)
    blocks = x.unflatten(1, (-1, 16))
    return {"it": torch.einsum("rbi,rbj->bij", blocks, blocks) / len(x)}


def written_out(weight: torch.Tensor, parts: Parts, times: int) -> list[float]:
    """What is lost by squares after each of so many whole SVDs in turn with a search for scales, in other words than the
    product's."""
    found = []
    for _ in range(times + 1):
        rest = weight - parts[0] @ parts[1]
        codes = block_search.nvfp4(rest, rest.abs().max(), None)
        scales = (codes.float() * tensor_scale(rest.abs().max())).repeat_interleave(16, 1)
        quantized = e2m1(rest / scales) * scales
        found.append(float((quantized - rest).double().square().sum()))
        parts = best(weight - quantized)
    return found


def test_each_round_is_worth_a_whole_decomposition(weight: torch.Tensor) -> None:
    layer, search = of(weight), Search("mse", {})
    expected = written_out(weight, best(weight), 8)
    assert expected[8] < 0.8 * expected[0]
    for times in (1, 8):
        found = written_out(weight, Alternation(times, search)(layer, best(weight)), 0)[0]
        assert found == pytest.approx(expected[times], rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_never_lose_more_and_by_every_search_lose_less_than_none(weight: torch.Tensor, kind: Weights) -> None:
    search = Search(kind, hessians())
    fits = [Alternation(n, search) for n in (0, 1, 2, 4, 8)]
    h = search.hessian("it", torch.ones(64))
    left = [fit._rounded(of(weight), fit(of(weight), best(weight)), h)[0] for fit in fits]
    assert all(later <= before for before, later in itertools.pairwise(left))
    assert left[-1] < 0.85 * left[0]
    assert fits[0](of(weight), best(weight))[0].equal(best(weight)[0])


def test_what_is_lost_is_what_the_search_for_scales_makes_least() -> None:
    """Of the inputs as the layer gets them: scaled by its smoothing."""
    smoothing, off = torch.rand(64).add(0.5), torch.randn(48, 64)
    blocks, h = off.unflatten(1, (-1, 16)), smoothed(hessians()["it"], smoothing)
    expected = torch.einsum("obi,bij,obj->", blocks.double(), h.double(), blocks.double())
    assert lost(off, Search("local_hessian", hessians()).hessian("it", smoothing)) == pytest.approx(float(expected), rel=1e-5)
    for kind in ("max", "mse", "four_over_six"):
        assert Search(kind, {}).hessian("it", smoothing) is None
    assert lost(off, None) == pytest.approx(float(off.double().square().sum()), rel=1e-5)


def test_between_its_factors_a_layer_has_nothing_larger_than_its_input(weight: torch.Tensor) -> None:
    """As SVDQuant's own, whose product FP16 is to hold."""
    b, a = Alternation(8, Search("mse", {}))(of(weight), best(weight))
    assert torch.allclose(a @ a.T, torch.eye(RANK), atol=1e-5)
    assert b.shape == (48, RANK)
    assert not b.equal(best(weight)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_near_the_best_parts_and_at_the_same_each_time(weight: torch.Tensor, dtype: torch.dtype) -> None:
    weight = weight.to(dtype)
    torch.manual_seed(3)
    first = start(weight, RANK)
    ahead = torch.rand(2)
    torch.manual_seed(4)
    assert all(torch.equal(x, y) for x, y in zip(first, start(weight, RANK), strict=True))
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), ahead)  # what others draw stays the same
    assert [x.dtype for x in first] == [dtype] * 2
    assert [tuple(x.shape) for x in first] == [(48, RANK), (RANK, 64)]
    a = first[1].float()
    assert torch.allclose(a @ a.T, torch.eye(RANK), atol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    left = [float((weight.float() - b.float() @ a.float()).norm()) for b, a in (first, best(weight))]
    assert left[1] <= left[0] * (1 + 1e-6)
    assert left[0] < 1.01 * left[1]


@pytest.mark.parametrize(("out", "wide", "rank"), [(3, 64, 4), (48, 16, 17)])
def test_a_part_of_a_higher_rank_than_its_weight_stays(weight: torch.Tensor, out: int, wide: int, rank: int) -> None:
    """As modelopt pads it."""
    padded = torch.zeros(out, rank), torch.zeros(rank, wide)
    kept = Alternation(8, Search("mse", {}))(of(weight[:out, :wide]), padded)
    assert kept[0] is padded[0]
    assert kept[1] is padded[1]


def test_a_part_as_wide_as_its_weight_keeps_its_shape(weight: torch.Tensor) -> None:
    narrow, nothing = weight[:, :16], (torch.zeros(48, 16), torch.eye(16))
    found = Alternation(2, Search("mse", {}))(of(narrow), nothing)
    assert (found[0].shape, found[1].shape) == ((48, 16), (16, 16))
    # It can hold all that rounding takes away, and what is left is numbers of NVFP4.
    assert written_out(narrow, found, 0)[0] < 1e-4 * written_out(narrow, nothing, 0)[0]


def test_a_worse_round_is_not_taken() -> None:
    """Of a weight that four bits hold exactly there is nothing to win; and of no whole blocks nothing is sought."""
    whole = torch.tensor([-3.0, -1.0, 0.0, 0.5, 4.0])[torch.randint(5, (48, 64))]
    whole[:, ::16] = 6  # a scale of 1, where the tensor's is 1
    whole[0, :16] *= 448
    nothing = torch.zeros(48, RANK), torch.zeros(RANK, 64)
    assert all(x.equal(y) for x, y in zip(Alternation(8, Search("max", {}))(of(whole), nothing), nothing, strict=True))
    ragged = of(torch.randn(8, 40))
    assert Alternation(8, Search("mse", {}))(ragged, best(ragged.weight))[0].equal(best(ragged.weight)[0])


class Told(Search):
    """Keeps the maxima that it is given."""

    def __init__(self) -> None:
        super().__init__("mse", {})
        self.given: list[torch.Tensor] = []

    def scales(self, weight: torch.Tensor, amax: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
        self.given.append(amax)
        return super().scales(weight, amax, hessian)


@pytest.mark.parametrize("round", [False, True])
def test_a_round_takes_the_maximum_that_the_weight_will_have(weight: torch.Tensor, round: bool) -> None:
    search, peak = Told(), Settled(torch.nn.Module(), share=False, round=round, alternation=None)._peak
    parts = Alternation(2, search)(of(weight, peak), best(weight))
    assert len(search.given) == 3
    last = maximum(weight - torch.matmul(*parts))
    assert search.given[2].equal(next_in_bfloat16(last) if round else last)


def errors(b: Bench, **how: Any) -> dict[str, float]:
    """By layer what its calibrated weight loses, by the mean of the inputs' products."""
    plain, model = b.backbone(), checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(NAME, **how))
    products, found = means(b.hessians(CHUNK)), {}
    for name in checkpoint.quantized_layers(model):
        layer: Any = model.get_submodule(name)
        quantizer, smoothing = layer.weight_quantizer, layer.input_quantizer.pre_quant_scale.float().flatten()
        with torch.no_grad(), simulated():
            low = quantizer.svdquant_lora_b.float() @ quantizer.svdquant_lora_a.float()
            whole = (quantizer(layer.weight.detach()).float() + low) * smoothing
        off = (whole - plain.get_submodule(name).weight.float()).unflatten(1, (-1, 16))  # type: ignore[operator]
        found[name] = float(torch.einsum("obi,bij,obj->", off, products[name], off))
    return found


@pytest.mark.parametrize("share", some([False, True], {False}))
@pytest.mark.parametrize("dtype", some(["float32", "bfloat16"], {"bfloat16"}))
def test_a_checkpoint_loses_less_in_every_layer(dtype: str, share: bool) -> None:
    b = bench(dtype)
    how = {"weights": "local_hessian", "share": share, "round": dtype == "bfloat16"}
    before, after = errors(b, **how), errors(b, rank_iterations=8, **how)
    assert {*before} == {*after}
    shares = [after[n] / before[n] for n in before]
    assert max(shares) < 1.02  # layers of one input lose less together
    assert sum(after.values()) < 0.85 * sum(before.values())


def test_a_sweep_over_formats_may_set_what_only_some_have(plan: Any) -> None:
    def view(name: str) -> Any:
        steps = plan("model=emoji_flux", f"format={name}", "calib=emoji", "eval=emoji", "format.rank_iterations=3", sweep=True)
        return next(s for s in steps.steps if s.name == "quantize").views["format"]

    assert (view("int4_awq").rank_iterations, view(NAME).rank_iterations) == (0, 3)


def test_without_any_the_key_is_that_of_before_there_was_a_choice(plan: Any) -> None:
    def made(*more: str) -> str:
        steps = plan("model=emoji_flux", f"format={NAME}", "calib=emoji", "eval=emoji", *more).steps
        return next(s.fingerprint for s in steps if s.name == "quantize")

    before = "format.weights=max", "calib.size=32", "format.rank_iterations=0"
    assert made(*before) == "9708a09ae849b279"  # as it was while there was no such choice
    assert len({made(), made("format.rank_iterations=0"), made("format.rank_iterations=3")}) == 3
    assert made("format.rank_iterations=8") == made()
