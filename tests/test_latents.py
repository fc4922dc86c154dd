"""Latents that are trained on are the ones that each family's own pipeline denoises and decodes."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import some
from pictures_with_captions import psnr, shape
from tiny import BATCH, SEED, STEPS, Bench, bench, emoji
from tiny_pipelines import TINY

from diffopt import models
from diffopt.artifact import TrainLatents, TrainTexts
from diffopt.data.prompts import PromptSet
from diffopt.groups.encoded import TrainPromptsView
from diffopt.groups.model import TextView
from diffopt.pipeline.draw import draw
from diffopt.pipeline.latents import encode
from diffopt.pipeline.open import family_of, open_pipeline, open_vae
from diffopt.pipeline.texts import encode as encode_texts
from diffopt.stages.phrase import phrase
from diffopt.stages.teach import DrawnView, teach

PROMPTS = 3


def taught(b: Bench, steps: int = STEPS) -> torch.Tensor:
    """What the stages make of the bench's first prompts."""
    from safetensors.torch import load_file

    prompts = PromptSet("tests", b.prompts[:PROMPTS])
    ctx = b.context()
    given = TextView(**{n: getattr(b.call, n) for n in TextView.model_fields})
    phrase.run(ctx, given, TrainPromptsView(prompts=prompts, batch_size=BATCH), b.pipeline())
    texts = TrainTexts(ctx.out, "texts")
    ctx = b.context()
    view = DrawnView(prompts=prompts, start=0, batch_size=BATCH, n_steps=steps)
    teach.run(ctx, b.call, view, b.pipeline(), texts, SEED)
    return load_file(TrainLatents(ctx.out, "latents").path / "latents.safetensors")["latents"]


def packed(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """By the pipeline's own hand, where it packs."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    if hasattr(pipe.vae, "bn"):
        return pipe._pack_latents(latents)
    if latents.dim() == 5 and hasattr(pipe, "transformer_spatial_patch_size"):
        return pipe._pack_latents(latents, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)
    still = latents.squeeze(2) if latents.dim() == 5 else latents
    return pipe._pack_latents(still, *still.shape)


def decoded(b: Bench, pipe: Any, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The latents as that pipeline shows them, by a scheduler whose steps change nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.scheduler), "step", lambda self, output, time, sample, **_: (sample,))
        if isinstance(getattr(type(pipe.scheduler), "init_noise_sigma", None), property):  # by which it multiplies first
            patch.setattr(type(pipe.scheduler), "init_noise_sigma", property(lambda self: 1.0))
        texts = encode_texts(b.context(), pipe, b.pipeline(), b.prompts[: len(latents)], b.call)
        arguments = family_of(b.pipeline()).arguments(b.call) | {
            "latents": latents if hasattr(pipe.vae, "bn") else packed(pipe, latents)
        }
        return draw(pipe, texts, [0] * len(latents), 2, arguments)


LEARNING = [n for n, x in TINY.items() if models.family(x.family).conditions and not models.family(x.family).pictures]
"""Those whose training is known here, without those with the latents of a family here, of texts with pictures."""


def off_centre(vae: Any) -> None:
    """Another shift and scale than the tiny VAEs', which have 0 and 1."""
    if hasattr(vae, "bn"):  # whose statistics are other ones already
        return
    if "latents_mean" in dict(vae.named_buffers()):
        vae.latents_mean.fill_(0.3)
        vae.latents_std.copy_(torch.linspace(0.5, 2, len(vae.latents_std)))
    elif "latents_mean" in vae.config and "shift_factor" not in vae.config:
        channels = len(vae.config.latents_mean)
        vae.register_to_config(latents_mean=[0.3] * channels, latents_std=torch.linspace(0.5, 2, channels).tolist())
    else:
        vae.register_to_config(scaling_factor=0.4)


@pytest.mark.parametrize("name", LEARNING)
def test_a_pipeline_decodes_encoded_pixels_as_its_vae_alone_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(family=name)
    pipe = open_pipeline(b.context(), b.pipeline())
    off_centre(pipe.vae)
    if name in ("flux", "chroma", "sd3"):
        pipe.vae.register_to_config(shift_factor=0.2)
    if name == "sdxl":
        pipe.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[0.5, 1.0, 2.0, 3.0])
    timed, side = family_of(b.pipeline()).timed, b.call.height
    frames = b.call.frames or 1
    still = torch.stack([torch.from_numpy(np.array(shape(i, (side, side)))) for i in range(2 * frames)])
    pixels = still.permute(0, 3, 1, 2).float() / 127.5 - 1
    pixels = pixels.unflatten(0, (2, frames)).transpose(1, 2) if timed else pixels
    with torch.no_grad():
        out = pipe.vae.encode(pixels)
        alone = pipe.vae.decode(out.latent if hasattr(out, "latent") else out.latent_dist.mode()).sample
    alone = (alone / 2 + 0.5).clamp(0, 1)
    alone = alone.permute(0, 2, 3, 4, 1) if timed else alone.permute(0, 2, 3, 1)
    shown = decoded(b, pipe, encode(pipe.vae, pixels), monkeypatch)
    np.testing.assert_allclose(shown, alone.numpy().reshape(shown.shape), atol=1e-5)


@pytest.mark.parametrize("name", some(LEARNING, ["flux", "sdxl", "wan"]))
def test_drawn_latents_are_those_that_the_pipeline_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(family=name)
    pipe = open_pipeline(b.context(), b.pipeline())
    family, latents = family_of(b.pipeline()), taught(b)
    for first in range(0, PROMPTS, BATCH):
        prompts = list(b.prompts[first : min(first + BATCH, PROMPTS)])
        seeds = [SEED + first + i for i in range(len(prompts))]
        pictures = b.draw(pipe, prompts, seeds, STEPS)
        ours = latents[first : first + len(prompts)]
        np.testing.assert_allclose(decoded(b, pipe, ours, monkeypatch), pictures, atol=1e-5)
        plain = torch.from_numpy(b.draw(pipe, prompts, seeds, STEPS, decode=False))
        if name == "flux2_klein":  # which gives them as its VAE decodes them
            plain = packed(pipe, family.unpack(pipe, plain, b.call))
        assert torch.equal(packed(pipe, ours), plain)
    assert (latents.dim() == 5) == family.timed


def test_the_embedded_model_gives_its_own_pictures_back(monkeypatch: pytest.MonkeyPatch) -> None:
    b = emoji()
    pipe = open_pipeline(b.context(), b.pipeline())
    drawn = b.draw(pipe, list(b.prompts[:4]), [SEED + i for i in range(4)], 8)
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1
    back = decoded(b, pipe, encode(open_vae(b.context(), b.pipeline()), pixels), monkeypatch)
    assert psnr(back * 255, drawn * 255) > 35
