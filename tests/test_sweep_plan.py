"""A sweep before it runs: which of its jobs fall together, what they share, and what is refused by name."""

from collections import Counter

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from diffopt.cli import plan
from diffopt.cli.main import main
from diffopt.cli.searchpath import bundled, register
from diffopt.errors import PlanError
from diffopt.machine import environment, worker
from diffopt.sweep.plan import SweepPlan, plan_sweep

CHEAP = ("export=null", "eval=null")


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """`planned("calib.alpha=0.5,1")` plans that sweep over the embedded model."""
    monkeypatch.chdir(tmp_path)

    def planned(*overrides: str) -> SweepPlan:
        register()
        asked = [plan.spelled(o) for o in ("+recipe=emoji_int8_sq", *overrides)]
        config = plan.composed(asked, sweep=True)
        with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
            return plan_sweep(config, GlobalHydra.instance().hydra.config_loader)

    return planned


def test_jobs_that_a_value_means_nothing_to_fall_together(planned):
    found = planned(*CHEAP, "calib.alpha=0.2,0.8", "format=int8_sq,fp8")
    assert {j.overrides[-2:] for j in found.distinct} == {
        ("calib.alpha=0.2", "format=int8_sq"),
        ("calib.alpha=0.2", "format=fp8"),
        ("calib.alpha=0.8", "format=int8_sq"),
    }
    assert found.summary == "sweep   4 jobs, 3 distinct"


def test_a_step_that_several_jobs_need_is_there_once(planned):
    table = planned("calib.alpha=0.2,0.8", "calib.size=8,16").table().splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in table if line and line.split()[0] in ("observe", "quantize")}
    assert rows == {"observe": ["2", "2", "6"], "quantize": ["4", "4", "4"]}  # chunks of 8 prompts: the first serves both sizes


def test_a_value_that_no_job_reads_is_refused_by_name(planned):
    with pytest.raises(PlanError, match=r"^calib.percentile: .*INT8 convolution.* every one of the 4 jobs \(got 0.5,1\)"):
        planned("calib.percentile=0.5,1", "format=fp8,int8_sq")


def test_a_search_of_what_no_job_reads_is_refused_by_name(planned):
    with pytest.raises(PlanError, match=r"^calib.alpha: "):
        planned("hydra/sweeper=optuna", "calib.alpha=interval(0,1)", "format=fp8")


def test_a_search_is_planned_by_the_ends_of_its_ranges(planned):
    found = planned("hydra/sweeper=optuna", "calib.alpha=interval(0,1)", "calib.size=range(8,33,8)")
    ends = Counter(o for j in found.jobs for o in j.overrides if o.startswith("calib."))
    assert set(ends) == {"calib.alpha=0.0", "calib.alpha=1.0", "calib.size=8", "calib.size=32"}
    assert found.summary == "sweep   a search over calib.alpha, calib.size"


def test_a_job_that_cannot_run_is_left_to_fail_in_its_turn(planned):
    found = planned("calib.alpha=0.5,7")
    assert [bool(j.job) for j in found.jobs] == [True, False]
    assert "1 of 2 jobs: calib.alpha:" in found.table()


def test_a_sweep_in_which_no_job_can_run_is_refused_with_every_reason(planned):
    with pytest.raises(PlanError) as e:
        planned("calib.alpha=6,7")
    assert [line.split(" (")[1].split(")")[0] for line in str(e.value).splitlines()] == ["got 6", "got 7"]


def test_times_are_not_taken_beside_other_jobs_on_the_same_cores(planned, monkeypatch):
    timed = ("export=onnx", "eval.runtime=onnxruntime", "eval.latency=true", "calib.alpha=0.2,0.8")
    monkeypatch.setenv(worker.JOBS, "2")
    with pytest.raises(PlanError, match=r"^eval.latency: .*joblib"):
        planned(*timed, "hydra/launcher=joblib")
    assert len(planned(*timed).jobs) == 2
    monkeypatch.setattr(
        environment, "gpus", lambda: ({"visible": "0", "name": "a GPU", "capability": "9.0", "memory": 80 << 30},) * 2
    )
    assert len(planned(*timed, "hydra/launcher=joblib").jobs) == 2


@pytest.mark.parametrize(
    ("option", "extra", "part"),
    [
        ("hydra/launcher=joblib", "joblib", "joblib"),
        ("hydra/launcher=submitit_slurm", "submitit", "submitit"),
        ("hydra/launcher=ray", "ray", "ray_launcher"),
        ("hydra/sweeper=optuna", "optuna", "optuna"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_what_installs_it(planned, monkeypatch, option, extra, part):
    there = {k: v for k, v in Plugins.instance().class_name_to_class.items() if part not in k}
    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", there)
    with pytest.raises(
        PlanError, match=rf"{option.replace('=', ': is not installed .got ')}.; `pip install 'diffopt\[{extra}\]'`"
    ):
        planned(option, "calib.alpha=0.2,0.8")


def test_a_group_cannot_be_swept_with_null(planned):
    with pytest.raises(PlanError, match=r"^cache: .*cache=none"):
        planned("cache=null,first_block")
    assert len(planned("cache=none,first_block").distinct) == 2


def test_a_sweep_is_planned_quickly(planned, monkeypatch):
    """45 jobs compose once for each format."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    composed = Counter()
    own = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda *a: (composed.update(n=1), own(*a))[1])
    found = planned("calib.alpha=0.6,0.7,0.8,0.9,1.0", "calib.size=8,16,32", "format=int8_sq,fp8,nvfp4")
    assert (len(found.jobs), len(found.distinct), composed["n"]) == (45, 21, 3)


def test_the_plan_of_a_recipe_that_sweeps_is_a_sweeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["plan", "+recipe=emoji_int8_grid"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("6 jobs, 6 distinct; ")
    assert list(tmp_path.iterdir()) == []
