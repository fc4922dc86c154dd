"""The page of a sweep, from job directories made by hand."""

import csv
import json
import re
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from test_report import GREEN, MAGENTA, count, exported, scored, screenshot, words

from diffopt import job_table, ranking, report, sweep
from diffopt.errors import DiffoptError


def swept(directory: Path) -> Path:
    """Jobs 0, 2 and 10 differ, 1 fell together with 0, 3 failed, 4 was killed; 2 is the best."""
    jobs = {"0": (30.0, "0" * 16), "1": (30.0, "0" * 16), "2": (35.0, "2" * 16), "10": (20.0, "3" * 16)}
    for i, (job, (psnr, fingerprint)) in enumerate(jobs.items()):
        scored(directory / job, psnr, fingerprint=fingerprint, overrides=["seed=1", f"calib.alpha=0.{i}"])
    for job, override in (("3", "calib.alpha=7"), ("4", "calib.alpha=0.9")):
        (directory / job / ".hydra").mkdir(parents=True)
        (directory / job / ".hydra/overrides.yaml").write_text(f"- +recipe=tiny\n- seed=1\n- {override}\n")
    (directory / "3/error.txt").write_text("calib.alpha: must be at most 1 (got <7>); lower it")
    (directory / "multirun.yaml").write_text("{}")
    return directory


