"""What is foretold of a step before it runs, and what it says when the memory lacks all the same."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from activations import configs, options, size
from safetensors.torch import load_file
from test_cost import GIB, QUICK, Prepare, by_name, fill
from tiny import TINY, saved

from diffopt import models
from diffopt.cli.main import main
from diffopt.cli.plan import numbers, table
from diffopt.errors import GateError, PlanError
from diffopt.jobs import runner, runtime_checks
from diffopt.jobs.memory import Held, _placed
from diffopt.machine import environment
from diffopt.models import activations
from diffopt.models.family import Size
from diffopt.pipeline.activations import _empty, _trained, kept, measured_at, most
from diffopt.pipeline.placement import place
from diffopt.report.run_page import far

H100 = {"name": "an H100", "capability": "9.0", "memory": 80 << 30, "visible": "0", "uuid": "GPU-0"}
FLUX = ("model=flux_dev", "format=fp8", "calib=images", "export=onnx", "export.high_precision_dtype=float16")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`gpu(80)` gives the machine a GPU of so many GiB."""

    def give(gib: int) -> None:
        there = (H100 | {"memory": gib << 30},)
        for module in (environment, runtime_checks):
            monkeypatch.setattr(module, "gpus", lambda: there)
        monkeypatch.setattr(environment, "gpu_free", lambda: None)

    return give


# What a call takes.


def test_what_is_alive_at_once_is_counted_and_weights_are_not() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(1000, 4000), torch.nn.ReLU(), torch.nn.Linear(4000, 1000))
        x = torch.empty(50, 1000)
    assert most(model, lambda: model(x)) == 4 * 50 * (4000 + 4000)  # before and after the ReLU; the input is the caller's


def test_attention_holds_no_number_for_each_pair_of_tokens() -> None:
    with torch.device("meta"):
        q = torch.empty(1, 2, 4096, 64)
    taken = most(torch.nn.Identity(), lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert taken == q.numel() * 4


def test_what_a_gradient_needs_is_counted_once_and_weights_are_not() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(1000, 4000), torch.nn.ReLU(), torch.nn.Linear(4000, 1000))
        x = torch.empty(50, 1000)
    assert kept(model, lambda: model(x)) == 4 * 50 * (1000 + 4000)  # the second layer's input, and what it gave


