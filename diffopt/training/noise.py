"""What a model was trained to undo: how its latents are noised, how much of it at a time, and what it is to predict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from diffopt.errors import PlanError
from diffopt.models import Family
from diffopt.pipeline.scheduler import flows

Density = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class Flow:
    """A rectified flow (Liu et al. 2022): x = (1 - s) latents + s noise, and the prediction is noise - latents."""

    scheduler: Any
    density: Density
    clock: float
    """The backbone's timestep at s = 1."""
    backwards: bool = False
    """Whether that is its timestep at s = 0, and it predicts latents - noise."""

    def levels(self, normal: torch.Tensor, tokens: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """s, FP32 [b], of standard normal numbers [b]: distributed as the family was trained, shifted to where the scheduler
        takes a picture of so many tokens, and of that the part between `low` and `high`."""
        return _between(normal, low, high, lambda share: self._shifted(_spread(share, self.density), tokens)).float()

    def grid(self, steps: int, tokens: int) -> torch.Tensor:
        """FP32 [steps + 1]: the levels between which a drawing of a picture of so many tokens goes, from all noise to none."""
        return self._shifted(torch.linspace(1, 0, steps + 1), tokens)

    def moved(self, noisy: torch.Tensor, predicted: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Packed latents after the step between levels [b], each row from its own to its own: Euler's."""
        way = _beside(before - after if self.backwards else after - before, noisy)
        return noisy + way * predicted

    def _shifted(self, s: torch.Tensor, tokens: int) -> torch.Tensor:
        config = self.scheduler.config
        if config.get("use_dynamic_shifting"):
            few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
            least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
            mu = least + (most - least) * (tokens - few) / (many - few)  # as the pipelines' calculate_shift
            found: torch.Tensor = self.scheduler.time_shift(mu, 1.0, s)
            return found
        shift: float = config.get("shift") or config.get("flow_shift") or 1.0
        return s * shift / (1 + (shift - 1) * s)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        s = _beside(levels, latents)
        return (1 - s) * latents + s * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return latents - noise if self.backwards else noise - latents

    def timesteps(self, levels: torch.Tensor) -> torch.Tensor:
        return (1 - levels if self.backwards else levels) * self.clock


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion (Ho et al. 2020) over the scheduler's betas; the prediction is the noise, or v (Salimans and Ho
    2022), or the latents, as the scheduler's prediction_type says. Levels are its timesteps."""

    schedule: Any
    """A DDPMScheduler with the model's betas."""
    density: Density

    def levels(self, normal: torch.Tensor, tokens: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        steps: int = self.schedule.config.num_train_timesteps
        share = _between(normal, low, high, lambda share: _spread(share, self.density))
        return (share * steps).long().clamp(0, steps - 1)

    def grid(self, steps: int, tokens: int) -> torch.Tensor:
        """int64 [steps + 1]: the timesteps of a drawing, spaced as DDIM's `trailing`; -1 is without noise."""
        return torch.linspace(self.schedule.config.num_train_timesteps - 1, -1, steps + 1, dtype=torch.float64).round().long()

    def moved(self, noisy: torch.Tensor, predicted: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """As `Flow.moved`, by DDIM without noise of its own (Song et al. 2021)."""
        (signal, spread), (next_signal, next_spread) = (self._shares(levels, noisy) for levels in (before, after))
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            noise, latents = predicted, (noisy - spread * predicted) / signal
        elif kind == "v_prediction":
            noise, latents = signal * predicted + spread * noisy, signal * noisy - spread * predicted
        else:
            noise, latents = (noisy - signal * predicted) / spread, predicted
        return next_signal * latents + next_spread * noise

    def _shares(self, levels: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the latents and of the noise at timesteps [b], each shaped to be multiplied with `like`."""
        kept = torch.cat([self.schedule.alphas_cumprod, torch.ones(1)]).to(levels.device)[levels]  # of -1 the last
        return _beside(kept.sqrt(), like), _beside((1 - kept).sqrt(), like)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.schedule.add_noise(latents, noise, levels)
        return found

    def target(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            found: torch.Tensor = self.schedule.get_velocity(latents, noise, levels)
            return found
        return latents

    def timesteps(self, levels: torch.Tensor) -> torch.Tensor:
        return levels


def of(family: Family, scheduler: Any, density: str) -> Flow | Diffusion:
    """The one of a family with its scheduler; `density` is that of the group `train`.

    Raises PlanError for a prediction that is none of the three.
    """
    from diffusers import DDPMScheduler

    drawn: Any = family.density if density == "family" else density
    if flows(scheduler):
        return Flow(scheduler, drawn, family.clock, family.backwards)
    if (kind := scheduler.config.get("prediction_type")) not in ("epsilon", "v_prediction", "sample"):
        raise PlanError(f"train: {type(scheduler).__name__} predicts what no loss is known for (got {kind!r}); drop train")
    return Diffusion(DDPMScheduler.from_config(scheduler.config), drawn)


def _spread(share: torch.Tensor, density: Density) -> torch.Tensor:
    """The number in 0..1 below which there is such a share of the density: SD3's is logit-normal(0, 1) (Esser et al. 2024)."""
    return torch.sigmoid(torch.special.ndtri(share)) if density == "logit_normal" else share


def _between(normal: torch.Tensor, low: float, high: float, level: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Levels between the two, of a distribution whose level below which there is a share of it `level` tells."""
    edge = 1e-6
    shares = torch.linspace(edge, 1 - edge, 10_001, dtype=torch.float64)
    ends = torch.searchsorted(level(shares), torch.tensor([low, high], dtype=torch.float64)).clamp(max=len(shares) - 1)
    first, last = shares[ends]
    return level(first + (last - first) * torch.special.ndtr(normal.double())).clamp(low, high)


def _beside(levels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return levels.reshape(-1, *[1] * (latents.dim() - 1)).to(latents)
