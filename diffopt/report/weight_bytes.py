"""What a backbone's weights take in its format, counted from its layers. Imports no torch."""

from collections.abc import Iterable
from math import prod

from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.layers import Layer
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.model import BYTES


def weight_bytes(pipeline: PipelineFile, checkpoint: CheckpointFile | None, layers: Iterable[Layer]) -> int:
    """Bytes of all weights as a runtime with the format's kernels keeps them.

    A quantized layer's weights take the format's stored bits, block scales included; the low-rank part of SVDQuant and
    every other parameter take the source's precision. Scales of channels and tensors are below a thousandth and left out.
    """
    width = BYTES.get(pipeline.dtype, 4)
    total = float(pipeline.parameters * width)
    if checkpoint:
        shapes = {x.name: x.shape for x in layers}
        for shape in (shapes[name] for name in checkpoint.layers if name in shapes):
            total += prod(shape) * (checkpoint.weight_bits / 8 - width)
            total += (checkpoint.rank or 0) * (shape[0] + prod(shape[1:])) * width
    return round(total)