def rows(html: str) -> list[str]:
    """The text of each row of the table of jobs."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    return [words(r).strip() for r in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]


def config(directory: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(directory)}, "job": {"num": 3}}})


def test_a_row_for_every_job_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert [r.job for r in job_table.table(swept(tmp_path))] == ["0", "1", "2", "3", "4", "10"]


def test_only_swept_keys_are_columns(tmp_path: Path) -> None:
    assert job_table.swept(job_table.table(swept(tmp_path))) == ["calib.alpha"]
    html = sweep.write(tmp_path).read_text()
    assert rows(html)[0].startswith("0 0.0 30.0 [29.0, 31.0]")


def test_a_key_that_a_job_did_not_override_has_the_recipes_value(tmp_path: Path) -> None:
    for job, overrides in (("0", []), ("1", ["format.name=fp8"])):
        scored(tmp_path / job, fingerprint=job * 16, overrides=overrides)
    assert [r.value("format.name") for r in job_table.table(tmp_path)] == ["int8_sq", "fp8"]


def test_jobs_with_equal_fingerprints_fell_together(tmp_path: Path) -> None:
    assert [r.twin for r in job_table.table(swept(tmp_path))] == [None, "0", None, None, None, None]
    html = sweep.write(tmp_path).read_text()
    assert "fell together with 0" in rows(html)[1]
    assert "6 jobs, 3 distinct" in words(html)


def test_a_failed_job_is_shown_with_its_error_and_overrides(tmp_path: Path) -> None:
    html = sweep.write(swept(tmp_path)).read_text()
    assert rows(html)[3] == "3 failed 7 calib.alpha: must be at most 1 (got <7>); lower it"
    assert "stopped without a result" in rows(html)[4]


def test_the_best_job_is_highlighted_once(tmp_path: Path) -> None:
    html = sweep.write(swept(tmp_path)).read_text()
    assert [r.split()[:2] for r in rows(html) if " best " in r] == [["2", "best"]]


def test_the_best_of_a_metric_where_lower_is_better_is_the_lowest(tmp_path: Path) -> None:
    for path in swept(tmp_path).glob("*/score/metrics.json"):
        path.write_text(path.read_text().replace('"better": "higher"', '"better": "lower"'))
    top = ranking.best(job_table.table(tmp_path))
    assert top is not None
    assert top.job == "10"


def test_means_that_an_interval_does_not_tell_apart_are_said_so(tmp_path: Path) -> None:
    scored(tmp_path / "0", 30.0, fingerprint="0" * 16)
    scored(tmp_path / "1", 31.5, fingerprint="1" * 16)
    assert "The intervals of 1 other distinct job meet its own" in words(sweep.write(tmp_path).read_text())


def test_artifacts_are_counted_once_and_shared_ones_said(tmp_path: Path) -> None:
    found = ranking.artifacts(job_table.table(swept(tmp_path)))
    assert found == {"made": 5, "found": 0, "shared": 3}  # reference, sample and three scores, one of them of two jobs
    path = tmp_path / "10/run.json"
    path.write_text(path.read_text().replace("made", "cached"))
    assert ranking.artifacts(job_table.table(tmp_path)) == {"made": 4, "found": 1, "shared": 3}


def test_the_pareto_front_keeps_what_nothing_beats(tmp_path: Path) -> None:
    for i, (psnr, graph) in enumerate([(30.0, 100), (35.0, 200), (29.0, 150)]):
        exported(tmp_path / str(i))
        (tmp_path / str(i) / "export/model.onnx").write_bytes(bytes(graph))
        scored(tmp_path / str(i), psnr, fingerprint=str(i) * 16)
    assert ranking.front(job_table.table(tmp_path)) == {"0", "1"}


def test_without_sizes_and_times_there_is_no_front(tmp_path: Path) -> None:
    assert ranking.front(job_table.table(swept(tmp_path))) == set()


def test_a_timed_sweep_gives_size_time_and_speedup(tmp_path: Path) -> None:
    exported(tmp_path / "0", 1.5)
    exported(tmp_path / "1", 0.5)
    html = sweep.write(tmp_path).read_text()
    assert "1.0 KiB 200.0 1.50 [1.40, 1.60] x" in rows(html)[0]
    assert 'class="bad"' in html  # the second is slower


def test_results_are_there_as_data(tmp_path: Path) -> None:
    sweep.write(swept(tmp_path))
    with (tmp_path / "results.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert [(x["job"], x["calib.alpha"], x["metrics.psnr.mean"]) for x in lines[2:4]] == [("2", "0.2", "35.0"), ("3", "7", "")]
    jobs = json.loads((tmp_path / "results.json").read_text())["jobs"]
    assert jobs[2]["metrics"]["psnr"] == {"mean": 35.0, "low": 34.0, "high": 36.0, "n": 3}
    assert jobs[1]["fell_together_with"] == "0"
    assert jobs[3]["error"].startswith("calib.alpha:")


def test_the_page_fetches_nothing_and_links_the_jobs_pages(tmp_path: Path) -> None:
    report.write(swept(tmp_path) / "2")
    html = sweep.write(tmp_path).read_text()
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html)
    assert [t for t in targets if not t.startswith(("data:", "#"))] == ["2/report.html"]
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_a_sweep_in_which_every_job_failed_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0/error.txt").write_text("model: none")
    assert "0 failed model: none" in words(sweep.write(tmp_path).read_text())


def test_the_command_writes_the_pages_of_the_sweep_and_of_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.command([str(swept(tmp_path))])
    assert all((tmp_path / name / "report.html").is_file() for name in ("", "0", "10"))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sweep   6 jobs, 3 distinct, 2 failed; 5 artifacts made")
    assert out[1:] == ["best    PSNR 35.0 dB [34.0, 36.0], job 2: calib.alpha=0.2", f"report  {tmp_path / 'report.html'}"]


def test_the_callback_writes_the_page_and_prints_its_path_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.WriteReport().on_multirun_end(config(swept(tmp_path)))
    assert capsys.readouterr().out.count(str(tmp_path / "report.html")) == 1
    assert (tmp_path / "report.html").is_file()


def test_a_sweep_that_was_interrupted_has_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.WriteReport, "_running", (sweep.WriteReport(), config(swept(tmp_path))))
    sweep.WriteReport.close()
    assert "stopped without a result" in (tmp_path / "report.html").read_text()


def test_a_sweep_that_was_interrupted_before_its_first_job_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweep.WriteReport, "_running", (sweep.WriteReport(), config(tmp_path / "new")))
    sweep.WriteReport.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_which_jobs_failed_is_told_so_when_it_is_over(tmp_path: Path) -> None:
    sweep.WriteReport().on_multirun_end(config(swept(tmp_path)))
    with pytest.raises(DiffoptError, match=r"2 of 6 jobs failed \(got of job 3: calib.alpha: must be at most 1"):
        sweep.WriteReport.check()


def test_a_browser_shows_the_small_pictures(tmp_path: Path) -> None:
    shown = screenshot(sweep.write(swept(tmp_path / "sweep")), tmp_path / "page.png", tmp_path / "profile")
    assert count(shown, MAGENTA) > 3 * 80 * 80  # one row of references
    assert count(shown, GREEN) > 9 * 80 * 80  # three distinct jobs
