"""Inputs that leave their calibrated range: counted while sampling, by layer, and what that says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_report import page, scored, words
from test_simulation import NAMES, WITH_ATTENTION, inputs_of, of, restored
from tiny import Bench, bench, call, called, folder
from tiny_pipelines import EMOJI

from diffopt.data import pictures
from diffopt.data.prompts import PromptSet
from diffopt.files.ranges import InputRange, RangesFile
from diffopt.groups.eval import RuntimeView
from diffopt.quantization.folding import fold
from diffopt.quantization.range_counter import counted
from diffopt.quantization.rounding import Rounding
from diffopt.quantization.tally import SUMS, Tally
from diffopt.quantization.traceable import traceable
from diffopt.report import run_page
from diffopt.report.ranges import Ranges
from diffopt.stages.sample import sample
from diffopt.stages.time import TimeView, time
from diffopt.store import assets

DYNAMIC = ("int4_awq", "mxfp8")
"""Formats without a static scale of an input."""

# one quantizer


@pytest.mark.parametrize("way", ["forward", "on_cpu"])
def test_what_is_beyond_the_range_is_counted_with_what_clipping_it_costs(way: str) -> None:
    tally = Tally(torch.tensor(2.0))
    values = torch.tensor([1.0, -2.0, 2.01, 4.0, -3.0])  # 2.01 is rounded to the range's end, not clipped
    getattr(tally, way)(values, values.clamp(-2, 2) + torch.tensor([0.5, 0, 0, 0, 0]))
    getattr(tally, way)(torch.tensor([[0.5, -0.5]]), torch.tensor([[0.5, -0.5]]))
    found = dict(zip(SUMS, tally.sums.tolist(), strict=True))
    assert (found["calls"], found["calls_beyond"], found["values"], found["beyond"]) == (2, 1, 7, 2)
    assert found["energy"] == pytest.approx(1 + 4 + 2.01**2 + 16 + 9 + 0.5)
    assert found["error"] == pytest.approx(0.25 + 0.01**2 + 4 + 1)
    assert found["clipped"] == pytest.approx(4 + 1)
    assert float(tally.peak) == 2


@pytest.mark.parametrize("way", ["forward", "on_cpu"])
def test_a_range_by_channel_is_each_channels_own(way: str) -> None:
    tally = Tally(torch.tensor([1.0, 4.0]))
    values = torch.tensor([[3.0, 3.0], [0.5, -5.0]])
    getattr(tally, way)(values, values)
    found = dict(zip(SUMS, tally.sums.tolist(), strict=True))
    assert (found["beyond"], float(tally.peak)) == (2, 3.0)
    assert found["clipped"] == pytest.approx(4 + 1)


@pytest.mark.parametrize("way", ["forward", "on_cpu"])
def test_zeros_do_not_leave_a_range_of_zero(way: str) -> None:
    tally = Tally(torch.tensor(0.0))
    getattr(tally, way)(torch.zeros(3), torch.zeros(3))
    found = dict(zip(SUMS, tally.sums.tolist(), strict=True))
    assert (found["beyond"], found["clipped"], float(tally.peak)) == (0, 0, 0)
    getattr(tally, way)(torch.tensor([0.0, 1e-3]), torch.zeros(2))
    assert int(tally.sums[SUMS.index("beyond")]) == 1
    assert np.isfinite(float(tally.peak))


# a backbone


def counts(model: Any, inputs: Any) -> dict[str, InputRange]:
    with counted({"transformer": model}) as found:
        call(model, inputs)
        return {x.name: x for x in found()}


def large(inputs: dict[str, Any]) -> dict[str, Any]:
    """Such as leave every range that the usual ones gave."""
    return {n: 3 * x if n in ("hidden_states", "encoder_hidden_states", "sample") else x for n, x in inputs.items()}


@pytest.mark.parametrize("family", ["flux", "sdxl"])
@pytest.mark.parametrize("name", NAMES)
def test_every_quantized_input_is_counted_alike_by_hooks_and_in_what_is_compiled(family: str, name: str) -> None:
    b = of(family)
    inputs = large(inputs_of(b))
    model = restored(b, name, mha=family == "flux" and name in WITH_ATTENTION)
    fold(model)
    plain = call(model, inputs)
    hooked = counts(model, inputs)
    assert bool(hooked) == (name not in DYNAMIC)
    assert any(x.beyond for x in hooked.values()) or name in DYNAMIC
    layers = {n for n, m in model.named_modules() if getattr(getattr(m, "input_quantizer", None), "amax", None) is not None}
    assert {n for n in hooked if not n.endswith("_bmm")} == (set() if name in DYNAMIC else layers)
    traceable(model)
    traced = counts(model, inputs)
    assert traced.keys() <= hooked.keys()
    for key, x in traced.items():
        same = hooked[key]
        assert (x.values % same.values, x.beyond % max(same.beyond, 1)) == (0, 0)  # of q, k and v, which round one, all three
        assert x.peak == pytest.approx(same.peak, rel=1e-5)
        assert x.clipped * same.calls == pytest.approx(same.clipped * x.calls, rel=1e-3)
    assert torch.equal(call(model, inputs), plain)


def test_operands_of_attention_are_counted_by_name() -> None:
    b = bench()
    model = restored(b, "fp8", mha=True)
    fold(model)
    hooked = counts(model, inputs_of(b))
    operands = {n for n in hooked if n.endswith("_bmm")}
    assert {"transformer_blocks.0.attn.q_bmm", "single_transformer_blocks.0.attn.v_bmm"} <= operands
    traceable(model)
    assert {n for n in counts(model, inputs_of(b)) if n.endswith("_bmm")} == operands


def test_a_block_that_counts_is_compiled_without_a_break() -> None:
    b = bench()
    inputs = large(inputs_of(b))
    model = restored(b, "int8_sq")
    fold(model)
    traceable(model)
    wanted = counts(model, inputs)
    torch._dynamo.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    found = counts(model, inputs)
    assert {n: (x.calls, x.beyond) for n, x in found.items()} == {n: (x.calls, x.beyond) for n, x in wanted.items()}


def test_afterwards_nothing_counts() -> None:
    b = bench()
    model = restored(b, "fp8")
    fold(model)
    counts(model, inputs_of(b))
    assert not [m for m in model.modules() if m._forward_hooks]
    traceable(model)
    counts(model, inputs_of(b))
    assert not [m for m in model.modules() if isinstance(m, Rounding) and m.tally is not None]


def test_several_backbones_name_their_inputs() -> None:
    b = bench()
    models = {n: restored(b, "fp8") for n in ("transformer", "transformer_2")}
    with counted(models) as found:
        call(models["transformer_2"], inputs_of(b))
        names = [x.name for x in found()]
    assert names  # of the other one, which is not called, nothing
    assert all(n.startswith("transformer_2.") for n in names)


# stages


def drawn(runtime: str, subject: Any) -> Path:
    b = bench(family="flux")
    view = RuntimeView(prompts=PromptSet("tests", b.prompts[:2]), batch_size=2, steps=2, runtime=runtime)
    context = b.context()
    sample.run(context, b.call, None, view, b.pipeline(), b.encoded(view.prompts, 2), subject, 5)
    return context.out


def test_sampling_writes_what_it_counted_and_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(family="flux")
    out = drawn("torch", b.checkpoint("int8_sq"))
    found = RangesFile.read(out)
    assert (found.prompts, found.steps) == (2, 2)
    assert {x.calls for x in found.inputs} == {2}
    monkeypatch.setattr("diffopt.quantization.range_counter._counting", lambda *_: iter(()))
    plain = drawn("torch", b.checkpoint("int8_sq"))
    assert not (plain / RangesFile.NAME).exists()
    for (_, ours), (_, theirs) in zip(pictures.read(out), pictures.read(plain), strict=True):
        assert np.array_equal(ours, theirs)


def test_without_quantizers_in_reach_there_is_nothing_to_count() -> None:
    b = bench(family="flux")
    for runtime, subject in (("torch", None), ("torch", b.checkpoint("mxfp8")), ("onnxruntime", b.graph("int8_sq"))):
        assert not (drawn(runtime, subject) / RangesFile.NAME).exists()


def test_timing_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("something was counted")

    b = bench(family="flux")
    monkeypatch.setattr(Tally, "forward", never)
    monkeypatch.setattr(Tally, "on_cpu", never)
    view = TimeView(prompts=PromptSet("tests", b.prompts[:1]), steps=1, runtime="torch", warmup=0, repeats=3)
    time.run(b.context(), b.call, None, view, b.pipeline(), b.checkpoint("int8_sq"), None, 5)
    with pytest.raises(AssertionError, match="something was counted"):
        drawn("torch", b.checkpoint("int8_sq"))


# the embedded model: INT8 at alpha 0.8 loses what unseen captions have beyond the calibrated range


def test_the_embedded_model_leaves_its_ranges_on_captions_that_it_was_not_calibrated_on() -> None:
    """16 prompts in 20 steps have 31.8 dB by 16 other captions, 43.0 by their own: here four of them, in four steps."""
    asked = [x["prompt"] for x in json.loads(assets.locate("asset:emoji/prompts_eval.json").read_text())][:4]
    others = assets.locate("asset:emoji/prompts_calib.txt").read_text().splitlines()[:16]
    assert not {*asked} & {*others}
    plain, _ = embedded(asked, None)
    pictures_of_others, by_others = embedded(asked, others)
    pictures_of_own, by_own = embedded(asked, asked)
    assert by_others is not None
    assert by_own is not None
    assert by_own.clipping < 0.01
    assert not by_own.matters
    assert by_others.clipping > 0.1
    assert by_others.matters
    assert by_others.exclusions
    assert all(".norm" in n and n.endswith("linear") for n in by_others.exclusions)  # AdaLN's inputs are the prompt
    assert "lower calib.alpha (got 0.8)" in (by_others.line or "")
    noise = [float(((x - plain) ** 2).mean()) for x in (pictures_of_others, pictures_of_own)]
    assert noise[0] > 4 * noise[1]  # 6 dB


def embedded(asked: list[str], calibrated: list[str] | None) -> tuple[np.ndarray, Ranges | None]:
    """The pictures of the embedded model, in INT8 where it is calibrated on captions, and what its inputs did."""
    b = Bench(folder(), EMOJI, call=called(64, 32), prompts=tuple(calibrated or asked))
    subject = b.checkpoint("int8_sq", alpha=0.8, size=len(b.prompts), steps=4) if calibrated else None
    view = RuntimeView(prompts=PromptSet("tests", tuple(asked)), batch_size=4, steps=4, runtime="torch")
    context = b.context()
    sample.run(context, b.call, None, view, b.pipeline(), b.encoded(view.prompts, 4), subject, 5)
    drawn = np.stack([picture for _, picture in pictures.read(context.out)]).astype(float)
    config = {"format": {"name": "int8_sq"}, "calib": {"size": len(b.prompts), "alpha": 0.8, "n_steps": 4}}
    return drawn, Ranges(RangesFile.read(context.out), config) if calibrated else None


# what is said


def used(name: str, beyond: int, clipped: float, error: float = 2.0, peak: float = 3.0) -> dict[str, Any]:
    about = {"name": name, "calls": 8, "calls_beyond": min(beyond, 4), "values": 1000, "beyond": beyond, "peak": peak}
    return about | {"energy": 100.0, "error": clipped + error, "clipped": clipped}


def ranged(directory: Path, *inputs: dict[str, Any], **content: Any) -> Path:
    scored(directory, **content)
    about = {"schema": "diffopt.ranges/1", "prompts": 3, "steps": 4, "inputs": [*inputs]}
    (directory / "sample" / RangesFile.NAME).write_text(json.dumps(about))
    return directory


def said(directory: Path) -> str:
    """The console's line."""
    (line,) = [x for x in run_page.summary(directory) if x.startswith("ranges")]
    return line


