"""One's own pictures: read as Hugging Face's imagefolder, cut to the model's size, and refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import constants
from pictures_with_captions import caption, describe, folder, shape
from PIL import Image

from diffopt.data.extent import Extent
from diffopt.data.frames import fitted
from diffopt.data.imagefolder import ImageFolder
from diffopt.errors import PlanError
from diffopt.store.source import Sources, read_data

SIDE = Extent(64, 64)
HOUSE_STYLE = re.compile(r"train\.data\.\w+: .+ \(got .+\); .+")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def opened(where: Path, **how: Any) -> ImageFolder:
    return ImageFolder(where, "pictures", **how)


def refused(data: ImageFolder, extent: Extent = SIDE, small: Any = "refuse") -> str:
    """The line by which the captions or the pictures are refused."""

    def looked_at() -> None:
        assert data.captions
        data.unreadable(extent, small)

    with pytest.raises(PlanError) as caught:
        looked_at()
    said = str(caught.value)
    assert HOUSE_STYLE.fullmatch(said), said
    return said


def everything(data: ImageFolder, extent: Extent = SIDE, skipped: Any = (), batch: int = 4) -> np.ndarray:
    return np.concatenate([*data.pixels(extent, batch, skipped)])


def break_file(path: Path) -> None:
    """Cut off its second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# what is read


def test_pictures_and_captions_come_in_the_order_of_the_metadata(tmp_path):
    where = folder(tmp_path, 5)
    order = [3, 0, 4]
    describe(where, [{"file_name": f"{i:03}.png", "text": caption(i)} for i in order])
    data = opened(where)
    assert data.captions == [caption(i) for i in order]
    np.testing.assert_array_equal(everything(data)[:, 0], [np.asarray(shape(i)) for i in order])


def test_a_size_takes_the_first(tmp_path):
    data = opened(folder(tmp_path, 5), size=2)
    assert data.captions == [caption(0), caption(1)]
    assert len(everything(data)) == 2


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_captions_are_found_by_the_usual_names(tmp_path, column):
    assert opened(folder(tmp_path, 2, column=column)).captions == [caption(0), caption(1)]


def test_a_column_of_captions_can_be_named(tmp_path):
    rows = [{"file_name": "000.png", "text": "the first", "described": "the other"}]
    describe(folder(tmp_path, 1), rows)
    assert opened(tmp_path, column="described").captions == ["the other"]


def test_of_several_captions_of_a_picture_the_first_counts(tmp_path):
    describe(folder(tmp_path, 1), [{"file_name": "000.png", "text": ["first", "second"]}])
    assert opened(tmp_path).captions == ["first"]


