"""HunyuanVideo 1.5, text to video."""

from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, paired, video, with_negative

if TYPE_CHECKING:
    import torch

SPACE, TIME = 16, 4
"""Pixels per latent along a side and frames per latent, of the VAE that all of them have."""
GLYPHS = 256
"""Tokens that the words in quotes are padded to, for the encoder of how they are written."""
PICTURE = 729
"""Tokens of a picture that a video may begin with: zeros, where it begins with none."""


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """Qwen2.5-VL's states [b, tokens, text_embed_dim], those of the words in quotes by ByT5 [b, 256, text_embed_2_dim], and of
    both which are no padding, in the model's precision."""
    negative = [model.negative_prompt] * len(prompts)
    return with_negative(_encoded(pipe, prompts, model), lambda: _encoded(pipe, negative, model), FAMILY.guided(model))


def _encoded(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    given = pipe.encode_prompt(prompts, max_sequence_length=model.max_sequence_length)
    return dict(zip(("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2"), given, strict=True))


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    shapes = {
        "prompt_embeds": (prompts, model.max_sequence_length, config["text_embed_dim"]),
        "prompt_embeds_mask": (prompts, model.max_sequence_length),
        "prompt_embeds_2": (prompts, GLYPHS, config["text_embed_2_dim"]),
        "prompt_embeds_mask_2": (prompts, GLYPHS),
    }
    return paired(shapes, FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> "dict[str, torch.Tensor]":
    """Shapes for 121 frames of 848x480: hidden_states [b,65,31,30,53], of which 32 channels are noisy and the others zeros,
    where a picture would be and where it would say so; encoder_hidden_states [b,1000,3584], encoder_hidden_states_2
    [b,256,1472], image_embeds [b,729,1152], all zeros; timestep [b] and the masks, [b,1000] and [b,256], in the model's
    precision.
    """
    import torch

    from diffopt.models.example import noise

    config, dtype = backbone.config, backbone.dtype
    space, time = vae.get("spatial_compression_ratio", SPACE), vae.get("temporal_compression_ratio", TIME)
    extent = (size.frames - 1) // time + 1, size.height // space, size.width // space
    normal = noise(dtype)
    hidden = normal(size.batch, config.in_channels, *extent)
    hidden[:, (config.in_channels - 1) // 2 :] = 0
    return {
        "hidden_states": hidden,
        "timestep": torch.full((size.batch,), 500.0, dtype=dtype),
        "encoder_hidden_states": normal(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=dtype),
        "encoder_hidden_states_2": normal(size.batch, GLYPHS, config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.ones(size.batch, GLYPHS, dtype=dtype),
        "image_embeds": torch.zeros(size.batch, PICTURE, config.image_embed_dim, dtype=dtype),
    }


FAMILY = Family(
    name="hunyuan_video15",
    pipeline="HunyuanVideo15Pipeline",
    backbone_class="HunyuanVideo15Transformer3DModel",
    ours="hunyuan_video15_pipeline",
    asks=True,
    blocks=("transformer_blocks",),
    # All outside the blocks: Model-Optimizer's example does not have it.
    keep=("x_embedder", "image_embedder", "context_embedder", "context_embedder_2", "time_embed", "norm_out", "proj_out"),
    size_step=SPACE,
    frame_step=TIME,
    frame_rate=lambda _: 24,
    guidance="separate",
    lora=False,
    block_cache=False,
    cross_attention=False,
    # The first block sees the new latents; what the others added is reused.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    arguments=video,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
)
