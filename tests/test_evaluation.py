"""`diffopt eval`: the original's JSON in, one table, JSON and a page out, and a line for everything that is wrong."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import scored

from diffopt.cli.main import main
from diffopt.metrics import SOURCES, Scorer, Weights
from diffopt.metrics.psnr import METRIC
from diffopt.quality import reading, scoring

N = 12
CLIP = ("--clip", "asset:emoji/emoji-clip", "--features", "asset:emoji/emoji-clip")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """data/images.json: 12 prompts, three models; `near` is near the reference `full`, `far` is farther."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N):
        full = rng.integers(40, 216, (48, 48, 3))
        row: dict[str, Any] = {"prompt": f"a red kite {i}", "images": {}}
        for model, spread in (("full", 0), ("near", 4), ("far", 30)):
            path = folder / model / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((full + rng.integers(-spread, spread + 1, full.shape)).astype(np.uint8)).save(path)
            row["images"][model] = f"{model}/{i}.png"
        rows.append(row)
    (folder / "images.json").write_text(json.dumps(rows))
    return folder


Said = tuple[int, list[str], list[str]]


@pytest.fixture
def evaluated(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`evaluated("--metrics", ...)`: exit code, lines of stdout, lines of stderr."""

    def said(*arguments: str) -> Said:
        code = 0
        try:
            main(["eval", "--data-path", str(data / "images.json"), *arguments])
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return said


def edit(data: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = json.loads((data / "images.json").read_text())
    change(rows)
    (data / "images.json").write_text(json.dumps(rows))


def test_one_table_has_a_row_for_each_model_and_a_column_for_each_metric(evaluated: Callable[..., Said]) -> None:
    code, out, err = evaluated("--metrics", "psnr", "clip", *CLIP)
    assert (code, err) == (0, [])
    assert out[0].split("  ")[0] == "model"
    assert "PSNR (dB)" in out[0]
    assert "CLIP score" in out[0]
    assert [line.split()[0] for line in out[1:4]] == ["full", "near", "far"]
    assert "n=12 prompts" in out[4]


def test_json_and_page_hold_every_value_interval_difference_and_verdict(evaluated: Callable[..., Said], tmp_path: Path) -> None:
    code, out, _ = evaluated("--metrics", "clip", "psnr", "fid", *CLIP, "--output", "made/here")
    assert code == 0
    found = json.loads((tmp_path / "made/here/evaluation.json").read_text())
    assert found["schema"] == "diffopt.evaluation/1"
    clip = found["metrics"]["clip"]
    assert clip["weights"]["clip"].startswith("sha256:")
    ours, theirs = (clip["models"][m]["values"] for m in ("far", "full"))
    assert len(ours) == N
    assert clip["models"]["far"]["difference"]["mean"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert clip["models"]["far"]["verdict"] in " ".join(out)
    assert set(found["metrics"]["psnr"]["models"]) == {"near", "far"}  # no distance of the reference from itself
    assert set(found["metrics"]["fid"]["models"]["far"]) == {"stat", "verdict"}
    page = (tmp_path / "made/here/report.html").read_text()
    for text in ("PSNR", "FID", "CLIP score", "near", "far", clip["models"]["far"]["verdict"].split(":")[0]):
        assert text in page
    assert "default-src 'none'" in page


def test_models_are_put_in_order_by_their_paired_distances(evaluated: Callable[..., Said]) -> None:
    _, out, _ = evaluated("--metrics", "psnr")
    (line,) = [x for x in out if "order" in x]
    assert line.startswith("PSNR, order: near over far: +")


def test_another_reference_can_be_named_or_none(evaluated: Callable[..., Said]) -> None:
    _, out, _ = evaluated("--metrics", "psnr", "--reference", "far")
    assert out[3].startswith("far (reference)  -")
    _, out, _ = evaluated("--metrics", "clip", *CLIP, "--reference", "none")
    assert not any("reference" in line for line in out)


def test_paths_are_relative_to_the_file_wherever_it_is_called(
    evaluated: Callable[..., Said], tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluated("--metrics", "psnr")[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[3].update(caption="x"), "entry 3 has the key 'caption' (got caption, images, prompt)"),
        (lambda rows: rows[3].pop("prompt"), "entry 3 has no 'prompt'"),
        (lambda rows: rows[3].update(prompt=" "), "entry 3 has no prompt (got ' ')"),
        (lambda rows: rows[3].update(images=["a.png"]), "entry 3 names no pictures"),
        (lambda rows: rows[3]["images"].pop("near"), "entry 3 has other models than the first entry (got full, far; there"),
        (lambda rows: rows[3]["images"].update(near=None), "entry 3 has no path for 'near' (got None)"),
        (lambda rows: rows.clear(), "is not a list of entries (got an empty one)"),
    ],
)  # fmt: skip
def test_a_list_that_is_wrong_is_refused_by_entry(data: Path, evaluated: Callable[..., Said], change: Any, said: str) -> None:
    edit(data, change)
    code, out, err = evaluated("--metrics", "psnr")
    assert (code, out) == (1, [])
    assert said in err[0]


def test_every_wrong_entry_has_a_line(data: Path, evaluated: Callable[..., Said]) -> None:
    edit(data, lambda rows: [rows[i].pop("prompt") for i in (2, 5)])
    assert [line.split("entry ")[1][0] for line in evaluated("--metrics", "psnr")[2]] == ["2", "5"]


def test_a_path_that_leads_out_of_the_root_is_refused(data: Path, evaluated: Callable[..., Said]) -> None:
    assert evaluated("--metrics", "psnr", "--root", str(data))[0] == 0
    edit(data, lambda rows: rows[1]["images"].update(near="../outside.png"))
    nowhere = evaluated("--metrics", "psnr", "--root", "nowhere")
    assert nowhere == (1, [], ["--root: is no directory (got 'nowhere'); name the one that all pictures are in"])
    code, out, err = evaluated("--metrics", "psnr", "--root", str(data))
    assert (code, out) == (1, [])
    assert "entry 1 leads out of --root" in err[0]
    assert "'../outside.png'" in err[0]


def test_a_picture_that_cannot_be_read_leaves_its_prompt_out_for_every_model(
    data: Path, evaluated: Callable[..., Said], tmp_path: Path
) -> None:
    (data / "near" / "3.png").unlink()
    whole = (data / "far" / "7.png").read_bytes()
    (data / "far" / "7.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = evaluated("--metrics", "psnr", "clip", *CLIP, "--output", "made")
    assert code == 1
    assert "n=10 prompts" in out[4]
    assert len(err) == 2
    assert "near/3.png: is not there" in err[0]
    assert "far/7.png: cannot be read as a picture (" in err[1]
    found = json.loads((tmp_path / "made/evaluation.json").read_text())
    assert found["left_out"] == [3, 7]
    assert {m["models"]["near"]["stat"]["n"] for m in found["metrics"].values()} == {10}
    assert found["metrics"]["psnr"]["models"]["near"]["values"][3] is None


def test_weights_that_are_not_there_leave_their_metric_out_and_the_others_in(
    evaluated: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = evaluated("--metrics", "imagereward", "psnr", "--imagereward", "empty")
    assert code == 1
    assert "PSNR" in out[0]
    assert "ImageReward" not in out[0]
    assert err == [
        "imagereward is left out: imagereward: has no ImageReward.pt and no med_config.json "
        f"(got {str(Path('empty'))!r}); put both there from https://huggingface.co/THUDM/ImageReward"
    ]


def test_a_hub_that_cannot_be_reached_is_a_line_too(evaluated: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = evaluated("--metrics", "clip", "psnr")
    assert code == 1
    assert "PSNR" in out[0]
    assert err == [
        "clip is left out: --clip: it is not in the hub's cache, and HF_HUB_OFFLINE is set; nor is it a directory here "
        f"(got 'openai/clip-vit-large-patch14'); unset it, or give {SOURCES['clip']}"
    ]


@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "ConnectionError"])
def test_weights_that_the_hub_refuses_can_be_given_another_way(
    kind: str, evaluated: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise type(kind, (Exception,), {})("Cannot access it.")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    code, out, err = evaluated("--metrics", "imagereward", "psnr")
    assert code == 1
    assert "PSNR" in out[0]
    assert len(err) == 1
    assert err[0].startswith(
        "imagereward is left out: --imagereward: the hub did not give it: Cannot access it; nor is it a directory here (got"
    )
    assert err[0].endswith(f", or give {SOURCES['imagereward']}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metrics", "vqa"), "--metrics: no such metric (got 'vqa'); there are psnr, ssim"),
        (("--metrics", "psnr", "psnr"), "--metrics: names one twice (got 'psnr')"),
        (("--metrics", "psnr", "--reference", "x"), "--reference: no such model (got 'x'); there are full, near, far"),
        (("--metrics", "psnr", "--reference", "none"), "--metrics: psnr compares with a reference"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_read(evaluated: Callable[..., Said], arguments: Any, said: str) -> None:
    code, out, err = evaluated(*arguments)
    assert (code, out) == (1, [])
    assert err[0].startswith(said)


def test_a_picture_of_one_colour_is_said(data: Path, evaluated: Callable[..., Said]) -> None:
    Image.new("RGB", (48, 48)).save(data / "far" / "2.png")
    code, out, err = evaluated("--metrics", "psnr")
    assert code == 1
    assert "n=12 prompts" in out[4]
    assert "far/2.png: has one colour (got it for 'far', 'a red kite 2')" in err[0]


def test_the_same_picture_of_two_prompts_is_said(data: Path, evaluated: Callable[..., Said]) -> None:
    (data / "far" / "2.png").write_bytes((data / "far" / "9.png").read_bytes())
    code, _, err = evaluated("--metrics", "psnr")
    assert code == 1
    assert len(err) == 1
    assert "is the picture of another prompt too (got it for 'a red kite 2' and 'a red kite 9' of 'far')" in err[0]


def test_pictures_of_unequal_size_leave_the_distances_out(data: Path, evaluated: Callable[..., Said]) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(data / "far" / "2.png")
    code, out, err = evaluated("--metrics", "psnr", "clip", *CLIP)
    assert code == 1
    assert "CLIP score" in out[0]
    assert "PSNR" not in out[0]
    assert err == [
        "psnr: two pictures of 'a red kite 2' have unequal sizes (got 48 x 40 beside 48 x 48, 'far'); draw them in one size"
    ]


# Runs and sweeps.


def sweep(directory: Path, formats: list[str]) -> Path:
    for i, name in enumerate(formats):
        job = scored(directory / str(i), fingerprint=str(i) * 16, overrides=[f"format={name}"])
        for step in ("reference", "sample"):
            for k in range(3):
                pixels = np.random.default_rng(k).integers(20, 200, (48, 48, 3)) + (0 if step == "reference" else 4 * i + 1)
                Image.fromarray(pixels.astype(np.uint8)).save(job / step / f"{k:03}.png")
    (directory / "multirun.yaml").write_text("")
    return directory


def said_of(*directories: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    main(["eval", "--data-path", *map(str, directories), "--metrics", "psnr"])
    return capsys.readouterr().out.splitlines()


def test_all_jobs_of_a_sweep_are_in_one_table_beside_their_reference(tmp_path: Path, capsys) -> None:
    out = said_of(sweep(tmp_path / "sweep", ["fp8", "int4_awq"]), capsys=capsys)
    assert [line.split()[0] for line in out[1:4]] == ["full", "fp8", "int4_awq"]
    assert any("PSNR, order: fp8 and int4_awq: too few to call" in line for line in out)  # of three prompts


def test_a_run_is_its_candidate_beside_its_reference(tmp_path: Path, capsys) -> None:
    out = said_of(sweep(tmp_path / "sweep", ["fp8"]) / "0", capsys=capsys)
    assert [line.split()[0] for line in out[1:3]] == ["full", "int8_sq"]  # the format of its recipe


def test_runs_of_several_directories_are_in_one_table(tmp_path: Path, capsys) -> None:
    both = sweep(tmp_path / "a", ["fp8", "int4_awq"])
    alone = sweep(tmp_path / "b", ["nvfp4"]) / "0"
    out = said_of(both, alone, capsys=capsys)
    assert [line.split()[0] for line in out[1:5]] == ["full", "fp8", "int4_awq", "nvfp4"]


def test_jobs_with_other_prompts_are_no_pairs(tmp_path: Path, capsys) -> None:
    directory = sweep(tmp_path / "sweep", ["fp8", "int4_awq"])
    path = directory / "1" / "sample" / "images.json"
    path.write_text(path.read_text().replace("red", "blue"))
    with pytest.raises(SystemExit):
        said_of(directory, capsys=capsys)
    assert "a run drew other prompts or seeds than" in capsys.readouterr().err


def test_a_directory_without_runs_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        said_of(tmp_path, capsys=capsys)
    assert capsys.readouterr().err.startswith("--data-path: is no run or sweep (got ")


# The loop.


@pytest.mark.parametrize(("device", "most"), [("cpu", 2), ("cuda", 4)])
def test_pictures_are_read_while_a_gpu_is_busy_and_before_it_on_a_cpu(
    data: Path, monkeypatch: pytest.MonkeyPatch, device: str, most: int
) -> None:
    monkeypatch.setattr(reading, "AHEAD", 2)
    monkeypatch.setattr(scoring, "BATCH", 2)
    events: list[str] = []
    enough, main_thread = threading.Event(), threading.get_ident()

    class Slow(Scorer):
        def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
            assert threading.get_ident() == main_thread
            enough.wait(60)  # for the readers, which need not be as fast as this machine's
            time.sleep(0.1)  # in which they would read more, if they did
            events.append("scored")
            return [0.0] * len(pictures)

    def prepare(pictures: list[np.ndarray]) -> list[np.ndarray]:
        assert threading.get_ident() != main_thread
        events.extend(["read"] * len(pictures))
        if events.count("read") >= most:
            enough.set()
        return pictures

    slow = Slow()
    slow.prepare = prepare
    paths = [data / "full" / f"{i}.png" for i in range(N)]
    scoring.measure(["a"] * N, {"full": paths}, {"clip": slow}, device=device)
    assert events[: events.index("scored")].count("read") == most  # batches of two
    assert events.count("read") == N  # each once


def test_a_picture_that_cannot_be_prepared_leaves_its_own_row_out(data: Path) -> None:
    """Though others are prepared with it."""

    class Taking(Scorer):
        def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
            return [float(p.mean()) for p in pictures]

    def prepare(pictures: list[np.ndarray]) -> list[np.ndarray]:
        if any(np.array_equal(p, third) for p in pictures):
            raise ValueError("too red\nfor this one")
        return pictures

    paths = [data / "full" / f"{i}.png" for i in range(N)]
    each = [np.asarray(Image.open(p)) for p in paths]
    third, taking = each[3], Taking()
    taking.prepare = prepare
    found = scoring.measure(["a"] * N, {"full": paths}, {"clip": taking})
    assert np.flatnonzero(~found.kept).tolist() == [3]
    assert found.flaws == [
        f"{paths[3]}: cannot be read as a picture (too red) (got it for 'full', 'a'); its prompt is left out"
    ]
    wanted = [np.nan if i == 3 else p.mean() for i, p in enumerate(each)]
    np.testing.assert_allclose(found.values["clip"]["full"], wanted)


def test_a_metric_that_prepares_too_few_gives_no_picture_anothers_value(data: Path) -> None:
    class Short(Scorer):
        def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> list[float]:
            return [float(p.mean()) for p in pictures]

    short = Short()
    short.prepare = lambda pictures: pictures[1:]
    found = scoring.measure(["a"] * N, {"full": [data / "full" / f"{i}.png" for i in range(N)]}, {"clip": short})
    assert not found.kept.any()
    assert len([f for f in found.flaws if "cannot be read as a picture" in f]) == N


def test_a_batch_of_nothing_but_missing_pictures_shifts_no_value(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {m: [data / m / f"{i}.png" for i in range(N)] for m in ("full", "far")}
    psnr, prompts = METRIC.open(Weights({})), ["x"] * N
    whole = scoring.measure(prompts, paths, {"psnr": psnr}, "full").values["psnr"]["far"]
    monkeypatch.setattr(scoring, "BATCH", 2)
    for i in (2, 3):
        paths["far"][i].unlink()
    found = scoring.measure(prompts, paths, {"psnr": psnr}, "full")
    assert np.flatnonzero(~found.kept).tolist() == [2, 3]
    assert np.array_equal(found.values["psnr"]["far"][found.kept], whole[found.kept])
    assert len(found.flaws) == 2


def test_values_stay_with_their_prompts_and_models(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH", 5)
    paths = {m: [data / m / f"{i}.png" for i in range(N)] for m in ("full", "near", "far")}
    psnr = METRIC.open(Weights({}))
    found = scoring.measure([str(i) for i in range(N)], paths, {"psnr": psnr}, "full").values["psnr"]
    for model in ("near", "far"):
        for i, path in enumerate(paths[model]):
            ours, theirs = (np.asarray(Image.open(p)) for p in (path, paths["full"][i]))
            assert found[model][i] == psnr.score([ours], ["x"], [theirs])[0]
