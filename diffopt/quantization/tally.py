"""What one quantizer of inputs saw beyond its calibrated range."""

import torch

EDGE = 1 + 2**-7
"""Of the range: up to there a value is rounded, not clipped. Half a step of INT8, and the last bit of BF16, are 2^-8 of it."""
NOTHING = 2**-24
"""For how many times a range of 0 a value is: a number, and a large one."""
SUMS = ("calls", "calls_beyond", "values", "beyond", "energy", "error", "clipped")


class Tally(torch.nn.Module):
    range: torch.Tensor
    sums: torch.Tensor
    peak: torch.Tensor

    def __init__(self, range: torch.Tensor):
        """`range` is the quantizer's amax, on its device."""
        super().__init__()
        self.register_buffer("range", range.detach().float().clone())
        self.register_buffer("sums", torch.zeros(len(SUMS), dtype=torch.float64, device=range.device))
        self.register_buffer("peak", torch.zeros((), device=range.device))

    def forward(self, values: torch.Tensor, rounded: torch.Tensor) -> None:
        """`values` as they enter, of any floating dtype, and what they are rounded to.

        Without a branch on what they are: a GPU is not waited for, and a compiler takes it into the kernel of the rounding.
        """
        if self.sums.device != values.device:  # of a backbone that is streamed to a GPU
            self.to(values.device)
        values, rounded = values.detach().float(), rounded.detach().float()
        sizes = values.abs()
        beyond = sizes > EDGE * self.range
        many = beyond.sum()
        parts = [many > 0, torch.full_like(many, values.numel()), many]
        parts += [x.square().sum() for x in (values, rounded - values, torch.where(beyond, sizes - self.range, 0.0))]
        self.sums += torch.stack([torch.ones_like(self.sums[0]), *(p.double() for p in parts)])
        self.peak.copy_(torch.maximum(self.peak, (sizes / self._divisor).amax()))

    def on_cpu(self, values: torch.Tensor, rounded: torch.Tensor) -> None:
        """The same for a CPU, which can look first whether anything is beyond the range: a third of the passes."""
        values, rounded = values.detach().float(), rounded.detach().float()
        peak = max(abs(float(x)) for x in torch.aminmax(values))
        parts = [1.0, 0.0, values.numel(), 0.0, _squares(values), _squares(rounded - values), 0.0]
        if not peak <= EDGE * float(self.range.min()):
            sizes = values.abs()
            beyond = sizes > EDGE * self.range
            parts[3] = int(beyond.sum())
            parts[1], parts[6] = parts[3] > 0, _squares((sizes - self.range)[beyond])
        self.sums += torch.tensor(parts, dtype=torch.float64)
        largest = values.abs() if self.range.numel() > 1 else torch.tensor(peak)
        self.peak.clamp_(min=float((largest / self._divisor).amax()))

    @property
    def _divisor(self) -> torch.Tensor:
        return self.range.clamp(min=NOTHING)


def _squares(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2
