"""Which layers are to be quantized, and which of them a block size does not fit."""

import pytest
import torch

from diffopt.errors import ConfigError
from diffopt.targets import check_blocks, expected_layers, features, indivisible


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.device("meta"):
        return torch.nn.ModuleDict(
            {
                "conv_in": torch.nn.Conv2d(4, 32, 3),
                "block": torch.nn.ModuleDict(
                    {"conv": torch.nn.Conv2d(32, 32, 3), "norm": torch.nn.LayerNorm(32), "to_q": torch.nn.Linear(320, 320)}
                ),
                "out": torch.nn.Linear(192, 4),
                "patch": torch.nn.Conv3d(4, 32, 2),
            }
        )


def test_linear_layers_are_expected_and_2d_convolutions_only_where_asked(model: torch.nn.Module) -> None:
    assert expected_layers(model, []) == ["block.to_q", "out"]
    assert expected_layers(model, [], convolutions=True) == ["conv_in", "block.conv", "block.to_q", "out"]
    assert expected_layers(model, ["conv_in", "out"], convolutions=True) == ["block.conv", "block.to_q"]


def test_layers_that_a_block_size_does_not_divide_are_found_on_a_model_without_weights(model: torch.nn.Module) -> None:
    layers = expected_layers(model, [], convolutions=True)
    assert indivisible(model, layers, 128) == ["block.to_q", "out"]
    assert indivisible(model, layers, 64) == []


def test_a_block_size_that_does_not_divide_is_refused_with_the_layer_and_one_that_does(model: torch.nn.Module) -> None:
    many = features(model, expected_layers(model, []))
    with pytest.raises(ConfigError) as caught:
        check_blocks(many, 128)
    line = str(caught.value)
    assert line.startswith("format.block_size: ")
    assert all(word in line for word in ("block.to_q", "320", "got 128", "format.block_size=64"))
    check_blocks(many, 64)


def test_where_no_block_size_fits_the_layer_is_to_be_excluded() -> None:
    with pytest.raises(ConfigError, match=r"format\.exclude=\[b\]"):
        check_blocks({"a": 128, "b": 100}, 64)
