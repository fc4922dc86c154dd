"""A backbone as diffusers loads it: weights that were rounded once, or plain ones with Model-Optimizer's quantizers beside."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from modelopt.torch.opt import modelopt_state

from diffopt.layouts.folder import PATTERN
from diffopt.quantization.folding import fold

STATE = "modelopt_state.pth"
"""Where Model-Optimizer looks for what it did to a model, beside the weights."""


def unquantized(backbone: Any) -> dict[str, torch.Tensor]:
    """The plain weights of a backbone as `checkpoint.restore` gave it, whose weights are folded then: on the CPU, by name.

    A layer's weight is what it is multiplied with in simulation, bit for bit. Where its input is scaled before it is rounded,
    the scale is in the weight, and so is SVDQuant's low-rank part: then the product is the same but for its last bits.
    """
    parts = {n: _beside(m) for n, m in backbone.named_modules() if hasattr(m, "weight_quantizer")}
    fold(backbone)
    found = {n: x.detach() for n, x in backbone.state_dict().items() if "_quantizer." not in n}
    for name, (low_rank, scale) in parts.items():
        weight = found[f"{name}.weight"]
        exact = weight.float() if low_rank is None else weight.float() + low_rank
        if scale is not None:
            exact = exact * scale.reshape(1, -1, *[1] * (weight.dim() - 2))
        if low_rank is not None or scale is not None:
            found[f"{name}.weight"] = exact.to(weight.dtype)
    return {n: x.cpu().contiguous().clone() for n, x in found.items()}


def _beside(layer: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a layer adds to its weight, FP32 [out, in], and what it multiplies its input by, FP32 [in]."""
    own, entering = layer.weight_quantizer, layer.input_quantizer
    a, b = (getattr(own, f"svdquant_lora_{x}", None) for x in "ab")
    low_rank = None if a is None or b is None else b.detach().float() @ a.detach().float()
    scale = getattr(entering, "pre_quant_scale", None)
    return low_rank, None if scale is None else scale.detach().float().flatten()


def write(folder: Path, backbone: Any, shard: str, *, quantizers: bool) -> None:
    """Write the folder of a backbone as `checkpoint.restore` gave it: without `quantizers`, its weights folded then, or with
    them, as diffusers restores them under `mto.enable_huggingface_checkpointing()`."""
    config = json.loads(backbone.to_json_string())
    config.pop("_name_or_path", None)  # a path of the machine that made it
    folder.mkdir()
    if quantizers:
        torch.save(modelopt_state(backbone), folder / STATE)
        tensors = {n: x.detach().cpu().contiguous().clone() for n, x in backbone.state_dict().items()}
    else:
        tensors = unquantized(backbone)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_torch_state_dict(tensors, folder, filename_pattern=PATTERN, max_shard_size=shard)
