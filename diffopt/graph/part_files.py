"""A finished graph, cut at its borders into models of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from diffopt.caches.segment import Segment
from diffopt.files.graph import PartFile
from diffopt.graph.border import DOMAIN
from diffopt.graph.cut import Part, cut
from diffopt.graph.extent import Extent, Shapes, extents
from diffopt.graph.trace import BATCH


@dataclass(frozen=True)
class CutPoints:
    """Where a backbone's graph is cut, and the calls that its parts must take."""

    segments: Sequence[Segment]
    """Of the backbone: a step that reuses takes what leaves them from an earlier step."""
    calls: Mapping[str, Shapes] = field(default_factory=dict)
    """Shapes of the batched inputs for the batches `min`, `opt` and `max`, their first axis; empty for a static graph."""


def part_files(
    model: onnx.ModelProto, traced: onnx.ModelProto, stored: Mapping[str, int], calls: Mapping[str, Shapes]
) -> list[tuple[PartFile, onnx.ModelProto]]:
    """The parts of `model` in their order, still without their initializers among `stored` (name -> bytes).

    `traced` is the same as it was traced: its borders in it, its weights inputs.
    """
    parts = cut(model.graph, stored)
    values = {v.name: v for v in [*model.graph.input, *model.graph.output]}
    crossing = sorted({n for part in parts for n in (*part.inputs, *part.outputs)} - values.keys())
    found = {k: extents(traced, shapes, crossing) for k, shapes in (calls or {"": {}}).items()}
    rows = [next(iter(shapes.values()))[0] for shapes in calls.values()]
    for name in crossing:
        values[name] = _value(name, [x[name] for x in found.values()], rows)
    shapes = {k: {**calls[k], **{n: shape for n, (_, shape) in found[k].items()}} for k in calls}
    made = []
    for i, part in enumerate(parts):
        profile = {n: {k: list(x[n]) for k, x in shapes.items()} for n in part.inputs if _dynamic(values[n])}
        size = sum(stored.get(n, 0) for n in {n for node in part.nodes for n in node.input})
        ports = (part.inputs, part.outputs, part.entering)
        file = PartFile(f"model.{i}.onnx", part.reused, *ports, profile if calls else None, size)
        made.append((file, _model(model, part, values)))
    return made


def _value(name: str, extents: list[Extent], rows: list[int]) -> onnx.ValueInfoProto:
    """What crosses, its dynamic axes those that differ between calls."""
    kind, shape = extents[0]
    axes: list[int | str | None] = []
    for lengths in zip(*(e for _, e in extents), strict=True):
        axes.append(lengths[0] if len({*lengths}) == 1 else BATCH if [*lengths] == rows else None)
    assert len(axes) == len(shape)
    return onnx.helper.make_tensor_value_info(name, kind, axes)


def _dynamic(value: onnx.ValueInfoProto) -> bool:
    return any(not d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


def _model(whole: onnx.ModelProto, part: Part, values: Mapping[str, onnx.ValueInfoProto]) -> onnx.ModelProto:
    read = {name for node in part.nodes for name in node.input}
    graph = onnx.GraphProto(
        name=whole.graph.name,
        node=part.nodes,
        input=[values[n] for n in part.inputs],
        output=[values[n] for n in part.outputs],
        initializer=[i for i in whole.graph.initializer if i.name in read],
    )
    return onnx.ModelProto(
        ir_version=whole.ir_version,
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
        opset_import=[o for o in whole.opset_import if o.domain != DOMAIN],
        graph=graph,
    )
