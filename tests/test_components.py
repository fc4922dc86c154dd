"""Text encoders in fewer bits: real bytes that transformers loads, drawn with by the candidate alone, and shipped."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_layouts import FOLDER
from test_original import loaded, model
from tiny import Bench, bench, emoji, folder, prompt_set, saved
from transformers import CLIPTextModel, T5EncoderModel

import diffopt
from diffopt.artifact import CandidateEmbeddings, Components
from diffopt.cli.store import command
from diffopt.errors import ConfigError, GateError, PlanError
from diffopt.files.components import ComponentsFile
from diffopt.files.deploy import DeployFile
from diffopt.groups.encoded import EvalPromptsView
from diffopt.groups.format import ComponentsView
from diffopt.groups.model import TextView
from diffopt.pipeline.open import open_pipeline
from diffopt.pipeline.texts import encode, load
from diffopt.report.run_directory import Run
from diffopt.shipping import others
from diffopt.stages.deploy import deploy
from diffopt.stages.recode import recode
from diffopt.stages.slim import slim

WANTED: dict[str, Any] = {"text_encoder_2": "fp8", "text_encoder": "int8", "vae": None}
LAYER = "encoder.block.0.layer.0.SelfAttention.q"


def slimmed(b: Bench, wanted: dict[str, Any] = WANTED, pipeline: Any = None) -> Components:
    ctx = b.context()
    slim.run(ctx, ComponentsView(components=wanted), pipeline or b.pipeline())
    return Components(ctx.out, "slim")


@cache
def made() -> Components:
    return slimmed(bench("bfloat16"))


def embeddings(b: Bench, components: Components) -> dict[str, torch.Tensor]:
    ctx = b.context()
    text = TextView(**{n: getattr(b.call, n) for n in TextView.model_fields})
    recode.run(ctx, text, EvalPromptsView(prompts=prompt_set(b.prompts[:2]), batch_size=2), b.pipeline(), components)
    return load(CandidateEmbeddings(ctx.out, "recoded"), "cpu")[0]


def test_what_is_stored_are_the_codes_themselves_which_transformers_loads() -> None:
    places = (Path(bench("bfloat16").source), made().path)
    plain, stored = (load_file(p / "text_encoder_2" / "model.safetensors") for p in places)
    codes, scale = stored[f"{LAYER}._weight_qdata"], stored[f"{LAYER}._weight_scale"]
    assert (codes.dtype, codes.shape) == (torch.float8_e4m3fn, plain[f"{LAYER}.weight"].shape)
    assert not [n for n in stored if f"{LAYER}.weight" == n]
    found = T5EncoderModel.from_pretrained(made().path / "text_encoder_2", dtype=torch.bfloat16)
    weight = found.get_parameter(f"{LAYER}.weight")
    numbers = codes.float() * scale.float()
    assert torch.allclose(weight.dequantize().float(), numbers, rtol=2**-7)
    assert 0 < (numbers - plain[f"{LAYER}.weight"]).abs().max() < plain[f"{LAYER}.weight"].abs().max() / 8
    about = ComponentsFile.read(made().path).parts
    assert (about["text_encoder_2"].format, about["text_encoder"].format) == ("fp8", "int8")
    assert {*about} == {"text_encoder", "text_encoder_2"}
    for name, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", T5EncoderModel)):
        linear = [m for m in kind.from_pretrained(made().path / name).modules() if isinstance(m, torch.nn.Linear)]
        assert about[name].layers == len(linear) > 0


def test_what_is_said_beside_the_codes_is_in_the_order_of_its_names() -> None:
    """The library's own order is another in each process."""
    (path,) = (made().path / "text_encoder_2").glob("*.safetensors")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert len(header["__metadata__"]) > 2
    assert [*header["__metadata__"]] == sorted(header["__metadata__"])


