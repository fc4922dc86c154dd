"""The full-precision model as teacher: frozen, beside the student and not within it.

modelopt's distillation puts the teacher into the student's module tree, where it is saved, cast and wrapped with it, and
cannot lie on another device; with `requires_grad_` it would be trained, and weights of losses that sum to 1 drop the task's.
The loss is modelopt's where both can be had (tests/test_training.py compares them).
"""

from hashlib import sha256
from typing import Any

import torch

from diffopt.errors import GateError
from diffopt.groups.train import Teacher as Keeping
from diffopt.pipeline.placement import stream


class Teacher:
    """Called with a backbone's name and inputs. `backbones` are those of the pipeline by name."""

    def __init__(self, backbones: dict[str, Any], keeping: Keeping, device: str):
        self.backbones, self.device = backbones, device
        for backbone in backbones.values():
            backbone.requires_grad_(False)
            if keeping.storage:
                backbone.enable_layerwise_casting(getattr(torch, keeping.storage), backbone.dtype)
            if keeping.offload and torch.device(device).type == "cuda":
                backbone.to("cpu")
                stream(backbone, device)
            else:
                backbone.to(device)
        self.digest = self._hash()

    def __call__(self, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.backbones[name](**inputs, return_dict=False)[0]
        return found

    def check(self) -> str:
        """The sha256 of its weights, which is what it was before training. Raises GateError where it is not."""
        if (now := self._hash()) != self.digest:
            raise GateError(f"train: the teacher's weights changed (got {now[:16]}, not {self.digest[:16]}); report it")
        return now

    def _hash(self) -> str:
        found = sha256()
        for backbone_name, backbone in sorted(self.backbones.items()):
            for name, x in sorted(backbone.state_dict().items()):
                found.update(f"{backbone_name}.{name} {x.dtype} {tuple(x.shape)}".encode())
                found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()
