"""The manual's table of diffusers' backbone classes (diffopt/finding/README.md) is what the rules find, and what they do.

In every run the table's counts and the rows of a few classes, in `make matrix` all of it.
"""

import pytest
import survey
import torch
from diffusers.models.unets.unet_kandinsky3 import Kandinsky3UNet

from diffopt.finding import structure

COUNT, TINY = 87, 9
"""Classes that there are, and those without whole defaults, of which the tiny config is told."""
BROKEN = {
    "MotionAdapter": "its call computes nothing",
    "SanaWMLTX2RefinerTransformer3D": "quantize: calibration never reached transformer_blocks.0.audio_attn1.to_q (got 36 such "
    "layers)",
}
"""Those that do not go through FP8, and why; all others do."""
FEW = (
    "Flux2Transformer2DModel",
    "HiDreamImageTransformer2DModel",  # a mixture of experts
    "UNet2DConditionModel",
    "MotionAdapter",
    "SanaTransformer2DModel",  # linear attention
    "SanaWMLTX2RefinerTransformer3DModel",  # with layers that its call leaves out
    "ZImageTransformer2DModel",  # takes lists of tensors
)


def cells(row: str) -> list[str]:
    return [c.strip() for c in row.strip("|").split("|")]


def rows() -> dict[str, list[str]]:
    """Cells by class, as the page has them."""
    lines = [cells(line) for line in survey.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return {name: rest for name, *rest in lines}


def test_the_table_has_every_class_and_all_but_two_go_through_fp8() -> None:
    found = rows()
    assert [*found] == [n.removesuffix("Model") for n in survey.classes()]
    assert len(found) == COUNT
    assert sum("of its tiny config" in blocks for blocks, *_ in found.values()) == TINY
    assert {name: rest[-1] for name, rest in found.items() if rest[-1] != "ok"} == BROKEN


@pytest.mark.parametrize("name", FEW)
def test_a_class_has_the_row_that_the_table_has(name: str) -> None:
    assert cells(survey.row(survey.classes()[name])) == rows()[name.removesuffix("Model")]


def test_a_unet_may_lack_a_middle() -> None:
    with torch.device("meta"):
        backbone = Kandinsky3UNet()
    blocks = structure.blocks_of(backbone)
    assert blocks == ("down_blocks", "up_blocks")
    assert not hasattr(backbone, "mid_block")
    kept = ("time_embedding", "add_time_condition", "conv_in", "encoder_hid_proj", "conv_out")
    assert structure.kept_of(backbone, blocks) == kept


@pytest.mark.matrix
def test_the_table_is_that_of_the_rules_as_they_are() -> None:
    assert survey.PAGE.read_text() == survey.written()