def test_four_bits_are_those_of_bitsandbytes_and_are_read_again_as_they_were_made() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_nf4

    b = emoji()
    made = slimmed(b, {"text_encoder_2": "nf4"})
    stored, about = load_file(made.path / "text_encoder_2" / "model.safetensors"), ComponentsFile.read(made.path).parts
    pipe, prompts = open_pipeline(b.context(), b.pipeline()), b.prompts[:2]
    full = encode(b.context(), pipe, b.pipeline(), prompts, b.call)["prompt_embeds"]
    linear = {n: m for n, m in pipe.text_encoder_2.named_modules() if isinstance(m, torch.nn.Linear)}
    kept_in_four = {n for n in linear if f"{n}.weight.absmax" in stored}
    assert {*linear} - kept_in_four == {n for n in linear if n.endswith(".wo")}  # which transformers keeps of every T5
    assert about["text_encoder_2"].layers == len(kept_in_four) == 12
    for name in kept_in_four:
        codes, state = quantize_nf4(linear[name].weight.data)
        assert stored[f"{name}.weight"].equal(codes), name
        assert stored[f"{name}.weight.absmax"].equal(state.absmax), name
        linear[name].weight.data = dequantize_4bit(codes, state)
    assert about["text_encoder_2"].bytes < about["text_encoder_2"].plain / 2
    theirs = encode(b.context(), pipe, b.pipeline(), prompts, b.call)["prompt_embeds"]
    ours, again = (embeddings(b, made)["prompt_embeds"] for _ in range(2))
    assert ours.equal(again)
    # NF4 itself moves them by 0.11; bitsandbytes computes in BF16 on a CPU that has it, by 2^-9 a number.
    assert away(ours, theirs) < 2**-7
    assert away(theirs, full) == pytest.approx(0.108, abs=0.002)


