"""Videos: what is kept of them, how they are judged, and what a page shows of them."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, until
from conftest import composed, some
from PIL import Image
from test_matrix import drawing, overrides
from test_metrics import CLIP, noise, psnr_by_hand
from tiny import PROMPTS

from diffopt.data import pictures, videos
from diffopt.errors import PlanError
from diffopt.files.images import ImagesFile, VideoFiles
from diffopt.jobs import job
from diffopt.jobs.runner import run_plan, write_run
from diffopt.metrics import METRICS, Weights
from diffopt.models import family
from diffopt.quality.scoring import batch, measure
from diffopt.report import run_page

FRAMES = 6


def film(frames: int = FRAMES, side: int = 32) -> np.ndarray:
    """Two videos of noise, float32 in 0..1."""
    return np.random.default_rng(0).random((2, frames, side, side, 3), dtype=np.float32)


# On disk.


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [(9, 3, [0, 4, 8]), (121, 5, [0, 30, 60, 90, 120]), (5, 16, [0, 1, 2, 3, 4]), (4, None, [0, 1, 2, 3]), (2, 2, [0, 1])],
)
def test_frames_are_taken_evenly_from_the_first_to_the_last_and_each_once(
    there: int, asked: int | None, found: list[int]
) -> None:
    assert videos.sampled(there, asked) == found


def test_a_videos_frames_are_kept_without_loss_and_all_of_them_play(tmp_path: Path) -> None:
    drawn = film()
    rows = videos.save(tmp_path, 0, drawn, 3, 25)
    assert rows[1] == VideoFiles(["001/000.png", "001/002.png", "001/005.png"], "001.webp")
    kept = np.asarray(Image.open(tmp_path / "001" / "002.png"))
    assert np.array_equal(kept, (drawn[1, 2] * 255).round().astype(np.uint8))
    with Image.open(tmp_path / "001.webp") as plays:
        assert (plays.n_frames, plays.size) == (FRAMES, (32, 32))
        plays.load()
        assert plays.info["duration"] == 40


def test_a_picture_is_saved_as_it_was_before_there_were_videos(tmp_path: Path) -> None:
    drawn = film()[:, 0]
    rows = videos.save(tmp_path, 0, drawn, 3, 25)
    pictures.write_index(tmp_path, ["a", "b"], [0, 1], ImagesFile(), rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000.png", "001.png", "images.json"]
    assert json.loads((tmp_path / "images.json").read_text())["images"][0] == {"file": "000.png", "prompt": "a", "seed": 0}
    assert pictures.frames(tmp_path) == [[tmp_path / "000.png"], [tmp_path / "001.png"]]


@pytest.mark.parametrize(("name", "vae", "rate"), [("ltx", {}, 25), ("wan", {}, 16), ("wan", {"is_residual": True}, 24)])
def test_a_video_plays_at_the_rate_of_its_model(name: str, vae: dict[str, Any], rate: int) -> None:
    assert family(name).frame_rate(vae) == rate


# Metrics.


def kept(folder: Path, drawn: np.ndarray) -> list[list[Path]]:
    folder.mkdir()
    return [[folder / name for name in row.frames] for row in videos.save(folder, 0, drawn, None, 25) if row]


def measured(tmp_path: Path, name: str, theirs: np.ndarray, ours: np.ndarray) -> dict[str, list[float]]:
    paths = {"reference": kept(tmp_path / "reference", theirs), "candidate": kept(tmp_path / "candidate", ours)}
    scorer = METRICS[name].open(Weights({"clip": CLIP, "features": CLIP}))
    found = measure(["a", "b"], paths, {name: scorer}, "reference")
    assert not found.failed
    return {model: list(values) for model, values in found.values[name].items()}


def bytes_of(drawn: np.ndarray) -> np.ndarray:
    return (drawn * 255).round().astype(np.uint8)


def test_a_metric_of_pictures_is_the_mean_over_a_videos_frames(tmp_path: Path) -> None:
    theirs, ours = film(), film() * np.linspace(0.5, 1, FRAMES, dtype=np.float32)[None, :, None, None, None]
    found = measured(tmp_path, "psnr", theirs, ours[:, ::-1])
    pairs = [zip(bytes_of(a), bytes_of(b), strict=True) for a, b in zip(ours[:, ::-1], theirs, strict=True)]
    assert found["candidate"] == pytest.approx([np.mean([psnr_by_hand(*p) for p in video]) for video in pairs])


def test_a_score_of_pictures_is_the_mean_over_a_videos_frames_with_its_own_prompt(tmp_path: Path) -> None:
    found = measured(tmp_path, "clip", film(), film()[::-1])
    scorer = METRICS["clip"].open(Weights({"clip": CLIP}))
    frames = list(scorer.prepare(bytes_of(film()[0])))
    assert found["reference"][0] == pytest.approx(float(np.mean(scorer.score(frames, ["a"] * FRAMES, None))), abs=1e-4)
    assert found["candidate"][1] == pytest.approx(float(np.mean(scorer.score(frames, ["b"] * FRAMES, None))), abs=1e-4)


def test_videos_have_one_row_of_features_each(tmp_path: Path) -> None:
    assert np.shape(measured(tmp_path, "fid", film(), film())["candidate"]) == (2, 128)


def test_the_frames_that_are_scored_at_once_are_limited_as_pictures_are() -> None:
    one = Path("x")
    assert batch({"m": [one] * 100}) == 32
    assert batch({"m": [[one] * 16] * 100}) == 2
    assert batch({"m": [[one] * 121] * 100}) == 1


def dtssd(candidate: Any, reference: Any) -> float:
    return float(METRICS["dtssd"].open(Weights({})).score([list(candidate)], ["a"], [list(reference)])[0])


def test_dtssd_is_what_its_formula_gives() -> None:
    ours, theirs = (np.stack([noise(10 * k + i) for i in range(3)]) for k in (1, 2))
    change = np.diff(ours.astype(float), axis=0) - np.diff(theirs.astype(float), axis=0)
    assert dtssd(ours, theirs) == pytest.approx(np.sqrt((change**2).mean((1, 2, 3))).mean())


def test_dtssd_forgives_a_constant_error_and_not_the_same_error_as_flicker() -> None:
    theirs = np.full((4, 8, 8, 3), 100, np.uint8)
    flicker = theirs.copy()
    flicker[::2] += 5
    assert dtssd(theirs, theirs) == dtssd(theirs + np.uint8(5), theirs) == 0
    assert dtssd(flicker, theirs) == pytest.approx(5)


def test_dtssd_of_videos_of_unequal_length_is_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        dtssd(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.uint8))


def test_clip_temporal_is_the_mean_cosine_of_neighbours_and_100_where_nothing_moves(tmp_path: Path) -> None:
    still = np.repeat(film()[:, :1], FRAMES, axis=1)
    found = measured(tmp_path, "clip-temporal", still, film())
    assert found["reference"] == pytest.approx([100, 100], abs=1e-3)
    encoder = Weights({"clip": CLIP}).encoder("clip")
    rows = encoder.pictures(list(encoder.prepare(bytes_of(film()[0]))))
    unit = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    assert found["candidate"][0] == pytest.approx(100 * np.mean([a @ b for a, b in pairwise(unit)]), abs=1e-3)
    assert found["candidate"][0] < 99.9


def test_metrics_that_share_an_encoder_encode_each_frame_once(tmp_path: Path) -> None:
    weights = Weights({"clip": CLIP})
    encoder = weights.encoder("clip")
    plain, many = encoder.embed, []
    encoder.embed = lambda pixels: many.append(len(pixels)) or plain(pixels)
    scorers = {name: METRICS[name].open(weights) for name in ("clip", "clip-temporal", "clip-iqa")}
    measure(["a", "b"], {"m": kept(tmp_path / "m", film())}, scorers)
    assert many == [2 * FRAMES]


# Recipes.


def test_a_metric_of_videos_is_refused_for_a_model_of_pictures(plan: Callable[..., Any]) -> None:
    with pytest.raises(
        PlanError, match=r"^eval.metrics: dtssd judges videos, flux draws pictures \(got dtssd\); leave it out$"
    ):
        plan("model=emoji_flux", "eval=emoji", "eval.metrics=[psnr,dtssd]", "format=fp8", "calib=emoji")


def test_frames_have_no_effect_on_a_model_of_pictures_and_are_refused(plan: Callable[..., Any]) -> None:
    with pytest.raises(PlanError, match=r"eval.frames"):
        plan("model=emoji_flux", "eval=emoji", "eval.frames=4", "format=fp8", "calib=emoji")


def test_another_number_of_frames_draws_again_and_encodes_nothing_again(plan: Callable[..., Any]) -> None:
    keys = [{s.name: s.fingerprint for s in plan("+recipe=ltx_fp8", f"eval.frames={n}").steps} for n in (8, 9)]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"reference", "sample", "score"}


@pytest.fixture(scope="module", params=some(["ltx", "wan"], ["ltx"]))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's videos in full precision and in MXFP8, scored and linked as a run does."""
    where = tmp_path_factory.mktemp(request.param)
    (where / "prompts.txt").write_text("\n".join(PROMPTS))
    metrics = ["eval.metrics=[psnr,clip,clip-temporal,dtssd]", f"eval.clip={CLIP}", "eval.frames=3", "format=mxfp8"]
    picks = [*overrides(request.param, whole=False), *drawing(request.param, where / "prompts.txt", whole=False)]
    config = composed(*picks, *metrics, f"store={where / 'store'}")
    made = job.prepare(config, [], dry=False, sweep=False)
    done = run_plan(made.plan, made.choices, made.store, made.sources)
    directory = where / "run"
    directory.mkdir()
    write_run(directory, request.param, [], "model: {}\nformat: {name: mxfp8}\n", made.plan, done, made.store)
    return directory


