"""Pages on a phone, and on a screen: nothing is cut off at the right, labels are whole, what is looked for comes first."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from contents import BENCHED, CHECKPOINT, EVALUATION, MIX, PARITY, PIPELINE, SEARCH, TRAINED
from sweeps import failed, findings, job, measured
from test_report import artifact, exported, made, page, scored, words

from diffopt.files.evaluation import EvaluationFile
from diffopt.files.json_file import plain
from diffopt.files.sensitivity import SensedLayer, SensitivityFile
from diffopt.report import run_page
from diffopt.report.columns import labelled
from diffopt.report.gallery import SCRIPT, of_evaluation
from diffopt.report.html import render
from diffopt.report.sensitivity_plot import folded
from diffopt.sweep import page as sweep_page

NAMES = [
    "single_transformer_blocks.37.attn.to_added_qkv_of_a_long_name",
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0",
    "transformer_blocks.18.ff_context.net.0.proj",
    "proj_out",
]
DEPLOYED = {
    "schema": "diffopt.deploy/1", "layout": "comfyui", "family": "flux", "format": "fp8", "backbones": ["transformer"],
    "source": "sha256:0", "weights": "pretrained", "dtype": "bfloat16", "layers": {"a": "fp8"}, "share_scales": False,
    "bytes": 700, "versions": {},
}  # fmt: skip
LONG = "eval.prompts=../prompts/a_file_whose_name_takes_more_than_the_width_of_any_phone_that_there_is.txt"
CHECKED = """(width) => {
  const said = (e) => e.tagName + '.' + (e.className.baseVal ?? e.className) + ' ' + (e.getAttribute('aria-label') ?? '');
  const found = [];
  for (const d of document.querySelectorAll('details')) d.open = true;
  if (document.documentElement.scrollWidth > width) found.push('the page: ' + document.documentElement.scrollWidth);
  for (const e of document.body.querySelectorAll('*')) {
    const at = e.getBoundingClientRect();
    if (at.width === 0) continue;
    const scrolls = ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1;
    if (scrolls) found.push(said(e) + ' has ' + e.scrollWidth + ' in ' + e.clientWidth);
    if (!e.parentElement.closest('.scroll') && (at.right > width + 1 || at.left < -1)) found.push(said(e) + ' to ' + at.right);
    const card = e.tagName === 'text' && e.closest('.plot')?.getBoundingClientRect();
    const out = card && (at.left < card.left || at.right > card.right || at.top < card.top || at.bottom > card.bottom);
    if (out) found.push('the text ' + e.textContent.trim() + ' leaves its plot');
  }
  return found;
}"""


def sensed(directory: Path) -> Path:
    rows = [
        SensedLayer(name, "linear", 1 << 20, 9, [1.0] * 20, {f: [0.001 * (i + 1)] * 20 for f in ("int8_sq", "fp8", "nvfp4")})
        for i, name in enumerate(NAMES * 10)
    ]
    rows = [replace(x, name=f"{i}.{x.name}") for i, x in enumerate(rows)]
    content = SensitivityFile(["int8_sq", "fp8", "nvfp4"], 4, 20, 0.5, tuple(rows))
    artifact(directory, "load", {"pipeline.json": PIPELINE})
    artifact(directory, "sense", {"sensitivity.json": plain(content)})
    return made(directory, {"load": "1" * 16, "sense": "5" * 16})


def whole(directory: Path) -> Path:
    """A run that has nearly everything that a page can show, and an override that is long."""
    scored(directory)
    exported(directory, 1.5)
    artifact(directory, "quantize", {"checkpoint.json": CHECKPOINT | {"layers": NAMES}, "extremes.safetensors": 100})
    (directory / "load/layers.json").write_text("[]")
    artifact(directory, "mix", {"mix.json": MIX})
    artifact(directory, "search", {"search.json": SEARCH | {"floor": {"psnr": 30}}})
    layers = [PARITY["layers"][0] | {"name": name} for name in NAMES]
    artifact(directory, "parity", {"parity.json": PARITY | {"layers": layers}})
    artifact(directory, "bench", {"bench.json": BENCHED})
    names = ("load", "quantize", "export.baseline", "export", "build", "mix", "search", "parity", "bench")
    names += ("reference", "sample", "score", "time")
    return made(directory, {name: name[0] * 16 for name in names}, overrides=[LONG])


def swept(directory: Path, alphas: int = 8) -> Path:
    """A full grid of two numbers and a word, timed, and a job that failed with a long error."""
    for i, (format, alpha, size) in enumerate(product(("int8_sq", "fp8"), range(alphas), (8, 16))):
        values = [30 + i + k / 10 for k in range(12)]
        metrics = {"psnr": measured(values), "ssim": measured([v / 1e3 for v in values], title="SSIM", unit="")}
        overrides = [f"calib.alpha=0.{alpha + 1}", f"calib.size={size}", f"format={format}"]
        job(directory / str(i), metrics, overrides=overrides, graph=1000 - i, speedup=1.5 + i / 100)
    failed(directory / "99", "calib.alpha=7", "format=fp8", error=f"no such file: {LONG}")
    return directory


def words_swept(directory: Path) -> Path:
    """Words of no grid: a dot a job, with its settings."""
    for i, name in enumerate(NAMES):
        metrics = {"psnr": measured([30 + i + k / 10 for k in range(12)])}
        job(directory / str(i), metrics, overrides=[f"format.exclude=[{name}]", f"eval.prompts={name}"], graph=1000)
    return directory


def evaluated(directory: Path) -> Path:
    directory.mkdir()
    models = ["full precision", "int8_sq with a name that is long", "nvfp4"]
    stat = {"mean": -0.123456, "low": -0.223456, "high": 0.1, "n": 12}
    metric = {"title": "ImageReward", "unit": "", "better": "higher", "weights": {}, "order": ["a < b " * 30]}
    metric |= {"models": {m: {"stat": stat, "values": [1.0], "verdict": "no difference shown " * 5} for m in models}}
    content = EvaluationFile.of(EVALUATION | {"models": models, "metrics": {str(i): metric for i in range(6)}})
    paths = {m: [None] for m in models}
    shown = of_evaluation(content, paths, directory, 10)
    (directory / "report.html").write_text(render("eval.html", script=SCRIPT, e=content, gallery=shown))
    return directory / "report.html"


PAGES: dict[str, Callable[[Path], Path]] = {
    "run": lambda at: run_page.write(whole(at)),
    "sensitivity": lambda at: run_page.write(sensed(at)),
    "sweep": lambda at: sweep_page.write(findings(swept(at), "psnr=40")),
    "sweep of words": lambda at: sweep_page.write(findings(words_swept(at))),
    "eval": evaluated,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def complaints(browser: Any, file: Path, width: int, style: str = "") -> list[str]:
    """What is cut off or has to be scrolled sideways at this width."""
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.goto(file.resolve().as_uri())
    if style:
        view.add_style_tag(content=style)
    found: list[str] = view.evaluate(CHECKED, width)
    view.close()
    return found


@pytest.mark.parametrize("width", [360, 420])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_a_phone_and_no_label_leaves_its_plot(
    browser: Any, tmp_path: Path, name: str, width: int
) -> None:
    assert complaints(browser, PAGES[name](tmp_path / "at"), width) == []


@pytest.mark.parametrize("name", PAGES)
def test_on_a_screen_only_a_table_scrolls_and_no_label_leaves_its_plot(browser: Any, tmp_path: Path, name: str) -> None:
    found = complaints(browser, PAGES[name](tmp_path / "at"), 1280)
    assert [line for line in found if not line.startswith("DIV.scroll")] == []


def test_the_check_sees_a_plot_and_a_table_that_are_cut(browser: Any, tmp_path: Path) -> None:
    wide = (
        ".plot svg { min-width: 30rem; max-width: none; } [data-stacks] tr { display: table-row !important; min-width: 40rem; }"
    )
    found = complaints(browser, PAGES["run"](tmp_path / "at"), 420, wide)
    assert any(line.startswith("DIV.plot") for line in found)
    assert complaints(browser, tmp_path / "at/report.html", 420, ".plot svg text { font-size: 40px !important; }")


def test_a_table_that_scrolls_has_a_bar_and_keeps_the_jobs_in_sight(tmp_path: Path) -> None:
    html = PAGES["sweep"](tmp_path / "at").read_text()
    assert ".scroll::-webkit-scrollbar { height:" in html
    assert '<table class="held" data-stacks>' in html


# What the cells of a table say where its head is hidden.


def test_every_cell_has_its_columns_heading_without_its_remark() -> None:
    table = (
        "<table><thead><tr><th>Job</th><th>PSNR, dB<br><small>higher is better</small></th><th>a &amp; b</th></tr></thead>"
        "<tbody><tr><th>0</th><td><b>3</b></td><td>&ndash;</td></tr></tbody></table>"
    )
    found = labelled(table)
    assert found.startswith("<table data-stacks>")
    assert '<td data-label="PSNR, dB"><b>3</b></td><td data-label="a &amp; b" data-none>&ndash;</td>' in found


def test_a_cell_over_several_columns_and_a_table_of_two_are_left_as_they_are() -> None:
    rows = '<tbody><tr><th>0</th><td colspan="2">failed</td></tr></tbody></table>'
    assert rows.replace("<th>0", '<th data-label="a">0') in labelled(
        f"<table><thead><tr><th>a</th><th>b</th><th>c</th></tr></thead>{rows}"
    )
    two = "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody></tbody></table>"
    assert labelled(two) == two
    assert labelled("<p>x</p>") == "<p>x</p>"


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_name_is_whole(name: str) -> None:
    assert folded(name).replace("\n", "") == name


# What comes first.


def test_a_run_that_only_sensed_starts_with_its_sensitivity(tmp_path: Path) -> None:
    text = words(page(sensed(tmp_path)))
    assert text.index("Worst layer in nvfp4") < text.index("How far each layer's output") < text.index("Source backbone")
    assert "No speed is claimed" not in text
    assert "not claimed" not in text


def test_a_run_that_also_scored_starts_with_its_metrics(tmp_path: Path) -> None:
    sensed(scored(tmp_path))
    made(tmp_path, dict.fromkeys(("load", "sense", "reference", "sample", "score"), "1" * 16))
    text = words(page(tmp_path))
    assert text.index("compared with it") < text.index("How far each layer's output")
    assert "Worst layer in" not in text


def sizes(html: str) -> list[str]:
    """The forms in the table of sizes, in its order."""
    table = html.split('<h2 id="size">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [words(row).split("</th>")[0].strip() for row in table.split('<th scope="row"')[1:]]


def test_size_leads_with_what_is_deployed_and_ends_with_the_scales(tmp_path: Path) -> None:
    exported(tmp_path)
    artifact(tmp_path, "quantize", {"checkpoint.json": CHECKPOINT, "extremes.safetensors": 100})
    (tmp_path / "load/layers.json").write_text("[]")
    rows = page(tmp_path).split('<h2 id="size">')[1]
    order = ["Engine plan", "ONNX graph", "ONNX graph, plain", "Source backbone", "Checkpoint"]
    places = [rows.index(f">{name}</th>") for name in order]
    assert places == sorted(places)


def test_a_checkpoint_alone_is_told_by_the_weights_that_would_be_deployed(tmp_path: Path) -> None:
    artifact(tmp_path, "load", {"pipeline.json": PIPELINE})
    (tmp_path / "load/layers.json").write_text(json.dumps([{"name": "a", "kind": "linear", "shape": [20, 20]}]))
    head = CHECKPOINT | {"format": "fp8", "layers": ["a"]}
    artifact(tmp_path, "quantize", {"checkpoint.json": head, "extremes.safetensors": 100})
    made(tmp_path, {"load": "1" * 16, "quantize": "2" * 16})
    text = words(page(tmp_path))
    assert (
        "Weights as stored 600 B 1 layers to 8-bit weights 60.0% of the source, 1000 B" in text
    )  # 400 of one byte, 100 of two
    assert text.index("Weights as stored") < text.index("Checkpoint")
    assert run_page.summary(tmp_path)[0].startswith(
        "weights  600 B, 60.0% of the source's 1000 B; as its kernels would keep them"
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (900, "int8_sq, 900 B of weights and 1.1 KiB of tensorrt_rtx's code for the operators; so it is larger than its graph"),
        (2040, "Engine plan 2.0 KiB 50.0% int8_sq ONNX graph"),
    ],
)
def test_a_plan_that_is_larger_than_its_source_says_why(tmp_path: Path, weights: int, said: str) -> None:
    exported(tmp_path)
    graph = tmp_path / "export/graph.json"
    graph.write_text(json.dumps(json.loads(graph.read_text()) | {"bytes": weights}))
    assert said in words(page(tmp_path))


@pytest.mark.parametrize(
    ("head", "files", "said"),
    [
        ({}, ("extremes", "quantizers"), "scales and extremes, no weights"),
        ({}, ("quantizers",), "scales, no weights"),
        ({"rank": 32}, ("quantizers",), "scales and low-rank parts, no weights"),
        ({"rounding": "gptq"}, ("extremes", "quantizers"), "scales and extremes, with the codes of its weights"),
    ],
)
def test_a_checkpoint_is_told_by_what_it_has(tmp_path: Path, head: dict[str, Any], files: tuple[str, ...], said: str) -> None:
    artifact(tmp_path, "load", {"pipeline.json": PIPELINE})
    (tmp_path / "load/layers.json").write_text("[]")
    there = {f"{name}.safetensors": 100 for name in files}
    artifact(tmp_path, "quantize", {"checkpoint.json": CHECKPOINT | head, **there})
    made(tmp_path, dict.fromkeys(("load", "quantize"), "1" * 16))
    text = words(page(tmp_path))
    assert f"only what differs from the source: {said}" in text
    assert "Trained checkpoint" not in text
    artifact(tmp_path, "train", {"checkpoint.json": CHECKPOINT | head, "weights.safetensors": 5000, **there})
    (tmp_path / "train/logs").mkdir()
    (tmp_path / "train/logs/events.out").write_bytes(bytes(3000))
    made(tmp_path, dict.fromkeys(("load", "quantize", "train"), "1" * 16))
    assert f"Trained checkpoint {(5000 + 100 * len(files)) / 1024:.1f} KiB" in words(page(tmp_path))


@pytest.mark.parametrize(
    ("single", "drawn", "said"),
    [
        ((0.4, 0.3, 0.2), (), "loss 0.4000 in the first of 3 steps, 0.2000 in the last validation"),
        (
            (0.4, 0.3),
            (0.03, 0.02, 0.01),
            "loss 0.4000 in the first of 2 steps, 0.3000 in the last loss of whole drawings 0.0300 in the first of 3 steps, "
            "0.0100 in the last validation",
        ),
        (
            (),
            (0.03,),
            "3 items of 3 prompts loss of whole drawings 0.0300 in the first of 1 steps, 0.0300 in the last validation",
        ),
    ],
)
def test_losses_of_single_calls_and_of_whole_drawings_are_told_apart(
    tmp_path: Path, single: tuple[float, ...], drawn: tuple[float, ...], said: str
) -> None:
    losses: list[dict[str, float]] = [{"loss": x, "output": x} for x in single]
    losses += [{"loss": x, "trajectory": x} for x in drawn]
    artifact(tmp_path, "load", {"pipeline.json": PIPELINE})
    (tmp_path / "load/layers.json").write_text("[]")
    artifact(tmp_path, "train", {"checkpoint.json": CHECKPOINT, "training.json": TRAINED | {"losses": losses}})
    made(tmp_path, dict.fromkeys(("load", "train"), "1" * 16))
    assert said in words(page(tmp_path))


def test_weights_for_other_programs_are_what_is_deployed(tmp_path: Path) -> None:
    artifact(tmp_path, "load", {"pipeline.json": PIPELINE})
    artifact(tmp_path, "quantize", {"checkpoint.json": CHECKPOINT, "extremes.safetensors": 100})
    artifact(tmp_path, "deploy", {"deploy.json": DEPLOYED, "transformer.safetensors": 700})
    made(tmp_path, dict.fromkeys(("load", "quantize", "deploy"), "1" * 16))
    text = words(page(tmp_path))
    assert "Weights as stored" not in text
    assert text.index("Deployed weights") < text.index("Source backbone") < text.index("only what differs")
    assert "fp8, the rest in bfloat16, as comfyui lays it out" in text
    assert run_page.summary(tmp_path)[0].startswith("deployed  ")
