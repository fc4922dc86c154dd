"""Other weights for a plan: what is refused, and the calls to TensorRT, whose interface is recorded here: it wants a GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contents import GRAPH, PLAN

from diffopt.errors import GateError, StoreError
from diffopt.files.graph import OnnxGraphFile
from diffopt.files.plan import EnginePlanFile
from diffopt.graph.engine import refit

GPU = {"name": "RTX 4090", "capability": "8.9"}


def plan(**more: Any) -> EnginePlanFile:
    return EnginePlanFile.of(PLAN | {"refit": True, "capabilities": ["8.9"]} | more)


def graph(**more: Any) -> OnnxGraphFile:
    return OnnxGraphFile.of(GRAPH | more)


def test_a_plan_that_was_not_built_for_it_is_refused() -> None:
    with pytest.raises(StoreError, match=r"without export.refit=true"):
        refit.refuse(plan(refit=False), graph())
    refit.refuse(plan(), graph())


def test_a_graph_of_another_format_is_refused() -> None:
    with pytest.raises(StoreError, match=r"of another format than the plan .got fp8 for int8_sq"):
        refit.refuse(plan(), graph(format="fp8"))


class Recorded:
    """What TensorRT offers, as its bindings 1.7.1 name it; weights fit where the file says so."""

    __name__ = "tensorrt_rtx"

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INFO=3)

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            return SimpleNamespace(weights=data, serialize=lambda: b"unset")

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            self.engine, self.weights = engine, b""

        def refit_cuda_engine(self) -> bool:
            self.engine.serialize = lambda: self.weights
            return True

        def get_missing_weights(self) -> list[str]:
            return ["a.weight"]

    class OnnxParserRefitter:
        def __init__(self, refitter: Any, logger: Any) -> None:
            self.refitter = refitter

        def refit_from_file(self, path: str) -> bool:
            self.refitter.weights = Path(path).read_bytes()
            return self.refitter.weights != b"other"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(refit, "module", lambda flavour: Recorded)
    monkeypatch.setattr(refit, "unusable", lambda head, environment: None)
    (tmp_path / "model.plan").write_bytes(b"old")
    (tmp_path / "model.onnx").write_bytes(b"new")
    return tmp_path / "model.plan", tmp_path / "model.onnx"


def test_a_refitted_plan_has_the_graphs_weights(files: tuple[Path, Path]) -> None:
    assert bytes(refit.refitted(*files, plan())) == b"new"


def test_weights_that_do_not_fit_are_refused(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(b"other")
    with pytest.raises(GateError, match=r"refit: the graph's weights do not fit the plan .got 1 weights missing"):
        refit.refitted(*files, plan())


def test_a_plan_for_another_machine_is_not_loaded(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "unusable", lambda head, environment: "build: the plan is for another GPU")
    with pytest.raises(StoreError, match="another GPU"):
        refit.refitted(*files, plan())
