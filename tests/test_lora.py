"""Adapters fused into a model: by diffusers' own hand, into what they name, and nothing of them left."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from adapters import FILE, adapter, kohya, kohya_flux
from conftest import some
from safetensors.torch import load_file, save_file
from tiny import BATCH, PROMPTS, Bench, bench, called, folder, random_bench, saved
from tiny_pipelines import DOUBLE, TINY, WIDTH

from diffopt import models
from diffopt.cli.modelopt_file import portable
from diffopt.data.prompts import PromptSet
from diffopt.errors import GateError, PlanError, StoreError
from diffopt.files import lora as lora_file
from diffopt.groups.lora_file import Adapter
from diffopt.pipeline.open import open_backbone, open_denoiser, open_pipeline, open_texts

TEXT = {"flux": ("text_encoder",), "sd3": ("text_encoder", "text_encoder_2"), "sd21": ("text_encoder",)}
TEXT |= {"sdxl": ("text_encoder", "text_encoder_2")}
FAMILIES = ["flux", "sdxl", "sd3", "sd21", "ltx", "wan", "wan_ti2v", "qwen_image", "chroma"]
FAMILIES += ["flux2", "flux2_klein", "z_image", "sana", "sana_sprint"]
KOHYA = {"sd21": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}


def plain(tiny: str) -> Any:
    return pipeline_class(tiny).from_pretrained(saved(tiny))


def pipeline_class(tiny: str) -> Any:
    return getattr(diffusers, models.family(TINY[tiny].family).pipeline)


@cache
def made(tiny: str, seed: int = 0, rank: int = 4, text: bool = True) -> Path:
    """An adapter's file."""
    return adapter(folder(), plain(tiny), text=TEXT.get(tiny, ()) if text else (), seed=seed, rank=rank)


def by_hand(tiny: str, *adapters: tuple[Path, float]) -> Any:
    """What diffusers' documentation does to a pipeline."""
    pipe = plain(tiny)
    for i, (path, _) in enumerate(adapters):
        pipe.load_lora_weights(str(path), adapter_name=f"a{i}")
    pipe.set_adapters([f"a{i}" for i in range(len(adapters))], [scale for _, scale in adapters])
    pipe.fuse_lora(components=[c for c in type(pipe)._lora_loadable_modules if getattr(pipe, c, None) is not None])
    pipe.unload_lora_weights()
    return pipe


def fused(tiny: str, *adapters: tuple[Path, float], **more: Any) -> Bench:
    b = bench(family=tiny)
    given = [Adapter(path=str(path), scale=scale, **more) for path, scale in adapters]
    return Bench(folder(), b.source, call=b.call, family=b.family, lora=given)


def differing(ours: Any, theirs: Any) -> dict[str, int]:
    """By component that has any, the number of tensors that are not the same bit by bit."""
    found = {}
    for name, module in ours.components.items():
        if isinstance(module, torch.nn.Module):
            left, right = module.state_dict(), theirs.components[name].state_dict()
            assert list(left) == list(right)
            found[name] = sum(not torch.equal(x, right[key]) for key, x in left.items())
    return {name: n for name, n in found.items() if n}


# Into what they name.


@pytest.mark.parametrize("tiny", some(FAMILIES, ["flux", "sdxl", "wan"]))
def test_a_fused_pipeline_has_the_weights_that_diffusers_gives_it(tiny: str) -> None:
    b = fused(tiny, (made(tiny), 0.7))
    ours = open_pipeline(b.context(), b.pipeline())
    assert differing(ours, by_hand(tiny, (made(tiny), 0.7))) == {}
    hits = b.pipeline().json("pipeline.json")["lora"][0]["hits"]
    assert differing(ours, plain(tiny)) == hits
    assert {*hits} == {*TEXT.get(tiny, ()), models.family(TINY[tiny].family).backbones[0]}


