"""AdamW with both moments in 8 bits, as arithmetic of torch: on any device, where bitsandbytes is not."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

BLOCK = 256
"""Numbers that share a scale, as bitsandbytes has it."""


class BlockwiseAdamW(torch.optim.Optimizer):
    """The first moment lies in signed integers, the root of the second in unsigned ones, with a scale for each 256 (after
    Dettmers et al. 2022, evenly spaced where theirs are denser near 0). What is computed is float32: moments of 16 bits would
    lose a second moment's changes of a thousandth."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._update(p, p.grad.flatten().float(), group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved: torch's own would make everything of the weights' precision."""
        super().load_state_dict(state_dict)
        own = [p for group in self.param_groups for p in group["params"]]
        for number, state in state_dict["state"].items():
            p = own[number]
            self.state[p] = {n: x.to(p.device) if isinstance(x, torch.Tensor) else x for n, x in state.items()}

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[p], group["betas"]
        state["step"] = state.get("step", 0) + 1
        mean = self._read(state, "mean", grad, 127).lerp_(grad, 1 - first)
        root = self._read(state, "root", grad, 255)
        variance = root.mul_(root).mul_(second).addcmul_(grad, grad, value=1 - second)
        self._write(state, "mean", mean, torch.int8, 127)
        root = variance.sqrt()
        self._write(state, "root", root, torch.uint8, 255)
        root.div_((1 - second ** state["step"]) ** 0.5).add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        change = mean.div_(root).mul_(-group["lr"] / (1 - first ** state["step"]))
        p.add_(change.view_as(p).to(p.dtype))

    def _read(self, state: dict[str, Any], name: str, like: torch.Tensor, most: int) -> torch.Tensor:
        if name not in state:
            return torch.zeros_like(like)
        stored, scale = state[name], state[f"{name}_scale"]
        found: torch.Tensor = (stored.float() * (scale / most)[:, None]).flatten()[: like.numel()]
        return found

    def _write(self, state: dict[str, Any], name: str, x: torch.Tensor, dtype: torch.dtype, most: int) -> None:
        blocks = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
        scale = blocks.abs().amax(1).clamp_min_(1e-30)
        state[name], state[f"{name}_scale"] = (blocks / scale[:, None] * most).round_().to(dtype), scale
