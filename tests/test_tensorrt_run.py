"""A whole run by eval.runtime=tensorrt, over a recorded TensorRT: from the recipe to the page, and again from the store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import recorded_engine
from recorded_engine import Library
from test_tensorrt_plan import ADA

import diffopt
from diffopt.files.latency import LatencyFile
from diffopt.files.plan import EnginePlanFile
from diffopt.jobs import job, runtime_checks
from diffopt.stage import stages

pytestmark = pytest.mark.matrix
SMALL = {
    "calib.size": 2,
    "calib.n_steps": 2,
    "calib.chunk": 2,
    "calib.batch_size": 2,
    "eval.size": 2,
    "eval.steps": 4,
    "eval.metrics": ["psnr"],
    "eval.latency": True,
    "eval.repeats": 3,
    "eval.runtime": "tensorrt",
    "export": "tensorrt",
}


def test_a_recipe_is_drawn_scored_and_timed_by_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(ctx: Any, export: Any, graph: Any) -> None:
        recorded_engine.write(graph, ctx.out)

    library = Library().install(monkeypatch)
    ours = [replace(s, run=build) if s.name == "build" else s for s in stages()]
    monkeypatch.setattr(job, "stages", lambda: ours)
    monkeypatch.setattr(runtime_checks, "gpus", lambda: ADA)
    monkeypatch.chdir(tmp_path)
    found = diffopt.run("emoji_int8_sq", SMALL, quiet=True)
    assert found
    assert found.metrics["psnr"].mean > 25
    assert EnginePlanFile.read(found.directory / "build").format == "int8_sq"
    assert (found.directory / "build" / "graph.json").is_file()
    timed = LatencyFile.read(found.directory / "time")
    assert timed.runtime == "tensorrt"
    assert timed.speedup
    page = found.report.read_text()
    assert "tensorrt" in page
    calls = len(library.executed())
    again = diffopt.run("emoji_int8_sq", SMALL, quiet=True)
    assert again
    assert len(library.executed()) == calls
    by_graph = diffopt.run("emoji_int8_sq", SMALL | {"eval.runtime": "onnxruntime", "eval.latency": False}, quiet=True)
    assert by_graph
    assert by_graph.metrics["psnr"].mean == found.metrics["psnr"].mean