@pytest.mark.parametrize("tiny", sorted(KOHYA))
def test_kohyas_names_and_alphas_are_fused_as_diffusers_does(tiny: str) -> None:
    path = kohya(adapter(folder(), plain(tiny), text=KOHYA[tiny]), folder() / "kohya.safetensors", alpha=2.0)
    b = fused(tiny, (path, 1.5))
    ours = open_pipeline(b.context(), b.pipeline())
    assert differing(ours, by_hand(tiny, (path, 1.5))) == {}
    assert {*differing(ours, plain(tiny))} == {*KOHYA[tiny], "unet"}


@cache
def joined() -> Path:
    return kohya_flux(folder() / "kohya.safetensors", WIDTH, DOUBLE, alpha=2.0)


def test_layers_that_kohya_joins_are_taken_apart() -> None:
    b = fused("flux", (joined(), 0.8))
    ours = open_pipeline(b.context(), b.pipeline())
    assert differing(ours, by_hand("flux", (joined(), 0.8))) == {}
    assert differing(ours, plain("flux")) == {"transformer": 7 * DOUBLE}


def test_several_adapters_are_added_each_at_its_scale() -> None:
    both = (made("flux"), 0.9), (made("flux", seed=1, rank=8, text=False), -0.5)
    b = fused("flux", *both)
    assert differing(open_pipeline(b.context(), b.pipeline()), by_hand("flux", *both)) == {}
    assert differing(open_pipeline(b.context(), b.pipeline()), by_hand("flux", both[0]))


def test_half_precision_is_fused_as_diffusers_does() -> None:
    b = fused("flux", (made("flux"), 0.9))
    b.dtype = "bfloat16"
    pipe = pipeline_class("flux").from_pretrained(saved("flux"), torch_dtype=torch.bfloat16)
    pipe.load_lora_weights(str(made("flux")), adapter_name="a")
    pipe.set_adapters(["a"], [0.9])
    pipe.fuse_lora(components=["transformer", "text_encoder"])
    pipe.unload_lora_weights()
    assert differing(open_pipeline(b.context(), b.pipeline()), pipe) == {}


def test_an_adapter_for_the_second_backbone_changes_that_one_alone() -> None:
    path = made("wan")
    b = fused("wan", (path, 1.0), backbone="transformer_2")
    ours = open_pipeline(b.context(), b.pipeline())
    assert {*differing(ours, plain("wan"))} == {"transformer_2"}
    hand = plain("wan")
    hand.load_lora_weights(str(path), adapter_name="a", load_into_transformer_2=True)
    hand.fuse_lora(components=["transformer_2"])
    hand.unload_lora_weights()
    assert differing(ours, hand) == {}


def test_random_weights_are_fused_too() -> None:
    b = random_bench("flux")
    without = open_backbone(b.context(), b.pipeline()).state_dict()
    b = Bench(folder(), b.source, call=b.call, weights="random", lora=[Adapter(path=str(made("flux")))])
    found = open_backbone(b.context(), b.pipeline()).state_dict()
    assert sum(not torch.equal(x, without[key]) for key, x in found.items()) == 10
    assert list(b.pipeline().json("pipeline.json")["lora"][0]["hits"]) == ["transformer"]


# Everyone sees the fused weights.


@pytest.mark.parametrize("open", [open_pipeline, open_texts, open_denoiser])
def test_whatever_opens_the_model_gets_the_fused_weights(open: Any) -> None:
    b = fused("flux", (made("flux"), 0.7))
    found, hand = open(b.context(), b.pipeline()), by_hand("flux", (made("flux"), 0.7))
    parts = {n: m for n, m in found.components.items() if isinstance(m, torch.nn.Module)}
    assert {*parts} & {"transformer", "text_encoder"}
    for name, module in parts.items():
        assert all(torch.equal(x, hand.components[name].state_dict()[k]) for k, x in module.state_dict().items())


@pytest.mark.parametrize("tiny", ["flux", "sd21"])
def test_nothing_of_an_adapter_is_left(tiny: str) -> None:
    b = fused(tiny, (made(tiny), 0.7))
    ours, before = open_pipeline(b.context(), b.pipeline()), plain(tiny)
    for name, module in ours.components.items():
        if isinstance(module, torch.nn.Module):
            types = [(n, type(m)) for n, m in before.components[name].named_modules()]
            assert [(n, type(m)) for n, m in module.named_modules()] == types
            trainable = [p.requires_grad for p in before.components[name].parameters()]
            assert [p.requires_grad for p in module.parameters()] == trainable
            assert not getattr(module, "_hf_peft_config_loaded", False)
            assert not module.training