def test_parquet_files_with_pictures_in_them_are_read(tmp_path):
    rows = {"image": [shape(i) for i in range(3)], "caption": [caption(i) for i in range(3)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    data = opened(tmp_path)
    assert data.captions == [caption(i) for i in range(3)]
    np.testing.assert_array_equal(everything(data)[:, 0], [np.asarray(shape(i)) for i in range(3)])


def test_a_data_set_of_the_hub_is_read_from_its_cache_at_its_commit(tmp_path, monkeypatch):
    repo = tmp_path / "hub" / "datasets--org--name"
    folder(repo / "snapshots" / COMMIT, 3)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sources = Sources(tmp_path / "memory.json")
    digest = sources.digest(read_data("hub:org/name"))
    assert digest == f"hub:datasets/org/name@{COMMIT}"
    assert opened(sources.locate(digest)).captions == [caption(i) for i in range(3)]


# as the model sees them


def test_a_wide_picture_loses_its_left_and_right():
    picture = Image.new("RGB", (120, 60), "red")
    picture.paste("blue", (30, 0, 90, 60))
    assert (fitted(picture, Extent(30, 30))[3:-3, 3:-3] == (0, 0, 255)).all()  # Lanczos looks beyond an edge


def test_a_tall_picture_loses_its_top_and_bottom():
    picture = Image.new("RGB", (60, 120), "red")
    picture.paste("blue", (0, 30, 60, 90))
    assert (fitted(picture, Extent(30, 30))[3:-3, 3:-3] == (0, 0, 255)).all()  # Lanczos looks beyond an edge


def test_height_and_width_are_not_mixed_up():
    assert fitted(Image.new("RGB", (100, 100)), Extent(height=20, width=50)).shape == (20, 50, 3)


def test_transparent_parts_are_white():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (fitted(picture, Extent(10, 10)) == 255).all()


def test_a_picture_is_turned_as_its_camera_was(tmp_path):
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste("blue", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: its top is to the right
    where = folder(tmp_path, 1, suffix="jpg")
    picture.save(where / "000.jpg", exif=exif, quality=95)
    (seen,) = everything(opened(where))[:, 0].astype(int)
    assert seen[:, 40:, 2].mean() > 200
    assert seen[:, :24, 0].mean() > 200


def test_frames_of_a_video_are_the_first_of_an_animation(tmp_path):
    frames = [shape(i) for i in range(4)]
    where = folder(tmp_path, 1)
    frames[0].save(where / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    describe(where, [{"file_name": "a.webp", "text": "moving"}])
    (video,) = everything(opened(where), Extent(64, 64, 3))
    np.testing.assert_array_equal(video, [np.asarray(f) for f in frames[:3]])


def test_frames_of_a_video_are_pictures_that_are_listed(tmp_path):
    where = folder(tmp_path, 4)
    describe(where, [{"frames_file_names": [f"{i:03}.png" for i in (2, 1, 0, 3)], "text": "moving"}])
    (video,) = everything(opened(where), Extent(64, 64, 3))
    np.testing.assert_array_equal(video, [np.asarray(shape(i)) for i in (2, 1, 0)])


def test_a_video_of_one_frame_is_a_picture(tmp_path):
    data = opened(folder(tmp_path, 2))
    assert data.unreadable(Extent(64, 64, 1), "refuse") == {}
    assert everything(data, Extent(64, 64, 1)).shape == (2, 1, 64, 64, 3)


# what is refused, or left out


def test_an_unreadable_picture_in_a_hundred_is_skipped_and_named(tmp_path):
    data = opened(folder(tmp_path, 100))
    break_file(tmp_path / "007.png")
    assert data.unreadable(SIDE, "refuse") == {7: "007.png"}
    left = everything(data, skipped=[7])
    assert len(left) == 99
    np.testing.assert_array_equal(left[7, 0], np.asarray(shape(8)))


def test_more_unreadable_pictures_are_refused_with_the_names_of_the_first(tmp_path):
    data = opened(folder(tmp_path, 150))
    for i in (3, 20, 70, 140):
        break_file(tmp_path / f"{i:03}.png")
    said = refused(data)
    assert "4 of 150" in said
    assert "003.png, 020.png, 070.png" in said
    assert "140" not in said


@pytest.mark.parametrize("content", [b"", b"no picture", None], ids=["empty", "text", "missing"])
def test_what_is_no_picture_counts_as_unreadable(tmp_path, content):
    data = opened(folder(tmp_path, 3))
    (tmp_path / "001.png").unlink() if content is None else (tmp_path / "001.png").write_bytes(content)
    assert "1 of 3 pictures cannot be read" in refused(data)


def test_a_truncated_jpeg_counts_as_unreadable(tmp_path):
    data = opened(folder(tmp_path, 3, suffix="jpg"))
    break_file(tmp_path / "002.jpg")
    assert "002.jpg" in refused(data)


def test_a_picture_smaller_than_the_model_s_is_refused_by_name(tmp_path):
    data = opened(folder(tmp_path, 3))
    shape(1, (64, 63)).save(tmp_path / "001.png")
    said = refused(data)
    assert "1 of 3" in said
    assert "001.png with 64x63" in said


def test_a_small_picture_is_enlarged_where_that_is_asked_for(tmp_path):
    data = opened(folder(tmp_path, 3, (20, 20)))
    assert data.unreadable(SIDE, "enlarge") == {}
    assert everything(data).shape == (3, 1, 64, 64, 3)


def test_a_video_with_too_few_frames_is_refused_by_name(tmp_path):
    said = refused(opened(folder(tmp_path, 3)), Extent(64, 64, 5), "enlarge")
    assert "000.png with 1" in said
    assert "model.frames" in said


def test_pictures_without_captions_are_refused(tmp_path):
    (folder(tmp_path, 2) / "metadata.jsonl").unlink()
    assert "has no captions" in refused(opened(tmp_path))


def test_a_caption_that_is_missing_is_refused_by_the_picture_s_name(tmp_path):
    rows = [{"file_name": f"{i:03}.png", "text": text} for i, text in enumerate(["a", None, " "])]
    describe(folder(tmp_path, 3), rows)
    said = refused(opened(tmp_path))
    assert "2 of 3 pictures have no caption" in said
    assert "001.png" in said


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    said = refused(opened(folder(tmp_path, 2), column="words"))
    assert "'words'" in said
    assert "there is text" in said


def test_a_size_beyond_the_pictures_is_refused(tmp_path):
    assert "more than the 3 pictures" in refused(opened(folder(tmp_path, 3), size=4))


def test_metadata_that_is_broken_is_refused(tmp_path):
    (folder(tmp_path, 2) / "metadata.jsonl").write_text("{broken")
    assert "no data set that can be read" in refused(opened(tmp_path))


def test_films_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"film")
    describe(tmp_path, [{"file_name": "a.mp4", "text": "moving"}])
    assert "frames_file_names" in refused(opened(tmp_path))


def test_texts_alone_are_no_pictures(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "alone"}))
    assert "holds no pictures" in refused(opened(tmp_path))


@pytest.mark.parametrize("value", ["no/such/place", "hub:alone", "hub:", 5, ""])
def test_what_is_no_source_of_data_is_refused(value):
    with pytest.raises(ValueError, match="; "):
        read_data(value)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="empty directory; put pictures"):
        read_data(str(tmp_path))
