"""export: the backbone, plain or quantized, as an ONNX graph with its quantized weights stored in few bits."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from diffopt import models
from diffopt.artifact import Checkpoint, OnnxGraph, Pipeline
from diffopt.errors import DiffoptError, GateError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.graph import OUTPUT, GraphInput, OnnxGraphFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups import Export, Model
from diffopt.groups.cut import CutView, cuts
from diffopt.groups.export import SHAPES
from diffopt.groups.model import GuidedView
from diffopt.layouts import demo_diffusion
from diffopt.models import names
from diffopt.models.family import Family, Size
from diffopt.stage import Context, Under, stage
from diffopt.view import Choices, Group, View

if TYPE_CHECKING:
    import torch

    from diffopt.caches.segment import Segment
    from diffopt.graph.calls import Calls


class SizeView(GuidedView, of=Model):
    """The extent of a backbone call; guidance doubles its rows."""

    height: int
    width: int
    frames: int | None
    guidance_scale: float
    max_sequence_length: int | None


class GraphView(View, of=Export):
    opset: int
    batch_size: int
    max_batch_size: int | None
    high_precision_dtype: Literal["float32", "float16", "bfloat16"] | None
    heights: tuple[int, int] | None = None
    widths: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    target: Literal["demo_diffusion"] | None = None

    @classmethod
    def fields_read(cls) -> frozenset[str]:
        return frozenset({*cls.model_fields, "profiles"})

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        export = choices.export
        return cls.fields_read() - {*(SHAPES if export and export.profiles == "original" else ())}

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        """Of the original's shapes, where they are asked for, or the group's own."""
        assert isinstance(group, Export)
        assert choices.model is not None
        given: dict[str, Any] = {name: getattr(group, name) for name in cls.model_fields}
        if group.profiles == "original":
            original = models.of(choices.model).original
            _, most = original.get("batch_size", (1, 1))
            given |= {name: original.get(name) for name in ("heights", "widths", "frames")}
            given |= {"batch_size": most, "max_batch_size": most if most > 1 else None}
        return [cls(**given)]

    def identity(self, used: frozenset[str]) -> dict[str, Any]:
        """What a graph is made with, wherever it comes from, and of sizes and targets only those that there are: graphs from
        before there were such choices stay known."""
        dumped = self.model_dump(mode="json")
        return {n: x for n, x in dumped.items() if n not in ("heights", "widths", "frames", "target") or x is not None}


@stage(version=2, when="export", probes=("numerics", "modelopt", "onnx"))
def export(
    ctx: Context,
    model: SizeView,
    export: GraphView,
    pipeline: Pipeline,
    checkpoint: Checkpoint | None,
    cache: Annotated[CutView | None, Under(cuts, silent=True)] = None,
) -> OnnxGraph:
    import diffusers
    import torch

    from diffopt.graph.calls import Calls
    from diffopt.pipeline.open import by_name, config, family_of, tokens
    from diffopt.quantization.checkpoint import restore
    from diffopt.quantization.narrow import narrow

    family, head = family_of(pipeline), CheckpointFile.read(checkpoint.path) if checkpoint else None
    pinned = PipelineFile.read(pipeline.path)
    if head and head.adopted and (folded := head.adopted.folded):
        raise GateError(
            f"export: {len(folded)} layers came with scales of blocks that a graph does not have, which finds its own "
            f"(got {folded[0]} ...); choose export=huggingface or export=native"
        )
    whole = restore(ctx, pipeline, checkpoint)
    narrow(whole, getattr(torch, export.high_precision_dtype or pinned.dtype), head.inputs if head else "max")
    layers = head.layers if head else ()
    described = partial(
        OnnxGraphFile,
        format=head.format if head else None,
        weights=pinned.weights,
        backbones=pinned.backbones,
        batch_size=export.batch_size,
        diffusers=diffusers.__version__,
    )
    extent = Size(1, model.height, model.width, model.max_sequence_length or tokens(ctx, pipeline), model.frames or 1)
    vae = config(ctx, pinned, "vae")

    def calls(backbone: torch.nn.Module) -> Calls:
        usual = (backbone, family, vae, extent, family.rows(model), export.batch_size, export.max_batch_size)
        return Calls(*usual, *_extremes(extent, export))

    def reuse(name: str, backbone: torch.nn.Module) -> "list[Segment]":
        return reused(cache, family, name, backbone)

    def placed(called: Calls) -> partial[OnnxGraphFile]:
        return partial(described, **_place(export, model, called, head.format if head else None))

    write_graphs(ctx.out, by_name(pinned, whole), calls, export.opset, layers, reuse, placed)


def write_graphs(
    out: Path,
    backbones: "Mapping[str, torch.nn.Module]",
    calls: "Callable[[torch.nn.Module], Calls]",
    opset: int,
    layers: Sequence[str],
    reuse: "Callable[[str, torch.nn.Module], list[Segment]]",
    described: "Callable[[Calls], partial[OnnxGraphFile]]",
) -> None:
    """Write the graphs of a pipeline's backbones to the directory `out`, of several in a folder each, and what they are.

    `layers` are the quantized ones, `calls` what a backbone's graph is to take, `reuse` where it is to be cut, and `described`
    has what there is to say of each besides.
    """
    several = len(backbones) > 1
    graphs: dict[str, OnnxGraphFile] = {}
    for name, backbone in backbones.items():
        own = [n.removeprefix(f"{name}.") for n in layers if not several or n.startswith(f"{name}.")]
        folder = out / name if several else out
        folder.mkdir(exist_ok=True)
        called = calls(backbone)
        graphs[name] = _write(folder, called, opset, own, reuse(name, backbone), described(called))
        if several:
            graphs[name].write(folder)
    weights = sum(g.bytes for g in graphs.values())
    operators = dict(sum((Counter(g.operators) for g in graphs.values()), Counter()))
    replace(next(iter(graphs.values())), bytes=weights, operators=operators).write(out)


def reused(cache: CutView | None, family: Family, name: str, backbone: "torch.nn.Module") -> "list[Segment]":
    """Where the graph of a backbone is to be cut. Raises GateError for what of its blocks cannot be reused."""
    if cache is None:
        return []
    from diffopt.caches.blocks import divide
    from diffopt.caches.target import Target

    policy = cache.policy
    if not policy.blocks:  # of a family that was not found yet when this was planned
        policy = replace(policy, blocks=family.cached, reuse=family.cached_reuse)
    try:
        blocks = Target(None, family, {name: backbone}).blocks(backbone)
        return divide(
            family, name, blocks, lambda names: dict.fromkeys(policy.reused(names), policy.reuses), policy.part, policy.reuse
        )
    except ValueError as e:
        raise GateError(f"cache.blocks: {e}") from None


def _place(export: GraphView, model: SizeView, calls: "Calls", format: str | None) -> dict[str, str]:
    """What there is to say of a graph that is for another program: its file, its output, the command."""
    if export.target is None:
        return {}
    config: Any = calls.backbone.config
    family = calls.family
    place = demo_diffusion.place(
        demo_diffusion.Asked(
            family=family.name,
            format=format,
            dtype=str(calls.backbone.dtype).removeprefix("torch."),
            distilled=bool(config.guidance_embeds) if family.name == "flux" else family.guided(model),
            height=model.height,
            width=model.width,
            batch_size=export.batch_size,
        )
    )
    return {"file": place.file, "output": demo_diffusion.OUTPUT, "command": place.command}


def _extremes(extent: Size, export: GraphView) -> tuple[Size, Size] | tuple[None, None]:
    """The extents of a row of the smallest and the largest pictures, where they differ."""
    given = {"height": export.heights, "width": export.widths, "frames": export.frames}
    pairs = {name: pair for name, pair in given.items() if pair}
    if not pairs:
        return None, None
    least, most = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return replace(extent, **least), replace(extent, **most)


def _write(
    folder: Path, calls: "Calls", opset: int, layers: list[str], reused: "list[Segment]", described: partial[OnnxGraphFile]
) -> OnnxGraphFile:
    """Write to `folder` the graph of one backbone, of which `layers` are quantized and `reused` is cut out; what there is to
    say of it, of which `described` has what holds for all backbones, and its file."""
    from diffopt.graph.joined import joined
    from diffopt.graph.part_files import CutPoints
    from diffopt.graph.write import write

    backbone, given, profile = calls.backbone, calls.usual, calls.profile
    batched = calls.batched if calls.dynamic else None
    cut = CutPoints(reused, calls.shapes) if reused else None
    head = described.keywords
    path = folder / head.get("file", "model.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with joined(backbone, calls.family.join):
            graph = write(backbone, calls.traced(), path, opset, batched, calls.family.call, cut, calls.size_axes)
    except DiffoptError:
        raise
    except Exception as e:  # of a backbone that nobody has exported yet
        if calls.family.name in names():
            raise
        what = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:120]}"
        raise GateError(
            f"export: no graph can be written of a {calls.family.backbone_class} (got {what}); drop export"
        ) from None
    if "output" in head:
        demo_diffusion.rename_output(path, OUTPUT)
    # A checkpoint counts layers that a model has without reading what they make.
    layers = [n for n in layers if n not in graph.unused]
    _check(graph.quantized_products, len(layers), "weight", graph.operators)
    quantizers: list[Any] = [backbone.get_submodule(n).input_quantizer for n in layers]
    _check(graph.quantized_inputs, sum(q.is_enabled for q in quantizers), "input", graph.operators)
    return described(
        opset=graph.opset,
        inputs={n: GraphInput(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for n, x in given.items()},
        profile=profile,
        quantized_layers=len(layers),
        unused_layers=tuple(graph.unused),
        quantized_products=graph.quantized_products,
        operators=graph.operators,
        bytes=graph.bytes,
        reused=tuple(n for s in reused for n in s.modules) if reused else None,
        pieces=tuple(graph.parts or ()) if reused else None,
    )


def _check(found: int, expected: int, what: str, operators: Mapping[str, int]) -> None:
    if found != expected:
        raise GateError(
            f"export: {found} matrix products of the graph have a quantized {what}, but {expected} layers of the checkpoint do "
            f"(got {operators}); nothing was kept"
        )
