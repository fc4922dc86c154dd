"""Cosmos Predict 2.5, text to world: videos."""

from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, paired, present, video

if TYPE_CHECKING:
    import torch

SPACE, TIME = 8, 4
"""Pixels per latent along a side and frames per latent, of the VAE of Wan 2.1, which all of them have."""
FRAME_RATE = 16
"""Frames a second, of diffusers' example."""


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """The states of all layers of Cosmos Reason 1, side by side: [b, tokens, crossattn_proj_in_channels]. The guardrail looks
    at the prompts before."""
    states, negative = pipe.encode_prompt(
        prompts,
        model.negative_prompt,
        do_classifier_free_guidance=FAMILY.guided(model),
        max_sequence_length=model.max_sequence_length,
    )
    return present(prompt_embeds=states, negative_prompt_embeds=negative)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    return paired({"prompt_embeds": (prompts, model.max_sequence_length, _width(config))}, FAMILY.guided(model))


def _width(config: Json) -> int:
    """Numbers a token."""
    found: int = config["crossattn_proj_in_channels" if config["use_crossattn_projection"] else "text_embed_dim"]
    return found


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 93 frames of 1280x704: hidden_states [b,16,24,88,160], condition_mask [b,1,24,88,160], which of them are
    given, here none; timestep [b,1,24,1,1], the noise level of each; encoder_hidden_states [b,512,100352]; padding_mask
    [1,1,704,1280], here zeros.
    """
    import torch

    from diffopt.models.example import noise

    config, dtype = backbone.config, backbone.dtype
    space, time = 2 ** len(vae["temperal_downsample"]), 2 ** sum(vae["temperal_downsample"])
    extent = (size.frames - 1) // time + 1, size.height // space, size.width // space
    normal = noise(dtype)
    return {
        "hidden_states": normal(size.batch, config.in_channels - 1, *extent),
        "condition_mask": torch.zeros(size.batch, 1, *extent, dtype=dtype),
        "timestep": torch.full((size.batch, 1, extent[0], 1, 1), 0.5),
        "encoder_hidden_states": normal(size.batch, size.text, _width(config)),
        "padding_mask": torch.zeros(1, 1, size.height, size.width, dtype=dtype),
    }


def largest(config: Json) -> int:
    """Height and width have max_size positions of a latent."""
    return int(min(config["max_size"][1:]) * SPACE)


FAMILY = Family(
    name="cosmos25",
    pipeline="Cosmos2_5_PredictBasePipeline",
    backbone_class="CosmosTransformer3DModel",
    ours="cosmos_pipeline",
    asks=True,
    needs="cosmos_guardrail",
    blocks=("transformer_blocks",),
    # All outside the blocks: Model-Optimizer's example does not have it.
    keep=("patch_embed", "time_embed", "crossattn_proj", "norm_out", "proj_out"),
    size_step=16,
    frame_step=TIME,
    frame_rate=lambda _: FRAME_RATE,
    guidance="separate",
    block_cache=False,
    unbatched=("padding_mask",),
    largest=largest,
    # The first block sees the new latents; what the others added is reused.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    arguments=video,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
)
