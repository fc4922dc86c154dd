"""LTX-2: videos with their sound, by one backbone that denoises both."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Json, Size, masked, masked_shapes, paired, video
from diffopt.models.ltx import SPACE, TIME, compression

if TYPE_CHECKING:
    import torch

FRAME_RATE = 24.0
"""Frames a second, the pipeline's default: positions in time are counted in seconds."""
FURTHER = {
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": None,
    "audio_stg_scale": None,
    "audio_modality_scale": None,
    "audio_guidance_rescale": None,
}
"""Guidance by the prompt alone, of the sound as of the video: the defaults of diffusers' pipeline when LTX-2 came out (commit
c10bdd9b73). Those of 0.42.1 are for LTX-2.5: two more calls a step, in which blocks are left out or sound and video do not see
each other. Those calls are others than a graph takes."""


def arguments(model: Any) -> dict[str, Any]:
    return {**video(model), "frame_rate": FRAME_RATE, **FURTHER}


def embed(pipe: Any, prompts: list[str], model: Any) -> "dict[str, torch.Tensor]":
    """What the connectors make of Gemma's states, [b, tokens, of the video + of the sound], and which of it is to be seen,
    int64 [b, tokens]: all, where padding is replaced by what they have learned."""
    found = pipe.encode_prompt(
        prompts,
        model.negative_prompt or None,
        do_classifier_free_guidance=FAMILY.guided(model),
        max_sequence_length=model.max_sequence_length,
    )
    return masked(*found)


def embeddings(config: Json, prompts: int, model: Any) -> dict[str, tuple[int, ...]]:
    from diffopt.models.ltx2_pipeline import widths

    return paired(masked_shapes(prompts, model, sum(widths(config))), FAMILY.guided(model))


def inputs(backbone: Any, vae: Json, size: Size) -> dict[str, Any]:
    """Tokens of the video as LTX-Video has them, and of the sound 25 a second.

    Shapes for 121 frames of 768x512: hidden_states [b,6144,128], audio_hidden_states [b,126,128], encoder_hidden_states and
    audio_encoder_hidden_states [b,1024,3840], timestep and sigma [b], the masks int64 [b,1024], video_coords [b,3,6144,2] and
    audio_coords [b,1,126,2], where each token begins and ends; the rest are constants.
    """
    import torch

    from diffopt.models.example import noise
    from diffopt.models.ltx2_pipeline import widths

    config = backbone.config
    space, time = compression(vae)
    frames, rows, columns = (size.frames - 1) // time + 1, size.height // space, size.width // space
    a_second = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
    sounds = round(size.frames / FRAME_RATE * a_second)
    normal, (video, audio) = noise(backbone.dtype), widths(config)
    seen = torch.ones(size.batch, size.text, dtype=torch.int64)
    place = backbone.rope.prepare_video_coords(size.batch, frames, rows, columns, torch.device("cpu"), fps=FRAME_RATE)
    return {
        "hidden_states": normal(size.batch, frames * rows * columns, config.in_channels),
        "audio_hidden_states": normal(size.batch, sounds, config.audio_in_channels),
        "encoder_hidden_states": normal(size.batch, size.text, video),
        "audio_encoder_hidden_states": normal(size.batch, size.text, audio),
        "timestep": torch.full((size.batch,), 500.0),
        "sigma": torch.full((size.batch,), 500.0),
        "encoder_attention_mask": seen,
        "audio_encoder_attention_mask": seen.clone(),
        "video_coords": place,
        "audio_coords": backbone.audio_rope.prepare_audio_coords(size.batch, sounds, torch.device("cpu")).contiguous(),
        "num_frames": frames,
        "height": rows,
        "width": columns,
        "fps": FRAME_RATE,
        "audio_num_frames": sounds,
        "isolate_modalities": False,
        "use_cross_timestep": True,
    }


def join(predictions: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Of the video [b, tokens, channels] and of the sound, which has as many channels, one after the other."""
    import torch

    return torch.cat([*predictions], 1)


def part(found: "torch.Tensor", inputs: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, ...]":
    tokens = inputs["hidden_states"].shape[1]
    return found[:, :tokens], found[:, tokens:]


FAMILY = Family(
    name="ltx2",
    pipeline="LTX2Pipeline",
    backbone_class="LTX2VideoTransformer3DModel",
    decoders=("audio_vae", "vocoder"),
    ours="ltx2_pipeline",
    asks=True,
    blocks=("transformer_blocks",),
    # All outside the blocks and three at either end, as Model-Optimizer's example keeps them of LTX-2
    # (examples/diffusers/quantization/utils.py, filter_func_ltx_video).
    keep=(
        "proj_in",
        "audio_proj_in",
        "caption_projection",
        "audio_caption_projection",
        "time_embed",
        "audio_time_embed",
        "av_cross_attn_*",
        "prompt_adaln",  # of LTX-2.3 and later
        "audio_prompt_adaln",
        "proj_out",
        "audio_proj_out",
    ),
    ends=3,
    size_step=SPACE,
    frame_step=TIME,
    frame_rate=lambda _: int(FRAME_RATE),
    attention=False,
    block_cache=False,
    # The first block sees the new latents; what the others added to video and sound is reused.
    cached=("*", "!transformer_blocks.0"),
    cached_reuse="residual",
    arguments=arguments,
    embed=embed,
    embeddings=embeddings,
    inputs=inputs,
    timed=True,
    join=join,
    part=part,
)
