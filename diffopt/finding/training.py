"""Whether a found family can be trained: that needs every input of its backbone, and to know what the prediction is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from diffopt.files.found import Found
from diffopt.finding.recorded import TIME, flat
from diffopt.finding.rehearsal import Rehearsal, Seen
from diffopt.models.family import Size


def trained(found: Found, run: Rehearsal, seen: Seen, texts: Mapping[str, torch.Tensor], size: Size) -> Found:
    """With its `conditions`, or the reason why there are none."""
    given, _ = flat(seen.calls[0].given)
    try:
        conditions = _conditions(given, texts)
        clock = _clock(seen)
        _check_prediction(seen)
        _check_latents(found, given, run, size)
        _check_rest(found, conditions)
    except ValueError as e:
        return replace(found, reasons={**found.reasons, "train": str(e)})
    flows = type(run.pipe.scheduler).__name__.startswith("FlowMatch") or run.pipe.scheduler.config.get("use_flow_sigmas")
    return replace(found, conditions=conditions, clock=clock, density="logit_normal" if flows else "uniform")


def _conditions(given: Mapping[str, Any], texts: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Which inputs are which embeddings: random ones are told by their numbers, masks by their shape."""
    found = {}
    for name, x in given.items():
        for text, y in texts.items():
            if isinstance(x, torch.Tensor) and x.shape == y.shape and torch.equal(x.double(), y.double()):
                found[name] = text
    if "encoder_hidden_states" not in found:
        raise ValueError("its backbone is not given the prompt's embeddings as they are")
    return found


def _clock(seen: Seen) -> float:
    """The timestep of pure noise. Raises ValueError for one that runs the other way."""
    times = [x for c in seen.calls if isinstance(x := flat(c.given)[0].get(TIME), torch.Tensor)]
    if len(times) < len(seen.calls):
        raise ValueError("its backbone takes no timestep")
    numbers = [float(t.flatten()[0]) for t in times]
    if numbers[-1] >= numbers[0]:
        raise ValueError("its timesteps run from noise upwards")
    return 1.0 if numbers[0] <= 1.0 else 1000.0


def _check_prediction(seen: Seen) -> None:
    """The scheduler is given what the backbone gave: else the pipeline turns or scales it, and the target is another."""
    if not seen.steps or len(seen.steps) != len(seen.calls):
        raise ValueError("its scheduler is not asked once for each backbone call")
    out: Any = seen.calls[0].out
    out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
    if not isinstance(out, torch.Tensor):
        raise ValueError("its backbone gives several predictions")
    if not (out.shape == seen.steps[0][0].shape and torch.equal(out.double(), seen.steps[0][0].double())):
        raise ValueError("its pipeline changes the prediction before the scheduler takes it")


def _check_latents(found: Found, given: Mapping[str, Any], run: Rehearsal, size: Size) -> None:
    """What it denoises are the VAE's latents as they are."""
    noisy = given.get(found.noisy)
    config = run.pipe.vae.config
    channels = config.get("latent_channels") or config.get("z_dim")
    if not isinstance(noisy, torch.Tensor) or noisy.dim() < 4 or noisy.shape[1] != channels:
        raise ValueError("how its latents are packed is not known")


def _check_rest(found: Found, conditions: Mapping[str, str]) -> None:
    known = {*conditions, found.noisy, TIME, "guidance"}
    for name, x in (found.inputs or {}).items():
        if name not in known and isinstance(x, Mapping) and x.get("fill") == "noise":
            raise ValueError(f"what its input {name} is made of is not known")
        if name not in known and isinstance(x, Mapping) and x.get("fill") == 0:
            raise ValueError(f"what its input {name} holds is not known")
    if found.inputs is None:
        raise ValueError(f"its inputs are not known: {found.reasons.get('export')}")
