"""The page of a run, from a run directory made by hand."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contents import CHECKPOINT, GRAPH, MACHINE, MIX, PIPELINE, PLAN, RATIOS
from PIL import Image

from diffopt import text
from diffopt.cli.report import command
from diffopt.errors import ConfigError
from diffopt.files.interval import Interval
from diffopt.report import run_page
from diffopt.report.html import PREVIEW, _templates

PROMPTS = ["a red <kite>", "two apples & a pear", "<script>alert(1)</script>"]
MAGENTA, GREEN = (255, 0, 255), (0, 200, 0)
PSNR = {"title": "PSNR", "unit": "dB", "better": "higher"}
CLIP = {"title": "CLIP score", "unit": "", "better": "higher"}
NOTE = "int8_sq is simulated by the torch runtime: its pictures count, its speed does not"


def stat(mean: float, spread: float = 1.0) -> dict[str, Any]:
    """As of many pictures, though a page here has few."""
    return {"mean": mean, "low": mean - spread, "high": mean + spread, "n": 64}


def artifact(directory: Path, step: str, files: dict[str, Any]) -> None:
    """A step's artifact; a dict is a file of JSON, a tuple a PNG of that colour and side, a number that many bytes."""
    for name, content in {**files, "record.json": record()}.items():
        path = directory / step / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            path.write_text(json.dumps(content))
        elif isinstance(content, tuple):
            Image.new("RGB", (content[1], content[1]), content[0]).save(path)
        else:
            path.write_bytes(bytes(content))


def record() -> dict[str, Any]:
    return {"provenance": {"diffopt": "0.1.0", "packages": {"torch": "2.14"}, "machine": MACHINE, "seconds": 1.5}}


def made(directory: Path, steps: dict[str, str], **content: Any) -> Path:
    """Write run.json with its steps, {name: fingerprint}."""
    rows = [
        {"name": n, "kind": n.split(".")[0], "fingerprint": f, "state": "made", "seconds": 2.0, "inputs": []}
        for n, f in steps.items()
    ]
    config = "model: {family: flux, source: 'asset:tiny'}\nformat: {name: int8_sq, exclude: []}\n"
    whole = {"name": "tiny", "overrides": [], "config": config, "notes": [], "wanted": list(steps)[-1:], "steps": rows}
    (directory / "run.json").write_text(json.dumps({**whole, **content}))
    return directory


def scored(directory: Path, psnr: float = 30.0, side: int = 64, fingerprint: str = "f" * 16, **content: Any) -> Path:
    """A run of the torch runtime: simulated pictures with their metrics, the last prompt's being the worst."""
    directory.mkdir(parents=True, exist_ok=True)
    index = {"images": [{"file": f"{i:03}.png", "prompt": p, "seed": i} for i, p in enumerate(PROMPTS)]}
    about = {"runtime": "torch", "format": "int8_sq", "simulated": True}
    names = [row["file"] for row in index["images"]]
    artifact(directory, "reference", {"images.json": index, **dict.fromkeys(names, (MAGENTA, side))})
    artifact(directory, "sample", {"images.json": {**about, **index}, **dict.fromkeys(names, (GREEN, side))})
    values = [psnr + 1, psnr, psnr - 1]
    metrics = {
        "psnr": {**PSNR, "candidate": stat(psnr), "values": values},
        "clip": {**CLIP, "candidate": stat(80.25), "values": [80, 81, 79.75]}
        | {"reference": stat(82.5), "reference_values": [82, 83, 82.5], "difference": stat(-2.25, 0.5)},
    }
    content_of = {"schema": "diffopt.metrics/1", "prompts": PROMPTS, "metrics": metrics, "difference_gain": 8}
    artifact(directory, "score", {"metrics.json": content_of, **{f"difference/{n}": ((9, 9, 9), side) for n in names}})
    steps = {"reference": "a" * 16, "sample": "b" * 16, "score": fingerprint}
    return made(directory, steps, **{"notes": [NOTE], **content})


