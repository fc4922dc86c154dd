"""FSDP2 by accelerate: each process has a part of every weight, gradient and moment, and of the teacher."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy
from torch.distributed.tensor import DTensor

from diffopt.errors import PlanError
from diffopt.models import Family


def plugin() -> FullyShardedDataParallelPlugin:
    """What accelerate is told. Blocks are gathered before each of their passes and let go after it."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[],  # of each model when it is cut
        cpu_ram_efficient_loading=False,  # it would have every process but the first load nothing: we put scales in
    )


class Shards:
    """Cuts models, and puts their weights together again."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.cuts: list[Any] = []

    def cut(self, model: Any, family: Family, offload: bool = False) -> None:
        """Leave of `model`, whole on the CPU, this process's part on its GPU, or with `offload` in RAM; in place.

        It goes block by block, so that no GPU ever holds a whole model. Raises PlanError for trained weights of several
        precisions, which FSDP2 does not gather together.
        """
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad})
        if len(kinds) > 1:
            raise PlanError(
                f"train.weights: weights in shards are trained in one precision (got {' and '.join(kinds)}); set "
                f"train.weights={kinds[0]} or train.weights=float32"
            )
        state: Any = self.accelerator.state
        if self.accelerator.device.type == "cpu":  # accelerate has FSDP2 on GPUs alone; torch has it on gloo
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin()
        how: Any = state.fsdp_plugin
        blocks = [b for group in family.blocks for b in getattr(model, group)]
        how.transformer_cls_names_to_wrap = sorted({type(b).__name__ for b in blocks})
        cuda = self.accelerator.device.type == "cuda"
        how.cpu_offload = CPUOffloadPolicy() if offload and cuda else OffloadPolicy()
        # Without an optimizer accelerate cuts nothing; ours is of plain tensors, made afterwards.
        self.accelerator.prepare(model, torch.optim.SGD([next(model.parameters())], lr=0.0))
        self.cuts.append(model)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """All of a weight, on this process's device. Every process has to ask for it."""
        if not isinstance(x, DTensor):
            return x
        if x.device.type != self.accelerator.device.type:
            x = x.to(self.accelerator.device)
        sharded: Any = x.detach()
        found: torch.Tensor = sharded.full_tensor()
        return found

    def forget(self) -> None:
        """Let go of what is gathered. Weights outside of blocks stay gathered after a pass that no gradient follows, and
        the next would be made with what they were."""
        for model in self.cuts:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


class LocalShards:
    """An optimizer of plain tensors over what this process has of each weight: all of them but Adafactor go number by number.

    So those of 8 bits work on shards without knowing of them, and what they keep is saved as it is.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self.whole = list(parameters)
        self.parts = [torch.nn.Parameter(_local(p.detach()), requires_grad=True) for p in self.whole]

    @property
    def own(self) -> list[torch.nn.Parameter]:
        """Those of which this process has something: of a short weight the last ones have nothing."""
        return [p for p in self.parts if p.numel()]

    def take(self) -> None:
        """The parts' gradients are this process's parts of the gradients."""
        for whole, part in zip(self.whole, self.parts, strict=True):
            part.data = _local(whole.detach())  # FSDP2 may have put it elsewhere
            part.grad = None if whole.grad is None else _local(whole.grad)

    def drop(self) -> None:
        for whole, part in zip(self.whole, self.parts, strict=True):
            whole.grad = part.grad = None

    def clip(self, most: float) -> torch.Tensor:
        """The norm of the gradient over all processes, to which it is cut down."""
        given = [p.grad for p in self.own if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(given).float() if given else torch.zeros((), device=self.parts[0].device)
        square = norm.square()
        torch.distributed.all_reduce(square)
        total = square.sqrt()
        torch.nn.utils.clip_grads_with_norm_(self.own, most, total)
        return total


def _local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


@contextmanager
def sharding(accelerator: Accelerator) -> Iterator[Shards]:
    """Within it accelerate cuts models with quantizers, by Model-Optimizer's own `prepare`, which hides their buffers from it
    and which Model-Optimizer's trainers alone apply; undone afterwards."""
    from modelopt.torch.quantization.plugins.transformers_trainer import QATTrainer
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    patched: Any = FSDPParamGroup
    before = patched.post_backward
    QATTrainer._patch_accelerate_for_fsdp2_fix(SimpleNamespace(accelerator=accelerator))
    try:
        yield Shards(accelerator)
    finally:
        del accelerator.prepare  # the instance's, over its class's
        patched.post_backward = before
        if hasattr(patched, MARK):
            delattr(patched, MARK)


MARK = "_modelopt_original_post_backward"
