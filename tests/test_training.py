"""Training: the gradients, what a family is trained to undo, what is drawn in a step, and what comes out."""

import math
from inspect import signature
from pathlib import Path
from typing import Any

import modelopt.torch.quantization.plugins.diffusion.diffusers as plugin
import pytest
import torch
import trainsets
from conftest import some
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from modelopt.torch.quantization.nn import TensorQuantizer
from safetensors.torch import load_file
from tiny import Bench, bench, call, folder

from diffopt import models
from diffopt.artifact import Checkpoint, TrainSet
from diffopt.errors import GateError, PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.pipeline.draw import draw
from diffopt.pipeline.open import config, open_pipeline
from diffopt.pipeline.texts import encode
from diffopt.quantization import checkpoint
from diffopt.quantization.block_fake_quant import simulated
from diffopt.stages.train import train
from diffopt.training import noise
from diffopt.training.attention import differentiable
from diffopt.training.call import Caller
from diffopt.training.examples import Examples
from diffopt.training.inputs import exact_inputs

SEED = 3
FAMILIES = ["flux", "sd3", "sdxl", "sd21", "ltx", "wan", "wan_ti2v", "qwen_image", "chroma"]
FAMILIES += ["flux2", "flux2_klein", "z_image", "sana"]


def shape(b: Bench) -> tuple[int, ...]:
    """Of the latents of one item, as the VAE gives them."""
    side, coarse = b.call.height // 2, b.call.height // b.vae().get("scale_factor_spatial", 8)
    return {
        "flux": (4, side, side),
        "chroma": (4, side, side),
        "z_image": (4, side, side),
        "sana": (4, side, side),
        **dict.fromkeys(("flux2", "flux2_klein"), (16, side // 2, side // 2)),
        "sd3": (16, side, side),
        "sdxl": (4, side, side),
        "sd21": (4, side, side),
        "qwen_image": (4, 1, side, side),
        "ltx": (8, 3, 8, 8),
        "wan": (b.vae().get("z_dim", 16), 2, coarse, coarse),
    }[b.family]


def texts(b: Bench, prompts: list[str]) -> dict[str, torch.Tensor]:
    pipe = open_pipeline(b.context(), b.pipeline())
    found = encode(b.context(), pipe, b.pipeline(), prompts, b.call)
    return {n: x.clone() for n, x in found.items()}


def data(b: Bench, items: int = 8) -> TrainSet:
    """Noise as latents, two items a prompt."""

    def make(_: object) -> TrainSet:
        prompts = list(b.prompts[: items // 2])
        latents = torch.randn(items, *shape(b), generator=torch.Generator().manual_seed(5))
        return trainsets.write(folder(), latents, texts(b, prompts), prompts, [i // 2 for i in range(items)])

    return b._once(("train data", items), make)


def trained(b: Bench, name: str = "fp8", ptq: Checkpoint | None = None, seed: int = SEED, **changes: Any) -> Checkpoint:
    ctx = b.context()
    train.run(ctx, b.call, trainsets.view(**changes), b.pipeline(), data(b), ptq or b.checkpoint(name), seed)
    return Checkpoint(ctx.out, "trained")


def about(made: Checkpoint) -> dict[str, Any]:
    return made.json("training.json")


def weights(made: Checkpoint) -> dict[str, torch.Tensor]:
    return load_file(made.path / checkpoint.WEIGHTS)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# Gradients.


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "fp8", "int8", "int4_awq"])
def test_the_gradient_of_fake_quantization_is_straight_through(name: str) -> None:
    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    layer = model.transformer_blocks[0].attn.to_q
    x = layer.weight.detach().clone().requires_grad_()
    with simulated():
        rounded = layer.weight_quantizer(x)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    rounded.backward(upstream)
    assert not torch.equal(rounded, x)
    # modelopt passes none beyond the calibrated maximum, which the largest weight is.
    passed = torch.isclose(x.grad, upstream)
    assert passed.float().mean() > 0.99
    assert torch.equal(x.grad[~passed], torch.zeros_like(x.grad[~passed]))


def operands() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 8, 16, generator=draw).requires_grad_() for _ in range(3)]


def test_quantized_attention_has_no_gradient_outside_of_the_context() -> None:
    with pytest.raises(NotImplementedError, match="must implement either the backward or vjp"):
        plugin.FP8SDPA.apply(*operands(), None, 0.0, False, None).sum().backward()


@pytest.mark.parametrize("masked", [False, True])
def test_within_the_context_it_has_that_of_plain_attention(masked: bool) -> None:
    mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf) if masked else None
    ours, plain = operands(), operands()
    with differentiable():
        plugin.FP8SDPA.apply(*ours, mask, 0.0, False, 0.3, 1, 1, 1, "Half", True).square().sum().backward()
    out = torch.nn.functional.scaled_dot_product_attention(*plain, attn_mask=mask, scale=0.3)
    out.square().sum().backward()
    assert all(torch.equal(a.grad, p.grad) for a, p in zip(ours, plain, strict=True))


def test_the_library_is_as_it_was_after_the_context_even_after_an_error() -> None:
    own, fast = plugin.FP8SDPA, torch.backends.cuda.cudnn_sdp_enabled()

    def fail() -> None:
        with differentiable():
            assert plugin.FP8SDPA is not own
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert plugin.FP8SDPA is own
    assert torch.backends.cuda.cudnn_sdp_enabled() == fast


# What a family was trained to undo.


@pytest.mark.parametrize("tiny", some(FAMILIES, {*FAMILIES} - {"flux2", "sana"}))
def test_a_backbone_is_called_as_its_pipeline_calls_it(tiny: str) -> None:
    b = bench(family=tiny)
    family = models.family(b.family)
    model = b.call.model_copy(update={"guidance_scale": family.unguided})
    pipe = open_pipeline(b.context(), b.pipeline())
    backbone = getattr(pipe, family.backbones[0])
    seen: list[dict[str, Any]] = []
    backbone.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw), with_kwargs=True)
    positional: list[tuple[Any, ...]] = []
    backbone.register_forward_pre_hook(lambda _m, a: positional.append(a))
    encoded = encode(b.context(), pipe, b.pipeline(), list(b.prompts[:2]), model)
    draw(pipe, encoded, [0, 1], 2, family.arguments(model), decode=False)
    theirs = seen[0] | dict(zip(signature(backbone.forward).parameters, positional[0], strict=False))
    given = {n: x for n, x in encoded.items() if not n.startswith("negative_")}
    vae = config(b.context(), PipelineFile.read(b.pipeline().path), "vae")
    flat = family.flat(theirs)
    noisy, time = flat[family.noisy], flat["timestep"].flatten()[:1].float().expand(2)
    ours = Caller(family, vae, model).inputs(backbone, noisy, time, given)
    for name, value in ours.items():
        wanted = theirs[name]
        if isinstance(value, dict):
            assert value.keys() == wanted.keys()
            assert all(torch.allclose(value[n], wanted[n].to(value[n])) for n in value), name
        elif isinstance(value, torch.Tensor) and wanted is not None:
            assert torch.allclose(value.float(), wanted.float().expand(value.shape)), name
        elif name in family.renamed.values():
            assert all(x.equal(y) for x, y in zip(value, wanted, strict=True)), name
        elif name == "encoder_hidden_states_mask":  # the pipeline leaves out a mask of nothing
            assert value.all()
        elif not isinstance(value, torch.Tensor):
            assert [*map(tuple, value)] == [*map(tuple, wanted)] if name == "img_shapes" else value == wanted, name
    assert {n for n, x in theirs.items() if isinstance(x, torch.Tensor)} <= {*ours}


