"""The gallery: how pairs are ranked, and what its script does in a headless Chromium, from the file system."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, until
from PIL import Image
from test_report import GREEN, MAGENTA, PROMPTS, scored

from diffopt.files.evaluation import EvaluatedMetric, EvaluationFile, ModelResult
from diffopt.files.interval import Interval
from diffopt.files.metrics import MetricResult
from diffopt.report import run_page
from diffopt.report.gallery import of_evaluation, of_run, ranks
from diffopt.report.plots.differences import differences
from diffopt.report.run_directory import Run

KITE, APPLES, SCRIPT = PROMPTS
Open = Callable[..., Any]
BOTH = "[...document.querySelectorAll('#stage img')].every((i) => i.complete && i.naturalWidth)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens a page without a network; any error of the script or of the page's own policy fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True, reduced_motion="reduce")
    complaints: list[str] = []

    def open_page(file: Path) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(file.resolve().as_uri())
        return page

    yield open_page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose worst pair is the last prompt's."""
    return run_page.write(scored(tmp_path_factory.mktemp("run")))


def prompts(page: Any) -> list[str]:
    """Those that can be seen, in order."""
    return [t for t in page.locator("#pairs h3:visible").all_text_contents() if t]


def share(page: Any, colour: tuple[int, int, int]) -> float:
    """Of the viewer's stage."""
    pixels = np.asarray(Image.open(BytesIO(page.locator("#stage").screenshot())).convert("RGB")).astype(int)
    return float((np.abs(pixels - colour).max(-1) <= 2).mean())


def look(page: Any, kind: str = "candidate") -> None:
    """Click on the first pair in sight, and wait for both of the viewer's."""
    page.locator(f"figure[data-kind={kind}] a:visible").first.click()
    until(page, BOTH)


# In Python.


def test_the_worst_is_first_and_what_was_not_measured_last() -> None:
    assert ranks([3.0, None, 1.0, 2.0]) == [2, 3, 0, 1]


def test_every_metric_ranks_the_pairs_by_its_difference_and_the_last_order_is_the_prompts(tmp_path: Path) -> None:
    found = of_run(Run(scored(tmp_path)), 10)
    assert found.orders == ["worst PSNR first", "worst difference in CLIP score first", "in the prompts' order"]
    by_number = {p.number: p.ranks for p in found.pairs}
    assert [p.number for p in found.pairs] == [2, 1, 0]
    assert [by_number[i][1] for i in range(3)] == [2, 1, 0]  # -2, -2 and -2.75: equal ones by the metric before
    assert [by_number[i][2] for i in range(3)] == [0, 1, 2]


def test_a_metric_that_is_better_lower_ranks_the_highest_as_worst(tmp_path: Path) -> None:
    path = scored(tmp_path) / "score" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["psnr"]["better"] = "lower"
    path.write_text(json.dumps(content))
    assert [p.number for p in of_run(Run(tmp_path), 10).pairs] == [0, 1, 2]


def test_links_are_relative_and_quoted(tmp_path: Path) -> None:
    paths = {}
    for name in ("a b", "c#d"):
        (tmp_path / name).mkdir()
        paths[name] = [tmp_path / name / "x.png"]
        Image.new("RGB", (8, 4)).save(paths[name][0])
    content = EvaluationFile("a b", [*paths], ["p"], [], [], {})
    (pair,) = of_evaluation(content, paths, tmp_path / "out", 10).pairs
    assert [(p.link, p.width, p.height) for p in pair.pictures] == [("../a%20b/x.png", 8, 4), ("../c%23d/x.png", 8, 4)]


