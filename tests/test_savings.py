"""What a sweep computed, what its jobs shared, and why jobs fell together."""

import json
from pathlib import Path

import pytest
from sweeps import failed, findings, job, psnr
from test_grid import ALPHA, FORMAT, SIZE, grid

SECONDS = {"load": 5.0, "observe": 100.0, "quantize": 10.0, "score": 20.0}


def ran(directory: Path, steps: dict[str, tuple[str, str]], *overrides: str) -> None:
    """A job with these steps; each artifact's record says what making it took."""
    job(directory, psnr(40.0), steps=steps, overrides=list(overrides))
    for name in steps:
        (directory / name).mkdir(exist_ok=True)
        record = {"provenance": {"seconds": SECONDS[name.partition(".")[0]]}}
        (directory / name / "record.json").write_text(json.dumps(record))


def shared(directory: Path) -> Path:
    """Job 0 makes all but `load`, 1 takes its observation, 2 is the same as 1; 3 failed."""
    ran(
        directory / "0",
        {"load": ("l", "cached"), "observe": ("o", "made"), "quantize": ("q0", "made"), "score": ("s0", "made")},
    )
    ran(
        directory / "1",
        {"load": ("l", "cached"), "observe": ("o", "cached"), "quantize": ("q1", "made"), "score": ("s1", "made")},
    )
    ran(
        directory / "2",
        {"load": ("l", "cached"), "observe": ("o", "spare"), "quantize": ("q1", "cached"), "score": ("s1", "cached")},
        "a=1",
    )
    failed(directory / "3")
    return directory


def test_artifacts_are_counted_once(tmp_path: Path) -> None:
    found = findings(shared(tmp_path)).savings
    assert (found.made, found.found, found.shared) == (5, 1, 4)


def test_seconds_saved_are_those_of_each_job_alone_less_those_spent(tmp_path: Path) -> None:
    found = findings(shared(tmp_path)).savings
    assert found.alone == {"0": 135.0, "1": 135.0, "2": 35.0}  # the spare step took nothing
    assert found.spent == 100 + 10 + 20 + 10 + 20
    assert found.saved == 305 - 160


def test_what_saved_them_adds_up(tmp_path: Path) -> None:
    found = findings(shared(tmp_path)).savings
    assert (found.by_duplicates, found.by_store, found.by_sharing) == (35.0, 5.0, 105.0)
    assert found.by_duplicates + found.by_store + found.by_sharing == found.saved


def test_a_stage_has_its_artifacts_uses_and_seconds(tmp_path: Path) -> None:
    observe = next(s for s in findings(shared(tmp_path)).savings.stages if s["stage"] == "observe")
    assert observe == {"stage": "observe", "artifacts": 1, "made": 1, "uses": 2, "jobs": 2, "spent": 100.0, "alone": 200.0}


def test_a_step_is_the_cost_of_the_job_that_first_wanted_it(tmp_path: Path) -> None:
    found = findings(shared(tmp_path)).savings
    assert [found.spent_by(job) for job in ("0", "1", "2", "3")] == [130.0, 30.0, 0.0, 0.0]


def test_a_lost_record_makes_the_sum_a_lower_bound(tmp_path: Path) -> None:
    shared(tmp_path)
    for name in ("0", "1", "2"):
        (tmp_path / name / "load/record.json").unlink()
    found = findings(tmp_path).savings
    assert not found.known
    assert found.alone["0"] == 130.0


@pytest.mark.parametrize(("inert", "said"), [
    (("fp8", "calib.alpha"), ["no step reads calib.alpha under format=fp8: 6 jobs are 2"]),
    (None, []),
])  # fmt: skip
def test_a_key_that_nothing_reads_is_why_jobs_fell_together(
    tmp_path: Path, inert: tuple[str, str] | None, said: list[str]
) -> None:
    assert [r.text for r in findings(grid(tmp_path, dict([ALPHA, SIZE, FORMAT]), inert)).reasons] == said


def test_forty_five_jobs_of_which_alpha_concerns_a_third_are_twenty_one(tmp_path: Path) -> None:
    first: dict[tuple[str, ...], str] = {}
    number = 0
    for kind in ("int8_sq", "fp8", "nvfp4"):
        for alpha in ("0.6", "0.7", "0.8", "0.9", "1.0"):
            for size in ("32", "64", "128"):
                original = first.setdefault((kind, size, *([alpha] if kind == "int8_sq" else [])), str(number))
                overrides = [f"calib.alpha={alpha}", f"calib.size={size}", f"format={kind}"]
                job(tmp_path / str(number), psnr(40.0), same_as=original, overrides=overrides)
                number += 1
    found = findings(tmp_path)
    assert (len(found.rows), found.distinct) == (45, 21)
    assert [r.text for r in found.reasons] == [
        "no step reads calib.alpha under format=fp8: 15 jobs are 3",
        "no step reads calib.alpha under format=nvfp4: 15 jobs are 3",
    ]


def test_jobs_given_the_same_twice_are_said_to_be_so(tmp_path: Path) -> None:
    job(tmp_path / "0", psnr(40.0), overrides=["seed=1"])
    job(tmp_path / "1", psnr(40.0), overrides=["seed=1"], same_as="0")
    assert [r.text for r in findings(tmp_path).reasons] == ["the same settings were given more than once: 2 jobs are 1"]
