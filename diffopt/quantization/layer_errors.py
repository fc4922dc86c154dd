"""How far a layer's output is off in each format, watched while the full-precision backbone runs once.

A layer's variant in a format is what `checkpoint.quantize` makes of that layer, so an error is one of the shipped
arithmetic. Every layer is given the full-precision input: what is measured is the layer's own damage, not what it inherits.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from diffopt.formats.method import Method
from diffopt.quantization.awq_svdquant import smoothing
from diffopt.quantization.block_fake_quant import simulated
from diffopt.quantization.checkpoint import check, quantize
from diffopt.quantization.weight_scales import Search, of_model, put

Layers = Mapping[str, Any]
Sums = dict[str, torch.Tensor]
"""`energy` and format name -> FP64 []: of a layer's outputs in one denoising step, of their errors."""


@dataclass(frozen=True)
class Variant:
    """A layer in a format. It shares the weight with the plain layer, and smooths it anew for every call: a second model's
    weights would often not fit beside the first's."""

    layer: Any
    smoothing: torch.Tensor | None = None
    """What SmoothQuant multiplies the weight's input channels by, FP32 [in]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if layer.weight.device != x.device:  # where a backbone is streamed to a GPU, its layers lie elsewhere
            layer = copy.deepcopy(layer).to(x.device)
        weight = layer.weight
        if self.smoothing is not None:
            smooth = (weight * self.smoothing.to(x.device)[None, :]).to(weight.dtype)  # as modelopt computes it
            layer._parameters["weight"] = torch.nn.Parameter(smooth, requires_grad=False)
        try:
            found: torch.Tensor = layer(x)
        finally:
            layer._parameters["weight"] = weight
        return found


def variants(
    layers: Layers,
    method: Method,
    alpha: float | None,
    extremes: Mapping[str, torch.Tensor],
    search: Search | None = None,
) -> dict[str, Variant]:
    """The layers, by name, as `method` quantizes them, the scales of their weights' blocks found by `search`.

    Raises GateError where a layer was not observed, or only with inf or NaN.
    """
    if method.algorithm != "smoothquant":
        return {n: Variant(x) for n, x in _quantized(layers, method, alpha, extremes, search).items()}
    found = {}
    for name, layer in layers.items():  # one at a time, since each is smoothed in a copy
        with smoothing() as scales:
            (double,) = _quantized({name: layer}, method, alpha, extremes).values()
        scale = scales.get(double)
        double._parameters["weight"] = torch.nn.Parameter(layer.weight.data, requires_grad=False)
        found[name] = Variant(double, None if scale is None else (1 / scale).flatten())  # a convolution is not smoothed
    return found


def _quantized(
    layers: Layers,
    method: Method,
    alpha: float | None,
    extremes: Mapping[str, torch.Tensor],
    search: Search | None = None,
) -> dict[str, Any]:
    tree = torch.nn.Module()
    for name, layer in layers.items():
        *above, last = name.split(".")
        parent = tree
        for part in above:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, _double(layer, copied=method.algorithm == "smoothquant"))
    seen = {n: x for n, x in extremes.items() if n.rpartition(".")[0] in layers}
    quantize(tree.eval(), method.rules([], [], False, convolutions=True), method.calibration(alpha), seen)
    check(tree, list(layers), inputs=method.input is not None)
    if search:
        put(tree, of_model(tree, search), search.kind)
    return {name: tree.get_submodule(name) for name in layers}


def _double(layer: Any, copied: bool) -> torch.nn.Module:
    """The layer again, without hooks, with the same storages; of the weight with a copy where that will be changed."""
    double = copy.copy(layer)
    given = {n: None if p is None else torch.nn.Parameter(p.data, requires_grad=False) for n, p in layer._parameters.items()}
    if copied:
        given["weight"] = torch.nn.Parameter(layer.weight.data.clone(), requires_grad=False)
    double.__dict__ |= {"_parameters": given, "_buffers": dict(layer._buffers), "_modules": {}}
    double.__dict__ |= {n: OrderedDict() for n in double.__dict__ if n.endswith("_hooks") or "_hooks_" in n}
    double.__dict__.pop("forward", None)
    found: torch.nn.Module = double
    return found


@dataclass
class LayerErrors:
    """Fills while the backbone runs; `end` is to be called after every denoising step."""

    variants: Mapping[str, Mapping[str, Variant]]
    products: dict[str, int] = field(default_factory=dict)
    """Multiply-accumulates of each layer in all calls."""
    _now: dict[str, Sums] = field(default_factory=dict)
    _steps: list[dict[str, Sums]] = field(default_factory=list)

    def see(self, name: str, layer: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        """One call of a layer: its input, and its output in full precision."""
        sums = self._now.setdefault(name, {})
        plain = output.float()
        self._add(sums, "energy", plain)
        for method, layers in self.variants.items():
            if name in layers:
                self._add(sums, method, layers[name](x).float() - plain)
        self.products[name] = self.products.get(name, 0) + output.numel() * layer.weight[0].numel()

    def end(self) -> None:
        self._steps.append({n: {k: x.cpu() for k, x in sums.items()} for n, sums in self._now.items()})
        self._now = {}

    def table(self, batches: int) -> dict[str, dict[str, list[float]]]:
        """By layer: sums of squares in every denoising step of its outputs, `energy`, and of its errors in each format.

        Zeros for a step in which it was not called. Raises ValueError where batches did not take the same steps.
        """
        if len(self._steps) % batches:
            raise ValueError(f"{len(self._steps)} denoising steps of {batches} batches are not the same steps in each")
        found = {}
        for name in dict.fromkeys(n for step in self._steps for n in step):
            keys = next(step[name] for step in self._steps if name in step)
            nothing = torch.zeros((), dtype=torch.float64)
            found[name] = {
                k: torch.stack([s.get(name, {}).get(k, nothing) for s in self._steps]).reshape(batches, -1).sum(0).tolist()
                for k in keys
            }
        return found

    def _add(self, sums: Sums, key: str, x: torch.Tensor) -> None:
        found = x.square().sum(dtype=torch.float64)
        sums[key] = sums[key] + found if key in sums else found


@contextmanager
def watched(layers: Layers, made: Mapping[str, Mapping[str, Variant]]) -> Iterator[LayerErrors]:
    """Watch the layers of a backbone while the block runs it in full precision."""
    errors = LayerErrors(made)

    def hook(name: str) -> Callable[..., None]:
        def seen(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            errors.see(name, layer, args[0] if args else kwargs["input"], output)

        return seen

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name), with_kwargs=True).remove)
        stack.enter_context(simulated())
        yield errors
