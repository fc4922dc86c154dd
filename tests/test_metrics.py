"""Metrics against numbers computed by hand."""

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import emoji
from transformers import CLIPModel, CLIPProcessor

from diffopt import metrics, registry
from diffopt.errors import MetricError
from diffopt.metrics import METRICS, Metric, Scorer, Weights
from diffopt.metrics.psnr import IDENTICAL
from diffopt.pipeline.open import open_pipeline
from diffopt.quality.scoring import measure
from diffopt.store import assets

CLIP = assets.locate("asset:emoji/emoji-clip")


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def near(picture: np.ndarray, spread: int, seed: int = 9) -> np.ndarray:
    moved = picture + np.random.default_rng(seed).integers(-spread, spread + 1, picture.shape)
    return moved.clip(0, 255).astype(np.uint8)


def score(name: str, candidates: list[np.ndarray], references: list[np.ndarray]) -> list[float]:
    return list(METRICS[name].open(Weights({})).score(candidates, ["a"] * len(candidates), references))


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
    rows = json.loads(assets.locate("asset:emoji/prompts_eval.json").read_text())
    prompts = sorted((r["prompt"] for r in rows), key=len)[::10]
    b = emoji()
    pipe = open_pipeline(b.context(), b.pipeline())
    found = b.draw(pipe, prompts, range(len(prompts)), 2)
    return prompts, list((found * 255).round().astype(np.uint8))


