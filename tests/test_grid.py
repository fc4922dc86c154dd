"""How a sweep's grid is laid out and drawn."""

import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from sweeps import failed, findings, job, psnr
from test_report import words

from diffopt.report.plots.canvas import sheet
from diffopt.sweep.grid import panels
from diffopt.sweep.page_plots import plotted


def grid(directory: Path, keys: dict[str, list[object]], inert: tuple[str, str] | None = None) -> Path:
    """A job for every combination; under `inert`, (value of the last key, key), a key changes nothing."""
    first: dict[tuple[object, ...], str] = {}
    for i, values in enumerate(product(*keys.values())):
        given = dict(zip(keys, values, strict=True))
        same = {k: v for k, v in given.items() if not (inert and list(given.values())[-1] == inert[0] and k == inert[1])}
        original = first.setdefault(tuple(same.items()), str(i))
        overrides = [f"{k}={v}" for k, v in given.items()]
        job(directory / str(i), psnr(30.0 + int(original)), same_as=original, overrides=overrides)
    return directory


ALPHA, SIZE, FORMAT = ("calib.alpha", [0.2, 0.5, 0.8]), ("calib.size", [8, 16]), ("format", ["int8_sq", "fp8"])


def test_two_numbers_are_axes_and_every_format_is_a_panel(tmp_path: Path) -> None:
    found = panels(findings(grid(tmp_path, dict([ALPHA, SIZE, FORMAT]))).rows)
    assert [(p.kind, p.title) for p in found] == [("map", "format=int8_sq"), ("map", "format=fp8")]
    y, x = found[0].y, found[0].x
    assert x is not None
    assert y is not None
    assert [(a.key, a.values) for a in (y, x)] == [("calib.alpha", (0.2, 0.5, 0.8)), ("calib.size", (8.0, 16.0))]


