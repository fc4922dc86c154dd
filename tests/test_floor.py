"""Floors under quality: how they are written, whether a job keeps one, and which job is picked."""

from pathlib import Path

import numpy as np
import pytest
from sweeps import SPREAD, findings, job, measured, psnr

from diffopt.errors import ConfigError
from diffopt.files.interval import Interval
from diffopt.files.json_file import plain
from diffopt.quality.floor import floors, parse, shortfall
from diffopt.quality.limit import Limit
from diffopt.sweep import conclusions
from diffopt.sweep.pick import judge

REFERENCE = 80 + SPREAD


def clip(mean: float, noise: float = 0.0, better: str = "higher") -> dict[str, dict[str, object]]:
    """A score beside a reference of mean 80: `mean` away from it in every picture, give or take `noise`."""
    apart = mean + noise * np.array([1, -1] * 5)
    return {"clip": measured(REFERENCE + apart, REFERENCE, "CLIP score", "", better)}


@pytest.mark.parametrize(("text", "written"), [("clip=-0.5%", "clip=-0.5%"), ("clip-iqa = +2 %", "clip-iqa=+2%")])
def test_a_floor_is_a_metric_and_its_limit(text: str, written: str) -> None:
    floor = parse(text)
    assert floor == Limit.parse(floor.metric, written.partition("=")[2])
    assert floor.text == written


@pytest.mark.parametrize("text", ["clip", "clip=", "=3", "clip<3", "a b=3"])
def test_what_is_no_metric_and_limit_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^floor: cannot be read \(got '.*'\); write METRIC=-0.5%[^\n]*$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("clip=a", "floor: is not a limit (got 'clip=a'); write a mean such as 20, or a change such as -0.5%"),
        ("clip=99%", "floor: is a change without a sign (got 'clip=99%'); write -99% or +99%"),
        ("psnr=-5%", "floor: is a distance from the reference already (got 'psnr=-5%'); give its own limit, without %"),
        ("latency=1.0x", "floor: is a gate's limit, no floor's (got 'latency=1.0x'); set eval.gates.latency"),
    ],
)
def test_an_amount_that_is_none_is_refused_by_what_is_wrong(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(text)
    assert str(found.value) == line


def test_floors_of_a_recipe_are_a_list_or_a_mapping() -> None:
    assert floors(["clip=-0.5%", "psnr=40"]) == floors({"clip": "-0.5%", "psnr": 40})
    assert floors(None) == floors([]) == []


def test_a_search_is_told_by_how_much_the_means_miss_the_floors(tmp_path: Path) -> None:
    run = findings(job(tmp_path / "0", psnr(40.0) | clip(-0.8)).parent).rows[0].run
    assert run is not None
    missed = [shortfall(run, floors([f])) for f in ("psnr=39", "psnr=44", "clip=-2%", "clip=-0.5%")]
    assert missed == [0.0, pytest.approx(0.1), 0.0, pytest.approx(0.4 / 79.2, rel=0.01)]
    assert shortfall(run, floors(["psnr=44", "psnr=42"])) == pytest.approx(0.15)
    with pytest.raises(ConfigError, match=r"^floor: is not measured \(got fid=3\); there are psnr, clip$"):
        shortfall(run, floors(["fid=3"]))


@pytest.mark.parametrize(
    ("mean", "noise", "says"),
    [(-0.3, 0.01, "kept"), (-0.5, 0.01, "broken"), (-0.3, 0.5, "not shown"), (-0.5, 0.5, "not shown"), (0.0, 0.0, "kept")],
)
def test_a_share_of_the_reference_is_judged_by_the_paired_interval(
    tmp_path: Path, mean: float, noise: float, says: str
) -> None:
    """-0.5% of 80 is -0.4; the pictures themselves differ by 6, which pairs do not feel."""
    found = findings(job(tmp_path / "0", clip(mean, noise)).parent)
    assert [v.says for v in judge(found.rows[0], [parse("clip=-0.5%")])] == [says]


@pytest.mark.parametrize("many", [1, 9])
def test_a_few_pictures_show_nothing(tmp_path: Path, many: int) -> None:
    found = findings(job(tmp_path / "0", {"psnr": measured([50.0] * many)}).parent)
    assert [v.says for v in judge(found.rows[0], [parse("psnr=40")])] == ["too few"]


def test_where_lower_is_better_the_floor_is_a_ceiling(tmp_path: Path) -> None:
    found = findings(job(tmp_path / "0", clip(1.0, better="lower")).parent)
    said = [judge(found.rows[0], [parse(f)])[0].says for f in ("clip=+2%", "clip=+1%", "clip=90")]
    assert said == ["kept", "broken", "kept"]


def test_a_metric_that_is_not_installed_here_has_no_share_of_a_reference_without_values(tmp_path: Path) -> None:
    found = findings(job(tmp_path / "0", {"far": psnr(41.23)["psnr"]}).parent, "far=-5%")
    with pytest.raises(ConfigError, match=r"^floor: PSNR is a distance .* \(got far=-5%\); give its own limit, as far=41.2$"):
        found.check()


def test_a_metric_that_judges_sets_is_judged_by_its_interval(tmp_path: Path) -> None:
    fid = {"title": "FID", "unit": "", "better": "lower", "candidate": plain(Interval(20.0, 18.0, 23.0, 50))}
    found = findings(job(tmp_path / "0", {"fid": fid}).parent)
    verdicts = [judge(found.rows[0], [parse(f)])[0] for f in ("fid=25", "fid=22", "fid=15")]
    assert [v.says for v in verdicts] == ["kept", "not shown", "broken"]
    assert verdicts[0].margin == Interval(5.0, 2.0, 7.0, 50)


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
        "job 1 is smaller (1.953 KiB) and may keep them too; the sample cannot show it" in x for x in conclusions.under(found)
    )