@pytest.mark.parametrize("tiny", some(FAMILIES, {*FAMILIES} - {"flux2", "sana"}))
def test_packed_latents_unpack_to_what_they_were(tiny: str) -> None:
    b = bench(family=tiny)
    family = models.family(b.family)
    pipe = open_pipeline(b.context(), b.pipeline(), texts=False)
    latents = torch.randn(2, *shape(b))
    given = family.pack(latents)
    if tiny == "flux2_klein":  # whose pipeline gives them as its VAE decodes them, and normalises those that it is given
        mean, variance = (x.reshape(1, -1, 1, 1) for x in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
        spread = (variance + pipe.vae.config.batch_norm_eps).sqrt()
        given = pipe._unpatchify_latents(latents * spread + mean)
        back = (pipe._patchify_latents(given) - mean) / spread
        assert torch.allclose(back, latents, atol=1e-6)
        latents = back
    assert torch.equal(family.unpack(pipe, given, b.call), latents)


def test_a_flow_goes_from_the_latents_to_the_noise_and_is_undone_by_its_target() -> None:
    flow = noise.Flow(FlowMatchEulerDiscreteScheduler(), "uniform", 1000.0)
    latents, drawn = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    levels = torch.tensor([0.0, 0.4, 1.0])
    noisy, target = flow.noised(latents, drawn, levels), flow.target(latents, drawn, levels)
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[2], drawn[2])
    assert torch.allclose(noisy - levels.reshape(3, 1, 1, 1) * target, latents, atol=1e-6)
    assert flow.timesteps(levels).tolist() == [0.0, 400.0, 1000.0]


