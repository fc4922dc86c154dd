"""The optimizer and the learning rate over the steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from diffopt.groups.train import OPTIMIZERS, TrainView, trajectory
from diffopt.training.scales import is_scale


def optimizer(train: TrainView, parameters: Mapping[str, torch.nn.Parameter], sparing: bool = False) -> torch.optim.Optimizer:
    """Over parameters by name; scales have a learning rate of their own, and are not pulled to zero.

    `sparing` updates weights one after the other: torch would make copies of all of them at once.
    """
    name, how = OPTIMIZERS[train.optimizer].cls, {}
    if train.optimizer.endswith("8bit"):
        import torchao.optim

        cls: Any = getattr(torchao.optim, name)
    else:
        cls, how = getattr(torch.optim, name), {"foreach": False} if sparing else {}
    groups: list[dict[str, Any]] = [{"params": [p for n, p in parameters.items() if not is_scale(n)]}]
    if scales := [p for n, p in parameters.items() if is_scale(n)]:
        groups.append({"params": scales, "lr": train.scale_learning_rate or train.learning_rate, "weight_decay": 0.0})
    found: torch.optim.Optimizer = cls(groups, lr=train.learning_rate, weight_decay=train.weight_decay, **how)
    return found


def schedule(train: TrainView, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Steps once an optimizer step, whatever the number of devices. Those that learn from trajectories have the same once more,
    with a warm-up that is as much of it."""
    drawing = trajectory(train)
    if drawing is None:
        return _curve(train, optimizer, train.warmup, train.steps)
    single = _curve(train, optimizer, train.warmup, train.singly).lr_lambdas[0] if train.singly else None
    drawn = _curve(train, optimizer, round(train.warmup * drawing.last / train.steps), drawing.last).lr_lambdas[0]
    share = (drawing.learning_rate or train.learning_rate) / train.learning_rate

    def factor(step: int) -> float:
        return float(single(step) if single and step < train.singly else share * drawn(step - train.singly))

    return LambdaLR(optimizer, factor)


def _curve(train: TrainView, optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> LambdaLR:
    from diffusers.optimization import get_scheduler

    name = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    found: LambdaLR = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return found
