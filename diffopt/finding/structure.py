"""What a backbone is made of: its repeated blocks, and what is kept in full precision. Computes nothing."""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from inspect import signature, unwrap
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention

from diffopt.caches.policy import MIDDLE
from diffopt.errors import PlanError
from diffopt.models.prompt_encoding import given_back
from diffopt.quantization.layers import layers_of, without

UNET = "down_blocks"
SHARE = 0.1
"""Of a backbone's weights, that a list of blocks has at least where diffusers names no class of them."""
WITHIN = ("*.time_emb_proj", "*.conv_shortcut", "*.time_pos_embed")
"""What is kept within the blocks too: what works on time and the shortcuts' 1x1 convolutions of UNets, as Model-Optimizer's
examples do, and convolutions that go through each channel alone, as Sana's: they have few weights, and no runtime has kernels
for them. Modulations within a transformer's blocks are quantized, as they are in all of the written families."""

SOFTMAX = {"scaled_dot_product_attention", "dispatch_attention_fn", "get_attention_scores"}
"""What processors of diffusers call where modelopt quantizes queries, keys and values. Those of linear attention call none."""

NUMBER = re.compile(r"\.\d+(?=\.|$)")

Products = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d, torch.nn.Conv3d)


def blocks_of(backbone: torch.nn.Module) -> tuple[str, ...]:
    """Its lists of repeated blocks, in its order: those that hold a class that diffusers says is repeated or never split, and
    where it says nothing those with attention or convolutions that have a tenth of the weights.

    Raises PlanError where it has none.
    """
    lists = {n: x for n, x in backbone.named_children() if isinstance(x, torch.nn.ModuleList) and _composite(x)}
    if UNET in lists:
        found = [n for n in (UNET, "up_blocks") if n in lists]
    else:
        named = {*(getattr(backbone, "_repeated_blocks", None) or ()), *(getattr(backbone, "_no_split_modules", None) or ())}
        found = [n for n, x in lists.items() if any(type(m).__name__ in named for block in x for m in block.modules())]
        whole = _weights(backbone)
        found = found or [n for n, x in lists.items() if _weights(x) >= SHARE * whole]
    if not found:
        raise PlanError(
            f"model.source: its backbone has no repeated blocks, so there is nothing that can be told from what must be kept "
            f"(got a {type(backbone).__name__}); write them into model.found"
        )
    return tuple(found)


def kept_of(backbone: torch.nn.Module, blocks: Iterable[str]) -> tuple[str, ...]:
    """Globs over what stays in full precision: everything with weights of products outside the blocks, and WITHIN them."""
    inside = {*blocks, MIDDLE} if UNET in blocks else {*blocks}
    outside = [n for n, x in backbone.named_children() if n not in inside and any(isinstance(m, Products) for m in x.modules())]
    names = {n for n, _ in backbone.named_modules()}
    inner = [g for g in WITHIN if any(n.endswith(g[1:]) for n in names)]
    parts = [x for n, x in backbone.named_children() if n in inside]  # some UNets have no middle
    deep = {n for x in parts for n, m in x.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1}
    return (*outside, *inner, *sorted({f"*.{n.rpartition('.')[2]}" for n in deep}))


def convolves(backbone: torch.nn.Module, blocks: Iterable[str], kept: Iterable[str]) -> bool:
    """Whether there are convolutions within the blocks that are not kept."""
    left = without(layers_of(backbone), kept)
    return any(x.kind == "convolution" and x.name.partition(".")[0] in {*blocks, MIDDLE} for x in left)


def products(backbone: torch.nn.Module) -> set[str]:
    """Names of all that has weights of products."""
    return {n for n, m in backbone.named_modules() if isinstance(m, Products)}


def unreached(quantized: Iterable[str], reached: Iterable[str]) -> tuple[str, ...]:
    """Globs over those of the quantized layers that are not among the reached; `*` stands for the number of a block where it is
    so in all of them."""
    names, there = [*quantized], {*reached}
    lost = [n for n in names if n not in there]
    found = []
    for name in lost:
        glob = NUMBER.sub(".*", name)
        whole = not any(fnmatch(n, glob) for n in names if n in there)
        found.append(glob if whole else name)
    return tuple(dict.fromkeys(found))


def attentions(backbone: torch.nn.Module, blocks: Iterable[str]) -> Iterator[Any]:
    """Those within the blocks, as diffusers tells them."""
    for name in blocks:
        for module in getattr(backbone, name).modules():
            if isinstance(module, (Attention, AttentionModuleMixin)):
                yield module


def quantizable(backbone: torch.nn.Module, blocks: Iterable[str]) -> bool:
    """Whether modelopt can quantize the attention of its blocks."""
    from modelopt.torch.quantization.nn import QuantModuleRegistry
    from modelopt.torch.quantization.plugins.diffusion import diffusers as _plugin  # noqa: F401  registers its classes

    there = [*attentions(backbone, blocks)]
    known = all(QuantModuleRegistry.get(k) is not None for k in {type(m) for m in there})
    return bool(there) and known and all(_softens(k) for k in {type(m.get_processor()) for m in there})


def _softens(processor: Any) -> bool:
    return not SOFTMAX.isdisjoint(unwrap(processor.__call__).__code__.co_names)


def crossing(backbone: torch.nn.Module, blocks: Iterable[str]) -> bool:
    """Whether its blocks have attention to the text alone: diffusers calls that attn2, or says so."""
    kinds: list[Any] = [getattr(backbone, n) for n in blocks]
    layers = [(n, m) for x in kinds for n, m in x.named_modules() if isinstance(m, (Attention, AttentionModuleMixin))]
    return any(getattr(m, "is_cross_attention", n.endswith("attn2")) for n, m in layers)


def adds(backbone: torch.nn.Module, blocks: Iterable[str]) -> bool:
    """Whether what its blocks add can be told from what they are given, as a cache of residuals does (caches/segment.py): they
    give the picture's hidden states, and the text's or the sound's beside, by the names of their arguments."""
    for kind in {type(b) for n in blocks for b in getattr(backbone, n)}:
        takes = {} if kind.forward is torch.nn.Module.forward else signature(kind.forward).parameters
        given = given_back(kind.forward) if takes else []
        if "hidden_states" not in given or len(given) > 2 or not {*given} <= {*takes}:
            return False
    return True


def known_to_hooks(backbone: torch.nn.Module, blocks: Iterable[str]) -> bool:
    """Whether diffusers' block caches know the classes of its blocks."""
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from diffusers.models.cache_utils import CacheMixin

    if not isinstance(backbone, CacheMixin):
        return False
    try:
        kinds = {type(b) for n in blocks for b in getattr(backbone, n)}
        alone = {TransformerBlockRegistry.get(k).return_encoder_hidden_states_index is None for k in kinds}
    except ValueError:
        return False
    return (
        len(alone) == 1
    )  # FLUX.2 joins text and picture after some blocks, and FirstBlockCache compares its first to its last


def _composite(blocks: torch.nn.ModuleList) -> bool:
    """Whether its elements are more than a single layer."""
    return all(any(True for _ in b.children()) for b in blocks) and any(isinstance(m, Products) for m in blocks.modules())


def _weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
