"""Tiny random pipelines, one function each, made of configs alone: what tests/tiny.py writes to disk.

Layers have multiples of 32 features and heads 16 or 32 channels, so that every format applies; there is a block more
than a family keeps at its ends.
"""

import json
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from diffopt.store import assets

EMOJI = "asset:emoji/emoji-flux"
DOUBLE, SINGLE, HEADS, HEAD = 2, 2, 2, 32
WIDTH = HEADS * HEAD


def louder(model: torch.nn.Module) -> torch.nn.Module:
    """With some loud channels as trained models have them, so that what is quantized how makes a difference."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and "blocks" in name:
                layer.weight *= torch.exp(torch.randn(layer.out_features, 1, generator=draw))
    return model.eval()


def clip(tokens: int = 77, projection: int | None = None) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"bos_token_id": 1534, "eos_token_id": 1535, "pad_token_id": 1535}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"projection_dim": projection} if projection else {}
    config = CLIPTextConfig(vocab_size=1536, max_position_embeddings=tokens, **text, **ends, **more)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def clip_tokenizer(tokens: int = 77) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.locate(EMOJI) / "tokenizer", model_max_length=tokens)


def t5(width: int = 32) -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=1024, d_model=width, d_ff=64, d_kv=16, num_layers=1, num_heads=2)).eval()


def t5_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.locate(EMOJI) / "tokenizer_2")


def vae(**changes: Any) -> torch.nn.Module:
    """Two levels halve the picture once; 4 channels packed 2x2 make the 16 of FLUX's and Chroma's transformers."""
    from diffusers import AutoencoderKL

    sizes = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**sizes | changes).eval()


FLOW = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0, "scaling_factor": 1.0}


def transformer(**changes: Any) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    sizes = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": DOUBLE,
        "num_single_layers": SINGLE,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12),
        "guidance_embeds": False,
    }
    return louder(FluxTransformer2DModel(**sizes | changes))


def flux(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    encoders = {"text_encoder": clip(32), "text_encoder_2": t5(), "vae": vae(**FLOW)}
    tokenizers = {"tokenizer": clip_tokenizer(32), "tokenizer_2": t5_tokenizer()}
    scheduler = FlowMatchEulerDiscreteScheduler()
    return FluxPipeline(scheduler=scheduler, transformer=transformer(**changes), **encoders, **tokenizers)


def flux_kontext(**changes: Any) -> Any:
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**flux(**changes).components)


def flux_fill(**changes: Any) -> Any:
    """The mask of each pixel of a latent, 2x2, stands beside the 4 channels of the noisy latents and the picture's."""
    from diffusers import FluxFillPipeline

    parts = flux(**{"in_channels": 4 * (4 + 4 + 4), "out_channels": 16} | changes).components
    return FluxFillPipeline(**{n: parts[n] for n in parts if n not in ("image_encoder", "feature_extractor")})


def chroma(**changes: Any) -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    sizes = {
        "in_channels": 16,
        "num_layers": DOUBLE,
        "num_single_layers": SINGLE,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 32,
        "axes_dims_rope": (8, 12, 12),
        "approximator_hidden_dim": 32,
        "approximator_layers": 1,
    }
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(**FLOW),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(ChromaTransformer2DModel(**sizes | changes)),
    )


def sd3(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    sizes = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 64,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 16,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    }
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(latent_channels=16, **FLOW),
        text_encoder=clip(projection=32),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=32),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(64),
        tokenizer_3=t5_tokenizer(),
        transformer=louder(SD3Transformer2DModel(**sizes | changes)),
    )


def unet(**changes: Any) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    sizes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "attention_head_dim": (2, 4),  # diffusers means heads
        "use_linear_projection": True,
        "norm_num_groups": 8,
    }
    return louder(UNet2DConditionModel(**sizes | changes))


def sdxl(**changes: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    sizes = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    return StableDiffusionXLPipeline(
        scheduler=EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=32),
        tokenizer_2=clip_tokenizer(),
        unet=unet(**sizes | changes),
    )


def sdxl_controlnet(**changes: Any) -> Any:
    """A ControlNet that says something: it begins as zeros, of which nothing would be seen."""
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

    parts = sdxl(**changes).components
    control = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(16, 32))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in [
            *control.controlnet_down_blocks,
            control.controlnet_mid_block,
            control.controlnet_cond_embedding.conv_out,
        ]:
            block.weight.copy_(0.3 * torch.randn(block.weight.shape, generator=draw))
    return StableDiffusionXLControlNetPipeline(controlnet=control.eval(), **parts)


