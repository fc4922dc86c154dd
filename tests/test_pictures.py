"""Pictures on disk, and the gate against broken ones."""

from pathlib import Path

import numpy as np
import pytest

from diffopt.data import pictures
from diffopt.errors import GateError
from diffopt.files.images import ImagesFile


def batch(n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((n, 16, 24, 3), dtype=np.float32)


def test_sound_pictures_pass() -> None:
    pictures.check(batch(), ["one", "two"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_one_value_that_is_no_number_is_refused(value: float) -> None:
    broken = batch()
    broken[1, 3, 4, 2] = value
    with pytest.raises(GateError, match="the picture of 'two' has NaN"):
        pictures.check(broken, ["one", "two"])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_picture_of_one_colour_is_refused(value: float) -> None:
    broken = batch()
    broken[0] = value
    with pytest.raises(GateError, match=rf"the picture of 'one' has one colour \(got {value:.2f} everywhere\)"):
        pictures.check(broken, ["one", "two"])


def test_a_picture_whose_only_colour_is_not_grey_is_refused() -> None:
    broken = batch()
    broken[0] = (1.0, 0.0, 0.5)
    with pytest.raises(GateError, match="one colour"):
        pictures.check(broken, ["one", "two"])


def test_a_picture_with_one_other_pixel_passes() -> None:
    almost = batch()
    almost[0] = 0.5
    almost[0, 3, 4, 2] = 0.6
    pictures.check(almost, ["one", "two"])


def test_a_prompt_without_its_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        pictures.check(batch(2), ["one", "two", "three"])


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    drawn = batch(3)
    pictures.save(tmp_path, 0, drawn[:2])
    pictures.save(tmp_path, 2, drawn[2:])
    pictures.write_index(tmp_path, ["one", "two", "three"], [7, 8, 9], ImagesFile(runtime="torch"))
    prompts, read = zip(*pictures.read(tmp_path), strict=True)
    assert prompts == ("one", "two", "three")
    assert all(p.dtype == np.uint8 for p in read)
    assert np.array_equal(np.stack(read), np.rint(drawn * 255))


def test_every_level_of_eight_bits_survives(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    pictures.save(tmp_path, 0, levels.astype(np.float32) / 255)
    pictures.write_index(tmp_path, ["levels"], [0], ImagesFile())
    ((_, read),) = pictures.read(tmp_path)
    assert np.array_equal(read, levels[0])


def test_more_than_a_thousand_pictures_are_read_in_order(tmp_path: Path) -> None:
    pictures.save(tmp_path, 998, batch(3))
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["1000.png", "998.png", "999.png"]
    pictures.write_index(tmp_path, [str(i) for i in range(1001)], list(range(1001)), ImagesFile())
    assert '"file": "1000.png"' in (tmp_path / ImagesFile.NAME).read_text()


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    content = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pictures.save(tmp_path / name, 0, batch(1))
        pictures.write_index(tmp_path / name, ["one"], [7], ImagesFile())
        content.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert content[0] == content[1]
    assert content[0].keys() == {"000.png", ImagesFile.NAME}


def test_the_very_same_picture_for_two_prompts_is_refused(tmp_path: Path) -> None:
    one = batch(1)
    pictures.save(tmp_path, 0, np.concatenate([one, one]))
    pictures.check_distinct(tmp_path, ["a cat", "a cat"])  # of the same prompt it may be
    with pytest.raises(GateError, match=r"two prompts have the very same picture \(got it for 'a cat' and 'a dog'\)"):
        pictures.check_distinct(tmp_path, ["a cat", "a dog"])


def video(frames: int) -> np.ndarray:
    """Two videos whose every pixel has its frame's number."""
    return np.broadcast_to(np.arange(frames, dtype=np.float32)[None, :, None, None, None], (2, frames, 8, 6, 3))


@pytest.mark.parametrize(
    ("frames", "shown"), [(4, [0, 1, 2, 3]), (9, [0, 3, 5, 8]), (121, [0, 40, 80, 120]), (1, [0, 0, 0, 0])]
)
def test_a_videos_strip_is_four_evenly_spaced_frames_side_by_side(frames: int, shown: list[int]) -> None:
    found = pictures.strip(video(frames))
    assert found.shape == (2, 8, 24, 3)
    assert [float(v) for v in found[0, 0, ::6, 0]] == shown


def test_a_pictures_strip_is_itself() -> None:
    assert np.array_equal(pictures.strip(batch()), batch())


def test_a_frame_outside_the_strip_is_checked_too() -> None:
    broken = video(9) / 9
    broken[1, 4] = np.nan
    with pytest.raises(GateError, match="the picture of 'two' has NaN"):
        pictures.check(broken, ["one", "two"])
