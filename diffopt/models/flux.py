"""FLUX.1: dev, schnell, and everything else with a FluxTransformer2DModel."""

from typing import TYPE_CHECKING, Any

from diffopt.models.family import Family, Size

if TYPE_CHECKING:
    import torch


def arguments(model: Any) -> dict[str, Any]:
    return {
        "height": model.height,
        "width": model.width,
        "guidance_scale": model.guidance_scale,
        "max_sequence_length": model.max_sequence_length,
    }


def inputs(backbone: Any, vae_scale: int, size: Size) -> "dict[str, torch.Tensor]":
    """Latents are packed 2x2, so a picture of h x w pixels has (h / 2s) * (w / 2s) tokens, s being the VAE's scale.

    Shapes for 1024x1024: hidden_states [b,4096,64], encoder_hidden_states [b,512,4096], pooled_projections [b,768],
    timestep [b], img_ids [4096,3], txt_ids [512,3], and guidance [b] where the model was distilled with it.
    """
    import torch

    config, dtype = backbone.config, backbone.dtype
    rows, columns = size.height // (2 * vae_scale), size.width // (2 * vae_scale)
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] += torch.arange(rows)[:, None]
    grid[..., 2] += torch.arange(columns)[None, :]
    found = {
        "hidden_states": noise(size.batch, rows * columns, config.in_channels),
        "encoder_hidden_states": noise(size.batch, size.text, config.joint_attention_dim),
        "pooled_projections": noise(size.batch, config.pooled_projection_dim),
        "timestep": torch.full((size.batch,), 0.5, dtype=dtype),
        "img_ids": grid.reshape(rows * columns, 3).to(dtype),
        "txt_ids": torch.zeros(size.text, 3, dtype=dtype),
    }
    if config.guidance_embeds:
        found["guidance"] = torch.full((size.batch,), 3.5)
    return found


FAMILY = Family(
    name="flux",
    pipeline="FluxPipeline",
    backbone="transformer",
    backbone_class="FluxTransformer2DModel",
    blocks=("transformer_blocks", "single_transformer_blocks"),
    # Model-Optimizer's examples/diffusers excludes the same, by patterns that also hit every single block's proj_out.
    keep=("time_text_embed", "context_embedder", "x_embedder", "norm_out", "proj_out"),
    size_step=16,
    arguments=arguments,
    inputs=inputs,
)