def test_a_flow_whose_time_runs_to_the_latents_predicts_the_opposite() -> None:
    own = FlowMatchEulerDiscreteScheduler()
    there, back = noise.of(models.family("flux"), own, "family"), noise.of(models.family("z_image"), own, "family")
    latents, drawn, levels = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.4, 1.0])
    assert torch.equal(back.noised(latents, drawn, levels), there.noised(latents, drawn, levels))
    assert torch.equal(back.target(latents, drawn, levels), -there.target(latents, drawn, levels))
    assert torch.equal(back.timesteps(levels), 1 - there.timesteps(levels))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_gives_the_scheduler_the_latents_back(kind: str) -> None:
    own = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False)
    diffusion = noise.of(models.family("sdxl"), own, "family")
    latents, drawn, levels = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([600])
    noisy, target = diffusion.noised(latents, drawn, levels), diffusion.target(latents, drawn, levels)
    own.set_timesteps(1000)
    assert torch.allclose(own.step(target, 600, noisy).pred_original_sample, latents, atol=1e-4)


def quantile(flow: Any, share: float, tokens: int = 256) -> float:
    normal = torch.special.ndtri(torch.tensor([share], dtype=torch.float64))
    return float(flow.levels(normal, tokens))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_shifted_as_the_scheduler_shifts_its_own(share: float, shift: float) -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=shift)
    wanted = shift * share / (1 + (shift - 1) * share)
    assert quantile(noise.Flow(own, "uniform", 1000.0), share) == pytest.approx(wanted, abs=1e-5)
    logit = 1 / (1 + math.exp(-float(torch.special.ndtri(torch.tensor(share)))))
    wanted = shift * logit / (1 + (shift - 1) * logit)
    assert quantile(noise.Flow(own, "logit_normal", 1000.0), share) == pytest.approx(wanted, abs=1e-5)


def test_a_dynamic_shift_follows_the_number_of_tokens() -> None:
    flow = noise.Flow(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "uniform", 1.0)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        assert quantile(flow, 0.5, tokens) == pytest.approx(math.exp(mu) / (math.exp(mu) + 1), abs=1e-5)


def test_wans_scheduler_shifts_by_its_flow_shift() -> None:
    own = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert quantile(noise.of(models.family("wan"), own, "family"), 0.5) == pytest.approx(0.75, abs=1e-5)


def test_two_experts_share_the_levels_of_one_model() -> None:
    flow = noise.Flow(FlowMatchEulerDiscreteScheduler(shift=3.0), "uniform", 1000.0)
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    whole, high, low = (flow.levels(normal, 1, *ends) for ends in ((0.0, 1.0), (0.8, 1.0), (0.0, 0.8)))
    assert high.min() >= 0.8
    assert low.max() <= 0.8
    assert high.mean() == pytest.approx(float(whole[whole >= 0.8].mean()), abs=0.01)
    assert low.mean() == pytest.approx(float(whole[whole < 0.8].mean()), abs=0.01)


def test_a_scheduler_without_a_known_prediction_is_refused() -> None:
    own = DDPMScheduler(prediction_type="epsilon")
    own.register_to_config(prediction_type="something")
    with pytest.raises(PlanError, match="predicts what no loss is known for"):
        noise.of(models.family("sdxl"), own, "family")


# What is drawn in a step.


def examples(held: int = 0, batch: int = 4, unconditional: float = 0.0, seed: int = SEED) -> Examples:
    return Examples(data(bench(family="sd3")), held, batch, unconditional, seed)


