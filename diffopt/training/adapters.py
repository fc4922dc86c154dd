"""Low-rank adapters (Hu et al. 2021) that are added to a weight before it is quantized (Bondarenko et al. 2024, LR-QAT).

What is trained is then what is kept: added to the weights at the end, they round as they did in training. Adapters beside a
quantized layer, as peft has them, would have to be rounded into its weights afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import torch

from diffopt.errors import PlanError
from diffopt.groups.train import Lora
from diffopt.training.examples import generator

DOWN, UP = "adapter_down", "adapter_up"


class Adapters:
    """FP32 parameters of the quantized layers of `model`, which are trained alone."""

    def __init__(self, model: torch.nn.Module, layers: Sequence[str], lora: Lora, seed: int):
        """Raises PlanError where a glob names no quantized linear layer."""
        linear = [n for n in layers if isinstance(model.get_submodule(n), torch.nn.Linear)]
        for glob in lora.targets:
            if not any(fnmatch(n, glob) for n in linear):
                raise PlanError(
                    f"train.lora.targets: matches no quantized linear layer (got {glob!r}); use a layer's name, e.g. "
                    f"{linear[0] if linear else 'transformer_blocks.0.attn.to_q'!r}"
                )
        self.scale = lora.alpha / lora.rank
        self.layers: dict[str, Any] = {n: model.get_submodule(n) for n in linear if any(fnmatch(n, g) for g in lora.targets)}
        self._hooks = []
        model.requires_grad_(False)
        for number, layer in enumerate(self.layers.values()):
            out, entering = layer.weight.shape
            down = torch.randn(lora.rank, entering, generator=generator(seed, "adapter", number)) / entering**0.5
            layer.register_parameter(DOWN, torch.nn.Parameter(down.to(layer.weight.device)))
            layer.register_parameter(UP, torch.nn.Parameter(torch.zeros(out, lora.rank, device=layer.weight.device)))

            def added(_quantizer: Any, args: tuple[Any, ...], layer: Any = layer) -> tuple[Any, ...]:
                own = layer._parameters
                return (args[0] + self._product(own["weight"], own[UP], own[DOWN]), *args[1:])

            self._hooks.append(layer.weight_quantizer.register_forward_pre_hook(added))

    def _product(self, weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as it will be when it is merged
            found: torch.Tensor = self.scale * (up @ down)
        return found.to(weight.dtype)

    @torch.no_grad()
    def merge(self, whole: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Iterator[tuple[str, torch.Tensor]]:
        """Add them to the weights and take them off, layer by layer: names of those weights, and the weights.

        `whole` gives all of a weight or an adapter of which this process has a part; it is then a copy that is given.
        """
        for hook in self._hooks:
            hook.remove()
        for name, layer in self.layers.items():
            weight, up, down = (whole(layer._parameters[n]) for n in ("weight", UP, DOWN))
            weight += self._product(weight, up, down)
            del layer._parameters[DOWN], layer._parameters[UP]
            yield f"{name}.weight", weight
