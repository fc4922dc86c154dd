"""Example tensors for the inputs of a backbone."""

from collections.abc import Callable

import torch

from diffopt.models.family import Json


def noise(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """A function of a shape that draws standard normal numbers, the same ones in every process."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    return normal


def vae_scale(vae: Json) -> int:
    """Pixels per latent along a side, of an AutoencoderKL or AutoencoderDC: every level but the last halves the picture."""
    return int(2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1))
