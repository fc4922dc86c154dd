"""Pipelines as the world has them: weights in a variant alone, parts left out; and what is missing said by its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import Bench, bench, called, folder, save, saved
from tiny_pipelines import TINY

from diffopt import models
from diffopt.cli.main import main
from diffopt.data.prompts import PromptSet
from diffopt.errors import ConfigError, PlanError
from diffopt.models.parts import SPARE, Parts
from diffopt.pipeline.lengths import too_long
from diffopt.pipeline.open import open_backbone, open_pipeline, open_vae
from diffopt.store import assets

FAMILIES = ["flux", "sdxl", "sd3", "sd21", "wan", "ltx", "pixart", "svd", "qwen_image", "chroma"]
FAMILIES += ["flux2", "flux2_klein", "z_image", "sana", "sana_sprint"]


def copy(tiny: str) -> Path:
    where = folder() / "model"
    shutil.copytree(saved(tiny), where)
    return where


def in_variant(where: Path, variant: str = "fp16", parts: tuple[str, ...] | None = None) -> Path:
    """Give the weights' files names with the variant in them."""
    for path in where.glob("*/*.safetensors"):
        if parts is None or path.parent.name in parts:
            path.rename(path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors")))
    return where


def of(tiny: str, where: Path, variant: str | None = None) -> Bench:
    about = TINY[tiny]
    call = called(about.side, about.tokens, guidance_scale=about.guidance, frames=about.frames, long_prompts="cut")
    return Bench(folder(), str(where), call=call, family=about.family, variant=variant)


def same(ours: Any, theirs: Any) -> bool:
    for name, module in theirs.components.items():
        if isinstance(module, torch.nn.Module):
            found = ours.components[name].state_dict()
            if not all(torch.equal(x, found[key]) for key, x in module.state_dict().items()):
                return False
    return True


def index(where: Path, **changes: Any) -> Path:
    path = where / "model_index.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "drop"}))
    return where


# Variants.


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("tiny", ["flux", "sdxl", "wan", "svd"])
def test_a_folder_with_a_variant_alone_is_read(tiny: str, variant: str | None) -> None:
    b, plain = of(tiny, in_variant(copy(tiny)), variant), bench(family=tiny)
    assert b.pipeline().json("pipeline.json")["variant"] == "fp16"
    assert same(open_pipeline(b.context(), b.pipeline()), open_pipeline(plain.context(), plain.pipeline()))
    ours, theirs = (open_backbone(x.context(), x.pipeline()).state_dict() for x in (b, plain))
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
    assert open_vae(b.context(), b.pipeline()) is not None


def test_a_variant_is_read_where_a_part_has_it_and_plain_weights_elsewhere() -> None:
    b, plain = of("sdxl", in_variant(copy("sdxl"), parts=("unet",)), "fp16"), bench(family="sdxl")
    assert same(open_pipeline(b.context(), b.pipeline()), open_pipeline(plain.context(), plain.pipeline()))


def both(tiny: str) -> Path:
    """Plain weights, and beside them a variant of the backbone that is twice as large."""
    where = copy(tiny)
    path = next(where.glob("unet/*.safetensors"))
    save_file({k: 2 * x for k, x in load_file(path).items()}, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    return where


@pytest.mark.parametrize(("variant", "factor"), [(None, 1), ("fp16", 2)])
def test_of_plain_weights_and_a_variant_the_asked_ones_are_read(variant: str | None, factor: int) -> None:
    b = of("sdxl", both("sdxl"), variant)
    ours, plain = open_backbone(b.context(), b.pipeline()), bench(family="sdxl").backbone()
    assert torch.equal(ours.conv_in.weight, factor * plain.conv_in.weight)
    assert ("variant" in b.pipeline().json("pipeline.json")) == (variant is not None)


@pytest.mark.parametrize("shards", ["diffusion_pytorch_model.fp16-{}-of-00002.safetensors"])
def test_a_variant_in_shards_is_read_and_a_missing_shard_is_named(shards: str) -> None:
    where = copy("flux")
    old = where / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = [*load_file(old).items()]
    old.unlink()
    halves = {shards.format("00001"): dict(tensors[::2]), shards.format("00002"): dict(tensors[1::2])}
    for name, own in halves.items():
        save_file(own, where / "transformer" / name)
    listing = {"metadata": {"total_size": 1}, "weight_map": {k: n for n, own in halves.items() for k in own}}
    (where / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(listing))
    b = of("flux", where)
    assert same(open_pipeline(b.context(), b.pipeline()), diffusers.FluxPipeline.from_pretrained(saved("flux")))
    (where / "transformer" / shards.format("00002")).unlink()
    said = refusal("flux", where)
    assert f"model.source: lacks transformer/{shards.format('00002')}, which transformer/diffusion_pytorch_model" in said


def test_a_variant_is_in_the_fingerprint_and_none_is_as_before_there_were_any(plan: Callable[..., Any]) -> None:
    given = ("+recipe=quickstart", "export=null", "eval=null")
    plain = plan(*given)
    assert "variant" not in plain.steps[0].identity["config"]["model"]
    where = both_emoji()
    one, other = (plan(*given, f"model.source={where}", f"model.variant={v}").steps[0].fingerprint for v in ("null", "fp16"))
    assert one != other


def both_emoji() -> Path:
    from diffopt.store import assets

    where = folder() / "emoji"
    shutil.copytree(assets.locate("asset:emoji/emoji-flux"), where)
    for path in where.glob("*/*.safetensors"):
        shutil.copy(path, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    return where


def test_a_variant_has_no_effect_on_random_weights(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "model=flux_dev", "model.weights=random", "format=int8", "calib=images", "model.variant=fp16"])
    said = capsys.readouterr().err
    assert said.startswith("model.variant: ")
    assert "a model with pretrained weights" in said


def test_a_variant_that_is_no_name_is_refused(plan: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.variant"):
        plan("+recipe=quickstart", "model.variant='*.fp16'")


def refusal(tiny: str, where: Path, variant: str | None = None) -> str:
    with pytest.raises(PlanError) as e:
        of(tiny, where, variant).pipeline()
    planned = "\n".join(f"model.source: {what} (got {str(where)!r}); {advice}" for what, advice in flaws(tiny, where, variant))
    assert planned in str(e.value)  # the plan says so already
    return str(e.value)


def flaws(tiny: str, where: Path, variant: str | None = None) -> list[tuple[str, str]]:
    return [*Parts(where, models.family(TINY[tiny].family), variant).problems()]


def test_a_variant_that_is_not_there_is_refused_with_those_that_are() -> None:
    where = in_variant(copy("sdxl"))
    said = refusal("sdxl", where, "bf16")
    assert "model.source: has no weights of the variant bf16 (got" in said
    assert "; set model.variant to one of fp16, or to null" in said
    assert "has no weights of the variant bf16 (got" in refusal("sdxl", copy("sdxl"), "bf16")


def test_of_two_variants_alone_one_is_to_be_chosen_and_then_read() -> None:
    where = in_variant(copy("sdxl"))
    for path in where.glob("*/*.fp16.safetensors"):
        shutil.copy(path, path.with_name(path.name.replace("fp16", "bf16")))
    assert "; set model.variant to one of bf16, fp16" in refusal("sdxl", where)
    assert of("sdxl", where, "bf16").pipeline().json("pipeline.json")["variant"] == "bf16"


# Parts that are left out.


@pytest.mark.parametrize("tiny", FAMILIES)
def test_what_is_taken_for_optional_is_marked_so_by_the_pipeline(tiny: str) -> None:
    family = models.family(TINY[tiny].family)
    cls: Any = getattr(diffusers, family.pipeline)
    taken, _ = cls._get_signature_keys(cls)
    if not family.animates:
        assert {*SPARE} & {*taken} <= {*cls._optional_components}
    assert {*family.spare} <= {*taken}


@pytest.mark.parametrize("tiny", FAMILIES)
def test_a_whole_pipeline_has_no_problems(tiny: str) -> None:
    assert flaws(tiny, saved(tiny)) == []


def without_t5() -> Path:
    where = copy("sd3")
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(where / name)
    return index(where, text_encoder_3=[None, None], tokenizer_3=[None, None])


def test_sd3_without_t5_encodes_as_its_pipeline_does() -> None:
    b = of("sd3", without_t5())
    assert not {"text_encoder_3", "tokenizer_3"} & {*b.pipeline().json("pipeline.json")["components"]}
    made = load_file(b.encoded(PromptSet("tests", ("a red apple",)), 1).path / "embeddings.safetensors")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(saved("sd3"), text_encoder_3=None, tokenizer_3=None)
    wanted, *_ = pipe.encode_prompt("a red apple", None, None, negative_prompt="", max_sequence_length=16)
    assert torch.equal(made["0000.prompt_embeds"], wanted)
    assert not made["0000.prompt_embeds"][:, 77:].any()


def test_sd3_without_t5_draws_and_is_quantized() -> None:
    b = of("sd3", without_t5())
    pipe = open_pipeline(b.context(), b.pipeline())
    assert pipe.text_encoder_3 is None
    assert b.draw(pipe, ["a red apple"], [1], 2).shape[-1] == 3
    assert b.checkpoint("int8").path.is_dir()


def test_without_t5_a_prompt_may_be_as_long_as_clip_takes() -> None:
    directory, call = without_t5(), SimpleNamespace(**called(32, 256).model_dump(), family="sd3", found=None)
    assert too_long(directory, ["apple " * 20], call, "eval.prompts") is None
    assert "but the text encoder takes 77" in str(too_long(directory, ["apple " * 100], call, "eval.prompts"))


def test_sdxl_that_was_trained_with_one_text_encoder_is_read() -> None:
    b = Bench(folder(), "asset:emoji_sdxl", call=called(64, None, guidance_scale=3.0), family="sdxl")
    pipe = open_pipeline(b.context(), b.pipeline())
    assert pipe.text_encoder is None
    assert [*Parts(assets.locate(b.source), models.family("sdxl")).problems()] == []


def test_a_spare_part_that_the_index_does_not_name_is_left_out() -> None:
    b = of("sd3", index(without_t5(), text_encoder_3="drop", tokenizer_3="drop"))
    assert open_pipeline(b.context(), b.pipeline()).text_encoder_3 is None


def test_an_optional_part_whose_folder_is_not_there_is_left_out() -> None:
    where = index(copy("sd21"), safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    b = of("sd21", where)
    assert open_pipeline(b.context(), b.pipeline()).safety_checker is None
    assert "safety_checker" not in b.pipeline().json("pipeline.json")["components"]


# What is missing.


def gone(part: str) -> Callable[[Path], object]:
    return lambda where: shutil.rmtree(where / part)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


MISSING: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "t5": (
        "sd3",
        gone("text_encoder_3"),
        "has no folder text_encoder_3, the T5EncoderModel that its model_index.json names (got X); download that folder, or do "
        'without it by "text_encoder_3": [null, null], "tokenizer_3": [null, null] in its model_index.json',
    ),
    "text encoder": ("flux", gone("text_encoder"), "has no folder text_encoder, the CLIPTextModel that its model_index.json"),
    "tokenizer": ("flux", gone("tokenizer_2"), "has no folder tokenizer_2, the "),
    "vocabulary": ("flux", lambda w: emptied(w / "tokenizer"), "has no vocabulary in tokenizer (there is nothing)"),
    "vae": ("sdxl", gone("vae"), "has no folder vae, the AutoencoderKL that its model_index.json names"),
    "scheduler": ("sdxl", gone("scheduler"), "has no folder scheduler, the EulerDiscreteScheduler that its model_index.json"),
    "scheduler's": ("sdxl", lambda w: emptied(w / "scheduler"), "has no scheduler/scheduler_config.json"),
    "config": ("sdxl", lambda w: (w / "vae" / "config.json").unlink(), "has no vae/config.json"),
    "broken config": (
        "sdxl",
        lambda w: (w / "unet" / "config.json").write_text("{"),
        "has a broken unet/config.json, which is no",
    ),
    "weights": (
        "sdxl",
        lambda w: next(w.glob("text_encoder/*.safetensors")).unlink(),
        "has no weights in text_encoder (there is config.json)",
    ),
    "half": (
        "sdxl",
        lambda w: cut(next(w.glob("vae/*.safetensors"))),
        "has a broken vae/diffusion_pytorch_model.safetensors: ",
    ),
    "second": (
        "wan",
        gone("transformer_2"),
        "has no folder transformer_2, the WanTransformer3DModel that its model_index.json",
    ),
    "null": ("flux", lambda w: index(w, text_encoder_2=[None, None]), "names no text_encoder_2 in its model_index.json, which"),
    "empty": (
        "sdxl",
        lambda w: next(w.glob("vae/*.safetensors")).write_bytes(b""),
        "has a broken vae/diffusion_pytorch_model.",
    ),
    "a page": (
        "sdxl",
        lambda w: next(w.glob("vae/*.safetensors")).write_text("<html>" * 99),
        "has a broken vae/diffusion_pytorc",
    ),
    "one of two": (
        "sdxl",
        lambda w: index(w, text_encoder=[None, None], tokenizer=[None, None]),
        "is without text_encoder and tokenizer, so that its text encoders give 32 features together, but its unet takes 64",
    ),
    "first of two": (
        "sdxl",
        gone("text_encoder"),
        "has no folder text_encoder, the CLIPTextModel that its model_index.json names (got X); download that folder\n",
    ),
    "eye": ("svd", gone("image_encoder"), "has no folder image_encoder, the CLIPVisionModelWithProjection that its"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(what: str) -> None:
    tiny, spoil, wanted = MISSING[what]
    where = copy(tiny)
    spoil(where)
    said = refusal(tiny, where).replace(repr(str(where)), "X") + "\n"
    assert f"model.source: {wanted}" in said
    assert all(" (got X); " in line for line in said.splitlines())


def test_a_part_that_the_index_does_not_name_is_missing() -> None:
    where = index(copy("flux"), text_encoder="drop")
    with pytest.raises(
        PlanError, match=r"model\.source: names no text_encoder in its model_index\.json, which the pipeline needs"
    ):
        of("flux", where).pipeline()


def test_all_that_is_missing_is_said_at_once() -> None:
    where = copy("sdxl")
    for part in ("vae", "tokenizer"):
        shutil.rmtree(where / part)
    assert len(refusal("sdxl", where).splitlines()) == 2


def test_random_weights_need_no_texts_and_no_weights() -> None:
    where = copy("flux")
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(where / part)
    next(where.glob("transformer/*.safetensors")).unlink()
    assert [*Parts(where, models.family("flux")).problems(pretrained=False)] == []


def test_a_pointer_to_a_large_file_in_its_place_is_named_by_the_plan(plan: Callable[..., Any]) -> None:
    """As git leaves it where the large files were not fetched."""
    save(where := folder() / "flux")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 335304388\n"
    next(where.glob("vae/*.safetensors")).write_text(pointer)
    with pytest.raises(PlanError, match=r"model\.source: has a broken vae/diffusion_pytorch_model\.safetensors: "):
        plan("+recipe=quickstart", f"model.source={where}")


def test_the_plan_says_what_a_local_model_lacks(plan: Callable[..., Any]) -> None:
    save(where := folder() / "flux")
    shutil.rmtree(where / "text_encoder")
    with pytest.raises(PlanError, match="has no folder text_encoder, the CLIPTextModel that its"):
        plan("+recipe=quickstart", f"model.source={where}")
