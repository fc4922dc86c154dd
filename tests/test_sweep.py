"""The page of a sweep, from job directories made by hand."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import sweeps
from contents import GRAPH
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from test_report import GREEN, MAGENTA, artifact, count, exported, scored, screenshot, words

from diffopt.cli.main import main
from diffopt.cli.report import command
from diffopt.errors import ConfigError, DiffoptError
from diffopt.quality import floor
from diffopt.report import run_page
from diffopt.sweep import job_table, page, ranking
from diffopt.sweep.callback import WriteReport
from diffopt.sweep.findings import Findings


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


def written(directory: Path, *floors: str) -> str:
    """The sweep's page."""
    return page.write(Findings(directory, floor.floors(floors))).read_text()


def rows(html: str) -> list[str]:
    """The text of each row of the table of jobs."""
    body = html.split('<h2 id="jobs">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [words(r).strip() for r in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]


def config(directory: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(directory)}, "job": {"num": 3}}})


def test_a_row_for_every_job_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert [r.job for r in job_table.table(swept(tmp_path))] == ["0", "1", "2", "3", "4", "10"]


def test_only_swept_keys_are_columns(tmp_path: Path) -> None:
    assert job_table.swept(job_table.table(swept(tmp_path))) == ["calib.alpha"]
    html = written(tmp_path)
    assert rows(html)[0].startswith("0 as good? 0.0 30.0 [29.0, 31.0]")


def test_a_key_that_a_job_did_not_override_has_the_recipes_value(tmp_path: Path) -> None:
    for job, overrides in (("0", []), ("1", ["format.name=fp8"])):
        scored(tmp_path / job, fingerprint=job * 16, overrides=overrides)
    assert [r.value("format.name") for r in job_table.table(tmp_path)] == ["int8_sq", "fp8"]


def test_jobs_with_equal_fingerprints_fell_together(tmp_path: Path) -> None:
    assert [r.duplicate_of for r in job_table.table(swept(tmp_path))] == [None, "0", None, None, None, None]
    html = written(tmp_path)
    assert "fell together with 0" in rows(html)[1]
    assert "6 jobs are 3 distinct ones, 2 failed" in words(html)


def test_a_failed_job_is_shown_with_its_error_and_overrides(tmp_path: Path) -> None:
    html = written(swept(tmp_path))
    assert rows(html)[3] == "3 failed 7 calib.alpha: must be at most 1 (got <7>); lower it"
    assert "stopped without a result" in rows(html)[4]


def test_the_best_job_is_highlighted_once(tmp_path: Path) -> None:
    html = written(swept(tmp_path))
    assert [r.split()[:2] for r in rows(html) if " best " in r] == [["2", "best"]]


def test_the_best_of_a_metric_where_lower_is_better_is_the_lowest(tmp_path: Path) -> None:
    for path in swept(tmp_path).glob("*/score/metrics.json"):
        path.write_text(path.read_text().replace('"better": "higher"', '"better": "lower"'))
    top = ranking.best(job_table.table(tmp_path))
    assert top is not None
    assert top.job == "10"


def test_a_timed_sweep_gives_size_time_and_speedup(tmp_path: Path) -> None:
    exported(tmp_path / "0", 1.5)
    exported(tmp_path / "1", 0.5)
    html = written(tmp_path)
    assert "1.0 KiB 200.0 1.50 [1.40, 1.60] x" in rows(html)[0]
    assert 'class="bad"' in html  # the second is slower


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ((1.5, 1.005, 1.1), ""),  # within 1% of 1 nothing is shown
        ((1.5, 0.7, 1.1), "job 1 is slower than its baseline"),
        ((0.9, 0.7, 1.1), "jobs 0, 1 are slower than their baselines"),
    ],
)
def test_jobs_that_are_slower_than_their_baselines_are_named(tmp_path: Path, speedups: tuple[float, ...], said: str) -> None:
    for i, speedup in enumerate(speedups):
        sweeps.job(tmp_path / str(i), sweeps.psnr(35.0), graph=i + 1, speedup=speedup, overrides=[f"calib.alpha=0.{i}"])
    found = Findings(tmp_path, [])
    assert [x for x in page.summary(found) if x.startswith("speed")] == ([f"speed   {said}"] if said else [])
    text = words(written(tmp_path))
    assert f" {said[:1].upper()}{said[1:]}. " in text if said else "slower than" not in text


