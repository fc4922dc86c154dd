"""LoRA adapters for the tiny pipelines, made by peft, saved by diffusers; and the same in kohya's names."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_q", "to_k", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


def adapter(
    directory: Path,
    pipe: Any,
    *,
    targets: list[str] | None = None,
    text: tuple[str, ...] = (),
    backbone: str | None = None,
    rank: int = 4,
    alpha: int = 8,
    seed: int = 0,
) -> Path:
    """Write an adapter for a pipeline's backbone and those of its text encoders; the pipeline is changed by it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    name = backbone or ("unet" if hasattr(pipe, "unet") else "transformer")
    layers, about = {}, {}
    torch.manual_seed(seed)
    for part in (name, *text):
        module = getattr(pipe, part)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=(targets or ATTENTION) if part == name else TEXT)
        module.add_adapter(config)
        with torch.no_grad():
            for key, x in module.named_parameters():
                if "lora_B" in key:
                    x.normal_(0, 0.2)
        kind = "unet" if part == "unet" else "transformer" if part == name else part
        layers[f"{kind}_lora_layers"] = get_peft_model_state_dict(module)
        about[f"{kind}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    pipe.save_lora_weights(directory, **layers, **about)
    return directory / FILE


def kohya_flux(out: Path, width: int, blocks: int, alpha: float, rank: int = 4) -> Path:
    """An adapter for FLUX's double blocks in the names of kohya's scripts: q, k and v are one layer there."""
    torch.manual_seed(3)
    found = {}
    for i in range(blocks):
        for layer, outer in (("img_attn_proj", 1), ("img_attn_qkv", 3), ("txt_attn_qkv", 3)):
            stem = f"lora_unet_double_blocks_{i}_{layer}"
            found[f"{stem}.lora_down.weight"] = torch.randn(rank, width) * 0.1
            found[f"{stem}.lora_up.weight"] = torch.randn(outer * width, rank) * 0.1
            found[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(found, out)
    return out


def kohya(path: Path, out: Path, alpha: float) -> Path:
    """An adapter in the names of kohya's scripts, with its alphas as tensors."""
    found = {}
    for key, x in load_file(path).items():
        component, _, rest = key.partition(".")
        layer, _, half = rest.removesuffix(".weight").rpartition(".lora_")
        prefix = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}.get(component, "lora_unet_")
        if component.startswith("text") and not layer.startswith("text_model"):
            layer = f"text_model.{layer}"
        stem = prefix + layer.replace(".", "_")
        found[f"{stem}.lora_{'down' if half == 'A' else 'up'}.weight"] = x.contiguous()
        found[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(found, out)
    return out