def sd21(**changes: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    sizes = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
    }
    return StableDiffusionPipeline(
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(**sizes | changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ltx(**changes: Any) -> Any:
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    sizes = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "cross_attention_dim": 64,
        "num_layers": 7,
        "caption_channels": 32,
    }
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder.eval(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(LTXVideoTransformer3DModel(**sizes | changes)),
    )


def cosmos25(**changes: Any) -> Any:
    from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from diffopt.models.cosmos_pipeline import Nothing

    sizes = {
        "in_channels": 17,
        "out_channels": 16,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "adaln_lora_dim": 32,
        "max_size": (8, 32, 32),
        "extra_pos_embed_type": None,
        "use_crossattn_projection": True,
        "crossattn_proj_in_channels": 64,
        "encoder_hidden_states_channels": 32,
    }
    tokenizer = copy(qwen_tokenizer())
    tokenizer.padding_side = "right"
    tokenizer.chat_template = "{{ messages[1].content[0].text }}<|im_end|>"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "rope_parameters": rope, **heads, **ends}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    stages = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    flows = {"use_karras_sigmas": True, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    pipe = Cosmos2_5_PredictBasePipeline(
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval(),
        tokenizer=tokenizer,
        transformer=louder(CosmosTransformer3DModel(**sizes | changes)),
        vae=AutoencoderKLWan(z_dim=16, base_dim=3, **stages).eval(),
        scheduler=UniPCMultistepScheduler(**flows, sigma_max=200.0, sigma_min=0.01),
        safety_checker=Nothing(),
    )
    pipe.register_modules(safety_checker=None)
    return pipe


def hunyuan_video15(**changes: Any) -> Any:
    """Its prompts come behind as many tokens as the pipeline drops."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    sizes = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "text_embed_2_dim": 32,
        "image_embed_dim": 32,
        "rope_axes_dim": (8, 12, 12),
        "target_size": 32,
        "task_type": "t2v",
    }
    autoencoder = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    tokenizer = copy(qwen_tokenizer())
    tokenizer.padding_side = "right"
    before = "{% for i in range(108) %}<|im_start|>{% endfor %}"
    tokenizer.chat_template = before + "{{ messages[1].content }}<|im_end|>"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "rope_parameters": rope, **heads}
    glyphs = T5Config(vocab_size=384, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
    return HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**text)).eval(),
        tokenizer=tokenizer,
        transformer=louder(HunyuanVideo15Transformer3DModel(**sizes | changes)),
        vae=autoencoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=T5EncoderModel(glyphs).eval(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def ltx2(**changes: Any) -> Any:
    """Video and sound have as many channels, as in the real ones, and sound is as diffusers' pipeline takes it by itself."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD,
        "cross_attention_dim": WIDTH,
        "audio_num_attention_heads": HEADS,
        "audio_attention_head_dim": 16,
        "audio_cross_attention_dim": 32,
        "num_layers": 7,
        "caption_channels": 32,
        "rope_type": "split",
    }
    halves = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_learnable_registers": 8}
    connectors = {f"{kind}_connector_{n}": x for kind in ("video", "audio") for n, x in halves.items()}
    levels = {"block_out_channels": (8, 8), "layers_per_block": (1, 1, 1), "downsample_type": ("spatiotemporal",) * 2}
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=128,
        **levels,
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=1,
        patch_size_t=1,
    )
    vocoder = LTX2Vocoder(
        in_channels=128, hidden_channels=8, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )  # fmt: skip
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1}
    text = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, **heads}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=autoencoder.eval(),
        audio_vae=AutoencoderKLLTX2Audio(ch_mult=(1, 1, 1), num_res_blocks=1).eval(),
        text_encoder=Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval(),
        tokenizer=t5_tokenizer(),
        connectors=LTX2TextConnectors(caption_channels=32, text_proj_in_factor=2, **connectors, rope_type="split").eval(),
        transformer=louder(LTX2VideoTransformer3DModel(**sizes | changes)),
        vocoder=vocoder.eval(),
    )