def exported(directory: Path, speedup: float | None = None) -> Path:
    """A run with graphs, a plan and, for a number, a timing."""
    directory.mkdir(parents=True, exist_ok=True)
    artifact(directory, "load", {"pipeline.json": PIPELINE})
    artifact(directory, "export.baseline", {"graph.json": {**GRAPH, "format": None, "operators": {}}, "model.onnx": 4096})
    artifact(directory, "export", {"graph.json": {**GRAPH, "operators": {"QuantizeLinear": 3}}, "model.onnx": 1024})
    artifact(directory, "build", {"plan.json": PLAN, "model.plan": 2048})
    steps = {name: name[0] * 16 for name in ("load", "export.baseline", "export", "build")}
    if speedup is None:
        return made(directory, steps)
    side = {"milliseconds_per_step": None, "seconds_per_call": []}
    timed = {
        "runtime": "onnxruntime", "machine": MACHINE, "batch_size": 1, "steps": 20, "warmup": 1, "repeats": 3,
        "baseline": {**side, "seconds_per_image": {"median": 0.3, "p10": 0.29, "p90": 0.31}},
        "candidate": {**side, "seconds_per_image": {"median": 0.3 / speedup, "p10": 0.1, "p90": 0.9}},
        "speedup": {"end_to_end": stat(speedup, 0.1), "per_step": None},
    }  # fmt: skip
    artifact(directory, "time", {"latency.json": timed})
    return made(directory, {**steps, "time": "9" * 16})


def page(directory: Path) -> str:
    return run_page.write(directory).read_text()