def test_a_step_follows_from_the_seed_and_its_number_alone() -> None:
    one, other, third = examples(), examples(), examples(seed=4)
    one.step(0)
    a, b, c = one.step(5), other.step(5), third.step(5)
    assert torch.equal(a.latents, b.latents)
    assert torch.equal(a.noise, b.noise)
    assert torch.equal(a.normal, b.normal)
    assert not torch.equal(a.noise, c.noise)
    assert not torch.equal(a.noise, one.step(6).noise)


def test_every_item_comes_once_before_any_comes_again() -> None:
    drawn = examples(batch=4)
    for turn in range(3):
        rows = torch.cat([drawn.step(2 * turn + i).latents for i in range(2)])
        assert len(rows.flatten(1).unique(dim=0)) == 8


def test_an_item_goes_with_its_own_prompt() -> None:
    drawn, stored = examples(batch=8), data(bench(family="sd3"))
    batch = drawn.step(0)
    latents, encoded = load_file(stored.path / "latents.safetensors")["latents"], load_file(stored.path / "texts.safetensors")
    for row in range(8):
        item = next(i for i in range(8) if torch.equal(latents[i], batch.latents[row]))
        assert torch.equal(batch.texts["prompt_embeds"][row], encoded["prompt_embeds"][item // 2])


def test_items_of_prompts_that_are_validated_on_are_not_trained_on() -> None:
    drawn = examples(held=1)
    assert len(drawn) == 6
    assert drawn.held == [3]


def test_holding_every_prompt_is_refused() -> None:
    with pytest.raises(PlanError, match=r"train\.validation\.size: leaves none of the data's 4 prompts"):
        examples(held=4)


def test_unconditional_rows_get_the_negative_prompt() -> None:
    negative = load_file(data(bench(family="sd3")).path / "texts.safetensors")["negative_prompt_embeds"]
    rows = torch.cat([examples(unconditional=0.5).step(i).texts["prompt_embeds"] for i in range(20)])
    apart = (rows - negative[:1]).abs().flatten(1).amax(1)
    assert not ((apart > 1e-4) & (apart < 1e-2)).any()  # it is the negative prompt, but for last bits, or another
    assert 0.3 < (apart < 1e-4).float().mean() < 0.7


# What comes out.


@pytest.mark.parametrize("tiny", some(FAMILIES, ("sd3",)))
def test_every_family_trains_and_comes_back_bit_for_bit(tiny: str) -> None:
    b = bench(family=tiny)
    made = trained(b, "fp8", steps=2, distillation=trainsets.QAD | {"task": 0.5})
    assert all(math.isfinite(x["loss"]) and x["task"] > 0 and x["output"] > 0 for x in about(made)["losses"])
    model = checkpoint.restore(b.context(), b.pipeline(), made)
    before = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8"))
    stored, own = weights(made), dict(model.named_parameters())
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[n], own[n]) for n in stored)
    theirs = dict(before.named_parameters())
    changed = [n for n in own if not torch.equal(own[n], theirs[n])]
    assert len(changed) > 0.8 * len(own)
    scales = checkpoint.state(model), checkpoint.state(before)
    assert all(torch.equal(scales[0][n], scales[1][n]) for n in scales[1])


FORMATS = ["int8_sq", "nvfp4", "mxfp8", "int4_awq", "w4a8_awq", "nvfp4_svdquant"]


@pytest.mark.parametrize("name", some(FORMATS, ("int8_sq",)))
def test_every_format_trains(name: str) -> None:
    b = bench()
    made = trained(b, name, steps=2)
    model = checkpoint.restore(b.context(), b.pipeline(), made)
    before = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name))
    assert not torch.equal(call(model, b.inputs()), call(before, b.inputs()))


@pytest.mark.matrix
def test_a_graph_has_the_trained_weights() -> None:
    import onnxruntime

    from diffopt.stages.export import GraphView, SizeView, export

    b = bench()
    made, ctx = trained(b, "int8", learning_rate=1e-2), b.context()
    size = SizeView(**{n: getattr(b.call, n) for n in SizeView.model_fields})
    export.run(ctx, size, GraphView(opset=20, batch_size=1, max_batch_size=None, high_precision_dtype=None), b.pipeline(), made)
    model = checkpoint.restore(b.context(), b.pipeline(), made)
    wanted, before = (
        call(model, b.inputs()),
        call(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8")), b.inputs()),
    )
    session = onnxruntime.InferenceSession(ctx.out / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {n.name: b.inputs()[n.name].numpy() for n in session.get_inputs()}
    found = torch.from_numpy(session.run(None, inputs)[0])
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert (found - before).norm() > 0.1 * wanted.norm()


@pytest.mark.matrix
def test_plain_modelopt_restores_a_trained_checkpoint(tmp_path: Path) -> None:
    import modelopt.torch.opt as mto

    from diffopt.cli.modelopt_file import FILE, portable

    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), trained(b, "nvfp4"))
    portable(model, tmp_path / FILE)
    assert torch.equal(call(mto.restore(b.backbone(), tmp_path / FILE), b.inputs()), call(model, b.inputs()))


