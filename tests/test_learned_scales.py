"""Scales that are trained beside the weights learn as modelopt's LSQ does, and come back in an ordinary checkpoint."""

from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import pytest
import torch
import trainsets
from conftest import some
from quantized import FP4, INT4
from safetensors.torch import load_file
from test_packing import unpacked
from test_resume import Stop
from test_training import SEED, about, data, same, trained, weights
from test_weight_scales import by_modelopt, layer, static
from tiny import bench, call, folder

from diffopt.artifact import Checkpoint
from diffopt.errors import PlanError
from diffopt.graph.packing import pack
from diffopt.kernels.convert import convert
from diffopt.kernels.nvfp4 import Nvfp4Linear
from diffopt.layouts import modelopt
from diffopt.quantization import checkpoint, weight_scales
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.numbers import numbers
from diffopt.quantization.weight_scales import CODES, MAXIMA
from diffopt.stage import Context
from diffopt.stages.train import train
from diffopt.training import scales
from diffopt.training.loop import Training
from diffopt.training.optimizer import optimizer
from diffopt.training.subject import Subject
from diffopt.training.task import Task

KINDS = [*scales.LEARNED]
STARTS = [("nvfp4", kind) for kind in ("max", "mse", "local_hessian", "four_over_six")]
STARTS += [("nvfp4_svdquant", "local_hessian"), ("int4_awq", "max"), ("int4_awq", "local_hessian")]
FEW = [STARTS[2], STARTS[3], STARTS[4], STARTS[6]]
starts = pytest.mark.parametrize(("name", "kind"), some(STARTS, FEW))


def ptq(name: str, kind: str) -> Checkpoint:
    return bench().checkpoint(name) if kind == "max" else bench().checkpoint(name, weights=kind)


def learned(name: str, kind: str, how: str = "learned") -> Checkpoint:
    given = {"scales": how, "learning_rate": 1e-3, "steps": 3}
    return bench()._once(("learned", name, kind, how), lambda _: trained(bench(), name, ptq=ptq(name, kind), **given))


# Learning.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["nvfp4", "int4"])
def test_a_layer_learns_to_the_bit_as_by_modelopts_lsq(name: str, kind: str) -> None:
    weight, x = layer(7)
    found = {"method": "mse"} | ({"fp8_scale_sweep": True} if name == "nvfp4" else {})
    lsq = {"method": "lsq", "scale_algorithm": found, **scales.LEARNED[kind]}
    theirs = by_modelopt(weight, x, static("mse") if name == "nvfp4" else INT4, lsq)
    dynamic = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    ours = by_modelopt(weight, x, dynamic if name == "nvfp4" else INT4, "max")
    search = weight_scales.Search("mse", {})
    weight_scales.put(ours, weight_scales.of_model(ours, search), "mse")
    learning = scales.Scales(ours, kind)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert any(scales.is_scale(n) for n, _ in ours.named_parameters())
    before = [p.detach().clone() for p in ours.parameters()]
    target = torch.randn(200, 96, generator=torch.Generator().manual_seed(1))
    with simulated():
        for model in (ours, theirs):
            how = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
            for _ in range(4):
                (model(x) - target).square().mean().backward()
                how.step()
                how.zero_grad()
        assert torch.equal(ours(x), theirs(x))
    for mine, own, start in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        assert torch.equal(mine, own)
        assert not torch.equal(mine, start)
    assert learning.layers.keys() == {"0"}


def test_scales_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    named = {"a.weight": torch.nn.Parameter(torch.ones(2)), "a.weight_quantizer._amax_post": torch.nn.Parameter(torch.ones(2))}
    view = trainsets.view(learning_rate=1e-3, weight_decay=0.1, scales="learned", scale_learning_rate=1e-2)
    of_weights, of_scales = optimizer(view, named).param_groups
    assert (of_weights["lr"], of_weights["weight_decay"], of_weights["params"]) == (1e-3, 0.1, [named["a.weight"]])
    assert (of_scales["lr"], of_scales["weight_decay"], of_scales["params"][0].shape) == (1e-2, 0.0, (2,))
    assert optimizer(view.model_copy(update={"scale_learning_rate": None}), named).param_groups[1]["lr"] == 1e-3


# What comes out.


