"""Tiny random backbones of several families, each with the inputs of a call of some rows; built from config alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from tiny_pipelines import transformer

Inputs = dict[str, Any]


def same(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    return flat


def added(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    """SDXL takes two of its inputs within a dict."""
    inner = {n: flat[n] for n in ("text_embeds", "time_ids")}
    return {n: x for n, x in flat.items() if n not in inner} | {"added_cond_kwargs": inner}


@dataclass(frozen=True)
class Backbone:
    make: Callable[[], torch.nn.Module]
    inputs: Callable[[int], Inputs]
    """For a number of rows."""
    keep: tuple[str, ...]
    kinds: tuple[str, ...] = ("nn.Linear",)
    unbatched: tuple[str, ...] = ()
    arguments: Callable[[Mapping[str, Any]], Mapping[str, Any]] = same

    def batch_axes(self) -> dict[str, int]:
        return {n: 0 for n, x in self.inputs(1).items() if isinstance(x, torch.Tensor) and n not in self.unbatched}

    def call(self, model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(**self.arguments(inputs), return_dict=False)[0]
        return found


def draw(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def flux(rows: int) -> Inputs:
    noise, ids = draw(1), torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 8, 32),
        "pooled_projections": noise(rows, 32),
        "timestep": torch.linspace(0.2, 0.8, rows),
        "img_ids": ids,
        "txt_ids": torch.zeros(8, 3),
    }


def sd3_model() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def sd3(rows: int) -> Inputs:
    noise = draw(2)
    return {
        "hidden_states": noise(rows, 16, 8, 8),
        "encoder_hidden_states": noise(rows, 20, 64),
        "pooled_projections": noise(rows, 64),
        "timestep": torch.linspace(100, 900, rows),
    }


def sdxl_model() -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )


def sdxl(rows: int) -> Inputs:
    noise = draw(3)
    return {
        "sample": noise(rows, 4, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": noise(rows, 7, 64),
        "text_embeds": noise(rows, 32),
        "time_ids": noise(rows, 6),
    }


def ltx_model() -> Any:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=16,  # 64 channels are no multiple of 6, so positions are padded, as in the real model
        cross_attention_dim=64,
        num_layers=2,
        caption_channels=32,
    )


def ltx(rows: int) -> Inputs:
    noise = draw(4)
    return {
        "hidden_states": noise(rows, 32, 8),
        "encoder_hidden_states": noise(rows, 16, 32),
        "timestep": torch.linspace(100, 900, rows),
        "encoder_attention_mask": torch.tensor([1.0] * 11 + [0.0] * 5).expand(rows, 16).contiguous(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "rope_interpolation_scale": (0.32, 32, 32),
    }


def wan_model() -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        text_dim=32,
        freq_dim=64,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    )


def wan(rows: int) -> Inputs:
    noise = draw(5)
    return {
        "hidden_states": noise(rows, 16, 3, 4, 4),
        "timestep": torch.linspace(100, 900, rows),
        "encoder_hidden_states": noise(rows, 16, 32),
    }


def qwen_model() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    )


def qwen(rows: int) -> Inputs:
    noise = draw(6)
    return {
        "hidden_states": noise(rows, 16, 16),
        "encoder_hidden_states": noise(rows, 7, 32),
        "encoder_hidden_states_mask": torch.tensor([True] * 5 + [False] * 2).expand(rows, 7).contiguous(),
        "timestep": torch.linspace(0.2, 0.8, rows),
        "img_shapes": [(1, 4, 4)],
    }


UNET = ("time_embedding", "add_embedding", "*time_emb_proj", "conv_in", "conv_out", "*conv_shortcut")

BACKBONES = {
    "flux": Backbone(
        transformer,
        flux,
        ("time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"),
        unbatched=("img_ids", "txt_ids"),
    ),
    "sd3": Backbone(sd3_model, sd3, ("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out")),
    "sdxl": Backbone(sdxl_model, sdxl, UNET, ("nn.Linear", "nn.Conv2d"), ("timestep",), added),
    "ltx": Backbone(ltx_model, ltx, ("proj_in", "time_embed", "caption_projection", "proj_out")),
    "wan": Backbone(wan_model, wan, ("patch_embedding", "condition_embedder", "proj_out")),
    "qwen": Backbone(qwen_model, qwen, ("img_in", "txt_in", "time_text_embed", "norm_out", "proj_out")),
}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name].make().eval()
