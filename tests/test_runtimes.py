"""Runtimes: the graph's numbers are the fake-quantized model's, and a cache skips blocks without leaving anything behind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from integer_kernels import integer_products
from tiny import LAYERS, Bench, bench, call

from diffopt.artifact import OnnxGraph
from diffopt.caches import METHODS
from diffopt.data import pictures
from diffopt.data.prompts import PromptSet
from diffopt.errors import GateError, PlanError
from diffopt.files.graph import OnnxGraphFile
from diffopt.groups.cache import CacheView
from diffopt.groups.eval import RuntimeView
from diffopt.models.flux import FAMILY
from diffopt.pipeline.open import open_pipeline
from diffopt.pipeline.texts import regroup
from diffopt.quantization import checkpoint
from diffopt.runtimes import RUNTIMES, Running
from diffopt.runtimes.onnxruntime import GraphBackbone, _session
from diffopt.stages.reference import reference
from diffopt.stages.sample import sample

NEAR = 5e-3
"""Relative difference of INT8 by onnxruntime and by fake quantization, which rounds near-ties otherwise; INT8 makes 2e-2."""


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def graph_backbone(graph: OnnxGraph, session: onnxruntime.InferenceSession | None = None) -> GraphBackbone:
    head = OnnxGraphFile.read(graph.path)
    return GraphBackbone(session or _session(graph, head), head, FAMILY, bench(family="flux").backbone())


# onnxruntime.


def test_onnxruntime_computes_the_plain_backbone() -> None:
    b = bench(family="flux")
    inputs = {n: x * 0.7 if n == "hidden_states" else x for n, x in b.inputs().items()}
    (out,) = graph_backbone(b.graph(None))(**inputs, return_dict=False)
    assert apart(out, call(b.backbone(), inputs)) < 1e-5


@pytest.fixture(scope="module")
def simulated_int8() -> torch.Tensor:
    b = bench(family="flux")
    return call(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("int8_sq")), b.inputs())


def test_onnxruntime_computes_int8_as_fake_quantization_does(simulated_int8: torch.Tensor) -> None:
    b = bench(family="flux")
    (out,) = graph_backbone(b.graph("int8_sq"))(**b.inputs(), return_dict=False)
    assert apart(out, simulated_int8) < NEAR
    assert apart(call(b.backbone(), b.inputs()), simulated_int8) > 2 * NEAR


@pytest.mark.parametrize("which", ["weight", "input"])
def test_one_broken_scale_would_show(which: str, simulated_int8: torch.Tensor) -> None:
    b = bench(family="flux")
    m = onnx.load(b.graph("int8_sq").path / "model.onnx")
    stored = {i.name: i for i in m.graph.initializer}
    constants = {n.output[0]: n.attribute[0].t for n in m.graph.node if n.op_type == "Constant"}
    for node in m.graph.node:
        layer = "single_transformer_blocks.1.proj_out" if which == "weight" else "single_transformer_blocks.1/proj_out"
        if node.op_type == "DequantizeLinear" and layer in node.input[0] and (node.input[0] in stored) == (which == "weight"):
            tensor = stored.get(node.input[1]) or constants[node.input[1]]
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # without it saturation would show as well
    session = onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (out,) = graph_backbone(b.graph("int8_sq"), session)(**b.inputs(), return_dict=False)
    assert apart(out, simulated_int8) > NEAR


def test_a_graph_refuses_inputs_of_another_shape() -> None:
    backbone = graph_backbone(bench(family="flux").graph("int8_sq"))
    with pytest.raises(GateError, match=r"^hidden_states: axis 0 is 2, and the graph takes 1 \(got \[2, 64, 16\]\)"):
        backbone(**bench(family="flux").inputs(2))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_graph_with_a_dynamic_batch_takes_every_number_of_rows_up_to_its_most(rows: int) -> None:
    b = bench(family="flux")
    (out,) = graph_backbone(b.graph(None, most=3))(**b.inputs(rows), return_dict=False)
    assert apart(out, call(b.backbone(), b.inputs(rows))) < 1e-5


def test_a_graph_with_a_dynamic_batch_refuses_more_rows() -> None:
    backbone = graph_backbone(bench(family="flux").graph(None, most=3))
    with pytest.raises(GateError, match=r"^hidden_states: axis 0 is 4, and the graph takes 1 to 3 \(got \[4, 64, 16\]\)"):
        backbone(**bench(family="flux").inputs(4))


def test_every_int8_product_runs_by_an_integer_kernel(tmp_path: Path) -> None:
    assert integer_products(bench().graph("int8_sq"), tmp_path) == LAYERS


def test_no_product_of_a_graph_in_full_precision_does(tmp_path: Path) -> None:
    assert integer_products(bench().graph(None), tmp_path) == 0


def running(runtime: str, subject: Any, cache: CacheView | None = None, b: Bench | None = None) -> Any:
    b = b or bench(family="flux")
    return RUNTIMES[runtime].running(b.context(), b.pipeline(), subject, cache, texts=True)


def test_a_pipeline_on_onnxruntime_draws_what_torch_draws() -> None:
    b = bench(family="flux")
    arguments = (["a red apple"], [5], 2)
    plain = b.draw(open_pipeline(b.context(), b.pipeline()), *arguments)
    with running("onnxruntime", b.graph(None)) as run:
        assert run.batch == 1
        assert np.abs(b.draw(run.pipe, *arguments) - plain).max() < 1e-4


def sampled(runtime: str, subject: Any, size: int) -> list[np.ndarray]:
    b = bench(family="flux")
    context = b.context()
    view = RuntimeView(prompts=PromptSet("tests", b.prompts[:size]), batch_size=2, steps=2, runtime=runtime)
    sample.run(context, b.call, None, view, b.pipeline(), b.encoded(view.prompts, 2), subject, 5)
    assert len(list(context.out.glob("*.png"))) == size
    return [picture for _, picture in pictures.read(context.out)]


def test_the_last_batch_of_a_graph_is_filled_up() -> None:
    theirs = sampled("torch", None, 5)
    ours = sampled("onnxruntime", bench(family="flux").graph(None, batch=3), 5)
    assert len(ours) == 5
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_neither_the_reference_nor_a_candidate_opens_the_text_encoders(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(family="flux")
    view = RuntimeView(prompts=PromptSet("tests", b.prompts[:1]), batch_size=2, steps=1, runtime=runtime)
    texts, subject = b.encoded(view.prompts, 2), b.graph(None) if runtime == "onnxruntime" else None

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a text encoder was opened")

    for cls in (transformers.CLIPTextModel, transformers.T5EncoderModel):
        monkeypatch.setattr(cls, "from_pretrained", never)
    sample.run(b.context(), b.call, None, view, b.pipeline(), texts, subject, 5)
    reference.run(b.context(), b.call, view, b.pipeline(), texts, 5)


def test_regrouped_embeddings_keep_their_rows_and_fill_up_the_last_batch() -> None:
    rows = torch.arange(5.0)
    batches = [{"e": rows[:2, None, None].expand(2, 3, 1), "p": rows[:2, None]}]
    batches += [{"e": rows[2:, None, None].expand(3, 3, 1), "p": rows[2:, None]}]
    found = regroup(batches, 4)
    assert [x["p"].flatten().tolist() for x in found] == [[0, 1, 2, 3], [4, 4, 4, 4]]
    assert [x["e"][:, 2, 0].tolist() for x in found] == [[0, 1, 2, 3], [4, 4, 4, 4]]


def test_regrouped_embeddings_of_different_lengths_are_padded_and_masked() -> None:
    batches = [{"e": torch.ones(1, n, 2), "mask": torch.ones(1, n, dtype=torch.bool)} for n in (2, 3)]
    (found,) = regroup(batches, 2)
    assert found["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert found["e"][..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_pictures_of_the_torch_runtime_are_the_plain_pipelines() -> None:
    b = bench(family="flux")
    prompts, seeds = list(b.prompts[:2]), [5, 6]
    drawn = b.draw(open_pipeline(b.context(), b.pipeline()), prompts, seeds, 2)
    assert np.array_equal(np.stack(sampled("torch", None, 2)), (drawn * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", ["int8_sq", "fp8", "nvfp4"])
def test_a_checkpoint_changes_the_pictures_of_the_torch_runtime(name: str) -> None:
    assert not np.array_equal(sampled("torch", bench(family="flux").checkpoint(name), 1), sampled("torch", None, 1))


# The cache.

STEPS = 6


def first_block(threshold: float) -> CacheView:
    settings = METHODS["first_block"].settings(method="first_block", threshold=threshold)
    return CacheView(method="first_block", settings=settings)


def cachify(**fields: Any) -> CacheView:
    settings = METHODS["cachify"].settings(method="cachify", **fields).filled(FAMILY)
    return CacheView(method="cachify", settings=settings)


def pictures_of(run: Running, prompts: tuple[str, ...] = ("a red apple",), seed: int = 5) -> np.ndarray:
    return bench(family="flux").draw(run.pipe, list(prompts), [seed + i for i in range(len(prompts))], STEPS)


@pytest.fixture(scope="module")
def high() -> Iterator[Running]:
    """A threshold under which only the first block of most steps is computed."""
    with running("torch", None, first_block(5.0)) as run:
        yield run


def test_without_a_cache_there_is_nothing_to_count() -> None:
    with running("torch", None) as run:
        pictures_of(run)
        assert run.saved() is None


def test_what_a_cache_saved_is_counted_in_the_blocks_themselves() -> None:
    with running("torch", None, first_block(0.5)) as run:
        seen = []
        backbone = run.pipe.transformer
        for block in [*backbone.transformer_blocks, *backbone.single_transformer_blocks]:
            block.attn.register_forward_hook(lambda *_: seen.append(1))
        pictures_of(run)
        assert 4 + (STEPS - 1) < len(seen) < 4 * STEPS
        assert (run.saved().hits, run.saved().misses) == (4 * STEPS - len(seen), len(seen))
        assert run.saved().computed < 1


def test_a_policy_caches_a_quantized_backbone_as_a_plain_one() -> None:
    with running("torch", bench(family="flux").checkpoint("int8_sq")) as run:
        plain = pictures_of(run)
    with running("torch", bench(family="flux").checkpoint("int8_sq"), cachify()) as run:
        found = pictures_of(run)
        assert (run.saved().hits, run.saved().misses) == (3 * STEPS // 2, 3 * STEPS // 2)
    with running("torch", bench(family="flux").checkpoint("int8_sq"), cachify(steps=[STEPS - 1], reuse="output")) as run:
        late = pictures_of(run)
    assert 0 < np.abs(late - plain).mean() < np.abs(found - plain).mean() * 10
    assert not np.array_equal(found, plain)


def test_a_policy_that_never_hits_on_a_quantized_backbone_changes_no_bit() -> None:
    with running("torch", bench(family="flux").checkpoint("int8_sq")) as run:
        plain = pictures_of(run)

    def never() -> None:
        with running("torch", bench(family="flux").checkpoint("int8_sq"), cachify(start=STEPS)) as run:
            assert np.array_equal(pictures_of(run), plain)

    with pytest.raises(GateError, match=r"^cache: never hit \(got cache\.blocks=.*, 18 calls computed\)"):
        never()


def test_a_policy_that_does_not_fit_the_model_is_a_line() -> None:
    with (
        pytest.raises(PlanError, match=r"^cache: part: these blocks have no cross-attention"),
        running("torch", None, cachify(part="cross_attention")),
    ):
        pass


def test_the_index_of_pictures_says_what_the_cache_saved() -> None:
    b = bench(family="flux")
    context = b.context()
    view = RuntimeView(prompts=PromptSet("tests", b.prompts[:2]), batch_size=2, steps=4, runtime="torch")
    sample.run(context, b.call, cachify(), view, b.pipeline(), b.encoded(view.prompts, 2), None, 5)
    found = json.loads((context.out / "images.json").read_text())["cache"]
    assert (found["hits"], found["misses"]) == (6, 6)
    assert 0.6 < found["computed"] < 0.7


def test_a_cache_changes_the_pictures(high: Running) -> None:
    with running("torch", None) as run:
        assert not np.array_equal(pictures_of(run), pictures_of(high))


def test_a_cache_works_on_a_quantized_backbone() -> None:
    with running("torch", bench(family="flux").checkpoint("nvfp4"), first_block(5.0)) as run:
        assert np.isfinite(pictures_of(run)).all()
        assert run.saved().hits > 0


def test_a_cache_that_never_hits_is_refused() -> None:
    with (
        pytest.raises(GateError, match=r"never hit \(got cache\.threshold=1e-09, 24 calls computed\); raise it"),
        running("torch", None, first_block(1e-9)) as run,
    ):
        pictures_of(run)


def test_an_error_within_a_cached_run_is_not_replaced_by_the_gate() -> None:
    def broken() -> None:
        with running("torch", None, first_block(1e-9)) as run:
            pictures_of(run)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()


def test_a_cache_does_not_leak_from_one_call_to_the_next(high: Running) -> None:
    first = pictures_of(high)
    other = pictures_of(high, ("delivery truck",), seed=99)
    assert not np.array_equal(first, other)
    assert np.array_equal(pictures_of(high), first)


def test_a_cache_does_not_leak_into_a_call_of_another_batch(high: Running) -> None:
    with running("torch", None, first_block(5.0)) as fresh:
        wanted = pictures_of(fresh, ("a", "b"))
    pictures_of(high)
    assert np.array_equal(pictures_of(high, ("a", "b")), wanted)