CONFIG = (
    "model: {family: flux, source: 'asset:tiny'}\n"
    "format: {name: int8_sq, exclude: [kept]}\n"
    "calib: {size: 16, n_steps: 2, alpha: 0.8, percentile: 0.5, collect_method: min-mean}\n"
)


def test_the_page_and_the_console_name_the_worst_inputs_what_clipping_costs_and_what_to_do(tmp_path: Path) -> None:
    ranged(tmp_path, used("a", 0, 0), used("b", 30, 54.0), used("c", 1, 0.1), config=CONFIG)
    what, *advice = said(tmp_path).split(maxsplit=1)[1].split("; ", 1)
    sets = "clipping sets the inputs off by 42.5%, rounding by 14.1%"  # roots of (0 + 0.54 + 0.001) / 3, and of 0.02
    assert what == f"2 of 3 inputs left their calibrated range: {sets}"
    worst, *advice = advice[0].split("; ")
    assert worst == "worst b: 3.00% of its values, up to 3.0 x the range"
    assert advice == [
        "raise calib.size (got 16), with prompts like those that are drawn",
        "or raise calib.n_steps (got 2, of 4 that are drawn)",
        "or set calib.percentile=1 (got 0.5)",
        "or set calib.collect_method=default (got min-mean)",
        "or lower calib.alpha (got 0.8)",
        "or keep b in full precision by format.exclude",
        "or choose format=mxfp8 calib=null, whose ranges are found as it computes",
    ]
    text = words(page(tmp_path))
    assert "2 of 3 quantized inputs left the range that they were calibrated for." in text
    assert sets.capitalize() in text
    assert "b 3.000 50 3.00 73.48 14.14 c 0.100 12 3.00 3.16 14.14" in text
    assert "format: exclude: - kept - b" in text