@pytest.fixture
def rated(tmp_path):
    """`rated(name, prompts, images, directory)`: its values of PNGs, by the loop that users' pictures go through."""

    def rate(name: str, prompts: Sequence[str], images: Sequence[np.ndarray], directory: Path = CLIP) -> np.ndarray:
        paths = [tmp_path / f"{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        scorer = METRICS[name].open(Weights({"clip": directory, "features": directory}))
        return measure(prompts, {"m": paths}, {name: scorer}).values[name]["m"]

    return rate


@pytest.fixture(scope="module")
def clip_scores(drawn: tuple[list[str], list[np.ndarray]]) -> np.ndarray:
    return straightforward(*drawn)


def test_the_clip_score_is_transformers(rated, drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray) -> None:
    prompts, images = drawn
    assert rated("clip", prompts, images) == pytest.approx(clip_scores.diagonal(), abs=1e-4)


def test_more_pictures_than_a_batch_score_as_each_alone(
    rated, drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray
) -> None:
    prompts, images = drawn[0] * 6, drawn[1] * 6
    found = rated("clip", prompts, images)
    assert len(found) == len(images) > 32
    assert found == pytest.approx(np.tile(clip_scores.diagonal(), 6), abs=1e-4)


def test_a_pictures_own_prompt_scores_far_above_the_others(
    rated, drawn: tuple[list[str], list[np.ndarray]], clip_scores: np.ndarray
) -> None:
    prompts, images = drawn
    own = rated("clip", prompts, images)
    mismatched = rated("clip", [*prompts[1:], prompts[0]], images)
    assert min(own) > max(mismatched) + 10
    assert (clip_scores.argmax(0) == np.arange(len(prompts))).all()


def test_clip_iqa_is_the_softmax_over_good_and_bad(rated, drawn: tuple[list[str], list[np.ndarray]]) -> None:
    prompts, images = drawn
    good, bad = straightforward(["Good photo.", "Bad photo."], images)
    expected = 1 / (1 + np.exp(bad - good))
    assert np.ptp(expected) > 1e-3
    assert rated("clip-iqa", prompts, images) == pytest.approx(expected, abs=1e-4)


def test_clip_and_clip_iqa_load_and_run_their_model_once(drawn: tuple[list[str], list[np.ndarray]]) -> None:
    weights = Weights({"clip": CLIP})
    clip, iqa = METRICS["clip"].open(weights), METRICS["clip-iqa"].open(weights)
    calls = []
    embed = clip.encoder.embed
    clip.encoder.embed = lambda pixels: (calls.append(len(pixels)), embed(pixels))[1]
    prepared = list(clip.prepare(drawn[1]))
    for scorer in (clip, iqa):
        scorer.score(prepared, drawn[0], None)
    assert calls == [len(prepared)]


def test_a_prompt_that_is_too_long_is_cut_not_refused(rated, drawn: tuple[list[str], list[np.ndarray]]) -> None:
    assert np.isfinite(rated("clip", [" ".join(["apple"] * 300)], drawn[1][:1])).all()


@pytest.fixture(scope="module")
def open_clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny open_clip checkpoint with random weights, as `push_to_hf_hub` lays it out."""
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder = tmp_path_factory.mktemp("open_clip")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": mean, "std": deviation}})
    )
    return folder


def test_an_open_clip_checkpoint_scores_as_open_clip_does(rated, open_clip_directory: Path) -> None:
    import open_clip

    images, prompts = [noise(i, 48) for i in range(3)], ["a red kite", "two apples", "a cat"]
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{open_clip_directory}")
    tokens = open_clip.get_tokenizer(f"local-dir:{open_clip_directory}")(prompts)
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(Image.fromarray(i)) for i in images]), normalize=True)
        expected = 100 * (seen * model.encode_text(tokens, normalize=True)).sum(-1)
    assert rated("clip", prompts, images, open_clip_directory) == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_directory_without_a_model_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"has neither config.json nor open_clip_config.json \(got '.*'\); give a model's"):
        METRICS["clip"].open(Weights({"clip": tmp_path}))


def test_weights_that_were_not_given_are_an_error_for_the_user() -> None:
    with pytest.raises(MetricError, match=r"^clip: is not given \(got None\); give a CLIP model"):
        METRICS["clip"].open(Weights({}))


# Perceptual distances.


def test_ms_ssim_is_the_weighted_product_of_its_five_scales() -> None:
    one, other = noise(0, 176), near(noise(0, 176), 60)
    assert score("ms-ssim", [one], [one]) == pytest.approx([1.0])
    (found,) = score("ms-ssim", [other], [one])
    assert found == pytest.approx(ms_ssim_by_hand(other, one), abs=1e-4)


def ms_ssim_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik 2003: contrast and structure at five scales, luminance at the last, halved by 2 x 2 means."""
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = (p.astype(float).transpose(2, 0, 1) for p in (one, other))
    product = np.ones(3)
    for scale, exponent in enumerate(exponents):
        mx, my, xx, yy, xy = (_smooth(z, window) for z in (x, y, x * x, y * y, x * y))
        contrast = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        product *= (contrast * luminance if scale == 4 else contrast).mean((1, 2)) ** exponent
        if scale < 4:
            x, y = (z.reshape(3, z.shape[1] // 2, 2, z.shape[2] // 2, 2).mean((2, 4)) for z in (x, y))
    return float(product.mean())


def _smooth(channels: np.ndarray, window: np.ndarray) -> np.ndarray:
    return np.einsum("chwij,ij->chw", np.lib.stride_tricks.sliding_window_view(channels, (11, 11), axis=(1, 2)), window)


def test_ms_ssim_of_small_pictures_is_refused_by_name() -> None:
    with pytest.raises(MetricError, match=r"^ms-ssim: needs pictures of 161 pixels .* \(got 64 x 64\); take ssim instead"):
        score("ms-ssim", [noise(0, 64)], [noise(1, 64)])


def test_lpips_without_its_backbone_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(
        MetricError, match=rf"^lpips: .*no network.*put torchvision's file of that name into {tmp_path}/hub/checkp"
    ):
        METRICS["lpips"].open(Weights({}))


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """torchvision's AlexNet with random weights, where torch.hub looks for the trained ones."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.alexnet(weights=None).eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "alexnet-owt-7be5be79.pth")
    return model


def test_lpips_is_the_heads_over_the_backbones_normalized_differences(alexnet: torch.nn.Module) -> None:
    from torchmetrics.functional.image import lpips

    heads = torch.load(Path(lpips.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True)
    one, other = noise(0, 64), near(noise(0, 64), 60)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    layers: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for picture in (one, other):
            x = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1 - shift) / scale
            layers.append([])
            for i, part in enumerate(alexnet.features):
                x = part(x)
                if i in (1, 4, 7, 9, 11):
                    layers[-1].append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-8))
            del x
        expected = sum(
            ((a - b).pow(2) * heads[f"lin{i}.model.1.weight"]).sum(1).mean()
            for i, (a, b) in enumerate(zip(*layers, strict=True))
        )
    found = score("lpips", [other, one], [one, one])
    assert found == pytest.approx([float(expected), 0.0], abs=1e-5)
    assert found[0] > 1e-3


# Distances of sets.


def test_fid_is_its_formula_with_the_root_of_the_product() -> None:
    from scipy.linalg import sqrtm

    from diffopt.metrics.fid import frechet

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    one, other = rng.normal(size=(50, 6)) @ mixing, rng.normal(size=(50, 6)) + 0.5
    a, b = np.cov(one.T), np.cov(other.T)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(one, other) == pytest.approx(expected, rel=1e-6)


def test_fid_of_fewer_pictures_than_features_is_the_same_as_in_the_features_they_span() -> None:
    from diffopt.metrics.fid import frechet

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(40, 6)), rng.normal(size=(40, 6)) + 0.5
    turn = np.linalg.qr(rng.normal(size=(100, 6)))[0].T
    assert frechet(one @ turn, other @ turn) == pytest.approx(frechet(one, other), rel=1e-6)


@pytest.mark.parametrize("name", ["fid", "cmmd"])
def test_equal_sets_have_no_distance_and_far_ones_more_than_near_ones(name: str) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40, 8))
    scorer = METRICS[name].open(Weights({"features": CLIP}))
    same, close, far = (scorer.distance(one + step, one) for step in (0, 0.5, 2))
    assert same.mean == pytest.approx(0, abs=1e-9)
    assert same.mean < close.low < close.mean < close.high < far.mean


def test_cmmd_is_the_mean_of_its_kernels() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(12, 4)), rng.normal(size=(12, 4)) + 3

    def kernel(xs: np.ndarray, ys: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((x - y) ** 2).sum() / 200) for y in ys] for x in xs]))

    expected = 1000 * (kernel(one, one) + kernel(other, other) - 2 * kernel(one, other))
    assert METRICS["cmmd"].open(Weights({"features": CLIP})).distance(one, other).mean == pytest.approx(expected)


def test_the_features_are_the_extractors_own(rated, drawn: tuple[list[str], list[np.ndarray]]) -> None:
    model, processor = CLIPModel.from_pretrained(CLIP).eval(), CLIPProcessor.from_pretrained(CLIP)
    with torch.no_grad():
        pixels = processor(images=drawn[1], return_tensors="pt")
        expected = model.visual_projection(model.vision_model(**pixels).pooler_output).numpy()
    assert rated("fid", *drawn) == pytest.approx(expected, abs=1e-4)
    lengths = np.linalg.norm(rated("cmmd", *drawn), axis=1)
    assert lengths == pytest.approx(np.ones(len(drawn[0])), abs=1e-5)


def test_features_can_be_of_an_image_model_that_reads_no_text(rated, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14))
    model.save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "dino")
    assert rated("fid", ["a"] * 3, [noise(i) for i in range(3)], tmp_path / "dino").shape == (3, 32)
    with pytest.raises(MetricError, match="the model has no text encoder"):
        METRICS["clip-iqa"].open(Weights({"clip": tmp_path / "dino"}))


# The list of metrics.


def test_the_metrics_say_what_they_judge_and_which_way_is_better() -> None:
    assert {(m.name, m.judges, m.better) for m in (METRICS[n] for n in metrics.OURS)} == {
        ("psnr", "pair", "higher"),
        ("ssim", "pair", "higher"),
        ("ms-ssim", "pair", "higher"),
        ("lpips", "pair", "lower"),
        ("clip", "picture", "higher"),
        ("clip-iqa", "picture", "higher"),
        ("imagereward", "picture", "higher"),
        ("fid", "set", "lower"),
        ("cmmd", "set", "lower"),
        ("dtssd", "pair", "lower"),
        ("clip-temporal", "picture", "higher"),
    }


class Brightness(Scorer):
    def __init__(self, weights: Weights):
        pass

    def score(self, pictures, prompts, references):
        return [float(p.mean()) for p in pictures]


BRIGHTNESS = Metric("brightness", "Brightness", "", "higher", "picture", Brightness)


def test_another_packages_metric_plugs_in_by_an_entry_point(rated, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("brightness", "test_metrics:BRIGHTNESS", "diffopt.metrics")
    monkeypatch.setattr(registry, "entry_points", lambda group, **_: [point] if group == point.group else [])
    assert [*METRICS] == [*metrics.OURS, "brightness"]
    assert rated("brightness", ["a"], [np.full((8, 8, 3), 7, np.uint8)]) == pytest.approx([7.0])
