"""The parity of the native runtime with what is simulated: its stage, its gate, its place in plans and pages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contents import PARITY
from test_report import artifact, page, scored
from tiny import BATCH, PROMPTS, SEED, Bench, bench, prompt_set

from diffopt.artifact import Parity
from diffopt.errors import ConfigError, GateError, PlanError
from diffopt.files.parity import ParityFile
from diffopt.jobs import runtime_checks
from diffopt.kernels.fp8 import Fp8Linear
from diffopt.report import run_page
from diffopt.report.gate_outcomes import enforce, outcomes
from diffopt.report.run_directory import Run
from diffopt.runtimes import native
from diffopt.runtimes.agreement import Sums
from diffopt.stages.parity import ParityView, parity

STEPS = 3
GPU = [{"name": "a GPU", "capability": "9.0", "memory": 80 << 30}]


def measured(b: Bench, name: str, out: Path, batch: int = BATCH, **kw: Any) -> ParityFile:
    prompts = prompt_set(PROMPTS[:batch])
    view = ParityView(prompts=prompts, batch_size=batch, steps=STEPS)
    parity.run(b.context(out), b.call, view, b.pipeline(), b.encoded(prompts, batch), b.checkpoint(name, **kw), SEED)
    return ParityFile.read(out)


@pytest.mark.parametrize("name", ["fp8", "int8_sq"])
def test_kernels_agree_with_what_is_simulated_in_every_layer_and_step(tmp_path: Path, name: str) -> None:
    b = bench()
    found = measured(b, name, tmp_path)
    stored = json.loads((b.checkpoint(name).path / "checkpoint.json").read_text())
    assert [x.name for x in found.layers] == stored["layers"]
    assert {x.kind for x in found.layers} == {name.partition("_")[0]}
    assert (found.format, found.prompts, found.compiled, found.layer_steps) == (name, BATCH, False, [1, 2, 3])
    assert all(len(x.steps) == 3 and x.worst.relative_error < 2e-3 and x.worst.cosine > 0.9999 for x in found.layers)
    assert len(found.steps) == len(found.latents) == STEPS
    assert all(0 < s.relative_error < 0.02 and s.cosine > 0.999 for s in found.steps)
    assert all(0 < e < 0.02 for e in found.expected)
    assert 0 < max(found.latents) < 0.02
    assert len(found.psnr) == BATCH
    assert min(found.psnr) > 40


def test_what_no_kernel_takes_is_compared_as_a_fallback(tmp_path: Path) -> None:
    found = measured(bench(family="sdxl"), "fp8", tmp_path, batch=1)
    assert {x.kind for x in found.layers} == {"fp8", "fallback"}
    worst = {kind: max(x.worst.relative_error for x in found.layers if x.kind == kind) for kind in ("fp8", "fallback")}
    assert worst["fallback"] > worst["fp8"]  # their inputs are not rounded


def test_a_wrong_kernel_shows_in_its_layer_alone_and_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b, own = bench(), native.converted
    wrong = "transformer_blocks.0.attn.to_q"

    def broken(*given: Any) -> Any:
        backbone = own(*given)
        layer = backbone.get_submodule(wrong)
        assert isinstance(layer, Fp8Linear)
        layer.weight_scale *= 1.5
        return backbone

    monkeypatch.setattr(native, "converted", broken)
    found = measured(b, "fp8", tmp_path)
    off = {x.name: x.worst.relative_error for x in found.layers}
    assert off.pop(wrong) == pytest.approx(0.5, abs=0.05)
    assert max(off.values()) < 2e-3
    assert min(s.relative_error for s in found.steps) > 1e-4


def test_what_is_not_finite_is_refused_with_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = native.converted

    def broken(*given: Any) -> Any:
        backbone = own(*given)
        backbone.get_submodule("transformer_blocks.0.attn.to_q").weight_scale *= float("nan")
        return backbone

    monkeypatch.setattr(native, "converted", broken)
    with pytest.raises(GateError, match=r"^parity: transformer_blocks.0.attn.to_q in step 1 has no finite output \(got "):
        measured(bench(), "fp8", tmp_path)


def test_several_backbones_and_classifier_free_guidance_are_compared_call_by_call(tmp_path: Path) -> None:
    found = measured(bench(family="wan"), "int8_sq", tmp_path, batch=1)
    assert len(found.steps) == STEPS
    assert {x.name.partition(".")[0] for x in found.layers} == {"transformer", "transformer_2"}
    assert max(s.relative_error for s in found.steps) < 0.05


def test_sums_are_of_norms_and_angles() -> None:
    sums = Sums()
    sums.add(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
    sums.add(torch.tensor([[0.0]]), torch.tensor([[0.0]]))
    found = sums.agreement("it")
    assert found.relative_error == pytest.approx(0.8)
    assert found.cosine == pytest.approx(0.6)
    same = Sums()
    same.add(torch.zeros(2), torch.zeros(2))
    assert same.agreement("it").relative_error == 0


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_checks, "gpus", lambda: GPU)


def test_it_is_planned_for_native_with_a_format_alone(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    of_native = ("+recipe=emoji_fp8", "export=null", "eval.runtime=native")
    assert [s.name for s in plan(*of_native).wanted if s.kind == Parity.kind] == ["parity"]
    for overrides in (
        ("+recipe=emoji_fp8", "export=null"),
        ("+recipe=emoji_fp8", "export=null", "eval.parity=true"),
        (*of_native, "eval.parity=false"),
        (*of_native, "format=null", "calib=null"),
    ):
        assert "parity" not in {s.name for s in plan(*overrides).steps}


def test_it_depends_on_its_batch_and_not_on_metrics_or_gates(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)

    def step(*overrides: str) -> Any:
        steps = plan("+recipe=emoji_fp8", "export=null", "eval.runtime=native", *overrides).steps
        return next(s for s in steps if s.name == "parity").identity

    same = step("eval.metrics=[psnr]", "+eval.gates.parity=0.05")
    assert same["config"] == step()["config"]
    assert step("eval.size=32")["config"]["eval"]["prompts"] == same["config"]["eval"]["prompts"]
    assert step("eval.steps=5") != step()


def test_a_gate_on_it_needs_it(config: Any, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    gate = "+eval.gates.parity=0.05"
    with pytest.raises(ConfigError, match=r"^eval.gates.parity: nothing is compared \(got 0.05\); set eval.runtime=native"):
        plan("+recipe=emoji_fp8", gate)
    with pytest.raises(PlanError, match=r"^eval.gates.parity: without a format nothing is simulated"):
        plan("+recipe=emoji_fp8", "format=null", "calib=null", "export=null", "eval.runtime=native", gate)
    with pytest.raises(ConfigError, match=r"write the largest relative error of a step, such as 0.05"):
        plan("+recipe=emoji_fp8", "export=null", "eval.runtime=native", "+eval.gates.parity=-5%")
    plan("+recipe=emoji_fp8", "export=null", "eval.runtime=native", gate)


def test_the_simulated_candidate_is_that_of_the_torch_runtime(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    beside = plan("+recipe=emoji_fp8", "export=null", "eval.runtime=native", "eval.compare=[simulated]")
    alone = {s.name: s for s in plan("+recipe=emoji_fp8", "export=null").steps}
    steps = {s.name: s for s in beside.steps}
    assert steps["sample@simulated"].fingerprint == alone["sample"].fingerprint
    assert steps["score@simulated"].fingerprint == alone["score"].fingerprint
    assert steps["sample"].fingerprint != alone["sample"].fingerprint
    assert "compared with simulated: the same checkpoint by the torch runtime, which simulates it" in beside.notes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "eval.compare: torch simulates already, so that is the candidate itself (got simulated); leave it out"),
        (("format=null", "calib=null"), "eval.compare: there is no format, so nothing is simulated (got simulated)"),
    ],
)
def test_what_is_simulated_already_is_not_compared_with_itself(plan: Any, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(PlanError) as e:
        plan("+recipe=emoji_fp8", "eval.compare=[simulated]", *overrides)
    assert said in str(e.value)


def test_a_graph_is_compared_with_what_is_simulated(plan: Any) -> None:
    steps = {s.name: s for s in plan("+recipe=quickstart", "eval.compare=[simulated]").steps}
    assert steps["sample@simulated"].inputs["subject"] is steps["quantize"]
    assert steps["sample"].inputs["subject"] is steps["export"]


def run_with(directory: Path, gates: dict[str, Any], **changes: Any) -> Path:
    scored(directory)
    artifact(directory, "parity", {"parity.json": PARITY | changes})
    path = directory / "run.json"
    content = json.loads(path.read_text())
    content["config"] += f"eval: {json.dumps({'gates': gates})}\n"
    content["steps"].append(content["steps"][0] | {"name": "parity", "kind": "parity"})
    path.write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(("limit", "holds"), [(0.05, True), (0.02, True), (0.019, False)])
def test_a_gate_is_the_largest_error_of_a_step_at_most(tmp_path: Path, limit: float, holds: bool) -> None:
    (outcome,) = outcomes(Run(run_with(tmp_path, {"parity": limit})))
    assert (outcome.holds, outcome.found) == (holds, "0.02 in step 2 of 2")
    if not holds:
        with pytest.raises(GateError, match=r"^eval.gates.parity: is not reached \(got 0.02 in step 2 of 2, asked parity: 0.0"):
            enforce(Run(tmp_path))


def test_the_page_has_the_worst_layers_and_a_plot_and_the_console_a_line(tmp_path: Path) -> None:
    errors = [{"relative_error": i / 1e5, "cosine": 0.99} for i in range(12)]
    layers = [PARITY["layers"][0] | {"name": f"l{i}", "steps": [error]} for i, error in enumerate(errors)]
    run_with(tmp_path, {"parity": 0.05}, layers=layers)
    text = page(tmp_path)
    assert "Worst layers" in text
    assert text.index("l11") < text.index("l10") < text.index("l2<")
    assert "l1<" not in text  # of the worst ten only
    assert 'aria-label="Relative error of the native backbone in every denoising step"' in text
    said = "a step's output off by 2.00% at most (step 2 of 2; 1.00% is what the layers' errors come to), pictures "
    assert f"parity      {said}41.5 dB from the simulated, n=1; worst layer l11, 0.00011" in run_page.summary(tmp_path)
