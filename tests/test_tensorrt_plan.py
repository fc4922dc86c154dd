"""Plans whose backbone is to be an engine plan: what is made, what keys it, and what is refused before anything is."""

from typing import Any

import pytest
from tiny import bench

from diffopt.cli import doctor
from diffopt.errors import PlanError
from diffopt.files.bench import BenchFile
from diffopt.jobs import runtime_checks
from diffopt.machine import environment
from diffopt.runtimes import contenders

ADA = ({"name": "NVIDIA RTX 4090", "capability": "8.9", "memory": 24 << 30},)
AMPERE = ({"name": "NVIDIA A10", "capability": "8.6", "memory": 24 << 30},)
H100 = ({"name": "NVIDIA H100", "capability": "9.0", "memory": 80 << 30},)
DRAWN = ("model=emoji_flux", "eval=emoji", "eval.runtime=tensorrt")
INT8 = (*DRAWN, "format=int8_sq", "calib=emoji", "export=tensorrt")
FULL = {"tensorrt": {"flavour": "tensorrt", "version": "11.4.1"}}


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ADA)


def refused(plan: Any, *overrides: str, **kw: Any) -> list[str]:
    with pytest.raises(PlanError) as e:
        plan(*overrides, **kw)
    return str(e.value).splitlines()


def inputs(found: Any, name: str) -> dict[str, Any]:
    (step,) = (s for s in found.steps if s.name == name)
    return {k: v.name for k, v in step.inputs.items() if v and not isinstance(v, list)}


def test_pictures_and_times_are_of_the_plan_and_the_baseline_is_a_plan_too(plan: Any, ada: None) -> None:
    found = plan(*INT8)
    assert inputs(found, "sample")["subject"] == "build"
    timed = inputs(found, "time")
    assert (timed["subject"], timed["baseline"]) == ("build", "build.baseline")
    assert inputs(found, "build")["graph"] == "export"


def test_a_plan_is_built_for_a_runtime_that_runs_it_where_only_a_graph_is_exported(plan: Any, ada: None) -> None:
    found = plan(*DRAWN, "format=int8_sq", "calib=emoji", "export=onnx")
    assert inputs(found, "sample")["subject"] == "build"


def test_a_cuda_graph_keys_what_the_plan_runs_and_nothing_else(plan: Any, ada: None) -> None:
    before, after = ({s.name: s.fingerprint for s in plan(*INT8, f"eval.cuda_graph={x}").steps} for x in ("false", "true"))
    assert {n for n in before if before[n] != after[n]} == {"sample", "score", "time"}


def test_a_cuda_graph_is_refused_of_a_runtime_that_has_none(plan: Any) -> None:
    (line,) = refused(plan, "+recipe=quickstart", "eval.cuda_graph=true")
    assert line.startswith("eval.cuda_graph: ")


@pytest.mark.parametrize(
    ("gpus", "probes", "overrides", "line"),
    [
        (ADA, {"tensorrt": None}, ("export=onnx",), "eval.runtime: no TensorRT is installed (got tensorrt); "
         "`pip install 'diffopt[tensorrt-rtx]'`, or set eval.runtime=torch"),
        ((), {}, ("export=tensorrt",), "eval.runtime: tensorrt runs engine plans on an NVIDIA GPU, and there is none "
         "(got tensorrt); set eval.runtime=torch"),
        (H100, {}, ("export=tensorrt",), "eval.runtime: tensorrt is TensorRT-RTX here, which runs on GPUs of compute "
         "capability 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1 (got NVIDIA H100 with 9.0); set eval.runtime=torch"),
        (ADA, {}, (), "export: the tensorrt runtime runs an engine plan (got no export); choose export=tensorrt"),
        (ADA, {}, ("export=tensorrt", "cache=first_block"), "cache: tensorrt runs a graph that is cut at blocks which are "
         "chosen beforehand, but first_block decides while it runs (got eval.runtime=tensorrt); choose cache=cachify, or "
         "set eval.runtime=torch"),
        (AMPERE, {}, ("export=tensorrt", "format=fp8", "calib=emoji"), "eval.runtime: fp8 has kernels from compute "
         "capability 8.9 on (got NVIDIA A10 with 8.6); set eval.runtime=torch"),
        (ADA, {}, ("export=tensorrt", "format=nvfp4", "calib=emoji", "export.high_precision_dtype=float16"),
         "eval.runtime: nvfp4 has kernels from compute capability 10.0 on (got NVIDIA RTX 4090 with 8.9); "
         "set eval.runtime=torch"),
    ],
    ids=["library", "gpu", "other-gpu", "export", "cache", "fp8", "nvfp4"],
)  # fmt: skip
def test_what_cannot_run_here_is_refused_in_a_line(
    gpus: Any, probes: Any, overrides: Any, line: str, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: gpus)
    assert refused(plan, *DRAWN, *overrides, probes=probes) == [line]


