"""A backbone's folder as diffusers has them, its quantized layers in the layout of another program."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import save_torch_state_dict

PATTERN = "diffusion_pytorch_model{suffix}.safetensors"


class Layout(Protocol):
    def layer(self, quantized: Any, format: str) -> dict[str, torch.Tensor]:
        """A linear layer's tensors by the last part of their names. Raises ValueError for what the layout cannot say."""

    def config(self, formats: Mapping[str, str], plain: Iterable[str]) -> dict[str, Any]:
        """`quantization_config` of a backbone whose quantized layers have these formats; `plain` are its other linear ones."""


def write(folder: Path, backbone: Any, formats: Mapping[str, str], layout: Layout, shard: str) -> int:
    """Write a backbone as `checkpoint.restore` gave it, which stays as it is; the bytes of its tensors.

    `formats` are its quantized layers'. Raises ValueError, naming the layer, for what the layout cannot say: convolutions, and
    attention whose products are quantized.
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
            tensors = layout.layer(layer, format)
        except ValueError as e:
            what, _, advice = str(e).partition("; ")
            raise ValueError(f"{name}: {what}; {advice or 'leave it out by format.exclude'}") from None
        if format in ("fp8", "int8") and "input_scale" not in tensors:
            raise ValueError(f"{name} came without a scale of its inputs, which the layout wants of {format}")
        found.pop(f"{name}.weight")
        found |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    plain = [n for n, m in backbone.named_modules() if isinstance(m, torch.nn.Linear) and n not in formats]
    config = json.loads(backbone.to_json_string())
    config.pop("_name_or_path", None)  # a path of the machine that made it
    config["quantization_config"] = layout.config(formats, plain)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    own = {name: x.detach().cpu().contiguous() for name, x in found.items()}
    save_torch_state_dict(own, folder, filename_pattern=PATTERN, max_shard_size=shard)
    return sum(x.nbytes for x in own.values())
