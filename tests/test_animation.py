"""Pictures as prompts: known by content, fitted to the size that is drawn, refused where texts are wanted and the other way."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import album, random_bench
from tiny import bench as made

from diffopt.data.pictured import fitted
from diffopt.data.prompts import read
from diffopt.errors import PlanError
from diffopt.models import family
from diffopt.models.svd_pipeline import pixels
from diffopt.pipeline.texts import load

SVD = ["model=svd_xt", "format=fp8", "calib=pictures"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = album().folder
    assert where is not None
    return Path(shutil.copytree(where, tmp_path / "pictures"))


def test_a_directory_of_pictures_is_a_set_of_their_names_in_order(folder: Path) -> None:
    (folder / "notes.txt").write_text("no picture")
    found = read(str(folder))
    assert found.prompts == tuple(f"{i}.png" for i in range(7))
    assert found.part(2, 4).given().prompts == (str(folder / "2.png"), str(folder / "3.png"))


def test_a_set_of_pictures_is_known_by_their_contents_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    before, moved = read(str(folder)), read(str(shutil.copytree(folder, tmp_path / "elsewhere")))
    assert before.digest == moved.digest
    shutil.copy(folder / "1.png", folder / "0.png")
    assert read(str(folder)).digest != before.digest
    assert read(str(folder)).part(1, 7).digest == before.part(1, 7).digest


def test_a_directory_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a directory without a picture; put \.png, "):
        read(str(tmp_path))


@pytest.mark.parametrize(("wide", "high"), [(100, 50), (50, 100), (64, 32)])
def test_a_picture_is_cropped_about_its_middle_and_resized(wide: int, high: int, tmp_path: Path) -> None:
    drawn = np.zeros((high, wide, 3), np.uint8)
    drawn[high // 2 - 4 : high // 2 + 4, wide // 2 - 4 : wide // 2 + 4] = 255
    Image.fromarray(drawn).save(tmp_path / "x.png")
    found = pixels([fitted(str(tmp_path / "x.png"), 64, 32)])
    assert found.shape == (1, 3, 32, 64)
    assert found.dtype == torch.uint8
    assert found[0, :, 16, 32].min() > 200
    assert found[0, :, 1, 1].max() < 50


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(PlanError, match=r"^prompts: a picture cannot be read: .*x\.png.*; mend or remove it$"):
        fitted(str(tmp_path / "x.png"), 64, 32)


def test_random_embeddings_of_a_picture_do_not_depend_on_where_it_lies(folder: Path) -> None:
    from diffopt.pipeline.texts import encode

    b = random_bench("svd")
    there = encode(b.context(), None, b.pipeline(), album().given().prompts[:2], b.call)
    moved = encode(b.context(), None, b.pipeline(), read(str(folder)).given().prompts[:2], b.call)
    assert all(torch.equal(there[n], moved[n]) for n in there)


def test_a_pictures_embeddings_are_the_encoders_and_the_picture_itself() -> None:
    texts = load(made(family="svd").texts(0, 2), "cpu")[0]
    assert {n: (tuple(x.shape), x.dtype) for n, x in texts.items()} == {
        "image": ((2, 3, 32, 32), torch.uint8),
        "image_embeddings": ((2, 1, 64), torch.float32),
    }


def refused(plan: Callable[..., Any], *picks: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(*picks)
    return str(caught.value).splitlines()


def test_texts_are_refused_for_a_model_that_animates_pictures(plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, *SVD, "calib.prompts=asset:prompts/videos.txt")
    assert said == ("calib.prompts: svd takes pictures, not texts (got asset:prompts/videos.txt); give a directory of pictures")


def test_pictures_are_refused_for_a_model_that_reads_texts(plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, "model=emoji_flux", "format=fp8", "calib=emoji", "calib.prompts=asset:prompts/pictures")
    assert said == "calib.prompts: flux takes texts, not pictures (got asset:prompts/pictures); give a file of texts"


@pytest.mark.parametrize("metric", ["clip", "imagereward"])
def test_a_metric_that_compares_with_a_text_is_refused_where_there_is_none(metric: str, plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, *SVD, "eval=pictures", f"eval.metrics=[psnr,{metric}]")
    assert said == f"eval.metrics: {metric} compares with a text, and svd has none (got {metric}); leave it out"


def keys(plan: Callable[..., Any], *picks: str) -> dict[str, str]:
    return {re.sub(r"\W.*", "", s.name): s.fingerprint for s in plan(*SVD, *picks).steps}


def test_pictures_are_embedded_anew_in_another_size_and_not_for_another_guidance(plan: Callable[..., Any]) -> None:
    plain = keys(plan)
    assert keys(plan, "model.height=512")["embed"] != plain["embed"]
    steered = keys(plan, "model.guidance_scale=2.5")
    assert steered["embed"] == plain["embed"]
    assert steered["observe"] != plain["observe"]


def test_texts_are_not_embedded_anew_in_another_size(plan: Callable[..., Any]) -> None:
    picks = ["model=sdxl", "format=fp8", "calib=images"]
    one, other = (
        {s.name: s.fingerprint for s in plan(*picks, f"model.height={h}").steps if s.name.startswith("embed")}
        for h in (1024, 512)
    )
    assert one == other
    assert one


def test_the_vae_stays_beside_a_backbone_that_animates_and_the_encoder_does_not() -> None:
    from diffopt.pipeline.open import open_denoiser

    b = made(family="svd")
    pipe = open_denoiser(b.context(), b.pipeline())
    assert family("svd").animates
    assert pipe.vae is not None
    assert pipe.image_encoder is None
