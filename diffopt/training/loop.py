"""The loop over optimizer steps."""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel

from diffopt.data.picture import pixels
from diffopt.errors import GateError
from diffopt.files.json_file import typed
from diffopt.files.training import Validation
from diffopt.groups.train import TrainView
from diffopt.stage import Context
from diffopt.training.examples import Examples
from diffopt.training.inputs import exact_inputs
from diffopt.training.loss import Loss
from diffopt.training.optimizer import optimizer, schedule
from diffopt.training.resume import Keeper
from diffopt.training.shards import LocalShards, Shards
from diffopt.training.subject import Subject
from diffopt.training.trajectory import Drawing
from diffopt.training.validation import Validator


@dataclass
class Log:
    """What there is to say of a training so far; it goes with each training checkpoint."""

    step: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best: Validation | None = None
    stale: int = 0
    """Validations since the best."""
    seconds: list[float] = field(default_factory=list)
    """Of each step."""


class Cast:
    """A backbone that is called under autocast, as accelerate makes it where there are no shards."""

    def __init__(self, backbone: Any, precision: str):
        self.backbone, self.dtype = backbone, getattr(torch, precision)

    def __call__(self, **inputs: Any) -> Any:
        device = next(iter(x.device.type for x in inputs.values() if isinstance(x, torch.Tensor)))
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.backbone(**inputs)


