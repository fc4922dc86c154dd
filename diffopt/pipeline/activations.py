"""Measuring what a model's calls take beside its weights: run on the meta device, where tensors have sizes and no numbers."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from diffopt.models.activations import Anatomy, Call, Growth
from diffopt.models.example import vae_scale
from diffopt.models.family import Family, Json, Size
from diffopt.pipeline.unsorted import unsorted_texts

DTYPES = {2: torch.bfloat16, 4: torch.float32}


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, `now`, and the `most` of them at once."""

    def __init__(self, weights: Sequence[torch.Tensor]):
        """`weights` are not counted, nor views of them."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {x.untyped_storage()._cdata for x in weights}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True  # as HunyuanVideo 1.5 asks whether its picture is all zeros, as it is of a text alone
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and (key := x.untyped_storage()._cdata) not in self._known:
                self._known.add(key)
                self.now += (taken := x.untyped_storage().nbytes())
                weakref.finalize(x.untyped_storage(), self._gone, key, taken)
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, taken: int) -> None:
        self._known.discard(key)
        self.now -= taken


def most(module: torch.nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that are alive at most while `call` runs the module, without its weights."""
    with torch.no_grad(), _fused_attention(), unsorted_texts(), Live([*module.parameters(), *module.buffers()]) as live:
        call()
    return int(live.most)


def kept(module: torch.nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that are alive once `call` has run the module, what it gave and what its gradient needs, without its weights.

    No block is made once more for the gradient.
    """
    with _fused_attention(), unsorted_texts(), Live([*module.parameters(), *module.buffers()]) as live:
        made = call()
        alive = int(live.now)
    del made
    return alive


class _Fused(torch.autograd.Function):
    """Has the sizes of fused attention, and keeps what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made)
        return made


@contextmanager
def _fused_attention() -> Iterator[None]:
    """As a GPU and a CPU have it: the meta device's attention would hold a number for each pair of tokens."""
    functional = torch.nn.functional
    own = functional.scaled_dot_product_attention

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        made: torch.Tensor = _Fused.apply(query, key, value)
        return made

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def measured(family: Family, config: Json, vae: Json, base: Size) -> Anatomy:
    """Of a model by its configs, about a call of the size `base`. Raises what its code raises that asks for numbers."""
    calls, decodes, trainings, counts = {}, {}, {}, (0, 0)
    for width, dtype in DTYPES.items():
        backbone, decoder = (_empty(x, dtype) for x in (config, vae))
        counts = _count(backbone), _count(decoder)
        sizes = _around(base, family)
        calls[width] = _grown(sizes, lambda size, m=backbone: _called(m, family, vae, size))  # type: ignore[misc]
        decodes[width] = _grown(sizes, lambda size, m=decoder: _decoded(m, family, vae, size))  # type: ignore[misc]
        trainings[width] = _grown(sizes, lambda size, m=backbone: _trained(m, family, vae, size))  # type: ignore[misc]
    return Anatomy(*counts, calls, decodes, trainings)


def measured_at(family: Family, config: Json, vae: Json, size: Size, width: int) -> Anatomy:
    """The same for calls of this size alone, whatever their rows, and numbers of so many bytes: a quarter of the work."""
    backbone, decoder = (_empty(x, DTYPES[width]) for x in (config, vae))
    found = []
    for module, taken in ((backbone, _called), (decoder, _decoded), (backbone, _trained)):
        one, two = (taken(module, family, vae, replace(size, batch=rows)) for rows in (1, 2))
        found.append({width: Call(*(Growth(0.0, 0.0, 0.0, x) for x in (two - one, 2 * one - two)))})
    return Anatomy(_count(backbone), _count(decoder), *found)


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _empty(config: Json, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            made = getattr(diffusers, config["_class_name"]).from_config(config).eval()
        return made.to("meta")  # some make parameters on the CPU, whatever they are told
    finally:
        torch.set_default_dtype(before)


def _called(module: Any, family: Family, vae: Json, size: Size) -> int:
    arguments, call = _call(module, family, vae, size)
    taken = sum(x.untyped_storage().nbytes() for x in tree_leaves(arguments) if isinstance(x, torch.Tensor))
    return taken + most(module, call)


def _trained(module: Any, family: Family, vae: Json, size: Size) -> int:
    return kept(module, _call(module, family, vae, size)[1])


def _call(module: Any, family: Family, vae: Json, size: Size) -> tuple[Json, Callable[[], Any]]:
    """The inputs of a call, and the call."""
    given = family.call(family.inputs(module, vae, size))  # some lists are made by the numbers of masks
    arguments = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, given)

    def call() -> Any:
        with torch.device("meta"):  # some make tables of numbers as they go
            return module(**arguments, return_dict=False)

    return arguments, call


