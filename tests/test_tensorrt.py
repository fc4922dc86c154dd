"""The tensorrt runtime over a recorded interface of TensorRT, whose plans onnxruntime computes: all but TensorRT itself."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import diffusers
import numpy as np
import pytest
import recorded_engine
import torch
from conftest import some
from recorded_engine import COMMON, OF_RTX, EngineInvalidityDiagnostics, EngineValidity, Library, planned
from test_cut_runtime import cut_of, view
from tiny import Bench, bench, call
from tiny_pipelines import TINY

from diffopt.artifact import EnginePlan, OnnxGraph
from diffopt.data.prompts import PromptSet
from diffopt.errors import GateError, PlanError
from diffopt.files.graph import OUTPUT, OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph import engine
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import RuntimeView
from diffopt.machine import environment
from diffopt.models.flux import FAMILY
from diffopt.pipeline.open import family_of
from diffopt.runtimes import RUNTIMES, Running
from diffopt.runtimes.engines import Engines
from diffopt.runtimes.stand_in import StandIn
from diffopt.runtimes.tensorrt import OpenPlan
from diffopt.stages.build import BuilderView, build
from diffopt.stages.sample import sample

REAL = environment.tensorrt()
ARGUMENTS = (["a red apple"], [5], 4)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library().install(monkeypatch)


@contextmanager
def running(b: Bench, runtime: str, subject: Any, cache: CacheView | None = None, **kw: Any) -> Iterator[Running]:
    with RUNTIMES[runtime].running(b.context(), b.pipeline(), subject, cache, texts=True, **kw) as run:
        yield run


def stood_in(b: Bench, plan: EnginePlan) -> StandIn:
    opened = OpenPlan(Engines("cpu"), plan, EnginePlanFile.read(plan.path), FAMILY)
    return opened.whole(b.backbone())


@pytest.mark.skipif(REAL is None or REAL["flavour"] != "tensorrt_rtx", reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize("cls", [*COMMON, *OF_RTX], ids=lambda c: c.__name__)
def test_every_name_that_is_recorded_is_one_of_tensorrt_rtx(cls: type) -> None:
    real = getattr(engine.module("tensorrt_rtx"), cls.__name__)
    names = [n for n in vars(cls) if not n.startswith("_")]
    assert names
    assert [n for n in names if not hasattr(real, n)] == []


@pytest.mark.parametrize("flavour", ["tensorrt_rtx", "tensorrt"])
def test_a_plan_computes_the_backbone_in_its_place(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Library(flavour).install(monkeypatch)
    b = bench(family="flux")
    found = stood_in(b, planned(b, b.graph(None), flavour))
    exact = call(b.backbone(), b.inputs())
    (out,) = found(**b.inputs(), return_dict=False)
    assert float((out - exact).norm() / exact.norm()) < 1e-5
    assert torch.equal(found(**b.inputs()).sample, out)


def test_tensors_of_the_graphs_own_types_are_not_copied(library: Library) -> None:
    b = bench(family="flux")
    plan = planned(b, b.graph(None))
    session = Engines("cpu").open(plan.path / "model.plan", EnginePlanFile.read(plan.path))
    given = {n: b.inputs()[n] for n in OnnxGraphFile.read(plan.path).inputs}
    (out,) = session(given, [OUTPUT])
    ((_, _, _, addresses),) = library.executed()
    assert addresses == {n: x.data_ptr() for n, x in given.items()} | {OUTPUT: out.data_ptr()}


@pytest.mark.parametrize("rows", some([1, 2, 3], [1, 3]))
def test_a_plan_takes_every_number_of_rows_of_its_profile(rows: int, library: Library) -> None:
    b = bench(family="flux")
    (out,) = stood_in(b, planned(b, b.graph(None, most=3)))(**b.inputs(rows), return_dict=False)
    exact = call(b.backbone(), b.inputs(rows))
    assert float((out - exact).norm() / exact.norm()) < 1e-5


def test_another_shape_is_refused_by_its_axis_and_the_profiles_range(library: Library) -> None:
    b = bench(family="flux")
    backbone = stood_in(b, planned(b, b.graph(None, most=3)))
    with pytest.raises(GateError) as raised:
        backbone(**b.inputs(4))
    assert str(raised.value) == (
        "hidden_states: axis 0 is 4, and model.plan takes 1 to 3 (got [4, 64, 16]); "
        "export it with another export.batch_size or export.max_batch_size"
    )
    assert not library.executed()


def test_a_tensor_that_the_graph_has_no_input_for_is_refused_and_none_that_is_missing(library: Library) -> None:
    b = bench(family="flux")
    backbone, inputs = stood_in(b, planned(b, b.graph(None))), b.inputs()
    more = [torch.zeros(1, 64, 64)]
    with pytest.raises(GateError, match=r"^controlnet_block_samples: the graph has no such input \(got a tensor\)"):
        backbone(**inputs, controlnet_block_samples=more)
    del inputs["timestep"]
    with pytest.raises(GateError, match=r"^timestep: the graph needs it \(got none\)"):
        backbone(**inputs)


def test_each_profile_has_its_calls_and_all_share_one_memory(library: Library) -> None:
    b = bench(family="flux")
    plan = planned(b, b.graph(None, most=6))
    most = OnnxGraphFile.read(plan.path).profile
    assert most

    def rows(low: int, high: int) -> dict[str, dict[str, list[int]]]:
        ends = {"min": low, "opt": high, "max": high}
        return {n: {k: [rows, *s["min"][1:]] for k, rows in ends.items()} for n, s in most.items()}

    (plan.path / "model.plan").write_bytes(recorded_engine.plan(_graph(plan), [rows(1, 2), rows(4, 6)]))
    backbone = stood_in(b, plan)
    for count in (1, 5, 2):
        (out,) = backbone(**b.inputs(count), return_dict=False)
        exact = call(b.backbone(), b.inputs(count))
        assert float((out - exact).norm() / exact.norm()) < 1e-5
    assert [profile for _, profile, _, _ in library.executed()] == [0, 1, 0]
    assert len({memory for _, _, memory, _ in library.executed()}) == 1
    assert [c[0] for c in library.calls].count("context") == 2
    with pytest.raises(GateError, match=r"axis 0 is 3, and model\.plan takes 1 to 2 or 4 to 6 \(got \[3, 64, 16\]\)"):
        backbone(**b.inputs(3))


def _graph(plan: EnginePlan) -> Path:
    return Path(json.loads((plan.path / "model.plan").read_bytes()[len(recorded_engine.MARK) :])["graph"])


@pytest.mark.parametrize("family", some([f for f in TINY if f != "qwen_image"], ["flux"]))
def test_a_pipeline_draws_what_onnxruntime_draws_and_reads_no_backbone(
    family: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(family=family)
    graph = b.graph(None)
    arguments = (list(b.prompts[:1]), [5], 2)
    with running(b, "onnxruntime", graph) as run:
        theirs = b.draw(run.pipe, *arguments)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the backbone was read")

    monkeypatch.setattr(getattr(diffusers, family_of(b.pipeline()).backbone_class), "from_pretrained", never)
    with running(b, "tensorrt", planned(b, graph)) as run:
        assert run.batch == 1
        assert np.array_equal(b.draw(run.pipe, *arguments), theirs)
    assert library.executed()


@pytest.mark.parametrize("family", some(("flux", "sdxl", "sd3"), ["flux"]))
def test_a_cut_plan_draws_what_the_cut_graph_does_and_leaves_a_part_out(family: str, library: Library) -> None:
    b = bench(family=family)
    cache = view(b)
    graph = b.graph("int8_sq", cut=cut_of(cache))
    with running(b, "onnxruntime", graph, cache) as run:
        theirs, saved = b.draw(run.pipe, *ARGUMENTS), run.saved()
    plan = planned(b, graph)
    with running(b, "tensorrt", plan, cache) as run:
        assert np.array_equal(b.draw(run.pipe, *ARGUMENTS), theirs)
        assert run.saved() == saved
    files = [name for name, _, _, _ in library.executed()]
    middle = next(p.file for p in OnnxGraphFile.read(plan.path).parts if p.reused)
    assert 0 < files.count(middle) < max(map(files.count, files))
    assert len({memory for _, _, memory, _ in library.executed()}) == 1  # of all parts, one after the other


def test_the_stage_draws_the_pictures_that_onnxruntime_draws_and_says_what_drew_them(library: Library) -> None:
    b = bench(family="flux")
    graph, drawn = b.graph("int8_sq"), []
    for runtime, subject in (("onnxruntime", graph), ("tensorrt", planned(b, graph))):
        asked = RuntimeView(prompts=PromptSet("tests", b.prompts[:2]), batch_size=2, steps=2, runtime=runtime)
        context = b.context()
        sample.run(context, b.call, None, asked, b.pipeline(), b.encoded(asked.prompts, 2), subject, 5)
        told = json.loads((context.out / "images.json").read_text())
        assert (told["runtime"], told["format"], told["simulated"]) == (runtime, "int8_sq", False)
        drawn.append([p.read_bytes() for p in sorted(context.out.glob("*.png"))])
    assert len(drawn[0]) == 2
    assert drawn[0] == drawn[1]


@cache
def built(cut: bool) -> EnginePlan:
    """A plan of the real builder's, of the graph below."""
    context = bench(family="flux").context()
    build.run(context, BuilderView(builder_optimization_level=0), graph_of(cut))
    return EnginePlan(context.out, "plan")


