"""Text encoders with their weights alone in FP8 or INT8, a scale a row: torchao's, by transformers' own configuration.

They are written as transformers writes them and read as it reads them, so that every program with torchao does. What they
compute is that of the weights' numbers in the model's precision: it takes less memory, and no less time.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from diffopt.artifact import Pipeline
from diffopt.files.components import Component
from diffopt.files.originals import OriginalsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.models import of
from diffopt.models.parts import Parts
from diffopt.pipeline.open import open_texts
from diffopt.stage import Context


def write(ctx: Context, pipeline: Pipeline, wanted: Mapping[str, str]) -> dict[str, Component]:
    """Write each into a folder of its name in `ctx.out`; `wanted` are formats by name."""
    pinned = PipelineFile.read(pipeline.path)
    parts = Parts(ctx.locate(pinned.source), of(pinned), pinned.variant)
    dtype = getattr(torch, pinned.dtype)
    changed = {n for adapter in pinned.lora for n in adapter.hits}
    if (pipeline.path / OriginalsFile.NAME).is_file():
        changed |= {*OriginalsFile.read(pipeline.path).parts}
    found = {}
    for name, format in wanted.items():
        with TemporaryDirectory() if name in changed else nullcontext(parts.directory / name) as folder:
            variant = parts.variant_of(name)
            if name in changed:  # with its adapters, or out of a file of its makers
                getattr(open_texts(ctx, pipeline), name).save_pretrained(folder)
                variant = None
            how: dict[str, Any] = {"dtype": dtype, "variant": variant, "quantization_config": _config(format)}
            made = getattr(transformers, parts.named[name]).from_pretrained(folder, **how)
        made.save_pretrained(ctx.out / name)
        found[name] = Component(
            format=format,
            layers=sum(_quantized(m) for m in made.modules()),
            bytes=sum(p.stat().st_size for p in (ctx.out / name).glob("*.safetensors")),
            plain=sum(p.numel() * dtype.itemsize for p in made.parameters()),
        )
    return found


def _config(format: str) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(quant_type={"fp8": Float8WeightOnlyConfig, "int8": Int8WeightOnlyConfig}[format]())


def _quantized(module: torch.nn.Module) -> bool:
    from torchao.utils import TorchAOBaseTensor

    return isinstance(module, torch.nn.Linear) and isinstance(module.weight, TorchAOBaseTensor)
