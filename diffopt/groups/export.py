"""`export=`: which deployable files are made."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from diffopt.schema import Group


class Export(Group):
    steers: ClassVar[frozenset[str]] = frozenset({"engine"})

    engine: bool
    """Build a TensorRT engine plan from the graph."""
    opset: int = Field(ge=19, le=21)
    """ONNX opset that is traced, at least 19 for FP8. A graph with INT4 or FP4 weights says 21 or 23, where those came."""
    batch_size: int = Field(ge=1)
    """Batch axis of the graph: images per backbone call, each twice where guidance is computed in one call. With
    `max_batch_size` what the plan is tuned for."""
    max_batch_size: int | None = Field(ge=1, default=None)
    """Largest extent of a dynamic batch axis; null makes it static."""
    high_precision_dtype: Literal["float32", "float16", "bfloat16"] | None
    """Precision of what is not quantized; null takes the model's."""
    builder_optimization_level: int = Field(ge=0, le=5, default=3)
    """TensorRT's effort: 0 builds fastest, 5 searches longest."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_batch_size is not None and self.max_batch_size < self.batch_size:
            raise ValueError(
                f"max_batch_size: is less than export.batch_size={self.batch_size} (got {self.max_batch_size}); raise it, "
                "or null it for a graph of one batch size"
            )
        return self