def graph_of(cut: bool) -> OnnxGraph:
    b = bench(family="flux")
    return b.graph(None, cut=cut_of(view(b)) if cut else None)


@pytest.mark.skipif(REAL is None, reason="no engine builder is installed")
@pytest.mark.parametrize("cut", some([False, True], [False]))
def test_the_stage_puts_what_a_plan_takes_beside_it(cut: bool) -> None:
    plan = built(cut)
    assert plan.by_backbone() == {"transformer": plan}
    head = OnnxGraphFile.read(plan.path)
    assert head == OnnxGraphFile.read(graph_of(cut).path)
    assert all((plan.path / p.file).with_suffix(".plan").stat().st_size > 0 for p in head.parts)


# What does not run here.


@pytest.mark.skipif(REAL is None or REAL["flavour"] != "tensorrt_rtx", reason="TensorRT-RTX is not installed")
@pytest.mark.skipif(bool(environment.gpus()), reason="of a machine without a GPU")
def test_the_library_itself_refuses_its_plan_without_a_gpu_and_what_is_no_plan() -> None:
    plan = built(False)
    assert refused(plan).startswith("tensorrt: model.plan does not run here: there is no GPU (got a plan of tensorrt_rtx ")
    other = bench(family="flux").context().out
    copytree(plan.path, other, dirs_exist_ok=True)
    (other / "model.plan").write_bytes(b"nothing of the kind" * 100)
    assert "does not run here: malformed engine (got " in refused(EnginePlan(other, "plan"))
    (other / "model.plan").write_bytes(b"")
    assert "does not run here: it is empty (got " in refused(EnginePlan(other, "plan"))


