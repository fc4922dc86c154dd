"""The best, what is not told apart from it, and the Pareto fronts."""

import re
from pathlib import Path

import pytest
from contents import CHECKPOINT, MACHINE, PIPELINE
from sweeps import SPREAD, failed, findings, job, measured, psnr
from test_report import artifact, words

from diffopt.sweep import conclusions, cost, page
from diffopt.sweep.results import records


def test_pairs_tell_apart_what_intervals_do_not(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.0))
    job(tmp_path / "1", psnr(40.5))
    found = findings(tmp_path)
    assert found.rows[0].metrics["psnr"].candidate.high > found.rows[1].metrics["psnr"].candidate.low
    assert found.ties == []
    assert conclusions.apart(found) == "the sample tells it apart from the 1 other distinct job"


def test_a_difference_that_changes_sign_from_picture_to_picture_is_not_told_apart(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.0))
    job(tmp_path / "1", psnr(40.2, SPREAD[::-1]))
    found = findings(tmp_path)
    assert conclusions.apart(found) == "the sample does not tell it apart from job 0"


def test_of_a_few_pictures_nothing_is_told(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.0, SPREAD[:9]))
    job(tmp_path / "1", psnr(50.0, SPREAD[:9]))
    assert conclusions.apart(findings(tmp_path)) == "9 pictures are too few to tell it apart from any other"


@pytest.mark.parametrize(("mean", "said"), [(40.5, ["0"]), (48.0, [])])
def test_jobs_of_other_prompts_are_compared_by_their_intervals(tmp_path: Path, mean: float, said: list[str]) -> None:
    job(tmp_path / "0", psnr(40.0), prompts="others")
    job(tmp_path / "1", psnr(mean))
    assert [r.job for r in findings(tmp_path).ties] == said


def test_where_lower_is_better_the_pairs_are_turned(tmp_path: Path) -> None:
    for name, mean in (("0", 0.30), ("1", 0.20)):
        job(tmp_path / name, {"lpips": measured(mean + SPREAD / 1000, title="LPIPS", unit="", better="lower")})
    found = findings(tmp_path)
    assert found.best is not None
    assert (found.best.job, found.ties) == ("1", [])


def test_the_front_keeps_what_nothing_beats_the_cheapest_first(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 35.0, 200), ("1", 30.0, 100), ("2", 29.0, 150), ("3", 34.0, 200)):
        job(tmp_path / name, psnr(mean), graph=graph)
    assert {c: [r.job for r in rows] for c, rows in findings(tmp_path).fronts.items()} == {"size": ["1", "0"]}


def test_sizes_that_differ_by_bytes_are_one(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 35.0, 100_010), ("1", 30.0, 100_000)):
        job(tmp_path / name, psnr(mean), graph=graph)
    assert findings(tmp_path).costs == []
    assert findings(tmp_path).fronts == {}


def test_there_is_a_front_against_time_only_where_speed_may_be_claimed(tmp_path: Path) -> None:
    for kind, simulated in (("real", False), ("simulated", True)):
        for name, mean, speedup in (("0", 35.0, 1.2), ("1", 30.0, 2.0)):
            job(tmp_path / kind / name, psnr(mean), graph=100, speedup=speedup, simulated=simulated)
    assert [r.job for r in findings(tmp_path / "real").fronts["time"]] == ["1", "0"]
    assert findings(tmp_path / "simulated").fronts == {}


def test_a_machine_that_got_slower_does_not_make_a_job_slower(tmp_path: Path) -> None:
    """Both jobs were twice as fast as their baselines, the second while the machine had more to do."""
    for name, baseline in (("0", 0.4), ("1", 1.2)):
        job(tmp_path / name, psnr(35.0), speedup=2.0, baseline=baseline)
    time = findings(tmp_path).time
    assert time is not None
    assert time.values == {"0": pytest.approx(0.4), "1": pytest.approx(0.4)}  # half the median baseline's 0.8


def test_jobs_with_other_baselines_are_not_put_on_one(tmp_path: Path) -> None:
    for name, baseline in (("0", 0.4), ("1", 1.2)):
        job(tmp_path / name, psnr(35.0), speedup=2.0, baseline=baseline)
        path = tmp_path / name / "time/record.json"
        identity = f'{{"identity": {{"config": {{"eval": {{"steps": {name}}}}}, "inputs": {{"subject": "{name}"}}}}}}'
        path.write_text(identity)
    time = findings(tmp_path).time
    assert time is not None
    assert time.values == {"0": pytest.approx(0.2), "1": pytest.approx(0.6)}


def test_times_of_two_machines_make_no_front(tmp_path: Path) -> None:
    for name, mean, speedup, host in (("0", 35.0, 1.2, "a"), ("1", 30.0, 2.0, "b")):
        job(tmp_path / name, psnr(mean), speedup=speedup, machine={**MACHINE, "host": host})
    found = findings(tmp_path)
    assert (found.time, found.fronts) == (None, {})
    assert len(cost.machines(found.rows)) == 2