def words(html: str) -> str:
    """The page's text without its tags, in ASCII, spaces made one."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html.replace("<wbr>", ""), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(text).translate({0x2013: "-", 0x2212: "-", 0xD7: "x"}))


def test_the_page_fetches_nothing_but_the_pictures_beside_it(tmp_path: Path) -> None:
    html = page(scored(tmp_path))
    targets = re.findall(r"""\s(?:src|href|srcset|action)\s*=\s*["']([^"']*)["']""", html)
    pictures = [t for t in targets if t.endswith(".png")]
    assert len(pictures) == 2 * 3 * len(PROMPTS)  # shown, and linked
    assert all((tmp_path / t).is_file() for t in pictures)
    assert all(t.startswith(("data:", "#")) for t in targets if t not in pictures)
    assert not re.search(r"https?://|//\w+\.\w+/|url\(|@import|<script src|<link rel=.stylesheet|<iframe", html)
    assert "default-src 'none'; img-src data: 'self' file:;" in html  # and the browser is told to see to it


def test_with_inline_the_page_has_the_pictures_in_it_and_links_nothing(tmp_path: Path) -> None:
    html = run_page.write(scored(tmp_path), inline=True).read_text()
    targets = re.findall(r"""\s(?:src|href)\s*=\s*["']([^"']*)["']""", html)
    assert len([t for t in targets if t.startswith("data:image/png;base64,")]) == 3 * len(PROMPTS)
    assert all(t.startswith(("data:", "#")) for t in targets)


def test_every_prompt_is_there_and_escaped(tmp_path: Path) -> None:
    html = page(scored(tmp_path))
    for prompt in ("a red &lt;kite&gt;", "two apples &amp; a pear", "&lt;script&gt;alert(1)&lt;/script&gt;"):
        assert f"<h3>{prompt}</h3>" in html
    assert "<script>alert" not in html


def test_overrides_notes_and_config_are_escaped(tmp_path: Path) -> None:
    html = page(scored(tmp_path, overrides=["x=<i>1"], notes=["<i>2"], config="model: {source: '<i>3'}"))
    assert [html.count(f"&lt;i&gt;{i}") for i in (1, 2, 3)] == [2, 1, 2]
    assert not re.search(r"<i>\d", html)


def test_metrics_are_given_with_interval_unit_reference_and_paired_difference(tmp_path: Path) -> None:
    text = words(page(scored(tmp_path)))
    assert "PSNR 30.0 [29.0, 31.0] compared with it - dB higher 64" in text
    assert "CLIP score 80.2 [79.2, 81.2] 82.5 [81.5, 83.5] -2.25 [-2.75, -1.75] - higher 64" in text


def test_a_few_pictures_are_given_by_their_values_and_no_interval(tmp_path: Path) -> None:
    path = scored(tmp_path) / "score/metrics.json"
    content = json.loads(path.read_text())
    few = {"mean": 30.0, "low": None, "high": None, "n": 3, "values": [31.0, 30.0, 29.0]}
    content["metrics"]["psnr"]["candidate"] = few
    content["metrics"]["clip"]["candidate"] |= {"n": 3}  # as an older version wrote it
    path.write_text(json.dumps(content))
    text = words(page(tmp_path))
    assert "PSNR 30.0 of 31.0, 30.0, 29.0 compared with it - dB higher 3" in text
    assert "CLIP score 80.25 82.5" in text
    assert "Mean over the pictures of the values beside it: fewer than 10 have no interval." in text
    assert run_page.summary(tmp_path)[:2] == ["PSNR        30.0 dB of 31.0, 30.0, 29.0  n=3", "CLIP score  80.25  n=3"]


def test_the_worst_pair_by_the_first_metric_comes_first(tmp_path: Path) -> None:
    html = page(scored(tmp_path))
    titles = re.findall(r"<h3>(.*?)</h3>", html)
    assert titles[:3] == ["&lt;script&gt;alert(1)&lt;/script&gt;", "two apples &amp; a pear", "a red &lt;kite&gt;"]


def test_every_picture_has_an_alternative_text_and_small_ones_are_enlarged_unblurred(tmp_path: Path) -> None:
    tags = re.findall(r"<img src[^>]*>", page(scored(tmp_path)))
    assert len(tags) == 3 * len(PROMPTS)
    assert all(re.search(r'alt="[^"]+ of: [^"]+"', t) and 'class="pixels"' in t for t in tags)


def test_the_gain_of_the_difference_is_said(tmp_path: Path) -> None:
    assert "|candidate - reference| x 8" in words(page(scored(tmp_path)))


def test_simulated_pictures_are_called_so_and_get_no_speed(tmp_path: Path) -> None:
    text = words(page(scored(tmp_path)))
    assert "The pictures are simulated." in text
    assert f"No speed is claimed: {NOTE}." in text
    assert not re.search(r"Speedup|faster|per picture|\d x", text)


def test_what_a_cache_saved_is_said(tmp_path: Path) -> None:
    path = scored(tmp_path / "run") / "sample/images.json"
    assert "The cache answered" not in page(tmp_path / "run")
    saved = {"hits": 280, "misses": 280, "computed": 0.565}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cache": saved}))
    text = words(page(tmp_path / "run"))
    assert "The cache answered 280 of 560 calls that it could, and left out 43.5% of the backbone's arithmetic." in text


def test_real_pictures_are_not_called_simulated(tmp_path: Path) -> None:
    index = json.loads((scored(tmp_path, notes=[]) / "sample/images.json").read_text())
    (tmp_path / "sample/images.json").write_text(json.dumps({**index, "simulated": False}))
    text = words(page(tmp_path))
    assert "simulated" not in text
    assert "No speed is claimed: it was not measured." in text


@pytest.mark.parametrize(("speedup", "said"), [(1.5, "faster than"), (0.7, "slower than"), (1.05, "no difference shown")])
def test_a_timing_is_given_with_its_interval_its_machine_and_what_it_says(tmp_path: Path, speedup: float, said: str) -> None:
    text = words(page(exported(tmp_path, speedup)))
    assert f"{speedup:.2f} [{speedup - 0.1:.2f}, {speedup + 0.1:.2f}] x" in text
    assert said in text
    assert "Test CPU 9000, 2 cores" in text
    assert any(said in line and "Test CPU 9000" in line for line in run_page.summary(tmp_path))


def test_sizes_are_shares_of_the_plain_graph(tmp_path: Path) -> None:
    text = words(page(exported(tmp_path)))
    assert "ONNX graph, plain 4.0 KiB 100.0%" in text
    assert "ONNX graph 1.0 KiB 25.0%" in text
    assert "Engine plan 2.0 KiB 50.0%" in text
    assert "Source backbone 1000 B 24.4%" in text  # 500 parameters of two bytes


def test_the_plans_builder_version_target_and_profiles_are_there(tmp_path: Path) -> None:
    text = words(page(exported(tmp_path)))
    assert "tensorrt_rtx 1.7.1, optimization level 3 target any GPU of 8.9 profiles none" in text


def test_how_many_products_of_a_plan_run_in_which_precision_is_there(tmp_path: Path) -> None:
    exported(tmp_path)
    found = {"products": {"INT8": 40, "FP32": 19}, "quantized_products": 40, "commands": ["tensorrt_rtx --onnx=model.onnx"]}
    artifact(tmp_path, "build", {"plan.json": PLAN | found, "model.plan": 2048, "model.layers.json": 4096})
    text = words(page(tmp_path))
    assert "products of 59 matrix products, 40 of them quantized in the graph: 40 in INT8, 19 in FP32" in text
    assert "Engine plan 2.0 KiB 50.0%" in text  # without the list of its layers
    assert "tensorrt_rtx --onnx=model.onnx" in text
    assert any("40 in INT8, 19 in FP32" in line for line in run_page.summary(tmp_path))


def test_the_parts_of_a_graph_that_is_cut_are_named(tmp_path: Path) -> None:
    ports = {"inputs": ["x"], "outputs": ["out"], "entering": {}, "profile": None}
    parts = [{"file": f"model.{i}.onnx", "reused": i == 1, **ports, "bytes": 1024 * i} for i in range(3)]
    plans = [{"file": f"model.{i}.plan", "bytes": 1024 * i, "profiles": [], "reused": i == 1} for i in range(3)]
    exported(tmp_path)
    graph = GRAPH | {"reused": ["blocks.0", "blocks.1"], "pieces": parts}
    artifact(tmp_path, "export", {"graph.json": graph, "model.0.onnx": 100})
    artifact(tmp_path, "build", {"plan.json": PLAN | {"plans": plans}, "model.0.plan": 100})
    text = words(page(tmp_path))
    assert "export/model.1.onnx 1.0 KiB, not in steps that reuse export/model.2.onnx 2.0 KiB, in every step" in text
    assert "build/model.1.plan 1.0 KiB, not in steps that reuse build/model.2.plan 2.0 KiB, in every step" in text
    assert "reused 2 modules" in text


def test_lineage_has_every_step_with_its_fingerprint_and_state(tmp_path: Path) -> None:
    text = words(page(scored(tmp_path)))
    assert "score wanted score ffffffffffffffff made 2.0 1.5 s" in text
    assert "3 steps: 3 made by this run" in text


def test_an_artifact_that_the_store_lost_is_said_to_be_gone(tmp_path: Path) -> None:
    shutil.rmtree(scored(tmp_path) / "score")
    text = words(page(tmp_path))
    assert "(not in the store any more)" in text
    assert "a red" in text  # the pictures that are left


def test_a_checkpoint_alone_has_a_page(tmp_path: Path) -> None:
    head = CHECKPOINT | {"format": "fp8", "layers": ["a.b", "c.d"]}
    artifact(tmp_path, "quantize", {"checkpoint.json": head, "extremes.safetensors": 100})
    text = words(page(made(tmp_path, {"quantize": "c" * 16})))
    assert "fp8, 8-bit weights" in text
    assert "2 quantized" in text
    assert "No speed is claimed" in text


def test_an_inlined_large_picture_is_shown_smaller_and_the_page_says_so(tmp_path: Path) -> None:
    html = run_page.write(scored(tmp_path, side=PREVIEW + 1), inline=True).read_text()
    assert "data:image/jpeg;base64," in html
    assert "data:image/png" not in html
    assert "Shown smaller than they are" in html


def test_pairs_beyond_the_limit_are_counted_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "SHOWN", 1)
    html = page(scored(tmp_path))
    assert html.count("<h3>") == 1
    assert "The 1 worst are shown" in html


def test_the_summary_has_metrics_size_and_speed(tmp_path: Path) -> None:
    assert run_page.summary(scored(tmp_path / "a")) == [
        "PSNR        30.0 dB [29.0, 31.0]  n=64",
        "CLIP score  80.2 [79.2, 81.2]  n=64",
        f"speed       not claimed: {NOTE}",
    ]
    assert run_page.summary(exported(tmp_path / "b", 1.5)) == [
        "graph  1.0 KiB, 25.0% of the plain graph's 4.0 KiB",
        "plan   2.0 KiB, 50.0% of the plain graph's 4.0 KiB",
        "speed  1.50 [1.40, 1.60] x end to end, faster than its baseline; Test CPU 9000, 2 cores",
    ]


def test_a_single_value_has_no_interval() -> None:
    assert text.with_interval(Interval(33.25, None, None, 1), "dB") == "33.25 dB"


def test_the_command_writes_the_page_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(scored(tmp_path))])
    assert capsys.readouterr().out.splitlines()[-1] == f"report  {tmp_path / 'report.html'}"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("name", "what"), [(".", "has no run.json and no multirun.yaml"), ("none", "is not a directory")])
def test_a_directory_that_is_neither_run_nor_sweep_is_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"^report: {what} \(got '.*'\); name a run or a sweep"):
        command([str(tmp_path / name)])


def test_a_run_json_that_is_broken_is_an_error_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^report: run.json cannot be read \(got "):
        run_page.write(tmp_path)


def test_a_page_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    old = page(scored(tmp_path))
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        run_page.write(scored(tmp_path, psnr=10))
    assert (tmp_path / "report.html").read_text() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_page_has_the_mix_and_the_ratios(tmp_path: Path) -> None:
    artifact(tmp_path, "mix", {"mix.json": MIX})
    ratios = {"ratios": {"transformer": {"once": [0.9876]}}, "deviation": {"transformer": {"once": [0.0123]}}}
    artifact(tmp_path, "ratios", {"ratios.json": RATIOS | ratios})
    text = words(page(made(tmp_path, {"mix": "1" * 16, "ratios": "2" * 16})))
    assert "0 0.9876 \N{PLUS-MINUS SIGN} 0.0123" in text
    assert "blocks.0 fp8" in text


def test_a_page_compiles_no_template_of_what_it_does_not_show(tmp_path: Path) -> None:
    _templates.cache_clear()
    page(scored(tmp_path))
    used = {name for _, name in _templates().cache}
    assert {"run.html", "gallery.html"} <= used
    assert not {"search.html", "sensitivity.html", "sweep.html"} & used


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert page(scored(tmp_path)) == page(tmp_path)


@pytest.mark.parametrize(
    ("made_by", "libraries"), [(scored, ["torch"]), (exported, ["torch", "numpy", "PIL", "matplotlib"])], ids=["plots", "none"]
)
def test_pages_are_written_without_torch_and_without_plots_by_no_library(
    tmp_path: Path, made_by: Any, libraries: list[str]
) -> None:
    code = (
        "import sys; from pathlib import Path; from diffopt.report import run_page; import diffopt.sweep.page; "
        "run_page.write(Path(sys.argv[1])); "
        f"sys.exit(str(set({libraries}) & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made_by(tmp_path))], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def screenshot(file: Path, out: Path, profile: Path, height: int = 2400) -> np.ndarray:
    """The page in a headless Chromium without network, uint8 [height, 1280, 3]; skips where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((b for b in map(shutil.which, names) if b), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
    flags += [f"--window-size=1280,{height}", f"--screenshot={out}", file.resolve().as_uri()]
    subprocess.run([browser, *flags], check=True, capture_output=True)
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=-1) <= 2).sum())


