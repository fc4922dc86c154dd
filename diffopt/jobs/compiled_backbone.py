"""`diffopt.compile`: the backbones of a script's own pipeline by engine plans, made of what is there already."""

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from diffopt import models
from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.caches.cachify import Cachify, policy
from diffopt.caches.loop import Loop
from diffopt.errors import PlanError
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph.calls import Calls
from diffopt.groups.cut import CutView, cuts
from diffopt.groups.model import Model
from diffopt.machine import engine_gpus, environment
from diffopt.models.family import Family, Json, Size
from diffopt.pipeline.open import default_dtype
from diffopt.quantization.extremes import quantizers
from diffopt.quantization.narrow import narrow
from diffopt.runtimes.engines import Engines
from diffopt.runtimes.stand_in import CutStandIn, StandIn, looped
from diffopt.runtimes.tensorrt import OpenPlan
from diffopt.stage import Context
from diffopt.stages.build import BuilderView, build
from diffopt.stages.export import GraphView, reused, write_graphs
from diffopt.view import Choices

WEIGHT = ".weight_quantizer"


def compile(target: Any, choices: Choices, onnx: Path | None, plans: Path | None, *, cuda_graph: bool = False) -> Any:
    """As `diffopt.compile`: `choices` has a model and an export of a plan, and may have a cache that a graph is cut for."""
    assert choices.model is not None
    family = models.of(choices.model)
    pipe = target if isinstance(target, DiffusionPipeline) else None
    backbones = _backbones(target, pipe, family)
    if choices.cache and not (cuts(choices) and pipe):
        what = "needs the pipeline, whose loop it follows" if cuts(choices) else "decides while it runs what it reuses"
        raise PlanError(f"cache: {what} (got a {type(target).__name__}); give a pipeline and cache=cachify, or drop the cache")
    here = environment.tensorrt()
    if here and (reason := engine_gpus.unfit(here["flavour"], environment.gpus())):
        raise PlanError(f"diffopt.compile: tensorrt {reason}; leave the backbone as it is")
    with ExitStack() as stack:
        opened = stack.enter_context(ExitStack())
        engines = Engines("cuda" if torch.cuda.is_available() else "cpu", plans, cuda_graph)  # first: it may not be installed
        opened.callback(engines.close)
        folder = _there(stack, plans, EnginePlanFile.NAME, partial(_build, backbones, choices, pipe, onnx))
        head = EnginePlanFile.read(folder)
        found = {n: OpenPlan(engines, p, head, family) for n, p in EnginePlan(folder, "").by_backbone().items()}
        empty = {name: _empty(backbone) for name, backbone in backbones.items()}
        if unlike := {*found} ^ {*empty}:
            raise PlanError(f"engine_path: is of other backbones (got {sorted(found)}, not {sorted(empty)}); lacks {unlike}")
        made = _placed(opened, found, empty, pipe, choices)
        end = weakref.finalize(next(iter(made.values())), opened.pop_all().close)  # at the process's end at the latest
    for stand_in in made.values():
        stand_in.close = end
    return pipe if pipe is not None else next(iter(made.values()))


def _placed(
    opened: ExitStack, plans: Mapping[str, OpenPlan], empty: Mapping[str, Any], pipe: Any, choices: Choices
) -> Mapping[str, StandIn]:
    """What stands in the backbones' places, put there where there is a pipeline."""
    if choices.cache is None:
        whole = {name: plan.whole(empty[name]) for name, plan in plans.items()}
        for name, stand_in in whole.items() if pipe is not None else ():
            setattr(pipe, name, stand_in)
        return whole
    assert choices.model is not None
    assert isinstance(choices.cache, Cachify)
    steps = policy(choices.cache.filled(models.of(choices.model)))

    def made(loop: Loop) -> Iterator[tuple[str, CutStandIn]]:
        for name, plan in plans.items():
            yield name, plan.cut(steps, loop, empty[name])

    opened.enter_context(looped(pipe, made))
    return {name: getattr(pipe, name) for name in plans}


def _backbones(target: Any, pipe: Any, family: Family) -> dict[str, torch.nn.Module]:
    names = [n for n in family.backbones if getattr(pipe, n, None) is not None] if pipe is not None else family.backbones[:1]
    found = {n: getattr(pipe, n) if pipe is not None else target for n in names}
    for module in found.values() or [target]:
        if type(module).__name__ != family.backbone_class:
            raise PlanError(
                f"backbone: is no {family.backbone_class}, as {family.name} has it (got a {type(module).__name__}); "
                "give another model_id"
            )
    return found


