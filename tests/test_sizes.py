"""One graph for pictures of several sizes: it computes at each what the backbone computes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import some
from tiny import bench

from diffopt import models
from diffopt.errors import GateError
from diffopt.files.pipeline import PipelineFile
from diffopt.graph.calls import Calls
from diffopt.graph.write import write
from diffopt.models.family import Size
from diffopt.pipeline.open import config

FAMILIES = [n for n in models.names() if models.family(n).resizable]


def calls(family: str) -> Calls:
    """Of heights, widths and frames that differ from each other at every size."""
    b = bench(family=family)
    found, pinned = b.backbone(), PipelineFile.read(b.pipeline().path)
    known, backbone = models.family(family), found[pinned.backbones[0]] if isinstance(found, torch.nn.ModuleDict) else found
    usual = Size(1, 64, 64, b.call.max_sequence_length or 16, b.call.frames or 1)
    more = usual.frames + (known.frame_step or 0)
    extremes = replace(usual, height=32), replace(usual, height=128, width=96, frames=more)
    return Calls(backbone, known, config(b.context(), pinned, "vae"), usual, 1, 1, 2, *extremes)


@pytest.mark.parametrize("family", some(FAMILIES, ["flux"]))
def test_a_graph_computes_every_size_as_its_backbone_does(family: str, tmp_path: Path) -> None:
    c = calls(family)
    write(c.backbone, c.traced(), tmp_path / "model.onnx", 20, c.batched, c.family.call, None, c.size_axes)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    run = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), quiet, providers=["CPUExecutionProvider"])
    for extent in (c.smallest, c.extent, c.largest):
        assert extent is not None
        given = c.family.inputs(c.backbone, c.vae, replace(extent, batch=2))
        with torch.inference_mode():
            whole = c.backbone(**c.family.call(given), return_dict=False)[0].numpy()
        (found,) = run.run(None, {i.name: given[i.name].numpy() for i in run.get_inputs()})
        assert found.shape == whole.shape
        assert np.abs(found - whole).max() < 1e-4 * np.abs(whole).max()


def test_a_profile_spans_batches_and_sizes_together() -> None:
    profile = calls("flux").profile
    assert profile is not None
    assert {k: s[:2] for k, s in profile["hidden_states"].items()} == {"min": [1, 128], "opt": [1, 256], "max": [2, 768]}
    assert {k: s[0] for k, s in profile["img_ids"].items()} == {"min": 128, "opt": 256, "max": 768}
    assert {k: s[:1] for k, s in profile["timestep"].items()} == {"min": [1], "opt": [1], "max": [2]}


def test_a_constant_that_follows_from_the_size_is_refused() -> None:
    with pytest.raises(GateError, match=r"export: .* is a constant of the graph that differs between sizes"):
        _ = calls("qwen_image").size_axes