@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_on_the_meta_device_a_gradient_needs_what_it_needs(name: str) -> None:
    """Beside the same backbone with numbers, and the attention that it has here."""
    family, folder = models.family(TINY[name].family), saved(name)
    config, vae = (json.loads((folder / n / "config.json").read_text()) for n in (family.backbones[0], "vae"))
    size = Size(2, 2 * family.size_step, 2 * family.size_step, TINY[name].tokens or 8)
    empty = _empty(config, torch.float32)
    real = getattr(diffusers, config["_class_name"]).from_config(config).eval()
    inputs = family.call(family.inputs(real, vae, size))
    seen: dict[int, torch.Tensor] = {}
    weights = {x.untyped_storage().data_ptr() for x in real.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = real(**inputs, return_dict=False)
    needs = sum(x.untyped_storage().nbytes() for x in seen.values())
    assert _trained(empty, family, vae, size) == pytest.approx(needs, rel=0.05)
    assert made[0].requires_grad


@pytest.mark.parametrize("name", ["emoji_flux", "emoji_sdxl"])
def test_the_table_has_what_is_measured(name: str) -> None:
    option = dict(options())[name]
    backbone, vae = configs(option)
    known = activations.known(option.family, backbone, vae)
    assert known is not None
    twice = Size(2, option.height * 2, option.width, size(option).text)  # the table has how it grows
    found = measured_at(models.family(option.family), backbone, vae, twice, 4)
    assert (known.parameters, known.vae) == (found.parameters, found.vae)
    assert known.call[4].at(twice) == pytest.approx(found.call[4].at(twice), rel=0.02)
    assert known.decode[4].at(twice) == pytest.approx(found.decode[4].at(twice), rel=0.02)
    assert known.kept[4].at(twice) == pytest.approx(found.kept[4].at(twice), rel=0.02)


@pytest.mark.parametrize("name", ["hunyuan_video15", "sana"])
def test_a_backbone_that_asks_for_numbers_or_has_another_kind_of_vae_is_measured_too(name: str) -> None:
    """HunyuanVideo 1.5 asks whether its picture is all zeros, and sorts texts by masks; Sana's VAE is an AutoencoderDC."""
    family = models.family(TINY[name].family)
    backbone, vae = (json.loads((saved(name) / n / "config.json").read_text()) for n in (family.backbones[0], "vae"))
    side = 2 * family.size_step
    found = measured_at(family, backbone, vae, Size(1, side, side, TINY[name].tokens or 8, TINY[name].frames or 1), 2)
    weights = [load_file(p) for p in (saved(name) / family.backbones[0]).glob("*.safetensors")]
    assert found.parameters == sum(x.numel() for part in weights for x in part.values())
    assert found.call[2].each.fixed > 0
    assert found.decode[2].each.fixed > side * side * 3 * 2  # more than the picture that it gives


@pytest.mark.matrix
def test_every_model_that_can_be_chosen_is_in_the_table() -> None:
    assert [name for name, option in options() if activations.known(option.family, *configs(option)) is None] == []


# What a step takes.


def test_the_embedded_models_steps_are_foretold_by_the_libraries(prepare: Prepare) -> None:
    """`diffopt +recipe=quickstart eval.size=16 eval.steps=4` took, in a fresh store on a CPU, in MiB of RAM:"""
    took = {"load": 856, "embed.0": 894, "observe.0": 1117, "quantize": 1106, "export": 1165, "build": 1477, "sample": 1436}
    foretold = by_name(prepare("+recipe=quickstart"))
    for name, mib in took.items():
        assert foretold[name].ram == pytest.approx(mib * 2**20, rel=0.25), name
        assert not foretold[name].recorded


def test_a_model_that_is_not_here_is_foretold_by_its_architecture(prepare: Prepare, gpu: Any) -> None:
    gpu(80)
    made = prepare(*FLUX)
    foretold = by_name(made)
    weights = 11_901_408_320 * 2
    assert weights < foretold["observe.0"].gpu < 1.15 * weights
    assert foretold["embed.0"].gpu is None  # its text encoders are on the hub alone
    assert foretold["export"].disk == pytest.approx(weights / 2, rel=0.1)
    assert re.search(r"step +GPU +RAM +disk +time", table(made))


def test_flux_on_a_gpu_takes_what_is_foretold(prepare: Prepare, gpu: Any) -> None:
    """`python tests/bench_preflight.py DIRECTORY --short` printed of its first job on an H200, in GiB:"""
    gpu(139)
    job = ("model=flux_dev", "model.weights=random", "format=fp8", "calib=images", "calib.size=4", "calib.batch_size=2")
    timed = ("eval=images", "eval.metrics=[]", "eval.latency=true", "eval.runtime=native", "eval.steps=4", "eval.repeats=3")
    foretold = by_name(prepare(*job, "calib.chunk=4", "calib.n_steps=2", *timed))
    ram = {"load": 0.88, "encode": 1.26, "embed": 1.18, "observe": 1.66, "quantize": 1.73, "parity": 2.26, "time": 2.18}
    assert {n: foretold[n].ram / 2**30 for n in ram} == pytest.approx(ram, rel=0.25)
    took = {"observe": 23.14, "quantize": 22.21, "parity": 37.58, "time": 55.85}
    assert {n: foretold[n].gpu / 2**30 for n in took} == pytest.approx(took, rel=0.25)


def test_training_on_whole_drawings_takes_what_is_foretold(prepare: Prepare, gpu: Any) -> None:
    """`diffopt +recipe=emoji_four_bits_qad --multirun format=nvfp4` took 24.7 GB of an H200; with half the batch 18.6 GB of RAM
    on a CPU, whose quantizers and attention keep more."""
    job = ("+recipe=emoji_four_bits_qad", "format=nvfp4")
    foretold = by_name(prepare(*job, "train.batch_size=32"))["train"].ram
    assert 0.5 * 18.6e9 < foretold < 18.6e9
    gpu(139)
    assert by_name(prepare(*job))["train"].gpu == pytest.approx(24.7e9, rel=0.1)
    less = by_name(prepare(*job, "train.micro_batch=16"))["train"].gpu
    assert less == pytest.approx(24.7e9 / 4, rel=0.2)
    for other in ("train.gradient_checkpointing=true", "train.distillation.trajectory=null"):
        assert by_name(prepare(*job, other))["train"].gpu < 2e9
    for targets, share in (("*", 1.0), ("transformer_blocks.0.attn.to_q", 1 / 64)):  # at least
        lora = by_name(prepare(*job, f"train.lora={{rank: 4, alpha: 4, targets: ['{targets}']}}"))["train"].gpu
        assert lora == pytest.approx(23.4e9 * share, rel=0.05, abs=0.2e9)


def test_each_of_several_processes_has_memory_of_its_own(prepare: Prepare) -> None:
    job = ("+recipe=emoji_fp4_qad", "format=nvfp4")
    assert by_name(prepare(*job))["train"].ram > 1e9
    assert by_name(prepare(*job, "train.processes=2"))["train"].ram is None


def test_a_larger_batch_takes_more(prepare: Prepare, gpu: Any) -> None:
    gpu(80)
    one, eight = (by_name(prepare(*FLUX, f"calib.batch_size={n}", "calib.chunk=8"))["observe.0"].gpu for n in (1, 8))
    assert eight - one == pytest.approx(7 * 428 * 2**20, rel=0.1)


@pytest.mark.parametrize(("gib", "said"), [(80, ""), (40, ""), (24, "by parts"), (9, "by blocks")])
def test_what_does_not_fit_is_placed_by_parts_or_by_blocks(gib: int, said: str) -> None:
    weights = {"backbone": 16 << 30, "VAE": 8 << 30}
    taken, placed = _placed(Held(weights, 1 << 30), gib << 30)
    assert placed == said
    assert taken <= gib << 30


def test_a_record_goes_before_the_rule_but_not_of_another_batch(prepare: Prepare) -> None:
    fill(prepare(QUICK, "eval.size=8"), peak=7 * GIB)
    foretold = by_name(prepare(QUICK, "eval.size=16"))
    assert (foretold["sample"].ram, foretold["sample"].recorded) == (7 * GIB, True)
    assert by_name(prepare(QUICK, "eval.size=16", "eval.batch_size=2"))["sample"].ram < 2 * GIB


# What is said.


def test_a_training_that_may_not_fit_is_told_to_keep_less_of_its_calls(prepare: Prepare, gpu: Any) -> None:
    job = ("+recipe=emoji_four_bits_qad", "format=nvfp4")
    gpu(24)
    (line,) = [x for x in prepare(*job).warnings if x.startswith("memory: train takes about")]
    assert "; set train.gradient_checkpointing=true, lower train.micro_batch, model.height" in line
    assert not [x for x in prepare(*job, "train.gradient_checkpointing=true").warnings if "memory: train" in x]


def test_the_plan_of_a_sweep_warns_once_of_what_may_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any, capsys: Any
) -> None:
    gpu(24)
    monkeypatch.chdir(tmp_path)
    main(["plan", "+recipe=emoji_four_bits_qad"])
    assert capsys.readouterr().out.count("warning: memory: train takes about") == 1


