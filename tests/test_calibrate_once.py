"""Replaying recorded extremes gives bit for bit what modelopt's ordinary loop over the pipeline gives."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
from conftest import some
from safetensors.torch import load_file
from tiny import BATCH, SEED, STEPS, Bench, bench, call, emoji, recipe

from diffopt.models.flux import FAMILY
from diffopt.pipeline import calibration
from diffopt.pipeline.open import open_denoiser, open_pipeline
from diffopt.quantization import checkpoint, observer
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.extremes import merge, quantizers
from diffopt.quantization.observer import observed
from diffopt.stages.observe import observe

FORMATS = {
    "int8": ("int8", 0.5, False),
    "int8_sq-0.2": ("int8_sq", 0.2, False),
    "int8_sq-0.5": ("int8_sq", 0.5, False),
    "int8_sq-1.0": ("int8_sq", 1.0, False),
    "fp8": ("fp8", 0.5, False),
    "fp8-attention": ("fp8", 0.5, True),
    "nvfp4": ("nvfp4", 0.5, False),
    "nvfp4-attention": ("nvfp4", 0.5, True),
}
QUICK = ("int8_sq-0.5", "fp8-attention", "nvfp4")
formats = pytest.mark.parametrize(("name", "alpha", "mha"), some(FORMATS.values(), [FORMATS[x] for x in QUICK]))


def ordinary(b: Bench, size: int, name: str, alpha: float, mha: bool) -> torch.nn.Module:
    """modelopt's own way: its forward loop runs the pipeline over the same prompts, seeds and batches."""
    key = ("ordinary", size, name, alpha, mha)
    if key not in b.made:
        b.made[key] = _ordinary(b, size, name, alpha, mha)
    return b.made[key]


def _ordinary(b: Bench, size: int, name: str, alpha: float, mha: bool) -> torch.nn.Module:
    pipe = open_pipeline(b.context(), b.pipeline())
    rules, algorithm = recipe(name, alpha, mha)
    with torch.no_grad(), simulated():
        mtq.quantize(pipe.transformer, {"quant_cfg": rules, "algorithm": algorithm}, pipeline_loop(b, pipe, size))
    return pipe.transformer


def pipeline_loop(b: Bench, pipe: Any, size: int, steps: int = STEPS) -> Callable[[torch.nn.Module], None]:
    """A forward loop that runs the pipeline over the bench's prompts, seeds and batches."""

    def loop(_: torch.nn.Module) -> None:
        for first in range(0, size, BATCH):
            prompts = list(b.prompts[first : min(first + BATCH, size)])
            seeds = [torch.Generator("cpu").manual_seed(SEED + first + i) for i in range(len(prompts))]
            arguments = FAMILY.arguments(b.call) | {"max_sequence_length": b.call.max_sequence_length}
            pipe(prompts, num_inference_steps=steps, generator=seeds, output_type="latent", **arguments)

    return loop


def replayed(b: Bench, size: int, name: str, alpha: float, mha: bool) -> torch.nn.Module:
    extremes = load_file(b.stats(size).path / "extremes.safetensors", b.device)
    return from_extremes(b, extremes, name, alpha, mha)


def from_extremes(b: Bench, extremes: dict[str, torch.Tensor], name: str, alpha: float, mha: bool) -> torch.nn.Module:
    model = b.backbone()
    checkpoint.quantize(model, *recipe(name, alpha, mha), extremes)
    return model


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def differing(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    """Names of the parameters and buffers that are not bit for bit the same in both."""
    ours, theirs = dict(tensors(one)), dict(tensors(other))
    same = {n for n in ours.keys() & theirs.keys() if ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n])}
    return sorted((ours.keys() | theirs.keys()) - same)


@pytest.mark.parametrize("size", [4, 7])
@formats
def test_replayed_extremes_give_every_tensor_of_the_ordinary_loop(size: int, name: str, alpha: float, mha: bool) -> None:
    ours, theirs = replayed(bench(), size, name, alpha, mha), ordinary(bench(), size, name, alpha, mha)
    assert any(n.endswith("._amax") for n, _ in tensors(theirs))
    assert differing(ours, theirs) == []


@formats
def test_replayed_extremes_give_the_output_of_the_ordinary_loop(name: str, alpha: float, mha: bool) -> None:
    inputs = bench().inputs(2)
    theirs = call(ordinary(bench(), 7, name, alpha, mha), inputs)
    assert torch.equal(call(replayed(bench(), 7, name, alpha, mha), inputs), theirs)
    assert not torch.equal(call(bench().backbone(), inputs), theirs)


