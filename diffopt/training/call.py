"""Calling a backbone on noised latents, as its pipeline would."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch

from diffopt.errors import PlanError
from diffopt.models import Family
from diffopt.models.family import Json, Size
from diffopt.pipeline.texts import CONDITION, Texts


class Caller:
    """Makes the inputs of backbone calls of a family at one size; `model` is an object with the fields of the group model."""

    def __init__(self, family: Family, vae: Json, model: Any):
        self.family, self.vae, self.model = family, vae, model
        self._examples: dict[Any, dict[str, Any]] = {}

    def inputs(self, backbone: Any, noisy: torch.Tensor, timesteps: torch.Tensor, texts: Texts) -> dict[str, Any]:
        """The backbone's keyword arguments for packed latents `noisy` [b, ...], timesteps [b] and embeddings, in its
        precision and where the latents lie. Raises PlanError for latents of another size.
        """
        family = self.family
        assert family.conditions is not None
        whole = family.joined(noisy, texts[CONDITION]) if CONDITION in texts else noisy
        given = family.conditions(texts, noisy) | {family.noisy: whole}
        example = self._example(backbone, len(noisy), given["encoder_hidden_states"].shape[1], noisy.device)
        wanted = example[family.noisy].shape
        if whole.shape != wanted:
            raise PlanError(
                f"train.data: latents are not of model.height={self.model.height} and model.width={self.model.width} "
                f"(got {tuple(whole.shape[1:])} where the backbone takes {tuple(wanted[1:])}); prepare the data again"
            )
        time = example["timestep"]  # a number, one for each row, or one for each patch of each row
        spread = timesteps.reshape(-1, *[1] * (time.dim() - 1)).expand(len(noisy), *time.shape[1:]) if time.dim() else timesteps
        found = {}
        for name, value in (example | given | {"timestep": spread}).items():
            like = example.get(name)
            found[name] = value.to(like) if isinstance(value, torch.Tensor) and isinstance(like, torch.Tensor) else value
        return family.call(found)

    def _example(self, backbone: Any, rows: int, tokens: int, device: torch.device) -> dict[str, Any]:
        key = rows, tokens, backbone.dtype, device
        if key not in self._examples:
            model = self.model
            found = self.family.inputs(backbone, self.vae, Size(rows, model.height, model.width, tokens, model.frames or 1))
            if "guidance" in found:
                found["guidance"] = torch.full_like(found["guidance"], model.guidance_scale)
            self._examples[key] = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in found.items()}
        return self._examples[key]


@contextmanager
def watched(backbone: torch.nn.Module, names: list[str]) -> Iterator[dict[str, tuple[torch.Tensor, ...]]]:
    """Within it, what the blocks called `names` give is put into the dict that is yielded, by name."""
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    handles = []
    for name in names:

        def note(_module: Any, _args: Any, out: Any, name: str = name) -> None:
            seen[name] = tuple(x for x in out if isinstance(x, torch.Tensor)) if isinstance(out, tuple) else (out,)

        handles.append(backbone.get_submodule(name).register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def blocks(backbone: torch.nn.Module, family: Family, globs: list[str]) -> list[str]:
    """Names of the backbone's blocks that the globs name."""
    there = [f"{group}.{i}" for group in family.blocks for i in range(len(getattr(backbone, group)))]
    return [name for name in there if any(fnmatch(name, g) for g in globs)]