def test_where_only_means_keep_the_floor_that_is_said(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.1))
    said = conclusions.under(findings(tmp_path, "psnr=40"))
    assert any("its mean keeps psnr=40, but 10 pictures cannot show it: margin 0.1 dB [" in line for line in said)


def test_of_a_few_pictures_no_job_is_said_to_keep_a_floor_but_by_its_mean(tmp_path: Path) -> None:
    job(tmp_path / "0", {"psnr": measured([44.0, 47.0])})
    job(tmp_path / "1", {"psnr": measured([21.5, 24.5])})
    first, second = conclusions.under(findings(tmp_path, "psnr=40"))
    assert first == "best job whose mean keeps psnr=40: job 0; PSNR 45.5 dB of 44.0, 47.0"
    assert second == "  its mean keeps psnr=40, but 2 pictures are too few to show it: margin 5.5 dB of 4.0, 7.0"
    (nearest,) = conclusions.under(findings(tmp_path, "psnr=50"))
    assert nearest == "no job's mean keeps psnr=50; nearest is job 0: psnr=50 by -4.5 dB of -6.0, -3.0"


def test_every_floor_must_be_kept(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(45.0) | clip(-2.0))
    job(tmp_path / "1", psnr(42.0) | clip(0.0))
    job(tmp_path / "2", psnr(30.0) | clip(0.0))
    assert findings(tmp_path, "psnr=40", "clip=-1%").picks[0].row.job == "1"


def test_where_none_keeps_the_floor_the_nearest_is_named(tmp_path: Path) -> None:
    for name, mean in (("0", 30.0), ("1", 35.0)):
        job(tmp_path / name, psnr(mean))
    assert conclusions.under(findings(tmp_path, "psnr=40"))[0].startswith(
        "no job's mean keeps psnr=40; nearest is job 1: psnr=40 by -5.0 dB ["
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
    assert "  its time is not told apart from that of job 0" in conclusions.under(findings(tmp_path, "psnr=40"))