def called(subject: Subject) -> torch.Tensor:
    with simulated():
        return call(subject.whole, bench().inputs())


@pytest.mark.parametrize("how", KINDS)
@starts
def test_what_was_learned_is_what_is_restored(name: str, kind: str, how: str) -> None:
    """Moved far from where they began, of which every one crosses a code."""
    b = bench()
    ctx, view = b.context(), trainsets.view(scales=how)
    task = Task(b.call, view, b.pipeline(), ptq(name, kind), data(b), SEED)
    subject = Subject(ctx, task, False)
    start = called(subject)
    with torch.no_grad():
        for i, (n, p) in enumerate(subject.whole.named_parameters()):
            if scales.is_scale(n):
                p.mul_(1 + 0.4 * torch.rand(p.shape, generator=torch.Generator().manual_seed(i)))
                p[:2] *= -1  # where a training may throw them, which means the least there is
    scored = called(subject)
    with simulated():
        found = subject.learned(None)
        kept = subject.weights(None, keep=True, scales=found)
    checkpoint.save_trained(ctx.out, task.checkpoint, kept, found)
    made = checkpoint.restore(ctx, b.pipeline(), Checkpoint(ctx.out, "learned"))
    own = call(made, b.inputs())
    assert torch.allclose(own, scored, rtol=1e-4, atol=1e-5 * float(scored.abs().max()))
    assert (own - start).norm() > 100 * (own - scored).norm()


def test_scales_are_trained_and_others_are_kept() -> None:
    b, name, kind = bench(), "nvfp4", "local_hessian"
    made = learned(name, kind)
    assert about(made)["scales"] == "learned"
    before, after = (load_file(c.path / checkpoint.STATE) for c in (ptq(name, kind), made))
    found = {n: x for n, x in after.items() if n.endswith((CODES, MAXIMA))}
    layers = checkpoint.quantized_layers(checkpoint.restore(b.context(), b.pipeline(), made))
    assert {n.partition(".weight_quantizer")[0] for n in found} == {*layers}
    assert all(torch.equal(x, after[n]) for n, x in before.items() if n not in found)
    moved = [n for n, x in found.items() if n in before and not torch.equal(x.float(), before[n].float())]
    assert len(moved) > 0.9 * len(found)
    assert {n.rpartition("_amax")[1] for n in weights(made)} == {""}
    fixed = trained(b, name, ptq=ptq(name, kind), learning_rate=1e-3, steps=3)
    first, last = ([about(m)["losses"][i]["loss"] for m in (made, fixed)] for i in (0, -1))
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert last[0] != pytest.approx(last[1], rel=1e-4)


def test_layers_whose_rows_are_no_whole_blocks_learn_none() -> None:
    """They are rounded by the scales of maxima, whatever was sought for the others."""
    model = torch.nn.ModuleDict({"whole": torch.nn.Linear(32, 4), "ragged": torch.nn.Linear(40, 4)})
    rules = [{"quantizer_name": "*weight_quantizer", "cfg": FP4}, {"quantizer_name": "*input_quantizer", "enable": False}]
    with torch.no_grad(), simulated():
        mtq.quantize(model, {"quant_cfg": rules, "algorithm": "max"}, lambda m: None)
    assert {*scales.Scales(model, "learned").layers} == {"whole"}


@starts
def test_graphs_kernels_and_packages_hold_learned_scales(name: str, kind: str) -> None:
    made = learned(name, kind)
    fake, real = (checkpoint.restore(bench().context(), bench().pipeline(), made) for _ in range(2))
    convert(real)
    assert any(isinstance(m, Nvfp4Linear) for m in real.modules()) == name.startswith("nvfp4")
    for layer_name in checkpoint.quantized_layers(fake):
        own: Any = fake.get_submodule(layer_name)
        with torch.no_grad(), simulated():
            scored, x = own.weight_quantizer(own.weight.detach()), torch.randn(3, own.in_features)
            out = own(x)
        graph = torch.from_numpy(unpacked(pack("w", own._parameters["weight"], own.weight_quantizer, False)))
        shipped = [graph, numbers(modelopt.layer(own, name), name)]
        for weight in shipped:
            assert torch.allclose(weight, scored, rtol=2**-22, atol=0), layer_name
        if isinstance(real.get_submodule(layer_name), Nvfp4Linear):
            with torch.no_grad():
                assert torch.allclose(real.get_submodule(layer_name)(x), out, rtol=1e-4, atol=1e-5), layer_name