def test_tensorrt_itself_runs_on_a_gpu_that_tensorrt_rtx_does_not(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: H100)
    assert plan(*INT8, probes=FULL)


@pytest.mark.skipif(environment.tensorrt() is None, reason="TensorRT-RTX is not installed")
def test_the_compute_capabilities_are_those_of_the_library() -> None:
    from diffopt.graph import engine
    from diffopt.machine.engine_gpus import RTX

    found = environment.tensorrt()
    assert found
    if found["flavour"] != "tensorrt_rtx":
        pytest.skip("TensorRT is installed, which does not say")
    names = engine.module("tensorrt_rtx").ComputeCapability.__members__
    assert {f"SM{x.replace('.', '')}" for x in RTX} == {n for n in names if n.startswith("SM")}


# the bench


def test_a_bench_takes_the_plan_and_nothing_else_of_the_graph(plan: Any, ada: None) -> None:
    asked = ("model=emoji_flux", "eval=latency", "format=int8_sq", "calib=emoji", "export=tensorrt", "model.long_prompts=cut")
    found = plan(*asked, "eval.bench=[compiled,tensorrt]")
    assert {"plan", "pipeline"} == {*inputs(found, "bench")}
    (line,) = refused(plan, *asked[:4], "export=null", asked[-1], "eval.bench=[compiled,tensorrt]")
    assert line == "export: the tensorrt runtime runs an engine plan (got no export); choose export=tensorrt"


def test_a_plan_is_the_headline_beside_compiled_and_has_its_own_weights() -> None:
    assert contenders.headline(["compiled", "tensorrt"], None) == "tensorrt"
    assert contenders.headline(["compiled", "tensorrt"], "cachify") == "tensorrt+cachify"
    assert contenders.Entry("tensorrt", "cachify").title("fp8", "bfloat16") == "tensorrt FP8 + cachify"
    assert contenders.weight_bytes(["compiled", "tensorrt"], 12, 2, 1) == 36


def test_a_plan_is_timed_beside_torch_and_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from recorded_engine import Library, planned
    from tiny import PROMPTS, prompt_set

    from diffopt.groups.eval import BenchView
    from diffopt.stages.bench import bench as stage

    Library().install(monkeypatch)
    b = bench()
    graph, ctx = b.graph("int8_sq"), b.context()
    ways = ["eager", "onnxruntime", "tensorrt"]
    view = BenchView(prompts=prompt_set(PROMPTS), batch_size=7, steps=2, warmup=1, repeats=3, bench=ways)
    stage.run(ctx, b.call, None, view, b.pipeline(), None, graph, 5, plan=planned(b, graph))
    found = BenchFile.read(ctx.out)
    assert [c.name for c in found.contenders] == ways
    assert (found.format, found.batch_size, found.headline) == ("int8_sq", 1, "tensorrt")
    plan = found.contenders[-1]
    assert plan.title == "tensorrt INT8 SmoothQuant"
    assert plan.floor is None
    assert plan.memory.weights > 0
    assert plan.verdict
    assert plan.verdict.startswith("tensorrt INT8 SmoothQuant: ")


# the doctor


@pytest.mark.parametrize(
    ("builder", "gpus", "said"),
    [
        (None, ADA, "not installed"),
        ("tensorrt_rtx", (), "no GPU"),
        ("tensorrt_rtx", H100, "other GPUs"),
        ("tensorrt", H100, "kernels"),
        ("tensorrt_rtx", ADA, "kernels"),
    ],
)
def test_the_doctor_says_whether_plans_run_here(
    builder: str | None, gpus: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "tensorrt", lambda: builder and {"flavour": builder, "version": "1.0"})
    monkeypatch.setattr(environment, "gpus", lambda: gpus)
    assert doctor._cell("tensorrt", "fp8") == said
