"""Pipelines without a family file in three formats at tiny size on a CPU, by the family that is found: as test_matrix.py."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from matrix_table import CELLS, STEPS
from test_matrix import _check_restored, attempt, calibration, entry
from tiny import PROMPTS, folder
from tiny_unknown import UNKNOWN

FORMATS = ("int8_sq", "fp8", "nvfp4")
UNEXPORTED = {
    "lumina": "LuminaNextDiT2DModel cannot be written down (got image_rotary_emb is complex, which graphs have not)",
    "lumina2": "no graph can be written of a Lumina2Transformer2DModel (got RuntimeError: ScalarType ComplexDouble is",
    "perturbed": "SD3Transformer2DModel cannot be written down (got a call without guidance has 2 * batch rows)",
}
"""Why there is no graph of them."""
UNBUILT = {
    ("mochi", "int8_sq"): {"build"},
    ("mochi", "fp8"): {"build"},
    ("mochi", "nvfp4"): {"export", "build"},
}
"""Cells whose graph or engine plan lacks for what the cell says; all else of them works."""
CELLS_ASKED = [
    pytest.param(name, kind, id=f"{name}-{kind}", marks=[] if (name, kind) == ("aura_flow", "fp8") else [pytest.mark.matrix])
    for name in UNKNOWN
    for kind in FORMATS
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def sources() -> dict[str, Path]:
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def source(name: str, there: dict[str, Path]) -> Path:
    if name not in there:
        there[name] = folder() / name
        torch.manual_seed(0)
        UNKNOWN[name].make().save_pretrained(there[name])
    return there[name]


REFUSED = {
    "train": (
        ["train=qad", "train.steps=2", "train.warmup=0"],
        "train: how BriaPipeline is trained is not known here: how its",
    ),
    "cache": (["cache=first_block"], "cache: diffusers' FirstBlockCache does not know the blocks of BriaPipeline"),
    "size": (["model.height=34"], "model.height: is not a multiple of 4 pixels (got 34)"),
}
"""What only shows when the family is found."""


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_found_family_cannot_is_refused_when_it_is_loaded_and_from_then_on_in_the_plan(
    case: str, store: Path, prompts: Path, sources: dict[str, Path]
) -> None:
    picks, line = REFUSED[case]
    given = ["model=auto", f"model.source={source('bria', sources)}", "model.dtype=float32", "format=fp8"]
    given += ["model.height=32", "model.width=32", "model.long_prompts=cut", *calibration("fp8", prompts)]
    given += ["eval=default", f"eval.prompts={prompts}", "eval.size=2", "eval.steps=4", *picks]
    made, said = attempt(store, *given)
    assert line in said
    for stage in ("embed", "observe"):
        assert made is None or not entry(made, stage), stage
    again, said = attempt(store, *given)
    assert again is None
    assert line in said


@pytest.mark.parametrize(("name", "kind"), CELLS_ASKED)
def test_a_pipeline_without_a_family_file_goes_through_the_chain(
    name: str, kind: str, store: Path, prompts: Path, sources: dict[str, Path]
) -> None:
    tiny = UNKNOWN[name]
    picks = ["model=auto", f"model.source={source(name, sources)}", "model.dtype=float32", f"format={kind}"]
    picks += [f"model.height={tiny.side}", f"model.width={tiny.side}", "model.long_prompts=cut"]
    picks += [f"model.guidance_scale={tiny.guidance}", *([f"model.frames={tiny.frames}"] if tiny.frames else [])]
    picks += [f"model.max_sequence_length={tiny.tokens}"] if tiny.tokens else []
    picks += calibration(kind, prompts)
    picks += ["eval=default", f"eval.prompts={prompts}", "eval.size=2", "eval.batch_size=2", "eval.steps=2"]
    picks += ["eval.metrics=[psnr]", "eval.latency=false"]
    engine = ["export=tensorrt", "export.high_precision_dtype=float16", "export.builder_optimization_level=0"]
    cell: dict[str, Any] = {}
    CELLS.setdefault(f"auto: {name}", {})[kind] = cell
    made, said = attempt(store, *picks, *engine)
    assert made is not None, said
    for step, stage in STEPS.items():
        cell[step] = True if entry(made, stage) else said.split(" [")[0]  # without what a parser of graphs says besides
    without = {"export", "build"} if name in UNEXPORTED else UNBUILT.get((name, kind), set())
    if without:
        assert UNEXPORTED.get(name, "") in said
        made, said = attempt(store, *picks)
        assert made is not None, said
        cell["run"] = True if entry(made, "sample") else said
    cached, said = attempt(store, *picks, "cache=cachify")
    cell["cache"] = True if cached and entry(cached, "sample") else said
    lacking = {step: x for step, x in cell.items() if x is not True}
    assert {*lacking} == without, lacking
    if not without:
        for graph in entry(made, "export").path.rglob("*.onnx"):
            onnx.checker.check_model(graph)
        _check_restored(made)