def test_a_lora_layer_that_is_left_breaks_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "unload_lora", lambda self: None)
    b = fused("flux", (made("flux"), 1.0))
    with pytest.raises(GateError, match=r"lora: \d+ LoRA layers of transformer are left unfused \(got .*\.to_q"):
        open_backbone(b.context(), b.pipeline())


def test_a_layer_that_is_not_hit_breaks_the_gate() -> None:
    b = fused("flux", (made("flux"), 1.0))
    hits = json.loads((b.pipeline().path / lora_file.NAME).read_text())
    hits[0]["layers"]["transformer"].append("proj_out")
    (b.pipeline().path / lora_file.NAME).write_text(json.dumps(hits))
    with pytest.raises(GateError, match=r"hits 10 layers of transformer, but fits 11 \(got proj_out otherwise\)"):
        open_backbone(b.context(), b.pipeline())


# As a model that was saved after fusing.


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Bench]:
    """The fused model, and the one that diffusers fused and saved."""
    where = tmp_path_factory.mktemp("saved") / "model"
    path = made("flux")
    by_hand("flux", (path, 0.9)).save_pretrained(where)
    return fused("flux", (path, 0.9)), Bench(folder(), str(where), call=called(32, 16, long_prompts="cut"))


@pytest.mark.parametrize("name", some([None, "fp8", "int8_sq"], ["fp8"]))
def test_the_graph_is_that_of_a_model_saved_after_fusing(name: str | None, both: tuple[Bench, Bench]) -> None:
    ours, theirs = (b.graph(name).path / "model.onnx" for b in both)
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.read_bytes() != (bench().graph(name).path / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", ["int8_sq", pytest.param("int4_awq", marks=pytest.mark.matrix)])
def test_the_checkpoint_is_that_of_a_model_saved_after_fusing(name: str, both: tuple[Bench, Bench]) -> None:
    ours, theirs = (b.checkpoint(name).path for b in both)
    files = sorted(p.name for p in theirs.iterdir())
    assert [(ours / n).read_bytes() for n in files] == [(theirs / n).read_bytes() for n in files]


def test_prompts_are_encoded_as_by_a_model_saved_after_fusing(both: tuple[Bench, Bench]) -> None:
    ours, theirs = (load_file(b.encoded(PromptSet("tests", PROMPTS[:2]), BATCH).path / "embeddings.safetensors") for b in both)
    before = load_file(bench().encoded(PromptSet("tests", PROMPTS[:2]), BATCH).path / "embeddings.safetensors")
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
    assert not torch.equal(ours["0000.pooled_prompt_embeds"], before["0000.pooled_prompt_embeds"])


def test_the_portable_file_has_the_fused_weights(both: tuple[Bench, Bench], tmp_path: Path) -> None:
    from diffopt.quantization import checkpoint

    for i, b in enumerate(both):
        portable(checkpoint.restore(b.context(), b.pipeline(), b.checkpoint("fp8")), tmp_path / str(i))
    ours, theirs = (torch.load(tmp_path / str(i), weights_only=False)["model_state_dict"] for i in range(2))
    assert list(ours) == list(theirs)
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())


# What does not fit.


def rewritten(path: Path, change: Any) -> Path:
    out = folder() / FILE
    save_file(change(load_file(path)), out)
    return out


def refusal(tiny: str, path: Path, **more: Any) -> str:
    with pytest.raises(PlanError) as e:
        fused(tiny, (path, 1.0), **more).pipeline()
    return str(e.value)


def test_an_adapter_that_matches_no_layer_is_refused() -> None:
    path = rewritten(made("flux"), lambda x: {k.replace("transformer", "decoder"): v for k, v in x.items() if "text" not in k})
    assert "model.lora.0: matches no layer of the model (got" in (said := refusal("flux", path))
    assert "20 keys, the first decoder." in said


