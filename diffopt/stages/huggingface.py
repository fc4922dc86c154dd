"""huggingface: the checkpoint as vLLM-Omni, SGLang and TensorRT-LLM load it, a folder of diffusers each backbone."""

from diffopt.artifact import Checkpoint, HuggingFaceCheckpoint, Pipeline
from diffopt.errors import GateError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.huggingface import HuggingFaceFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Export
from diffopt.stage import Context, stage
from diffopt.view import Choices, View


class FileView(View, of=Export):
    max_shard_size: str


def wanted(choices: Choices) -> bool:
    return choices.export is not None and choices.export.kind == "huggingface"


@stage(version=1, when="export", only=wanted, probes=("numerics", "modelopt"))
def huggingface(ctx: Context, export: FileView, pipeline: Pipeline, checkpoint: Checkpoint) -> HuggingFaceCheckpoint:
    from diffopt import __version__
    from diffopt.layouts import folder
    from diffopt.machine.environment import package
    from diffopt.pipeline.open import by_name
    from diffopt.quantization.checkpoint import quantized_layers, restore

    pinned, head = PipelineFile.read(pipeline.path), CheckpointFile.read(checkpoint.path)
    whole = restore(ctx, pipeline, checkpoint)
    formats = {name: (head.mix or {}).get(name, head.format) for name in quantized_layers(whole)}
    taken = 0
    for name, backbone in by_name(pinned, whole).items():
        prefix = f"{name}." if len(pinned.backbones) > 1 else ""
        own = {n.removeprefix(prefix): f for n, f in formats.items() if n.startswith(prefix)}
        try:
            taken += folder.write(ctx.out / name, backbone, own, head, package("nvidia-modelopt") or "", export.max_shard_size)
        except ValueError as e:
            raise GateError(f"export: {e} (got huggingface)") from None
    HuggingFaceFile(
        family=pinned.family,
        format=head.format,
        backbones=pinned.backbones,
        source=pinned.source,
        weights=pinned.weights,
        dtype=pinned.dtype,
        layers=formats,
        share_scales=head.share_scales,
        bytes=taken,
        versions={"diffopt": __version__, **{n: package(n) or "" for n in ("torch", "diffusers", "nvidia-modelopt")}},
    ).write(ctx.out)
