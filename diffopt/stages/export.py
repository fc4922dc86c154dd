"""export: the backbone, plain or quantized, as an ONNX graph with its quantized weights stored in few bits."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from diffopt.artifact import Checkpoint, OnnxGraph, Pipeline
from diffopt.errors import GateError
from diffopt.groups import Export, Model
from diffopt.stage import Context, stage
from diffopt.view import View

if TYPE_CHECKING:
    import torch

Inputs = Mapping[str, "torch.Tensor"]


class SizeView(View, of=Model):
    height: int
    width: int
    max_sequence_length: int


class GraphView(View, of=Export):
    opset: int
    batch_size: int
    max_batch_size: int | None
    high_precision_dtype: Literal["float32", "float16", "bfloat16"] | None


@stage(version=2, when="export", probes=("numerics", "modelopt", "onnx"))
def export(ctx: Context, model: SizeView, export: GraphView, pipeline: Pipeline, checkpoint: Checkpoint | None) -> OnnxGraph:
    import diffusers
    import torch

    from diffopt.checkpoint import HEAD, restore
    from diffopt.graph.write import write
    from diffopt.models.family import Size
    from diffopt.models.open import family_of

    family, head = family_of(pipeline), checkpoint.json(HEAD) if checkpoint else None
    pinned = pipeline.json("pipeline.json")
    backbone = restore(ctx, pipeline, checkpoint)
    device = next(backbone.parameters()).device
    _convert(backbone, getattr(torch, export.high_precision_dtype or pinned["dtype"]))
    vae = json.loads((ctx.locate(pinned["source"]) / "vae" / "config.json").read_text())
    vae_scale = 2 ** (len(vae["block_out_channels"]) - 1)

    def inputs(batch: int) -> dict[str, torch.Tensor]:
        size = Size(batch, model.height, model.width, model.max_sequence_length)
        return {n: x.to(device) for n, x in family.inputs(backbone, vae_scale, size).items()}

    unbatched = getattr(family, "unbatched", ("img_ids", "txt_ids"))
    batched = {n: 0 for n, x in inputs(1).items() if x.dim() and n not in unbatched}
    dynamic = export.max_batch_size is not None
    # Traced with one row a broadcast along the batch axis would not be told from a fixed axis.
    example = inputs(max(2, export.batch_size) if dynamic else export.batch_size)
    graph = write(backbone, example, ctx.out / "model.onnx", export.opset, batched if dynamic else None)
    # A checkpoint counts layers that a model has without reading what they make.
    layers = [n for n in (head["layers"] if head else []) if n not in graph.unused]
    _check(graph.quantized_products, len(layers), "weight", graph.operators)
    quantizers: list[Any] = [backbone.get_submodule(n).input_quantizer for n in layers]
    both = sum(q.is_enabled for q in quantizers)
    _check(graph.quantized_inputs, both, "input", graph.operators)
    extents = {"min": 1, "opt": export.batch_size, "max": export.max_batch_size}
    (ctx.out / "graph.json").write_text(
        json.dumps(
            {
                "format": head["format"] if head else None,
                "opset": graph.opset,
                "batch_size": export.batch_size,
                "inputs": _about(inputs(export.batch_size)),
                "profile": {n: {k: _shape(example[n], a, b) for k, b in extents.items()} for n, a in batched.items()}
                if dynamic
                else None,
                "quantized_layers": len(layers),
                "unused_layers": graph.unused,
                "quantized_products": graph.quantized_products,
                "operators": graph.operators,
                "bytes": graph.bytes,
                "diffusers": diffusers.__version__,
            },
            indent=1,
        )
    )


def _check(found: int, expected: int, what: str, operators: Mapping[str, int]) -> None:
    if found != expected:
        raise GateError(
            f"export: {found} matrix products of the graph have a quantized {what}, but {expected} layers of the checkpoint do "
            f"(got {operators}); nothing was kept"
        )


def _convert(backbone: "torch.nn.Module", dtype: "torch.dtype") -> None:
    """In place, tensor by tensor. Raises GateError for a weight that is beyond the range of `dtype`."""
    import torch

    if next(p.dtype for p in backbone.parameters() if p.is_floating_point()) == dtype:
        return
    torch.nn.Module.to(backbone, dtype)  # diffusers' own `to` warns of modules that it wants in float32
    for name, weight in backbone.named_parameters():
        if not torch.isfinite(weight).all():
            raise GateError(
                f"export: {name} has values that {str(dtype).removeprefix('torch.')} cannot hold (got inf or NaN); "
                "set export.high_precision_dtype=bfloat16 or float32"
            )


def _about(inputs: Inputs) -> dict[str, dict[str, Any]]:
    return {n: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for n, x in inputs.items()}


def _shape(x: "torch.Tensor", axis: int, extent: int | None) -> list[int]:
    """The shape of `x` with another extent of one axis."""
    assert extent is not None
    return [extent if i == axis else n for i, n in enumerate(x.shape)]
