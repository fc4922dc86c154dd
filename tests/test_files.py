"""The files of artifacts as dataclasses: what is read is written again byte by byte, and older files lack newer keys."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_report import CHECKPOINT, GRAPH, MACHINE, PIPELINE, PLAN

from diffopt.errors import StoreError
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.comparison import ComparisonFile
from diffopt.files.evaluation import EvaluationFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.images import ImagesFile
from diffopt.files.latency import LatencyFile
from diffopt.files.metrics import MetricsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import EnginePlanFile
from diffopt.files.search import CacheSearchFile
from diffopt.files.stored import Stored, later


@dataclass(frozen=True)
class Part:
    name: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Whole(Stored):
    NAME = "whole.json"
    SCHEMA = "diffopt.whole/1"

    scale: float | None
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    options: Mapping[str, Any]
    newer: int | None = later(None)
    first: Part | None = None


CONTENT = {
    "schema": "diffopt.whole/1",
    "scale": None,
    "parts": [{"name": "a", "shape": [1, 2]}, {"name": "b"}],
    "by_name": {"z": {"name": "c"}, "a": {"name": "d", "shape": []}},
    "options": {"deep": [{"shape": [1]}, 2.0]},
    "newer": None,
    "first": {"name": "e"},
}


def test_what_is_read_is_written_again_byte_by_byte(tmp_path: Path) -> None:
    whole = Whole.of(CONTENT)
    whole.write(tmp_path)
    assert (tmp_path / "whole.json").read_text() == json.dumps(CONTENT, indent=1)
    assert Whole.read(tmp_path) == whole


def test_what_is_nested_has_its_own_types() -> None:
    whole = Whole.of(CONTENT)
    assert whole.parts == (Part("a", (1, 2)), Part("b"))
    assert whole.by_name["a"].shape == ()
    assert whole.options == {"deep": [{"shape": [1]}, 2.0]}
    assert whole.first == Part("e")


def test_an_older_file_lacks_newer_keys() -> None:
    whole = Whole.of({k: v for k, v in CONTENT.items() if k not in ("newer", "first")})
    assert (whole.newer, whole.first) == (None, None)


def test_a_key_that_is_absent_stays_absent_and_one_of_older_files_is_written() -> None:
    written = json.loads(Whole.of({k: v for k, v in CONTENT.items() if k not in ("newer", "first")}).text())
    assert written["newer"] is None
    assert "first" not in written


def test_a_lacking_key_is_named() -> None:
    with pytest.raises(StoreError, match=r"^whole.json: lacks a key \(got no 'name'\); make what it belongs to again$"):
        Whole.of(CONTENT | {"parts": [{"shape": [1]}]})


def test_a_key_of_a_later_version_is_not_read() -> None:
    assert Whole.of(CONTENT | {"more": 1}) == Whole.of(CONTENT)


RULE = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 8, "axis": 0}}
MIXED = {**{k: v for k, v in CHECKPOINT.items() if k != "layers"}, "rules": [RULE], "mix": {"a": "fp8"}, "layers": ["a"]}
SHAPES = {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}
PART = {"file": "model.0.onnx", "reused": False, "inputs": ["x"], "outputs": ["out"], "entering": {"b": "a"}}
CUT = {k: v for k, v in GRAPH.items() if k != "diffusers"} | {
    "inputs": {"x": {"shape": [2, 4], "dtype": "float32"}},
    "profile": SHAPES,
    "reused": ["blocks.0"],
    "pieces": [PART | {"profile": SHAPES, "bytes": 5}],
    "diffusers": "0.42.1",
}
ADAPTER = {"name": "a.safetensors", "source": "sha256:1", "scale": 0.5, "backbone": None, "hits": {"transformer": 3}}


STAT = {"mean": 1.5, "low": None, "high": 2, "n": 1}
ABOUT = {"title": "PSNR", "unit": "dB", "better": "higher"}
SCORE = ABOUT | {"candidate": STAT, "values": [1, 2.5], "difference": STAT, "verdict": "a loss"}
SET = ABOUT | {"candidate": STAT, "verdict": "a distance"}
METRICS = {
    "schema": "diffopt.metrics/1",
    "prompts": ["a"],
    "metrics": {"z": SCORE | {"reference": STAT, "reference_values": [1, 2]}, "fid": SET},
    "difference_gain": 8,
}
BESIDE = {"name": "ptq", "title": "before", "metrics": {"fid": ABOUT | {"candidate": STAT, "compared": STAT}}}
FEWER = {"name": "fewer_steps", "title": "12 steps", "steps": 12, "arithmetic": 0.6, "computed": 0.5}
FEWER |= {"metrics": {"z": ABOUT | {"candidate": STAT, "compared": STAT, "difference": STAT, "verdict": "lost"}}}
EVALUATION = {
    "schema": "diffopt.evaluation/1", "reference": None, "models": ["a"], "prompts": ["p"], "left_out": [0], "problems": [],
    "metrics": {"z": ABOUT | {"weights": {}, "models": {"a": {"stat": STAT, "values": [None]}}, "order": []}},
}  # fmt: skip
SAVED = {"hits": 1, "misses": 2, "computed": 0.5}
PICTURE = {"file": "000.png", "prompt": "p", "seed": 3}
DRAWN = {"runtime": "torch", "format": "fp8", "simulated": False}
TIMING = {"seconds_per_image": {"median": 1, "p10": 1, "p90": 2}, "milliseconds_per_step": None, "seconds_per_call": [1.0]}
TIMED = {
    "schema": "diffopt.latency/1", "runtime": "torch", "machine": MACHINE, "batch_size": 1, "steps": 2, "warmup": 1,
    "repeats": 3, "baseline": TIMING,
}  # fmt: skip
TRIED = {
    "value": 3, "metrics": {"psnr": SCORE}, "broken": None, "hits": 1, "misses": 2, "computed": 0.5, "margins": {"psnr": STAT},
    "keeps": True, "shown": False, "order": 1,
}  # fmt: skip
SEARCH = {
    "schema": "diffopt.cache-search/1", "method": "cachify", "knob": "every", "more": "higher", "low": 2.0, "high": 6.0,
    "floor": {"psnr": 30, "clip": "-0.5%"}, "prompts": 4, "steps": 20,
    "points": [TRIED, TRIED | {"metrics": {}, "margins": {}, "broken": "one colour"}],
    "cliffs": [{"after": 2, "before": 3, "kind": "jumps", "metric": None, "by": 0.2}],
    "chosen": TRIED, "limit": "floor", "reason": "the next value does not keep it",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (CheckpointFile, CHECKPOINT),
        (CheckpointFile, MIXED),
        (CacheSearchFile, SEARCH),
        (ComparisonFile, {"schema": "diffopt.comparison/1", "compared": [BESIDE, FEWER]}),
        (EnginePlanFile, PLAN),
        (EnginePlanFile, PLAN | {"plans": [{"file": "model.0.plan", "bytes": 1, "profiles": [], "reused": False}]}),
        (EvaluationFile, EVALUATION),
        (ImagesFile, {"runtime": "torch", "format": None, "images": [PICTURE]}),
        (ImagesFile, DRAWN | {"cache": SAVED, "images": [PICTURE | {"frames": ["0/0.png"], "plays": "0.webp"}]}),
        (ImagesFile, DRAWN | {"steps": 12, "arithmetic": 0.6, "images": []}),
        (LatencyFile, TIMED | {"speedup": None}),
        (LatencyFile, TIMED | {"candidate": TIMING | {"cache": SAVED}, "speedup": {"end_to_end": STAT, "per_step": None}}),
        (MetricsFile, METRICS),
        (MetricsFile, METRICS | {"frames": 4}),
        (OnnxGraphFile, GRAPH),
        (OnnxGraphFile, CUT),
        (PipelineFile, PIPELINE),
        (PipelineFile, PIPELINE | {"lora": [ADAPTER]}),
    ],
)
def test_each_file_is_written_as_it_was(kind: type[Stored], content: dict[str, Any]) -> None:
    assert kind.of(content).text() == json.dumps(content, indent=kind.INDENT)
