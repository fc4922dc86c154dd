"""What a run would refuse once it has the model is refused by the plan already, in the same words, and nothing is made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from caching import opened
from tiny import bench, saved
from tiny_pipelines import TINY

from diffopt import models
from diffopt.caches.blocks import _crosses
from diffopt.cli.main import main
from diffopt.data import prompts
from diffopt.files.layers import read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.pipeline import lengths, scheduler
from diffopt.pipeline.outline import outline
from diffopt.store import assets
from diffopt.store.source import Source, Sources

LONG = "a very " * 40 + "red apple"
WARNED = {
    "+recipe=svd_int8": "model: is computed on the CPU, since there is no NVIDIA GPU here (got observe with about 11.8 GiB); "
    "run it where there is one"
}
"""What a recipe is warned of beside what refuses it; of the others nothing."""
EMOJI = assets.locate("asset:emoji/emoji-flux")


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_handlers: None, roomy: None
) -> Callable[..., str]:
    """`refused("+recipe=...", ...)` is what both the plan and the run say, neither of which has made anything."""
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> str:
        texts = []
        for command in (["plan"], []):
            with pytest.raises(SystemExit) as end:
                main([*command, *arguments])
            out, err = capsys.readouterr()
            assert (end.value.code, out) == (1, ""), err
            texts.append(err)
        assert texts[0] == texts[1]
        assert not [*tmp_path.glob("outputs/store/pipeline/*")]
        return texts[0]

    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("+recipe=emoji_cache", "cache=deepcache"),
            "cache.blocks: flux has no down_blocks, which UNets have and cache=deepcache",
        ),
        (("+recipe=emoji_cache", "cache=tgate"), "cache.part: flux has no attention to the text alone, which cache=tgate"),
        (("+recipe=emoji_sdxl_cache", "cache.reuse=residual"), "cache.reuse: the blocks of sdxl give other shapes"),
        (("+recipe=emoji_cache", "cache=pyramid_attention", "cache.cross=2"), "cache.cross: flux has no attention to the text"),
        (("+recipe=emoji_cache", "cache=cachify", "cache.blocks=[transformer_blocks.99]"), "cache.blocks: matches no block"),
        (("+recipe=emoji_cache", "cache=cachify", "cache.blocks=['*']"), "cache.blocks: matches all "),
        (("+recipe=emoji_int8_sq", "calib.prompts=long.txt"), "calib.prompts: 'a very a very"),
        (("+recipe=emoji_int8_sq", "eval.prompts=long.txt"), "eval.prompts: 'a very a very"),
        (("+recipe=emoji_fp4_qad", "train.data.prompts=long.txt"), "train.data.prompts: 'a very a very"),
        (("+recipe=emoji_int8_sq", "calib.n_steps=1001"), "calib.n_steps: FlowMatchEulerDiscreteScheduler cannot take so many"),
        (("+recipe=emoji_fp4_qad", "train.validation.steps=1001"), "train.validation.steps: FlowMatchEulerDiscreteScheduler"),
        (
            (
                "+recipe=emoji_fp4_qad",
                "train.gradient_checkpointing=true",
                "train.distillation.trajectory={steps: 1001, last: 1}",
            ),
            "train.distillation.trajectory.steps: FlowMatchEulerDiscreteScheduler",
        ),
        (("+recipe=emoji_fp4_qad", "train.validation.size=9999"), "train.validation.size: leaves none of the data's"),
        (("+recipe=emoji_int8_sq", "model.scheduler=DDIMScheduler"), "model.scheduler: does not go with this model"),
        (("+recipe=emoji_int8_sq", "model.scheduler=DPMSolverSDEScheduler"), "model.scheduler: "),
        (("+recipe=emoji_int8_sq", "format.exclude=[nowhere]"), "format.exclude: matches no layer that is quantized"),
        (
            ("+recipe=emoji_int8_sq", "format=int4_awq", "format.block_size=48"),
            "format.block_size: does not divide the 256 input",
        ),
        (("+recipe=emoji_fp4_qad", "train.distillation.blocks=[no.*]"), "train.distillation.blocks: matches no block"),
        (
            ("+recipe=emoji_fp4_qad", "train.lora={rank: 4, alpha: 8, targets: [no.*]}"),
            "train.lora.targets: matches no quantized linear layer",
        ),
        (("+recipe=emoji_int8_sq", "eval.metrics=[psnr,ms-ssim]"), "eval.metrics: ms-ssim needs pictures of 161 pixels a side"),
        (("+recipe=emoji_int8_sq", "eval.clip=empty"), "eval.clip: has neither config.json nor open_clip_config.json (got "),
        (
            ("+recipe=emoji_int8_sq", "eval.clip=asset:emoji/emoji-flux/text_encoder_2"),
            "eval.clip: clip needs a model with a text",
        ),
        (
            ("+recipe=emoji_int8_sq", "eval.imagereward=empty", "eval.metrics=[imagereward]"),
            "eval.imagereward: has no ImageReward",
        ),
        (
            ("+recipe=emoji_auto", "format.budget={bits: 1}"),
            "format.budget.bits: no mix of the candidates is so small, the least",
        ),
        (
            ("+recipe=emoji_auto", "format.budget.bits=32", "format.candidates=[fp8,nvfp4,full]"),
            "format.budget: leaves every layer in full precision (got ",
        ),
        (
            ("+recipe=svd_int8", "calib.prompts=album", "calib.size=1"),
            "calib.prompts: a picture cannot be read: its format is not",
        ),
        (("+recipe=emoji_int8_sq", "store=/proc/nope"), "store: cannot be written (permission denied) (got '/proc/nope');"),
        (("+recipe=emoji_int8_sq", "store=long.txt"), "store: is not a directory (got "),
        (("+recipe=emoji_int8_sq", "store=long.txt/below"), "store: is not a directory (got "),
        (("+recipe=emoji_int8_sq", f"store={'a' * 300}"), "store: cannot be written (file name too long) (got "),
        (("+recipe=emoji_int8_sq", "store='~nobody-is-called-so/store'"), "store: could not determine home directory (got "),
    ],
)
def test_the_plan_refuses_what_the_run_would(
    refused: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "long.txt").write_text("\n".join([LONG, *(f"red apple {i}" for i in range(70))]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.png").write_text("no picture")
    line, *beside = refused(*arguments).splitlines()
    assert line.startswith(said)
    assert beside == [f"warning: {WARNED[name]}" for name in arguments if name in WARNED]


def test_a_store_that_is_read_only_is_refused_by_the_plan(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write in a directory that nobody may, so what the system answers is given here."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("diffopt.store.store.os.access", lambda path, _: Path(path).name != "mine")
    assert refused("+recipe=emoji_int8_sq", "store=mine").startswith("store: cannot be written (permission denied) (got ")


def test_a_store_on_a_disk_that_is_mounted_read_only_is_refused(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffopt.store.store.os.statvfs", lambda _: SimpleNamespace(f_flag=1, f_blocks=1))
    assert refused("+recipe=emoji_int8_sq", "store=mine").startswith("store: cannot be written (read-only file system) (got ")


def test_all_reasons_are_said_at_once(refused: Callable[..., str]) -> None:
    said = refused("+recipe=emoji_fp8", "calib.alpha=0.5", "eval.steps=1001", "format.exclude=[nowhere]")
    assert [line.split(":")[0] for line in said.splitlines()] == ["calib.alpha", "format.exclude", "eval.steps"]


def chosen(tiny: str, weights: str = "pretrained") -> Any:
    """A tiny model as a recipe would choose it, as far as its outline is read."""
    about = TINY[tiny]
    return SimpleNamespace(
        family=about.family,
        found=None,
        weights=weights,
        variant=None,
        dtype="float32",
        scheduler=None,
        max_sequence_length=None,
    )


@pytest.mark.parametrize("tiny", sorted(TINY))
def test_configs_and_headers_tell_what_the_model_has(tiny: str) -> None:
    b, found = bench(family=tiny), outline(saved(tiny), chosen(tiny))
    assert found is not None
    loaded = PipelineFile.read(b.pipeline().path)
    same = ("family", "weights", "dtype", "scheduler", "components", "backbones", "blocks", "largest", "size_step")
    assert {n: getattr(found.pinned, n) for n in same} == {n: getattr(loaded, n) for n in same}
    assert loaded.parameters <= found.pinned.parameters < 1.3 * loaded.parameters  # tables of positions are buffers
    theirs = {x.name: x for x in read_layers(b.pipeline().path) if x.kind != "attention"}
    assert theirs.items() <= {x.name: x for x in found.layers}.items()


def test_random_weights_have_blocks_but_no_size() -> None:
    found = outline(saved("flux"), chosen("flux", "random"))
    assert found is not None
    assert (found.pinned.blocks, found.pinned.parameters, found.layers) == (
        {"transformer_blocks": 2, "single_transformer_blocks": 2},
        0,
        (),
    )


@pytest.mark.parametrize("name", sorted(p.name for p in assets.locate("asset:architectures").iterdir()))
def test_the_configs_of_every_architecture_are_read(name: str) -> None:
    folder = assets.locate(f"asset:architectures/{name}")
    named = json.loads((folder / "model_index.json").read_text())["_class_name"]
    family = next(f for f in map(models.family, models.names()) if f.opened(named))
    model: Any = SimpleNamespace(
        family=family.name, found=None, weights="random", variant=None, dtype="float16", scheduler=None
    )
    found = outline(folder, model)
    assert found is not None
    assert all(n > 0 for n in found.pinned.blocks.values())


def test_configs_that_lack_a_field_are_left_to_loading(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved("flux"), tmp_path / "copy"))
    path = copy / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "num_layers"}))
    assert outline(copy, chosen("flux")) is None


@pytest.mark.parametrize("tiny", sorted(TINY))
def test_which_families_look_at_the_text_alone_is_what_their_modules_do(tiny: str) -> None:
    pipe, family = opened(tiny), models.family(TINY[tiny].family)
    backbone = getattr(pipe, family.backbones[0])
    blocks = {f"{name}.{i}": b for name in family.blocks for i, b in enumerate(getattr(backbone, name))}
    crosses = any(_crosses(path, m) for b in blocks.values() for path, m in b.named_modules())
    assert crosses == family.cross_attention


@pytest.mark.parametrize("name", ["calibration", "evaluation", "emoji_names"])
def test_the_quick_look_at_lengths_counts_as_the_tokenizer_does(name: str) -> None:
    folder = EMOJI / "tokenizer_2"
    count = lengths._counter(folder / "tokenizer.json", 0)
    tokenizer = lengths._tokenizer(EMOJI, "tokenizer_2")
    assert count is not None
    for prompt in [*prompts.read(f"asset:prompts/{name}.txt").prompts[:64], LONG, "Äpfel & 🍎 ﷺ"]:
        assert count(prompt) == len(tokenizer(prompt, truncation=False, verbose=False).input_ids)


@pytest.mark.parametrize("tiny", ["flux", "sd3", "sdxl", "pixart", "qwen_image"])
def test_a_prompt_is_too_long_from_one_token_on(tiny: str) -> None:
    model = chosen(tiny)
    model.max_sequence_length = 6
    tokenizer = lengths._tokenizer(saved(tiny), lengths._last(saved(tiny)) or "")
    text = next(t for n in range(1, 40) if len(tokenizer(t := "a" + " a" * n, truncation=False).input_ids) == 7)
    assert lengths.too_long(saved(tiny), ["a", text], model, "eval.prompts") == (
        f"eval.prompts: {text!r} has 7 tokens, but the text encoder takes 6 (got 7); shorten it, or set model.long_prompts=cut"
    )
    model.max_sequence_length = 7
    assert lengths.too_long(saved(tiny), ["a", text], model, "eval.prompts") is None


@pytest.mark.parametrize("tiny", [n for n in TINY if models.family(TINY[n].family).template])
def test_the_chat_around_a_prompt_is_counted_as_its_pipeline_puts_it_there(tiny: str) -> None:
    pipe, model, seen = TINY[tiny].make(), chosen(tiny), []
    forward = lambda _m, _a, given: seen.append(int(given["attention_mask"].sum()))  # noqa: E731
    pipe.text_encoder.register_forward_pre_hook(forward, with_kwargs=True)
    model.max_sequence_length, model.guidance_scale = 256, 0.0
    models.of(model).embed(pipe, ["a red apple"], model)
    model.max_sequence_length = seen[0] - 1
    assert lengths.too_long(saved(tiny), ["a red apple"], model, "eval.prompts") == (
        f"eval.prompts: 'a red apple' has {seen[0]} tokens with the chat around it, but the text encoder takes {seen[0] - 1} "
        f"(got {seen[0]}); shorten it, or set model.long_prompts=cut"
    )
    model.max_sequence_length = seen[0]
    assert lengths.too_long(saved(tiny), ["a red apple"], model, "eval.prompts") is None


@pytest.mark.parametrize("name", scheduler.PLAIN)
def test_the_plain_schedulers_take_any_number_of_steps(name: str) -> None:
    import diffusers

    own = getattr(diffusers, name)()
    for steps in (1, 2, 3, 7, 50, 51, 333, 999, 1000):
        scheduler.check_steps(own, steps, "eval.steps")


def test_a_model_of_the_hub_is_at_hand_where_its_snapshot_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    sources = Sources(tmp_path / "sources.json", dry=True)
    assert sources.at_hand(Source("some/model")) is None
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "sources.json").write_text(json.dumps({"some/model@main": commit}))
    assert sources.at_hand(Source("some/model")) == snapshot
    assert sources.at_hand(Source(f"some/model@{commit}")) == snapshot
