"""eval.chunk: pictures are drawn and kept some prompts at a time, are the same, and are shared by sets of other sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from tiny import ONE, PROMPTS, saved

from diffopt.errors import ConfigError
from diffopt.files.images import ImagesFile
from diffopt.files.ranges import InputRange, RangesFile, merged
from diffopt.jobs import job
from diffopt.jobs.runner import run_plan

Made = Callable[..., tuple[dict[str, str], dict[str, Path]]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """`made("eval.size=4")` runs the tiny FLUX in INT8 with these: what became of its steps, and where they are."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    size = ["model.height=32", "model.width=32", "model.max_sequence_length=16", "model.long_prompts=cut"]
    calib = ["calib=default", "calib.size=2", "calib.batch_size=2", "calib.chunk=2", "calib.n_steps=1"]
    files = [f"calib.prompts={tmp_path / 'prompts.txt'}", f"eval.prompts={tmp_path / 'prompts.txt'}"]
    eval = ["eval=default", "eval.batch_size=2", "eval.steps=1", "eval.metrics=[psnr]", "eval.latency=false"]
    model = ["model=flux_dev", "model.dtype=float32", f"model.source={saved('flux', **ONE)}", "format=int8_sq"]

    def run(*overrides: str) -> tuple[dict[str, str], dict[str, Path]]:
        config = composed(*model, *size, *calib, *eval, *files, f"store={tmp_path / 'store'}", *overrides)
        ready = job.prepare(config, [], dry=False, sweep=False)
        done = run_plan(ready.plan, ready.choices, ready.store, ready.sources)
        there = {d.step.name: ready.store.entry(d.step.kind, d.step.fingerprint) for d in done}
        return {d.step.name: d.state for d in done}, {name: e.path for name, e in there.items() if e}

    return run


def test_parts_give_the_same_pictures_and_a_larger_set_draws_only_what_it_lacks(made: Made) -> None:
    _, whole = made("eval.size=4")
    first, few = made("eval.size=4", "eval.chunk=2")
    more, many = made("eval.size=6", "eval.chunk=2")
    for step in ("sample", "reference"):
        rows = ImagesFile.read(whole[step]).images
        for other in (few[step], many[step]):
            assert ImagesFile.read(other).images[:4] == rows
            assert all((other / r.file).read_bytes() == (whole[step] / r.file).read_bytes() for r in rows)
        assert first[f"{step}_part.1"] == "made"
        assert [more[f"{step}_part.{i}"] for i in range(3)] == ["cached", "cached", "made"]
        assert (few[step] / "003.png").stat().st_ino == (few[f"{step}_part.1"] / "001.png").stat().st_ino  # takes no room twice
    assert RangesFile.read(few["sample"]).prompts == 4


def test_the_reference_has_steps_of_its_own_and_shares_pictures_with_a_run_of_as_many(made: Made) -> None:
    made("eval.size=2", "eval.steps=2")
    states, there = made("eval.size=2", "eval.reference_steps=2")
    assert (states["reference"], states["sample"]) == ("cached", "made")
    assert there["sample"] != there["reference"]


def test_parts_that_batches_would_cross_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^eval.chunk: is not a multiple of eval.batch_size=16 \(got 24\)"):
        job.prepare(composed("+recipe=emoji_int8_sq", "eval.chunk=24"), [], dry=True, sweep=False)


def test_ranges_of_parts_add_up() -> None:
    def of(values: int, peak: float) -> RangesFile:
        given: dict[str, Any] = {"calls": 1, "calls_beyond": 1, "beyond": 2, "energy": 4.0, "error": 1.0, "clipped": 0.5}
        return RangesFile(2, 20, (InputRange("layer", values=values, peak=peak, **given),))

    found = merged([of(10, 1.5), of(20, 1.25)])
    assert (found.prompts, found.inputs[0].values, found.inputs[0].peak, found.inputs[0].error) == (4, 30, 1.5, 2.0)