def wan(*, two: bool = True, new_vae: bool = False, **changes: Any) -> Any:
    """With a second backbone as A14B has it, or with TI2V-5B's VAE and its timestep per patch."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    channels = 48 if new_vae else 16
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 128,
        "num_layers": 7,
        "rope_max_seq_len": 32,
    }
    stages = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    newer = {
        "z_dim": 48,
        "base_dim": 8,
        "decoder_base_dim": 8,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    }
    autoencoder = AutoencoderKLWan(**stages | (newer if new_vae else {"z_dim": 16, "base_dim": 3}))
    text = UMT5Config(vocab_size=1024, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=autoencoder.eval(),
        scheduler=UniPCMultistepScheduler(**flows),
        transformer=louder(WanTransformer3DModel(**sizes | changes)),
        transformer_2=louder(WanTransformer3DModel(**sizes | changes)) if two else None,
        boundary_ratio=0.8 if two else None,
        expand_timesteps=new_vae,
    )


def wan_i2v(**changes: Any) -> Any:
    from diffusers import WanImageToVideoPipeline

    whole = wan(**{"in_channels": 16 + 4 + 16, "out_channels": 16} | changes)
    return WanImageToVideoPipeline(**whole.components, boundary_ratio=0.8)


def wan_ti2v(**changes: Any) -> Any:
    return wan(two=False, new_vae=True, **changes)


def qwen_image(edits: bool = False, **changes: Any) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sizes = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 5,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 32,
        "axes_dims_rope": (8, 12, 12),
    }
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    tokenizer = qwen_tokenizer(edits)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "rope_parameters": rope, **heads, **ends}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    own = {f"{n}_token_id": tokenizer.convert_tokens_to_ids(t) for n, t in SEEN.items()} if edits else {}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **own))
    more = {"processor": qwen_processor(tokenizer)} if edits else {}
    return (QwenImageEditPlusPipeline if edits else QwenImagePipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=louder(QwenImageTransformer2DModel(**sizes | changes)),
        **more,
    )


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content if m.content is string else m.content[0].text }}"
    "<|im_end|>{% endfor %}{% if enable_thinking is defined %}"
    "{{ '<|im_start|>' if enable_thinking else '<|endoftext|>' }}{% endif %}"
)
"""A template that depends on all that pipelines give it, and has few tokens."""


def chat_tokenizer() -> Any:
    """Qwen's, which talks."""
    tokenizer = deepcopy(qwen_tokenizer())
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(layers: int, causal: bool = False) -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": layers}
    sizes = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 32}
    return (Qwen3ForCausalLM if causal else Qwen3Model)(Qwen3Config(**sizes, **heads)).eval()


def flux2_parts(**changes: Any) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    sizes = {
        "in_channels": 16,
        "num_layers": DOUBLE,
        "num_single_layers": SINGLE,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 3 * 32,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (8, 8, 8, 8),
    }
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = AutoencoderKLFlux2(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **levels)
    autoencoder.bn.running_mean += torch.linspace(-0.2, 0.2, 16)
    autoencoder.bn.running_var *= torch.linspace(0.5, 2.0, 16)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": autoencoder.eval(),
        "transformer": louder(Flux2Transformer2DModel(**sizes | changes)),
    }


def flux2(**changes: Any) -> Any:
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralImageProcessor, PixtralProcessor

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "hidden_size": 32, "intermediate_size": 32}
    text = {"model_type": "mistral", "vocab_size": 1024, "num_hidden_layers": 30, **heads}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, **heads, "image_size": 28, "patch_size": 14}
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)).eval()
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=CHAT)
    return Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **flux2_parts(**changes))


def flux2_klein(**changes: Any) -> Any:
    from diffusers import Flux2KleinPipeline

    parts = flux2_parts(**{"guidance_embeds": False} | changes)
    return Flux2KleinPipeline(text_encoder=qwen3(27, causal=True), tokenizer=chat_tokenizer(), **parts)


def z_image(**changes: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    sizes = {
        "in_channels": 4,
        "dim": 96,  # a multiple of 3, of which the feed forward's width is made
        "n_layers": 6,
        "n_refiner_layers": 1,
        "n_heads": 3,
        "n_kv_heads": 3,
        "cap_feat_dim": 32,
        "axes_dims": [8, 12, 12],
        "axes_lens": [256, 64, 64],
    }
    transformer = louder(ZImageTransformer2DModel(**sizes | changes))
    with torch.no_grad():
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(**FLOW),
        text_encoder=qwen3(2),
        tokenizer=chat_tokenizer(),
        transformer=transformer,
    )


def qwen_image_edit(**changes: Any) -> Any:
    """The picture has as few pixels here as what is drawn, instead of 1024x1024."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as theirs

    theirs.VAE_IMAGE_SIZE, theirs.CONDITION_IMAGE_SIZE = 32 * 32, 64 * 64
    return qwen_image(edits=True, **{"zero_cond_t": True} | changes)


SEEN = {"vision_start": "<|vision_start|>", "image": "<|image_pad|>", "vision_end": "<|vision_end|>"}


def qwen_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    pictures = {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**pictures), tokenizer, Qwen2VLVideoProcessor())


@cache
def qwen_tokenizer(edits: bool = False) -> Any:
    """Byte pairs trained on the pipeline's own template, which is then as many tokens as the pipeline drops."""
    import diffusers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    cls: Any = diffusers.QwenImageEditPlusPipeline if edits else diffusers.QwenImagePipeline
    void = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer", *(["processor"] if edits else [])))
    template = cls(**void).prompt_template_encode
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(SEEN.values() if edits else ())]
    plain = template
    for token in special:
        plain = plain.replace(token, "\0")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(plain.replace("{}", "").split("\0") * 4, trainer)
    found = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in found["merges"]]
    return Qwen2Tokenizer(vocab=found["vocab"], merges=merges, extra_special_tokens=special[1:], model_max_length=64)


