"""Metrics against numbers computed by hand."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import emoji
from transformers import CLIPModel, CLIPProcessor

from diffopt import asset
from diffopt.metrics import METRICS
from diffopt.metrics.psnr import IDENTICAL
from diffopt.pipeline.open import open_pipeline

CLIP = asset.locate("asset:emoji/emoji-clip")


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def near(picture: np.ndarray, spread: int, seed: int = 9) -> np.ndarray:
    moved = picture + np.random.default_rng(seed).integers(-spread, spread + 1, picture.shape)
    return moved.clip(0, 255).astype(np.uint8)


def score(name: str, candidates: list[np.ndarray], references: list[np.ndarray]) -> list[float]:
    return METRICS[name].scorer(None, "cpu")(["a"] * len(candidates), candidates, references)


def psnr_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2))


def ssim_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5, over the pixels it fits in, and the mean of channels."""
    span = np.arange(-5, 6)
    bell = np.exp(-(span**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()

    def smooth(x: np.ndarray) -> np.ndarray:
        return np.einsum("hwij,ij->hw", np.lib.stride_tricks.sliding_window_view(x, (11, 11)), window)

    found = []
    for channel in range(3):
        x, y = one[..., channel].astype(float), other[..., channel].astype(float)
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        found.append((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("spread", [1, 20, 200])
def test_psnr_is_what_its_formula_gives(spread: int) -> None:
    one = noise(0)
    assert score("psnr", [near(one, spread)], [one]) == pytest.approx([psnr_by_hand(near(one, spread), one)])


def test_psnr_of_black_and_white_is_zero() -> None:
    assert score("psnr", [np.zeros((16, 16, 3), np.uint8)], [np.full((16, 16, 3), 255, np.uint8)]) == [0.0]


def test_psnr_of_one_level_everywhere_is_48_decibels() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert score("psnr", [grey + np.uint8(1)], [grey]) == pytest.approx([48.1308], abs=1e-4)


def test_psnr_of_identical_pictures_is_finite_and_above_one_changed_level() -> None:
    one = np.zeros((1024, 1024, 3), np.uint8)
    other = one.copy()
    other[0, 0, 0] = 1
    same, changed = score("psnr", [one, other], [one, one])
    assert same == IDENTICAL
    assert changed < same < float("inf")


@pytest.mark.parametrize("spread", [1, 20, 200])
def test_ssim_is_what_its_formula_gives(spread: int) -> None:
    one = noise(0)
    assert score("ssim", [near(one, spread)], [one]) == pytest.approx([ssim_by_hand(near(one, spread), one)], abs=1e-6)


def test_ssim_of_identical_pictures_is_one() -> None:
    assert score("ssim", [noise(0)], [noise(0)]) == pytest.approx([1.0])


def test_ssim_of_a_picture_and_its_negative_is_negative() -> None:
    assert score("ssim", [255 - noise(0)], [noise(0)])[0] < -0.5


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_pictures_are_compared_pair_by_pair(name: str) -> None:
    one, other = noise(0), noise(1)
    pairs = score(name, [near(one, 3), near(other, 60)], [one, other])
    assert pairs == [*score(name, [near(one, 3)], [one]), *score(name, [near(other, 60)], [other])]
    assert pairs[0] > pairs[1]


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_a_missing_picture_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="shorter"):
        score(name, [noise(0), noise(1)], [noise(0)])


# CLIP.


def straightforward(prompts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
    """Every prompt's score with every picture [prompts, pictures], one at a time, from the two projected features."""
    model, processor = CLIPModel.from_pretrained(CLIP).eval(), CLIPProcessor.from_pretrained(CLIP)
    with torch.no_grad():
        vision, text = [], []
        for image in images:
            pixels = processor(images=[image], return_tensors="pt")
            vision.append(model.visual_projection(model.vision_model(**pixels).pooler_output)[0])
        for prompt in prompts:
            tokens = processor(text=[prompt], return_tensors="pt")
            text.append(model.text_projection(model.text_model(**tokens).pooler_output)[0])
    images_, texts = (torch.nn.functional.normalize(torch.stack(x), dim=-1) for x in (vision, text))
    return (100 * texts @ images_.T).numpy()


@pytest.fixture(scope="module")
def drawn() -> tuple[list[str], list[np.ndarray]]:
    """Prompts of very different length, and the embedded model's pictures of them."""
    rows = json.loads(asset.locate("asset:emoji/prompts_eval.json").read_text())
    prompts = sorted((r["prompt"] for r in rows), key=len)[::10]
    b = emoji()
    pipe = open_pipeline(b.context(), b.pipeline())
    found = b.draw(pipe, prompts, range(len(prompts)), 2)
    return prompts, list((found * 255).round().astype(np.uint8))


@pytest.fixture(scope="module")
def clip_scores(drawn: tuple[list[str], list[np.ndarray]]) -> np.ndarray:
    return straightforward(*drawn)


def test_the_clip_score_is_transformers(drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray) -> None:
    prompts, images = drawn
    assert METRICS["clip"].scorer(CLIP, "cpu")(prompts, images) == pytest.approx(clip_scores.diagonal(), abs=1e-4)


def test_more_pictures_than_a_batch_score_as_each_alone(
    drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray
) -> None:
    prompts, images = drawn[0] * 6, drawn[1] * 6
    found = METRICS["clip"].scorer(CLIP, "cpu")(prompts, images)
    assert len(found) == len(images) > 32
    assert found == pytest.approx(np.tile(clip_scores.diagonal(), 6), abs=1e-4)


def test_a_pictures_own_prompt_scores_far_above_the_others(
    drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray
) -> None:
    prompts, images = drawn
    own = METRICS["clip"].scorer(CLIP, "cpu")(prompts, images)
    mismatched = METRICS["clip"].scorer(CLIP, "cpu")([*prompts[1:], prompts[0]], images)
    assert min(own) > max(mismatched) + 10
    assert (clip_scores.argmax(0) == np.arange(len(prompts))).all()


def test_the_metrics_say_which_way_is_better() -> None:
    assert {(m.name, m.paired, m.better) for m in METRICS.values()} == {
        ("psnr", True, "higher"),
        ("ssim", True, "higher"),
        ("clip", False, "higher"),
    }
