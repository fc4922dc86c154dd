"""build: an engine plan from the graph, with what built it and what can run it."""

import json

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.groups import Export
from diffopt.stage import Context, stage
from diffopt.view import View


class BuilderView(View, of=Export):
    builder_optimization_level: int


@stage(version=1, when="export", probes=("tensorrt",))
def build(ctx: Context, export: BuilderView, graph: OnnxGraph) -> EnginePlan:
    from diffopt import engine

    size = 0
    for part in graph.parts().values():
        folder = ctx.out / part.path.relative_to(graph.path)
        folder.mkdir(exist_ok=True)
        head = part.json("graph.json")
        made = engine.build(part.path / "model.onnx", export.builder_optimization_level, head["profile"])
        (folder / "model.plan").write_bytes(made.plan)
        size += len(made.plan)
    about = {
        "builder": made.flavour,
        "version": made.version,
        "target": made.target,
        "profiles": made.profiles,
        "builder_optimization_level": export.builder_optimization_level,
        "bytes": size,
        "format": head["format"],
    }
    (ctx.out / "plan.json").write_text(json.dumps(about, indent=1))