def pixart(alpha: bool = False, **changes: Any) -> Any:
    """PixArt-Sigma's, or PixArt-alpha's for 1024 pixels, which is told the size of the picture."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel

    heads = 3 if alpha else HEADS  # the size's three numbers share the width
    sizes = {
        "sample_size": 128 if alpha else 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 8,  # one more than a block cache reuses
        "attention_head_dim": HEAD,
        "num_attention_heads": heads,
        "cross_attention_dim": heads * HEAD,
        "caption_channels": 32,
        "use_additional_conditions": alpha,
    }
    return (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=louder(PixArtTransformer2DModel(**sizes | changes)),
    )


def pixart_alpha(**changes: Any) -> Any:
    return pixart(alpha=True, **changes)


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


def sana_sprint(**changes: Any) -> Any:
    from diffusers import SanaSprintPipeline, SCMScheduler

    own = sana(guidance_embeds=True, qk_norm="rms_norm_across_heads", **changes).components
    return SanaSprintPipeline(**{**own, "scheduler": SCMScheduler()})


def svd(**changes: Any) -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "layers_per_block": 1,
        "sample_size": 16,
        "cross_attention_dim": 64,
        "num_attention_heads": (2, 4),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 3 * 8,
        "num_frames": 4,
    }
    levels = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    heads = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    eye = CLIPVisionConfig(image_size=224, patch_size=56, projection_dim=64, **heads)
    noises = {"timestep_type": "continuous", "timestep_spacing": "leading", "use_karras_sigmas": True}
    ends = {"prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0, "steps_offset": 1}
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(**levels).eval(),
        image_encoder=CLIPVisionModelWithProjection(eye).eval(),
        unet=louder(UNetSpatioTemporalConditionModel(**sizes | changes)),
        scheduler=EulerDiscreteScheduler(**noises, **ends),
        feature_extractor=CLIPImageProcessor(),
    )


@dataclass(frozen=True)
class Tiny:
    """A pipeline's family and maker, and what it is called with: pixels, tokens of the long encoder, and more."""

    family: str
    make: Callable[..., Any]
    side: int = 32
    tokens: int | None = 16
    guidance: float = 3.0
    frames: int | None = None


COPIES = ("flux_fill", "flux_kontext", "qwen_image_edit", "sdxl_controlnet", "wan_i2v")
"""With the backbone of another one here, and pictures."""
TINY = {
    "flux": Tiny("flux", flux, guidance=0.0),
    "flux2": Tiny("flux2", flux2, tokens=96),
    "flux2_klein": Tiny("flux2_klein", flux2_klein, tokens=24),
    "flux_fill": Tiny("flux_fill", flux_fill, guidance=0.0),
    "flux_kontext": Tiny("flux_kontext", flux_kontext, guidance=0.0),
    "sd3": Tiny("sd3", sd3),
    "sdxl": Tiny("sdxl", sdxl, tokens=None),
    "sdxl_controlnet": Tiny("sdxl_controlnet", sdxl_controlnet, tokens=None),
    "sd21": Tiny("sd21", sd21, tokens=None),
    "cosmos25": Tiny("cosmos25", cosmos25, frames=5),
    "hunyuan_video15": Tiny("hunyuan_video15", hunyuan_video15, frames=5),
    "ltx": Tiny("ltx", ltx, frames=9),
    "ltx2": Tiny("ltx2", ltx2, frames=9),
    "wan": Tiny("wan", wan, frames=5),
    "wan_i2v": Tiny("wan_i2v", wan_i2v, frames=5),
    "wan_ti2v": Tiny("wan", wan_ti2v, frames=5),
    "qwen_image": Tiny("qwen_image", qwen_image),
    "qwen_image_edit": Tiny("qwen_image_edit", qwen_image_edit, tokens=64),
    "chroma": Tiny("chroma", chroma),
    "z_image": Tiny("z_image", z_image, tokens=24),
    "pixart": Tiny("pixart", pixart),
    "pixart_alpha": Tiny("pixart", pixart_alpha),
    "sana": Tiny("sana", sana),
    "sana_sprint": Tiny("sana_sprint", sana_sprint),
    "svd": Tiny("svd", svd, tokens=None, frames=4),
}