@formats
def test_a_bfloat16_model_is_calibrated_as_by_the_ordinary_loop(name: str, alpha: float, mha: bool) -> None:
    b = bench("bfloat16")
    ours, theirs = replayed(b, 7, name, alpha, mha), ordinary(b, 7, name, alpha, mha)
    assert differing(ours, theirs) == []
    assert torch.equal(call(ours, b.inputs()), call(theirs, b.inputs()))


@pytest.mark.parametrize(("name", "mha"), some([("int8_sq", False), ("nvfp4", True)], [("int8_sq", False)]))
def test_the_embedded_model_is_calibrated_as_by_the_ordinary_loop(name: str, mha: bool) -> None:
    ours, theirs = replayed(emoji(), 4, name, 0.2, mha), ordinary(emoji(), 4, name, 0.2, mha)
    assert differing(ours, theirs) == []
    assert torch.equal(call(ours, emoji().inputs()), call(theirs, emoji().inputs()))


@formats
def test_one_changed_extreme_changes_the_quantized_model(name: str, alpha: float, mha: bool) -> None:
    extremes = load_file(bench().stats(4).path / "extremes.safetensors")
    changed = {n: x.clone() for n, x in extremes.items()}
    one = changed["single_transformer_blocks.0.proj_out.input_quantizer"]
    one[one.argmax()] *= 1.001
    ours, theirs = (from_extremes(bench(), e, name, alpha, mha) for e in (changed, extremes))
    assert differing(ours, theirs)


def test_one_changed_attention_extreme_changes_only_its_quantizer() -> None:
    extremes = load_file(bench().stats(4).path / "extremes.safetensors")
    name = "transformer_blocks.0.attn.k_bmm_quantizer"
    changed = extremes | {name: extremes[name] * 1.001}
    ours, theirs = (from_extremes(bench(), e, "fp8", 0.5, True) for e in (changed, extremes))
    assert differing(ours, theirs) == [f"{name}._amax"]


def test_a_larger_calibration_set_gives_other_extremes() -> None:
    small, large = (load_file(bench().stats(n).path / "extremes.safetensors") for n in (4, 7))
    assert small.keys() == large.keys()
    assert any(not torch.equal(small[n], large[n]) for n in small)
    assert all((small[n] <= large[n]).all() for n in small)


def test_chunks_merge_to_the_extremes_of_one_pass() -> None:
    b = bench()
    model = b.backbone()
    calls = [{k: v * scale if k == "hidden_states" else v for k, v in b.inputs().items()} for scale in (1.0, 3.0, 0.1)]
    with observed(model) as together, torch.no_grad():
        for inputs in calls:
            model(**inputs)
    parts = []
    for inputs in calls:
        model = b.backbone()
        with observed(model) as extremes, torch.no_grad():
            model(**inputs)
        parts.append(extremes)
    merged = merge(parts)
    assert merged.keys() == together.keys()
    assert all(torch.equal(merged[n], together[n]) for n in merged)


def test_extremes_are_per_channel_for_linear_inputs_and_one_for_attention() -> None:
    b = bench()
    model, parents = b.backbone(), dict(b.backbone().named_modules())
    with observed(model) as extremes, torch.no_grad():
        model(**b.inputs())
    for name, peak in extremes.items():
        layer, _, kind = name.rpartition(".")
        channels = getattr(parents[layer], "in_features", None)
        if kind == "input_quantizer" and channels is not None:
            assert peak.shape == (channels,), name
        if "_bmm_" in kind:
            assert peak.shape == (1,), name


def test_an_extreme_is_the_largest_absolute_value_that_entered_the_layer() -> None:
    b = bench()
    seen: list[torch.Tensor] = []
    plain, model = b.backbone(), b.backbone()
    name = "transformer_blocks.0.ff.net.2"
    plain.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        plain(**b.inputs(2))
        with observed(model) as extremes:
            model(**b.inputs(2))
    (entered,) = seen
    assert torch.equal(extremes[f"{name}.input_quantizer"], entered.abs().flatten(0, -2).max(0).values)


def test_observing_leaves_the_output_in_full_precision() -> None:
    b = bench()
    with torch.no_grad():
        plain = b.backbone()(**b.inputs(), return_dict=False)[0]
        model = b.backbone()
        with observed(model):
            assert torch.equal(model(**b.inputs(), return_dict=False)[0], plain)


def test_observing_stops_with_its_block() -> None:
    b = bench()
    model = b.backbone()
    with torch.no_grad():
        with observed(model) as extremes:
            model(**b.inputs())
        before = {n: x.clone() for n, x in extremes.items()}
        model(**{k: v * 100 for k, v in b.inputs().items()})
    assert all(torch.equal(extremes[n], before[n]) for n in before)
    assert not any(q.is_enabled for _, q in quantizers(model))


