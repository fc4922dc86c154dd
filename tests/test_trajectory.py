"""Training on whole drawings: what is compared is what the pipeline draws, and the gradient goes through every step of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainsets
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from test_resume import go
from test_training import FAMILIES, SEED, about, data, same, trained, weights
from tiny import bench, folder

from diffopt import models
from diffopt.errors import PlanError
from diffopt.groups.train import Distillation, Trajectory
from diffopt.pipeline.activations import Live
from diffopt.pipeline.draw import draw
from diffopt.pipeline.open import open_pipeline
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.training import noise
from diffopt.training.attention import differentiable
from diffopt.training.call import Caller
from diffopt.training.examples import Batch, Examples
from diffopt.training.optimizer import optimizer, schedule
from diffopt.training.teacher import Teacher
from diffopt.training.trajectory import Drawing

CPU = torch.device("cpu")


def along(**how: Any) -> dict[str, Any]:
    return trainsets.QAD | {"trajectory": {"steps": 4, "last": 2} | how}


# The steps.


@pytest.mark.parametrize("how", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_flow_goes_as_its_scheduler_goes(how: dict[str, Any]) -> None:
    own, tokens = FlowMatchEulerDiscreteScheduler(**how), 1024
    flow = noise.of(models.family("flux"), own, "family")
    grid = flow.grid(5, tokens)
    mu = 0.5 + 0.65 * (tokens - 256) / (4096 - 256)
    own.set_timesteps(sigmas=np.linspace(1.0, 0.2, 5), **({"mu": mu} if how.get("use_dynamic_shifting") else {}))
    assert torch.allclose(grid, own.sigmas, atol=1e-6)
    ours = theirs = torch.randn(2, 16, 64)
    for i, t in enumerate(own.timesteps):
        predicted = torch.randn(2, 16, 64)
        theirs = own.step(predicted, t, theirs).prev_sample
        ours = flow.moved(ours, predicted, *grid[i : i + 2, None].expand(2, 2))
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_flow_whose_time_runs_to_the_latents_goes_the_same_way() -> None:
    own = FlowMatchEulerDiscreteScheduler()
    there, back = noise.of(models.family("flux"), own, "family"), noise.of(models.family("z_image"), own, "family")
    x, predicted, ends = torch.randn(2, 16, 64), torch.randn(2, 16, 64), torch.tensor([[0.8, 0.6], [0.5, 0.4]])
    assert torch.equal(there.moved(x, predicted, *ends), back.moved(x, -predicted, *ends))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_diffusion_goes_as_ddim_goes(kind: str) -> None:
    how: dict[str, Any] = {"beta_schedule": "scaled_linear", "prediction_type": kind, "clip_sample": False}
    own = DDIMScheduler(**how, timestep_spacing="trailing")
    diffusion = noise.of(models.family("sdxl"), DDPMScheduler(**how), "family")
    grid = diffusion.grid(5, 1)
    own.set_timesteps(5)
    assert grid.tolist() == [*own.timesteps.tolist(), -1]
    ours = theirs = torch.randn(2, 4, 8, 8)
    for i, t in enumerate(own.timesteps):
        predicted = torch.randn(2, 4, 8, 8)
        theirs = own.step(predicted, t, theirs, eta=0.0).prev_sample
        ours = diffusion.moved(ours, predicted, *grid[i : i + 2, None].expand(2, 2))
        assert torch.allclose(ours, theirs, atol=1e-4)


def drawing(levels: tuple[float, float] = (0.0, 1.0), **how: Any) -> torch.Tensor:
    """The paths of 2000 items."""
    flow: Any = noise.of(models.family("flux"), FlowMatchEulerDiscreteScheduler(), "family")
    normal = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    nothing: Any = None
    return Drawing(nothing, flow, nothing, nothing, Trajectory(**{"steps": 10, "last": 1} | how)).path(normal, 256, *levels)


def test_a_path_is_a_part_of_a_drawing_and_begins_anywhere_it_fits() -> None:
    whole, part = drawing(), drawing(length=4)
    assert torch.equal(whole, torch.linspace(1, 0, 11)[:, None].expand(11, 2000))
    assert len(part) == 5
    assert torch.allclose(part[:-1] - part[1:], torch.tensor(0.1), atol=1e-6)
    begins, often = (10 * part[0]).round().int().unique(return_counts=True)
    assert begins.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert often.min() > 2000 / 7 * 0.8


def test_each_of_two_experts_goes_the_steps_that_it_is_called_for() -> None:
    first, second = drawing((0.75, 1.0)), drawing((0.0, 0.75), length=3)
    assert first[:, 0].tolist() == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert second[0].max() == pytest.approx(0.7)
    assert second[-1].min() == 0
    assert len(second) == 4


def test_an_expert_without_a_step_is_refused() -> None:
    with pytest.raises(PlanError, match=r"trajectory\.steps: one of the two experts would have none \(got 2\); raise it"):
        drawing((0.0, 0.4), steps=2)


# The loss.


def ends(batch: Batch, **how: Any) -> tuple[Drawing, Any, Any]:
    """The loss, and the NVFP4 student and its teacher, of the tiny FLUX."""
    b = bench()
    flow = noise.of(models.family("flux"), FlowMatchEulerDiscreteScheduler(), "family")
    student = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("nvfp4"))
    teacher = Teacher({"transformer": b.backbone()}, Distillation(**trainsets.QAD).teacher, "cpu")
    caller = Caller(models.family("flux"), b.vae(), b.call)
    return Drawing(models.family("flux"), flow, caller, teacher, Trajectory(**how)), student, teacher.backbones["transformer"]


def test_what_is_compared_is_what_the_pipeline_draws() -> None:
    b, seeds = bench(), [7, 8]
    batch = Examples(data(b), 0, 2, 0.0, SEED).step(0)
    start = torch.cat([torch.randn(1, *batch.noise.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
    batch = Batch(batch.latents, start, batch.normal, batch.texts)
    loss, student, plain = ends(batch, steps=3, last=1)
    arguments = {"height": b.call.height, "width": b.call.width, "guidance_scale": b.call.guidance_scale}
    drawn = []
    with simulated():
        with torch.no_grad():
            found = loss("transformer", student, student, batch, (0.0, 1.0), CPU)
        for backbone in (student, plain):
            pipe = open_pipeline(b.context(), b.pipeline(), backbone, texts=False)
            drawn.append(torch.from_numpy(draw(pipe, batch.texts, seeds, 3, arguments, decode=False)))
    wanted = (drawn[0] - drawn[1]).square().mean()
    assert wanted > 0
    assert torch.allclose(found["loss"], wanted, rtol=1e-4)
    assert found["trajectory"] is found["loss"]


def test_the_gradient_is_that_of_the_whole_path() -> None:
    b = bench()
    batch = Examples(data(b), 0, 2, 0.0, SEED).step(0)
    loss, _, plain = ends(batch, steps=4, length=3, last=1)
    student = b.backbone().requires_grad_(True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.05 * p.std().nan_to_num() * torch.randn(p.shape, generator=draw)
    weight = student.proj_out.weight
    way = torch.randn(weight.shape, generator=draw)
    way *= 1e-2 * weight.norm() / way.norm()

    def at(share: float) -> torch.Tensor:
        with torch.no_grad():
            weight.add_(share * way)
            found = loss("transformer", student, student, batch, (0.0, 1.0), CPU)["loss"].double()
            weight.sub_(share * way)
        return found

    loss("transformer", student, student, batch, (0.0, 1.0), CPU)["loss"].backward()
    assert float((weight.grad * way).sum()) == pytest.approx(float(at(1) - at(-1)) / 2, rel=2e-2)
    assert all(p.grad is None for p in plain.parameters())


# The training.


def test_the_last_steps_learn_from_trajectories_with_inputs_rounded() -> None:
    b = bench(family="flux")
    rounded, exact = (trained(b, "nvfp4", quantize_inputs=q, distillation=along()) for q in (True, False))
    told = [about(x)["losses"] for x in (rounded, exact)]
    assert [sorted(x) for x in told[0]] == 2 * [["learning_rate", "loss", "output", "step"]] + 2 * [
        ["learning_rate", "loss", "step", "trajectory"]
    ]
    assert told[1][0]["output"] < told[0][0]["output"]
    only = along(last=4)  # of these none is left that learns from single calls, whose inputs alone may be exact
    one, other = (trained(b, "nvfp4", quantize_inputs=q, distillation=only) for q in (True, False))
    assert same(one, other)
    assert not same(one, rounded)


def test_the_loss_of_trajectories_falls() -> None:
    b = bench(family="flux")
    how = along(last=12, steps=3)
    losses = [x["loss"] for x in about(trained(b, "nvfp4", steps=12, learning_rate=3e-4, distillation=how))["losses"]]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_calls_that_are_made_once_more_for_the_gradient_change_nothing() -> None:
    b = bench(family="flux")
    kept, again = (
        trained(b, "nvfp4", distillation=along(), gradient_checkpointing=x, optimizer="sgd", learning_rate=0.05)
        for x in (False, True)
    )
    assert same(kept, again)


def test_memory_does_not_grow_with_calls_that_are_made_once_more() -> None:
    b = bench()
    batch = Examples(data(b), 0, 4, 0.0, SEED).step(0)

    def most(calls: int, sparing: bool) -> int:
        """Bytes beside the weights, of the loss and its gradient."""
        loss, student, plain = ends(batch, steps=calls, last=1)
        loss.sparing = sparing
        with differentiable(), simulated(), Live([*student.parameters(), *plain.parameters()]) as live:
            loss("transformer", student, student, batch, (0.0, 1.0), CPU)["loss"].backward()
        return live.most

    few, many = most(2, sparing=True), most(8, sparing=True)
    assert many < 1.1 * few
    assert most(2, sparing=False) > few
    assert most(8, sparing=False) > 3 * many


def test_trajectories_begin_with_a_learning_rate_and_moments_of_their_own() -> None:
    how = along(last=4, learning_rate=1e-3) | {"output": 1.0}
    view = trainsets.view(steps=12, warmup=3, schedule="cosine", learning_rate=1e-2, distillation=how)
    weight = torch.nn.Parameter(torch.ones(4))
    adam = optimizer(view, {"weight": weight})
    curve, rates = schedule(view, adam), []
    for _ in range(12):
        rates.append(adam.param_groups[0]["lr"])
        weight.grad = torch.ones(4)
        adam.step()
        curve.step()
    assert rates[0] == rates[8] == 0
    assert max(rates[:8]) == pytest.approx(1e-2)
    assert rates[7] < 2e-3
    assert max(rates[8:]) == rates[9] == pytest.approx(1e-3)  # a third of the 12 steps, and of its 3 of warm-up


def test_moments_of_single_calls_have_no_part_in_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    b, counted = bench(), []
    step = torch.optim.AdamW.step

    def noted(self: Any, *args: Any) -> Any:
        found = step(self, *args)
        counted.append({int(s["step"]) for s in self.state.values()})
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    trained(b, steps=5, distillation=along(last=2))
    assert counted == [{1}, {2}, {3}, {1}, {2}]


def test_a_training_that_stopped_before_or_among_trajectories_goes_on_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffopt.training.loop import Training

    b, root, how = bench(), folder(), {"steps": 6, "warmup": 1, "distillation": along(last=3)}
    whole, step = go(root / "whole", root / "none", b, **how), Training._step
    for end in (3, 5):

        def stops(self: Training, number: int, end: int = end) -> None:
            if number == end:
                raise InterruptedError
            step(self, number)

        monkeypatch.setattr(Training, "_step", stops)
        with pytest.raises(InterruptedError):
            go(root / f"first{end}", root / f"kept{end}", b, **how)
        monkeypatch.setattr(Training, "_step", step)
        again = go(root / f"again{end}", root / f"kept{end}", b, **how)
        assert same(again, whole)
        assert about(again)["losses"] == about(whole)["losses"]


@pytest.mark.matrix
@pytest.mark.parametrize("tiny", FAMILIES)
def test_every_family_learns_from_trajectories(tiny: str) -> None:
    b = bench(family=tiny)
    for length in (None, 2):
        made = trained(b, steps=2, distillation=along(length=length))
        last = about(made)["losses"][-1]
        assert 0 < last["trajectory"] == last["loss"] < 10
        before = dict(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8")).named_parameters())
        assert any(not torch.equal(x, before[n]) for n, x in weights(made).items())


# What it is known by.


def test_a_training_without_trajectories_is_known_by_what_it_was() -> None:
    plain, none = (trainsets.view(distillation=trainsets.QAD | x) for x in ({}, {"trajectory": None}))
    used = plain.fields_read()
    assert plain.identity(used) == none.identity(used)
    assert "trajectory" not in plain.identity(used)["distillation"]
    assert trainsets.view(distillation=along()).identity(used) != plain.identity(used)
