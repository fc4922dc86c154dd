"""What is found of a pipeline is what the written family says of it; where it cannot be, the reason stands here."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.models.transformers import transformer_bria
from pydantic import TypeAdapter, ValidationError
from tiny import TINY, Bench, called, folder, saved
from tiny_unknown import bria

from diffopt import models
from diffopt.cli import inspect
from diffopt.errors import ConfigError, PlanError
from diffopt.files.found import Found
from diffopt.finding import structure
from diffopt.finding.find import find
from diffopt.groups.model import Model
from diffopt.models.extent import evaluated, fitted
from diffopt.models.family import Size
from diffopt.models.found import family_of
from diffopt.models.index import index_of
from diffopt.models.prompt_encoding import encoded
from diffopt.quantization.layers import layers_of, without
from diffopt.stages.load import LoadView, load
from diffopt.store.source import Source

UNFOUND = {
    "qwen_image_edit": "its text encoder is given the picture too, and its pipeline takes one prompt a call",
    "svd": "its prompts are pictures: only pipelines whose prompts are texts are found",
    "z_image": "its prompts' embeddings and its backbone's inputs are lists of tensors, one for each row",
}
"""Of tiny pipelines, why they are not found at all."""
UNWRITTEN = {"ltx2": "axis 1 of audio_hidden_states follows no rule"}
"""Whose inputs cannot be written down: how many tokens of sound LTX-2 has is rounded from its frames."""
ENDS = {"ltx", "ltx2", "wan", "wan_i2v", "wan_ti2v", "qwen_image"}
"""Which blocks at the ends are kept was measured on trained weights, and shows in no structure: found are none."""
MASKED = {"qwen_image": "encoder_hidden_states_mask", "pixart_alpha": "resolution"}
"""Inputs that the pipeline passes under conditions: a mask where prompts differ in length, a size where a model is large."""
QUICK = ("flux", "flux_kontext", "sd21", "wan")
NAMES = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.matrix]) for n in TINY if n not in UNFOUND]


@cache
def found(name: str) -> Found:
    return find(saved(name))


@cache
def backbone(name: str) -> Any:
    return TINY[name].make()


def written(name: str) -> models.Family:
    return models.family(TINY[name].family)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_kept_layers_and_what_is_quantized_agree(name: str) -> None:
    ours, theirs = family_of(found(name)), written(name)
    assert ours.blocks == theirs.blocks
    there = backbone(name)
    assert ours.backbones == tuple(n for n in theirs.backbones if getattr(there, n) is not None)
    assert ours.backbone_class == theirs.backbone_class
    model = getattr(there, theirs.backbones[0])
    counts = {n: len(getattr(model, n)) for n in theirs.blocks}
    layers = layers_of(model)
    ends = replace(ours, ends=theirs.ends)
    assert (theirs.ends > 0) == (name in ENDS)
    assert without(layers, ends.kept(counts, ["one"])) == without(layers, theirs.kept(counts, ["one"]))
    for field in (
        "convolutions",
        "attention",
        "lora",
        "block_cache",
        "cross_attention",
        "timed",
        "pictures",
        "beside",
        "several",
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.frame_step is None) == (theirs.frame_step is None)  # the written ones' is that of the VAE at full size
    assert ours.nested.items() <= theirs.nested.items()  # of sizes that a model may or may not be given


@pytest.mark.parametrize("name", NAMES)
def test_guidance_and_the_calls_of_a_step_agree(name: str) -> None:
    ours, theirs = family_of(found(name)), written(name)
    assert ours.guidance == theirs.guidance
    assert found(name).calls == 1
    model = _called(name, guidance_scale=3.0)
    assert (ours.rows(model), ours.calls(model), ours.guided(model)) == (
        theirs.rows(model),
        theirs.calls(model),
        theirs.guided(model),
    )
    assert {k: v for k, v in ours.arguments(model).items() if k in theirs.arguments(model)} == {
        k: v for k, v in theirs.arguments(model).items() if k in ours.arguments(model)
    }
    assert ours.embeddings(getattr(backbone(name), theirs.backbones[0]).config, 2, model) == theirs.embeddings(
        getattr(backbone(name), theirs.backbones[0]).config, 2, model
    )


@pytest.mark.parametrize("name", NAMES)
def test_inputs_agree_in_names_shapes_types_and_what_has_no_batch(name: str) -> None:
    pipe, ours, theirs = backbone(name), family_of(found(name)), written(name)
    if name in UNWRITTEN:
        with pytest.raises(PlanError, match=UNWRITTEN[name]):
            ours.inputs(None, {}, Size(1, 64, 64, 16, 9))
        return
    side = 64 if name in ("wan_ti2v", "ltx") else 48
    size = Size(2, side, side, 16 if theirs.name != "sd21" else 77, 9 if theirs.frame_step else 1)
    model = getattr(pipe, theirs.backbones[0])
    mine = {n: about(x) for n, x in ours.inputs(model, pipe.vae.config, size).items()}
    wanted = {n: about(x) for n, x in theirs.inputs(model, pipe.vae.config, size).items()}
    for given in (mine, wanted):
        given.pop(MASKED.get(name, ""), None)
        given.pop("aspect_ratio", None)
        if name.startswith("pixart"):  # the written family makes its masks bool, the pipeline's own are int64
            given["encoder_attention_mask"] = given["encoder_attention_mask"][0]
    assert mine == wanted
    assert {*ours.unbatched} == {*theirs.unbatched}


def about(x: Any) -> Any:
    """Of a tensor its shape and type; of constants their numbers, tuples as lists."""
    if isinstance(x, torch.Tensor):
        return tuple(x.shape), x.dtype
    return [about(y) for y in x] if isinstance(x, (list, tuple)) else x


def _called(name: str, **changes: Any) -> Any:
    tiny = TINY[name]
    return called(tiny.side, tiny.tokens, frames=tiny.frames, **changes)


def test_what_only_a_call_has_by_default_goes_to_the_prompts_too() -> None:
    pipe, model = backbone("sana"), _called("sana", guidance_scale=3.0)  # whose call puts an instruction before them
    given = encoded(pipe, ["a red apple"], found("sana").returns, True, model)
    theirs = written("sana").embed(pipe, ["a red apple"], model)
    assert given.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[n]) for n, x in given.items())


def test_a_description_says_all_of_it_and_is_the_same_again() -> None:
    again = TypeAdapter(Found).validate_python(asdict(found("flux")))
    assert again == found("flux")


def test_an_axis_is_told_from_sizes() -> None:
    sizes = [Size(2, 64, 96, 24, 5), Size(3, 64, 96, 24, 5), Size(2, 96, 96, 24, 5), Size(2, 64, 160, 24, 5)]
    sizes += [Size(2, 64, 96, 32, 5), Size(2, 64, 96, 24, 13), Size(3, 160, 64, 40, 9)]
    rules = {
        "batch": lambda s: s.batch,
        "text + 77": lambda s: s.text + 77,
        "height / 8": lambda s: s.height // 8,
        "height * width / 256": lambda s: s.height * s.width // 256,
        "frames / 4 + 3 / 4": lambda s: (s.frames - 1) // 4 + 1,
        "height * width * (frames + 3) / 4096": lambda s: ((s.frames - 1) // 4 + 1) * s.height * s.width // 1024,
        "height * width / 256 + text": lambda s: s.height * s.width // 256 + s.text,
    }
    for wanted, rule in rules.items():
        assert fitted([rule(s) for s in sizes], sizes) == wanted
        assert all(evaluated(wanted, s) == rule(s) for s in sizes)
    assert fitted([s.height**2 for s in sizes], sizes) is None


@pytest.mark.parametrize("bad", ["__import__('os')", "height.real", "depth", "height **2", "height / 0"])
def test_what_is_no_arithmetic_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="is no arithmetic of batch, height"):
        evaluated(bad, Size(1, 8, 8, 8))


def test_a_pipeline_whose_embeddings_are_lists_is_not_found() -> None:
    with pytest.raises(
        PlanError, match=r"prompts' embeddings are no tensors \(got a ZImagePipeline, whose encode_prompt gives"
    ):
        find(saved("z_image"))


def test_a_pipeline_whose_prompts_are_pictures_is_not_found() -> None:
    with pytest.raises(
        PlanError, match=r"has no encode_prompt, so that its prompts cannot be encoded beforehand \(got 'svd'\)"
    ):
        find(saved("svd"))


def test_a_pipeline_whose_text_encoder_sees_the_picture_is_not_found() -> None:
    with pytest.raises(PlanError, match=r"QwenImageEditPlusPipeline, whose text encoder is given the picture too \(got"):
        find(saved("qwen_image_edit"))


def spoilt(index: dict[str, Any]) -> Path:
    """A copy of the tiny sd21's configs with another index."""
    directory = folder()
    for path in saved("sd21").rglob("*.json"):
        target = directory / path.relative_to(saved("sd21"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    own = json.loads((directory / "model_index.json").read_text())
    (directory / "model_index.json").write_text(json.dumps(own | index))
    return directory


BAD = {
    "remote code": ({"_class_name": ["my_pipeline", "MyPipeline"]}, r"my_pipeline\.py, which is not run"),
    "no class": ({"_class_name": None}, "it names no class, which is not run"),
    "no backbone": ({"unet": [None, None]}, "is a StableDiffusionPipeline without a denoising backbone"),
    "no VAE": ({"vae": [None, None]}, "names no vae in its model_index.json"),
    "unknown class": ({"_class_name": "TomorrowPipeline"}, "is a TomorrowPipeline, which diffusers 0.42.1 has not"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_directory_that_cannot_be_found_out_is_refused_in_a_line(case: str) -> None:
    index, said = BAD[case]
    directory = spoilt(index)
    with pytest.raises((PlanError, ValidationError), match=said):
        _loaded(directory)


def _loaded(directory: Path) -> None:
    """As the plan and then load take it."""
    Model(family="auto", source=str(directory), dtype="float32", height=64, width=64)
    given = {"scheduler": None, "weights": "pretrained", "dtype": "float32"}
    view = LoadView(family="auto", source=Source(str(directory)), **given)
    load.run(Bench(folder(), str(directory), family="auto").context(), view)


@pytest.mark.parametrize(("gone", "said"), [(("unet",), "unet"), (("text_encoder", "vae"), "text_encoder, nor vae")])
def test_inspect_names_the_folders_that_an_index_names_and_that_are_not_there(gone: tuple[str, ...], said: str) -> None:
    shutil.copytree(saved("sd21"), directory := folder() / "sd21")
    for name in gone:
        shutil.rmtree(directory / name)
    with pytest.raises(
        PlanError, match=rf"has no folder {said}, which its model_index\.json names \(got .*\); download the wh"
    ):
        inspect.command([str(directory)])


def test_what_a_pipeline_does_without_and_of_configs_alone_the_text_encoders_need_not_be_there() -> None:
    directory = spoilt({"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]})
    shutil.rmtree(directory / "text_encoder")
    shutil.rmtree(directory / "tokenizer")
    assert find(directory).texts == found("sd21").texts


def test_a_backbone_without_repeated_blocks_is_refused() -> None:
    from diffopt.finding.structure import blocks_of

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])

    with pytest.raises(PlanError, match=r"has no repeated blocks.*got a Plain.*write them into model\.found"):
        blocks_of(Plain())


def test_a_part_that_is_code_of_its_own_is_refused() -> None:
    directory = spoilt({})
    config = json.loads((directory / "text_encoder" / "config.json").read_text())
    (directory / "text_encoder" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ValueError, match=r"its text_encoder is code of its own, CLIPTextModel, which is not run"):
        index_of(directory)


def test_layers_that_its_pipeline_never_comes_to_are_kept_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    block, directory = transformer_bria.BriaSingleTransformerBlock, folder() / "bria"
    own = block.__init__

    def with_more(self: Any, *args: Any, **kwargs: Any) -> None:  # as one has that can be given a picture too
        own(self, *args, **kwargs)
        self.image_proj = torch.nn.Linear(8, 8)

    monkeypatch.setattr(block, "__init__", with_more)
    bria().save_pretrained(directory)
    family = find(directory)
    assert family.unreached == ("single_transformer_blocks.*.image_proj",)
    assert {*family.unreached} <= {*family.keep}
    (line,) = [x for x in inspect.told(family) if x.startswith("unreached")]
    assert line.endswith("image_proj: its pipeline never fills what leads there, so they are kept too")
    assert not any(x.startswith("unreached") for x in inspect.told(found("flux")))


def refitted(tiny: str, name: str, **config: Any) -> Path:
    """A copy of a tiny pipeline whose backbone was made for more than its pipeline gives it."""
    directory, there = folder() / tiny, backbone(tiny)
    shutil.copytree(saved(tiny), directory)
    own = {n: v for n, v in getattr(there, name).config.items() if n != "_use_default_values"}  # which would drop config again
    other = type(getattr(there, name)).from_config(own | config)
    shutil.rmtree(directory / name)
    other.save_pretrained(directory / name)
    return directory


def test_inputs_that_a_pipeline_never_fills_are_named_where_layers_wait_for_them() -> None:
    """A backbone that animates a picture, in a pipeline that draws by text alone."""
    family = find(refitted("wan", "transformer", image_dim=32))
    assert family.unfilled == ("encoder_hidden_states_image",)
    (line,) = [x for x in inspect.told(family) if x.startswith("unfilled")]
    assert line.split(maxsplit=1)[1].startswith("encoder_hidden_states_image: never filled by its pipeline, and layers")
    for whole in ("wan", "sd21"):  # of which nothing waits for the inputs that it leaves out
        assert found(whole).unfilled == ()
        assert not any(x.startswith("unfilled") for x in inspect.told(found(whole)))


def test_an_input_that_the_backbone_asks_for_and_its_pipeline_never_fills_is_refused_before_anything_is_computed() -> None:
    needs = (
        r"^model\.source: its backbone needs class_labels, which its pipeline never fills \(got a UNet2DConditionModel in a "
    )
    with pytest.raises(PlanError, match=needs + r"StableDiffusionPipeline, and says ValueError: class_labels should be"):
        _loaded(refitted("sd21", "unet", num_class_embeds=4))


def test_an_argument_without_a_default_that_no_call_gives_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directory = transformer_bria.BriaTransformer2DModel, folder() / "bria"
    own = model.forward

    def with_more(self: Any, hidden_states: Any, style: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, hidden_states, *args, **kwargs)

    bria().save_pretrained(directory)
    monkeypatch.setattr(model, "forward", with_more)
    with pytest.raises(PlanError, match=r"its backbone needs style, which its pipeline never fills \(got a BriaTransformer2D"):
        find(directory)


@pytest.mark.parametrize(
    ("reached", "globs"),
    [([], ("blocks.*.a",)), (["blocks.0.a"], ("blocks.1.a",)), (["blocks.0.a", "blocks.1.a"], ())],
)
def test_layers_that_are_never_reached_are_one_glob_where_it_is_so_in_every_block(reached: list[str], globs: tuple) -> None:
    assert structure.unreached(["blocks.0.a", "blocks.1.a"], reached) == globs


def test_found_is_for_auto_alone() -> None:
    with pytest.raises(ValidationError, match=r"found: says what model\.family=auto is \(got family flux\)"):
        Model(family="flux", source=str(saved("flux")), dtype="float32", height=64, width=64, found=found("flux"))


RANDOM = ("model=auto", "model.weights=random", "format=fp8", "calib=images", "calib.size=2")


def test_random_weights_want_a_folder_by_either_name_and_no_second(plan: Any) -> None:
    """Of a source that has its weights too: they are not read."""
    folder = "asset:emoji/emoji-flux"
    named = (["source"], ["architecture"], ["source", "architecture"])
    plans = [plan(*RANDOM, *(f"model.{n}={folder}" for n in names)) for names in named]
    assert len({p.steps[-1].fingerprint for p in plans}) == 1
    assert plans[0].steps[-1].name == "quantize"
    with pytest.raises(ConfigError, match=r"model\.source: is not set; give it"):
        plan(*RANDOM)
    with pytest.raises(PlanError, match=r"model\.source: has no effect under"):
        plan(*RANDOM, f"model.architecture={folder}", f"model.source={saved('flux')}")


def test_the_plan_of_a_pipeline_that_was_never_run_imports_no_torch(tmp_path: Path) -> None:
    picks = ["model=auto", f"model.source={saved('sd21')}", "format=fp8", "calib=images", "eval=images", f"store={tmp_path}"]
    code = f"import sys; from diffopt.cli.main import main; main({['plan', *picks]!r}); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "11 steps, 11 to run" in said.stdout
    assert said.stdout.splitlines()[-1] == "False"


def test_an_option_that_inspect_writes_is_taken_as_it_is() -> None:
    given = yaml.safe_load(inspect.option(saved("flux"), found("flux")))
    model = Model(**given)
    assert model.found == found("flux")
    assert models.of(model).kept({"transformer_blocks": 2, "single_transformer_blocks": 2}, ["transformer"]) == [
        *models.family("flux").keep
    ]
