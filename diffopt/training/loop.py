"""The loop over optimizer steps."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image

from diffopt.errors import GateError
from diffopt.groups.train import TrainView
from diffopt.stage import Context
from diffopt.training.examples import Examples
from diffopt.training.loss import Loss
from diffopt.training.optimizer import optimizer, schedule
from diffopt.training.resume import Keeper
from diffopt.training.validation import Validator


@dataclass
class Subject:
    """What is trained: the whole of what `open_backbone` gives, and its backbones by the pipeline's names."""

    whole: torch.nn.Module
    backbones: dict[str, Any]
    levels: dict[str, tuple[float, float]]
    """By backbone the noise levels that it is called at."""

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """By its name in `whole` each parameter that has a gradient."""
        return {n: p for n, p in self.whole.named_parameters() if p.requires_grad}


@dataclass
class Log:
    """What there is to say of a training so far; it goes with each training checkpoint."""

    step: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    stale: int = 0
    """Validations since the best."""


class Training:
    def __init__(
        self,
        ctx: Context,
        train: TrainView,
        accelerator: Accelerator,
        subject: Subject,
        examples: Examples,
        loss: Loss,
        validator: Validator | None,
        kept: Path,
    ):
        self.ctx, self.train, self.accelerator, self.subject = ctx, train, accelerator, subject
        self.examples, self.loss, self.validator = examples, loss, validator
        self.sheets = kept / "validation"
        self.parameters = subject.trained()
        if train.gradient_checkpointing:
            for backbone in subject.backbones.values():
                backbone.enable_gradient_checkpointing()
        bare = optimizer(train, self.parameters.values())
        self.schedule = schedule(train, bare)
        *students, self.optimizer = accelerator.prepare(*subject.backbones.values(), bare)
        self.students = dict(zip(subject.backbones, students, strict=True))
        accelerator.register_for_checkpointing(self.schedule)
        self.average = EMAModel(self.parameters.values(), decay=train.ema, foreach=True) if train.ema else None
        if self.average:
            self.average.to(accelerator.device)
            accelerator.register_for_checkpointing(self.average)
        self.keeper = Keeper(kept, accelerator)
        self.log = Log(**(self.keeper.load() or {}))

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
                self._step(self.log.step)
                self.log.step += 1
                done = self.log.step == train.steps
                if self.validator and train.validation and (self.log.step % train.validation.every == 0 or done):
                    self._validate()
                if self.log.step % train.save_every == 0 and not done and not self.stopped:
                    self.keeper.save(self.log.step, vars(self.log))
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
            with nullcontext() if last else accelerator.no_sync(student):
                parts = self.loss(name, student, plain, batch.part(rows), self.subject.levels[name], accelerator.device)
                accelerator.backward(parts["loss"] * share)
            for part, value in parts.items():
                sums[part] = sums.get(part, 0.0) + float(accelerator.reduce(value.detach(), "mean")) * share
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
        if self.average and not accelerator.optimizer_step_was_skipped:
            self.average.step(self.parameters.values())
        sums["learning_rate"] = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.log.losses.append({"step": number + 1, **sums})
        accelerator.log(sums, step=number + 1)

    def _validate(self) -> None:
        step, validator = self.log.step, self.validator
        assert validator is not None
        if self.average:
            self.average.store(self.parameters.values())
            self.average.copy_to(self.parameters.values())
        sheet = self.sheets / f"{step:06}.png"
        score = validator(self.subject.whole, sheet)
        if validator.better(score, self.log.best["score"] if self.log.best else None):
            self.log.best, self.log.stale = {"step": step, "score": score}, 0
            if validator.how.patience:
                self.keeper.save_best(step, dict(self.parameters))
        else:
            self.log.stale += 1
        if self.average:
            self.average.restore(self.parameters.values())
        self.log.validations.append({"step": step, "score": score})
        self.accelerator.log({validator.how.metric: score}, step=step)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                rows_last = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": np.asarray(Image.open(sheet))[None]}, step=step, **rows_last)

    @torch.no_grad()
    def _settle(self) -> None:
        """Put what is to be kept into the weights: the best validated, the moving average, or the last."""
        how = self.train.validation
        if how and how.patience and self.log.best:
            for name, weight in self.keeper.load_best(int(self.log.best["step"])).items():
                self.parameters[name].copy_(weight)
        elif self.average:
            self.average.copy_to(self.parameters.values())
        for name, student in self.students.items():
            self.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
            if self.train.gradient_checkpointing:
                self.subject.backbones[name].disable_gradient_checkpointing()
        for name, weight in self.parameters.items():
            if not torch.isfinite(weight).all():
                raise GateError(f"train: {name} has inf or NaN (got a loss that was finite); lower train.learning_rate")