def test_the_loss_falls() -> None:
    b = bench(family="flux")
    lots = about(trained(b, "nvfp4", steps=20, learning_rate=1e-3, distillation=trainsets.QAD))
    each = [x["loss"] for x in lots["losses"]]
    assert sum(each[-5:]) < 0.5 * sum(each[:5])


@pytest.mark.matrix
def test_the_same_training_twice_is_the_same() -> None:
    b = bench()
    first = trained(b, steps=2)
    assert same(first, trained(b, steps=2))
    assert not same(first, trained(b, steps=2, seed=SEED + 1))


@pytest.mark.matrix
def test_gradients_of_small_batches_add_up_to_those_of_the_whole() -> None:
    b = bench()
    whole, parts = trained(b, optimizer="sgd"), trained(b, optimizer="sgd", micro_batch=1)
    ours, theirs, start = weights(parts), weights(whole), dict(b.backbone().named_parameters())
    moved = torch.cat([(theirs[n] - start[n]).flatten() for n in theirs]).norm()
    apart = torch.cat([(theirs[n] - ours[n]).flatten() for n in theirs]).norm()
    assert moved > 0
    assert apart < 0.01 * moved


@pytest.mark.matrix
def test_gradient_checkpointing_changes_nothing() -> None:
    b = bench()
    assert same(trained(b), trained(b, gradient_checkpointing=True))


def test_a_model_of_16_bits_comes_back_in_its_own_precision() -> None:
    b = bench("bfloat16")
    made = trained(b, "fp8", precision="bfloat16")
    assert {x.dtype for x in weights(made).values()} == {torch.bfloat16}
    model = checkpoint.restore(b.context(), b.pipeline(), made)
    assert torch.isfinite(call(model, b.inputs())).all()


def test_the_moving_average_is_what_is_kept() -> None:
    b = bench()
    last, mean = weights(trained(b)), weights(trained(b, ema=0.9))
    start = dict(b.backbone().named_parameters())
    name = "transformer_blocks.0.attn.to_q.weight"
    assert 0 < (mean[name] - start[name]).norm() < (last[name] - start[name]).norm()


LORA = {"rank": 4, "alpha": 8, "targets": ["transformer_blocks.*"]}


@pytest.mark.parametrize("name", some(["nvfp4", "w4a8_awq", "nvfp4_svdquant"], ("nvfp4",)))
def test_adapters_change_their_layers_alone_and_by_their_rank(name: str) -> None:
    b = bench()
    made = weights(trained(b, name, lora=LORA, learning_rate=1e-2))
    before = dict(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)).named_parameters())
    assert all(n.startswith("transformer_blocks.") and n.endswith(".weight") for n in made)
    assert len(made) == 14
    for n, x in made.items():
        singular = torch.linalg.svdvals((x - before[n]).double())
        assert singular[3] > 0
        assert singular[4] < 1e-5 * max(1.0, float(before[n].norm()))


def test_adapters_added_to_the_weights_compute_what_they_did_beside_them() -> None:
    from diffopt.groups.train import Lora
    from diffopt.training.adapters import UP, Adapters

    b = bench()
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("nvfp4"))
    adapters = Adapters(model, checkpoint.quantized_layers(model), Lora(**LORA), 0)
    before = call(model, b.inputs())
    for layer in adapters.layers.values():
        torch.nn.init.normal_(getattr(layer, UP), std=0.1)
    beside = call(model, b.inputs())
    dict(adapters.merge())
    assert not torch.equal(beside, before)
    assert torch.equal(call(model, b.inputs()), beside)
    assert not [n for n, _ in model.named_parameters() if "adapter" in n]