def test_every_job_has_its_cell(tmp_path: Path) -> None:
    found = findings(grid(tmp_path, dict([ALPHA, SIZE])))
    (panel,) = panels(found.rows)
    assert [panel.place(r) for r in found.rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_key_that_nothing_reads_under_a_format_is_one_row_of_its_map(tmp_path: Path) -> None:
    found = panels(findings(grid(tmp_path, dict([ALPHA, SIZE, FORMAT]), ("fp8", "calib.alpha"))).rows)
    assert [p.y.labels for p in found if p.y] == [["0.2", "0.5", "0.8"], ["any\ncalib.alpha"]]


def test_a_failed_job_does_not_hide_that_a_key_changes_nothing(tmp_path: Path) -> None:
    grid(tmp_path, dict([ALPHA, SIZE, FORMAT]), ("fp8", "calib.alpha"))
    shutil.rmtree(tmp_path / "1")
    failed(tmp_path / "1", "calib.alpha=0.2", "calib.size=8", "format=fp8")
    found = findings(tmp_path)
    assert [p.y.labels for p in panels(found.rows) if p.y][1] == ["any\ncalib.alpha"]
    assert "failed" not in plotted(found).grids["psnr"][1]  # another job of the same cell has its value


def test_of_three_numbers_the_two_with_most_values_are_axes(tmp_path: Path) -> None:
    found = panels(findings(grid(tmp_path, {"seed": [1, 2], "calib.alpha": [0.1, 0.2, 0.3], "calib.size": [1, 2, 3]})).rows)
    assert [p.title for p in found] == ["seed=1", "seed=2"]


def test_one_number_is_a_line_for_each_of_the_other_choices(tmp_path: Path) -> None:
    found = findings(grid(tmp_path, dict([ALPHA, FORMAT])))
    assert [(p.kind, p.series) for p in panels(found.rows)] == [("line", ("format",))]
    (svg,) = plotted(found).grids["psnr"]
    assert {"format=int8_sq", "format=fp8", "calib.alpha", "PSNR, dB"} <= set(re.findall(r">([^<>\n]+)</text>", svg))


def test_a_line_along_which_jobs_fell_together_says_so(tmp_path: Path) -> None:
    (svg,) = plotted(findings(grid(tmp_path, dict([ALPHA, FORMAT]), ("fp8", "calib.alpha")))).grids["psnr"]
    assert "format=fp8 (calib.alpha is not read)" in words(svg)


def test_no_number_is_a_dot_a_job(tmp_path: Path) -> None:
    found = findings(grid(tmp_path, {"format": ["int8", "fp8", "nvfp4"]}))
    assert [p.kind for p in panels(found.rows)] == ["dots"]
    assert "2: format=nvfp4" in words(plotted(found).grids["psnr"][0])


def test_a_search_that_fills_no_grid_is_drawn_as_points(tmp_path: Path) -> None:
    for i in range(6):
        job(tmp_path / str(i), psnr(30.0 + i), overrides=[f"calib.alpha={0.3 + i / 9}", f"calib.size={8 + i}"])
    found = findings(tmp_path)
    assert [p.kind for p in panels(found.rows)] == ["points"]
    assert len(plotted(found).grids["psnr"]) == 1


def test_a_failed_jobs_cell_says_so_and_hides_no_axis(tmp_path: Path) -> None:
    grid(tmp_path, dict([ALPHA, SIZE]))
    failed(tmp_path / "6", "calib.alpha=7", "calib.size=8")
    failed(tmp_path / "7", "calib.alpha=high", "calib.size=8")
    found = findings(tmp_path)
    (panel,) = panels(found.rows)
    assert panel.y is not None
    assert panel.y.values == (0.2, 0.5, 0.8, 7.0)
    assert panel.place(found.rows[7]) is None  # it has no place on an axis of numbers; the table has it
    assert ">failed</text>" in plotted(found).grids["psnr"][0]


def test_cells_hold_the_means_and_the_best_is_bold(tmp_path: Path) -> None:
    (svg,) = plotted(findings(grid(tmp_path, dict([ALPHA, SIZE])))).grids["psnr"]
    assert {"30.0", "34.0", "35.0"} <= set(re.findall(r">([\d.]+)</text>", svg))
    assert re.findall(r"font-weight: 700[^>]*>([\d.]+)</text>", svg) == ["35.0"]


@pytest.mark.parametrize("text", ["a $b$ & <c>", "[x, y]"])
def test_a_plot_takes_any_text_as_it_is(text: str) -> None:
    with sheet(text, 2, 2) as made:
        made.axes().set_title(text)
    assert text in words(re.sub(r"<(?!/?[a-z])", "", made.svg)).replace("  ", " ")


def test_a_plot_is_vectors_in_the_pages_colours_without_links_out(tmp_path: Path) -> None:
    grid(tmp_path, dict([ALPHA, SIZE]))
    failed(tmp_path / "6", "calib.alpha=7", "calib.size=8")
    svg = plotted(findings(tmp_path)).grids["psnr"][0]
    assert "var(--ink)" in svg
    assert not re.search(r"<image|https?:|url\(|<style|clip-path", svg)
    ids = re.findall(r' id="([^"]*)"', svg)
    assert set(re.findall(r'href="#([^"]*)"', svg)) == set(ids)


def test_the_same_sweep_gives_the_same_plots(tmp_path: Path) -> None:
    grid(tmp_path, dict([ALPHA, SIZE]))
    assert plotted(findings(tmp_path)).grids == plotted(findings(tmp_path)).grids


def test_the_points_of_the_front_are_labelled_with_their_settings(tmp_path: Path) -> None:
    for i, graph in enumerate((1000, 2000, 3000)):
        job(tmp_path / str(i), psnr(30.0 + 5 * i), graph=graph, overrides=[f"calib.alpha=0.{i}", "format=fp8"])
    job(tmp_path / "3", psnr(20.0), graph=3000, overrides=["calib.alpha=0.9", "format=int8_sq"])
    text = words(plotted(findings(tmp_path)).fronts["size"]["psnr"])
    for said in ("0: alpha=0.0, format=fp8", "1: alpha=0.1, format=fp8", "2: alpha=0.2, format=fp8", "KiB (less is better)"):
        assert said in text
    assert "3: alpha" not in text
