"""The main job as a user runs it: whole processes, on the embedded model, in directories of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integer_kernels import integer_products
from test_report import screenshot, words
from tiny import EMOJI

from diffopt.artifact import OnnxGraph
from diffopt.files.latency import LatencyFile
from diffopt.machine import environment
from diffopt.report import run_page
from diffopt.store import assets
from diffopt.text import pace

SMALL = ("eval.size=4", "eval.steps=6", "eval.repeats=5", "calib.size=12")
"""The quickstart with fewer pictures. Twelve prompts are a whole chunk and half a one."""


def diffopt(where: Path, *arguments: str, code: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    where.mkdir(parents=True, exist_ok=True)
    call = ["-c", code] if code else ["-m", "diffopt"]
    env = {**os.environ, **variables}
    done = subprocess.run([sys.executable, *call, *arguments], cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def last_run(where: Path, name: str = "quickstart") -> Path:
    return sorted((where / "outputs/runs" / name).iterdir())[-1]


def steps(run: Path) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in json.loads((run / "run.json").read_text())["steps"]}


@pytest.fixture(scope="module")
def recipe() -> tuple[str, ...]:
    """Without an engine builder the plan is left out, as the refusal advises."""
    return ("+recipe=quickstart", *SMALL, *(() if environment.tensorrt() else ("export=onnx",)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, recipe: tuple[str, ...]) -> Path:
    """Where a run has finished."""
    where = tmp_path_factory.mktemp("first")
    diffopt(where, *recipe)
    return where


@pytest.mark.matrix  # test_killed.py has a smaller one
def test_a_killed_run_loses_nothing_that_was_finished(recipe: tuple[str, ...], tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-m", "diffopt", *recipe], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("observe.0"):  # finished; the next step has begun
            run.send_signal(signal.SIGKILL)
            break
    run.wait()
    run.stdout.close()
    diffopt(tmp_path, *recipe)
    states = {n: s["state"] for n, s in steps(last_run(tmp_path)).items()}
    assert states["load"] == states["embed.0"] == states["observe.0"] == "cached"
    assert states["observe.1"] == states["score"] == "made"


def test_a_run_has_its_files_where_its_user_looks(first: Path) -> None:
    run = last_run(first)
    wanted = ["export/model.onnx", "sample/000.png", "score/metrics.json", "time/latency.json", "report.html", "diffopt.log"]
    assert [name for name in wanted if not (run / name).is_file()] == []
    assert not environment.tensorrt() or (run / "build/model.plan").stat().st_size > 1_000_000


def test_whatever_is_copied_out_of_the_store_is_loaded_by_the_lines_that_are_printed(first: Path, tmp_path: Path) -> None:
    said = {
        kept: diffopt(first, "store", "export", f"{kept.parent.name}/{kept.name}", str(tmp_path / kept.name)).stdout
        for kept in (first / "outputs/store").glob("*/*")
        if (kept / "record.json").is_file()
    }
    code = {kept: [line.strip() for line in text.splitlines() if line.startswith("    ")] for kept, text in said.items()}
    assert {kept.parent.name for kept, lines in code.items() if 0 < len(lines) <= 5} >= {
        "checkpoint",
        "onnx",
        "images",
        "metrics",
    }
    assert not [kept for kept, lines in code.items() if not 0 < len(lines) <= 5]
    loads = [lines for kept, lines in code.items() if kept.parent.name != "engine"]  # which needs a GPU
    diffopt(tmp_path, code="\n".join(f"exec({chr(10).join(lines)!r}, {{}})" for lines in loads))


def test_the_list_of_the_store_names_the_recipe_and_the_model_of_each(first: Path) -> None:
    rows = [line.split() for line in diffopt(first, "store", "ls").stdout.splitlines()[1:-1]]
    assert len(rows) > 12
    assert not [row for row in rows if row[-2] != "asset:emoji/emoji-flux" or row[-1] != "quickstart"]


def test_a_second_run_makes_nothing_and_imports_no_large_library(first: Path, recipe: tuple[str, ...]) -> None:
    large = {"torch", "diffusers", "transformers", "modelopt", "onnx", "onnxruntime", "matplotlib", "numpy", "scipy", "PIL"}
    code = f"import sys; from diffopt.cli.main import main; main(); sys.exit(' '.join({large} & set(sys.modules)) or 0)"
    diffopt(first, *recipe, code=code)
    assert {s["state"] for s in steps(last_run(first)).values()} == {"cached"}


@pytest.mark.matrix
def test_another_store_gets_the_same_fingerprints_and_bytes(first: Path, recipe: tuple[str, ...], tmp_path: Path) -> None:
    diffopt(tmp_path, *recipe)
    ours, theirs = last_run(first), last_run(tmp_path)
    assert {n: s["fingerprint"] for n, s in steps(ours).items()} == {n: s["fingerprint"] for n, s in steps(theirs).items()}
    compared = 0
    for step in ("observe.0", "observe.1", "merge", "quantize", "export", "export.baseline", "reference", "sample", "score"):
        for file in (ours / step).rglob("*"):
            if file.is_file() and file.name != "record.json":
                assert file.read_bytes() == (theirs / step / file.relative_to(ours / step)).read_bytes(), f"{step}/{file.name}"
                compared += 1
    assert compared > 20


@pytest.mark.matrix
def test_a_step_starts_with_no_model_of_an_earlier_one(tmp_path: Path) -> None:
    code = """
