"""What the model's configs rule out is refused in a line before anything computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import Bench, bench

from diffopt.artifact import Pipeline
from diffopt.errors import PlanError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.validate import choose
from diffopt.jobs import preflight
from diffopt.machine import environment
from diffopt.view import Choices


@pytest.fixture
def chosen(config: Any) -> Any:
    """`chosen("format=fp8", ...)`: the embedded model's recipe with these overrides, as validated choices."""

    def of(*overrides: str) -> Choices:
        return choose(config("+recipe=emoji_int8_sq", "calib.prompts=asset:emoji/prompts_calib.txt", *overrides))

    return of


def changed(b: Bench, folder: Path, **facts: Any) -> Pipeline:
    """The bench's pipeline with other facts in pipeline.json."""
    copy = Path(shutil.copytree(b.pipeline().path, folder / "copy"))
    path = copy / "pipeline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return Pipeline(copy, "p")


def refused(b: Bench, choices: Choices, pipeline: Pipeline | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        preflight.check(b.context(), choices, pipeline or b.pipeline())
    return str(caught.value)


FINE = ("model.long_prompts=cut",)


def test_what_the_model_can_do_passes(chosen: Any) -> None:
    preflight.check(bench().context(), chosen(*FINE), bench().pipeline())


def test_an_exclusion_that_matches_nothing_is_named(chosen: Any) -> None:
    said = refused(bench(), chosen(*FINE, "format.exclude=[transformer_blocks.0,transformer_block.0]"))
    assert said.startswith("format.exclude: matches no layer that is quantized (got 'transformer_block.0')")
    assert "\n" not in said


def test_an_exclusion_of_what_is_kept_anyway_is_named(chosen: Any) -> None:
    assert "'norm_out'" in refused(bench(), chosen(*FINE, "format.exclude=[norm_out]"))


def test_excluding_every_layer_is_refused(chosen: Any) -> None:
    said = refused(bench(), chosen(*FINE, "format.exclude=[transformer_blocks.*,single_transformer_blocks.*]"))
    assert "leaves no layer to quantize" in said


def test_a_block_size_that_does_not_divide_names_the_layer_and_one_that_does(chosen: Any) -> None:
    said = refused(bench(), chosen(*FINE, "format=int4_awq", "format.block_size=48"))
    assert "format.block_size: does not divide the 64 input features of transformer_blocks.0" in said
    assert "format.block_size=64" in said
    preflight.check(bench().context(), chosen(*FINE, "format=int4_awq", "format.block_size=64"), bench().pipeline())


def test_the_default_block_size_is_checked_too(chosen: Any) -> None:
    assert "(got 128;" in refused(bench(), chosen(*FINE, "format=int4_awq"))


def test_attention_heads_that_fp8_kernels_do_not_take_are_named(chosen: Any, tmp_path: Path) -> None:
    pipeline = changed(bench(), tmp_path)
    rows = json.loads((pipeline.path / "layers.json").read_text())
    for row in rows:
        if row["kind"] == "attention":
            row["shape"] = [2, 40]
    (pipeline.path / "layers.json").write_text(json.dumps(rows))
    said = refused(bench(), chosen(*FINE, "format=fp8", "format.quantize_mha=true"), pipeline)
    assert "multiple of 16 channels, but transformer_blocks.0.attn has 40" in said
    preflight.check(bench().context(), chosen(*FINE, "format=fp8"), pipeline)


def test_a_picture_beyond_the_models_positions_is_refused(chosen: Any, tmp_path: Path) -> None:
    said = refused(bench(), chosen(*FINE, "model.height=128"), changed(bench(), tmp_path, largest=64))
    assert said == "model.height: the model's positions end at 64 pixels (got 128); lower it"


@pytest.mark.parametrize("group", ["calib.n_steps", "eval.steps"])
def test_more_steps_than_the_schedule_has_are_refused(chosen: Any, group: str) -> None:
    said = refused(bench(), chosen(*FINE, f"{group}=1001"))
    assert said.startswith(f"{group}: FlowMatchEulerDiscreteScheduler cannot take so many steps: was trained with 1000")


@pytest.mark.parametrize("group", ["calib.prompts", "eval.prompts"])
def test_a_prompt_that_is_too_long_is_refused_with_its_tokens(chosen: Any, group: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(["red apple", "a very " * 40 + "red apple"] * 40))
    said = refused(bench(), chosen(f"{group}={tmp_path}/p.txt"))
    assert said.startswith(f"{group}: 'a very a very")
    assert "model.long_prompts=cut" in said
    preflight.check(bench().context(), chosen(f"{group}={tmp_path}/p.txt", *FINE), bench().pipeline())


def test_weights_that_no_memory_holds_are_refused(chosen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ram", lambda: 1 << 30)
    monkeypatch.setattr(environment, "gpus", lambda: ({"memory": 1 << 30},))
    said = refused(bench(), chosen(*FINE), changed(bench(), tmp_path, parameters=10**9))
    assert said.startswith("model: its backbone weighs 3.7 GiB in float32, but RAM and GPU have 2.0 GiB together")
    preflight.check(bench().context(), chosen(*FINE), changed(bench(), tmp_path / "less", parameters=5 * 10**8))


def test_a_graph_that_no_disk_holds_is_refused(chosen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "disk_usage", lambda _: type("Usage", (), {"free": 100 << 20}))
    few, many = (changed(bench(), tmp_path / str(n), parameters=n) for n in (10**7, 2 * 10**8))
    choices = chosen(*FINE, "export=onnx")
    preflight.check(bench().context(), choices, few)
    assert "export: the graph takes at least 190.7 MiB, but the store's disk has 100.0 MiB left" in refused(
        bench(), choices, many
    )
    with_plan = refused(bench(), chosen(*FINE, "export=tensorrt"), many)
    assert "export: the graph and its plan take at least 381.5 MiB, but the store's disk has 100.0 MiB left" in with_plan


def test_all_reasons_are_said_at_once(chosen: Any, tmp_path: Path) -> None:
    said = refused(
        bench(), chosen(*FINE, "model.height=128", "format.exclude=[nothing]"), changed(bench(), tmp_path, largest=64)
    )
    assert [line.split(":")[0] for line in said.splitlines()] == ["model.height", "format.exclude"]


def test_a_size_that_the_pipeline_would_round_is_refused(chosen: Any, tmp_path: Path) -> None:
    coarse = changed(bench(), tmp_path, size_step=32)
    said = refused(bench(), chosen(*FINE, "model.height=48"), coarse)
    assert said == "model.height: is not a multiple of this model's 32 pixels (got 48); round it"
    preflight.check(bench().context(), chosen(*FINE, "model.height=48"), bench().pipeline())


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ('["*"]', "cache.blocks: matches all 2 blocks"),
        ('["up_blocks.*"]', "cache.blocks: matches no block (got 'up_blocks.*'); there are"),
    ],
)
def test_a_policy_that_names_all_blocks_or_none_is_refused(chosen: Any, blocks: str, said: str) -> None:
    line = refused(bench(), chosen(*FINE, "cache=cachify", f"cache.blocks={blocks}"))
    assert line.startswith(said)


