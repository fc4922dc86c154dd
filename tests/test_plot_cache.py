"""Plots are drawn once and kept in the store; the page is the same with and without what is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import page, record, scored

from diffopt.errors import StoreError
from diffopt.report import plot_cache
from diffopt.report.plots import canvas
from diffopt.report.plots.canvas import sheet
from diffopt.store.entry import RECORD
from diffopt.store.files import sha256
from diffopt.store.fingerprint import fingerprint
from diffopt.store.garbage import garbage
from diffopt.store.store import PLOTS, Store

IDENTITY = {"stage": "score"}
FP = fingerprint(IDENTITY)


def recorded(entry: Path) -> None:
    """Write the record of what is there."""
    files = {
        str(p.relative_to(entry)): {"size": p.stat().st_size, "sha256": sha256(p)}
        for p in entry.rglob("*")
        if p.is_file() and p.name != RECORD
    }
    (entry / RECORD).write_text(json.dumps({"kind": "metrics", "identity": IDENTITY, "files": files, **record()}))


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were laid out."""
    found: list[Any] = []
    lay_out = canvas.laid_out
    monkeypatch.setattr(canvas, "laid_out", lambda figure: (found.append(figure), lay_out(figure)))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """`run("a", psnr=30)` is a run's directory, its metrics in the store; another name, another run with the same metrics."""

    def make(name: str, **values: Any) -> Path:
        directory = scored(tmp_path / name, **values)
        entry = tmp_path / "store" / "metrics" / FP
        if not entry.exists():
            entry.parent.mkdir(parents=True, exist_ok=True)
            (directory / "score").rename(entry)
            recorded(entry)
        else:
            (directory / "score").rename(tmp_path / f"{name}-spare")
        (directory / "score").symlink_to(f"../store/metrics/{FP}")
        content = json.loads((directory / "run.json").read_text())
        content["steps"] = [s | {"fingerprint": FP} if s["name"] == "score" else s for s in content["steps"]]
        (directory / "run.json").write_text(json.dumps(content))
        Store(tmp_path / "store").refer(directory, [("metrics", FP)])
        return directory

    return make


def test_plots_of_the_same_metrics_are_drawn_once(run: Any, drawings: list[Any]) -> None:
    first = page(run("a"))
    assert len(drawings) == first.count("<svg role") == 2
    second = page(run("b"))
    assert len(drawings) == 2
    assert second.replace("/b<", "/a<") == first


def test_what_is_kept_may_go(run: Any, drawings: list[Any], tmp_path: Path) -> None:
    first = page(run("a"))
    (tmp_path / "store" / PLOTS / f"{FP}.json").unlink()
    assert page(tmp_path / "a") == first
    assert len(drawings) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"key": "of another drawing", "plots": {}}'])
def test_what_is_no_drawing_of_these_metrics_is_not_shown(run: Any, drawings: list[Any], tmp_path: Path, text: str) -> None:
    first = page(run("a"))
    (tmp_path / "store" / PLOTS / f"{FP}.json").write_text(text)
    assert page(tmp_path / "a") == first
    assert len(drawings) == 4
    page(tmp_path / "a")
    assert len(drawings) == 4  # kept anew


def test_other_metrics_are_drawn_anew(run: Any, drawings: list[Any], tmp_path: Path) -> None:
    first = page(run("a"))
    path = tmp_path / "store" / "metrics" / FP / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["psnr"]["values"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"metrics\.json has other bytes than when it was made"):
        page(tmp_path / "a")
    recorded(path.parent)
    assert page(tmp_path / "a") != first
    assert len(drawings) == 4


def test_other_code_and_another_library_draw_anew(run: Any, drawings: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    page(run("a"))
    made_by = plot_cache._makers()
    assert None not in made_by
    for i in range(len(made_by)):
        monkeypatch.setattr(plot_cache, "_makers", lambda i=i: [*made_by[:i], "another", *made_by[i + 1 :]])
        page(run(f"b{i}"))
        assert len(drawings) == 2 * (i + 2)


def test_a_store_that_cannot_be_written_does_without(run: Any, drawings: list[Any], tmp_path: Path) -> None:
    made = run("a")
    (tmp_path / "store" / PLOTS).write_text("in the way")
    assert page(made) == page(made)
    assert len(drawings) == 4


def test_a_run_that_was_copied_out_of_the_store_writes_to_none(tmp_path: Path, drawings: list[Any]) -> None:
    page(scored(tmp_path / "runs" / "a"))
    assert len(drawings) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_plots_are_garbage_when_no_run_refers_to_their_artifact(run: Any, tmp_path: Path) -> None:
    page(run("a"))
    store = Store(tmp_path / "store")
    assert [e.kind for e in store.entries()] == ["metrics"]
    assert garbage(store) == ([], [])
    killed = store.root / PLOTS / f".{FP}.json.123"  # while it was written
    killed.write_text("{")
    assert garbage(store) == ([], [killed])
    (tmp_path / "a").rename(tmp_path / "gone")
    unused, stale = garbage(store)
    assert [e.fingerprint for e in unused] == [FP]
    assert store.root / PLOTS / f"{FP}.json" in stale
    for path in stale:
        store.remove(path)
    assert not [*(store.root / PLOTS).iterdir()]


def test_a_plot_does_not_follow_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    def drawn() -> str:
        with sheet("a line", 2, 2) as made:
            made.axes().plot([1, 2], [3, 4])
        return made.svg

    ours = drawn()
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9)
    monkeypatch.setitem(matplotlib.rcParams, "axes.xmargin", 0.4)
    assert drawn() == ours
