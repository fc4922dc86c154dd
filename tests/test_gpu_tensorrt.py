"""Engine plans on a GPU that the installed TensorRT runs on: what they compute is what the graph's own model computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import some
from test_cut_runtime import cut_of, view
from tiny import Bench, bench, call

import diffopt
from diffopt.artifact import EnginePlan
from diffopt.files.graph import OUTPUT, OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.groups.cache import CacheView
from diffopt.machine import engine_gpus, environment
from diffopt.quantization import checkpoint
from diffopt.runtimes import RUNTIMES
from diffopt.runtimes.engines import Engines
from diffopt.stages.build import BuilderView, build


def missing() -> str | None:
    """Why no plan runs here, naming the GPU."""
    found, gpus = environment.tensorrt(), environment.gpus()
    if found is None:
        return "no TensorRT is installed"
    return engine_gpus.unfit(found["flavour"], gpus) or (None if torch.cuda.is_available() else "torch sees no GPU")


REASON = missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"tensorrt {REASON}")]
ARGUMENTS = (["a red apple"], [5], 4)


def planned(b: Bench, graph: Any) -> EnginePlan:
    context = b.context()
    build.run(context, BuilderView(builder_optimization_level=2), graph)
    return EnginePlan(context.out, "plan")


def drawn(b: Bench, runtime: str, subject: Any, cache: CacheView | None = None, **kw: Any) -> np.ndarray:
    with RUNTIMES[runtime].running(b.context(), b.pipeline(), subject, cache, texts=True, **kw) as run:
        b.draw(run.pipe, *ARGUMENTS)
        return b.draw(run.pipe, *ARGUMENTS)


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.isfinite().all()
    return float((ours.double().cpu() - theirs.double().cpu()).norm() / theirs.double().cpu().norm())


def fits(name: str | None) -> bool:
    """Whether this GPU multiplies in the format."""
    capability = tuple(map(int, environment.gpus()[0]["capability"].split(".")))
    return capability >= {"fp8": (8, 9), "nvfp4": (12, 0)}.get(name or "", (7, 5))


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("name", [None, "int8_sq", "fp8", "nvfp4"])
def test_a_plan_computes_what_its_format_simulates(name: str | None, rows: int) -> None:
    if not fits(name):
        pytest.skip(f"{name} has no kernels on {environment.gpus()[0]['name']}")
    b = bench("float16", family="flux")
    plan = planned(b, b.graph(name, most=3))
    session = Engines("cuda").open(plan.path / "model.plan", EnginePlanFile.read(plan.path))
    inputs = b.inputs(rows)
    (out,) = session({n: inputs[n].cuda() for n in OnnxGraphFile.read(plan.path).inputs}, [OUTPUT])
    backbone = checkpoint.restore(b.context(), b.pipeline(), b.checkpoint(name)) if name else b.backbone()
    exact, plain = call(backbone, inputs), call(b.backbone(), inputs)
    assert off(out, exact) < max(5e-3, 0.5 * off(plain, exact))


@pytest.mark.parametrize("family", some(("flux", "sdxl", "sd3"), ["flux", "sdxl"]))
def test_a_pipeline_draws_by_its_plan_what_torch_draws(family: str) -> None:
    b = bench(family=family, device="cuda")
    theirs = drawn(b, "torch", None)
    assert np.abs(drawn(b, "tensorrt", planned(b, b.graph(None))) - theirs).max() < 0.02


def test_the_plans_of_a_cut_graph_draw_what_torch_draws_with_the_same_cache() -> None:
    b = bench(family="flux", device="cuda")
    cache = view(b)
    theirs, plain = drawn(b, "torch", None, cache), drawn(b, "torch", None)
    ours = drawn(b, "tensorrt", planned(b, b.graph(None, cut=cut_of(cache))), cache)
    assert np.abs(ours - theirs).mean() < 0.5 * np.abs(plain - theirs).mean()


def test_a_cuda_graph_draws_the_same() -> None:
    b = bench(family="flux", device="cuda")
    plan = planned(b, b.graph(None))
    assert np.abs(drawn(b, "tensorrt", plan, cuda_graph=True) - drawn(b, "tensorrt", plan)).max() < 1e-3


def test_kernels_of_tensorrt_rtx_are_kept_and_taken_again(tmp_path: Path) -> None:
    if (environment.tensorrt() or {}).get("flavour") != "tensorrt_rtx":
        pytest.skip("TensorRT compiles nothing on the GPU that runs a plan")
    b = bench(family="flux", device="cuda")
    plan = planned(b, b.graph(None))
    inputs = {n: b.inputs()[n] for n in OnnxGraphFile.read(plan.path).inputs}
    sizes = []
    for _ in range(2):
        engines = Engines("cuda", tmp_path)
        engines.open(plan.path / "model.plan", EnginePlanFile.read(plan.path))(inputs, [OUTPUT])
        engines.close()
        (file,) = tmp_path.glob("*.kernels")
        sizes.append(file.stat().st_size)
    assert sizes[0] == sizes[1] > 0


def test_a_script_compiles_its_own_pipeline(tmp_path: Path) -> None:
    from diffopt.pipeline.open import open_pipeline

    b = bench(family="flux", device="cuda")
    pipe = open_pipeline(b.context(), b.pipeline())
    theirs = b.draw(pipe, *ARGUMENTS)
    small = {"model.height": 32, "model.width": 32, "model.max_sequence_length": 16}
    diffopt.compile(pipe, "emoji_flux", tmp_path / "onnx", tmp_path / "plan", small)
    assert np.abs(b.draw(pipe, *ARGUMENTS) - theirs).max() < 0.02
    pipe.transformer.close()
