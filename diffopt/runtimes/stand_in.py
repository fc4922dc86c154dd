"""What stands where a backbone stood: same configuration and call, computed by something else, a graph or an engine plan."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput
from torch.utils._pytree import tree_leaves

from diffopt.caches.loop import Loop
from diffopt.caches.meter import Meter, statistics
from diffopt.caches.statistics import Statistics
from diffopt.errors import GateError
from diffopt.files.graph import OUTPUT, OnnxGraphFile
from diffopt.models import Family
from diffopt.pipeline.open import default_dtype
from diffopt.runtimes.bounds import Bounds, holding, misfit
from diffopt.runtimes.cut_graph import CutGraph, Place

Feeds = dict[str, torch.Tensor]
Compute = Callable[[Feeds], torch.Tensor]
"""From the graph's inputs by name, in the graph's own types, to its output. Where they lie is as the pipeline gives them."""

Values = tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]
"""From torch's tensors to what the parts of a cut graph pass to each other, and back."""


class StandIn(torch.nn.Module):
    """Takes what the backbone takes, in a pipeline or by hand. Raises GateError for shapes that it was not made for."""

    def __init__(
        self, compute: Compute, head: OnnxGraphFile, family: Family, backbone: Any, device: torch.device | None = None
    ):
        """`backbone` may be empty, on the meta device: its configuration and its signature are taken.

        On a `device` what computes tells itself which shapes it takes; else it is a graph, on the CPU.
        """
        super().__init__()
        self.compute = compute
        self.types = {name: getattr(torch, about.dtype) for name, about in head.inputs.items()}
        self.takes = bounds(head) if device is None else None
        self.config = backbone.config
        self.dtype = backbone.dtype
        self.device = device or torch.device("cpu")
        self.add_embedding = getattr(backbone, "add_embedding", None)  # SDXL's pipeline asks it for its size
        self.cache_context = getattr(backbone, "cache_context", None)  # a UNet has none
        self.audio_rope = getattr(backbone, "audio_rope", None)  # LTX-2's pipeline has its positions made by them
        self.rope = backbone.rope if self.audio_rope is not None else None
        self.family = family
        self.names = list(signature(backbone.forward).parameters)
        self.close: Callable[[], Any] = lambda: None
        """To be called when it is no longer needed, where it was opened by hand."""

    def forward(self, *positional: Any, return_dict: bool = True, **arguments: Any) -> Any:
        """The prediction as `.sample`, or without `return_dict` in a tuple, as diffusers' backbones give it."""
        given = self.family.flat(dict(zip(self.names, positional, strict=False)) | arguments)
        if missing := [name for name in self.types if given.get(name) is None]:
            raise GateError(f"{missing[0]}: the graph needs it (got none); call the backbone as it was exported")
        if other := [n for n, x in given.items() if n not in self.types and _tensors(x)]:
            raise GateError(f"{other[0]}: the graph has no such input (got a tensor); leave it out, or use the backbone itself")
        if ragged := [name for name in self.types if isinstance(given[name], list)]:
            sizes = ", ".join(str(len(x)) for x in given[ragged[0]])
            raise GateError(f"{ragged[0]}: the graph takes rows of one length (got {sizes}); draw prompts one by one")
        feeds = {name: given[name].to(dtype) for name, dtype in self.types.items()}
        shapes = {name: list(x.shape) for name, x in feeds.items()}
        if self.takes and holding([self.takes], shapes) is None:
            raise GateError(misfit([self.takes], shapes, "the graph"))
        found = self.computed(feeds, positional, arguments).to(self.dtype)
        parts = self.family.part(found, feeds)
        if return_dict:
            return Transformer2DModelOutput(sample=parts[0]) if len(parts) == 1 else AudioVisualModelOutput(*parts)
        return parts

    def computed(self, feeds: Feeds, positional: tuple[Any, ...], arguments: Mapping[str, Any]) -> torch.Tensor:
        return self.compute(feeds)


class CutStandIn(StandIn):
    """The same of a graph that is cut, which a step runs in part where it reuses."""

    def __init__(
        self,
        parts: CutGraph,
        values: Values,
        loop: Loop,
        head: OnnxGraphFile,
        family: Family,
        backbone: Any,
        device: torch.device | None = None,
    ):
        super().__init__(lambda feeds: self._run(feeds), head, family, backbone, device)
        self.parts, self.values, self.loop = parts, values, loop
        self.reused = head.reused or ()
        with torch.device("meta"), default_dtype(backbone.dtype):  # its arithmetic is counted
            self.meter = Meter(type(backbone).from_config(backbone.config))

    def computed(self, feeds: Feeds, positional: tuple[Any, ...], arguments: Mapping[str, Any]) -> torch.Tensor:
        self.meter.see(positional, {**arguments, "return_dict": False})
        return super().computed(feeds, positional, arguments)

    def _run(self, feeds: Feeds) -> torch.Tensor:
        call, place = self.loop.call(self), self.loop.place
        shapes = tuple(x.shape for x in feeds.values())
        given, taken = self.values
        inputs = {name: given(x) for name, x in feeds.items()}
        return taken(self.parts(inputs, Place(place[0], (place[1], call, shapes)) if place else None)[OUTPUT])


def _tensors(value: Any) -> bool:
    return any(isinstance(x, torch.Tensor) for x in tree_leaves(value))


def bounds(head: OnnxGraphFile) -> Bounds:
    """What a graph takes, by its graph.json."""
    profile = head.profile or {}
    return {
        name: (profile[name]["min"], profile[name]["max"]) if name in profile else (about.shape, about.shape)
        for name, about in head.inputs.items()
    }


@contextmanager
def looped(pipe: Any, made: Callable[[Loop], Iterable[tuple[str, CutStandIn]]]) -> Iterator[Callable[[], Statistics]]:
    """Within it the pipeline's backbones are those that `made` gives, by name, which follow its loop; yields their savings."""
    cuts: list[CutStandIn] = []

    def forget() -> None:
        for cut in cuts:
            cut.parts.forget()

    loop = Loop(pipe, forget)
    for name, cut in made(loop):
        cuts.append(cut)
        setattr(pipe, name, cut)
    loop.open()
    try:
        yield lambda: _savings(cuts)
    finally:
        loop.close()


def _savings(cuts: Sequence[CutStandIn]) -> Statistics:
    """Counts calls of blocks, as the torch runtime does."""
    return statistics(
        (cut.meter, dict.fromkeys(cut.reused, cut.parts.hits), dict.fromkeys(cut.reused, cut.parts.calls - cut.parts.hits))
        for cut in cuts
    )
