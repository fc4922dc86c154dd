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
    if checkpoint is None:
        return in_format(pipeline, (), 0, None)
    there = {*checkpoint.layers}
    return in_format(pipeline, [x for x in layers if x.name in there], checkpoint.weight_bits, checkpoint.rank)


def in_format(pipeline: PipelineFile, quantized: Iterable[Layer], bits: float, rank: int | None) -> int:
    """The same where these layers' weights take so many bits each, and a part of `rank` is kept beside them."""
    width = BYTES.get(pipeline.dtype, 4)
    total = float(pipeline.parameters * width)
    for shape in (x.shape for x in quantized):
        total += prod(shape) * (bits / 8 - width)
        total += (rank or 0) * (shape[0] + prod(shape[1:])) * width
    return round(total)
