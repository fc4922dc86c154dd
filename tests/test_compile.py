"""`diffopt.compile`: an engine plan in the place of a script's backbone, of a recorded TensorRT."""

import copy
from pathlib import Path
from shutil import copytree
from typing import Any

import modelopt.torch.quantization as mtq
import numpy as np
import pytest
import recorded_engine
import torch
from recorded_engine import Library
from test_tensorrt_plan import ADA, H100
from tiny import Bench, bench, recipe

import diffopt
from diffopt.artifact import OnnxGraph
from diffopt.files.graph import OnnxGraphFile
from diffopt.jobs import compiled_backbone
from diffopt.machine import environment
from diffopt.pipeline.open import open_pipeline

SMALL = {"model.height": 32, "model.width": 32, "model.max_sequence_length": 16}
BARE = SMALL | {"model.height": 64, "model.width": 64}
"""As large for a backbone without its VAE, of which the model's own is coarser."""
ARGUMENTS = (["a red apple"], [5], 4)


class Builder:
    """Stands for the stage: what it writes is computed by the graph, of which it keeps a copy."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.built: list[Path] = []

    def run(self, ctx: Any, view: Any, graph: Any) -> None:
        self.built.append(graph.path)
        kept = copytree(graph.path, self.folder / str(len(self.built)))
        recorded_engine.write(OnnxGraph(kept, ""), ctx.out)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    found = Builder(tmp_path_factory.mktemp("built"))
    Library().install(monkeypatch)
    monkeypatch.setattr(environment, "gpus", lambda: ADA)
    monkeypatch.setattr(compiled_backbone, "build", found)
    return found


def pipeline(b: Bench) -> Any:
    return open_pipeline(b.context(), b.pipeline())


def test_a_pipeline_draws_by_the_plan_what_its_backbone_draws(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    pipe = pipeline(b)
    theirs, weights = b.draw(pipe, *ARGUMENTS), pipe.transformer
    found = diffopt.compile(pipe, "emoji_flux", tmp_path / "onnx", tmp_path / "plan", SMALL)
    assert found is pipe
    assert type(pipe.transformer).__name__ == "StandIn"
    assert not [x for x in vars(pipe.transformer).values() if getattr(x, "__self__", x) is weights]  # they can be let go
    assert np.abs(b.draw(pipe, *ARGUMENTS) - theirs).max() < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnx", "plan"]
    pipe.transformer.close()
    assert [*(tmp_path / "plan").glob("*.kernels")]


def test_a_backbone_gives_the_module_for_its_place(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    backbone = b.backbone()
    found = diffopt.compile(backbone, "emoji_flux", overrides=BARE)
    exact = backbone(**b.inputs()).sample
    assert float((found(**b.inputs()).sample - exact).norm() / exact.norm()) < 1e-5


def test_what_is_there_is_used_a_plan_without_its_graph_and_a_graph_without_weights(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    first = diffopt.compile(b.backbone(), "emoji_flux", tmp_path / "onnx", tmp_path / "plan", BARE)
    with torch.device("meta"):
        empty = type(b.backbone()).from_config(b.backbone().config)
    inputs = b.inputs()
    by_plan = diffopt.compile(empty, "emoji_flux", None, tmp_path / "plan", BARE)
    by_graph = diffopt.compile(empty, "emoji_flux", tmp_path / "onnx", None, BARE)
    assert torch.equal(by_plan(**inputs).sample, first(**inputs).sample)
    assert torch.equal(by_graph(**inputs).sample, first(**inputs).sample)
    assert builder.built == [tmp_path / "onnx"] * 2


def test_a_quantized_backbone_gives_a_quantized_graph(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    rules, algorithm = recipe("int8")
    backbone, inputs = copy.deepcopy(b.backbone()), b.inputs()
    mtq.quantize(backbone, {"quant_cfg": rules, "algorithm": algorithm}, lambda m: m(**inputs))
    found = diffopt.compile(backbone, "emoji_flux", tmp_path / "onnx", None, BARE)
    head = OnnxGraphFile.read(tmp_path / "onnx")
    assert head.quantized_products == head.quantized_layers > 0
    exact = backbone(**inputs).sample
    assert float((found(**inputs).sample - exact).norm() / exact.norm()) < 5e-3


def test_fields_of_the_model_and_of_the_export_are_overrides(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    found = diffopt.compile(b.backbone(), "emoji_flux", tmp_path / "onnx", None, BARE | {"export.max_batch_size": 3})
    assert found(**b.inputs(3)).sample.shape[0] == 3
    with pytest.raises(diffopt.DiffoptError, match=r"^hidden_states: axis 0 is 4, and model\.plan takes 1 to 3"):
        found(**b.inputs(4))


def test_a_pipeline_with_a_cache_runs_the_parts_of_a_cut_graph(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    pipe = pipeline(b)
    plain = b.draw(pipe, *ARGUMENTS)
    diffopt.compile(pipe, "emoji_flux", tmp_path / "onnx", tmp_path / "plan", SMALL | {"cache": "cachify"})
    drawn = b.draw(pipe, *ARGUMENTS)
    assert pipe.transformer.parts.hits > 0
    assert 0 < np.abs(drawn - plain).mean() < 0.1
    assert len([*(tmp_path / "plan").glob("model.*.plan")]) == len([*(tmp_path / "onnx").glob("model.*.onnx")]) == 3
    pipe.transformer.close()
    assert not hasattr(pipe.scheduler.step, "__wrapped__")  # its loop is not followed any more


def refused(*arguments: Any, **kw: Any) -> str:
    with pytest.raises(diffopt.DiffoptError) as raised:
        diffopt.compile(*arguments, **kw)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_compiled_is_refused_in_a_line_before_anything_is_written(builder: Builder, tmp_path: Path) -> None:
    b = bench(family="flux")
    backbone, paths = b.backbone(), (tmp_path / "onnx", tmp_path / "plan")
    assert refused(backbone, "emoji_fluxx", *paths, SMALL).startswith("model: ")
    assert refused(torch.nn.Linear(2, 2), "emoji_flux", *paths, SMALL) == (
        "backbone: is no FluxTransformer2DModel, as flux has it (got a Linear); give another model_id"
    )
    assert refused(backbone, "emoji_flux", *paths, SMALL | {"cache": "cachify"}) == (
        "cache: needs the pipeline, whose loop it follows (got a FluxTransformer2DModel); give a pipeline and cache=cachify, "
        "or drop the cache"
    )
    assert refused(backbone, "emoji_flux", *paths, {"model.heigth": 32}).startswith("model.heigth")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert refused(backbone, "emoji_flux", None, tmp_path / "other", SMALL) == (
        f"engine_path: holds no plan.json (got {str(tmp_path / 'other')!r}); give what diffopt wrote, or a new directory"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_where_no_plan_runs_nothing_is_exported(builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, paths = bench(family="flux").backbone(), (tmp_path / "onnx", tmp_path / "plan")
    monkeypatch.setattr(environment, "gpus", lambda: H100)
    assert refused(backbone, "emoji_flux", *paths, SMALL) == (
        "diffopt.compile: tensorrt is TensorRT-RTX here, which runs on GPUs of compute capability 7.5, 8.0, 8.6, 8.9, 12.0 and "
        "12.1 (got NVIDIA H100 with 9.0); leave the backbone as it is"
    )
    monkeypatch.setattr(environment, "tensorrt", lambda: None)
    assert refused(backbone, "emoji_flux", *paths, SMALL).startswith("tensorrt: no TensorRT is installed (got none); `pip ")
    assert not [*tmp_path.iterdir()]


def test_a_build_that_fails_leaves_the_graph_and_no_plan(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ctx: Any, view: Any, graph: Any) -> None:
        (ctx.out / "model.plan").write_bytes(b"half")
        raise diffopt.DiffoptError("build: out of memory (got 0 bytes); free some")

    monkeypatch.setattr(builder, "run", fail)
    said = refused(bench(family="flux").backbone(), "emoji_flux", tmp_path / "onnx", tmp_path / "plan", SMALL)
    assert said == "build: out of memory (got 0 bytes); free some"
    assert [p.name for p in tmp_path.iterdir()] == ["onnx"]
