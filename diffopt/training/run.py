"""A training from its artifacts to its own: `checkpoint.json` and what it holds, `weights.safetensors`, `training.json`.

`training.json`, schema diffopt.training/1:
    method                      qat or qad
    steps, asked                optimizer steps that were made, and that were asked for: fewer where it stopped early
    items, skipped, prompts     of the data, without what is held for validation
    trained                     parameters that were trained
    losses[].step, loss, ...    of each step, its parts weighted, and the learning rate
    validations[].step, score   of the metric `metric`; `best` is the best of them
    teacher                     sha256 of its weights, the same before and after; null without
    parallel                    single, ddp or fsdp
    seconds                     of each step
    peak_bytes                  of each process: ram, and gpu where it has one
And `validation/STEP.png`, the full-precision model's pictures above its own, and what trackers wrote in `logs`.
"""

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object

from diffopt.artifact import Checkpoint, Pipeline, TrainSet
from diffopt.groups import CallView, TrainView
from diffopt.machine.environment import gpus
from diffopt.machine.memory import peak, release
from diffopt.pipeline.open import by_name, config, family_of, open_backbone
from diffopt.pipeline.scheduler import scheduler
from diffopt.quantization import checkpoint as checkpoints
from diffopt.quantization.block_fake_quant import simulated
from diffopt.stage import Context
from diffopt.training import noise
from diffopt.training.adapters import Adapters
from diffopt.training.attention import differentiable
from diffopt.training.call import Caller
from diffopt.training.examples import Examples
from diffopt.training.loop import Subject, Training
from diffopt.training.loss import Loss
from diffopt.training.machines import number
from diffopt.training.processes import arranged
from diffopt.training.session import session
from diffopt.training.shards import sharding
from diffopt.training.teacher import Teacher
from diffopt.training.validation import Validator

TRAINING = "training.json"


def run(
    ctx: Context, model: CallView, train: TrainView, pipeline: Pipeline, ptq: Checkpoint, data: TrainSet, seed: int
) -> None:
    """Write the trained checkpoint to `ctx.out`, in this process or in several; goes on from `ctx.kept` where a run was
    killed."""
    processes, _ = arranged(train, pipeline, gpus() if ctx.device == "cuda" else ())
    ctx = replace(ctx, kept=ctx.kept or ctx.out.with_name(f"{ctx.out.name}-kept"))
    given = model, train, pipeline, ptq, data, seed
    if processes.how == "single":
        work(ctx, "single", *given)
        return
    from diffopt.training.launch import launch

    launch(ctx, processes, number(train), train.steps, work, processes.how, *given)


def work(
    ctx: Context,
    how: str,
    model: CallView,
    train: TrainView,
    pipeline: Pipeline,
    ptq: Checkpoint,
    data: TrainSet,
    seed: int,
) -> None:
    """What each process does, `how` they share it; the first writes to `ctx.out`."""
    assert ctx.kept is not None
    pinned, family, kept = pipeline.json("pipeline.json"), family_of(pipeline), ctx.kept
    own = scheduler(ctx.locate(pinned["source"]), pinned["scheduler"])
    held, way = train.validation.size if train.validation else 0, train.distillation
    examples = Examples(data, held, train.batch_size, train.unconditional if family.guided(model) else 0.0, seed)
    in_shards = how == "fsdp"
    with ExitStack() as stack:
        for context in (simulated(), differentiable()):
            stack.enter_context(context)
        validator = Validator(ctx, pipeline, train.validation, model, examples, seed) if train.validation else None
        # Before the processes know of each other: modelopt would have them agree on every scale, which are the same.
        whole = checkpoints.restore(ctx, pipeline, ptq)
        if in_shards:  # scales are derived where they were made; a GPU then gets its part of each block from the CPU
            whole.to("cpu")
            release()
        before = _cast(whole, train.weights)
        whole.requires_grad_(True)
        layers = ptq.json(checkpoints.HEAD)["layers"]
        adapters = Adapters(whole, layers, train.lora, seed) if train.lora else None
        accelerator = stack.enter_context(session(train, ctx.device, kept / "logs", in_shards))
        shards = stack.enter_context(sharding(accelerator)) if in_shards else None
        whole_of = shards.whole if shards else _same
        subject = Subject(whole, by_name(pinned, whole), _levels(ctx, pinned))
        for backbone in subject.backbones.values() if shards else ():
            assert shards is not None
            shards.cut(backbone, family)
        release()
        teacher = None
        if way:
            plain = by_name(pinned, open_backbone(ctx, pipeline))
            teacher = Teacher(plain, way.teacher, ctx.device, shards, family)
        loss = Loss(
            family, noise.of(family, own, train.timesteps), Caller(family, config(ctx, pinned, "vae"), model), teacher, way
        )
        training = Training(ctx, train, accelerator, subject, examples, loss, validator, kept, shards)
        count, trained = sum(p.numel() for p in training.parameters.values()), training()
        kept_weights = adapters.merge(whole_of) if adapters else ((n, whole_of(p)) for n, p in training.parameters.items())
        # Of a weight that was put together from shards only what is written is left in memory.
        weights = {n: x.detach().to(before[n]).cpu() for n, x in kept_weights if accelerator.is_main_process}
        taught = teacher.check() if teacher else None
        peaks = gather_object([peak()])
        first = accelerator.is_main_process
    if not first:
        return
    about = {
        "schema": "diffopt.training/1",
        "method": "qad" if way else "qat",
        "steps": trained.step,
        "asked": train.steps,
        "items": len(examples),
        "skipped": data.json("set.json").get("skipped", 0),
        "prompts": len(examples.prompts) - held,
        "trained": count,
        "metric": train.validation.metric if train.validation else None,
        "losses": trained.losses,
        "validations": trained.validations,
        "best": trained.best,
        "teacher": taught,
        "parallel": how,
        "seconds": trained.seconds,
        "peak_bytes": peaks,
    }
    checkpoints.save_trained(ctx.out, ptq, weights)
    (ctx.out / TRAINING).write_text(json.dumps(about, indent=1))
    for folder in ("validation", "logs"):
        if any((kept / folder).rglob("*.*")):
            shutil.copytree(kept / folder, ctx.out / folder)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _levels(ctx: Context, pinned: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The noise levels of each backbone: of two the first is called from `boundary_ratio` on, as Wan 2.2's are."""
    names = pinned["backbones"]
    if len(names) == 1:
        return {names[0]: (0.0, 1.0)}
    boundary = json.loads((ctx.locate(pinned["source"]) / "model_index.json").read_text())["boundary_ratio"]
    return {names[0]: (boundary, 1.0), names[1]: (0.0, boundary)}


def _cast(whole: torch.nn.Module, dtype: str | None) -> dict[str, torch.dtype]:
    """Put everything into the precision that it is trained in; what it was, by name."""
    before = {n: x.dtype for n, x in [*whole.named_parameters(), *whole.named_buffers()]}
    if dtype:
        for _, x in [*whole.named_parameters(), *whole.named_buffers()]:
            if x.is_floating_point():
                x.data = x.data.to(getattr(torch, dtype))
    return before
