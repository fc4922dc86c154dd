"""A backbone's folder as diffusers has them, its quantized layers in Model-Optimizer's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from diffopt.files.checkpoint import CheckpointFile
from diffopt.layouts import modelopt

PATTERN = "diffusion_pytorch_model{suffix}.safetensors"


def write(folder: Path, backbone: Any, formats: Mapping[str, str], head: CheckpointFile, version: str, shard: str) -> int:
    """Write a backbone as `checkpoint.restore` gave it, which stays as it is; the bytes of its tensors.

    `formats` are its quantized layers', `version` is modelopt's. Raises ValueError, naming the layer, for what the layout
    cannot say: convolutions, and attention whose products are quantized.
    """
    found = {name: x for name, x in backbone.state_dict().items() if "_quantizer." not in name}
    for name, module in backbone.named_modules():
        if getattr(getattr(module, "q_bmm_quantizer", None), "is_enabled", False):
            raise ValueError(
                f"{name} has quantized attention, which the layout has no place for; set format.quantize_mha=false"
            )
    for name, format in formats.items():
        layer = backbone.get_submodule(name)
        if not isinstance(layer, torch.nn.Linear):
            raise ValueError(f"{name} is a convolution, which the layout has no place for; leave it out by format.exclude")
        try:
            tensors = modelopt.layer(layer, format)
        except ValueError as e:
            raise ValueError(f"{name}: {e}; leave it out by format.exclude") from None
        found |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    plain = [n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Linear) and n not in formats]
    config = json.loads(backbone.to_json_string())
    config.pop("_name_or_path", None)  # a path of the machine that made it
    config["quantization_config"] = modelopt.config(formats, plain, version, head.block_size, head.rank)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    own = {name: x.detach().cpu().contiguous() for name, x in found.items()}
    save_torch_state_dict(own, folder, filename_pattern=PATTERN, max_shard_size=shard)
    return sum(x.nbytes for x in own.values())