def test_an_evaluations_prompt_is_as_bad_as_its_worst_model(tmp_path: Path) -> None:
    paths = {m: [tmp_path / f"{m}{i}.png" for i in range(3)] for m in ("base", "one", "two")}
    for path in (p for model in paths.values() for p in model):
        Image.new("RGB", (8, 8)).save(path)
    stat = Interval(0.0, None, None, 3)
    values = {"base": [10, 20, 30], "one": [9, 20, 30], "two": [10, 17, 30]}
    models = {m: ModelResult(stat, v, None if m == "base" else stat) for m, v in values.items()}
    metric = EvaluatedMetric("CLIP score", "", "higher", {}, models, [])
    content = EvaluationFile("base", [*paths], ["x", "y", "z"], [], [], {"clip": metric})
    found = of_evaluation(content, paths, tmp_path, 10)
    assert [p.prompt for p in found.pairs] == ["y", "x", "z"]
    assert found.kinds == ["base", "one", "two"]


STAT = Interval(-1.0, -1.5, -0.5, 30)
METRIC = MetricResult(title="CLIP score", unit="points", better="higher", candidate=STAT)


def test_a_plot_of_paired_differences_has_its_zero_line_mean_interval_and_unit() -> None:
    svg = differences(replace(METRIC, values=[1, 2, 3], reference_values=[2, 3, 4.5], difference=STAT))
    assert 'aria-label="CLIP score, candidate \N{MINUS SIGN} reference"' in svg
    for text in ("no change", "mean, 95% interval", "difference, points", "pairs, the worst first"):
        assert f">{text}<" in svg
    assert svg.count("<use") >= 3  # a dot a pair


def test_a_plot_draws_no_change_at_zero_and_the_mean_at_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    lines: dict[str, float] = {}
    plain = Axes.axhline
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **kw: lines.update({kw["label"]: y}) or plain(self, y, **kw))
    differences(replace(METRIC, values=[1, 2], reference_values=[2, 3], difference=STAT))
    assert lines == {"no change": 0, "mean, 95% interval": -1.0}


def test_a_plot_of_distances_has_no_zero_line() -> None:
    svg = differences(replace(METRIC, title="PSNR", unit="dB", values=[30, 40]))
    assert ">PSNR, dB<" in svg
    assert "no change" not in svg


def test_a_page_has_a_plot_for_every_metric_with_a_value_a_pair(tmp_path: Path) -> None:
    html = run_page.write(scored(tmp_path)).read_text()
    assert re.findall(r'<svg role="img" aria-label="([^",]*)', html) == ["PSNR of each pair", "CLIP score"]


# In a browser.


def test_without_javascript_all_pictures_are_there_and_no_dead_controls(browser: Any, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written.resolve().as_uri())
    assert prompts(page) == [SCRIPT, APPLES, KITE]
    assert page.locator(".tools:visible, dialog:visible").count() == 0
    assert page.locator("figure a").first.get_attribute("href") == "reference/002.png"
    context.close()


def test_pairs_are_ordered_by_the_chosen_metric(opened: Open, written: Path) -> None:
    page = opened(written)
    assert prompts(page) == [SCRIPT, APPLES, KITE]
    page.select_option("[name=order]", label="in the prompts' order")
    assert prompts(page) == [KITE, APPLES, SCRIPT]
    page.select_option("[name=order]", label="worst difference in CLIP score first")
    assert prompts(page)[0] == SCRIPT


def test_pairs_are_filtered_by_words_of_their_prompt(opened: Open, written: Path) -> None:
    page = opened(written)
    page.fill("[name=filter]", "PEAR ap")
    assert prompts(page) == [APPLES]
    assert page.text_content("[name=count]") == "1 of 3"
    page.fill("[name=filter]", "no such thing")
    assert prompts(page) == []
    page.fill("[name=filter]", "")
    assert len(prompts(page)) == 3


def test_a_click_opens_both_pictures_cut_in_the_middle(opened: Open, written: Path) -> None:
    page = opened(written)
    look(page)
    assert page.text_content("#viewer-prompt") == SCRIPT
    assert share(page, MAGENTA) == pytest.approx(share(page, GREEN), abs=0.05)
    assert share(page, GREEN) > 0.4