def test_results_are_there_as_data(tmp_path: Path) -> None:
    written(swept(tmp_path))
    with (tmp_path / "results.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert [(x["job"], x["calib.alpha"], x["metrics.psnr.mean"]) for x in lines[2:4]] == [("2", "0.2", "35.0"), ("3", "7", "")]
    jobs = json.loads((tmp_path / "results.json").read_text())["jobs"]
    assert jobs[2]["metrics"]["psnr"] == {"mean": 35.0, "low": 34.0, "high": 36.0, "n": 64}
    assert jobs[1]["fell_together_with"] == "0"
    assert jobs[3]["error"].startswith("calib.alpha:")


def test_results_have_sizes_seconds_speedup_front_and_floors(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 30.0, 1024), ("1", 40.0, 4096), ("2", 20.0, 4096)):
        sweeps.job(tmp_path / name, sweeps.psnr(mean), graph=graph, speedup=1.5, overrides=[f"calib.alpha=0.{name}"])
    sweeps.job(tmp_path / "3", sweeps.psnr(30.0), same_as="0", graph=1024, overrides=["calib.alpha=0.3"])
    written(tmp_path, "psnr=25")
    found = json.loads((tmp_path / "results.json").read_text())
    jobs = found["jobs"]
    assert [(j["bytes"]["graph"], j["front"]["size"], j["best"]) for j in jobs[:3]] == [
        (1024, True, False),
        (4096, True, True),
        (4096, False, False),
    ]
    assert jobs[3]["front"] == jobs[0]["front"]  # what is said of a job holds for the same job
    assert jobs[0]["speedup"]["mean"] == 1.5
    assert jobs[0]["seconds"] == {"image": pytest.approx(0.4 / 1.5), "alone": 4.5, "spent": 4.5}
    assert jobs[2]["floors"]["psnr=25"]["says"] == "broken"
    assert found["picks"] == [{"by": "size", "job": "0", "shown": True}]
    with (tmp_path / "results.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert [x["front.size"] for x in lines] == ["True", "True", "False", "True"]
    assert (lines[0]["floors.psnr=25.says"], lines[0]["bytes.graph"], lines[3]["fell_together_with"]) == ("kept", "1024", "0")


def test_the_pictures_are_those_of_the_front_and_the_best(tmp_path: Path) -> None:
    for name, mean, graph in (("0", 30.0, 1024), ("1", 40.0, 4096), ("2", 20.0, 4096)):
        scored(tmp_path / name, mean, fingerprint=name * 16, overrides=[f"calib.alpha=0.{name}"])
        artifact(tmp_path / name, "export", {"graph.json": GRAPH, "model.onnx": graph})
    html = written(tmp_path)
    assert set(re.findall(r'alt="job (\d) of', html)) == {"0", "1"}


def test_where_every_job_has_one_size_that_is_said(tmp_path: Path) -> None:
    for name, mean in (("0", 30.0), ("1", 40.0)):
        sweeps.job(tmp_path / name, sweeps.psnr(mean), graph=2048, overrides=[f"calib.alpha=0.{name}"])
    text = words(written(tmp_path))
    assert "Size of the ONNX graph is 2.000 KiB in every job: there is nothing to trade for it." in text
    assert "Pareto" not in text


def test_plots_are_inlined_with_their_text(tmp_path: Path) -> None:
    html = written(swept(tmp_path))
    drawn = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    assert drawn
    assert ">PSNR, dB</text>" in drawn[0]
    assert "<image" not in "".join(drawn)


def test_what_the_store_lost_is_said(tmp_path: Path) -> None:
    shutil.rmtree(swept(tmp_path) / "2/score")
    assert "The store has parts of 1 job no more (2)" in words(written(tmp_path))


def test_the_page_fetches_nothing_and_links_the_jobs_pages(tmp_path: Path) -> None:
    run_page.write(swept(tmp_path) / "2")
    html = written(tmp_path)
    targets = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html)
    assert [t for t in targets if not t.startswith(("data:", "#"))] == ["2/report.html"]
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_a_sweep_in_which_every_job_failed_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0/error.txt").write_text("model: none")
    assert "0 failed model: none" in words(written(tmp_path))


