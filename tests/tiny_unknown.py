"""Tiny random pipelines of diffusers that have no family file, one function each: what `model=auto` is to find its way in."""

from collections.abc import Callable
from typing import Any

from tiny_pipelines import FLOW, Tiny, clip, clip_tokenizer, louder, t5, t5_tokenizer, unet, vae


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    return Gemma2Model(Gemma2Config(vocab_size=1024, hidden_size=32, intermediate_size=64, **heads)).eval()


def gemma_tokenizer() -> Any:
    tokenizer = t5_tokenizer()
    tokenizer.padding_side = "right"
    return tokenizer


def flow(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def aura_flow(**changes: Any) -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    sizes = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pos_embed_max_size": 1024,
    }
    return AuraFlowPipeline(
        scheduler=flow(),
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(AuraFlowTransformer2DModel(**sizes | changes)),
    )


def lumina2(**changes: Any) -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    sizes = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 96,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 32,
        "scaling_factor": 1.0,
        "axes_dim_rope": (8, 12, 12),
        "axes_lens": (64, 64, 64),
        "cap_feat_dim": 32,
    }
    return Lumina2Pipeline(
        scheduler=flow(),
        vae=vae(**FLOW),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        transformer=louder(Lumina2Transformer2DModel(**sizes | changes)),
    )


def sana(**changes: Any) -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    sizes = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "caption_channels": 32,
        "sample_size": 16,
    }
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder.eval(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
        transformer=louder(SanaTransformer2DModel(**sizes | changes)),
    )


def cogvideox(**changes: Any) -> Any:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 32,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_width": 16,
        "sample_height": 16,
        "sample_frames": 9,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }
    autoencoder = AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return CogVideoXPipeline(
        scheduler=CogVideoXDDIMScheduler(),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(CogVideoXTransformer3DModel(**sizes | changes)),
    )


def lcm(**changes: Any) -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    sizes = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "time_cond_proj_dim": 32,
    }
    return LatentConsistencyModelPipeline(
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(**sizes | changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def text_to_video(**changes: Any) -> Any:
    from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel

    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return TextToVideoSDPipeline(
        scheduler=DDIMScheduler(clip_sample=False),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=louder(UNet3DConditionModel(**sizes | changes)),
    )


UNKNOWN: dict[str, Tiny] = {
    "aura_flow": Tiny("auto", aura_flow, tokens=None),
    "lumina2": Tiny("auto", lumina2, tokens=None),
    "sana": Tiny("auto", sana, tokens=None),
    "cogvideox": Tiny("auto", cogvideox, tokens=None, frames=9),
    "lcm": Tiny("auto", lcm, tokens=None),
    "text_to_video": Tiny("auto", text_to_video, tokens=None, frames=4),
}

Maker = Callable[..., Any]
