"""Prompts with pictures: read, known by content, given to the model as they are drawn, refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import bench as made
from tiny import pictured

from diffopt.data import picture
from diffopt.data.pictured import Asked
from diffopt.data.prompts import read
from diffopt.errors import ConfigError, DiffoptError, PlanError
from diffopt.models import family
from diffopt.pipeline.pixels import pixels
from diffopt.pipeline.texts import load

CONTEXT = ["model=flux_kontext", "format=fp8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two rows with an image and a mask each, in prompts.json."""
    for name, size in {"a": (40, 20), "b": (64, 64)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        Image.new("L", size).save(tmp_path / f"{name}-mask.png")
    rows = [{"prompt": f"a {n} hat", "image": f"{n}.png", "mask": f"{n}-mask.png"} for n in "ab"]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    return tmp_path


def rewritten(folder: Path, number: int, **changes: Any) -> str:
    """The file with another row, where None takes a key out."""
    rows = json.loads((folder / "prompts.json").read_text())
    rows[number] = {k: v for k, v in (rows[number] | changes).items() if v is not None}
    (folder / "prompts.json").write_text(json.dumps(rows))
    return str(folder / "prompts.json")


def test_rows_are_texts_that_have_pictures_beside_the_file(folder: Path) -> None:
    found = read(str(folder / "prompts.json"))
    assert found.prompts == ("a a hat", "a b hat")
    assert found.roles == ("image", "mask")
    assert found.part(1, 2).given().prompts[0].pictures == {"image": str(folder / "b.png"), "mask": str(folder / "b-mask.png")}


def test_json_lines_are_the_same_set_as_json(folder: Path) -> None:
    rows = json.loads((folder / "prompts.json").read_text())
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(str(folder / "prompts.jsonl")).digest == read(str(folder / "prompts.json")).digest


def test_a_set_is_known_by_its_texts_and_the_contents_of_its_pictures(folder: Path, tmp_path: Path) -> None:
    before = read(str(folder / "prompts.json"))
    moved = read(str(shutil.copytree(folder, tmp_path / "elsewhere") / "prompts.json"))
    assert moved.digest == before.digest
    (folder / "a.png").rename(folder / "renamed.png")
    assert read(rewritten(folder, 0, image="renamed.png")).digest == before.digest
    Image.new("RGB", (40, 20), "blue").save(folder / "renamed.png")
    after = read(str(folder / "prompts.json"))
    assert after.digest != before.digest
    assert after.part(1, 2).digest == before.part(1, 2).digest
    assert read(rewritten(folder, 1, prompt="a cap")).digest != after.digest


BAD = {
    "no image in a row": ({"image": None}, r"holds no image in row 2 of 2, as other rows do; name its file there"),
    "a file that is not there": ({"image": "c.png"}, r"the image c\.png in row 2 of 2, which cannot be read \(no such file"),
    "a file that is no picture": ({"image": "prompts.json"}, r"the image prompts\.json in row 2 of 2, which is no picture"),
    "a mask of another size": ({"mask": "a-mask.png"}, r"holds a mask of 40x20 for an image of 64x64 in row 2 of 2; make it"),
    "no text": ({"prompt": " "}, r"holds an empty prompt, row 2 of 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_is_at_fault_is_named(case: str, folder: Path) -> None:
    changes, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        read(rewritten(folder, 1, **changes))


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST", 64 * 63)
    with pytest.raises(ValueError, match=r"the image b\.png in row 2 of 2, which has 64 x 64 = 4096 pixels, and at most 4032"):
        read(str(folder / "prompts.json"))


def test_a_broken_line_is_named(folder: Path) -> None:
    (folder / "x.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"is not valid JSON \(line 3: "):
        read(str(folder / "x.jsonl"))


def test_pictures_and_masks_are_cut_alike_to_the_size_that_is_drawn() -> None:
    b, prompts = made(family="flux_fill"), pictured("image", "mask").given().prompts[:2]
    found = pixels(family("flux_fill"), prompts, b.call)
    assert {n: (tuple(x.shape), x.dtype) for n, x in found.items()} == {
        "image": ((2, 3, 32, 32), torch.uint8),
        "mask_image": ((2, 1, 32, 32), torch.uint8),
    }
    assert found["mask_image"][:, :, :, :14].max() < 64 < 192 < found["mask_image"][:, :, :, 18:].min()


def test_another_picture_gives_another_drawing_and_the_text_counts_too(folder: Path) -> None:
    b = made(family="flux_kontext")
    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.open import open_pipeline
    from diffopt.pipeline.texts import encode

    pipe, (one, two) = open_pipeline(b.context(), b.pipeline()), pictured("image").given().prompts[:2]

    def drawn(prompt: str) -> np.ndarray:
        texts = encode(b.context(), pipe, b.pipeline(), [prompt], b.call)
        return draw(pipe, texts, [3], 2, family("flux_kontext").arguments(b.call), decode=False)

    plain = drawn(one)
    assert np.array_equal(plain, drawn(Asked(str(one), one.pictures)))
    assert not np.array_equal(plain, drawn(Asked(str(one), two.pictures)))
    assert not np.array_equal(plain, drawn(Asked(str(two), one.pictures)))


def test_the_vae_stays_beside_a_backbone_that_is_given_pictures_and_the_encoders_do_not() -> None:
    from diffopt.pipeline.open import open_denoiser

    b = made(family="flux_kontext")
    pipe = open_denoiser(b.context(), b.pipeline())
    assert pipe.vae is not None
    assert pipe.text_encoder is None


def test_random_weights_are_given_the_pictures_themselves() -> None:
    from tiny import random_bench

    b = random_bench("flux_kontext")
    prompts = pictured("image").given().prompts[:2]
    theirs = pixels(family("flux_kontext"), prompts, b.call)["image"]
    assert torch.equal(load(b.texts(0, 2), "cpu")[0]["image"], theirs)


def refused(plan: Callable[..., Any], *picks: str) -> list[str]:
    with pytest.raises(DiffoptError) as caught:
        plan(*picks)
    return str(caught.value).splitlines()


TAKES = 'give a .json or .jsonl with rows {"prompt": ..., "image": ...}, whose paths are relative to it'


def test_texts_are_refused_for_a_model_that_takes_pictures(plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, *CONTEXT, "calib=edits", "calib.prompts=asset:prompts/calibration.txt")
    assert said == (
        "calib.prompts: flux_kontext takes an image with every prompt, and there is no image "
        f"(got asset:prompts/calibration.txt); {TAKES}"
    )


def test_pictures_are_refused_for_a_model_that_takes_texts(plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, "model=flux_dev", "format=fp8", "calib=edits")
    assert said == "calib.prompts: flux takes texts, not pictures (got asset:prompts/edits.json); give a file of texts"


def test_a_mask_is_refused_for_a_model_that_takes_none(plan: Callable[..., Any]) -> None:
    (said,) = refused(plan, *CONTEXT, "calib=fills")
    assert said == (
        "calib.prompts: flux_kontext takes an image with every prompt, and no mask (got asset:prompts/fills.json); "
        "leave it out of the rows"
    )


def test_a_row_that_is_at_fault_is_a_line_of_the_plan(plan: Callable[..., Any], folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"calib\.prompts: holds a mask of 40x20 for an image of 64x64 in row 2 of 2"):
        plan("model=flux_fill", "format=fp8", "calib=fills", f"calib.prompts={rewritten(folder, 1, mask='a-mask.png')}")


def test_ones_own_data_are_refused_where_prompts_need_pictures(plan: Callable[..., Any], folder: Path) -> None:
    said = refused(plan, *CONTEXT, "calib=edits", "train=qad", f"train.data={folder}")
    assert any(x.startswith("train.data.source: flux_kontext takes pictures with its prompts, and a data set") for x in said)


def keys(plan: Callable[..., Any], *picks: str) -> dict[str, str]:
    return {s.name.partition("[")[0]: s.fingerprint for s in plan(*CONTEXT, "calib=edits", *picks).steps}


def test_prompts_with_pictures_are_embedded_anew_in_another_size(plan: Callable[..., Any]) -> None:
    embedded = [{n: f for n, f in keys(plan, f"model.height={h}").items() if n.startswith("embed")} for h in (1024, 512)]
    assert embedded[0]
    assert embedded[0] != embedded[1]


def test_a_mask_and_an_image_are_given_to_the_stage_only_as_the_family_takes_them() -> None:
    with pytest.raises(
        PlanError, match=r"^prompts: flux_fill takes an image and a mask with every prompt, and there is no mask"
    ):
        pixels(family("flux_fill"), pictured("image").given().prompts[:1], made(family="flux_fill").call)


@pytest.mark.parametrize("name", ["flux_kontext", "flux_fill", "wan_i2v", "qwen_image_edit"])
def test_training_gives_the_backbone_what_the_pipeline_gives_it_of_a_picture(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call's input, but for the noisy latents in it, which training has of its own."""
    from functools import partial

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.latents import encode
    from diffopt.pipeline.open import open_pipeline
    from diffopt.pipeline.texts import encode as embed

    # Fill's pipeline draws from the distribution of the latents, of which training has the mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    b, kind = made(family=name), family(name)
    pipe, prompt = open_pipeline(b.context(), b.pipeline()), pictured(*kind.pictures).given().prompts[0]
    texts = embed(b.context(), pipe, b.pipeline(), [prompt], b.call)
    seen: list[torch.Tensor] = []
    pipe.transformer.register_forward_pre_hook(lambda _m, _a, given: seen.append(given["hidden_states"]), with_kwargs=True)
    draw(pipe, texts, [3], 1, kind.arguments(b.call), decode=False)
    assert kind.condition is not None
    ours = kind.condition(partial(encode, pipe.vae), {n: texts[n] for n in kind.pictures.values()}, b.call)
    axis = next(i for i in (1, 2) if seen[0].shape[i] != ours.shape[i])
    many = seen[0].shape[axis] - ours.shape[axis]
    assert torch.equal(ours, seen[0].narrow(axis, many, ours.shape[axis]))
    noisy = seen[0].narrow(axis, 0, many)
    assert torch.equal(kind.joined(noisy, ours)[:, :many] if axis == 1 else kind.joined(noisy, ours)[..., :many], noisy)


def test_a_cache_of_diffusers_works_where_the_pipeline_does_not_name_its_calls() -> None:
    from diffusers import FirstBlockCacheConfig

    from diffopt.caches.hooked import HookedCache
    from diffopt.caches.target import Target
    from diffopt.pipeline.draw import draw
    from diffopt.pipeline.open import open_pipeline
    from diffopt.pipeline.texts import encode

    b, kind = made(family="flux_kontext"), family("flux_kontext")
    pipe = open_pipeline(b.context(), b.pipeline())
    texts = encode(b.context(), pipe, b.pipeline(), pictured("image").given().prompts[:1], b.call)
    cache = HookedCache(Target(pipe, kind, {"transformer": pipe.transformer}), lambda *_: FirstBlockCacheConfig(threshold=9.0))
    cache.enable()
    draw(pipe, texts, [3], 4, kind.arguments(b.call), decode=False)
    assert set(cache.sides[0].hits().values()) == {0, 3}  # the first block is always computed
    cache.detach()