def test_what_costs_little_is_told_without_advice(tmp_path: Path) -> None:
    ranged(tmp_path, used("a", 0, 0), used("b", 3, 0.4), config=CONFIG)
    line = said(tmp_path)
    assert line.split(maxsplit=1)[1] == (
        "1 of 2 inputs left their calibrated range: clipping sets the inputs off by 4.5%, rounding by 14.1%"
    )
    text = words(page(tmp_path))
    assert "Lower calib.alpha" not in text
    assert "To paste" not in text


def test_where_none_left_its_range_the_console_is_silent_and_the_page_says_so(tmp_path: Path) -> None:
    ranged(tmp_path, used("a", 0, 0))
    assert not [x for x in run_page.summary(tmp_path) if x.startswith("ranges")]
    assert "None of 1 quantized inputs left the range" in words(page(tmp_path))


def test_a_run_of_an_older_version_has_no_ranges(tmp_path: Path) -> None:
    assert "Ranges" not in words(page(scored(tmp_path)))


def test_the_advice_is_that_of_the_format(tmp_path: Path) -> None:
    config = "model: {family: flux}\nformat: {name: fp8, quantize_mha: true}\ncalib: {size: 4, alpha: 0.8}\n"
    ranged(tmp_path, used("x.attn.q_bmm", 9, 50.0), config=config)
    line = said(tmp_path)
    assert "alpha" not in line
    assert "percentile" not in line
    assert "exclude" not in line  # an operand is no layer
    assert "set format.quantize_mha=false" in line


@pytest.mark.parametrize(
    ("format", "advice"),
    [
        ("{name: nvfp4}", "set format.inputs=headroom, which"),
        ("{name: nvfp4, inputs: headroom}", ""),
        ("{name: int8, inputs: mse}", "set format.inputs=max (got mse)"),
        ("{name: fp8}", ""),
    ],
)
def test_the_advice_names_another_range_where_there_is_a_wider_one(tmp_path: Path, format: str, advice: str) -> None:
    config = f"model: {{family: flux}}\nformat: {format}\ncalib: {{size: 4}}\n"
    ranged(tmp_path, used("a", 9, 50.0), config=config)
    line = said(tmp_path)
    assert advice in line if advice else "format.inputs" not in line


def test_no_more_is_excluded_than_makes_most_of_it() -> None:
    inputs = [InputRange(f"l{i}", 1, 1, 10, 1, 2.0, 1.0, 0.5, 0.5 if i < 3 else 1e-4) for i in range(40)]
    found = Ranges(RangesFile(1, 1, tuple(inputs)), {"format": {}, "calib": {}})
    assert found.exclusions == ["l0", "l1", "l2"]
    assert found.block == "format:\n  exclude:\n    - l0\n    - l1\n    - l2"
