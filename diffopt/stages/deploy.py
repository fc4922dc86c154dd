"""deploy: the checkpoint as other programs load it: vLLM-Omni, SGLang and TensorRT-LLM, ComfyUI, or diffusers."""

import shutil
from typing import Annotated, Literal

from diffopt.artifact import Checkpoint, Components, DeployedCheckpoint, Pipeline
from diffopt.errors import GateError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.components import ComponentsFile
from diffopt.files.deploy import DeployFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Export
from diffopt.groups.export import LAYOUTS
from diffopt.groups.format import slims
from diffopt.layouts import WEIGHTS_ALONE
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices, View


class LayoutView(View, of=Export):
    kind: Literal["graph", "native", "huggingface", "comfyui", "svdquant", "nunchaku"]
    max_shard_size: str

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        whole = choices.export is not None and choices.export.kind == "comfyui"  # it reads one file
        return cls.fields_read() - ({"max_shard_size"} if whole else set())


def wanted(choices: Choices) -> bool:
    return choices.export is not None and choices.export.kind in LAYOUTS


def packs(choices: Choices) -> bool:
    """Whether text encoders in fewer bits go along: a file alone has no place for them."""
    return slims(choices) and choices.export is not None and choices.export.kind != "comfyui"


@stage(version=1, when="export", only=wanted, probes=("numerics", "modelopt"))
def deploy(
    ctx: Context,
    export: LayoutView,
    pipeline: Pipeline,
    checkpoint: Checkpoint,
    components: Annotated[Components | None, Under(packs, silent=True)] = None,
) -> DeployedCheckpoint:
    from diffopt import __version__
    from diffopt.layouts import comfyui, folder, modelopt, nunchaku, svdquant
    from diffopt.layouts.families import NAMES
    from diffopt.machine.environment import package
    from diffopt.pipeline.open import by_name
    from diffopt.quantization.checkpoint import quantized_layers, restore

    pinned, head = PipelineFile.read(pipeline.path), CheckpointFile.read(checkpoint.path)
    whole = restore(ctx, pipeline, checkpoint)
    plain = WEIGHTS_ALONE if head.inputs == "full" else head.format
    formats = {name: (head.mix or {}).get(name, plain) for name in quantized_layers(whole)}
    layouts: dict[str, folder.Layout] = {
        "huggingface": modelopt.Unified(package("nvidia-modelopt") or "", head.block_size, head.rank),
        "svdquant": svdquant.Rows(head.rank or 0),
        "nunchaku": nunchaku.Lanes(head.rank or 0),
    }
    taken = 0
    for name, backbone in by_name(pinned, whole).items():
        prefix = f"{name}." if len(pinned.backbones) > 1 else ""
        own = {n.removeprefix(prefix): f for n, f in formats.items() if n.startswith(prefix)}
        try:
            if export.kind == "comfyui":
                taken += comfyui.write(ctx.out / f"{name}.safetensors", backbone, own, NAMES[pinned.family])
            else:
                taken += folder.write(ctx.out / name, backbone, own, layouts[export.kind], export.max_shard_size)
        except ValueError as e:
            what = f"{str(e).partition('; ')[0]}, and came so; choose another export" if head.adopted else e
            raise GateError(f"export: {what} (got {export.kind})") from None
    slim = ComponentsFile.read(components.path).parts if components else {}
    for name in slim:
        assert components is not None
        shutil.copytree(components.path / name, ctx.out / name)
    DeployFile(
        layout=export.kind,
        family=pinned.family,
        format=head.format,
        backbones=pinned.backbones,
        source=pinned.source,
        weights=pinned.weights,
        dtype=pinned.dtype,
        layers=formats,
        share_scales=head.share_scales,
        bytes=taken,
        components={n: c.format for n, c in slim.items()},
        versions={"diffopt": __version__, **{n: package(n) or "" for n in ("torch", "diffusers", "nvidia-modelopt")}},
    ).write(ctx.out)