@pytest.mark.parametrize("how", ["learned", "tied"])
def test_scales_learn_beside_adapters(how: str) -> None:
    """Of layers without one the weights are kept too, where they are not what they were."""
    b = bench()
    lora = {"rank": 2, "alpha": 2.0, "targets": ["*.attn.to_q"]}
    ctx, view = b.context(), trainsets.view(scales=how, lora=lora)
    task = Task(b.call, view, b.pipeline(), ptq("nvfp4", "local_hessian"), data(b), SEED)
    subject = Subject(ctx, task, False)
    with torch.no_grad():
        for i, p in enumerate(subject.parameters.values()):
            p.add_(0.3 * p.abs().mean().clamp_min(0.01) * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    assert {n.rpartition(".")[2] for n in subject.parameters} == {"adapter_up", "adapter_down", "_amax_post"}
    scored = called(subject)
    with simulated():
        found = subject.learned(None)
        kept = subject.weights(None, keep=True, scales=found)
    checkpoint.save_trained(ctx.out, task.checkpoint, kept, found)
    own = call(checkpoint.restore(ctx, b.pipeline(), Checkpoint(ctx.out, "adapted")), b.inputs())
    assert torch.allclose(own, scored, rtol=1e-4, atol=1e-5 * float(scored.abs().max()))


def test_a_killed_training_of_scales_goes_on_bit_equal() -> None:
    root, how = folder(), {"scales": "learned", "learning_rate": 1e-3, "steps": 5, "save_every": 2, "scale_learning_rate": 2e-3}
    whole = go(root / "whole", root / "none", **how)
    step = Training._step

    def stopped(self: Training, now: int) -> None:
        if now == 3:
            raise Stop
        step(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_step", stopped)
        with pytest.raises(Stop):
            go(root / "killed", root / "kept", **how)
    resumed = go(root / "resumed", root / "kept", **how)
    assert same(resumed, whole)
    states = [load_file(c.path / checkpoint.STATE) for c in (resumed, whole)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n].float(), x.float()) for n, x in states[1].items())
    assert not same(whole, go(root / "other", root / "otherwise", **how | {"scale_learning_rate": 1e-3}))


def go(out: Path, kept: Path, **changes: Any) -> Checkpoint:
    b = bench()
    out.mkdir(exist_ok=True)
    ctx = Context(out, b.sources.pinned, b.sources.locate, b.device, kept=kept)
    given = b.call, trainsets.view(**changes), b.pipeline(), data(b), ptq("nvfp4", "local_hessian"), SEED
    train.run(ctx, *given)
    return Checkpoint(out, "trained")


# In the plan.


def test_learning_scales_keys_the_training_and_leaving_them_does_not(plan: Any) -> None:
    def of(*picks: str) -> str:
        return next(s.fingerprint for s in plan("+recipe=emoji_fp4_qad", *picks).steps if s.name == "train")

    found = [of(), of("train.scales=learned"), of("train.scales=learned", "train.scale_learning_rate=1e-4")]
    assert found[0] == of("train.scales=fixed")
    assert len({*found}) == 3
    assert found[1] == of("train.scales=learned", "train.scale_learning_rate=null")


@pytest.mark.parametrize(
    ("picks", "said"),
    [
        (["format=int8"], "train.scales: has no effect"),
        (["format=fp8"], "train.scales: has no effect"),
        (["format=mxfp8", "calib=null"], "train.scales: has no effect"),
        (["format=w4a8_awq", "format.block_size=64"], "train.scales: has no effect"),
        (["train.scales=fixed", "train.scale_learning_rate=1e-4"], "train.scale_learning_rate: has no effect"),
    ],
)
def test_scales_that_cannot_be_learned_are_refused(plan: Any, picks: list[str], said: str) -> None:
    given = ["+recipe=emoji_fp4", "export=null", "train=emoji_qad", "train.scales=learned", *picks]
    with pytest.raises(PlanError) as caught:
        plan(*given)
    assert said in str(caught.value)
