"""Floors under quality: how they are written, whether a job keeps one, and which job is picked."""

from pathlib import Path

import numpy as np
import pytest
from sweeps import SPREAD, findings, job, measured, psnr

from diffopt import verdict
from diffopt.errors import ConfigError
from diffopt.floor import Floor, judge

REFERENCE = 80 + SPREAD


def clip(mean: float, noise: float = 0.0, better: str = "higher") -> dict[str, dict[str, object]]:
    """A score beside a reference of mean 80: `mean` away from it in every picture, give or take `noise`."""
    apart = mean + noise * np.array([1, -1] * 4)
    return {"clip": measured(REFERENCE + apart, REFERENCE, "CLIP score", "", better)}


@pytest.mark.parametrize(
    ("text", "against", "share", "plus"),
    [
        ("clip=-0.5%", True, -0.005, 0.0),
        ("clip = 99.5%", True, -0.005, 0.0),
        ("clip=+2%", True, 0.02, 0.0),
        ("clip=-0.4", True, 0.0, -0.4),
        ("psnr=40", False, 0.0, 40.0),
        ("psnr=.5", False, 0.0, 0.5),
    ],
)
def test_a_floor_is_a_share_a_change_or_a_value(text: str, against: bool, share: float, plus: float) -> None:
    floor = Floor.parse(text)
    assert (floor.against, floor.share, floor.plus) == (against, pytest.approx(share), plus)


@pytest.mark.parametrize("text", ["clip", "clip=", "=3", "clip<3", "clip=a", "clip=--1", "clip=1%%", "clip=nan", "clip=1=2"])
def test_a_floor_that_is_no_floor_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--floor: cannot be read \(got '.*'\); write METRIC=-0.5%") as found:
        Floor.parse(text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("mean", "noise", "says"),
    [(-0.3, 0.01, "kept"), (-0.5, 0.01, "broken"), (-0.3, 0.5, "not shown"), (-0.5, 0.5, "not shown"), (0.0, 0.0, "kept")],
)
def test_a_share_of_the_reference_is_judged_by_the_paired_interval(
    tmp_path: Path, mean: float, noise: float, says: str
) -> None:
    """-0.5% of 80 is -0.4; the pictures themselves differ by 6, which pairs do not feel."""
    found = findings(job(tmp_path / "0", clip(mean, noise)).parent)
    assert [v.says for v in judge(found.rows[0], [Floor.parse("clip=-0.5%")])] == [says]


def test_a_single_picture_shows_nothing(tmp_path: Path) -> None:
    found = findings(job(tmp_path / "0", {"psnr": measured([50.0])}).parent)
    assert [v.says for v in judge(found.rows[0], [Floor.parse("psnr=40")])] == ["not shown"]


def test_where_lower_is_better_the_floor_is_a_ceiling(tmp_path: Path) -> None:
    found = findings(job(tmp_path / "0", clip(1.0, better="lower")).parent)
    said = [judge(found.rows[0], [Floor.parse(f)])[0].says for f in ("clip=+2%", "clip=+1%", "clip=+1.5", "clip=90")]
    assert said == ["kept", "broken", "kept", "kept"]


def test_ssim_has_shares_since_identical_pictures_have_one(tmp_path: Path) -> None:
    ssim = {"ssim": measured(0.985 + SPREAD / 10_000, title="SSIM", unit="")}
    found = findings(job(tmp_path / "0", ssim).parent)
    assert [judge(found.rows[0], [Floor.parse(f)])[0].says for f in ("ssim=-2%", "ssim=-1%")] == ["kept", "broken"]


def test_psnr_has_no_reference_to_take_a_share_of(tmp_path: Path) -> None:
    found = findings(job(tmp_path / "0", psnr(41.23)).parent, "psnr=-5%")
    with pytest.raises(ConfigError, match=r"^--floor: PSNR compares .* \(got psnr=-5%\); give the value itself, as psnr=41.2$"):
        found.check()


def test_the_smallest_job_that_is_shown_to_keep_the_floor_is_picked(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 45.0, 4000), ("1", 42.0, 3000), ("2", 38.0, 2000)):
        job(tmp_path / name, psnr(mean), graph=graph)
    found = findings(tmp_path, "psnr=40")
    assert [(p.word, p.row.job, p.shown) for p in found.picks] == [("smallest", "1", True)]


def test_of_equally_small_jobs_the_better_one_is_picked(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 42.0, 2000), ("1", 45.0, 2001), ("2", 50.0, 3000)):
        job(tmp_path / name, psnr(mean), graph=graph)
    assert findings(tmp_path, "psnr=40").picks[0].row.job == "1"  # a byte more is no cost


def test_a_smaller_job_that_the_sample_cannot_decide_on_is_named(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 45.0, 4000), ("1", 40.1, 2000)):
        job(tmp_path / name, psnr(mean), graph=graph)
    found = findings(tmp_path, "psnr=40")
    assert found.picks[0].row.job == "0"
    assert any(
        "job 1 is smaller (1.953 KiB) and may keep them too; the sample cannot show it" in x for x in verdict.under(found)
    )


def test_where_only_means_keep_the_floor_that_is_said(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.1))
    said = verdict.under(findings(tmp_path, "psnr=40"))
    assert any("its mean keeps psnr=40, but 8 pictures cannot show it: margin 0.1 dB [" in line for line in said)


def test_every_floor_must_be_kept(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(45.0) | clip(-2.0))
    job(tmp_path / "1", psnr(42.0) | clip(0.0))
    job(tmp_path / "2", psnr(30.0) | clip(0.0))
    assert findings(tmp_path, "psnr=40", "clip=-1%").picks[0].row.job == "1"


def test_where_none_keeps_the_floor_the_nearest_is_named(tmp_path: Path) -> None:
    for name, mean in (("0", 30.0), ("1", 35.0)):
        job(tmp_path / name, psnr(mean))
    assert verdict.under(findings(tmp_path, "psnr=40"))[0].startswith(
        "no job keeps psnr=40; nearest is job 1: psnr=40 by -5.0 dB ["
    )


def test_the_fastest_is_named_where_speed_may_be_claimed(tmp_path: Path) -> None:
    for name, mean, graph, speedup in (("0", 45.0, 2000, 1.2), ("1", 45.0, 3000, 1.8), ("2", 30.0, 4000, 3.0)):
        job(tmp_path / name, psnr(mean), graph=graph, speedup=speedup)
    assert [(p.word, p.row.job) for p in findings(tmp_path, "psnr=40").picks] == [("smallest", "0"), ("fastest", "1")]


def test_a_simulated_format_is_never_the_fastest(tmp_path: Path) -> None:
    for name, speedup in (("0", 1.2), ("1", 1.8)):
        job(tmp_path / name, psnr(45.0), graph=1000, speedup=speedup, simulated=True)
    found = findings(tmp_path, "psnr=40")
    assert [p.word for p in found.picks] == ["best"]
    assert found.time is None


def test_times_that_overlap_are_said_so(tmp_path: Path) -> None:
    for name, speedup in (("0", 1.500), ("1", 1.505), ("2", 1.1)):
        job(tmp_path / name, psnr(45.0), speedup=speedup)
    assert "  its time is not told apart from that of job 0" in verdict.under(findings(tmp_path, "psnr=40"))