def test_without_graphs_the_size_is_that_of_the_weights_as_stored(tmp_path: Path) -> None:
    """1000 parameters of two bytes; 600 of them in 6 bits, and a low-rank part of 2 x (20 + 30)."""
    pipeline = PIPELINE | {"parameters": 1000}
    layers = [{"name": "a", "kind": "linear", "shape": [20, 30]}, {"name": "b", "kind": "linear", "shape": [10, 10]}]
    for name, rank in (("0", None), ("1", 2)):
        job(tmp_path / name, psnr(40.0))
        checkpoint = CHECKPOINT | {"weight_bits": 6, "rank": rank, "layers": ["a"]}
        artifact(tmp_path / name, "load", {"pipeline.json": pipeline})
        (tmp_path / name / "load/layers.json").write_text(str(layers).replace("'", '"'))
        artifact(tmp_path / name, "quantize", {"checkpoint.json": checkpoint})
    job(tmp_path / "2", psnr(50.0))
    artifact(tmp_path / "2", "load", {"pipeline.json": pipeline})
    (tmp_path / "2/load/layers.json").write_text("[]")
    found = findings(tmp_path)
    assert [r.run.weight_bytes for r in found.rows if r.run] == [800 + 450, 800 + 450 + 200, 2000]
    assert found.size is not None
    assert found.size.title == "Size of the weights as stored"


def test_one_measure_of_size_is_taken_for_all_jobs(tmp_path: Path) -> None:
    for name in ("0", "1"):
        job(tmp_path / name, psnr(40.0), graph=100 if name == "0" else None)
        artifact(tmp_path / name, "load", {"pipeline.json": PIPELINE | {"parameters": 1000}})
        (tmp_path / name / "load/layers.json").write_text("[]")
    size = findings(tmp_path).size
    assert size is not None
    assert size.values == {"0": 2000, "1": 2000}


def test_failed_jobs_and_twins_are_no_points(tmp_path: Path) -> None:
    for name, same in (("0", None), ("1", "0"), ("2", None)):
        job(tmp_path / name, psnr(40.0 - int(name)), same_as=same, graph=100 if name == "2" else 200)
    failed(tmp_path / "3")
    assert [r.job for r in findings(tmp_path).fronts["size"]] == ["2", "0"]


def said_of(directory: Path, *floors: str) -> tuple[str, str]:
    """The words of the sweep's page, with a star before a badge of praise, and the console's lines."""
    found = findings(directory, *floors)
    html = page.write(found).read_text()
    return words(html.replace('tag best">', 'tag">*')), "\n".join(page.summary(found))


def test_of_three_pictures_a_sweep_says_their_values_no_interval_and_no_badge_that_contradicts(tmp_path: Path) -> None:
    for name, mean in (("0", 45.0), ("1", 23.0)):
        job(tmp_path / name, {"psnr": measured([mean - 1.5, mean, mean + 1.5])}, graph=100 * (1 + int(name)))
    html, lines = said_of(tmp_path, "psnr=40")
    assert not re.search(r"\[[-+\d.]+, |95%|not shown|reaches to both sides|\*ship|\*best(?! mean)", html + lines)
    assert "0 its mean keeps *best mean front 5.0 of 3.5, 5.0, 6.5 too few" in html
    assert "1 -17.0 of -18.5, -17.0, -15.5 too few" in html
    assert "PSNR 45.0 dB of 43.5, 45.0, 46.5" in lines


def test_of_many_pictures_a_margin_beyond_the_floor_is_broken_and_not_said_to_be_not_shown(tmp_path: Path) -> None:
    for name, mean in (("0", 50.0), ("1", 23.0)):
        job(tmp_path / name, psnr(mean))
    html, _ = said_of(tmp_path, "psnr=40")
    assert "0 *ship *best 10.0 [" in html
    assert "broken" in html
    assert "not shown" not in html.lower()


@pytest.mark.parametrize(
    ("metric", "better", "values"),
    [("psnr", "higher", [35.89 + x for x in range(-6, 6)]), ("ssim", "higher", [0.996 + x / 1e4 for x in range(-6, 6)]),
     ("psnr", "higher", [35.6, 35.8, 36.1]), ("lpips", "lower", [0.03 + x / 1e3 for x in range(-6, 6)])],
)  # fmt: skip
def test_the_best_job_keeps_the_floor_that_the_page_gives_as_an_example(
    tmp_path: Path, metric: str, better: str, values: list[float]
) -> None:
    job(tmp_path / "0", {metric: measured(values, better=better)})
    found = re.search(rf"--floor ({metric}=\S+?)</code>", page.write(findings(tmp_path)).read_text())
    assert found
    (verdict,) = findings(tmp_path, found[1]).verdicts["0"]
    assert verdict.keeps
    assert verdict.margin.mean < 2 * (max(values) - min(values))


def test_a_pick_that_the_sample_does_not_show_is_not_marked_to_be_shipped(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.1))
    html, lines = said_of(tmp_path, "psnr=40")
    assert "*ship" not in html
    assert "its mean keeps" in html
    assert "best job whose mean keeps psnr=40: job 0" in lines


def test_results_of_a_few_pictures_have_no_ends(tmp_path: Path) -> None:
    job(tmp_path / "0", {"psnr": measured([44.0, 46.0])})
    (record,) = records(findings(tmp_path, "psnr=40"))
    assert record["metrics"]["psnr"] == {"mean": 45.0, "low": None, "high": None, "n": 2}
    assert record["floors"] == {"psnr=40": {"says": "too few", "mean": 5.0, "low": None, "high": None, "n": 2}}