import sys, weakref
import diffopt.pipeline.open, diffopt.jobs.runner
from diffopt.cli.main import main

opened, found, make = [], [], diffopt.jobs.runner._make
plain = diffopt.pipeline.open.open_backbone

def open_backbone(*given):
    module = plain(*given)
    opened.append(weakref.ref(module))
    return module

def counted(step, *given):
    found.append((step.name, sum(x() is not None for x in opened)))
    make(step, *given)

diffopt.pipeline.open.open_backbone, diffopt.jobs.runner._make = open_backbone, counted
main(sys.argv[1:])
assert len(opened) == 3, opened  # observe, quantize and export have each opened one
assert not any(n for _, n in found), found
"""
    picks = ("model=emoji_flux", "format=int8_sq", "calib=emoji", "calib.size=2", "calib.n_steps=2", "export=onnx")
    diffopt(tmp_path, *picks, code=code)


def test_quality_and_size_are_what_int8_gives(first: Path) -> None:
    run = last_run(first)
    metrics = json.loads((run / "score/metrics.json").read_text())["metrics"]
    assert metrics["psnr"]["candidate"]["mean"] > 35  # 44.9 over the 64 prompts of the recipe
    assert abs(metrics["clip"]["difference"]["mean"]) < 1
    graph, plain = (run / step / "model.onnx" for step in ("export", "export.baseline"))
    if environment.tensorrt():
        plan = (run / "build/model.plan").stat().st_size
        assert plan < 0.5 * plain.stat().st_size  # 0.44; weights of 32 bits would be 1.1 of it
    assert graph.stat().st_size < plain.stat().st_size / 3


def test_a_broken_gate_fails_the_run_and_keeps_all_that_it_made(first: Path, recipe: tuple[str, ...]) -> None:
    arguments = [sys.executable, "-m", "diffopt", *recipe, "+eval.gates.psnr=90", "+eval.gates.clip=-50%"]
    done = subprocess.run(arguments, cwd=first, capture_output=True, text=True)
    run = last_run(first)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("eval.gates.psnr: is not reached (got ")
    assert line.endswith(f"asked psnr: 90); everything made is kept in {run.relative_to(first)}")
    assert {s["state"] for s in steps(run).values()} == {"cached"}
    assert "is broken" in (run / "report.html").read_text()


def test_the_score_says_what_the_paired_difference_shows(first: Path) -> None:
    found = json.loads((last_run(first) / "score/metrics.json").read_text())["metrics"]
    assert found["clip"]["verdict"].startswith("too few to call at n=4: ")
    assert found["psnr"]["verdict"].startswith("distance from the reference at n=4: ")


def test_every_product_that_int8_quantizes_runs_by_an_integer_kernel(first: Path, tmp_path: Path) -> None:
    graph = OnnxGraph((last_run(first) / "export").resolve(), "graph")
    assert integer_products(graph, tmp_path) == graph.json("graph.json")["quantized_products"] == 2 * 14 + 6 * 6


def test_both_sides_are_timed_in_turn_and_the_speedup_is_that_of_their_calls(first: Path) -> None:
    latency = json.loads((last_run(first) / "time/latency.json").read_text())
    assert latency["machine"]["cpu"]
    assert {n: latency[n] for n in ("runtime", "batch_size", "steps", "repeats")} == {
        "runtime": "onnxruntime", "batch_size": 1, "steps": 6, "repeats": 5
    }  # fmt: skip
    calls = {}
    for side in ("baseline", "candidate"):
        calls[side] = latency[side]["seconds_per_call"]
        assert len(calls[side]) == 5
        assert latency[side]["seconds_per_image"]["median"] == pytest.approx(sorted(calls[side])[2], abs=1e-6)
        assert {*latency[side]["milliseconds_per_step"]} == {"median", "p10", "p90"}
    ratios = [theirs / ours for theirs, ours in zip(calls["baseline"], calls["candidate"], strict=True)]
    assert latency["speedup"]["end_to_end"]["mean"] == pytest.approx(sum(ratios) / 5, rel=1e-3)
    assert [latency["speedup"][part]["n"] for part in ("end_to_end", "per_step")] == [5, 5]


def test_the_page_and_the_console_say_whether_it_is_faster_or_slower_than_its_baseline(first: Path) -> None:
    run = last_run(first)
    speedup = LatencyFile.read(run / "time").speedup
    assert speedup is not None
    said = pace(speedup.end_to_end)
    (line,) = [x for x in run_page.summary(run) if x.startswith("speed")]
    assert f" x end to end, {said}; " in line
    assert f"its baseline's speed: {said}." in words((run / "report.html").read_text())


def test_a_larger_calibration_set_reuses_the_chunks_of_a_smaller_one(first: Path) -> None:
    said = diffopt(first, "plan", "+recipe=quickstart", *SMALL, "calib.size=16", "export=onnx").stdout
    states = {line.split()[0]: " ".join(line.split()[2:4]) for line in said.partition("\n\n")[0].splitlines()}
    assert states["observe.0"] == "cached"
    assert states["observe.1"] == "to run"  # it was made of four prompts, and is now of eight


def test_a_plan_says_why_a_step_would_run_again(first: Path) -> None:
    said = diffopt(first, "plan", "+recipe=quickstart", *SMALL, "calib.alpha=0.7", "export=onnx").stdout
    rows = {line.split()[0]: line for line in said.splitlines() if line[:1].strip()}
    assert "calib.alpha 0.2 -> 0.7" in rows["quantize"]
    assert "new quantize" in rows["export"]
    assert "cached" in rows["merge"]


@pytest.mark.matrix
def test_a_file_changed_by_hand_is_refused_and_can_be_made_again(first: Path, recipe: tuple[str, ...]) -> None:
    graph = (last_run(first) / "export/model.onnx").resolve()
    content = graph.read_bytes()
    graph.chmod(0o644)
    graph.write_bytes(content[:-1])
    refused = subprocess.run([sys.executable, "-m", "diffopt", *recipe], cwd=first, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "model.onnx" in refused.stderr
    assert "store verify --drop" in refused.stderr
    diffopt(first, "store", "verify", "--drop")
    diffopt(first, *recipe)
    assert steps(last_run(first))["export"]["state"] == "made"
    assert (last_run(first) / "export/model.onnx").read_bytes() == content


@pytest.mark.matrix
def test_nothing_is_made_from_an_input_whose_bytes_were_changed(first: Path) -> None:
    stats = (last_run(first) / "merge/extremes.safetensors").resolve()
    content = stats.read_bytes()
    stats.chmod(0o644)
    stats.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    call = [sys.executable, "-m", "diffopt", "model=emoji_flux", "format=int8_sq", "calib=emoji", SMALL[3], "calib.alpha=0.3"]
    refused = subprocess.run(call, cwd=first, capture_output=True, text=True)
    stats.write_bytes(content)
    assert refused.returncode == 1
    assert "calib-stats" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_report_of_a_run_whose_artifacts_are_gone_keeps_its_page(first: Path) -> None:
    run = last_run(first)
    page = (run / "report.html").read_bytes()
    scores = (run / "score").resolve()
    kept = scores.rename(first / "scores")
    call = [sys.executable, "-m", "diffopt", "report", str(run)]
    refused = subprocess.run(call, cwd=first, capture_output=True, text=True)
    kept.rename(scores)
    assert refused.returncode == 1
    assert "score" in refused.stderr
    assert (run / "report.html").read_bytes() == page


@pytest.mark.matrix
def test_a_model_whose_weights_cannot_be_read_is_refused_in_a_line(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(assets.locate(EMOJI), model)
    for weights in (model / "transformer").glob("*.safetensors"):
        os.truncate(weights, 5000)
    call = [sys.executable, "-m", "diffopt", f"model.source={model}", "+recipe=emoji_fp8", "eval.size=1", "export=null"]
    refused = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "model.source: cannot be read" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_dropped_chunks_are_not_made_again_for_their_own_sake(first: Path, recipe: tuple[str, ...]) -> None:
    chunk = (last_run(first) / "observe.0").resolve()
    kept = chunk.rename(first / "kept")
    diffopt(first, *recipe)
    kept.rename(chunk)
    assert steps(last_run(first))["observe.0"]["state"] == "spare"


@pytest.mark.matrix
def test_a_grid_observes_each_chunk_once_and_its_page_has_every_job(tmp_path: Path) -> None:
    said = diffopt(tmp_path, "+recipe=emoji_int8_grid", "eval.size=2", "eval.steps=2", "eval.metrics=[psnr]").stdout
    (sweep,) = (tmp_path / "outputs/sweeps/emoji_int8_grid").iterdir()
    jobs = sorted(p.parent for p in sweep.rglob("run.json"))
    assert len(jobs) == 6
    made = [
        s["fingerprint"] for job in jobs for s in steps(job).values() if s["kind"] == "calib-chunk" and s["state"] == "made"
    ]
    assert len(made) == len(set(made)) == 2
    assert (sweep / "report.html").is_file()
    assert "6 jobs, 6 distinct" in said


def test_the_report_shows_its_pictures_in_a_browser(first: Path, tmp_path: Path) -> None:
    page = last_run(first) / "report.html"
    seen = screenshot(page, tmp_path / "shot.png", tmp_path / "profile", 4000)
    # The first prompt is a red apple, the second a banana; the page itself has no such colours.
    red = (seen[..., 0] > 180) & (seen[..., 1] < 70) & (seen[..., 2] < 70)
    yellow = (seen[..., 0] > 230) & (seen[..., 1] > 200) & (seen[..., 2] < 120)
    assert red.sum() > 500
    assert yellow.sum() > 500


def test_a_page_without_its_pictures_would_be_noticed(first: Path, tmp_path: Path) -> None:
    broken = last_run(first) / "broken.html"
    broken.write_text((last_run(first) / "report.html").read_text().replace('src="', 'src="no'))
    seen = screenshot(broken, tmp_path / "shot.png", tmp_path / "profile", 4000)
    assert ((seen[..., 0] > 230) & (seen[..., 1] > 200) & (seen[..., 2] < 120)).sum() < 50
