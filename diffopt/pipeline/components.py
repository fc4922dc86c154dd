"""Text encoders with their weights alone in fewer bits, by transformers' own configurations: torchao's FP8 and INT8, a scale a
row, and bitsandbytes' NF4, a scale for 64 numbers.

They are written as transformers writes them and read as it reads them, so that every program with these packages does. What
they compute is that of the weights' numbers in the model's precision: it takes less memory, and no less time.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from diffopt.artifact import Pipeline
from diffopt.errors import GateError
from diffopt.files.components import Component
from diffopt.files.originals import OriginalsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.models import of
from diffopt.models.parts import Parts
from diffopt.pipeline.open import open_texts
from diffopt.stage import Context
from diffopt.store.tensor_file import SUFFIX, order

BLOCK = 64
"""Numbers of NF4 that share a scale."""


def write(ctx: Context, pipeline: Pipeline, wanted: Mapping[str, str]) -> dict[str, Component]:
    """Write each into a folder of its name in `ctx.out`; `wanted` are formats by name. Raises GateError for layers that
    a format has no blocks for."""
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
            how: dict[str, Any] = {"dtype": dtype, "variant": variant, "quantization_config": _config(format, dtype)}
            made = getattr(transformers, parts.named[name]).from_pretrained(folder, **how)
        if format == "nf4" and (
            odd := next((n for n, m in made.named_modules() if _quantized(m) and m.in_features % BLOCK), None)
        ):
            raise GateError(
                f"format.components.{name}: bitsandbytes computes no layer whose inputs are not whole blocks of {BLOCK} "
                f"(got {odd}); choose fp8 or int8"
            )
        made.save_pretrained(ctx.out / name)
        for path in (ctx.out / name).glob(f"*{SUFFIX}"):
            order(path)
        found[name] = Component(
            format=format,
            layers=sum(_quantized(m) for m in made.modules()),
            bytes=sum(p.stat().st_size for p in (ctx.out / name).glob(f"*{SUFFIX}")),
            plain=sum(_numbers(p) * dtype.itemsize for p in made.parameters()),
        )
    return found


def _config(format: str, dtype: torch.dtype) -> Any:
    if format == "nf4":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(quant_type={"fp8": Float8WeightOnlyConfig, "int8": Int8WeightOnlyConfig}[format]())


def _quantized(module: torch.nn.Module) -> bool:
    """Linear layers have weights of a class of the library's own then."""
    return isinstance(module, torch.nn.Linear) and type(module.weight) not in (torch.Tensor, torch.nn.Parameter)


def _numbers(parameter: Any) -> int:
    """How many it stands for: of four bits two are in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())