@pytest.mark.parametrize("way", ["range", "drag", "keys"])
def test_the_line_is_moved_by_the_range_by_dragging_and_by_keys(opened: Open, written: Path, way: str) -> None:
    page = opened(written)
    look(page)
    if way == "range":
        page.locator("#viewer-cut").fill("90")
    elif way == "drag":
        box = page.locator("#stage").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 60, steps=4)
        page.mouse.up()
    else:
        for _ in range(20):
            page.keyboard.press("ArrowRight")
    assert share(page, MAGENTA) > 0.8
    assert 0.02 < share(page, GREEN) < 0.15


def test_a_picture_is_zoomed_by_wheel_and_keys_and_fits_again(opened: Open, tmp_path: Path) -> None:
    directory = scored(tmp_path)
    picture = Image.new("RGB", (64, 64), (0, 0, 255))
    picture.paste(GREEN, (32, 0, 64, 64))
    picture.save(directory / "sample" / "002.png")
    page = opened(run_page.write(directory))
    look(page)
    page.keyboard.press("Home")  # all of it is the candidate's
    half = share(page, GREEN)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.wheel(0, -400)
    until(page, "document.getElementById('viewer-zoom').textContent === '2.7\u00d7'")
    assert share(page, GREEN) > 0.8 > 0.5 > half - 0.05
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"], steps=4)  # drags the picture
    page.mouse.up()
    assert share(page, GREEN) < 0.75
    page.keyboard.press("0")
    assert share(page, GREEN) == pytest.approx(half, abs=0.02)


def test_next_goes_through_the_filtered_pairs_in_their_order(opened: Open, written: Path) -> None:
    page = opened(written)
    page.select_option("[name=order]", label="in the prompts' order")
    page.fill("[name=filter]", "i")
    look(page)
    seen = [page.text_content("#viewer-prompt")]
    for _ in range(2):
        page.keyboard.press("n")
        seen.append(page.text_content("#viewer-prompt"))
    assert seen == [KITE, SCRIPT, SCRIPT]
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_a_click_on_the_difference_compares_with_it(opened: Open, written: Path) -> None:
    page = opened(written)
    look(page, "difference")
    assert share(page, (9, 9, 9)) > 0.4
    page.select_option("#viewer-right", label="candidate")
    until(page, BOTH)
    assert share(page, GREEN) > 0.4


def test_an_inlined_page_compares_too(opened: Open, tmp_path: Path) -> None:
    page = opened(run_page.write(scored(tmp_path), inline=True))
    page.locator("figure[data-kind=candidate] a").first.focus()
    page.keyboard.press("Enter")
    until(page, BOTH)
    assert share(page, GREEN) > 0.4


def test_of_hundreds_of_pictures_only_those_in_sight_are_loaded(browser: Any, tmp_path: Path) -> None:
    directory, many = scored(tmp_path), 300
    Image.new("RGB", (600, 600), MAGENTA).save(tmp_path / "one.png")
    for step in ("reference", "sample"):
        path = directory / step / "images.json"
        index = json.loads(path.read_text())
        index["images"] = [{"file": f"{i:03}.png", "prompt": f"prompt {i}", "seed": i} for i in range(many)]
        path.write_text(json.dumps(index))
        for i in range(many):
            (directory / step / f"{i:03}.png").write_bytes((tmp_path / "one.png").read_bytes())
    path = directory / "score" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] = {"psnr": {**content["metrics"]["psnr"], "values": [*range(many)]}}
    path.write_text(json.dumps(content))
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, loaded = context.new_page(), []
    page.on("request", lambda r: loaded.append(r.url) if r.url.endswith(".png") else None)
    page.goto(run_page.write(directory).resolve().as_uri(), wait_until="load")
    assert len(prompts(page)) == many
    assert (directory / "report.html").stat().st_size < many * 2500
    assert len(loaded) < many / 4
    page.locator("#pairs li").nth(250).scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('#pairs li')[250].querySelector('img').naturalWidth === 600")
    context.close()