def test_a_target_that_names_no_layer_is_refused() -> None:
    with pytest.raises(PlanError, match=r"train\.lora\.targets: matches no quantized linear layer \(got 'blocks\.\*'\)"):
        trained(bench(), lora=LORA | {"targets": ["blocks.*"]})


# The teacher.


def test_the_teacher_is_told_to_be_unchanged() -> None:
    made = [about(trained(bench(), steps=n, distillation=trainsets.QAD)) for n in (1, 2)]
    assert made[0]["method"] == "qad"
    assert made[0]["teacher"] == made[1]["teacher"]
    assert about(trained(bench()))["teacher"] is None


def test_a_teacher_that_changed_is_refused() -> None:
    from diffopt.groups.train import Teacher as Keeping
    from diffopt.training.teacher import Teacher

    model = bench().backbone()
    teacher = Teacher({"transformer": model}, Keeping(offload=False, storage=None), "cpu")
    assert not any(p.requires_grad for p in model.parameters())
    teacher.check()
    with torch.no_grad():
        model.proj_out.weight[0, 0] += 1e-3
    with pytest.raises(GateError, match="teacher's weights changed"):
        teacher.check()


def test_a_teacher_stored_in_8_bits_takes_less_and_teaches_nearly_the_same() -> None:
    from diffopt.groups.train import Teacher as Keeping
    from diffopt.pipeline.placement import weight
    from diffopt.training.teacher import Teacher

    b = bench()
    plain, model = b.backbone(), b.backbone()
    teacher = Teacher({"transformer": model}, Keeping(offload=False, storage="float8_e4m3fn"), "cpu")
    wanted, given = call(plain, b.inputs()), teacher("transformer", b.inputs())
    assert weight([model]) < 0.5 * weight([plain])
    assert 0 < (given - wanted).norm() < 0.2 * wanted.norm()
    teacher.check()


class First(torch.nn.modules.loss._Loss):
    """The mean squared error of what two backbones give first: modelopt's own losses fail on tuples."""

    def forward(self, ours: Any, theirs: Any) -> torch.Tensor:
        return torch.nn.functional.mse_loss(ours[0], theirs[0])


def test_the_loss_to_the_teacher_is_that_of_modelopts_distillation() -> None:
    import modelopt.torch.distill as mtd

    from diffopt.groups.train import Distillation
    from diffopt.training.loss import Loss
    from diffopt.training.teacher import Teacher

    b = bench()
    family, how, device = models.family("flux"), Distillation(**trainsets.QAD), torch.device("cpu")
    batch = Examples(data(b), 0, 4, 0.0, SEED).step(0)
    caller = Caller(family, b.vae(), b.call)
    flow = noise.of(family, FlowMatchEulerDiscreteScheduler(), "family")
    student = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8"))
    teacher = Teacher({"transformer": b.backbone()}, how.teacher, "cpu")
    with torch.no_grad():
        ours = Loss(family, flow, caller, teacher, how)("transformer", student, student, batch, (0.0, 1.0), device)
        levels = flow.levels(batch.normal, 64)
        noisy = family.pack(flow.noised(batch.latents, batch.noise, levels))
        inputs = caller.inputs(student, noisy, flow.timesteps(levels), batch.texts)
        both = mtd.convert(student, mode=[("kd_loss", {"teacher_model": b.backbone(), "criterion": First()})])
        both.train()
        both(**inputs, return_dict=False)
        theirs = both.compute_kd_loss()
    assert ours["loss"] > 0
    assert torch.allclose(ours["loss"], theirs, rtol=1e-5)


def test_blocks_are_compared_where_they_are_named() -> None:
    how = trainsets.QAD | {"hidden": 2.0, "blocks": ["single_transformer_blocks.*"]}
    losses = about(trained(bench(), steps=1, distillation=how))["losses"]
    assert losses[0]["hidden"] > 0
    assert losses[0]["loss"] == pytest.approx(losses[0]["output"] + losses[0]["hidden"], rel=1e-6)
    assert "task" not in losses[0]


# Validation.


VALIDATION = {"every": 2, "size": 2, "steps": 2, "metric": "psnr", "patience": None}


def test_validation_draws_pictures_beside_the_full_precision_models() -> None:
    from PIL import Image

    b = bench()
    made = trained(b, steps=3, validation=VALIDATION)
    assert [v["step"] for v in about(made)["validations"]] == [0, 2, 3]
    assert about(made)["items"] == 4
    sheet = Image.open(made.path / "validation" / "000002.png")
    assert sheet.size == (2 * b.call.width, 2 * b.call.height)