def test_a_policy_that_fits_the_blocks_is_let_through(chosen: Any) -> None:
    preflight.check(bench().context(), chosen(*FINE, "cache=cachify"), bench().pipeline())


def test_a_policy_may_name_the_middle_block_of_a_unet(chosen: Any, tmp_path: Path) -> None:
    b = bench(family="sdxl")
    choices = chosen(*FINE, "cache=cachify", "cache.blocks=[mid_block]")
    pinned = PipelineFile.read(b.pipeline().path)
    known = preflight.Known(b.context().locate(pinned.source), pinned, (), tmp_path)
    assert [*preflight._cache(choices, known)] == []


def test_two_copies_that_no_gpu_holds_are_refused_where_kernels_are_compared(
    chosen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: ({"memory": 6 << 30},))
    choices, large = chosen(*FINE, "eval.runtime=native"), changed(bench(), tmp_path, parameters=5 * 10**8)
    said = refused(bench(), choices, large)
    assert said.startswith("eval.parity: holds the simulated backbone of 1.9 GiB beside the native one of 1.9 GiB and takes")
    assert said.endswith("but the GPU has 6.0 GiB (got true); set eval.parity=false")
    preflight.check(bench().context(), chosen(*FINE, "eval.runtime=native", "eval.parity=false"), large)
    preflight.check(bench().context(), chosen(*FINE), large)
