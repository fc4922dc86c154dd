"""build: an engine plan from the graph, with what is in it, what built it and what can run it."""

import json
from collections import Counter
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from diffopt import formats
from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.errors import GateError
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.json_file import plain
from diffopt.files.plan import LAYERS, EnginePlanFile, PartPlan
from diffopt.groups import Export
from diffopt.groups.export import bytes_of
from diffopt.machine.environment import device
from diffopt.stage import Context, stage
from diffopt.view import View

if TYPE_CHECKING:
    from diffopt.graph.engine.builder import Built
    from diffopt.graph.engine.layers import Products


class BuilderView(View, of=Export):
    builder_optimization_level: int
    refit: bool = False
    weight_streaming: bool = False
    workspace: str | None = None


@stage(version=2, when="export", probes=("tensorrt",))
def build(ctx: Context, export: BuilderView, graph: OnnxGraph) -> EnginePlan:
    from diffopt.graph.engine import builder, command, layers
    from diffopt.graph.engine.options import Options

    options = Options(
        level=export.builder_optimization_level,
        refit=export.refit,
        weight_streaming=export.weight_streaming,
        workspace=bytes_of(export.workspace) if export.workspace else None,
        timings=ctx.timings,
    )
    plans: list[PartPlan] = []
    products: Counter[str] = Counter()
    commands: list[str] = []
    listed = True
    for part in graph.by_backbone().values():
        folder = ctx.out / part.path.relative_to(graph.path)
        folder.mkdir(exist_ok=True)
        copyfile(part.path / OnnxGraphFile.NAME, folder / OnnxGraphFile.NAME)  # what runs a plan needs no graph beside it
        for file in OnnxGraphFile.read(part.path).parts:
            made = builder.build(part.path / file.file, options, file.profile)
            target = (folder / file.file).with_suffix(".plan")
            target.write_bytes(made.plan)
            _write_layers(target, made)
            products.update(layers.products(made.layers, made.products).counts)
            listed = listed and bool(made.layers)
            name = target.relative_to(ctx.out)
            shapes = made.profiles[0] if made.profiles else None
            commands.append(command.line(made.flavour, made.version, options, name.with_suffix(".onnx"), name, shapes))
            plans.append(PartPlan(str(name), made.plan.nbytes, tuple(made.profiles), file.reused))
    head = OnnxGraphFile.read(graph.path)
    head.write(ctx.out)
    counted = sum(OnnxGraphFile.read(part.path).quantized_products for part in graph.by_backbone().values())
    if listed:
        _check(layers.Products(products), counted, head.format, made)
    EnginePlanFile(
        builder=made.flavour,
        version=made.version,
        target=builder.target(made),
        profiles=tuple(x for p in plans for x in p.profiles) if head.pieces else tuple(made.profiles),
        builder_optimization_level=export.builder_optimization_level,
        bytes=sum(p.bytes for p in plans),
        format=head.format,
        plans=tuple(plans) if head.pieces else None,
        capabilities=made.capabilities,
        gpu=device() if made.flavour == "tensorrt" else None,
        products=dict(products.most_common()) if listed else None,
        quantized_products=counted,
        refit=export.refit,
        weight_streaming=export.weight_streaming,
        commands=tuple(commands),
    ).write(ctx.out)


def _write_layers(plan: Path, made: "Built") -> None:
    """A list with a layer a line."""
    lines = ",\n".join(json.dumps(plain(layer)) for layer in made.layers)
    plan.with_name(plan.stem + LAYERS).write_text(f"[\n{lines}\n]\n")


def _check(products: "Products", quantized: int, format: str | None, made: "Built") -> None:
    """A plan of a quantized graph multiplies in few bits at least once, or it is none of that format."""
    inputs = format not in (None, "auto") and formats.method(str(format)).inputs
    if quantized and not products.low(inputs):
        counts = ", ".join(f"{n} in {p}" for p, n in products.counts.items())
        raise GateError(
            f"build: {made.flavour} {made.version} runs no matrix product in {format}, though {quantized} of the graph are "
            f"quantized (got {counts}); choose another format, or another builder"
        )
