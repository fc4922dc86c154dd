"""Other weights for a plan that was built for it: those of another graph of the same model, with another LoRA for one."""

from pathlib import Path

from diffopt.errors import GateError, StoreError
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph.engine import module
from diffopt.graph.engine.log import BuilderLog
from diffopt.graph.engine.validity import unusable
from diffopt.machine.environment import Environment


def refuse(plan: EnginePlanFile, graph: OnnxGraphFile) -> None:
    """Raises StoreError with the reason why the plan cannot take the graph's weights, as far as their files tell."""
    if not plan.refit:
        raise StoreError(
            "store export: the plan was built without export.refit=true (got --refit); run its recipe again with it, on a GPU"
        )
    if plan.plans or graph.pieces or len(graph.backbones) > 1:
        raise StoreError("store export: only a plan that is one file can be refitted (got several); build one without cache=")
    if plan.format != graph.format:
        raise StoreError(
            f"store export: the graph is of another format than the plan (got {graph.format or 'full precision'} for "
            f"{plan.format or 'full precision'}); give a graph of the plan's own recipe with other weights"
        )


def refitted(plan: Path, graph: Path, head: EnginePlanFile) -> memoryview:
    """The plan with the weights of the ONNX file. Loads the plan, so it needs a GPU that can run it; raises StoreError
    where this machine cannot, and GateError for weights that do not fit."""
    if reason := unusable(head, Environment()):
        raise StoreError(reason)
    trt = module(head.builder)
    told = BuilderLog(trt)
    engine = trt.Runtime(told.sink).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise GateError(f"refit: the plan cannot be loaded (got {'; '.join(told.errors)[:300]}); build it again")
    refitter = trt.Refitter(engine, told.sink)
    parser = trt.OnnxParserRefitter(refitter, told.sink)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        missing = f"{len(refitter.get_missing_weights())} weights missing" if not told.errors else "; ".join(told.errors)[:300]
        raise GateError(
            f"refit: the graph's weights do not fit the plan (got {missing}); export the graph by the plan's recipe"
        )
    return memoryview(engine.serialize())