def test_validation_begins_with_what_training_starts_from() -> None:
    b = bench()
    told = about(trained(b, "nvfp4", steps=1, learning_rate=1e-12, validation=VALIDATION))
    start, end = (v["score"] for v in told["validations"])
    assert 5 < start < 100
    assert end == pytest.approx(start, abs=0.1)


def test_inputs_may_be_exact_in_training_and_are_rounded_in_validation() -> None:
    pictures = {"every": 1, "size": 1, "steps": 2, "metric": "psnr", "patience": None}
    how: dict[str, Any] = {"steps": 1, "distillation": trainsets.QAD, "validation": pictures}
    b = bench(family="flux")
    rounded, exact = (about(trained(b, "nvfp4", quantize_inputs=q, **how)) for q in (True, False))
    assert 0 < exact["losses"][0]["output"] < rounded["losses"][0]["output"]
    assert exact["validations"][0] == rounded["validations"][0]


def test_all_but_weights_are_exact_within_the_context_and_as_they_were_after_it() -> None:
    b = bench(family="flux")
    model = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8", mha=True))

    def rounding() -> set[str]:
        return {n for n, m in model.named_modules() if isinstance(m, TensorQuantizer) and m.is_enabled}

    before = rounding()
    with exact_inputs(model):
        within = rounding()
    assert within == {n for n in before if n.endswith("weight_quantizer")} < before == rounding()


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best() -> None:
    b = bench()
    how = VALIDATION | {"every": 1, "patience": 2}
    made = trained(b, steps=12, learning_rate=0.3, clip=None, validation=how)
    told = about(made)
    best = told["best"]["step"]
    assert told["steps"] == best + 2 < told["asked"]
    assert told["best"]["score"] == max(v["score"] for v in told["validations"])
    if best == 0:  # nothing was better than the calibrated model, which comes back
        before = dict(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8")).named_parameters())
        assert all(torch.equal(x, before[n]) for n, x in weights(made).items())


@pytest.mark.matrix
def test_without_patience_the_last_weights_are_kept() -> None:
    b = bench()
    assert same(trained(b), trained(b, validation=VALIDATION | {"size": 1})) is False  # one prompt less is trained on
    told = about(trained(b, steps=3, learning_rate=0.3, clip=None, validation=VALIDATION | {"every": 1}))
    assert told["steps"] == 3


# Bad input.


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    b, ctx = bench(), bench().context()
    view = trainsets.view(steps=50, learning_rate=0.9, clip=None, optimizer="sgd", save_every=1)
    broken = data(b)
    latents = load_file(broken.path / "latents.safetensors")["latents"] * 1e18
    huge = trainsets.write(folder(), latents, load_file(broken.path / "texts.safetensors"), *_of(broken))
    with pytest.raises(
        GateError, match=r"train: the loss or its gradient is inf or NaN in step \d+ .*lower train.learning_rate"
    ):
        train.run(ctx, b.call, view, b.pipeline(), huge, b.checkpoint("fp8"), SEED)


def _of(stored: TrainSet) -> tuple[list[str], list[int]]:
    content = stored.json("set.json")
    return content["prompts"], content["text"]


def test_latents_of_another_size_are_refused() -> None:
    b = bench()
    small = trainsets.write(folder(), torch.randn(4, 4, 8, 8), texts(b, ["a", "b"]), ["a", "b"], [0, 0, 1, 1])
    with pytest.raises(PlanError, match=r"train\.data: latents are not of model\.height=32"):
        train.run(b.context(), b.call, trainsets.view(), b.pipeline(), small, b.checkpoint("fp8"), SEED)


def test_a_trained_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    from diffopt.errors import StoreError

    made = trained(bench())
    stored = weights(made)
    from safetensors.torch import save_file

    copy = Checkpoint(tmp_path, "copy")
    for path in made.path.glob("*.*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "proj_out.weight"
    save_file(stored | {name: stored[name][:1].clone()}, tmp_path / checkpoint.WEIGHTS)
    b = bench()
    with pytest.raises(StoreError, match="its weights are not of this model"):
        checkpoint.restore(b.context(), b.pipeline(), copy)
