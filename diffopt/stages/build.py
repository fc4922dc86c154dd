"""build: an engine plan from the graph, with what built it and what can run it."""

from shutil import copyfile

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.plan import EnginePlanFile, PartPlan
from diffopt.groups import Export
from diffopt.stage import Context, stage
from diffopt.view import View


class BuilderView(View, of=Export):
    builder_optimization_level: int


@stage(version=2, when="export", probes=("tensorrt",))
def build(ctx: Context, export: BuilderView, graph: OnnxGraph) -> EnginePlan:
    from diffopt.graph import engine

    plans: list[PartPlan] = []
    for part in graph.by_backbone().values():
        folder = ctx.out / part.path.relative_to(graph.path)
        folder.mkdir(exist_ok=True)
        copyfile(part.path / OnnxGraphFile.NAME, folder / OnnxGraphFile.NAME)  # what runs a plan needs no graph beside it
        for file in OnnxGraphFile.read(part.path).parts:
            made = engine.build(part.path / file.file, export.builder_optimization_level, file.profile)
            target = (folder / file.file).with_suffix(".plan")
            target.write_bytes(made.plan)
            plans.append(PartPlan(str(target.relative_to(ctx.out)), len(made.plan), tuple(made.profiles), file.reused))
    head = OnnxGraphFile.read(graph.path)
    head.write(ctx.out)
    EnginePlanFile(
        builder=made.flavour,
        version=made.version,
        target=made.target,
        profiles=tuple(x for p in plans for x in p.profiles) if head.pieces else tuple(made.profiles),
        builder_optimization_level=export.builder_optimization_level,
        bytes=sum(p.bytes for p in plans),
        format=head.format,
        plans=tuple(plans) if head.pieces else None,
    ).write(ctx.out)
