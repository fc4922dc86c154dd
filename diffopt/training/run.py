"""A training from its artifacts to its own: `checkpoint.json` and what it holds, `weights.safetensors`, `training.json`.

`training.json`, schema diffopt.training/1:
    method                      qat or qad
    steps, asked                optimizer steps that were made, and that were asked for: fewer where it stopped early
    items, skipped, prompts     of the data, without what is held for validation
    trained                     parameters that were trained
    losses[].step, loss, ...    of each step, its parts weighted, and the learning rate
    validations[].step, score   of the metric `metric`; `best` is the best of them
    teacher                     sha256 of its weights, the same before and after; null without
And `validation/STEP.png`, the full-precision model's pictures above its own, and what trackers wrote in `logs`.
"""

import json
import shutil
from typing import Any

import torch

from diffopt import checkpoint as checkpoints
from diffopt.artifact import Checkpoint, Pipeline, TrainSet
from diffopt.block_arithmetic import simulated
from diffopt.groups import CallView, TrainView
from diffopt.pipeline.open import config, family_of, open_backbone
from diffopt.pipeline.scheduler import scheduler
from diffopt.stage import Context
from diffopt.training import noise
from diffopt.training.adapters import Adapters
from diffopt.training.attention import differentiable
from diffopt.training.call import Caller
from diffopt.training.examples import Examples
from diffopt.training.loop import Log, Subject, Training
from diffopt.training.loss import Loss
from diffopt.training.session import session
from diffopt.training.teacher import Teacher
from diffopt.training.validation import Validator

TRAINING = "training.json"


def run(
    ctx: Context, model: CallView, train: TrainView, pipeline: Pipeline, ptq: Checkpoint, data: TrainSet, seed: int
) -> None:
    """Write the trained checkpoint to `ctx.out`; goes on from `ctx.kept` where a run was killed."""
    kept = ctx.kept or ctx.out.with_name(f"{ctx.out.name}-kept")
    pinned, family = pipeline.json("pipeline.json"), family_of(pipeline)
    own = scheduler(ctx.locate(pinned["source"]), pinned["scheduler"])
    held = train.validation.size if train.validation else 0
    examples = Examples(data, held, train.batch_size, train.unconditional if family.guided(model) else 0.0, seed)
    with simulated(), differentiable():
        how, validator = train.distillation, None
        if train.validation:
            validator = Validator(ctx, pipeline, train.validation, model, examples, seed)
        whole = checkpoints.restore(ctx, pipeline, ptq)
        subject = Subject(whole, _named(pinned, whole), _levels(ctx, pinned))
        teacher = Teacher(_named(pinned, open_backbone(ctx, pipeline)), how.teacher, ctx.device) if how else None
        loss = Loss(
            family, noise.of(family, own, train.timesteps), Caller(family, config(ctx, pinned, "vae"), model), teacher, how
        )
        before = _cast(whole, train.weights)
        layers = ptq.json(checkpoints.HEAD)["layers"]
        whole.requires_grad_(True)
        adapters = Adapters(whole, layers, train.lora, seed) if train.lora else None
        count = sum(p.numel() for p in subject.trained().values())
        with session(train, ctx.device, kept / "logs") as accelerator:
            training = Training(ctx, train, accelerator, subject, examples, loss, validator, kept)
            log = training()
            names = [*training.parameters]
        names = adapters.merge() if adapters else names
        for name, x in [*whole.named_parameters(), *whole.named_buffers()]:
            x.data = x.data.to(before[name])
    about = {
        "schema": "diffopt.training/1",
        "method": "qad" if how else "qat",
        "steps": log.step,
        "asked": train.steps,
        "items": len(examples),
        "skipped": data.json("set.json").get("skipped", 0),
        "prompts": len(examples.prompts) - held,
        "trained": count,
        "metric": train.validation.metric if train.validation else None,
        **_told(log),
        "teacher": teacher.check() if teacher else None,
    }
    checkpoints.save_trained(ctx.out, ptq, {n: whole.get_parameter(n) for n in names})
    (ctx.out / TRAINING).write_text(json.dumps(about, indent=1))
    for folder in ("validation", "logs"):
        if any((kept / folder).rglob("*.*")):
            shutil.copytree(kept / folder, ctx.out / folder)


def _told(log: Log) -> dict[str, Any]:
    return {"losses": log.losses, "validations": log.validations, "best": log.best}


def _named(pinned: dict[str, Any], whole: torch.nn.Module) -> dict[str, Any]:
    names = pinned["backbones"]
    return {n: whole[n] for n in names} if isinstance(whole, torch.nn.ModuleDict) else {names[0]: whole}


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
