"""Training sets made by hand: noise, or what the embedded model draws."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import Bench

from diffopt.artifact import TrainSet
from diffopt.groups.train import TrainView


def write(folder: Path, latents: torch.Tensor, texts: dict[str, torch.Tensor], prompts: list[str], text: list[int]) -> TrainSet:
    save_file({"latents": latents.contiguous()}, folder / "latents.safetensors")
    save_file({n: x.contiguous() for n, x in texts.items()}, folder / "texts.safetensors")
    about = {"schema": "diffopt.trainset/1", "items": len(latents), "prompts": prompts, "text": text, "skipped": 0}
    (folder / "set.json").write_text(json.dumps(about))
    return TrainSet(folder, "trainset")


def drawn(b: Bench, prompts: list[str], each: int, steps: int, folder: Path) -> TrainSet:
    """`each` latents of every prompt by the full-precision FLUX of the bench."""
    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.open import open_pipeline
    from diffopt.pipeline.texts import encode

    pipe = open_pipeline(b.context(), b.pipeline())
    texts = encode(b.context(), pipe, b.pipeline(), prompts, b.call)
    arguments = {"height": b.call.height, "width": b.call.width, "guidance_scale": b.call.guidance_scale}
    found, text = [], []
    for i in range(0, len(prompts), 16):
        for turn in range(each):
            part = {n: x[i : i + 16] for n, x in texts.items()}
            many = len(part["prompt_embeds"])
            seeds = [1000 * (turn + 1) + i + j for j in range(many)]
            packed = torch.from_numpy(draw(pipe, part, seeds, steps, arguments, decode=False))
            found.append(pipe._unpack_latents(packed, b.call.height, b.call.width, pipe.vae_scale_factor))
            text += range(i, i + many)
    return write(folder, torch.cat(found), {n: x.cpu() for n, x in texts.items()}, prompts, text)


DEFAULTS = {
    "steps": 4,
    "batch_size": 4,
    "micro_batch": None,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "clip": 1.0,
    "ema": None,
    "precision": "float32",
    "weights": "float32",
    "gradient_checkpointing": False,
    "timesteps": "family",
    "quantize_inputs": True,
    "scales": "fixed",
    "scale_learning_rate": None,
    "unconditional": 0.1,
    "lora": None,
    "distillation": None,
    "validation": None,
    "save_every": 2,
    "trackers": [],
    "parallel": None,
    "processes": None,
    "machines": 1,
    "rendezvous": None,
}


def view(**changes: object) -> TrainView:
    return TrainView(**DEFAULTS | changes)


QAD = {"output": 1.0, "task": 0.0, "hidden": 0.0, "blocks": [], "teacher": {"offload": False, "storage": None}}
