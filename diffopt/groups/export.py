"""`export=`: which deployable files are made."""

from typing import ClassVar, Literal

from pydantic import Field

from diffopt.view import Group


class Export(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"engine"})

    engine: bool
    """Build a TensorRT engine plan from the graph."""
    opset: int = Field(ge=19, le=21)
    """ONNX opset; FP8 needs 19."""
    batch_size: int = Field(ge=1)
    """Batch axis of the graph, which is static: images per backbone call."""
    dtype: Literal["float32", "float16"] | None
    """Precision of what is not quantized; null takes the model's."""
    builder_optimization_level: int = Field(ge=0, le=5, default=3)
    """TensorRT's effort: 0 builds fastest, 5 searches longest."""
