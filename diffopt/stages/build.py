"""build: an engine plan from the graph, with what built it and what can run it."""

import json
from typing import Any

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.groups import Export
from diffopt.stage import Context, stage
from diffopt.view import View


class BuilderView(View, of=Export):
    builder_optimization_level: int


@stage(version=1, when="export", probes=("tensorrt",))
def build(ctx: Context, export: BuilderView, graph: OnnxGraph) -> EnginePlan:
    from diffopt.graph import engine

    plans: list[dict[str, Any]] = []
    for part in graph.by_backbone().values():
        folder = ctx.out / part.path.relative_to(graph.path)
        folder.mkdir(exist_ok=True)
        for file in part.files():
            made = engine.build(part.path / file["file"], export.builder_optimization_level, file["profile"])
            target = (folder / file["file"]).with_suffix(".plan")
            target.write_bytes(made.plan)
            row = {"file": str(target.relative_to(ctx.out)), "bytes": len(made.plan), "profiles": made.profiles}
            plans.append(row | {"reused": file["reused"]})
    head = graph.json("graph.json")
    about = {
        "builder": made.flavour,
        "version": made.version,
        "target": made.target,
        "profiles": made.profiles,
        "builder_optimization_level": export.builder_optimization_level,
        "bytes": sum(p["bytes"] for p in plans),
        "format": head["format"],
    }
    if "pieces" in head:
        about |= {"profiles": [x for p in plans for x in p["profiles"]], "plans": plans}
    (ctx.out / "plan.json").write_text(json.dumps(about, indent=1))
