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
from diffopt.models import Family
from diffopt.models.family import prediction
from diffopt.pipeline.placement import stream
from diffopt.training.shards import Shards


class Teacher:
    """Called with a backbone's name and inputs. `backbones` are those of the pipeline by name; with `shards` they are cut."""

    def __init__(
        self,
        backbones: dict[str, Any],
        keeping: Keeping,
        device: str,
        shards: Shards | None = None,
        family: Family | None = None,
    ):
        self.backbones, self.device, self.shards = backbones, device, shards
        if shards:
            assert family is not None
            for backbone in backbones.values():
                backbone.requires_grad_(False)
                shards.cut(backbone.to("cpu"), family, keeping.offload)
            self.digest = self._hash()
            return
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
            return prediction(self.backbones[name](**inputs, return_dict=False))

    def check(self) -> str:
        """The sha256 of its weights, which is what it was before training. Raises GateError where it is not."""
        if (now := self._hash()) != self.digest:
            raise GateError(f"train: the teacher's weights changed (got {now[:16]}, not {self.digest[:16]}); report it")
        return now

    def _hash(self) -> str:
        """Of whole weights; of shards that of the first process, empty in the others."""
        found = sha256()
        tells = self.shards is None or self.shards.accelerator.is_main_process
        for backbone_name, backbone in sorted(self.backbones.items()):
            for name, x in sorted(backbone.state_dict().items()):
                if self.shards:
                    x = self.shards.whole(x)
                if not tells:
                    continue
                found.update(f"{backbone_name}.{name} {x.dtype} {tuple(x.shape)}".encode())
                found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest() if tells else ""
