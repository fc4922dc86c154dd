"""The small SDXL beside the embedded model: what it borrows fits it, it goes through the chain, and it is small.

The chain is tried with an untrained UNet of the training script's architecture where the package has no trained one.
"""

import importlib.util
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed

from diffopt.data import pictures
from diffopt.jobs import job
from diffopt.jobs.runner import run_plan
from diffopt.store import assets

HERE = assets.locate("asset:emoji_sdxl")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PROMPTS = ["red apple, noto style", "banana"]


def test_a_wheel_has_what_the_model_borrows_by_links() -> None:
    root = HERE.parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    links = {
        str(p.resolve().relative_to(root)): str(p.relative_to(root))
        for p in HERE.parent.rglob("*")
        if p.is_symlink() and p.is_dir()
    }
    assert len(links) == 3
    assert links.items() <= wheel["force-include"].items()


def script() -> Any:
    spec = importlib.util.spec_from_file_location("train_emoji_sdxl", HERE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import UNet2DConditionModel

    copy = Path(shutil.copytree(HERE, tmp_path_factory.mktemp("source") / "emoji_sdxl"))  # with what is linked
    if not (HERE / WEIGHTS).exists():
        torch.manual_seed(0)
        UNet2DConditionModel(**script().UNET).half().save_pretrained(copy / "unet")
    return copy


@pytest.fixture(scope="module")
def pipe(source: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    found = StableDiffusionXLPipeline.from_pretrained(source)
    found.set_progress_bar_config(disable=True)
    return found


def test_the_config_in_the_package_is_the_scripts() -> None:
    config = json.loads((HERE / "unet/config.json").read_text())
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in script().UNET} == script().UNET


def test_what_is_here_weighs_at_most_four_mebibytes_with_its_weights() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet2DConditionModel(**script().UNET).parameters())
    own = [p for p in HERE.rglob("*") if p.is_file() and not any(q.is_symlink() for q in (p, *p.parents))]
    others = sum(p.stat().st_size for p in own if p.name != Path(WEIGHTS).name)
    weights = (HERE / WEIGHTS).stat().st_size if (HERE / WEIGHTS).exists() else 2 * parameters + (64 << 10)
    assert weights + others <= 4 << 20


def test_the_text_encoder_is_the_scorers_and_lacks_no_weight(pipe: Any) -> None:
    from transformers import CLIPModel

    scorer = CLIPModel.from_pretrained(assets.locate("asset:emoji/emoji-clip"))
    mine, theirs = pipe.text_encoder_2.state_dict(), scorer.state_dict()
    assert all(torch.equal(x.float(), theirs[n].float()) for n, x in mine.items() if "position_ids" not in n)


def test_the_script_encodes_prompts_as_the_pipeline_does(pipe: Any) -> None:
    states, pooled = script().encode(pipe.text_encoder_2, pipe.tokenizer_2, PROMPTS, "cpu")
    with torch.no_grad():
        theirs, negative, their_pooled, negative_pooled = pipe.encode_prompt(PROMPTS)
    assert torch.equal(states, theirs)
    assert torch.equal(pooled, their_pooled)
    assert not negative.any()
    assert not negative_pooled.any()


def test_captions_are_variants_of_one_and_some_name_no_style() -> None:
    found = script().captions("red apple, noto style")
    assert len(found) == script().SLOTS
    assert all("red apple" in c for c in found)
    assert sum("noto" not in c for c in found) == 4


@pytest.mark.matrix
def test_it_is_quantized_exported_and_drawn_like_any_other_model(source: Path, tmp_path: Path) -> None:
    from onnx import load

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    sizes = ["calib.size=2", "calib.batch_size=2", "calib.chunk=2", "calib.n_steps=2", "eval.size=2", "eval.steps=2"]
    picks = ["model=emoji_sdxl", f"model.source={source}", "format=int8", "calib=emoji", "eval=emoji", "export=onnx", *sizes]
    prompts = [f"{group}.prompts={tmp_path / 'prompts.txt'}" for group in ("calib", "eval")]
    metrics = ["eval.metrics=[psnr]", "eval.latency=false"]
    made = job.prepare(composed(*picks, *prompts, *metrics, f"store={tmp_path}/store"), [], dry=False, sweep=False)
    run_plan(made.plan, made.choices, made.store, made.sources)
    at = {s.name: made.store.entry(s.kind, s.fingerprint).path for s in made.plan.steps}
    (reference, ours) = (dict(pictures.read(at[name])) for name in ("reference", "sample"))
    assert ours[PROMPTS[0]].shape == (64, 64, 3)
    assert 0 < np.abs(ours[PROMPTS[0]].astype(int) - reference[PROMPTS[0]]).mean() < 32
    given = load(str(at["export"] / "model.onnx")).graph.input
    shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in given}
    assert shapes["encoder_hidden_states"] == [2, 32, 128]  # the tokenizer's 32 tokens, not CLIP's 77
    assert shapes["sample"] == [2, 16, 16, 16]
