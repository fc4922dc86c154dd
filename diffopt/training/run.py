"""A training from its artifacts to its own: `checkpoint.json` and what it holds, `weights.safetensors`, `training.json`.

And `validation/STEP.png`, the full-precision model's pictures above its own, and what trackers wrote in `logs`.
"""

import shutil
from contextlib import ExitStack
from dataclasses import replace

from accelerate.utils import gather_object

from diffopt.files.layers import read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.files.training import TrainingFile
from diffopt.files.trainset import TrainSetFile
from diffopt.machine.environment import gpus
from diffopt.machine.memory import peak, release
from diffopt.pipeline.open import by_name, config, family_of, open_backbone
from diffopt.pipeline.scheduler import scheduler
from diffopt.quantization import checkpoint as checkpoints
from diffopt.quantization.block_fake_quant import simulated
from diffopt.stage import Context
from diffopt.training import noise
from diffopt.training.attention import differentiable
from diffopt.training.call import Caller
from diffopt.training.examples import Examples
from diffopt.training.loop import Training
from diffopt.training.loss import Loss
from diffopt.training.machines import number
from diffopt.training.processes import arranged
from diffopt.training.session import session
from diffopt.training.shards import Shards, sharding
from diffopt.training.subject import Subject
from diffopt.training.task import Task
from diffopt.training.teacher import Teacher
from diffopt.training.trajectory import Drawing
from diffopt.training.validation import Validator


def run(ctx: Context, task: Task) -> None:
    """Write the trained checkpoint to `ctx.out`, in this process or in several; goes on from `ctx.kept` where a run was
    killed."""
    pinned, layers = PipelineFile.read(task.pipeline.path), read_layers(task.pipeline.path)
    processes, _ = arranged(task.train, pinned, layers, gpus() if ctx.device == "cuda" else ())
    ctx = replace(ctx, kept=ctx.kept or ctx.out.with_name(f"{ctx.out.name}-kept"))
    if processes.how == "single":
        work(ctx, "single", task)
        return
    from diffopt.training.launch import launch

    launch(ctx, processes, number(task.train), task.train.steps, work, processes.how, task)


def work(ctx: Context, how: str, task: Task) -> None:
    """What each process does, `how` they share it; the first writes to `ctx.out`."""
    assert ctx.kept is not None
    train, kept, in_shards = task.train, ctx.kept, how == "fsdp"
    examples = _examples(task)
    with ExitStack() as stack:
        for context in (simulated(), differentiable()):
            stack.enter_context(context)
        validator = Validator(ctx, task, train.validation, examples) if train.validation else None
        subject = Subject(ctx, task, in_shards)
        accelerator = stack.enter_context(session(train, ctx.device, kept / "logs", in_shards))
        shards = stack.enter_context(sharding(accelerator)) if in_shards else None
        if shards:
            subject.cut(shards)
        release()
        teacher = _teacher(ctx, task, shards)
        losses = _losses(ctx, task, teacher)
        training = Training(ctx, train, accelerator, subject, examples, *losses, validator, shards)
        count, log = sum(p.numel() for p in subject.parameters.values()), training()
        first = accelerator.is_main_process
        scales = subject.learned(shards)
        weights = subject.weights(shards, keep=first, scales=scales)
        taught = teacher.check() if teacher else None
        peaks = gather_object([peak()])
    if not first:
        return
    about = TrainingFile(
        method="qad" if train.distillation else "qat",
        steps=log.step,
        asked=train.steps,
        items=len(examples),
        skipped=TrainSetFile.read(task.data.path).skipped,
        prompts=len(examples.prompts) - task.held,
        trained=count,
        scales=train.scales if subject.scales else "fixed",
        metric=train.validation.metric if train.validation else None,
        losses=log.losses,
        validations=tuple(log.validations),
        best=log.best,
        teacher=taught,
        parallel=how,
        seconds=log.seconds,
        peak_bytes=peaks,
    )
    checkpoints.save_trained(ctx.out, task.checkpoint, weights, scales)
    about.write(ctx.out)
    for folder in ("validation", "logs"):
        if any((kept / folder).rglob("*.*")):
            shutil.copytree(kept / folder, ctx.out / folder)


def _examples(task: Task) -> Examples:
    train = task.train
    unconditional = train.unconditional if family_of(task.pipeline).guided(task.model) else 0.0
    return Examples(task.data, task.held, train.batch_size, unconditional, task.seed)


def _teacher(ctx: Context, task: Task, shards: Shards | None) -> Teacher | None:
    """The model in full precision, where it is learned from."""
    way = task.train.distillation
    if way is None:
        return None
    plain = by_name(PipelineFile.read(task.pipeline.path), open_backbone(ctx, task.pipeline))
    return Teacher(plain, way.teacher, ctx.device, shards, family_of(task.pipeline))


def _losses(ctx: Context, task: Task, teacher: Teacher | None) -> tuple[Loss, Drawing | None]:
    """That of single calls, and that of trajectories where there are some."""
    pinned, family, way = PipelineFile.read(task.pipeline.path), family_of(task.pipeline), task.train.distillation
    own = noise.of(family, scheduler(ctx.locate(pinned.source), pinned.scheduler), task.train.timesteps)
    caller = Caller(family, config(ctx, pinned, "vae"), task.model)
    single = Loss(family, own, caller, teacher, way)
    if not (teacher and way and way.trajectory):
        return single, None
    return single, Drawing(family, own, caller, teacher, way.trajectory, sparing=task.train.gradient_checkpointing)
