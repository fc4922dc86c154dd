"""export: the backbone, plain or quantized, as an ONNX graph with its quantized weights stored as integers."""

import json
from typing import Literal

from diffopt.artifact import Checkpoint, OnnxGraph, Pipeline
from diffopt.errors import GateError
from diffopt.groups import Export, Model
from diffopt.stage import Context, stage
from diffopt.view import View


class SizeView(View, of=Model):
    height: int
    width: int
    max_sequence_length: int | None


class GraphView(View, of=Export):
    opset: int
    batch_size: int
    dtype: Literal["float32", "float16"] | None


@stage(version=1, when="export", probes=("numerics", "modelopt", "onnx"))
def export(ctx: Context, model: SizeView, export: GraphView, pipeline: Pipeline, checkpoint: Checkpoint | None) -> OnnxGraph:
    import diffusers
    import torch

    from diffopt.checkpoint import HEAD, restore
    from diffopt.graph import packing
    from diffopt.models.family import Size
    from diffopt.pipeline.open import config, family_of

    family, head = family_of(pipeline), checkpoint.json(HEAD) if checkpoint else None
    pinned = pipeline.json("pipeline.json")
    backbone = restore(ctx, pipeline, checkpoint).to("cpu", getattr(torch, export.dtype or pinned["dtype"]))
    size = Size(export.batch_size, model.height, model.width, model.max_sequence_length or 0)
    inputs = family.inputs(backbone, config(ctx, pinned, "vae"), size)
    graph = packing.write(backbone, inputs, ctx.out / "model.onnx", export.opset, head["format"] if head else None)
    expected = len(head["layers"]) if head else 0
    if graph.quantized_products != expected:
        raise GateError(
            f"export: {graph.quantized_products} matrix products of the graph are quantized, but {expected} layers of the "
            f"checkpoint are (got {graph.operators}); nothing was kept"
        )
    (ctx.out / "graph.json").write_text(
        json.dumps(
            {
                "format": head["format"] if head else None,
                "opset": export.opset,
                "batch_size": export.batch_size,
                "inputs": {
                    n: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for n, x in inputs.items()
                },
                "quantized_layers": expected,
                "quantized_products": graph.quantized_products,
                "operators": graph.operators,
                "diffusers": diffusers.__version__,
            },
            indent=1,
        )
    )
