"""The ONNX file is written tensor by tensor."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffopt.graph import file as graph_file
from diffopt.graph.file import INLINE, PAGE, GraphFile
from diffopt.graph.tensor import tensor

LARGE, SMALL = torch.arange(5000.0), torch.arange(3.0)


def empty() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "y")]
    nodes = [helper.make_node("Add", ["x", "small"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))


@pytest.fixture
def written(tmp_path: Path) -> GraphFile:
    file = GraphFile(tmp_path / "model.onnx")
    for name, x in {"large": LARGE, "small": SMALL, "other": LARGE + 1}.items():
        file.add(tensor(name, x))
    return file


def test_a_large_tensor_is_on_disk_as_soon_as_it_is_added(written: GraphFile) -> None:
    assert [len(i.raw_data) for i in written.initializers] == [0, SMALL.numel() * 4, 0]
    assert written.data.stat().st_size >= LARGE.numel() * 4


def test_its_bytes_are_counted(written: GraphFile) -> None:
    assert written.bytes == 4 * (2 * LARGE.numel() + SMALL.numel())


@pytest.mark.parametrize("beside", [False, True])
def test_the_tensors_are_read_back(beside: bool, written: GraphFile, monkeypatch: pytest.MonkeyPatch) -> None:
    if beside:
        monkeypatch.setattr(graph_file, "LIMIT", 1)
    written.close(empty())
    assert written.data.exists() == beside
    model = onnx.load(written.path)
    found = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert found.keys() == {"large", "small", "other"}
    for name, x in {"large": LARGE, "small": SMALL, "other": LARGE + 1}.items():
        assert np.array_equal(found[name], x.numpy())


def test_external_tensors_start_at_pages_and_small_ones_stay_in(written: GraphFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_file, "LIMIT", 1)
    written.close(empty())
    for proto in onnx.load(written.path, load_external_data=False).graph.initializer:
        about = {e.key: e.value for e in proto.external_data}
        assert bool(about) == (np.prod(proto.dims) * 4 > INLINE)
        assert int(about.get("offset", 0)) % PAGE == 0
