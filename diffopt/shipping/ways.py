"""The ways out: what `diffopt store export --as` writes a checkpoint as. Imports no torch."""

from dataclasses import dataclass

from diffopt.artifact import Artifact, Checkpoint, DeployedCheckpoint, NativeCheckpoint
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.deploy import DeployFile
from diffopt.formats import OURS
from diffopt.groups.export import LAYOUTS
from diffopt.kernels.capability import KIND
from diffopt.layouts import COMFYUI
from diffopt.store.entry import Entry

SVDQUANT = frozenset({"nvfp4_svdquant"})
CHECKPOINTS = ("diffusers", "modelopt")
"""Weights that are written from a checkpoint alone, by no step of a plan."""


@dataclass(frozen=True)
class Way:
    name: str
    kind: str
    """The kind of `export` that has these weights, or one of CHECKPOINTS."""
    about: str
    whole: bool = True
    """Whether it is a folder of diffusers, with the rest of the pipeline beside the backbone."""
    formats: frozenset[str] | None = None
    """That the weights can be in; None takes any, as far as is known before a layer is looked at."""

    @property
    def artifact(self) -> type[Artifact] | None:
        """What is copied as it is, where the store has it; None where weights are always written from a checkpoint."""
        if self.kind in CHECKPOINTS:
            return None
        return NativeCheckpoint if self.kind == "native" else DeployedCheckpoint

    def refusal(self, head: CheckpointFile) -> str | None:
        """Why a checkpoint cannot go this way, by its formats alone; None where it may."""
        each = head.mix or dict.fromkeys(head.layers, head.format)
        found = [n for n in head.layers if self.formats is not None and each[n] not in self.formats]
        if not found:
            return None
        return f"{found[0]} is in {each[found[0]]}, and --as {self.name} takes {', '.join(sorted(self.formats or ()))}"

    @property
    def takes(self) -> tuple[str, ...]:
        """Kinds of artifacts: of another way's weights the checkpoint is looked up that they were made of."""
        return tuple(k.kind for k in (Checkpoint, DeployedCheckpoint, NativeCheckpoint))


_ALL = (
    Way("hf", "huggingface", "Model-Optimizer's layout: vLLM-Omni, SGLang, TensorRT-LLM", formats=frozenset(OURS)),
    Way("comfyui", "comfyui", "one file for ComfyUI", whole=False, formats=frozenset(COMFYUI)),
    Way("svdquant", "svdquant", "SVDQuant for vLLM-Omni", formats=SVDQUANT),
    Way("nunchaku", "nunchaku", "SVDQuant for Nunchaku's kernels, by diffusers", formats=SVDQUANT),
    Way("native", "native", "diffopt's own kernels, by diffopt.load", whole=False, formats=frozenset(KIND)),
    Way("diffusers", "diffusers", "plain weights in the model's precision, rounded once: any diffusers"),
    Way("modelopt", "modelopt", "weights and quantizers: diffusers with Model-Optimizer, bit for bit what was simulated"),
)
WAYS = {w.name: w for w in _ALL if w.kind in ("native", *CHECKPOINTS, *LAYOUTS)}


def own(entry: Entry) -> Way | None:
    """The way that an artifact's weights are written for already; None of what is not written for one."""
    if entry.kind == NativeCheckpoint.kind:
        return WAYS["native"]
    if entry.kind != DeployedCheckpoint.kind:
        return None
    layout = DeployFile.read(entry.path).layout
    return next((w for w in WAYS.values() if w.kind == layout), None)
