"""Drawing with a pipeline: one generator per prompt, so that a picture depends on its seed alone."""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch

from diffopt.data.prompts import PromptSet
from diffopt.pipeline.texts import CONDITION, Texts


def batches(prompts: PromptSet, size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Index of the first prompt, and the prompts, of each batch."""
    for start in range(0, len(prompts), size):
        yield start, prompts.prompts[start : start + size]


def draw(
    pipe: Any,
    texts: Texts,
    seeds: Sequence[int],
    steps: int,
    arguments: dict[str, Any],
    *,
    decode: bool = True,
    inference: bool = True,
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Run the pipeline on one batch.

    Returns float32 in 0..1, [batch, height, width, 3] of pictures or [batch, frames, height, width, 3] of videos, or
    the family's latents when not decoded. `on_step` is called when each denoising step ends. Without `inference` the tensors
    that are made may have a part in a gradient later.
    """

    def stepped() -> None:
        if on_step:
            on_step()

    # Some pipelines have another negative prompt than none as their default, and refuse it beside its embeddings.
    none = {"negative_prompt": None} if "negative_prompt_embeds" in texts and _takes(pipe, "negative_prompt") else {}
    # What is observed must count its changes in place, which tensors of inference mode do not.
    with torch.inference_mode() if decode and inference else torch.no_grad():
        out = pipe(
            **{name: _shown(x) for name, x in texts.items() if name != CONDITION},
            num_inference_steps=steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np" if decode else "latent",
            **_called(pipe, stepped),
            **none,
            **arguments,
        )
    drawn = out.frames if hasattr(out, "frames") else out.images
    return np.asarray(drawn if decode else drawn.float().cpu())


def _takes(pipe: Any, name: str) -> bool:
    """Whether its call may have an argument of that name."""
    takes = signature(type(pipe).__call__).parameters
    return name in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())


def _shown(x: Any) -> Any:
    """Pictures, uint8 [b, c, h, w], in 0..1 as pipelines take them; all else as it is."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.uint8:
        return x
    # Channels last, as diffusers has a PIL picture: a convolution's last bits depend on it.
    return x.float().contiguous(memory_format=torch.channels_last) / 255


def _called(pipe: Any, stepped: Callable[[], None]) -> dict[str, Any]:
    """The argument by which a pipeline calls `stepped` at the end of each step; PixArt's has the older one."""

    def ended(_pipe: Any, _index: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        stepped()
        return state

    if hasattr(pipe, "_callback_tensor_inputs"):  # it has the argument; that of its call may be hidden in others
        return {"callback_on_step_end": ended}
    return {"callback": lambda _index, _time, _latents: stepped()}