def refused(plan: EnginePlan) -> str:
    with pytest.raises(PlanError) as raised:
        Engines("cpu").open(plan.path / "model.plan", EnginePlanFile.read(plan.path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_plan_of_another_version_or_gpu_is_refused_with_all_reasons(library: Library) -> None:
    b = bench(family="flux")
    plan = planned(b, b.graph(None))
    both = EngineInvalidityDiagnostics.VERSION_MISMATCH | EngineInvalidityDiagnostics.UNSUPPORTED_CC
    library.validity = EngineValidity.INVALID, int(both)
    assert refused(plan) == (
        "tensorrt: model.plan does not run here: version mismatch; unsupported compute capability (got a plan of "
        "tensorrt_rtx 1.0 for this machine; here is tensorrt_rtx 1.0 on a machine without a GPU); build it again"
    )


def test_a_plan_of_the_other_flavour_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(family="flux")
    plan = planned(b, b.graph(None))
    Library("tensorrt").install(monkeypatch)
    assert refused(plan).startswith(
        "tensorrt: model.plan does not run here: it is of another builder than is installed (got a plan of tensorrt_rtx 1.0 "
    )


def test_what_is_no_plan_is_refused_with_the_librarys_words(library: Library) -> None:
    b = bench(family="flux")
    plan = planned(b, b.graph(None))
    (plan.path / "model.plan").write_bytes(b"nothing of the kind")
    assert "does not run here: magic tag does not match (got " in refused(plan)


def test_without_tensorrt_the_error_says_what_to_install(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "tensorrt", lambda: None)
    with pytest.raises(PlanError, match=r"^tensorrt: no TensorRT is installed \(got none\); `pip install"):
        Engines("cpu")


def test_an_execution_that_fails_is_a_line(library: Library) -> None:
    b = bench(family="flux")
    backbone = stood_in(b, planned(b, b.graph(None)))
    library.runs = False
    with pytest.raises(GateError, match=r"^tensorrt: model\.plan does not run \(got "):
        backbone(**b.inputs())


# What TensorRT-RTX compiles, and CUDA graphs.


def test_kernels_are_kept_for_the_next_process_and_shared_by_all_contexts(library: Library) -> None:
    b = bench(family="flux")
    kept, cache = b.root / "compiled-kernels", view(b)
    plan = planned(b, b.graph(None, cut=cut_of(cache)))
    for _ in range(2):
        context = b.context()
        object.__setattr__(context, "compiled", kept)
        with RUNTIMES["tensorrt"].running(context, b.pipeline(), plan, cache, texts=True) as run:
            b.draw(run.pipe, *ARGUMENTS)
        (file,) = kept.iterdir()
        assert file.read_bytes() == b"kernels"
        assert file.name.startswith("tensorrt_rtx-1.0-cpu-")
    assert [c for c in library.calls if c[0] == "deserialize"] == [("deserialize", b"kernels")]
    parts = len(OnnxGraphFile.read(plan.path).parts)
    caches = [c[1] for c in library.calls if c[0] == "cache"]
    assert len(caches) == 2 * parts
    assert len({*caches[:parts]}) == 1


def test_kernels_of_another_driver_are_compiled_again(library: Library) -> None:
    b = bench(family="flux")
    plan, kept = planned(b, b.graph(None)), b.root / "other-kernels"
    library.takes_kernels = False
    for _ in range(2):
        engines = Engines("cpu", kept)
        session = engines.open(plan.path / "model.plan", EnginePlanFile.read(plan.path))
        session({n: b.inputs()[n] for n in OnnxGraphFile.read(plan.path).inputs}, [OUTPUT])
        engines.close()
    assert ("deserialize", b"kernels") in library.calls
    assert len(library.executed()) == 2


@pytest.mark.parametrize("asked", [False, True])
def test_a_cuda_graph_is_asked_of_tensorrt_rtx_where_it_is_asked_for(asked: bool, library: Library) -> None:
    b = bench(family="flux")
    with running(b, "tensorrt", planned(b, b.graph(None)), cuda_graph=asked) as run:
        b.draw(run.pipe, *ARGUMENTS)
    (config,) = [c[2] for c in library.calls if c[0] == "context"]
    assert config.cuda_graph_strategy.name == ("WHOLE_GRAPH_CAPTURE" if asked else "DISABLED")


def test_a_plan_that_streams_its_weights_keeps_as_many_on_the_gpu_as_it_has_room_for(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_engine.ICudaEngine, "streamable_weights_size", 1000)
    b = bench(family="flux")
    plan = planned(b, b.graph(None))
    session: Any = Engines("cpu").open(plan.path / "model.plan", EnginePlanFile.read(plan.path))
    assert session.engine.weight_streaming_budget_v2 == 500