def test_chunks_of_different_models_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different quantizers"):
        merge([{"a.input_quantizer": torch.ones(2)}, {"b.input_quantizer": torch.ones(2)}])


def test_a_model_can_be_observed_again_and_is_left_as_it_was() -> None:
    b = bench()
    model = b.backbone()
    before = {n: (type(m), m.__dict__.get("forward"), len(m._forward_hooks)) for n, m in model.named_modules()}
    product = torch.nn.functional.scaled_dot_product_attention
    found = []
    for _ in range(2):
        with observed(model) as extremes, torch.no_grad():
            model(**b.inputs())
        found.append(extremes)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert {n: (type(m), m.__dict__.get("forward"), len(m._forward_hooks)) for n, m in model.named_modules()} == before
    assert torch.nn.functional.scaled_dot_product_attention is product


def test_siblings_that_read_different_tensors_have_extremes_of_their_own() -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.q(x) + self.k(y) + self.v(y)

    model, (x, y) = Attention(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    with observed(model) as extremes, torch.no_grad():
        model(x, y)
        model(y, 2 * x)
    both = torch.cat([x, y]).abs().amax(0)
    assert torch.equal(extremes["q.input_quantizer"], both)
    other = torch.cat([y, 2 * x]).abs().amax(0)
    assert torch.equal(extremes["k.input_quantizer"], other)
    assert torch.equal(extremes["v.input_quantizer"], other)


@pytest.mark.parametrize("room", [2**30, 4096])
def test_a_tensor_held_back_is_shared_by_whoever_reads_it_and_let_go_when_room_is_short(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(observer.HELD, "cpu", room)
    b = bench()
    found = []
    for hold in (True, False):
        model = b.backbone()
        with observed(model, hold=hold) as extremes, torch.no_grad():
            for scale in (1.0, 3.0, 0.1):
                model(**{k: v * scale if k == "hidden_states" else v for k, v in b.inputs().items()})
        found.append(extremes)
    held, plain = found
    assert held.keys() == plain.keys()
    assert all(torch.equal(held[n], plain[n]) and held[n].dtype == plain[n].dtype for n in plain)


def test_an_input_changed_after_a_layer_read_it_is_noticed_where_it_was_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            x.zero_()
            return y

    monkeypatch.setitem(observer.HELD, "cpu", 2**20)
    model = Changing()
    with pytest.raises(observer.ChangedInPlace, match=r"linear\.input_quantizer"), torch.no_grad(), observed(model):
        model(torch.ones(2, 8))
    with torch.no_grad(), observed(model, hold=False) as extremes:
        model(torch.ones(2, 8))
    assert torch.equal(extremes["linear.input_quantizer"], torch.ones(8))


def test_a_backbone_that_changes_an_input_is_observed_again_without_holding_any_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, passes = bench(), []
    plain = load_file(b.chunk(0, 2).path / "extremes.safetensors")

    def change(_: Any, args: Any, __: Any) -> None:
        args[0].add_(0)

    def opened(*args: Any) -> Any:
        pipe = open_denoiser(*args)
        layer = pipe.transformer.transformer_blocks[0].ff.net[2]
        layer.register_forward_hook(change)
        pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
        return pipe

    monkeypatch.setitem(observer.HELD, "cpu", 2**30)
    monkeypatch.setattr(calibration, "open_denoiser", opened)
    observe.run(b.context(tmp_path), b.call, b.view(0, 2), b.pipeline(), b.texts(0, 2), SEED)
    ours = load_file(tmp_path / "extremes.safetensors")
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[n], plain[n]) for n in plain)
    assert len(passes) > b.view(0, 2).n_steps


@pytest.mark.parametrize("room", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_extreme_is_exact_and_nan_where_there_is_one(dtype: torch.dtype, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(observer.HELD, "cpu", room)
    model = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 3, 1), "linear": torch.nn.Linear(8, 8)}).to(dtype)
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 1, 2, 3] = torch.nan
    with observed(model) as extremes, torch.no_grad():
        model["conv"](x)
        model["linear"](x)
    wanted = {"conv.input_quantizer": x.abs().amax((0, 2, 3)), "linear.input_quantizer": x.abs().amax((0, 1, 2))}
    assert extremes.keys() == wanted.keys()
    assert all(torch.equal(extremes[n].nan_to_num(-1), wanted[n].nan_to_num(-1)) for n in wanted)
    assert [int(extremes[n].isnan().sum()) for n in wanted] == [1, 1]