@pytest.mark.matrix
def test_a_family_of_videos_is_judged_by_frames_with_intervals_over_videos(run: Path) -> None:
    content = json.loads((run / "score" / "metrics.json").read_text())
    assert content["frames"] == 3
    for name in ("psnr", "clip", "clip-temporal", "dtssd"):
        metric = content["metrics"][name]
        assert metric["candidate"]["n"] == len(metric["values"]) == 2
        assert all(np.isfinite(v) for v in metric["values"])
    assert {"difference", "reference"} <= content["metrics"]["clip-temporal"].keys()
    rows = json.loads((run / "sample" / "images.json").read_text())["images"]
    assert all(len(row["frames"]) == 3 for row in rows)
    read = lambda side, name: np.asarray(Image.open(run / side / name))  # noqa: E731
    by_hand = [np.mean([psnr_by_hand(read("sample", f), read("reference", f)) for f in row["frames"]]) for row in rows]
    assert content["metrics"]["psnr"]["values"] == pytest.approx(by_hand)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_the_page_has_a_contact_sheet_with_the_reference_above_and_a_video_that_plays(run: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(run_page.write(run).resolve().as_uri())
    first = page.locator("#pairs li").first
    assert first.locator(".sheet th").all_text_contents() == ["reference", "candidate"]
    assert first.locator(".sheet tr").first.locator("img").count() == 3
    first.locator(".plays summary").click()
    first.scroll_into_view_if_needed()
    loaded = "[...document.querySelector('#pairs li').querySelectorAll('img')].filter((i) => i.naturalWidth).length"
    until(page, f"{loaded} === {3 + 2 * 3 + 2}")
    tops = [first.locator(".sheet tr").nth(i).bounding_box()["y"] for i in range(2)]
    assert tops[0] < tops[1]
    first.locator(".sheet tr").nth(1).locator("a").nth(1).click()  # the candidate's second frame
    assert page.locator("#under img").get_attribute("src") == first.locator(".sheet a").nth(1).get_attribute("href")
    assert page.locator("#over img").get_attribute("src") == first.locator(".sheet a").nth(3 + 1).get_attribute("href")
    page.select_option("#viewer-frame", label="frame 3")
    assert page.locator("#over img").get_attribute("src") == first.locator(".sheet a").nth(3 + 2).get_attribute("href")
    page.close()
