"""Tiny models of diffusers' backbone classes: sizes by the names of what a class is made with, and what differs by class.

What a class does not take it is not given, and the rest are its own defaults. Weights are random, and the same again.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeVar

import torch

T = TypeVar("T")

TOKENS, TEXT, WIDTH = 16, 6, 32
"""Of a picture that is packed, of a prompt, and of all embeddings."""

SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_layers", "num_single_layers", "n_layers", "depth", "nlayers", "num_hidden_layers"), 2),
    **dict.fromkeys(("num_refiner_layers", "n_refiner_layers", "num_text_blocks", "layers_per_block"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "nheads", "num_cross_attention_heads"), 2),
    **dict.fromkeys(("num_visual_blocks", "num_mmdit_layers", "num_single_dit_layers", "num_key_value_heads"), 2),
    **dict.fromkeys(("attention_head_dim", "cross_attention_head_dim", "head_dim"), 16),
    **dict.fromkeys(("in_channels", "out_channels", "in_visual_dim", "out_visual_dim", "latent_dim"), 4),
    **dict.fromkeys(("hidden_size", "dim", "model_dim", "embed_dim", "caption_projection_dim", "dit_dim"), WIDTH),
    **dict.fromkeys(("joint_attention_dim", "pooled_projection_dim", "text_dim", "text_embed_dim", "caption_channels"), WIDTH),
    **dict.fromkeys(("cross_attention_dim", "cap_feat_dim", "in_text_dim", "in_text_dim2", "context_in_dim"), WIDTH),
    **dict.fromkeys(("text_in_dim", "text_hidden_dim", "llm_features_dim", "dit_text_dim", "cond_token_dim"), WIDTH),
    **dict.fromkeys(("ffn_dim", "ff_dim", "intermediate_size", "ffn_hidden_size", "ff_inner_dim"), 48),
    **dict.fromkeys(("freq_dim", "time_embed_dim", "time_dim", "timestep_embed_dim", "timestep_channels"), 16),
    **dict.fromkeys(("sample_size", "sample_width", "sample_height", "sample_frames"), 8),
    **dict.fromkeys(("rope_max_seq_len", "pos_embed_max_size"), 32),
    "axes_dims_rope": (4, 4, 8),
    "rope_axes_dim": (4, 6, 6),
    "axes_dim_rope": (4, 4, 8),
    "axes_dims": (4, 6, 6),
    "rope_dim_list": (4, 6, 6),
    "condition_dim": 8,
    "norm_num_groups": 4,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "block_out_channels": (8, 16),
}


ATTENDED = {"attention_head_dim": 4, "num_attention_heads": None}


def _blocks(kind: str, **more: Any) -> dict[str, Any]:
    """A UNet of two levels, the first with attention."""
    down, up = (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"), (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}")
    return {"down_block_types": down, "up_block_types": up} | more


CONFIGS: dict[str, dict[str, Any]] = {
    "AceStep": {"head_dim": 8, "num_attention_heads": 4, "in_channels": 24, "audio_acoustic_hidden_dim": 8, "patch_size": 2},
    "BriaFibo2": {
        "in_channels": 4,
        "cap_feat_dim": 32,
        "axes_dims": (4, 4, 8),
        "injection_layer_ids": (0,),
        "min_num_gist_tokens": 4,
    }
    | {"perceiver_num_layers": 1, "max_num_gist_tokens": 8, "gist_step": 4, "gist_min_text_len": 4, "gist_max_text_len": 8},
    "BriaFiboT": {"text_encoder_dim": 16, "pooled_projection_dim": None},
    "BriaT": {"pooled_projection_dim": None},
    "Chroma": {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
    "ConsisID": {"max_text_seq_length": TEXT, "sample_frames": 5},
    "Cosmos3": {"head_dim": 6, "num_key_value_heads": 1, "latent_channel": 2, "latent_patch_size": 1, "patch_latent_dim": 2}
    | {"rope_axes_dim": (1, 1, 1), "vocab_size": 32, "hidden_act": "relu2", "qk_norm_for_text": False},
    "CosmosT": {"adaln_lora_dim": 4, "max_size": (4, 32, 32), "in_channels": 4},
    "DreamLiteT": {"cross_attention_dim": 32},
    "DreamLiteUNet": {"block_out_channels": (8, 16, 16), **ATTENDED},
    "CogVideoX": {"max_text_seq_length": TEXT, "sample_frames": 5},
    "EasyAnimate": {"mmdit_layers": 2, "patch_size": 2, "time_position_encoding_type": "3d_rope"},
    "Ernie": {"rope_axes_dim": (4, 4, 8)},
    "Flux2": {"axes_dims_rope": (4, 4, 4, 4)},
    "Flux3": {"axes_dims_rope": (4, 4, 4, 4), "cond_in_channels": 4},
    "Glm": {"prior_vq_quantizer_codebook_size": 64},
    "Helios": {"rope_dim": (4, 6, 6)},
    "HiDream": {"caption_channels": [32, 16], "text_emb_dim": 32, "num_routed_experts": 2, "num_activated_experts": 2}
    | {
        "axes_dims_rope": (8, 4, 4),
        "max_resolution": (16, 16),
        "llama_layers": (0, 1, 0, 1),
        "force_inference_output": True,
        "patch_size": 2,
    },
    "HunyuanDiT": {"cross_attention_dim_t5": 32, "text_len": TEXT, "text_len_t5": TEXT, "patch_size": 2},
    "HunyuanImage": {"rope_axes_dim": (8, 8)},
    "HunyuanVideo15": {"text_embed_2_dim": 32, "image_embed_dim": 16, "target_size": 16},
    "HunyuanVideoF": {"image_proj_dim": 16, "has_image_proj": True, "has_clean_x_embedder": True, "guidance_embeds": False},
    "HunyuanVideoT": {"guidance_embeds": False},
    "I2VGen": _blocks("3D", **ATTENDED),
    "Ideogram4": {"in_channels": 16, "adaln_dim": 16, "mrope_section": (4, 2, 2)},
    "Kandinsky3": {
        "layers_per_block": 2,
        "groups": 4,
        "attention_head_dim": 4,
        "block_out_channels": (8, 16, 32, 64),
        "encoder_hid_dim": 32,
        "time_embedding_dim": 16,
    },
    "Kandinsky6SR": {"axes_dims": (4, 6, 6)},
    "Kandinsky5": {"axes_dims": (8, 12, 12)},
    "Kandinsky6T": {"in_audio_dim": 4, "out_audio_dim": 4, "visual_cond": False},
    "Krea2": {"num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1, "text_intermediate_size": 16}
    | {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (8, 4, 4)},
    "Latte": {
        "patch_size": 2,
        "video_length": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
    }
    | {"norm_elementwise_affine": False},
    "LTX2": {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8}
    | {"audio_cross_attention_dim": 16, "rope_double_precision": False},
    "SanaWMLTX2": {
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
    }
    | {"audio_cross_attention_dim": 16},
    "LongCatAudio": {"dit_depth": 2, "dit_heads": 4, "text_conv": False},
    "LuminaNext": {"num_kv_heads": 1},
    "MiniMaxH3": {"audio_in_channels": 6, "time_embed_hidden_dim": 24, "rope_freq_dim": 2, "ffn_dim": 32},
    "MiniMaxMusic3RVQ": {"audio_vocab_size": 16, "num_codebooks": 2},
    "MiniMaxMusic3T": {"rotary_dim": 4, "fourier_embedding_dim": 8, "condition_dim": 32},
    "Mochi": {"max_sequence_length": 16},
    "Motif": {"rope_axes_dim": (4, 6, 6), "image_embed_dim": 4},
    "MotionAdapter": {"motion_num_attention_heads": 2, "motion_norm_num_groups": 4},
    "Nucleus": {
        "in_channels": 4,
        "attention_head_dim": 32,
        "num_layers": 5,
        "num_experts": 2,
        "moe_intermediate_dim": 48,
        "num_key_value_heads": None,
        "axes_dims_rope": (8, 12, 12),
        "capacity_factors": 1.0,
    },
    "OmniGen": {"num_key_value_heads": 2, "pad_token_id": 0, "vocab_size": 100, "time_step_dim": 16}
    | {"rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}},
    "PRX": {"axes_dim": (8, 8)},
    "Prior": {"embedding_dim": 32, "num_embeddings": TEXT, "additional_embeddings": 4},
    "QwenImage": {"axes_dims_rope": (8, 4, 4)},
    "RFD4": {
        "token_dim": 32,
        "dim_cond": 16,
        "pair_repr_dim": 16,
        "token_type_emb_dim": 8,
        "cath_emb_dim": 8,
        "t_emb_dim": 16,
        "tri_mult_c": 16,
    }
    | {"feats_seq": ("xt_bb_ca", "xt_local_latents"), "feats_pair_repr": ("xt_bb_ca_pair_dists",)},
    "SanaT": {"cross_attention_dim": 32},
    "SanaWMT": {"linear_head_dim": 16, "chunk_plucker_channels": 4, "image_size": 64},
    "StableAudio3": {
        "io_channels": 4,
        "global_cond_dim": 32,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "num_memory_tokens": 2,
    },
    "StableAudioDiT": {
        "num_key_value_attention_heads": 1,
        "time_proj_dim": 16,
        "global_states_input_dim": 32,
        "cross_attention_input_dim": 32,
    },
    "StableCascade": {
        "conditioning_dim": 32,
        "block_out_channels": (16, 32),
        "num_attention_heads": (2, 2),
        "clip_text_pooled_in_channels": 32,
    }
    | {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "timestep_ratio_embedding_dim": 16},
    "T5Film": {"input_dims": 8, "targets_length": 16, "d_model": 32, "d_kv": 16, "d_ff": 48},
    "UNet1D": {
        "down_block_types": ("DownResnetBlock1D",) * 2,
        "up_block_types": ("UpResnetBlock1D",) * 2,
        "out_block_type": "OutConv1DBlock",
    }
    | {"mid_block_type": "MidResTemporalBlock1D", "act_fn": "swish", "use_timestep_embedding": True},
    "UNet2DC": _blocks("2D", **ATTENDED),
    "UNet2DM": {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "UNet3D": _blocks("3D", **ATTENDED),
    "UNetMotion": _blocks("Motion", motion_num_attention_heads=2),
    "UNetSpatio": _blocks(
        "SpatioTemporal", block_out_channels=(32, 64), addition_time_embed_dim=8, projection_class_embeddings_input_dim=24
    ),
    "UVit": {
        "cond_embed_dim": 32,
        "micro_cond_encode_dim": 8,
        "micro_cond_embed_dim": 40,
        "encoder_hidden_size": 32,
        "vocab_size": 72,
    }
    | {"codebook_size": 64, "in_channels": 32, "block_out_channels": 32, "num_res_blocks": 1, "block_num_heads": 2},
    "WanAnimateT": {"in_channels": 12, "latent_channels": 4, "image_dim": 16, "motion_encoder_size": 16, "motion_style_dim": 8}
    | {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_dim": 4, "motion_encoder_dim": 16}
    | {"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2},
    "WanAnimate2": {"text_len": TEXT, "in_dim": 8, "out_dim": 4},
    "WanVACE": {"vace_layers": [0, 1], "vace_in_channels": 8},
    "ZImage": {"axes_dims": (8, 4, 4), "axes_lens": (64, 32, 32), "in_channels": 4},
}
"""By how a class's name begins; the longest that fits."""


def of(table: Mapping[str, T], cls: type, otherwise: T) -> T:
    fits = [n for n in table if cls.__name__.startswith(n)]
    return table[max(fits, key=len)] if fits else otherwise


def config(cls: type) -> dict[str, Any]:
    """What its class is made with."""
    takes = signature(cls.__init__).parameters
    return {n: x for n, x in SIZES.items() if n in takes} | of(CONFIGS, cls, {})


def make(cls: type) -> torch.nn.Module:
    """Classes begin with zeros, or with what was in memory, where training is to begin: all of that is drawn."""
    torch.manual_seed(0)
    model: torch.nn.Module = cls(**config(cls)).eval()
    with torch.no_grad():
        for x in model.parameters():
            if x.dim() > 1 and x.numel():
                x.normal_(0, x[0].numel() ** -0.5)
            elif not x.any():
                x.normal_(0, 0.1)
    return model
