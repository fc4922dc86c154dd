"""Wan 2.1 and 2.2, text to video. Wan 2.2 A14B has two backbones: one for the high noise, one for the low."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, paired, present, video

if TYPE_CHECKING:
    import torch

SPACE, TIME = 8, 4
"""Pixels per latent along a side and frames per latent, where the VAE's config does not say."""


def arguments(model: Any) -> dict[str, Any]:
    return video(model) | present(guidance_scale_2=model.guidance_scale_2)


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """UMT5's states [b, tokens, text_dim], zeros in the place of padding."""
    states, negative = pipe.encode_prompt(
        prompts,
        model.negative_prompt or None,
        do_classifier_free_guidance=FAMILY.guided(model),
        max_sequence_length=model.max_sequence_length,
    )
    return present(prompt_embeds=states, negative_prompt_embeds=negative)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {"prompt_embeds": (prompts, model.max_sequence_length, config["text_dim"])}
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 81 frames of 832x480 by A14B: hidden_states [b,16,21,60,104], timestep [b], encoder_hidden_states
    [b,512,4096].

    The timestep is FP32, which every scheduler's fits in exactly; Wan's own counts in integers. TI2V-5B, the one with
    the VAE of Wan 2.2, has a timestep per patch, FP32 [b, patches].
    """
    import torch

    from diffopt.models.example import noise

    config = backbone.config
    space, time = vae.get("scale_factor_spatial", SPACE), vae.get("scale_factor_temporal", TIME)
    extent = (size.frames - 1) // time + 1, size.height // space, size.width // space
    frames, rows, columns = (n // patch for n, patch in zip(extent, config.patch_size, strict=True))
    normal = noise(backbone.dtype)
    return {
        "hidden_states": normal(size.batch, config.in_channels, *extent),
        "timestep": torch.full((size.batch, *((frames * rows * columns,) if vae.get("is_residual") else ())), 500.0),
        "encoder_hidden_states": normal(size.batch, size.text, config.text_dim),
    }


def frame_rate(vae: Json) -> int:
    """Of Wan's own configs: 24 for TI2V-5B, the one with the VAE of Wan 2.2, and 16 for the others."""
    return 24 if vae.get("is_residual") else 16


def largest(config: Json) -> int:
    """Each of time, height and width has rope_max_seq_len positions of a patch."""
    return int(config["rope_max_seq_len"] * config["patch_size"][1] * SPACE)


def coarser(config: Json, vae: Json) -> int:
    """A patch in pixels: 16, and 32 with the VAE of Wan 2.2. The pipeline would round to it by itself."""
    return int(config["patch_size"][1] * vae.get("scale_factor_spatial", SPACE))


def conditions(texts: Mapping[str, "torch.Tensor"], noisy: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    return {"encoder_hidden_states": texts["prompt_embeds"]}


FAMILY = Family(
    name="wan",
    pipeline="WanPipeline",
    backbone_class="WanTransformer3DModel",
    backbones=("transformer", "transformer_2"),
    blocks=("blocks",),
    keep=("patch_embedding", "condition_embedder", "proj_out"),
    ends=3,
    size_step=16,
    frame_step=TIME,
    frame_rate=frame_rate,
    reads=frozenset({"guidance_scale", "guidance_scale_2", "negative_prompt", "max_sequence_length"}),
    guidance="separate",
    # The first block sees the new latents; what the others added is reused, as FirstBlockCache does, at fixed steps.
    cached=("*", "!blocks.0"),
    cached_reuse="residual",
    largest=largest,
    coarser=coarser,
    resizable=True,
    original={"batch_size": (1, 2), "heights": (480, 720), "widths": (480, 1280), "frames": (5, 81)},
    arguments=arguments,
    conditions=conditions,
    density="uniform",
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
)
