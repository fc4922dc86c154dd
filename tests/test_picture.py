"""One function opens every picture: upright, in 8 bits of sRGB, on white; or it says what cannot be made so."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

import diffopt
from diffopt.cli.eval import evaluate
from diffopt.cli.picture_list import PictureList
from diffopt.data import picture, prompts
from diffopt.data.extent import Extent
from diffopt.data.imagefolder import ImageFolder
from diffopt.report.html import picture_size

ROOT = Path(diffopt.__file__).parent
SIZE = (48, 32)


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Red to the right, green down, and a blue corner: no turn or flip of it is itself."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    pixels = np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8)
    pixels[: size[1] // 4, : size[0] // 4, 2] = 255
    return Image.fromarray(pixels)


def seen(file: Path) -> np.ndarray:
    return picture.pixels(file).astype(int)


def off(file: Path, wanted: Image.Image) -> float:
    """The largest difference from what is to be seen, of 255."""
    found, there = seen(file), np.asarray(wanted.convert("RGB")).astype(int)
    assert found.shape == there.shape
    return float(np.abs(found - there).max())


# Upright.

UNDO = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
UNDO |= {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By orientation, what a camera that was held so makes of an upright picture."""


def photographed(file: Path, orientation: int, upright: Image.Image | None = None, **how: Any) -> Path:
    """A file that holds the picture as a camera that was turned stores it."""
    upright = upright or scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(UNDO[orientation]) if orientation in UNDO else upright
    stored.save(file, exif=exif, **how)
    return file


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_was(orientation: int, suffix: str, tmp_path: Path) -> None:
    how = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    file = photographed(tmp_path / f"x.{suffix}", orientation, **how)
    assert off(file, scene()) <= (8 if suffix == "jpg" else 0)
    assert picture.extent(file) == picture_size(file) == SIZE


# Colours.


def test_transparent_parts_are_white_in_every_mode(tmp_path: Path) -> None:
    glass = scene().convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(SIZE))
    wanted = Image.alpha_composite(Image.new("RGBA", SIZE, "white"), glass)
    glass.save(tmp_path / "rgba.png")
    assert off(tmp_path / "rgba.png", wanted) == 0
    grey = glass.convert("LA")
    grey.save(tmp_path / "la.png")
    assert off(tmp_path / "la.png", Image.alpha_composite(Image.new("RGBA", SIZE, "white"), grey.convert("RGBA"))) == 0
    scene().save(tmp_path / "key.png", transparency=(0, 0, 255))  # one colour stands for nothing
    assert tuple(seen(tmp_path / "key.png")[0, 0]) == (255, 255, 255)


def test_a_palette_is_looked_up_and_its_clear_entry_is_white(tmp_path: Path) -> None:
    few = scene().quantize(16)
    few.save(tmp_path / "x.png")
    assert off(tmp_path / "x.png", few) == 0
    few.save(tmp_path / "x.gif")
    assert off(tmp_path / "x.gif", few) == 0
    first = few.getpixel((0, 0))
    few.save(tmp_path / "clear.png", transparency=first)
    assert tuple(seen(tmp_path / "clear.png")[0, 0]) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_keeps_its_levels(suffix: str, tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).round().astype(np.uint16).reshape(SIZE[::-1])
    Image.fromarray(levels).save(tmp_path / f"x.{suffix}")
    wanted = np.repeat((levels / 257).round().astype(int)[..., None], 3, -1)
    assert (seen(tmp_path / f"x.{suffix}") == wanted).all()


def test_grey_of_16_bits_is_turned_too(tmp_path: Path) -> None:
    levels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]) * 40
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(levels)).save(tmp_path / "x.png", exif=exif)
    assert (seen(tmp_path / "x.png")[..., 0] == (levels / 257).round()).all()


def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(levels).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as found:
        assert found.tag_v2[262] in (0, 1)
        turned = found.tag_v2[262] == 0
    wanted = (levels / 257).round().astype(int)
    assert np.abs(seen(tmp_path / "x.tif")[..., 0] - (255 - wanted if turned else wanted)).max() <= 1


