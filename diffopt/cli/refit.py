"""`diffopt store export PLAN DIRECTORY --refit GRAPH`: an engine plan with another graph's weights."""

from pathlib import Path

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.errors import StoreError
from diffopt.store.entry import Entry
from diffopt.text import size


def write(plan: Entry, graph: Entry, directory: Path) -> str:
    """What was written. Nothing is, where that fails."""
    from diffopt.files.graph import OnnxGraphFile
    from diffopt.files.plan import EnginePlanFile
    from diffopt.graph.engine.refit import refitted, refuse

    if (plan.kind, graph.kind) != (EnginePlan.kind, OnnxGraph.kind):
        raise StoreError(
            f"store export: --refit gives an engine the weights of an onnx graph (got {plan.kind} and {graph.kind}); "
            "`diffopt store ls engine` and `diffopt store ls onnx` list them"
        )
    plan.check_content()
    graph.check_content()
    head, about = EnginePlanFile.read(plan.path), OnnxGraphFile.read(graph.path)
    refuse(head, about)
    made = refitted(plan.path / "model.plan", graph.path / about.file, head)
    directory.mkdir(parents=True)
    (directory / "model.plan").write_bytes(made)
    about.write(directory)
    head.write(directory)
    return (
        f"{directory}: {plan.kind} {plan.fingerprint} with the weights of {graph.kind} {graph.fingerprint}, {size(made.nbytes)}"
    )
