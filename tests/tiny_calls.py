"""Inputs of one call of diffusers' backbone classes at the sizes of tiny_backbones.py, by the names of a call's arguments."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from tiny_backbones import TEXT, TOKENS, WIDTH, of


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def ids(*shape: int, most: int = 4) -> torch.Tensor:
    return torch.randint(0, most, shape)


IMAGE, VIDEO, FRAMES, PACKED, SOUND = (2, 4, 8, 8), (2, 4, 2, 8, 8), (2, 2, 4, 8, 8), (2, TOKENS, 4), (2, 4, 16)
CALL: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(
        ("timestep", "r_timestep", "timestep_r", "timesteps", "t", "timestep_ratio"), lambda: torch.tensor([0.3, 0.8])
    ),
    **dict.fromkeys(("encoder_hidden_states", "encoder_hidden_states_t5"), lambda: noise(2, TEXT, WIDTH)),
    **dict.fromkeys(
        ("encoder_attention_mask", "encoder_hidden_states_mask", "encoder_mask"), lambda: torch.ones(2, TEXT).bool()
    ),
    **dict.fromkeys(("text_embedding_mask", "text_embedding_mask_t5"), lambda: torch.ones(2, TEXT).bool()),
    **dict.fromkeys(("pooled_projections", "pooled_embeds", "global_hidden_states"), lambda: noise(2, WIDTH)),
    **dict.fromkeys(("original_size", "target_size", "crop_coords"), lambda: torch.full((2, 2), 8.0)),
    "class_labels": lambda: ids(2),
    "img_ids": lambda: ids(TOKENS, 3).float(),
    "txt_ids": lambda: torch.zeros(TEXT, 3),
    "img_shapes": lambda: [(1, 4, 4)] * 2,
}
GIVEN = {
    "encoder_hidden_states",
    "timestep",
    "timesteps",
    "pooled_projections",
    "img_ids",
    "txt_ids",
    "class_labels",
    "img_shapes",
}
"""Given where a call takes them, for all that it can do without; of what else it can do without it is given nothing."""


LATENTS: dict[tuple[int, ...], str] = {
    PACKED: "BriaT BriaFiboT Chroma Flux Krea2 LTX LongCat Nucleus Ovis QwenImage SanaWMLTX2",
    FRAMES: "AnyFlow CogVideoX ConsisID UNetSpatioTemporal",
    SOUND: "MiniMaxMusic3Transformer StableAudio UNet1D",
    VIDEO: "I2VGen SanaWMTransformer UNet3D UNetMotion",
    (2, 2, 8, 8, 4): "Kandinsky5 Kandinsky6",
}
"""Shapes of what is denoised, by how classes' names begin; of others whose names say 3D it is VIDEO, else IMAGE."""


def latents(name: str) -> tuple[int, ...]:
    for shape, names in LATENTS.items():
        if any(name.startswith(n) for n in names.split()):
            return shape
    return VIDEO if "3D" in name else IMAGE


INPUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "AceStep": lambda: {"hidden_states": noise(2, 8, 8), "context_latents": noise(2, 8, 16)},
    "AnyFlow": lambda: (
        {n: torch.full((2, 2), t) for n, t in (("timestep", 500.0), ("r_timestep", 250.0))} | {"chunk_partition": [1, 1]}
    ),
    "BriaFibo2": lambda: {"encoder_hidden_states": noise(2, 2, TEXT, WIDTH)},
    "BriaFiboT": lambda: {"text_encoder_layers": [noise(2, TEXT, WIDTH // 2) for _ in range(4)]},
    "Cosmos3": lambda: {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.zeros(3, 6).long(),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [noise(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        **dict.fromkeys(("vision_sequence_indexes", "vision_mse_loss_indexes"), torch.arange(2, 6)),
        "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    },
    "CosmosT": lambda: {"padding_mask": torch.zeros(1, 1, 8, 8)},
    "Ernie": lambda: {"text_bth": noise(2, TEXT, WIDTH), "text_lens": torch.tensor([TEXT, TEXT])},
    **dict.fromkeys(("Flux2", "Flux3"), lambda: {"img_ids": ids(TOKENS, 4), "txt_ids": ids(TEXT, 4)}),
    "Glm": lambda: {"prior_token_id": ids(2, 16), "prior_token_drop": torch.zeros(2).bool()},
    "HiDream": lambda: (
        {n: noise(*s) for n, s in (("encoder_hidden_states_t5", (2, TEXT, 32)), ("pooled_embeds", (2, 32)))}
        | {"encoder_hidden_states_llama3": noise(2, 2, TEXT, 16)}
    ),
    "HunyuanDiT": lambda: (
        {"encoder_hidden_states_t5": noise(2, TEXT, WIDTH), "image_meta_size": noise(2, 6), "style": ids(2, most=1)}
        | dict.fromkeys(("text_embedding_mask", "text_embedding_mask_t5"), torch.ones(2, TEXT))
    ),
    "HunyuanVideo15": lambda: (
        {"encoder_hidden_states_2": noise(2, 4, WIDTH), "encoder_attention_mask_2": torch.ones(2, 4)}
        | {"image_embeds": torch.zeros(2, 3, 16)}
    ),
    "HunyuanVideoF": lambda: (
        {"image_embeds": noise(2, TEXT, 16), "indices_latents": torch.ones(2)}
        | dict.fromkeys(("latents_clean", "latents_history_2x"), noise(2, 4, 2, 8, 8))
        | {"latents_history_4x": noise(2, 4, 4, 8, 8)}
        | {f"indices_latents_{n}": torch.ones(k) for n, k in (("clean", 2), ("history_2x", 2), ("history_4x", 4))}
    ),
    "I2VGen": lambda: {"fps": torch.tensor([8, 8]), "image_latents": noise(2, 4, 2, 8, 8), "image_embeddings": noise(2, WIDTH)},
    "Ideogram4": lambda: {
        "hidden_states": noise(2, 8, 16),
        "encoder_hidden_states": noise(2, 8, WIDTH),
        "position_ids": ids(2, 8, 3),
        "segment_ids": torch.ones(2, 8).long(),
        "indicator": torch.tensor([[3] * 4 + [2] * 4] * 2),
    },
    "JoyImageEditPlus": lambda: {"hidden_states": noise(2, 4, 4, 1, 2, 2), "shape_list": [[(1, 1, 2), (1, 1, 2)]] * 2},
    "Kandinsky3": lambda: {"encoder_attention_mask": torch.ones(2, TEXT)},
    "Kandinsky6T": lambda: {"audio_hidden_states": noise(2, 5, 4)},
    "Kandinsky6SR": lambda: {"hidden_states": noise(2, 1, 8, 8, 9)},
    "Kandinsky5": lambda: {"visual_rope_pos": [torch.arange(n) for n in (2, 4, 4)], "text_rope_pos": torch.arange(TEXT)},
    "Krea2": lambda: {"encoder_hidden_states": noise(2, TEXT, 3, WIDTH), "position_ids": ids(TEXT + TOKENS, 3).float()},
    "LTX": lambda: {"num_frames": 1, "height": 4, "width": 4},
    "LTX2": lambda: (
        {"num_frames": 1, "height": 4, "width": 4, "audio_num_frames": 5}
        | {"audio_hidden_states": noise(2, 5, 4), "audio_encoder_hidden_states": noise(2, TEXT, WIDTH)}
    ),
    "LuminaNext": lambda: {
        "cross_attention_kwargs": {},
        "image_rotary_emb": torch.polar(torch.ones(16, 16, 8), noise(16, 16, 8)),
    },
    "MiniMaxH3": lambda: {
        "hidden_states": noise(2, 8, 16),
        "audio_hidden_states": noise(2, 6, 6),
        "encoder_hidden_states": noise(2, 4, WIDTH),
        "timestep_indices": torch.tensor([0] * 4 + [1] * 6 + [0] * 8),
        "token_tags": torch.tensor([1] * 4 + [2] * 6 + [0] * 8),
        "position_ids": ids(18, 3).float(),
        **{n: torch.arange(*x) for n, x in (("text_indices", (0, 4)), ("audio_indices", (4, 10)), ("video_indices", (10, 18)))},
    },
    "MiniMaxMusic3RVQ": lambda: {"inputs_embeds": noise(2, 4, WIDTH)},
    "MiniMaxMusic3T": lambda: {"encoder_hidden_states": noise(2, 16, WIDTH)},
    "OmniGen": lambda: {
        "input_ids": ids(2, TEXT),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, TEXT + 17, TEXT + 17),
        "position_ids": torch.arange(TEXT + 17).expand(2, -1),
    },
    "Prior": lambda: {"hidden_states": noise(2, 32), "proj_embedding": noise(2, 32)},
    "QwenImage21": lambda: {"img_mask": torch.tensor([[False] * TEXT + [True] * 4] * 2), "img_shapes": [[(1, 4, 4)]] * 2},
    "RFD4": lambda: {
        "bb_ca": noise(2, 6, 3),
        "local_latents": noise(2, 6, 4),
        **dict.fromkeys(("bb_ca_time", "local_latents_time"), torch.tensor([0.3, 0.8])),
        "padding_mask": torch.ones(2, 6).bool(),
        "token_type": torch.zeros(2, 6).long(),
        "atom37_mask": torch.ones(2, 6, 37),
        "conditioning": {"is_in_context_conditioning": torch.zeros(2, 6), "supports_local_latent": torch.ones(2, 6)},
    },
    "SanaWMLTX2": lambda: {"video_rotary_emb": (torch.ones(2, TOKENS, 32), torch.zeros(2, TOKENS, 32))},
    "SanaWMT": lambda: (
        {"timestep": torch.full((2, 1, 2), 500.0), "encoder_hidden_states": noise(2, 1, TEXT, WIDTH)}
        | {"mask": torch.ones(2, TEXT), "chunk_plucker": noise(2, 4, 2, 8, 8), "camera_conditions": noise(2, 2, 20).abs()}
    ),
    "StableAudio3": lambda: {"global_hidden_states": noise(2, WIDTH), "local_add_cond": noise(2, 5, 16)},
    "StableAudio": lambda: {"global_hidden_states": noise(2, WIDTH)},
    "StableAudioDiT": lambda: {
        "global_hidden_states": noise(2, 1, WIDTH),
        "rotary_embedding": (torch.ones(17, 8), torch.zeros(17, 8)),
    },
    "StableCascade": lambda: {"clip_text_pooled": noise(2, 1, WIDTH)},
    "T5Film": lambda: (
        {"encodings_and_masks": [(noise(2, 5, WIDTH), torch.ones(2, 5))]}
        | {"decoder_input_tokens": noise(2, 16, 8), "decoder_noise_time": torch.tensor([0.3, 0.8])}
    ),
    "TransformerTemporal": lambda: {"encoder_hidden_states": None, "num_frames": 2},
    "UNet2DModel": lambda: {"class_labels": None},
    "UNetMotion": lambda: {"encoder_hidden_states": noise(4, TEXT, WIDTH)},
    "UNetSpatio": lambda: {"added_time_ids": noise(2, 3)},
    "UVit": lambda: {"input_ids": ids(2, 8, 8), "pooled_text_emb": noise(2, 32), "micro_conds": noise(2, 5)},
    "WanAnimateT": lambda: {
        "hidden_states": noise(1, 12, 6, 8, 8),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": noise(1, TEXT, WIDTH),
        "encoder_hidden_states_image": noise(1, 4, 16),
        "pose_hidden_states": noise(1, 4, 5, 8, 8),
        "face_pixel_values": noise(1, 3, 17, 16, 16),
    },
    "WanAnimate2": lambda: {
        "hidden_states": [noise(4, 2, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [noise(TEXT, WIDTH)],
        "condition_latents": [noise(4, 2, 4, 4)],
        "encoder_hidden_states_image": noise(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    },
    "WanVACE": lambda: {"control_hidden_states": noise(2, 8, 2, 8, 8)},
    "ZImage": lambda: {"x": [noise(4, 1, 8, 8) for _ in range(2)], "cap_feats": [noise(TEXT, WIDTH) for _ in range(2)]},
}


def inputs(cls: Any) -> dict[str, Any]:
    """Of one call, the same each time. What a class can do without it is not given, unless it is in GIVEN."""
    torch.manual_seed(1)
    own = dict.fromkeys(("hidden_states", "sample"), noise(*latents(cls.__name__))) | of(INPUTS, cls, dict)()
    takes = list(signature(cls.forward).parameters.items())[1:]
    needed = [n for n, p in takes if n in CALL and (p.default is Parameter.empty or n in GIVEN)]
    return {n: CALL[n]() for n in needed if n not in own} | {n: own[n] for n, _ in takes if n in own}
