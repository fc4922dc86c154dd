"""What a backbone's weights take in its format, counted from its layers. Imports no torch."""

from math import prod

from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.layers import read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.model import BYTES
from diffopt.report.run_directory import Run


def weight_bytes(run: Run) -> int | None:
    """Bytes of all weights as a runtime with the format's kernels keeps them; None for a run without a source.

    A quantized layer's weights take the format's stored bits, block scales included; the low-rank part of SVDQuant and
    every other parameter take the source's precision. Scales of channels and tensors are below a thousandth and left out.
    """
    pipeline = run.stored("load", PipelineFile)
    if not pipeline:
        return None
    width = BYTES.get(pipeline.dtype, 4)
    total = float(pipeline.parameters * width)
    if checkpoint := run.stored("quantize", CheckpointFile):
        shapes = {x.name: x.shape for x in read_layers(run.directory / "load")}
        for shape in (shapes[name] for name in checkpoint.layers if name in shapes):
            total += prod(shape) * (checkpoint.weight_bits / 8 - width)
            total += (checkpoint.rank or 0) * (shape[0] + prod(shape[1:])) * width
    return round(total)
