"""pack: the checkpoint's real low-precision weights in safetensors, which `diffopt.load` reads into diffusers' own module."""

import logging
from dataclasses import replace

from diffopt.artifact import Checkpoint, NativeCheckpoint, Pipeline
from diffopt.errors import GateError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.native import NativeFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Export
from diffopt.stage import Context, stage
from diffopt.view import Choices, View

log = logging.getLogger("diffopt")


class ShardView(View, of=Export):
    max_shard_size: str


def packs(choices: Choices) -> bool:
    return choices.export is not None and choices.export.kind == "native"


@stage(version=1, when="export", only=packs, probes=("numerics", "modelopt"))
def pack(ctx: Context, export: ShardView, pipeline: Pipeline, checkpoint: Checkpoint) -> NativeCheckpoint:
    import torch

    from diffopt import __version__
    from diffopt.kernels import packed
    from diffopt.kernels.convert import convert
    from diffopt.machine.environment import package
    from diffopt.pipeline.open import by_name
    from diffopt.quantization.checkpoint import restore

    pinned, format = PipelineFile.read(pipeline.path), CheckpointFile.read(checkpoint.path).format
    whole = restore(ctx, pipeline, checkpoint)
    many = {n: sum(p.numel() for p in m.parameters()) for n, m in by_name(pinned, whole).items()}
    left = convert(whole).left
    if not (kinds := packed.kernels(whole)):
        raise GateError(f"export: no layer has a kernel (got {next(iter(left.values()), format)}); drop export=native")
    backbones = by_name(pinned, whole)
    head = NativeFile(
        family=pinned.family,
        format=format,
        backbones=pinned.backbones,
        source=pinned.source,
        weights=pinned.weights,
        dtype=pinned.dtype,
        layers=kinds,
        fell_back=left,
        bytes=sum(packed.size(m) for m in backbones.values()),
        bytes_in_16_bits=2 * sum(many.values()),
        versions={"diffopt": __version__, **{n: package(n) or "" for n in ("torch", "diffusers", "nvidia-modelopt")}},
    )
    if not isinstance(whole, torch.nn.ModuleDict):
        packed.save(ctx.out, whole, head, export.max_shard_size)
    else:
        head.write(ctx.out)
        for name, backbone in backbones.items():
            own = replace(
                head,
                backbones=(name,),
                layers=_within(name, kinds),
                fell_back=_within(name, left),
                bytes=packed.size(backbone),
                bytes_in_16_bits=2 * many[name],
            )
            (ctx.out / name).mkdir()
            packed.save(ctx.out / name, backbone, own, export.max_shard_size)
    for name, why in left.items():
        log.debug("pack: %s falls back: %s", name, why)


def _within(backbone: str, names: dict[str, str]) -> dict[str, str]:
    return {n.removeprefix(f"{backbone}."): x for n, x in names.items() if n.startswith(f"{backbone}.")}
