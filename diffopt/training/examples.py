"""The items that are trained on: what is drawn in a step follows from the seed and the step alone.

So a run that goes on from a training checkpoint draws what it would have drawn, and several devices share one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from safetensors.torch import load_file

from diffopt.artifact import TrainSet
from diffopt.errors import GateError, PlanError
from diffopt.files.trainset import TrainSetFile
from diffopt.pipeline.texts import Texts, padded

NEGATIVE = "negative_"


@dataclass(frozen=True)
class Batch:
    """What one optimizer step computes with, on the CPU."""

    latents: torch.Tensor
    """FP32 [b, channels, (frames,) h, w]."""
    noise: torch.Tensor
    normal: torch.Tensor
    """Standard normal numbers [b], of which noise levels are made."""
    texts: Texts

    def part(self, rows: slice) -> "Batch":
        texts = {name: x[rows] for name, x in self.texts.items()}
        return Batch(self.latents[rows], self.noise[rows], self.normal[rows], texts)


class Examples:
    """A TrainSet in memory, without the items of the last `held` prompts, which are validated on.

    Raises PlanError where nothing would be left, GateError for latents that are not finite.
    """

    def __init__(self, data: TrainSet, held: int, batch: int, unconditional: float, seed: int):
        about = TrainSetFile.read(data.path)
        many = len(about.prompts)
        if held >= many:
            raise PlanError(
                f"train.validation.size: leaves none of the data's {many} prompts to train on (got {held}); lower it, or give "
                "more data"
            )
        self.prompts = about.prompts
        self.held = list(range(many - held, many))
        """Indices of the prompts that are validated on."""
        latents = load_file(data.path / "latents.safetensors")["latents"].float()
        if not torch.isfinite(latents).all():
            raise GateError("train: the data's latents have inf or NaN (got some); prepare them in another model.dtype")
        kept = [i for i, text in enumerate(about.text) if text < many - held]
        self.latents = latents[kept]
        self.text = torch.tensor([about.text[i] for i in kept])
        self.texts: Texts = {n: x.clone() for n, x in load_file(data.path / "texts.safetensors").items()}
        for name in [n for n in self.texts if NEGATIVE + n in self.texts and self.texts[n].dim() > 1]:
            pair = name, NEGATIVE + name
            longest = max(self.texts[n].shape[1] for n in pair)
            self.texts |= {n: padded(self.texts[n], longest) for n in pair}
        self.batch, self.unconditional, self.seed = batch, unconditional, seed
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def step(self, number: int) -> Batch:
        """The batch of a step, from 0: every item once before any comes again, in an order of its own each time."""
        first = number * self.batch
        rows = torch.stack([self._item(first + i) for i in range(self.batch)])
        draw = generator(self.seed, "step", number)
        noise = torch.randn(self.batch, *self.latents.shape[1:], generator=draw)
        normal = torch.randn(self.batch, generator=draw)
        dropped = torch.rand(self.batch, generator=draw) < self.unconditional
        return Batch(self.latents[rows], noise, normal, self.conditional(self.text[rows].tolist(), dropped))

    def conditional(self, indices: Sequence[int], dropped: torch.Tensor | None = None) -> Texts:
        """Embeddings of these prompts, without the negative ones, which take the place of those that are `dropped`."""
        found = {}
        for name, x in self.texts.items():
            if name.startswith(NEGATIVE) or x.dtype == torch.uint8:  # pictures, of which CONDITION is there
                continue
            rows = x[list(indices)]
            if dropped is not None and dropped.any() and (other := self.texts.get(NEGATIVE + name)) is not None:
                rows = torch.where(dropped.reshape(-1, *[1] * (x.dim() - 1)), other[list(indices)], rows)
            found[name] = rows
        return found

    def whole(self, indices: Sequence[int]) -> Texts:
        """Embeddings of these prompts as a pipeline takes them."""
        return {name: x[list(indices)] for name, x in self.texts.items()}

    def _item(self, place: int) -> torch.Tensor:
        turn, within = divmod(place, len(self))
        if self._order is None or self._order[0] != turn:
            self._order = turn, torch.randperm(len(self), generator=generator(self.seed, "order", turn))
        return self._order[1][within]


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """Of the CPU, so that every device draws the same."""
    mixed = int.from_bytes(sha256(f"train {seed} {purpose} {number}".encode()).digest()[:6])
    return torch.Generator().manual_seed(mixed)