def test_what_may_not_fit_is_warned_of_with_the_setting_that_lowers_it(prepare: Prepare, gpu: Any) -> None:
    gpu(30)
    made = prepare(*FLUX, "calib.batch_size=16", "calib.chunk=16")
    (line,) = [x for x in made.warnings if x.startswith("memory: observe.0 takes about")]
    assert line.endswith("lower calib.batch_size, model.height or model.width, or use a larger GPU")
    assert f"warning: {line}" in table(made)
    gpu(80)
    assert not [x for x in prepare(*FLUX).warnings if x.startswith("memory: observe") and "GPU" in x]


def test_a_gated_repository_without_a_token_is_warned_of(
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert [x for x in prepare(*FLUX).warnings if x.startswith("hub: black-forest-labs/FLUX.1-dev is gated")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [x for x in prepare(*FLUX).warnings if "HF_HUB_OFFLINE forbids to download it" in x]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    assert not [x for x in prepare(*FLUX).warnings if x.startswith("hub")]


def test_a_full_disk_is_warned_of(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffopt.jobs.warnings.disk_usage", lambda _: SimpleNamespace(free=10 << 20))
    assert [x for x in prepare("+recipe=quickstart").warnings if x.startswith("disk: the artifacts take about")]


def test_findings_of_all_kinds_are_said_at_once(
    prepare: Prepare, gpu: Any, roomy: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu(30)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("diffopt.jobs.warnings.find_spec", lambda _: None)
    with pytest.raises(PlanError) as caught:
        prepare(*FLUX, "calib.batch_size=16", "calib.chunk=16", "format.name=nvfp4", "format.quantize_mha=true", "eval=images",
                "eval.runtime=native", "eval.size=1", "calib.n_steps=5000")  # fmt: skip
    assert str(caught.value) == (
        "eval.runtime: nvfp4 has kernels from compute capability 10.0 on (got an H100 with 9.0); set eval.runtime=torch, which "
        "simulates"
    )
    assert caught.value.__notes__ == [
        "warning: memory: the weights of parity do not fit the GPU's 30.0 GiB and are moved there by parts, which is slower "
        "(got 1 such steps); use a larger GPU, or a 16-bit model.dtype",
        "warning: memory: observe.0 takes about 29.8 GiB of the GPU's 30.0 GiB (got an estimate); lower calib.batch_size, "
        "model.height or model.width, or use a larger GPU",
        "warning: hub: black-forest-labs/FLUX.1-dev is gated, and there is no token here (got none in HF_TOKEN or `hf auth "
        "login`'s file); accept its licence on its page, and log in",
        "warning: format.quantize_mha: attention is computed in 16 bits by native, since nvidia-cudnn-frontend is not "
        "installed (got true); pip install 'diffopt[native]'",
    ]


def test_the_numbers_are_there_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    main(["plan", "+recipe=emoji_fp8", "--json"])
    found = json.loads(capsys.readouterr().out)
    quantize = next(s for s in found["steps"] if s["name"] == "quantize")
    assert (quantize["state"], quantize["recorded"], quantize["seconds"]) == ("to run", False, None)
    assert quantize["ram"] > 2**29
    assert found["total"]["peak"]["ram"] >= quantize["ram"]


def test_the_numbers_of_a_plan_with_nothing_to_run_are_none(prepare: Prepare) -> None:
    made = prepare(QUICK)
    fill(made)
    found = numbers(prepare(QUICK))
    assert {s["state"] for s in found["steps"]} == {"cached"}
    assert found["total"]["peak"] == {}


# When it lacks all the same.


class Full(RuntimeError):
    """As torch's OutOfMemoryError says it."""

    def __init__(self) -> None:
        super().__init__("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def tried(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tried("quantize", 1)` makes a step whose first run finds the GPU full: whether each was lean, and the record."""

    def run(name: str, times: int) -> tuple[list[bool], Any]:
        made, seen = prepare(QUICK), []

        def once(step: Any, store: Any, sources: Any, out: Path, along: Any, lean: bool) -> dict[str, int]:
            seen.append(lean)
            if len(seen) <= times:
                raise Full
            (out / "x").write_bytes(b"")
            return {"gpu": 7}

        monkeypatch.setattr(runner, "_run", once)
        made.store.open()
        step = next(s for s in made.plan.steps if s.name == name)
        runner._made(step, [], made.store, made.sources, by_name(made)[name])
        entry = made.store.entry(step.kind, step.fingerprint)
        assert entry
        return seen, entry.record["provenance"]

    return run


def test_a_full_gpu_is_tried_once_more_with_less_there_at_once(tried: Any) -> None:
    assert tried("quantize", 1)[0] == [False, True]


def test_what_was_foretold_is_kept_beside_what_was_measured(tried: Any) -> None:
    made = tried("quantize", 0)[1]
    assert made["peak_bytes"] == {"gpu": 7}
    assert made["estimated"]["peak_bytes"]["ram"] > 2**29


def test_a_gpu_that_is_full_again_ends_in_what_was_needed_and_what_to_set(tried: Any) -> None:
    with pytest.raises(GateError) as caught:
        tried("sample", 2)
    assert str(caught.value).startswith("sample: there is no more GPU memory (got CUDA out of memory.")
    assert "or take smaller batches (eval.batch_size)" in str(caught.value)


def test_a_measurement_is_not_tried_again_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def full(*_: Any) -> None:
        seen.append(1)
        raise Full

    monkeypatch.setattr(runner, "_make", full)
    step = SimpleNamespace(name="time", stage=SimpleNamespace(name="time"))
    with pytest.raises(GateError):
        runner._made(step, [], None, None, None)  # type: ignore[arg-type]
    assert seen == [1]


def test_lean_is_one_component_at_a_time_whatever_fits() -> None:
    said: list[str] = []
    pipe = SimpleNamespace(vae=object(), enable_model_cpu_offload=lambda device: said.append(device))
    assert place(pipe, "cuda", lean=True) is pipe
    assert said == ["cuda"]


@pytest.mark.parametrize(("estimated", "shown"), [(10.0, False), (12.4, False), (12.6, True), (7.4, True), (None, False)])
def test_the_page_shows_both_where_they_are_further_apart_than_a_quarter(estimated: float | None, shown: bool) -> None:
    assert far(estimated, 10.0) == shown