def _empty(backbone: torch.nn.Module) -> Any:
    """The same without weights, so that those can be let go."""
    given: Any = backbone
    with torch.device("meta"), default_dtype(given.dtype):
        return type(given).from_config(given.config)


def _there(stack: ExitStack, asked: Path | None, name: str, make: Callable[[Path], None]) -> Path:
    """The directory that is asked for if it is there, else made there, whole or not at all; or made for as long as `stack`."""
    field = "engine_path" if name == EnginePlanFile.NAME else "onnx_path"
    if asked is not None and (asked / name).is_file():
        return asked
    if asked is not None and asked.exists() and (not asked.is_dir() or any(asked.iterdir())):
        raise PlanError(f"{field}: holds no {name} (got {str(asked)!r}); give what diffopt wrote, or a new directory")
    if asked is None:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make(made)
        return made
    asked.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=asked.parent, prefix=f".{asked.name}."))
    try:
        make(draft)
        draft.chmod(0o755)
        os.replace(draft, asked)
    except BaseException:
        rmtree(draft)
        raise
    return asked


def _build(backbones: dict[str, torch.nn.Module], choices: Choices, pipe: Any, onnx: Path | None, out: Path) -> None:
    """Write a plan of the graph that is at `onnx`, or is written there first."""
    with ExitStack() as stack:
        graph = _there(stack, onnx, OnnxGraphFile.NAME, partial(_export, backbones, choices, pipe))
        assert choices.export is not None
        (view,) = BuilderView.split(choices.export, choices)
        build.run(_context(out), view, OnnxGraph(graph, ""))


def _export(backbones: dict[str, torch.nn.Module], choices: Choices, pipe: Any, out: Path) -> None:
    model = choices.model
    assert model is not None
    assert choices.export is not None
    family = models.of(model)
    (asked,) = GraphView.split(choices.export, choices)
    cache = CutView.split(choices.cache, choices)[0] if choices.cache else None
    vae, extent = _vae(pipe, model), Size(1, model.height, model.width, _tokens(pipe, model), model.frames or 1)
    for backbone in backbones.values():
        backbone.eval()
        if asked.high_precision_dtype:
            narrow(backbone, getattr(torch, asked.high_precision_dtype))
    prefixes = {n: f"{n}." if len(backbones) > 1 else "" for n in backbones}
    layers = [prefixes[n] + x for n, backbone in backbones.items() for x in _quantized(backbone)]

    def calls(backbone: torch.nn.Module) -> Calls:
        return Calls(backbone, family, vae, extent, family.rows(model), asked.batch_size, asked.max_batch_size)

    described = partial(
        OnnxGraphFile,
        format=None,
        weights=model.weights,
        backbones=tuple(backbones),
        batch_size=asked.batch_size,
        diffusers=diffusers.__version__,
    )
    reuse = partial(reused, cache, family)
    write_graphs(out, backbones, calls, asked.opset, layers, reuse, lambda _: described)


def _quantized(backbone: torch.nn.Module) -> list[str]:
    """Layers whose weight Model-Optimizer quantizes."""
    return [name.removesuffix(WEIGHT) for name, x in quantizers(backbone) if name.endswith(WEIGHT) and x.is_enabled]


def _vae(pipe: Any, model: Model) -> Json:
    if pipe is not None:
        return dict(pipe.vae.config)
    for source in (model.architecture, model.source):
        if source and source.directory and (path := source.directory / "vae" / "config.json").is_file():
            found: Json = json.loads(path.read_text())
            return found
    raise PlanError(f"backbone: its VAE is not here (got {model.source.name!r}); give the pipeline instead of its backbone")


def _tokens(pipe: Any, model: Model) -> int:
    """Of a prompt; 0 leaves it to the family."""
    tokenizer = getattr(pipe, "tokenizer_2", None) or getattr(pipe, "tokenizer", None)
    return model.max_sequence_length or int(getattr(tokenizer, "model_max_length", 0))


def _context(out: Path) -> Context:
    """Of the build alone, which asks for no source."""

    def none(_: Any) -> Any:
        raise AssertionError("a build reads no source")

    return Context(out, none, none)