def away(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to theirs."""
    return float((ours - theirs).float().norm() / theirs.float().norm())


def test_four_bits_of_layers_without_whole_blocks_are_refused() -> None:
    with pytest.raises(
        GateError, match=r"^format\.components\.text_encoder_2: bitsandbytes computes no layer .*choose fp8 or int8"
    ):
        slimmed(bench("bfloat16"), {"text_encoder_2": "nf4"})


def test_the_candidate_is_drawn_with_what_they_make_of_a_prompt() -> None:
    b = bench("bfloat16")
    full = {n: x[:2] for n, x in load(b.texts(0, 4), "cpu")[0].items()}
    t5, clip = (embeddings(b, slimmed(b, {n: f})) for n, f in (("text_encoder_2", "fp8"), ("text_encoder", "int8")))
    assert t5["pooled_prompt_embeds"].equal(full["pooled_prompt_embeds"])
    assert clip["prompt_embeds"].equal(full["prompt_embeds"])
    for ours, name in ((t5, "prompt_embeds"), (clip, "pooled_prompt_embeds")):
        assert 0 < away(ours[name], full[name]) < 0.1, name


def test_one_that_came_from_elsewhere_is_taken_as_it_is_drawn() -> None:
    from safetensors.torch import save_file

    tensors = load_file(saved("flux") / "text_encoder_2" / "model.safetensors")
    save_file({n: x * 2 if n == f"{LAYER}.weight" else x for n, x in tensors.items()}, file := folder() / "t5xxl.safetensors")
    ctx, pipeline = loaded(model("flux", saved("flux"), None, parts={"text_encoder_2": str(file)}))
    slim.run(ctx, ComponentsView(components={"text_encoder_2": "int8"}), pipeline)
    found = T5EncoderModel.from_pretrained(ctx.out / "text_encoder_2").get_parameter(f"{LAYER}.weight").dequantize()
    assert torch.allclose(found, tensors[f"{LAYER}.weight"] * 2, atol=float(found.abs().max()) / 120)


def test_a_package_has_them_and_diffusers_loads_it_whole() -> None:
    from diffusers import FluxPipeline

    b = bench("bfloat16")
    ctx = b.context()
    deploy.run(ctx, FOLDER, b.pipeline(), b.checkpoint("fp8"), made())
    head = DeployFile.read(ctx.out)
    assert head.components == {"text_encoder_2": "fp8", "text_encoder": "int8"}
    others.write(ctx, b.pipeline(), ctx.out, link=False, there=head.components)
    pipe = FluxPipeline.from_pretrained(ctx.out, transformer=None, torch_dtype=torch.bfloat16)
    prompts = list(b.prompts[:2])
    with torch.inference_mode():
        embeds, pooled, _ = pipe.encode_prompt(prompts, None, max_sequence_length=16)
    ours = embeddings(b, made())
    assert embeds.equal(ours["prompt_embeds"])
    assert pooled.equal(ours["pooled_prompt_embeds"])


BASE = ("model=emoji_flux", "format=fp8", "calib=emoji", "eval=emoji")


def test_a_sweep_over_them_shares_what_is_of_the_backbone(plan: Any) -> None:
    keys = {}
    for value in ("null", "fp8", "int8"):
        found = plan(*BASE, f"format.components.text_encoder_2={value}", sweep=True)
        keys[value] = {s.name: s.fingerprint for s in found.steps}
    full, fp8, int8 = keys.values()
    assert {*fp8} - {*full} == {"slim", "recode"}
    shared = {n for n in full if full[n] == fp8[n] == int8[n]}
    assert shared == {*full} - {"sample", "score"}
    assert len({k["sample"] for k in keys.values()}) == 3
    assert full == {s.name: s.fingerprint for s in plan(*BASE).steps}


@pytest.mark.parametrize(
    ("components", "line"),
    [
        ("{tower: fp8}", r"format\.components\.tower: the pipeline has no such part \(got fp8\); there are text_encoder, text"),
        (
            "{vae: fp8}",
            r"format\.components\.vae: is made of convolutions, of which no library keeps weights alone \(got fp8\); set",
        ),
        ("{transformer: int8}", r"format\.components\.transformer: is the backbone, which format=fp8 quantizes"),
        ("{tokenizer: int8}", r"format\.components\.tokenizer: is no model that reads prompts"),
        (
            "{text_encoder: int4_awq}",
            r"format\.components\.text_encoder: no library keeps weights alone .*got int4_awq\)",
        ),
        ("{text_encoder: fp9}", r"format\.components\.text_encoder"),
    ],
)
def test_what_cannot_be_kept_in_fewer_bits_is_refused_when_planning(plan: Any, components: str, line: str) -> None:
    with pytest.raises((ConfigError, PlanError), match=line):
        plan(*BASE, f"format.components={components}")


@pytest.mark.parametrize(("format", "package"), [("fp8", "torchao"), ("nf4", "bitsandbytes")])
def test_without_its_package_the_plan_says_what_to_install(
    plan: Any, monkeypatch: pytest.MonkeyPatch, format: str, package: str
) -> None:
    from diffopt.jobs import component_checks

    monkeypatch.setattr(component_checks, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=rf"{package} is not installed .*pip install 'diffopt\[components\]'"):
        plan(*BASE, f"format.components={{text_encoder: {format}}}")


def test_a_run_says_what_they_take_and_what_leaves_its_store_was_scored_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFOPT_STORE", str(tmp_path / "store"))
    small = {
        "calib.size": 2,
        "calib.chunk": 2,
        "calib.batch_size": 2,
        "calib.n_steps": 1,
        "eval.size": 2,
        "eval.steps": 2,
        "eval.metrics": ["psnr"],
    }
    found = diffopt.run("emoji_fp8", small | {"format.components": {"text_encoder_2": "fp8"}, "eval.latency": False})
    row = next(r for r in Run(found.directory).sizes if r.step == "slim")
    assert (row.what, row.bytes) == (
        "text_encoder_2",
        (found.directory / "slim/text_encoder_2/model.safetensors").stat().st_size,
    )
    assert row.share is not None
    assert 0.25 < row.share < 0.75
    assert "Of text encoders in fewer bits" in found.report.read_text()
    command(["export", str(found.directory), "out", "--as", "diffusers"])
    config = json.loads(Path("out/text_encoder_2/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"
    card = Path("out/README.md").read_text()
    assert "text_encoder_2 in FP8: transformers loads them with torchao installed" in card
    assert "It was not scored" not in card
    quantized = next(s for s in Run(found.directory).content.steps if s.name == "quantize")
    command(["export", f"checkpoint/{quantized.fingerprint}", "plain", "--as", "diffusers"])
    assert "quantization_config" not in json.loads(Path("plain/text_encoder_2/config.json").read_text())
    assert "It was not scored" in Path("plain/README.md").read_text()


def test_pictures_that_are_drawn_in_parts_are_drawn_with_them_too(plan: Any) -> None:
    found = plan(*BASE, "format.components.text_encoder_2=fp8", "eval.size=16", "eval.chunk=8", "eval.batch_size=8")
    drawn = [s for s in found.steps if s.stage.name == "sample_part"]
    assert [s.inputs["own"].name for s in drawn] == ["recode_part.0", "recode_part.1"]
    assert "recode" not in {s.name for s in found.steps}
