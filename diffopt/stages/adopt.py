"""adopt: a checkpoint of a model that is quantized already, as it came: nothing is calibrated, and no code becomes another."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from diffopt import formats, models
from diffopt.artifact import Checkpoint, Pipeline
from diffopt.errors import SourceError
from diffopt.files.checkpoint import Adopted, CheckpointFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Format, Model
from diffopt.groups.format import Name
from diffopt.groups.quantized_source import Quantized, recognised
from diffopt.stage import Context, stage
from diffopt.store.source import ModelSource
from diffopt.view import Choices, View

if TYPE_CHECKING:
    import torch

    from diffopt.layouts.read import Read

log = logging.getLogger("diffopt")


class SourceView(View, of=Model):
    family: str
    source: ModelSource


class CameView(View, of=Format):
    """What the source was found to be in."""

    name: Name


def adopts(choices: Choices) -> bool:
    return choices.model is not None and choices.model.quantized is not None


@stage(version=1, when="format", only=adopts, probes=("numerics", "modelopt"))
def adopt(ctx: Context, model: SourceView, format: CameView, pipeline: Pipeline) -> Checkpoint:
    from diffopt.layouts.proof import proved
    from diffopt.pipeline.open import blank_backbone, device
    from diffopt.quantization import adopted, checkpoint

    pinned = PipelineFile.read(pipeline.path)
    try:
        found = recognised(ctx.locate(ctx.digest(model.source)), models.of(pinned))
        assert found is not None
        blank = blank_backbone(ctx, pipeline)
        read = _read(pinned, found, blank)
        head, stored = _head(pinned, format.name, found, read), read.tensors()
        backbone = adopted.restored(blank, head, stored).to(device(ctx, pipeline))
    except ValueError as e:
        what, _, advice = str(e).partition("; ")
        raise SourceError(
            f"model.source: {what} (got {model.source.name!r}); {advice or 'copy it again, or choose what it was made of'}"
        ) from None
    assert head.adopted is not None
    with ctx.progress(len(read.layers)) as tick:
        carried, folded = proved(backbone, read.layers, tick)
    checkpoint.save_adopted(ctx.out, replace(head, adopted=replace(head.adopted, carried=carried, folded=folded)), stored)
    if found.source and found.source != pinned.source:
        log.warning(
            "adopt: the source says that it was made of %s, and model.base is %s: is that the same model?",
            found.source,
            pinned.source,
        )
    if folded:
        log.info(
            "adopt: %d of %d layers have scales that rounding does not find again: theirs stay", len(folded), len(head.layers)
        )


def _read(pinned: PipelineFile, found: Quantized, blank: "torch.nn.Module") -> "Read":
    from diffopt.layouts.families import NAMES
    from diffopt.layouts.readers import read
    from diffopt.pipeline.open import by_name

    if lacking := [n for n in pinned.backbones if n not in found.backbones]:
        raise ValueError(f"has no {lacking[0]}, which the model has; give a folder that has {' and '.join(pinned.backbones)}")
    own = by_name(pinned, blank)
    return read(found.layout, {n: (found.backbones[n], own[n]) for n in pinned.backbones}, NAMES.get(pinned.family))


def _head(pinned: PipelineFile, format: str, found: Quantized, read: "Read") -> CheckpointFile:
    from diffopt.quantization import adopted

    kinds = {name: kind for name, (kind, _) in read.layers.items()}
    blocks = {
        t["weight"].shape[1] // t["weight_scale"].shape[1] for k, t in read.layers.values() if formats.method(k).block_size
    }
    ranks = {len(t["svdquant_lora_a"]) for _, t in read.layers.values() if "svdquant_lora_a" in t}
    block = max(blocks, default=None)
    bits = sum(formats.method(k).bits(block) * _many(k, t["weight"]) for k, t in read.layers.values())
    return CheckpointFile(
        family=pinned.family,
        format=format,
        weight_bits=round(bits / sum(_many(k, t["weight"]) for k, t in read.layers.values()), 3),
        block_size=block,
        rank=max(ranks, default=None),
        share_scales=found.share_scales,
        rules=adopted.rules(read.layers, read.attention),
        algorithm=None,
        mix=kinds if format == "auto" else None,
        layers=tuple(kinds),
        adopted=Adopted(layout=found.layout, attention=tuple(read.attention)),
    )


def _many(format: str, codes: "torch.Tensor") -> int:
    """Weights of a layer: of four bits two are in a byte."""
    return codes.numel() * (2 if formats.method(format).weight_bits < 8 else 1)
