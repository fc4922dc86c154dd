"""FLUX's blocks with fewer passes over memory: one product for what reads one input, codes handed from layer to layer.

What a block computes stays what its layers compute apart, but for one thing: an attention in FP8 rounds its result once, by
a scale that both layers after it share.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
)

from diffopt.kernels import flux_ops
from diffopt.kernels.attention import Fp8Attention
from diffopt.kernels.attention_backend import CHILD
from diffopt.kernels.fp8 import Fp8Linear, JoinedFp8Linear
from diffopt.kernels.int8 import Int8Linear
from diffopt.kernels.projections import ADDED, QKV, joined

Rotary = tuple[torch.Tensor, torch.Tensor]
Kernel = Fp8Linear | Int8Linear


def fuse(backbone: FluxTransformer2DModel) -> None:
    """Fuse what can be, in place: layers with kernels of one kind, in blocks whose heads have a power of two channels."""
    for block in backbone.transformer_blocks:
        _fuse_attention(block.attn)
        for name in ("ff", "ff_context"):
            net: Any = getattr(block, name).net
            first, last = net[0].proj, net[2]
            if isinstance(first, Kernel) and isinstance(last, Kernel):
                setattr(block, name, FusedFeedForward(first, last))
    for block in backbone.single_transformer_blocks:
        _fuse_single(block)
    backbone._repeated_blocks = [*type(backbone)._repeated_blocks, FusedSingleBlock.__name__]


class Entering(torch.nn.Module):
    """Layers that read one input: in one product where its codes are the same for all of them, else in one each."""

    def __init__(self, layers: Sequence[Any]):
        super().__init__()
        self.widths = [layer.weight.shape[0] for layer in layers]
        one = joined(layers)
        self.layers = torch.nn.ModuleList([one] if one else layers)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """What each layer gives, still to be multiplied by its `columns` and to have its `added` where there are such."""
        if len(self.layers) > 1:
            return [layer(x) for layer in self.layers], [], []
        layer = self.layers[0]
        if not isinstance(layer, JoinedFp8Linear):
            return list(layer(x).split(self.widths, -1)), [], []
        together = layer.sums(layer.enter(x), x.dtype).split(self.widths, -1)
        return list(together), list(layer.columns.split(self.widths)), list(layer.added.split(self.widths))


def _fuse_attention(attention: FluxAttention) -> None:
    layers = [[getattr(attention, n) for n in names] for names in (ADDED, QKV)]
    after = (attention.to_out[0], attention.to_add_out)
    if not _fits(attention, [*layers[0], *layers[1], *after]):
        return
    attention.entering_text, attention.entering = (Entering(x) for x in layers)
    for name in (*QKV, *ADDED):
        delattr(attention, name)
    products = getattr(attention, CHILD, None)
    if products is not None:
        _share(products, after)
    attention.processor = FusedProcessor()


def _fuse_single(block: FluxSingleTransformerBlock) -> None:
    layers = [*(getattr(block.attn, n) for n in QKV), block.proj_mlp]
    if not _fits(block.attn, [*layers, block.proj_out]):
        return
    block.entering = Entering(layers)
    for name in QKV:
        delattr(block.attn, name)
    del block.proj_mlp
    products = getattr(block.attn, CHILD, None)
    if products is not None:
        _share(products, [block.proj_out])
    block.__class__ = FusedSingleBlock


def _fits(attention: FluxAttention, layers: Sequence[torch.nn.Module]) -> bool:
    whole = attention.head_dim & (attention.head_dim - 1) == 0
    kinds = {type(layer) for layer in layers}
    return whole and len(kinds) == 1 and issubclass(kinds.pop(), Kernel)


def _share(products: Fp8Attention, after: Sequence[Any]) -> None:
    """One scale for what the attention gives and what these layers take."""
    largest = torch.stack([layer.input_scale for layer in after]).max()
    for layer in after:
        layer.input_scale, layer.inverse = largest.clone(), 1 / largest
    products.follow(largest)


class FusedFeedForward(torch.nn.Module):
    """Two layers with GELU between them, which writes the codes that the second takes."""

    def __init__(self, first: Kernel, second: Kernel):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second.product(_widened(self.first(x), None, None, self.second, None), x.dtype)


class FusedProcessor:
    """FLUX's attention of text and picture; in FP8 it hands codes to the layers that follow."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text, dtype = encoder_hidden_states.shape[1], hidden_states.dtype
        parts = attn.entering_text(encoder_hidden_states), attn.entering(hidden_states)
        together = [[*a, *b] for a, b in zip(*parts, strict=True)]
        norms = [attn.norm_added_q, attn.norm_added_k, attn.norm_q, attn.norm_k]
        found = _attended(attn, together, norms, image_rotary_emb)
        picture, words = found[:, text:], found[:, :text]
        if getattr(attn, CHILD, None) is None:
            return attn.to_out[0](picture), attn.to_add_out(words)
        return attn.to_out[0].product(picture, dtype), attn.to_add_out.product(words, dtype)


class FusedSingleBlock(FluxSingleTransformerBlock):  # type: ignore[misc]  # diffusers has no types
    """One product in, one out; between them attention and GELU, which write the codes that the second takes."""

    entering: Entering

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Rotary | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises ValueError for IP adapters, which are not fused."""
        if joint_attention_kwargs:
            raise ValueError(f"native: FLUX's fused blocks take no {sorted(joint_attention_kwargs)}; set eval.runtime=torch")
        text = encoder_hidden_states.shape[1]
        residual = torch.cat([encoder_hidden_states, hidden_states], 1)
        normed, gate = self.norm(residual, emb=temb)
        products, columns, added = self.entering(normed)
        found = _attended(
            self.attn, [products[:3], columns[:3], added[:3]], [self.attn.norm_q, self.attn.norm_k], image_rotary_emb
        )
        scale, bias = (columns[3], added[3]) if columns else (None, None)
        codes = _widened(products[3], scale, bias, self.proj_out, found)
        out = residual + gate.unsqueeze(1) * self.proj_out.product(codes, residual.dtype)
        out = out.clip(-65504, 65504) if out.dtype == torch.float16 else out
        return out[:, :text], out[:, text:]


TransformerBlockRegistry.register(FusedSingleBlock, TransformerBlockRegistry.get(FluxSingleTransformerBlock))


def _attended(attn: FluxAttention, together: list[list[torch.Tensor]], norms: list[Any], rotary: Rotary | None) -> torch.Tensor:
    """The attention's result [batch, tokens, channels], in codes where it is in FP8."""
    attention: Fp8Attention | None = getattr(attn, CHILD, None)
    if rotary is None:
        raise ValueError("native: FLUX's fused blocks need positions (got none); set eval.runtime=torch")
    inverse = None if attention is None else attention.inverse
    weights = [norm.weight for norm in norms]
    products, columns, added = together
    q, k, v = flux_ops.heads(products, columns, added, weights, *rotary, inverse, norms[0].eps)
    if attention is not None:
        return attention.attend(q, k, v).flatten(2, 3)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)


def _widened(
    product: torch.Tensor, columns: torch.Tensor | None, added: torch.Tensor | None, after: Kernel, before: torch.Tensor | None
) -> torch.Tensor:
    """Codes for the layer `after` GELU."""
    smoothing = after.smoothing if isinstance(after, Int8Linear) else None
    integers = isinstance(after, Int8Linear)
    return flux_ops.gelu(product, columns, added, smoothing, after.inverse, before, integers)
