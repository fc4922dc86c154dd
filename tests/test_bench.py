"""The bench: its contenders run and are told apart, what cannot be is refused, its page says what was found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from contents import BENCHED
from test_gates import gated, held
from test_report import artifact, made, words
from tiny import PROMPTS, bench, prompt_set

from diffopt.errors import GateError, PlanError
from diffopt.files.bench import BenchFile, Contender
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import BenchView
from diffopt.groups.validate import choose
from diffopt.jobs import preflight, runtime_checks
from diffopt.machine import environment
from diffopt.report import run_page
from diffopt.runtimes import room
from diffopt.runtimes.side_by_side import twin
from diffopt.stages.bench import bench as stage

H200 = ({"name": "NVIDIA H200", "capability": "9.0", "memory": 143 << 30},)
EMOJI = ("model=emoji_flux", "format=int8_sq", "calib=emoji", "eval=latency")


def ran(*ways: str, format: str | None = None, cache: CacheView | None = None, family: str = "flux", **kw: Any) -> BenchFile:
    """The stage itself on a tiny model, on the CPU, where compiled blocks are as they are."""
    b = bench(family=family) if family != "flux" else bench()
    view = BenchView(prompts=prompt_set(PROMPTS), batch_size=1, steps=4, warmup=1, repeats=3, bench=[*ways]).model_copy(
        update=kw
    )
    checkpoint = b.checkpoint(format) if format and "native" in ways else None
    graph = b.graph(format) if "onnxruntime" in ways else None
    ctx = b.context()
    stage.run(ctx, b.call, cache, view, b.pipeline(), checkpoint, graph, 5)
    return BenchFile.read(ctx.out)


@pytest.fixture(scope="module")
def native() -> BenchFile:
    return ran("eager", "compiled", "native", format="int8_sq")


def by_name(found: BenchFile) -> dict[str, Contender]:
    return {c.name: c for c in found.contenders}


# what is run


def test_ratios_are_those_of_the_calls_of_each_turn(native: BenchFile) -> None:
    there = by_name(native)
    assert [*there] == ["eager", "compiled", "native"]
    ratios = [a / b for a, b in zip(there["compiled"].seconds_per_call, there["native"].seconds_per_call, strict=True)]
    ratio = there["native"].over_base
    assert ratio
    assert (ratio.end_to_end.mean, ratio.end_to_end.n) == (pytest.approx(sum(ratios) / 3, rel=1e-4), 3)
    assert there["compiled"].over_base is None
    assert there["eager"].over_eager is None
    assert {len(c.seconds_per_call) for c in there.values()} == {3}


def test_the_floor_is_the_counted_work_at_the_measured_rates(native: BenchFile) -> None:
    work, best = native.work, {r.kind: r.flops for r in sorted(native.rates, key=lambda r: r.flops)}
    assert work
    layers = 1e3 * (work.linear / best["plain"] + work.attention / best["attention"])
    there = {n: c.floor for n, c in by_name(native).items()}
    for name, kind in (("eager", "plain"), ("compiled", "plain"), ("native", "kernel")):
        least = there[name]
        assert least
        assert least.milliseconds == pytest.approx(layers + 1e3 * work.kernel / best[kind], rel=1e-6)
        step = by_name(native)[name].milliseconds_per_step
        assert step
        assert least.times == pytest.approx(step.median / least.milliseconds, rel=1e-6)


def test_the_work_of_a_step_is_that_of_the_layers(native: BenchFile) -> None:
    b, work = bench(), native.work
    assert work
    backbone, quantized = b.backbone(), {*b.checkpoint("int8_sq").json("checkpoint.json")["layers"]}
    sums = {True: 0, False: 0}
    names = {m: n for n, m in backbone.named_modules()}

    def add(layer: torch.nn.Linear, args: tuple[torch.Tensor, ...], _out: torch.Tensor) -> None:
        sums[names[layer] in quantized] += 2 * args[0].numel() * layer.out_features

    for layer in [m for m in names if isinstance(m, torch.nn.Linear)]:
        layer.register_forward_hook(add)
    inputs = b.inputs()
    with torch.no_grad():
        backbone(**inputs)
    assert (work.kernel, work.linear, work.convolution, work.calls) == (sums[True], sums[False], 0, 1)
    tokens = inputs["hidden_states"].shape[1] + inputs["encoder_hidden_states"].shape[1]
    heads, channels = backbone.config.num_attention_heads, backbone.config.attention_head_dim
    blocks = len(backbone.transformer_blocks) + len(backbone.single_transformer_blocks)
    assert work.attention == 4 * blocks * heads * tokens**2 * channels
    assert [r.shape for r in native.rates if r.kind == "attention"] == [(1, heads, tokens, tokens, channels)]


def test_convolutions_are_counted_apart_and_have_no_kernel() -> None:
    found = ran("eager", "native", format="int8_sq", family="sdxl")
    assert found.work
    assert found.work.convolution > 0
    assert found.work.kernel > 0
    assert found.base == "eager"


def test_weights_are_told_of_each_and_shared_by_those_of_equal_ones(native: BenchFile) -> None:
    weights = {n: c.memory.weights for n, c in by_name(native).items()}
    assert weights["eager"] == weights["compiled"] > weights["native"]
    assert {c.memory.peak for c in native.contenders} == {None}  # of a GPU alone


def test_a_twin_has_the_very_same_tensors_and_modules_of_its_own() -> None:
    first = bench().backbone()
    other = twin(first)
    tensors = [{id(t) for t in (*m.parameters(), *m.buffers())} for m in (first, other)]
    assert tensors[0] == tensors[1]
    assert not {id(m) for m in first.modules()} & {id(m) for m in other.modules()}
    for module in other.modules():
        module.__dict__["_compiled_call_impl"] = None  # as compiling one does
    assert not [m for m in first.modules() if "_compiled_call_impl" in m.__dict__]


def test_the_graph_by_onnxruntime_beside_eager_and_no_floor_of_it() -> None:
    found = ran("eager", "onnxruntime", format="int8_sq", batch_size=7)
    eager, graph = found.contenders
    assert (found.headline, found.base, found.batch_size) == ("onnxruntime", "eager", 1)  # the graph's batch is all's
    assert graph.title == "onnxruntime INT8 SmoothQuant"
    assert eager.floor
    assert graph.floor is None
    assert graph.memory.weights < eager.memory.weights
    assert graph.verdict
    assert graph.verdict.startswith("onnxruntime INT8 SmoothQuant: ")


def cachify(**settings: Any) -> CacheView:
    from diffopt import models
    from diffopt.caches.cachify import Cachify

    filled = Cachify(method="cachify", blocks=["transformer_blocks.*"], **settings).filled(models.family("flux"))
    return CacheView(method="cachify", settings=filled)


def test_a_cache_is_put_on_top_and_its_floor_is_of_what_it_computes() -> None:
    found = ran("eager", cache=cachify(every=2))
    plain, cached = found.contenders
    assert [plain.name, cached.name, found.headline] == ["eager", "eager+cachify", "eager+cachify"]
    assert plain.cache is None
    assert cached.cache
    assert plain.floor
    assert cached.floor
    share = (cached.cache.computed * 4 - 1) / 3  # the first step, which is whole, is not among those that are timed
    assert cached.floor.milliseconds == pytest.approx(plain.floor.milliseconds * share, rel=1e-3)


def test_a_cache_that_never_hits_fails() -> None:
    with pytest.raises(GateError, match=r"^cache: never hit"):
        ran("eager", cache=cachify(start=9))


def test_one_step_has_no_time_between_steps() -> None:
    found = ran("eager", steps=1)
    assert found.contenders[0].milliseconds_per_step is None
    assert found.contenders[0].floor is None


# what is refused


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["eval.bench=[eager,compiled]", "format=null", "calib=null"],
            "eval.bench: blocks are compiled for an NVIDIA GPU, and there is none (got compiled); leave it out",
        ),
        (
            ["eval.bench=[eager,native]"],
            "eval.bench: native compiles kernels for an NVIDIA GPU, and there is none (got native); leave it out",
        ),
        (
            ["eval.bench=[eager,native]", "format=w4a8_awq"],
            "eval.bench: native has no kernels for w4a8_awq (got native); leave it out, or choose one of fp8, int4_awq, int8, "
            "int8_sq, mxfp8, nvfp4, nvfp4_svdquant",
        ),
        (
            ["eval.bench=[eager,native]", "format=null", "calib=null"],
            "eval.bench: native computes a format by its kernels, and none is chosen (got native); choose format=OPTION",
        ),
        (
            ["eval.bench=[eager,onnxruntime]"],
            "export: the onnxruntime runtime runs an ONNX graph (got no export); choose export=onnx",
        ),
        (
            ["eval.bench=[eager,onnxruntime]", "export=onnx", "format=fp8"],
            "eval.bench: onnxruntime has no kernels for fp8 (got onnxruntime); leave it out, or choose one of int8, int8_sq",
        ),
        (
            ["eval.bench=[eager,onnxruntime]", "export=onnx", "cache=first_block"],
            "cache: onnxruntime runs a graph that is cut at blocks which are chosen beforehand, but first_block decides while "
            "it runs (got eval.bench=onnxruntime); choose cache=cachify, or leave onnxruntime out of eval.bench",
        ),
    ],
)
def test_what_cannot_be_benched_is_refused_in_a_line(
    plan: Any, monkeypatch: pytest.MonkeyPatch, overrides: list[str], line: str
) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", tuple)
    with pytest.raises(PlanError) as e:
        plan(*EMOJI, "model.long_prompts=cut", *overrides)
    assert str(e.value) == line


def test_a_gpu_without_the_kernels_is_refused(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ({"name": "NVIDIA A100", "capability": "8.0"},))
    with pytest.raises(PlanError) as e:
        plan("+recipe=bench_flux_fp8")
    assert str(e.value) == (
        "eval.bench: fp8 has kernels from compute capability 8.9 on (got NVIDIA A100 with 8.0); leave it out"
    )


@pytest.mark.parametrize(
    ("ways", "line"),
    [
        ("[native]", "eval.bench: has nothing to compare with (got ['native']); add compiled, or add eager"),
        ("[eager,eager]", "eval.bench: names one twice (got ['eager', 'eager']); name each once"),
    ],
)
def test_a_bench_has_something_to_compare_with_and_each_once(plan: Any, ways: str, line: str) -> None:
    from diffopt.errors import ConfigError

    with pytest.raises(ConfigError) as e:
        plan(*EMOJI, f"eval.bench={ways}")
    assert str(e.value) == line


def test_weights_that_no_gpu_holds_at_once_are_refused_before_anything_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    pinned = PipelineFile.read(b.pipeline().path)
    choices = choose({**plain("+recipe=bench_flux_fp8"), "cache": None})
    monkeypatch.setattr(environment, "gpus", lambda: ({**H200[0], "memory": pinned.parameters},))
    (line,) = preflight._bench(choices, pinned)
    assert line.startswith("eval.bench: the backbones' weights take about ")
    assert line.endswith("(got eager, compiled, native); name fewer, or use a larger GPU")
    monkeypatch.setattr(environment, "gpus", lambda: H200)
    assert not [*preflight._bench(choices, pinned)]


def plain(*overrides: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(composed(*overrides), resolve=True)
    return found


def test_a_gpu_that_is_full_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = PipelineFile.read(bench().pipeline().path)
    monkeypatch.setattr(environment, "gpus", lambda: H200)
    with pytest.raises(PlanError, match=r"^eval\.bench: the GPU's 143\.0 GiB are full \(got eager, native, whose weights take"):  # noqa: SIM117
        with room.room(["eager", "native"], pinned, "fp8"):
            raise torch.OutOfMemoryError("CUDA out of memory")


# plans


def test_a_bench_alone_draws_no_pictures_and_reads_what_it_times(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: H200)
    found = plan("+recipe=bench_flux_fp8", "cache=cachify")
    assert [s.name for s in found.steps] == ["load", "embed", "observe", "merge", "quantize", "bench"]
    assert "cache.every" in found.used
    without = plan("+recipe=bench_flux_fp8", "eval.bench=[eager,compiled]", "format=null", "calib=null")
    assert [s.name for s in without.steps] == ["load", "bench"]


def test_a_bench_is_of_its_machine(plan: Any) -> None:
    keys = {
        plan(
            "model=emoji_flux",
            "eval=latency",
            "eval.bench=[eager]",
            "model.long_prompts=cut",
            probes={"machine": {"host": host}},
        )
        .wanted[0]
        .fingerprint
        for host in ("a", "b")
    }
    assert len(keys) == 2


def test_a_bench_beside_metrics_makes_both(plan: Any) -> None:
    found = plan("model=emoji_flux", "eval=emoji", "eval.latency=false", "eval.bench=[eager]")
    assert [s.kind for s in found.wanted] == ["metrics", "bench"]


# the page


def benched(directory: Path, **content: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    artifact(directory, "bench", {"bench.json": BENCHED | content})
    return made(directory, {"bench": "b" * 16})


def test_the_page_has_every_contender_with_its_verdict_and_its_floor(tmp_path: Path) -> None:
    html = run_page.write(benched(tmp_path)).read_text()
    text = words(html)
    assert "native FP8: 1.41x" in text
    assert "native FP8 94.20 (93.70-94.70) 1.410 [1.400, 1.420] x" in text
    assert "1.45 (of 65.00 ms) 31.2 s 9.5 s 12.0 GiB 16.0 GiB" in text
    assert "1710 of 1980 MHz" not in text  # only before, which shows no change
    assert "74.000 TFLOP in 1 backbone calls" in text
    assert "700.00 TFLOP/s plain at 4608 x 3072 x 21504" in text
    assert "No speed is claimed" not in text
    assert 'aria-label="Milliseconds of a denoising step, and the floor of its arithmetic"' in html
    assert all(f">{n}</text>" in html for n in ("182.4", "132.5", "94.2"))


def test_the_summary_has_the_verdicts(tmp_path: Path) -> None:
    lines = run_page.summary(benched(tmp_path))
    assert [line.split()[0] for line in lines] == ["bench", "bench", "bench"]


@pytest.mark.parametrize(("limit", "holds"), [("1.4x", True), ("1.5x", False)])
def test_a_gate_on_the_latency_is_of_the_headline(tmp_path: Path, limit: str, holds: bool) -> None:
    run = gated(benched(tmp_path), latency=limit)
    assert held(run) == [holds]
    assert f"latency: {limit} {'holds' if holds else 'is broken'}" in words(run_page.write(tmp_path).read_text())


def test_a_bench_of_the_base_alone_reaches_no_gate(tmp_path: Path) -> None:
    assert held(gated(benched(tmp_path, headline=None), latency="1.0x")) == [False]


def test_a_gate_on_the_latency_goes_with_a_bench() -> None:
    found = plain("model=emoji_flux", "eval=latency", "eval.bench=[eager]")
    found["eval"]["gates"] = {"latency": "1.0x"}
    chosen = choose(json.loads(json.dumps(found)))
    assert chosen.eval
    assert chosen.eval.gates == {"latency": "1.0x"}