def test_a_browser_shows_the_pictures_enlarged(tmp_path: Path) -> None:
    shown = screenshot(run_page.write(scored(tmp_path / "run")), tmp_path / "page.png", tmp_path / "profile")
    for colour in (MAGENTA, GREEN):  # without the outline of one pixel, still larger than the 64 x 64 that they are
        assert count(shown, colour) > len(PROMPTS) * 100 * 100


def test_the_browser_test_would_see_pictures_that_do_not_load(tmp_path: Path) -> None:
    html = page(scored(tmp_path / "run")).replace('src="', 'src="no')
    (tmp_path / "run" / "broken.html").write_text(html)
    shown = screenshot(tmp_path / "run" / "broken.html", tmp_path / "page.png", tmp_path / "profile")
    assert count(shown, MAGENTA) == count(shown, GREEN) == 0


@pytest.mark.parametrize(
    "estimated", [{}, {"estimated": {}}, {"estimated": {"seconds": 9.0, "peak_bytes": {"gpu": 1}}}], ids=str
)
def test_a_step_is_shown_of_which_nothing_or_something_else_was_estimated(estimated: dict[str, Any], tmp_path: Path) -> None:
    made(tmp_path, {"train": "f" * 16})
    (tmp_path / "train").mkdir()
    kept = {"provenance": record()["provenance"] | {"peak_bytes": {"ram": 1 << 30}} | estimated}
    (tmp_path / "train" / "record.json").write_text(json.dumps(kept))
    assert ("(estimated 9.0 s)" in page(tmp_path)) == ("seconds" in estimated.get("estimated", {}))
