"""RMS contrast of a picture (Peli 1990): the standard deviation of its luminance, 0 for one colour, at most 127.5."""

from typing import Any

from diffopt.metrics import Metric, Scorer, Weights


class Contrast(Scorer):
    def __init__(self, weights: Weights):
        """It needs none."""

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
        return [float((p @ (0.2126, 0.7152, 0.0722)).std()) for p in pictures]


METRIC = Metric("contrast", "RMS contrast", "", "higher", "picture", Contrast)
