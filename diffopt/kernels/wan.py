"""Wan's backbone with fewer products: q, k and v in one, and what the time step modulates once instead of once a token."""

from typing import Any

from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel

from diffopt.kernels.projections import join


def fuse(backbone: WanTransformer3DModel) -> None:
    """In place."""
    for layer in backbone.modules():
        if isinstance(layer, WanAttention):
            join(layer, "to_added_kv")
    backbone.register_forward_pre_hook(_one_time_step, with_kwargs=True)


def _one_time_step(_backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Wan 2.2 5B is given a time step for every token, for pictures to begin with. Without a picture they are all the same,
    and 21,120 rows of modulations are one."""
    steps = kwargs.get("timestep")
    if steps is not None and steps.ndim == 2 and bool((steps == steps[:, :1]).all()):
        kwargs = kwargs | {"timestep": steps[:, 0]}
    return args, kwargs
