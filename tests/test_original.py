"""Weights as their makers have them: a single file, a backbone alone, parts from elsewhere; read as the pipeline's own are."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_comfyui import first
from tiny import Bench, bench, folder, saved

from diffopt.cli import inspect, modelopt_file
from diffopt.errors import PlanError
from diffopt.files.originals import OriginalsFile
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.model import Model
from diffopt.layouts import comfyui
from diffopt.layouts.families import NAMES
from diffopt.pipeline.open import open_backbone, open_pipeline
from diffopt.stages.load import LoadView, load
from diffopt.store.source import Sources
from diffopt.store.tensor_file import tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
BACKBONE = {"sdxl": "unet", "sd21": "unet", "svd": "unet"}


def without(tiny: str, *names: str) -> Path:
    """The pipeline with the configs alone of some parts."""
    base = folder() / "base"
    shutil.copytree(saved(tiny), base)
    for name in names:
        for path in (base / name).glob("*.safetensors"):
            path.unlink()
    return base


@cache
def single(tiny: str, dtype: torch.dtype = torch.float32) -> Path:
    """ComfyUI's file of the backbone."""
    b, file = bench(family=tiny), folder() / "mine.safetensors"
    comfyui.write(file, first(b.backbone()).to(dtype), {}, NAMES[b.family])
    return file


def model(tiny: str, source: Path | str, base: Path | str | None, **more: Any) -> Model:
    b = bench(family=tiny)
    about = {"family": b.family, "source": str(source), "base": base and str(base), "dtype": "float32"}
    size = {n: getattr(b.call, n) for n in ("height", "width", "frames", "guidance_scale", "max_sequence_length")}
    return Model.model_validate(about | size | more)


def loaded(found: Model) -> tuple[Any, Any]:
    """Its Pipeline, and the context that opens it."""
    from diffopt.artifact import Pipeline

    b = Bench(folder(), found.source.name, family=found.family)
    ctx = b.context()
    fields = {n: getattr(found, n) for n in LoadView.model_fields} | {"source": found.origin}
    b.sources.digest(found.origin)
    load.run(ctx, LoadView(**fields))
    return b.context(), Pipeline(ctx.out, "loaded")