def _decoded(module: Any, family: Family, vae: Json, size: Size) -> int:
    config = module.config
    scale, in_time = _scales(vae)
    channels = getattr(config, "latent_channels", None) or config.z_dim
    side = (size.height // scale, size.width // scale)
    shape: tuple[int, ...] = (size.batch, channels, *side)
    more: dict[str, Any] = {}
    if family.animates:  # each frame is a picture
        shape, more = (size.batch * size.frames, channels, *side), {"num_frames": size.frames}
    elif family.timed or "z_dim" in vae:
        shape = (size.batch, channels, (size.frames - 1) // in_time + 1, *side)
    if getattr(config, "timestep_conditioning", False):
        more["temb"] = torch.empty(size.batch, device="meta", dtype=module.dtype)
    latents = torch.empty(shape, device="meta", dtype=module.dtype)

    def call() -> None:
        with torch.device("meta"):
            module.decode(latents, **more, return_dict=False)

    return latents.untyped_storage().nbytes() + most(module, call)


def _scales(vae: Json) -> tuple[int, int]:
    """Pixels and frames that a latent stands for, as the classes of VAEs call them."""
    if "temperal_downsample" in vae:  # those of Wan and Qwen-Image
        halved = vae["temperal_downsample"]
        return vae.get("scale_factor_spatial") or 2 ** len(halved), vae.get("scale_factor_temporal") or 2 ** sum(halved)
    return vae.get("spatial_compression_ratio") or vae_scale(vae), vae.get("temporal_compression_ratio") or 1


def _around(base: Size, family: Family) -> list[Size]:
    """The base, with half the height, with more text, and of videos with fewer frames."""
    step = family.frame_step
    half = max(family.size_step, base.height // 2 // family.size_step * family.size_step)
    fewer = 1 + max(1, (base.frames - 1) // (2 * step)) * step if step and base.frames > 1 else 0
    text = replace(base, text=base.text * 2)
    return [base, replace(base, height=half), text, *([replace(base, frames=fewer)] if fewer else [])]


def _grown(sizes: Sequence[Size], taken: Callable[[Size], int]) -> Call:
    one, two = ([taken(replace(s, batch=rows)) for s in sizes] for rows in (1, 2))
    each = [b - a for a, b in zip(one, two, strict=True)]
    return Call(_fitted(sizes, each), _fitted(sizes, [a - b for a, b in zip(one, each, strict=True)]))


def _fitted(sizes: Sequence[Size], bytes_: Sequence[int]) -> Growth:
    base, less, text = sizes[:3]
    pixels = base.height * base.width
    by_pixel = (bytes_[0] - bytes_[1]) / (pixels - less.height * less.width)
    by_token = (bytes_[2] - bytes_[0]) / (text.text - base.text) if text.text != base.text else 0.0
    fixed = bytes_[0] - pixels * by_pixel - base.text * by_token
    by_frame = by_pixel if len(sizes) == 3 else (bytes_[0] - bytes_[3]) / (pixels * (base.frames - sizes[3].frames))
    return Growth(by_frame, by_pixel - by_frame * base.frames if len(sizes) > 3 else 0.0, by_token, fixed)
