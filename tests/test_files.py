"""The files of artifacts as dataclasses: what is read is written again byte by byte, and older files lack newer keys."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contents import (
    ADAPTER,
    BENCHED,
    BESIDE,
    CHECKPOINT,
    CUT,
    DRAWN,
    EVALUATION,
    EXPORTED,
    FEWER,
    GRAPH,
    METRICS,
    MIX,
    MIXED,
    NATIVE,
    PARITY,
    PICTURE,
    PIPELINE,
    PLAN,
    RANGES,
    RATIOS,
    RUN,
    SAVED,
    SEARCH,
    SENSED,
    STAT,
    TIMED,
    TIMING,
    TRAINED,
)

from diffopt import files
from diffopt.errors import StoreError
from diffopt.files.bench import BenchFile
from diffopt.files.checkpoint import CheckpointFile
from diffopt.files.comparison import ComparisonFile
from diffopt.files.evaluation import EvaluationFile
from diffopt.files.export import ExportFile
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.images import ImagesFile
from diffopt.files.json_file import JsonFile, later
from diffopt.files.latency import LatencyFile
from diffopt.files.metrics import MetricsFile
from diffopt.files.mix import MixFile
from diffopt.files.native import NativeFile
from diffopt.files.parity import ParityFile
from diffopt.files.pipeline import PipelineFile
from diffopt.files.plan import EnginePlanFile
from diffopt.files.ranges import RangesFile
from diffopt.files.ratios import MagRatiosFile
from diffopt.files.run import RunFile
from diffopt.files.search import CacheSearchFile
from diffopt.files.sensitivity import SensitivityFile
from diffopt.files.training import TrainingFile
from diffopt.files.trainset import TrainSetFile


@dataclass(frozen=True)
class Part:
    name: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Whole(JsonFile):
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
    written = json.loads(Whole.of({k: v for k, v in CONTENT.items() if k not in ("newer", "first")}).to_json())
    assert written["newer"] is None
    assert "first" not in written


def test_a_lacking_key_is_named() -> None:
    with pytest.raises(StoreError, match=r"^whole.json: lacks a key \(got no 'name'\); make what it belongs to again$"):
        Whole.of(CONTENT | {"parts": [{"shape": [1]}]})


def test_a_key_of_a_later_version_is_not_read() -> None:
    assert Whole.of(CONTENT | {"more": 1}) == Whole.of(CONTENT)


WRITTEN: list[tuple[type[JsonFile], dict[str, Any]]] = [
    (BenchFile, BENCHED),
    (BenchFile, BENCHED | {"before": None, "work": None, "rates": [], "headline": None, "contenders": []}),
    (CheckpointFile, CHECKPOINT),
    (CheckpointFile, MIXED),
    (CacheSearchFile, SEARCH),
    (ComparisonFile, {"schema": "diffopt.comparison/1", "compared": [BESIDE, FEWER]}),
    (EnginePlanFile, PLAN),
    (EnginePlanFile, PLAN | {"plans": [{"file": "model.0.plan", "bytes": 1, "profiles": [], "reused": False}]}),
    (EvaluationFile, EVALUATION),
    (ExportFile, EXPORTED),
    (ImagesFile, {"runtime": "torch", "format": None, "images": [PICTURE]}),
    (ImagesFile, DRAWN | {"cache": SAVED, "images": [PICTURE | {"frames": ["0/0.png"], "plays": "0.webp"}]}),
    (ImagesFile, DRAWN | {"steps": 12, "arithmetic": 0.6, "images": []}),
    (LatencyFile, TIMED | {"speedup": None}),
    (LatencyFile, TIMED | {"candidate": TIMING | {"cache": SAVED}, "speedup": {"end_to_end": STAT, "per_step": None}}),
    (MagRatiosFile, RATIOS),
    (MetricsFile, METRICS),
    (MetricsFile, METRICS | {"frames": 4}),
    (MixFile, MIX),
    (NativeFile, NATIVE),
    (OnnxGraphFile, GRAPH),
    (OnnxGraphFile, CUT),
    (ParityFile, PARITY),
    (PipelineFile, PIPELINE),
    (PipelineFile, PIPELINE | {"lora": [ADAPTER]}),
    (RangesFile, RANGES),
    (RunFile, RUN),
    (SensitivityFile, SENSED),
    (TrainingFile, TRAINED),
    (TrainingFile, TRAINED | {"metric": None, "validations": [], "best": None, "teacher": "0"}),
]
"""A file of each kind, as it is written."""


@pytest.mark.parametrize(("kind", "content"), WRITTEN)
def test_each_file_is_written_as_it_was(kind: type[JsonFile], content: dict[str, Any]) -> None:
    assert kind.of(content).to_json() == json.dumps(content, indent=kind.INDENT)


def test_the_prompts_of_a_training_set_are_written_as_they_are(tmp_path: Path) -> None:
    older = {"schema": "diffopt.trainset/1", "items": 2, "prompts": ["caf\u00e9"], "text": [0, 0]}
    TrainSetFile.of(older).write(tmp_path)
    content = (tmp_path / "set.json").read_text(encoding="utf-8")
    assert content == json.dumps(older | {"skipped": 0, "unreadable": []}, indent=1, ensure_ascii=False)


def test_reading_a_file_imports_no_library_that_computes() -> None:
    names = [f"diffopt.files.{p.stem}" for p in Path(files.__path__[0]).glob("*.py")]
    code = f"import sys; import {', '.join(names)}; print(*{{'torch', 'numpy', 'pydantic'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
