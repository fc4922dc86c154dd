"""Opening a pinned pipeline, and drawing with it: one generator per prompt, so a picture depends on its seed alone."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from safetensors import SafetensorError

from diffopt import quiet
from diffopt.artifact import Pipeline
from diffopt.errors import SourceError
from diffopt.models import Family, family
from diffopt.prompts import PromptSet
from diffopt.stage import Context

quiet.libraries()


def open_pipeline(ctx: Context, pipeline: Pipeline) -> Any:
    """The diffusers pipeline on the run's device, in the pinned dtype, silent."""
    pinned = pipeline.json("pipeline.json")
    cls = getattr(diffusers, family(pinned["family"]).pipeline)
    pipe = _read(cls, ctx.locate(pinned["source"]), torch_dtype=getattr(torch, pinned["dtype"]))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(ctx.device)


def open_backbone(ctx: Context, pipeline: Pipeline) -> torch.nn.Module:
    """The denoising network alone, in evaluation mode, on the run's device."""
    pinned = pipeline.json("pipeline.json")
    kind = family(pinned["family"])
    cls = getattr(diffusers, kind.backbone_class)
    dtype = getattr(torch, pinned["dtype"])
    backbone = _read(cls, ctx.locate(pinned["source"]), subfolder=kind.backbone, torch_dtype=dtype)
    found: torch.nn.Module = backbone.eval().to(ctx.device)
    return found


def _read(cls: Any, directory: Path, **how: Any) -> Any:
    try:
        return cls.from_pretrained(directory, **how)
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise SourceError(f"model.source: cannot be read: {reason} (got {str(directory)!r}); download it again") from None


def family_of(pipeline: Pipeline) -> Family:
    return family(pipeline.json("pipeline.json")["family"])


def batches(prompts: PromptSet, size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Index of the first prompt, and the prompts, of each batch."""
    for start in range(0, len(prompts), size):
        yield start, prompts.prompts[start : start + size]


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    arguments: dict[str, Any],
    *,
    decode: bool = True,
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Run the pipeline on one batch.

    Returns pictures as float32 [batch, height, width, 3] in 0..1, or the family's latents when not decoded. `on_step`
    is called when each denoising step ends.
    """

    def stepped(_pipe: Any, _index: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step()
        return state

    with torch.inference_mode():
        out = pipe(
            prompt=list(prompts),
            num_inference_steps=steps,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np" if decode else "latent",
            callback_on_step_end=stepped,
            **arguments,
        )
    return np.asarray(out.images if decode else out.images.float().cpu())
