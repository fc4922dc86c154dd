"""`export=`: which deployable files are made."""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from diffopt.artifact import Artifact, DeployedCheckpoint, EnginePlan, NativeCheckpoint, OnnxGraph
from diffopt.schema import Group

SHAPES = ("batch_size", "max_batch_size", "heights", "widths", "frames")
GRAPH = ("engine", "opset", *SHAPES, "profiles", "target", "high_precision_dtype")
BUILT = ("builder_optimization_level", "refit", "weight_streaming", "workspace")
PACKED = ("max_shard_size",)
LAYOUTS = ("huggingface", "comfyui", "svdquant", "nunchaku")
"""Kinds that other programs load."""


def bytes_of(size: str) -> int:
    """Of 500MB or 10GB."""
    return int(size[:-2]) * {"MB": 10**6, "GB": 10**9}[size[-2:]]


class Export(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"kind", "engine"})
    readers: ClassVar[dict[str, str]] = {
        **dict.fromkeys(GRAPH, "a graph (export=onnx, export=tensorrt)"),
        **dict.fromkeys(BUILT, "an engine plan (export=tensorrt)"),
        **dict.fromkeys(PACKED, "weights in a folder (export=native, huggingface, svdquant, nunchaku)"),
    }

    kind: Literal["graph", "native", "huggingface", "comfyui", "svdquant", "nunchaku"] = "graph"
    """An ONNX graph, or safetensors of real low-precision weights: for `diffopt.load`, or as
    other programs load them."""
    engine: bool = False
    """Build a TensorRT engine plan from the graph."""
    opset: int = Field(ge=19, le=21, default=20)
    """ONNX opset that is traced, at least 19 for FP8. A graph with INT4 or FP4 weights says 21 or 23, where those came."""
    batch_size: int = Field(ge=1, default=1)
    """Batch axis of the graph: images per backbone call, each twice where guidance is computed in one call. With
    `max_batch_size` what the plan is tuned for."""
    max_batch_size: int | None = Field(ge=1, default=None)
    """Largest extent of a dynamic batch axis; null makes it static."""
    heights: tuple[int, int] | None = None
    """Least and largest height in pixels that one graph takes; null takes `model.height` alone, which plans are tuned for."""
    widths: tuple[int, int] | None = None
    """The same of widths."""
    frames: tuple[int, int] | None = None
    """The same of a video's frames."""
    profiles: Literal["own", "original"] = "own"
    """Take batches and sizes from the fields above, or those that Model-Optimizer's example builds plans for."""
    high_precision_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of what is not quantized; null takes the model's."""
    builder_optimization_level: int = Field(ge=0, le=5, default=3)
    """TensorRT's effort: 0 builds fastest, 5 searches longest."""
    refit: bool = False
    """Build a plan whose weights can be replaced, by those of another fused LoRA for one."""
    weight_streaming: bool = False
    """Build a plan whose weights may stay in RAM, and come to the GPU as they are needed."""
    workspace: str | None = None
    """Scratch memory that a layer of the plan may take, as 2GB; null leaves it to the builder."""
    target: Literal["demo_diffusion"] | None = None
    """Another program whose names and folders the graph is to have; null has diffopt's own."""
    max_shard_size: str = "10GB"
    """Largest file of packed weights; larger ones are split."""

    @field_validator("max_shard_size", "workspace")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[1-9][0-9]*(MB|GB)", value):
            raise ValueError("is not a size; give one as 500MB or 10GB")
        return value

    @property
    def makes(self) -> type[Artifact]:
        """The kind of artifact that is wanted."""
        if self.kind != "graph":
            return NativeCheckpoint if self.kind == "native" else DeployedCheckpoint
        return EnginePlan if self.engine else OnnxGraph

    def unread(self) -> Mapping[str, str]:
        if self.kind != "graph":
            return dict.fromkeys((*GRAPH, *BUILT), "there is no graph")
        shapes = dict.fromkeys(SHAPES, "profiles=original gives it") if self.profiles == "original" else {}
        return shapes | ({} if self.engine else dict.fromkeys(BUILT, "no plan is built"))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind != "graph" and self.engine:
            raise ValueError(
                f"engine: is built of a graph, which kind={self.kind} makes none of (got true); choose export=tensorrt"
            )
        for name in ("heights", "widths", "frames"):
            pair = getattr(self, name)
            if pair and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}: are not a least and a largest one (got {[*pair]}); give them as [512,1024]")
        if self.max_batch_size is not None and self.max_batch_size < self.batch_size:
            raise ValueError(
                f"max_batch_size: is less than export.batch_size={self.batch_size} (got {self.max_batch_size}); raise it, "
                "or set export.max_batch_size=null for a graph of one batch size"
            )
        return self