class Training:
    def __init__(
        self,
        ctx: Context,
        train: TrainView,
        accelerator: Accelerator,
        subject: Subject,
        examples: Examples,
        loss: Loss,
        drawing: Drawing | None,
        validator: Validator | None,
        shards: Shards | None = None,
    ):
        """With `shards` the subject is cut already. `ctx.kept` is where the training checkpoints are. `drawing` is the loss of
        those steps that learn from trajectories."""
        assert ctx.kept is not None
        self.ctx, self.train, self.accelerator, self.subject = ctx, train, accelerator, subject
        self.examples, self.loss, self.drawing, self.validator, self.shards = examples, loss, drawing, validator, shards
        self.sheets = ctx.kept / "validation"
        self.parameters = subject.parameters
        if train.gradient_checkpointing:
            for backbone in subject.backbones.values():
                backbone.enable_gradient_checkpointing()
        self.parts = LocalShards(self.parameters.values()) if shards else None
        self.own = dict(zip(self.parameters, self.parts.parts if self.parts else self.parameters.values(), strict=True))
        """What this process has of the parameters."""
        # Of a short weight the last processes have nothing.
        bare = optimizer(train, {n: p for n, p in self.own.items() if p.numel()}, sparing=shards is not None)
        self.schedule = schedule(train, bare)
        self.students: dict[str, Any] = {}
        if shards:
            self.students, self.optimizer = {n: Cast(x, train.precision) for n, x in subject.backbones.items()}, bare
        else:
            *students, self.optimizer = accelerator.prepare(*subject.backbones.values(), bare)
            self.students = dict(zip(subject.backbones, students, strict=True))
        self.average = EMAModel(self.own.values(), decay=train.ema, foreach=True) if train.ema else None
        states = {"optimizer": self.optimizer, "schedule": self.schedule, "average": self.average, "scaler": accelerator.scaler}
        states = {name: x for name, x in states.items() if x is not None}
        self.keeper = Keeper(ctx.kept, accelerator, self.own, states, in_shards=shards is not None)
        self.log = typed(Log, self.keeper.load() or {})
        if self.average:
            self.average.to(accelerator.device)  # what it was put back to is on the CPU

    def __call__(self) -> Log:
        """Train to the end and leave what is to be kept in the subject's weights.

        Raises GateError for a loss or a gradient that is not finite: the training checkpoint before it is kept.
        """
        train = self.train
        with self.ctx.progress(train.steps) as tick:
            for _ in range(self.log.step):
                tick()
            if self.validator and not self.log.step:
                self._validate()  # what it starts from, which is the best until another is better
            while self.log.step < train.steps and not self.stopped:
                started = time.perf_counter()
                rounds = train.quantize_inputs or self.log.step >= train.singly
                with nullcontext() if rounds else exact_inputs(self.subject.whole):
                    self._step(self.log.step)
                self.log.seconds.append(round(time.perf_counter() - started, 4))
                self.log.step += 1
                done = self.log.step == train.steps
                if self.validator and train.validation and (self.log.step % train.validation.every == 0 or done):
                    self._validate()
                if self.log.step % train.save_every == 0 and not done and not self.stopped:
                    self.keeper.save(self.log.step, asdict(self.log))
                tick()
        self._settle()
        return self.log

    @property
    def stopped(self) -> bool:
        """Whether the last validations were no better than one before them."""
        how = self.train.validation
        return bool(how and how.patience and self.log.stale >= how.patience)

    def _step(self, number: int) -> None:
        accelerator, batch = self.accelerator, self.examples.step(number)
        loss = self.drawing if self.drawing and number >= self.train.singly else self.loss
        if loss is self.drawing and number == self.train.singly:  # moments of the other loss, which is many times this one
            self.optimizer.state.clear()
        names = [*self.students]
        name = names[number % len(names)]  # in turn, where a pipeline has several
        student, plain = self.students[name], self.subject.backbones[name]
        mine = len(batch.latents) // accelerator.num_processes
        first, micro = mine * accelerator.process_index, min(mine, self.train.micro_batch or mine)
        sums: dict[str, float] = {}
        for start in range(0, mine, micro):
            rows = slice(first + start, first + min(start + micro, mine))
            share = (min(start + micro, mine) - start) / mine
            last = start + micro >= mine
            # Gradients of shards are summed over the processes each time: put off, each would keep them whole.
            with nullcontext() if last or self.shards else accelerator.no_sync(student):
                parts = loss(name, student, plain, batch.part(rows), self.subject.levels[name], accelerator.device)
                accelerator.backward(parts["loss"] * share)
            for part, value in parts.items():
                sums[part] = sums.get(part, 0.0) + float(value.detach()) * share
        sums = self._mean(sums)
        if self.parts:
            self.parts.take()
            norm = self.parts.clip(self.train.clip or math.inf)
        else:
            norm = accelerator.clip_grad_norm_(self.parameters.values(), self.train.clip or math.inf)
        # With a scaler an infinite gradient is an overflow of 16 bits: it skips the step and scales down.
        finite = math.isfinite(sums["loss"]) and (accelerator.scaler is not None or bool(torch.isfinite(norm)))
        if not finite:
            last_good = self.keeper.last
            kept = (
                f"the training checkpoint of step {last_good.name.partition('-')[2]} is kept" if last_good else "none was kept"
            )
            raise GateError(
                f"train: the loss or its gradient is inf or NaN in step {number + 1} (got a loss of {sums['loss']:.4g}); lower "
                f"train.learning_rate, or set train.precision=float32; {kept}{f' in {last_good}' if last_good else ''}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.parts:
            self.parts.drop()
        if self.average and not accelerator.optimizer_step_was_skipped:
            self.average.step(self.own.values())
        sums["learning_rate"] = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.log.losses.append({"step": number + 1, **sums})
        accelerator.log(sums, step=number + 1)

    def _mean(self, sums: dict[str, float]) -> dict[str, float]:
        """Over the processes."""
        if self.accelerator.num_processes == 1:
            return sums
        values = torch.tensor([*sums.values()], dtype=torch.float64, device=self.accelerator.device)
        found = self.accelerator.reduce(values, "mean")
        return dict(zip(sums, found.tolist(), strict=True))

    def _validate(self) -> None:
        """Every process draws all pictures: of a model in shards none can draw without the others, and with copies the
        others would wait. The first one's score counts."""
        step, validator = self.log.step, self.validator
        assert validator is not None
        if self.average:
            self.average.store(self.own.values())
            self.average.copy_to(self.own.values())
        sheet = self.sheets / f"{step:06}.png"
        if self.shards:
            self.shards.forget()
        score = validator(self.subject.whole, sheet if self.accelerator.is_main_process else None)
        if self.shards:
            self.shards.forget()
        score = float(broadcast_object_list([score])[0])
        if validator.better(score, self.log.best.score if self.log.best else None):
            self.log.best, self.log.stale = Validation(step, score), 0
            if validator.how.patience:
                self.keeper.save_best(step, dict(self.own))
        else:
            self.log.stale += 1
        if self.average:
            self.average.restore(self.own.values())
        self.log.validations.append(Validation(step, score))
        self.accelerator.log({validator.how.metric: score}, step=step)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                rows_last = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": pixels(sheet)[None]}, step=step, **rows_last)

    @torch.no_grad()
    def _settle(self) -> None:
        """Put what is to be kept into the weights: the best validated, the moving average, or the last."""
        how = self.train.validation
        if how and how.patience and self.log.best:
            for name, weight in self.keeper.load_best(self.log.best.step).items():
                self.own[name].copy_(weight)
        elif self.average:
            self.average.copy_to(self.own.values())
        if self.shards:
            self.shards.forget()
        for name, student in self.students.items():
            if not self.shards:
                self.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
            if self.train.gradient_checkpointing:
                self.subject.backbones[name].disable_gradient_checkpointing()
        for name, weight in self.own.items():
            if not torch.isfinite(weight).all():
                raise GateError(f"train: {name} has inf or NaN (got a loss that was finite); lower train.learning_rate")
