"""LTX-2 given what its connectors made of a prompt, and keeping the sound that it draws."""

from functools import wraps
from types import SimpleNamespace
from typing import Any

import diffusers
import torch

Plain: Any = diffusers.LTX2Pipeline
MEL_BINS, CHANNELS = 64, 8
"""Of the latents of sound, where there is no VAE of it to ask: what diffusers' pipeline takes then."""


class LTX2Pipeline(Plain):  # type: ignore[misc]
    """diffusers' pipeline is called with the states of all layers of its text encoder, 188,160 numbers a token, which its
    connectors take. This one is called with what the connectors made of them, 7,680 numbers, and needs no connectors then.

    Without `audio_vae` sound is denoised beside the video, as the backbone needs it, and not decoded.
    """

    sound: torch.Tensor | None = None
    """What the last call decoded: float [b, channels, samples] in -1..1."""

    @property
    def sound_rate(self) -> int:
        """Samples a second."""
        return int(self.vocoder.config.output_sampling_rate)

    @wraps(Plain.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = {name: getattr(self, name) for name in ("connectors", "audio_vae", "vocoder")}
        silent = {"audio_vae": _NoSound(), "vocoder": lambda _spectrogram: None} if self.audio_vae is None else {}
        self._connectors = self.connectors
        try:
            for name, part in {**silent, "connectors": self._parted}.items():
                object.__setattr__(self, name, part)
            out = super().__call__(*args, **kwargs)
        finally:
            for name, part in own.items():
                object.__setattr__(self, name, part)
        self.sound = getattr(out, "audio", None)
        return out

    def _get_gemma_prompt_embeds(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Of as many prompts float [b, tokens, of the video + of the sound], and int64 [b, tokens]."""
        states, mask = super()._get_gemma_prompt_embeds(*args, **kwargs)
        connect = getattr(self, "_connectors", None) or self.connectors
        video, audio, mask = connect(states, mask, padding_side="left")
        return torch.cat([video, audio], -1), mask

    def _parted(self, embeds: torch.Tensor, mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """In the place of the connectors."""
        video, _sound = widths(self.transformer.config)
        return embeds[..., :video], embeds[..., video:], mask


def widths(config: Any) -> tuple[int, int]:
    """Numbers a token that the backbone is given for the video, and for the sound, by its config."""
    if config["use_prompt_embeddings"]:
        return config["caption_channels"], config["caption_channels"]
    return config["cross_attention_dim"], config["audio_cross_attention_dim"]


class _NoSound:
    """In the place of a VAE of sound."""

    config = SimpleNamespace(mel_bins=MEL_BINS, latent_channels=CHANNELS)
    dtype = torch.float32
    latents_mean, latents_std = torch.zeros(1), torch.ones(1)

    def decode(self, *_: Any, **__: Any) -> tuple[None]:
        return (None,)