def test_the_command_writes_the_pages_of_the_sweep_and_of_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(swept(tmp_path))])
    assert all((tmp_path / name / "report.html").is_file() for name in ("", "0", "10"))
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("sweep   6 jobs, 3 distinct, 2 failed; 5 artifacts made")
    assert out[-2].startswith("best    PSNR 35.0 dB [34.0, 36.0], job 2: calib.alpha=0.2; the sample does not tell it apart")
    assert out[-1] == f"report  {tmp_path / 'report.html'}"


def test_the_command_says_what_to_ship_under_the_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(swept(tmp_path)), "--floor", "psnr=30", "--floor", "clip=-5%"])
    said = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("floor"))
    assert "job whose mean keeps psnr=30 and clip=-5%: job 2 (calib.alpha=0.2)" in said  # 3 pictures
    assert "keeps psnr=30 and clip=-5%: job 2 (calib.alpha=0.2)" in words((tmp_path / "report.html").read_text())


@pytest.mark.parametrize(("floor", "wrong"), [("fid=3", "no job measured it"), ("psnr>3", "cannot be read")])
def test_a_floor_that_cannot_be_judged_is_refused_and_the_page_is_left(tmp_path: Path, floor: str, wrong: str) -> None:
    before = written(swept(tmp_path))
    with pytest.raises(ConfigError, match=f"^floor: {wrong} \\(got .*{floor}.*\\); "):
        command([str(tmp_path), "--floor", floor])
    assert (tmp_path / "report.html").read_text() == before


def test_a_floor_for_a_single_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^floor: chooses among the jobs of a sweep \(got the run '.*/2'\); drop it$"):
        command([str(swept(tmp_path) / "2"), "--floor", "psnr=3"])


def test_the_floor_that_a_sweep_was_given_is_the_reports_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (swept(tmp_path) / "multirun.yaml").write_text("hydra: {callbacks: {sweep: {floor: {psnr: 33, clip: -5%}}}}")
    WriteReport({"psnr": 33, "clip": "-5%"}).on_multirun_end(config(tmp_path))
    command([str(tmp_path)])
    assert capsys.readouterr().out.count("floor   best job whose mean keeps psnr=33 and clip=-5%: job 2") == 2


def test_a_floor_that_is_none_stops_a_sweep_before_it_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(
            ["+recipe=emoji_int8_sq", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}", "hydra.callbacks.sweep.floor=['psnr=a']"]
        )
    assert capsys.readouterr().err.startswith("floor: is not a limit (got 'psnr=a'); write a mean such as 20, or")
    assert not (tmp_path / "0").exists()


def test_a_floor_under_a_metric_that_was_not_measured_costs_the_sweep_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WriteReport({"fid": 3}).on_multirun_end(config(swept(tmp_path)))
    assert "floor: no job measured it (got fid=3); there are psnr, clip" in capsys.readouterr().out
    assert "Best job" in (tmp_path / "report.html").read_text()


def test_the_callback_writes_the_page_and_prints_its_path_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WriteReport().on_multirun_end(config(swept(tmp_path)))
    assert capsys.readouterr().out.count(str(tmp_path / "report.html")) == 1
    assert (tmp_path / "report.html").is_file()


def test_a_sweep_that_was_interrupted_has_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WriteReport, "_running", (WriteReport(), config(swept(tmp_path))))
    WriteReport.close()
    assert "stopped without a result" in (tmp_path / "report.html").read_text()


def test_a_sweep_that_was_interrupted_before_its_first_job_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(WriteReport, "_running", (WriteReport(), config(tmp_path / "new")))
    WriteReport.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_which_jobs_failed_is_told_so_when_it_is_over(tmp_path: Path) -> None:
    WriteReport().on_multirun_end(config(swept(tmp_path)))
    with pytest.raises(DiffoptError, match=r"2 of 6 jobs failed \(got of job 3: calib.alpha: must be at most 1"):
        WriteReport.check()


def test_a_browser_shows_the_small_pictures(tmp_path: Path) -> None:
    shown = screenshot(page.write(Findings(swept(tmp_path / "sweep"), [])), tmp_path / "page.png", tmp_path / "profile")
    assert count(shown, MAGENTA) > 3 * 80 * 80  # one row of references
    assert count(shown, GREEN) > 9 * 80 * 80  # three distinct jobs