def test_grey_of_8_bits_and_black_and_white_are_what_they_are(tmp_path: Path) -> None:
    for mode in ("L", "1"):
        scene().convert(mode).save(tmp_path / f"{mode}.png")
        assert off(tmp_path / f"{mode}.png", scene().convert(mode)) == 0


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted(suffix: str, tmp_path: Path) -> None:
    scene().convert("CMYK").save(tmp_path / f"x.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    assert off(tmp_path / f"x.{suffix}", scene()) <= (40 if suffix == "jpg" else 1)
    assert np.abs(seen(tmp_path / f"x.{suffix}") - np.asarray(scene())).mean() < 3


def wide() -> bytes:
    """A profile that is not sRGB's: without its tone curve."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def test_a_profile_of_srgb_changes_nothing_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("srgb", ours), ("broken", b"no profile"), ("other", wide())):
        scene().save(tmp_path / f"{name}.png", icc_profile=profile)
        assert off(tmp_path / f"{name}.png", scene()) == 0


def test_another_profile_is_applied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene().save(tmp_path / "x.png", icc_profile=ours)
    monkeypatch.setattr(ImageCms, "getProfileDescription", lambda profile: "Display P3")
    applied: list[Any] = []
    real = ImageCms.profileToProfile
    monkeypatch.setattr(ImageCms, "profileToProfile", lambda *a, **k: applied.append(a) or real(*a, **k))
    assert off(tmp_path / "x.png", scene()) <= 2  # from sRGB to sRGB after all
    assert len(applied) == 1


# Said.


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "has floating-point values"),
        (np.arange(64, dtype=np.int32), "has 32-bit values"),
    ],
)
def test_values_without_a_white_are_refused(pixels: np.ndarray, what: str, tmp_path: Path) -> None:
    Image.fromarray(pixels.reshape(8, 8)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=what + ", of which nobody knows which is white; save it with 8 or 16 bits a channel"):
        picture.opened(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_is_no_picture(suffix: str, tmp_path: Path) -> None:
    scene().save(tmp_path / f"x.{suffix}", save_all=True, append_images=[ImageOps.mirror(scene())])
    with pytest.raises(ValueError, match="has 2 frames or pages; save the one that is meant as a picture"):
        picture.opened(tmp_path / f"x.{suffix}")


def test_a_phones_picture_with_its_preview_is_the_picture(tmp_path: Path) -> None:
    scene().save(tmp_path / "x.mpo", save_all=True, append_images=[scene((8, 8))], quality=100, subsampling=0)
    (tmp_path / "x.mpo").rename(tmp_path / "x.jpg")
    assert off(tmp_path / "x.jpg", scene()) <= 8


# Everywhere.


def test_nothing_else_opens_a_picture() -> None:
    others = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "assets" not in path.parts and re.search(r"Image\.open\(|imread\(|load_image\(|decode_image\(", path.read_text())
    ]
    # What `store export` prints opens them too, and of an animation the frames, each made upright by the other.
    assert sorted(others) == ["cli/loading.py", "data/frames.py", "data/picture.py"]
    assert "upright(picture)" in (ROOT / "data/frames.py").read_text()


def evaluated(*files: Path) -> Any:
    """PSNR of each picture beside the first."""
    listed = PictureList(["a scene"], {f"m{i}": [file] for i, file in enumerate(files)})
    return evaluate(listed, ["psnr"], "m0", {})


def glass(file: Path) -> None:
    scene().convert("RGBA").save(file)


SAME: dict[str, Callable[[Path], object]] = {
    "turned.png": lambda file: photographed(file, 6),
    "turned.tif": lambda file: photographed(file, 8),
    "opaque.png": glass,
    "cmyk.tif": lambda file: scene().convert("CMYK").save(file),
}


@pytest.mark.parametrize("name", SAME)
def test_eval_scores_a_picture_as_its_plain_copy(name: str, tmp_path: Path) -> None:
    scene().save(tmp_path / "plain.png")
    SAME[name](tmp_path / name)
    content, problems = evaluated(tmp_path / "plain.png", tmp_path / name)
    assert problems == []
    assert content.metrics["psnr"].models["m1"].values[0] > 60


def test_eval_scores_grey_of_16_bits_as_its_8_bits(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, SIZE[0] * SIZE[1]).round().astype(np.uint8).reshape(SIZE[::-1])
    Image.fromarray(levels).save(tmp_path / "plain.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    content, problems = evaluated(tmp_path / "plain.png", tmp_path / "deep.png")
    assert problems == []
    assert content.metrics["psnr"].models["m1"].values[0] > 60


def test_eval_says_what_it_cannot_score(tmp_path: Path) -> None:
    scene().save(tmp_path / "plain.png")
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    _, problems = evaluated(tmp_path / "plain.png", tmp_path / "x.tif")
    assert any("x.tif: cannot be read as a picture (has floating-point values" in p for p in problems)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_video_begins_with_the_upright_picture(orientation: int, tmp_path: Path) -> None:
    from diffopt.data.pictured import fitted

    scene().save(tmp_path / "plain.png")
    photographed(tmp_path / "turned.png", orientation)
    plain, turned = (np.asarray(fitted(str(tmp_path / f"{n}.png"), 32, 32)).astype(int) for n in ("plain", "turned"))
    assert (plain == turned).all()


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_video_cannot_begin_with_what_is_no_picture(content: bytes, tmp_path: Path) -> None:
    from diffopt.data.pictured import fitted
    from diffopt.errors import PlanError

    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PlanError, match=r"prompts: a picture cannot be read: .*x\.png'\); mend or remove it"):
        fitted(str(tmp_path / "x.png"), 32, 32)


def test_what_is_trained_on_is_upright_and_whole(tmp_path: Path) -> None:
    for name in ("turned", "deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "a scene"}\n')
    photographed(tmp_path / "turned" / "x.png", 6)
    levels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).round().astype(np.uint16).reshape(SIZE[::-1])
    Image.fromarray(levels).save(tmp_path / "deep" / "x.png")
    extent = Extent(SIZE[1], SIZE[0], None)
    wanted = {"turned": np.asarray(scene()), "deep": (levels / 257).round()[..., None]}
    for name, there in wanted.items():
        made = next(ImageFolder(tmp_path / name, name, None, None).pixels(extent, 1, []))
        assert (made[0, 0] == there).all()


def test_a_folder_of_prompts_holds_pictures_of_every_kind_that_is_read(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "JPEG", "webp", "gif", "bmp", "tif", "tiff"):
        scene().save(tmp_path / f"x.{suffix}")
    (tmp_path / "notes.txt").write_text("of the pictures")
    assert len(prompts.read(str(tmp_path))) == 8


def test_a_phones_picture_that_is_not_read_is_named_and_not_left_out(tmp_path: Path) -> None:
    scene().save(tmp_path / "x.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"holds 1 pictures of a kind that is not read here, the first IMG_1\.HEIC; save them"):
        prompts.read(str(tmp_path))


def test_a_copy_for_a_page_is_upright(tmp_path: Path) -> None:
    from base64 import b64decode

    from diffopt.report.html import picture as copied

    scene((64, 48)).save(tmp_path / "x.png")
    small = copied(tmp_path / "x.png", limit=32)
    with Image.open(io.BytesIO(b64decode(small["uri"].partition(",")[2]))) as found:
        assert found.size == (32, 24)
