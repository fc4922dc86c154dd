"""From pixels to the latents that a backbone denoises, as each family's own pipeline has them."""

from typing import Any

import torch

from diffopt.models import flux2


def encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The backbone's latents of pixels in -1..1, FP32 [b, 3, h, w], or [b, 3, frames, h, w] where the VAE has an axis of time.

    Gives FP32 [b, channels, (frames,) h, w], not packed: what the pipeline decodes, but for the scale, which is the
    backbone's; FLUX.2's in patches of 2x2. Of the distribution that an encoder gives the mode is taken, so that a picture has
    one latent; its deviation is far below what a backbone tells apart.
    """
    with torch.inference_mode():
        out = vae.encode(pixels.to(vae.device, vae.dtype))
        found = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent
        if hasattr(vae, "bn"):
            return flux2.normalised(vae, found).float().cpu()
    shift, scale = (_beside(x, found) for x in normalisation(vae))
    latents: torch.Tensor = (found - shift) * scale
    return latents.float().cpu()


def normalisation(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale, FP32 [channels] or []: a backbone's latents are (the VAE's - shift) * scale.

    The VAEs of FLUX and SD3 tell them by `shift_factor` and `scaling_factor`, those of UNets by the latter or by it and a
    mean and a deviation of each channel, those of videos by mean and deviation: LTX's beside its weights, others' in
    the config.
    """
    config, known = vae.config, dict(vae.named_buffers())
    mean, deviation = (known.get(name, getattr(config, name, None)) for name in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        mean, deviation = getattr(config, "shift_factor", None) or 0.0, 1.0
    shift, spread = (torch.as_tensor(x, dtype=torch.float32).cpu() for x in (mean, deviation))
    return shift, getattr(config, "scaling_factor", 1.0) / spread


def _beside(numbers: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Numbers of the channels, to be broadcast over latents."""
    return numbers.to(latents).reshape(1, -1, *[1] * (latents.dim() - 2))
