"""The manual's table of diffusers' backbone classes (diffopt/finding/README.md) is what the rules find, and what they do."""

import pytest
import survey

COUNT, ENOUGH = 87, 50
"""Classes that there are, and how many of them must go through FP8."""
FEW = (
    "Flux2Transformer2DModel",
    "HiDreamImageTransformer2DModel",  # a mixture of experts
    "UNet2DConditionModel",
    "MotionAdapter",
    "SanaTransformer2DModel",  # linear attention
    "SanaWMLTX2RefinerTransformer3DModel",  # with layers that its call leaves out
    "ZImageTransformer2DModel",  # takes lists of tensors
)


def rows() -> dict[str, list[str]]:
    """Cells by class, as the page has them."""
    lines = [line.strip("|").split("|") for line in survey.PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines}


def test_the_table_names_every_class_and_gives_a_reason_where_one_does_not_go_through() -> None:
    found = rows()
    assert [*found] == [n.removesuffix("Model") for n in survey.classes()]
    assert len(found) == COUNT
    assert all(cells[-1] for cells in found.values())
    assert sum(cells[-1] == "ok" for cells in found.values()) >= ENOUGH


@pytest.mark.parametrize("name", FEW)
def test_a_class_goes_through_fp8_as_the_table_says(name: str) -> None:
    assert survey.fp8(survey.classes()[name]) == rows()[name.removesuffix("Model")][-1]


@pytest.mark.matrix
def test_the_table_is_that_of_the_rules_as_they_are(pytestconfig: pytest.Config) -> None:
    now = survey.written()
    if pytestconfig.getoption("--matrix"):
        survey.PAGE.write_text(now)
    assert survey.PAGE.read_text() == now
    assert sum(cells[-1] == "ok" for cells in rows().values()) >= ENOUGH