def test_an_adapter_of_another_family_is_refused() -> None:
    path = rewritten(made("sdxl"), lambda x: {k: v for k, v in x.items() if "text" not in k})
    assert "model.lora.0: matches no layer of the model (got" in refusal("flux", path)


def test_keys_that_match_nothing_are_counted() -> None:
    extra = {"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": torch.zeros(4, 64)}
    extra["transformer.transformer_blocks.9.attn.to_q.lora_B.weight"] = torch.zeros(64, 4)
    said = refusal("flux", rewritten(made("flux"), lambda x: x | extra))
    assert "2 of its 30 keys match no layer of the model, the first transformer.transformer_blocks.9.attn.to_q" in said


def test_half_of_a_product_is_a_key_that_matches_nothing() -> None:
    lost = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    said = refusal("flux", rewritten(made("flux"), lambda x: {k: v for k, v in x.items() if k != lost}))
    assert "1 of its 27 keys match no layer of the model, the first transformer.transformer_blocks.0.attn.to_q.lora_A" in said


def test_keys_that_diffusers_leaves_out_silently_are_counted_under_their_own_names() -> None:
    lost = {f"text_encoders.t5xxl.transformer.x.lora_{half}.weight": torch.ones(4, 4) for half in ("down", "up")}
    said = refusal("flux", rewritten(joined(), lambda x: x | lost))
    assert "2 of its 20 keys match no layer of the model, the first text_encoders.t5xxl.transformer.x.lora_down" in said


def test_a_product_with_zeros_changes_nothing_so_it_may_match_nothing() -> None:
    idle = {f"text_encoders.t5xxl.transformer.x.lora_{half}.weight": torch.ones(4, 4) for half in ("down", "up")}
    idle["text_encoders.t5xxl.transformer.x.lora_up.weight"] *= 0
    b = fused("flux", (rewritten(joined(), lambda x: x | idle), 1.0))
    assert b.pipeline().json("pipeline.json")["lora"][0]["hits"] == {"transformer": 7 * DOUBLE}


def test_a_layout_that_diffusers_cannot_read_is_refused_with_its_reason() -> None:
    path = kohya(made("flux", text=False), folder() / "kohya.safetensors", alpha=2.0)
    assert "model.lora.0: diffusers cannot read it for flux: Incompatible keys detected: lora_unet" in refusal("flux", path)


def test_an_adapter_of_another_size_is_refused() -> None:
    def wider(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: torch.zeros(v.shape[0], 96) if "lora_A" in k and "text" not in k else v for k, v in x.items()}

    said = refusal("flux", rewritten(made("flux"), wider))
    assert "model.lora.0: was trained on another architecture: 10 of its 14 layers have other sizes, the first" in said
    assert ": 64 x 96, in the model 64 x 64 (got" in said


def test_a_second_backbone_that_the_model_lacks_is_refused() -> None:
    assert "model.lora.0.backbone: the model has no such backbone (got 'transformer_2')" in refusal(
        "wan_ti2v", made("wan_ti2v"), backbone="transformer_2"
    )


@pytest.mark.parametrize("name", models.names())
def test_a_family_takes_adapters_where_diffusers_has_a_loader(name: str) -> None:
    family = models.family(name)
    assert family.lora == hasattr(getattr(diffusers, family.pipeline), "lora_state_dict")


# Out of the store.


def test_a_fused_checkpoint_is_exported_where_its_adapter_is_there(tmp_path: Path) -> None:
    from test_portable import MADE, export, stored

    b = fused("flux", (made("flux"), 0.7))
    store, source = stored(b, "fp8", tmp_path / "store"), f"--source={b.source}"
    with pytest.raises(StoreError, match=r"store export: an adapter that is fused into the model is not there .* --lora=FILE"):
        export(store, MADE, str(tmp_path / "out"), source)
    assert not (tmp_path / "out").exists()
    export(store, MADE, str(tmp_path / "out"), source, f"--lora={made('flux')}")
    saved_weights = torch.load(tmp_path / "out" / "modelopt.pt", weights_only=False)["model_state_dict"]
    hand = by_hand("flux", (made("flux"), 0.7)).transformer.state_dict()
    assert all(torch.equal(saved_weights[key], x) for key, x in hand.items())
