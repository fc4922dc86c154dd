"""Where modules lie: on the GPU when they fit beside what they compute, else on the CPU, moved over as they are needed."""

from collections.abc import Iterable
from typing import Any

import torch

from diffopt.machine.memory import ROOM, SPARE


def weight(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of all parameters and buffers."""
    return sum(x.numel() * x.element_size() for m in modules for x in (*m.parameters(), *m.buffers()))


def fits(size: int, device: str) -> bool:
    """Whether `size` bytes of weights can be worked with on the device."""
    if torch.device(device).type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return int(size * ROOM) + SPARE <= free


def place(pipe: Any, device: str, lean: bool = False) -> Any:
    """Put a pipeline on the device: whole, else one component at a time, else one layer group at a time.

    `lean` is one component at a time where it would fit whole: the same kernels compute the same numbers.
    """
    if lean and torch.device(device).type == "cuda" and getattr(pipe, "vae", None) is not None:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    modules = [m for m in modules if next(m.parameters()).device.type != torch.device(device).type]
    if fits(weight(modules), device):
        return pipe.to(device)
    if len(modules) > 1 and fits(max(weight([m]) for m in modules), device):
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    for module in modules:
        if fits(weight([module]), device):
            module.to(device)
        else:
            stream(module, device)
    return pipe


def stream(module: torch.nn.Module, device: str) -> None:
    """Keep a module on the CPU and move its blocks to the device one ahead of when they are needed."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=True,
    )