def states(pipe: Any) -> dict[str, torch.Tensor]:
    modules = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    return {f"{n}.{k}": x for n, m in modules.items() for k, x in m.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert {n: x.dtype for n, x in ours.items()} == {n: x.dtype for n, x in theirs.items()}
    assert not [n for n, x in ours.items() if not x.equal(theirs[n])]


@pytest.mark.parametrize("tiny", ["flux", "sdxl", "wan", "pixart"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_file_is_read_as_the_backbone_that_it_was_made_of(tiny: str, dtype: str) -> None:
    name = BACKBONE.get(tiny, "transformer")
    found = open_backbone(*loaded(model(tiny, single(tiny), without(tiny, name), dtype=dtype)))
    own = open_backbone(*loaded(model(tiny, saved(tiny), None, dtype=dtype)))
    same(found.state_dict(), own.state_dict())


def test_a_file_that_has_everything_gives_text_encoders_and_vae_too() -> None:
    """As the original SDXL: latent diffusion's names, a CLIP and an OpenCLIP."""
    b = bench(family="sdxl")
    source, base = whole_sdxl(), without("sdxl", "unet", "vae", "text_encoder", "text_encoder_2")
    found = model("sdxl", source, base)
    ctx, pipeline = loaded(found)
    ways = {n: o.way for n, o in OriginalsFile.read(pipeline.path).parts.items()}
    assert ways == {"unet": "makers", "vae": "diffusers", "text_encoder": "same", "text_encoder_2": "open_clip"}
    same(states(open_pipeline(ctx, pipeline)), states(open_pipeline(b.context(), b.pipeline())))


def ldm_vae(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, x in tensors.items():
        for ours, there in VAE:
            name = re.sub(ours, there, name)
        found[name] = x
    return found


VAE: tuple[tuple[str, Any], ...] = (
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{1 + int(m[1])}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"\.to_(\w)\.", r".\1."),
    (r"\.to_out\.0", ".proj_out"),
    ("group_norm", "norm"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)


def open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, x in tensors.items():
        name = name.removeprefix("text_model.")
        if match := re.fullmatch(r"(encoder\.layers\.\d+\.self_attn\.)q_proj\.(\w+)", name):
            parts = [tensors[f"text_model.{match[1]}{p}_proj.{match[2]}"] for p in "qkv"]
            name, x = f"{match[1]}in_proj_{match[2]}", torch.cat(parts)
        if re.search(r"[kv]_proj\.", name):
            continue
        for ours, there in CLIP.items():
            name = name.replace(ours, there)
        found[name] = x.T.contiguous() if name == "text_projection" else x
    return found


CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
}


def whole_sdxl() -> Path:
    there = saved("sdxl")
    parts = {f"model.diffusion_model.{n}": x for n, x in load_file(single("sdxl")).items()}
    parts |= {f"first_stage_model.{n}": x for n, x in ldm_vae(load_file(there / "vae" / WEIGHTS)).items()}
    text = load_file(there / "text_encoder" / "model.safetensors")
    parts |= {f"conditioner.embedders.0.transformer.{n}": x for n, x in text.items()}
    text = load_file(there / "text_encoder_2" / "model.safetensors")
    parts |= {f"conditioner.embedders.1.model.{n}": x for n, x in open_clip(text).items()}
    save_file(parts, file := folder() / "whole.safetensors")
    return file


def test_a_backbone_alone_with_a_base_is_the_same_model_as_the_whole_pipeline() -> None:
    there = saved("flux")
    found = model("flux", there / "transformer", without("flux", "transformer"))
    whole = model("flux", there, None)
    b = bench(family="flux")
    assert b.sources.digest(found.origin) == b.sources.digest(whole.origin)
    same(open_backbone(*loaded(found)).state_dict(), open_backbone(*loaded(whole)).state_dict())


def test_a_part_in_the_place_of_the_pipelines_own_changes_that_part_alone() -> None:
    """A VAE as ComfyUI has it, and a text encoder in a folder that several options can name."""
    there = saved("flux")
    encoder = folder() / "mine"
    shutil.copytree(there / "text_encoder_2", encoder)
    louder = {n: x * 1.25 for n, x in load_file(encoder / "model.safetensors").items()}
    save_file(louder, encoder / "model.safetensors", metadata={"format": "pt"})
    save_file(ldm_vae(load_file(there / "vae" / WEIGHTS)), vae := folder() / "ae.safetensors")
    ctx, pipeline = loaded(model("flux", there, None, parts={"vae": str(vae), "text_encoder_2": str(encoder)}))
    b = bench(family="flux")
    ours, own = states(open_pipeline(ctx, pipeline)), states(open_pipeline(b.context(), b.pipeline()))
    assert {n.split(".")[0] for n, x in ours.items() if not x.equal(own[n])} == {"text_encoder_2"}
    assert {*OriginalsFile.read(pipeline.path).parts} == {"vae"}


def test_a_controlnet_beside_sdxl_is_the_whole_pipeline_of_both() -> None:
    whole = saved("sdxl_controlnet")
    (base := folder() / "base").mkdir()
    for path in whole.iterdir():
        if path.name not in ("controlnet", "model_index.json"):
            (base / path.name).symlink_to(path)
    index = json.loads((whole / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    del index["controlnet"]
    (base / "model_index.json").write_text(json.dumps(index))
    picked = model("sdxl_controlnet", base, None, parts={"controlnet": str(whole / "controlnet")})
    ctx, pipeline = loaded(picked)
    b = bench(family="sdxl_controlnet")
    found = open_pipeline(ctx, pipeline)
    assert type(found).__name__ == "StableDiffusionXLControlNetPipeline"
    same(states(found), states(open_pipeline(b.context(), b.pipeline())))
    digest, given_then = PipelineFile.read(pipeline.path).source, picked.model_dump(mode="json", exclude_unset=True)
    again = Sources(folder() / "again.json")
    assert modelopt_file._found(again, digest, modelopt_file._sources(digest, [given_then]))
    assert (again.locate(digest) / "controlnet" / "config.json").is_file()
    known = json.loads(again.memory.read_text())
    assert len(known) > 5
    # That of both is in a directory of this process, which no other has.
    assert [n.startswith(str(base)) for n in known if "model_index.json" in n] == [True]
    for given, said in {
        single("sdxl"): "parts.controlnet: its controlnet is a file, and its config is nowhere",
        saved("sdxl") / "text_encoder_2": None,
    }.items():
        if said:
            assert refusal("sdxl_controlnet", base, None, parts={"controlnet": str(given)}).startswith(said)
        else:
            with pytest.raises(
                PlanError, match=r"model\.parts: its controlnet is no ControlNetModel or MultiC.* \(got a CLIPTextMod"
            ):
                loaded(model("sdxl_controlnet", base, None, parts={"controlnet": str(given)}))
    assert "source: holds a StableDiffusionXLPipeline, but family sdxl_controlnet loads" in refusal(
        "sdxl_controlnet", base, None
    )
    index["_class_name"] = "StableDiffusionPipeline"
    (base / "model_index.json").write_text(json.dumps(index))
    said = refusal("sdxl_controlnet", base, None, parts={"controlnet": str(whole / "controlnet")})
    assert said.startswith("parts.controlnet: is a StableDiffusionPipeline, and with a controlnet only a StableDiffusionXLPip")


def test_the_same_bytes_elsewhere_are_the_same_model_and_a_bases_own_backbone_does_not_count() -> None:
    file = folder() / "copy.safetensors"
    shutil.copy(single("flux"), file)
    pairs = ((file, without("flux", "transformer")), (single("flux"), saved("flux")))
    assert len({bench().sources.digest(model("flux", *pair).origin) for pair in pairs}) == 1


def test_a_quantized_t5_is_read_as_what_its_codes_stand_for() -> None:
    tensors = load_file(saved("flux") / "text_encoder_2" / "model.safetensors")
    stored = {}
    for name, x in tensors.items():
        linear = x.dim() == 2 and "block" in name and "bias" not in name
        stored[name] = (x / 0.5).to(torch.float8_e4m3fn) if linear else x
        if linear:
            stored[name.replace(".weight", ".scale_weight")] = torch.tensor(0.5)
    save_file(stored | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, file := folder() / "t5xxl_fp8.safetensors")
    ctx, pipeline = loaded(model("flux", saved("flux"), None, parts={"text_encoder_2": str(file)}))
    found = open_pipeline(ctx, pipeline).text_encoder_2.state_dict()
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert found[name].equal(stored[name].float() * 0.5)


# what is none


LORA = {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 64)}


def refusal(tiny: str, source: Path, base: Path | None, **more: Any) -> str:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as e:
        model(tiny, source, base, **more)
    return str(e.value.errors()[0]["msg"]).removeprefix("Value error, ")


def test_what_is_no_checkpoint_is_refused_when_planning() -> None:
    there, base = folder(), saved("flux")
    save_file(LORA, lora := there / "lora.safetensors")
    (broken := there / "broken.safetensors").write_bytes(b"none of this is a header")
    (pickle := there / "model.ckpt").write_bytes(b"\x80\x04")
    (there / "nothing").mkdir()
    for path, said in {
        lora: "source: lora.safetensors is an adapter, not a model",
        broken: "source: broken.safetensors has a header that is none",
        pickle: "is a pickle (.ckpt), which can run code when it is loaded; convert it to .safetensors",
        there / "nothing": "source: holds neither model_index.json nor config.json",
    }.items():
        found = refusal("flux", path, base)
        assert found.startswith(said), found


def test_a_file_or_backbone_without_a_base_names_what_is_not_in_it() -> None:
    alone = refusal("flux", single("flux"), None)
    assert alone.startswith("base: the source is a model alone in FP32, without text encoders, VAE, configs and tokenizers")
    whole = refusal("sdxl", whole_sdxl(), None)
    assert whole.startswith("base: the source is a backbone, text encoders, VAE in FP32, without configs and tokenizers"), whole
    folder_alone = refusal("flux", saved("flux") / "transformer", None)
    assert "is a FluxTransformer2DModel, without text encoders, VAE" in folder_alone


def test_a_backbone_of_another_class_and_a_part_that_is_none_are_refused_when_planning() -> None:
    assert "source: is a FluxTransformer2DModel, which the pipeline of model.base has not" in refusal(
        "sdxl", saved("flux") / "transformer", saved("sdxl")
    )
    for part, said in {"tower": "the pipeline has no tower", "tokenizer": "the pipeline's tokenizer has no weights"}.items():
        assert refusal("flux", saved("flux"), None, parts={part: str(single("flux"))}).startswith(f"parts.{part}: {said}")
    said = refusal("flux", saved("flux"), None, parts={"vae": str(saved("flux") / "transformer")})
    assert said.startswith("parts.vae: is a FluxTransformer2DModel, and the pipeline's vae is a AutoencoderKL")


def test_a_lone_backbone_whose_shards_are_not_all_there_names_the_missing_one() -> None:
    from diffusers import FluxTransformer2DModel

    FluxTransformer2DModel.from_pretrained(saved("flux") / "transformer").save_pretrained(
        there := folder(), max_shard_size="50KB"
    )
    gone = min(there.glob("*-of-*.safetensors"))
    gone.unlink()
    assert f"lacks {gone.name}, which" in refusal("flux", there, saved("flux"))


def test_a_file_of_another_model_is_refused_when_it_is_loaded_with_what_does_not_fit() -> None:
    with pytest.raises(PlanError, match=r"mine.safetensors is no UNet2DConditionModel, the unet of the pipeline: .*; choose"):
        loaded(model("sdxl", single("flux"), saved("sdxl")))


def test_inspect_says_what_weights_are_and_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    save_file(LORA, lora := folder() / "style.safetensors")
    said = {}
    for path in (whole_sdxl(), single("flux"), saved("flux") / "transformer", saved("flux") / "vae", lora):
        inspect.command([str(path)])
        said[path.stem] = dict(re.match(r"(\w+) +(.*)", x).groups() for x in capsys.readouterr().out.splitlines())  # type: ignore
    assert said["whole"]["holds"] == "backbone, text encoders, VAE"
    assert said["whole"]["use"].endswith("model.base=PIPELINE, which has its configs and tokenizers")
    assert said["mine"]["model"] == "flux-schnell, choose model=flux_schnell"
    assert said["transformer"]["holds"] == "FluxTransformer2DModel alone"
    assert said["vae"]["use"].startswith("model.parts={NAME: ")
    assert said["style"]["holds"] == "a LoRA adapter"


def test_the_parts_that_an_export_copies_are_written_from_a_single_file_too() -> None:
    """diffusers loads the folder whole."""
    from diffusers import FluxPipeline

    from diffopt.shipping import others

    there = saved("flux")
    save_file(ldm_vae(load_file(there / "vae" / WEIGHTS)), vae := folder() / "ae.safetensors")
    ctx, pipeline = loaded(model("flux", single("flux"), there, parts={"vae": str(vae)}))
    shutil.copytree(there / "transformer", (out := folder()) / "transformer")
    others.write(ctx, pipeline, out, link=False)
    b = bench(family="flux")
    same(states(FluxPipeline.from_pretrained(out)), states(open_pipeline(b.context(), b.pipeline())))


def test_auto_finds_a_family_by_the_base_and_reads_the_file() -> None:
    found = model("sdxl", single("sdxl"), without("sdxl", "unet"), family="auto", max_sequence_length=None)
    ctx, pipeline = loaded(found)
    assert OriginalsFile.read(pipeline.path).parts["unet"].way == "makers"
    own = bench(family="sdxl")
    same(open_backbone(ctx, pipeline).state_dict(), own.backbone().state_dict())


def test_gguf_is_dequantized_to_what_its_codes_stand_for() -> None:
    gguf = pytest.importorskip("gguf")
    tensors = load_file(single("flux"))
    writer = gguf.GGUFWriter(file := folder() / "mine.gguf", "flux")
    for name, x in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if x.dim() == 2 and not x.shape[1] % 32 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(x.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = model("flux", file, without("flux", "transformer"))
    assert "model alone in Q8_0" in str(found.own)
    own, read = bench(family="flux").backbone().state_dict(), open_backbone(*loaded(found)).state_dict()
    assert {n: x.shape for n, x in read.items()} == {n: x.shape for n, x in own.items()}
    name = "transformer_blocks.0.attn.to_k.weight"
    error = (read[name] - own[name]).abs().max() / own[name].abs().max()
    assert 0 < error < 1 / 128
    assert read["norm_out.linear.bias"].equal(own["norm_out.linear.bias"])
    file.write_bytes(file.read_bytes()[:2000])
    assert "is no .gguf file that can be read" in refusal("flux", file, saved("flux"))


def test_a_header_that_is_nested_without_end_is_none(tmp_path: Path) -> None:
    text = b"[" * 100_000
    (file := tmp_path / "deep.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"deep\.safetensors has a header that is none of a \.safetensors file"):
        tensors(file)
