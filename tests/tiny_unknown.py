"""Tiny random pipelines of diffusers that have no family file, one function each: what `model=auto` is to find its way in."""

from typing import Any

from tiny_pipelines import (
    FLOW,
    Tiny,
    chat_tokenizer,
    clip,
    clip_tokenizer,
    flow,
    gemma,
    gemma_tokenizer,
    louder,
    qwen3,
    sd3,
    t5,
    t5_tokenizer,
    unet,
    vae,
)


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


def bria(**changes: Any) -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (8, 12, 12),
    }
    return BriaPipeline(
        transformer=louder(BriaTransformer2DModel(**sizes | changes)),
        scheduler=flow(),
        vae=vae(latent_channels=4, **FLOW),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def skyreels(**changes: Any) -> Any:
    from diffusers import AutoencoderKLWan, SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 128,
        "num_layers": 3,
        "rope_max_seq_len": 64,
    }
    stages = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    return SkyReelsV2Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        transformer=louder(SkyReelsV2Transformer3DModel(**sizes | changes)),
        vae=AutoencoderKLWan(z_dim=16, base_dim=3, **stages).eval(),
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0),
    )


def mochi(**changes: Any) -> Any:
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "pooled_projection_dim": 32,
        "in_channels": 12,
        "text_embed_dim": 32,
        "time_embed_dim": 32,
        "max_sequence_length": 16,
    }
    autoencoder = AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return MochiPipeline(
        scheduler=flow(),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(MochiTransformer3DModel(**sizes | changes)),
    )


def lumina(**changes: Any) -> Any:
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    sizes = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 64,
        "num_layers": 3,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 32,
        "norm_eps": 1e-5,
        "learn_sigma": True,
        "qk_norm": True,
        "cross_attention_dim": 32,
        "scaling_factor": 1.0,
    }
    transformer = louder(LuminaNextDiT2DModel(**sizes | changes))
    transformer.pad_token.data.zero_()  # what its class leaves in memory as it was
    return LuminaPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def ovis(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel

    sizes = {
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (8, 12, 12),
    }
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(**FLOW),
        text_encoder=qwen3(2),
        tokenizer=chat_tokenizer(),
        transformer=louder(OvisImageTransformer2DModel(**sizes | changes)),
    )


def perturbed(**changes: Any) -> Any:
    """SD3's parts in the pipeline of perturbed attention guidance."""
    from diffusers import StableDiffusion3PAGPipeline

    own = {n: x for n, x in sd3(**changes).components.items() if n not in ("image_encoder", "feature_extractor")}
    return StableDiffusion3PAGPipeline(**own)


def cogview3(**changes: Any) -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

    sizes = {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "out_channels": 4,
        "text_embed_dim": 32,
        "time_embed_dim": 64,
        "condition_dim": 16,
        "pos_embed_max_size": 32,
        "sample_size": 16,
    }
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=louder(CogView3PlusTransformer2DModel(**sizes | changes)),
        scheduler=CogVideoXDDIMScheduler(),
    )


def sana_video(**changes: Any) -> Any:
    from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel

    sizes = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 64,
        "caption_channels": 32,
        "mlp_ratio": 2.0,
        "sample_size": 8,
        "patch_size": (1, 2, 2),
        "rope_max_seq_len": 64,
    }
    stages = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    return SanaVideoPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=AutoencoderKLWan(z_dim=16, base_dim=3, **stages).eval(),
        transformer=louder(SanaVideoTransformer3DModel(**sizes | changes)),
        scheduler=DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=8.0),
    )


def animate_diff(**changes: Any) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNetMotionModel

    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "cross_attention_dim": 32,
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 8,
        "norm_num_groups": 8,
    }
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        motion_norm_num_groups=8,
    )
    return AnimateDiffPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=louder(UNetMotionModel(**sizes | changes)),
        motion_adapter=adapter.eval(),
        scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear"),
    )


UNKNOWN: dict[str, Tiny] = {
    "aura_flow": Tiny("auto", aura_flow),
    "lumina2": Tiny("auto", lumina2),
    "cogvideox": Tiny("auto", cogvideox, frames=9),
    "bria": Tiny("auto", bria),
    "skyreels": Tiny("auto", skyreels, frames=5),
    "mochi": Tiny("auto", mochi, frames=7),
    "lumina": Tiny("auto", lumina),
    "ovis": Tiny("auto", ovis),
    "perturbed": Tiny("auto", perturbed),
    "cogview3": Tiny("auto", cogview3),
    "sana_video": Tiny("auto", sana_video, frames=5),
    "animate_diff": Tiny("auto", animate_diff, tokens=None, frames=4),
    "lcm": Tiny("auto", lcm, tokens=None),
    "text_to_video": Tiny("auto", text_to_video, tokens=None, frames=4),
}
