"""Adapters in every layout that diffusers converts: each key is used as its arithmetic says, or refused by its name."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_lora import fused, plain, refusal
from tiny import folder
from tiny_pipelines import WIDTH

from diffopt.pipeline import lora
from diffopt.pipeline.lora_keys import Account, account
from diffopt.pipeline.open import open_pipeline

RANK, ALPHA, SCALE = 4, 2.0, 0.7
Tensors = dict[str, torch.Tensor]


def product(stem: str, ends: tuple[str, str], outer: int, inner: int, alpha: float | None = ALPHA, rank: int = RANK) -> Tensors:
    """A layer of an adapter: its two halves, and its alpha if the layout has any."""
    found = {f"{stem}{ends[0]}": torch.randn(rank, inner) * 0.2, f"{stem}{ends[1]}": torch.randn(outer, rank) * 0.2}
    return found | ({f"{stem}.alpha": torch.tensor(alpha)} if alpha is not None else {})


DOWN_UP, A_B, XLABS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".down.weight", ".up.weight"),
)
SINGLE = "single_transformer_blocks.0.attn.to_q"
QUERY = "transformer_blocks.0.attn.to_q"
SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"

LAYOUTS: dict[str, tuple[str, str, tuple[str, str], float | None, str, str]] = {
    "kohya-sdxl": (
        "sdxl",
        "lora_unet_" + SDXL.replace(".", "_"),
        DOWN_UP,
        ALPHA,
        f"unet.{SDXL}",
        "down_blocks_1>down_blocks_3",
    ),
    "sgm-sdxl": (
        "sdxl",
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        DOWN_UP,
        ALPHA,
        f"unet.{SDXL}",
        "blocks_3_1>blocks_9_1",
    ),
    "kohya-text-sdxl": (
        "sdxl",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        DOWN_UP,
        ALPHA,
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
        "layers_0>layers_7",
    ),
    "kohya-sd21": (
        "sd21",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        DOWN_UP,
        ALPHA,
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks_0>down_blocks_3",
    ),
    "kohya-flux": (
        "flux",
        "lora_unet_double_blocks_0_img_attn_proj",
        DOWN_UP,
        ALPHA,
        "transformer.transformer_blocks.0.attn.to_out.0",
        "blocks_0>blocks_9",
    ),
    "comfy-flux": (
        "flux",
        "diffusion_model.double_blocks.0.img_attn.proj",
        DOWN_UP,
        ALPHA,
        "transformer.transformer_blocks.0.attn.to_out.0",
        "blocks.0>blocks.9",
    ),
    "lora_transformer-flux": (
        "flux",
        "lora_transformer_single_transformer_blocks_0_attn_to_q",
        DOWN_UP,
        ALPHA,
        f"transformer.{SINGLE}",
        "blocks_0>blocks_9",
    ),
    "xlabs-flux": (
        "flux",
        "double_blocks.0.processor.proj_lora1",
        XLABS,
        None,
        "transformer.transformer_blocks.0.attn.to_out.0",
        "blocks.0>blocks.9",
    ),
    "peft-flux": ("flux", f"transformer.{QUERY}", A_B, None, f"transformer.{QUERY}", "blocks.0>blocks.9"),
    "down-up-flux": ("flux", f"transformer.{QUERY}", DOWN_UP, None, f"transformer.{QUERY}", "blocks.0>blocks.9"),
    "kohya-chroma": (
        "chroma",
        "lora_unet_double_blocks_0_img_attn_proj",
        DOWN_UP,
        ALPHA,
        "transformer.transformer_blocks.0.attn.to_out.0",
        "blocks_0>blocks_9",
    ),
    "peft-sd3": ("sd3", f"transformer.{QUERY}", A_B, None, f"transformer.{QUERY}", "blocks.0>blocks.9"),
    "comfy-ltx": (
        "ltx",
        f"diffusion_model.{QUERY.replace('attn.', 'attn1.')}",
        A_B,
        None,
        f"transformer.{QUERY.replace('attn.', 'attn1.')}",
        "blocks.0>blocks.9",
    ),
    "comfy-wan": (
        "wan_ti2v",
        "diffusion_model.blocks.0.self_attn.q",
        DOWN_UP,
        ALPHA,
        "transformer.blocks.0.attn1.to_q",
        "blocks.0>blocks.9",
    ),
    "comfy-cross-wan": (
        "wan_ti2v",
        "diffusion_model.blocks.0.cross_attn.k",
        A_B,
        None,
        "transformer.blocks.0.attn2.to_k",
        "blocks.0>blocks.9",
    ),
    "comfy-qwen": ("qwen_image", f"diffusion_model.{QUERY}", DOWN_UP, ALPHA, f"transformer.{QUERY}", "blocks.0>blocks.9"),
    "kohya-qwen": (
        "qwen_image",
        "lora_unet_transformer_blocks_0_attn_to_q",
        DOWN_UP,
        ALPHA,
        f"transformer.{QUERY}",
        "blocks_0>blocks_9",
    ),
    "alpha-flux": ("flux", f"transformer.{QUERY}", A_B, ALPHA, f"transformer.{QUERY}", "blocks.0>blocks.9"),
    "alpha-qwen": ("qwen_image", QUERY, A_B, ALPHA, f"transformer.{QUERY}", "blocks.0>blocks.9"),
}
"""By name: the tiny model, a layer's stem in the file, ends of its keys, alpha, where it goes, and how another model has it."""


def written(tensors: Tensors) -> Path:
    out = folder() / "adapter.safetensors"
    save_file({k: x.clone().contiguous() for k, x in tensors.items()}, out)
    return out


def layer(pipe: Any, name: str) -> Any:
    component, _, rest = name.partition(".")
    module = getattr(pipe, component)  # transformers has flattened CLIP's
    return module.get_submodule(rest if hasattr(module, "text_model") else rest.removeprefix("text_model."))


def given(name: str) -> tuple[str, Tensors, str]:
    """Of a layout, the tiny model, an adapter for one of its layers, and that layer."""
    tiny, stem, ends, alpha, target, _ = LAYOUTS[name]
    torch.manual_seed(5)
    weight = layer(plain(tiny), target).weight
    return tiny, product(stem, ends, *weight.shape, alpha), target


def foreign(name: str, own: Tensors) -> Tensors:
    """The same for a layer that the model does not have."""
    was, now = LAYOUTS[name][5].split(">")
    return {k.replace(was, now): x for k, x in own.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layer_gets_alpha_over_rank_of_its_product(name: str) -> None:
    tiny, own, target = given(name)
    b = fused(tiny, (written(own), SCALE))
    ours = open_pipeline(b.context(), b.pipeline())
    inner, outer, *_ = own.values()
    alpha = LAYOUTS[name][3]
    wanted = SCALE * (1 if alpha is None else alpha / RANK) * (outer @ inner)
    torch.testing.assert_close(layer(ours, target).weight - layer(plain(tiny), target).weight, wanted, atol=1e-5, rtol=1e-4)
    assert sum(b.pipeline().json("pipeline.json")["lora"][0]["hits"].values()) == 1


PAIRS = {
    "sdxl": ("lora_unet_" + SDXL.replace(".", "_"), "lora_unet_mid_block_attentions_0_transformer_blocks_1_ff_net_2"),
    "text-sdxl": ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
    "text2-sdxl": ("lora_te2_text_model_encoder_layers_0_self_attn_out_proj", "lora_te2_text_model_encoder_layers_0_mlp_fc2"),
    "flux": ("lora_unet_double_blocks_0_img_attn_proj", "lora_unet_double_blocks_1_img_mlp_2"),
    "peft-flux": (f"transformer.{QUERY}", f"transformer.{QUERY.replace('to_q', 'to_k')}"),
}
PAIRED = {
    "sdxl": (f"unet.{SDXL}", "unet.mid_block.attentions.0.transformer_blocks.1.ff.net.2"),
    "text-sdxl": tuple(f"text_encoder.text_model.encoder.layers.0.{x}" for x in ("self_attn.out_proj", "mlp.fc1")),
    "text2-sdxl": tuple(f"text_encoder_2.text_model.encoder.layers.0.{x}" for x in ("self_attn.out_proj", "mlp.fc2")),
    "flux": tuple(f"transformer.transformer_blocks.{x}" for x in ("0.attn.to_out.0", "1.ff.net.2")),
    "peft-flux": (f"transformer.{QUERY}", f"transformer.{QUERY.replace('to_q', 'to_k')}"),
}


@pytest.mark.parametrize("alphas", [(2.0, 7.0), (3.0, None)], ids=["two", "one"])
@pytest.mark.parametrize("name", PAIRS)
def test_layers_of_several_alphas_and_ranks_get_each_its_own(name: str, alphas: tuple[float, float | None]) -> None:
    tiny = name.rpartition("-")[2]
    before = plain(tiny)
    torch.manual_seed(9)
    own: Tensors = {}
    wanted = []
    for stem, target, alpha, rank in zip(PAIRS[name], PAIRED[name], alphas, (4, 8), strict=True):
        more = product(stem, A_B if name.startswith("peft") else DOWN_UP, *layer(before, target).weight.shape, alpha, rank)
        inner, outer, *_ = more.values()
        wanted.append((1 if alpha is None else alpha / rank) * (outer @ inner))
        own |= more
    b = fused(tiny, (written(own), 1.0))
    ours = open_pipeline(b.context(), b.pipeline())
    for target, expected in zip(PAIRED[name], wanted, strict=True):
        torch.testing.assert_close(layer(ours, target).weight - layer(before, target).weight, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layer_that_the_model_does_not_have_is_refused_by_name(name: str) -> None:
    tiny, own, _ = given(name)
    other = foreign(name, own)
    said = refusal(tiny, written(own | other))
    assert said.startswith("model.lora.0: ")
    assert any(k in said for k in other)
    assert not any(f"first {k}" in said for k in own)


def test_only_one_copy_of_a_layer_under_two_names_would_be_used_so_it_is_refused() -> None:
    own = product("lora_unet_" + SDXL.replace(".", "_"), DOWN_UP, WIDTH, WIDTH)
    said = refusal(
        "sdxl", written(own | product("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q", DOWN_UP, 64, 64))
    )
    assert "3 of its 6 keys match no layer of the model, the first lora_unet_input_blocks_3_1_" in said


KOHYA, MIXED = "lora_unet_double_blocks_0_img_attn_proj", "lora_transformer_single_transformer_blocks_0_attn_to_q"
PEFT, WAN = f"transformer.{QUERY}", "diffusion_model.blocks.0.self_attn.q"
ODD: dict[str, tuple[str, Tensors, str]] = {
    "T5's": ("flux", product("lora_te2_encoder_block_0_q", DOWN_UP, 32, 32), "3 of its 6 keys match no layer of the model"),
    "a text encoder's half": (
        "flux",
        {"lora_te1_x.lora_down.weight": torch.ones(4, 32)},
        "cannot read 1 of its 4 keys for flux",
    ),
    "a third text encoder's": ("flux mixed", product("lora_te3_x", DOWN_UP, 32, 32), "cannot read 3 of its 6 keys for flux"),
    "nobody's": ("flux mixed", product("foo", DOWN_UP, 32, 32), "cannot read 3 of its 6 keys for flux"),
    "feed forward": (
        "flux mixed",
        product("lora_transformer_transformer_blocks_0_ff_net_0_proj", DOWN_UP, 256, 64),
        "3 of its 6",
    ),
    "kohya's beside": ("flux mixed", product(KOHYA, DOWN_UP, WIDTH, WIDTH), "3 of its 6 keys match no layer"),
    "the last layer's": ("flux", product("lora_unet_final_layer_linear", DOWN_UP, 16, WIDTH), "2 of its 6 keys match no layer"),
    "LoHa's": ("flux peft", {"transformer.x.hada_w1_a": torch.ones(3, 3)}, "1 of its 3 keys match no layer"),
    "LoKr's": ("flux peft", {"transformer.x.lokr_w1": torch.ones(3, 3)}, "1 of its 3 keys match no layer"),
    "an embedding": ("flux peft", {"bundle_emb.x": torch.ones(1, 8)}, "1 of its 3 keys match no layer"),
    "LoCon's third": ("sdxl", {"lora_unet_x.lora_mid.weight": torch.ones(3, 3, 3, 3)}, "cannot read 1 of its 4 keys for sdxl"),
    "another bias": ("flux peft", {f"{PEFT}.lora_B.bias": torch.ones(65)}, "to_q: a bias of 65, in the model 64"),
    "a norm": ("wan_ti2v", {"diffusion_model.blocks.0.norm3.diff": torch.ones(8)}, "1 of its 3 keys match no layer"),
    "whole weights": ("wan_ti2v", {"diffusion_model.patch_embedding.diff": torch.ones(8)}, "1 of its 3 keys match no layer"),
    "a lone bias": (
        "wan_ti2v",
        {"diffusion_model.blocks.0.self_attn.k.diff_b": torch.ones(64)},
        "1 of its 3 keys match no layer",
    ),
    "a lone alpha": ("wan_ti2v", {"diffusion_model.blocks.0.cross_attn.q.alpha": torch.tensor(2.0)}, "cannot read 1 of its 3"),
    "no matrices": (
        "flux peft",
        {f"transformer.x.lora_{h}.weight": torch.ones(4) for h in "AB"},
        "2 of its 4 keys match no layer",
    ),
    "numbers": (
        "flux peft",
        dict.fromkeys([f"{PEFT[:-1]}k.lora_A.weight"], torch.tensor(1.0)),
        "1 of its 3 keys match no layer",
    ),
    "not finite": (
        "flux peft",
        {f"{PEFT}.lora_B.weight": torch.full((64, 4), torch.nan)},
        "1 of its 2 tensors have values that",
    ),
}
"""By what is added: the tiny model, in which layout another layer is given, the tensors added, and what is said of them."""


def beside(tiny: str) -> Tensors:
    if tiny == "sdxl":
        return product("lora_unet_" + SDXL.replace(".", "_"), DOWN_UP, WIDTH, WIDTH)
    if tiny == "wan_ti2v":
        return product(WAN, A_B, WIDTH, WIDTH, None)
    stem, ends, alpha = {"flux mixed": (MIXED, DOWN_UP, ALPHA), "flux peft": (PEFT, A_B, None)}.get(
        tiny, (KOHYA, DOWN_UP, ALPHA)
    )
    return product(stem, ends, WIDTH, WIDTH, alpha)


@pytest.mark.parametrize("what", ODD)
def test_what_would_be_left_out_is_refused_by_name(what: str) -> None:
    tiny, added, wanted = ODD[what]
    said = refusal(tiny.partition(" ")[0], written(beside(tiny) | added))
    assert wanted in said
    assert any(f" {k}" in said or k.rpartition(".lora_B.bias")[0] in said for k in added)
    assert "; " in said.partition(" (got ")[2]


@pytest.mark.parametrize(
    ("tiny", "tensors"),
    [
        ("flux", product("lora_unet_single_blocks_0_linear1", DOWN_UP, 7 * WIDTH, WIDTH)),  # an assertion of sizes
        ("flux", product(MIXED, DOWN_UP, WIDTH, WIDTH, None)),  # a KeyError of its alpha
        ("flux", {k: torch.ones(4) if "alpha" in k else x for k, x in product(KOHYA, DOWN_UP, WIDTH, WIDTH).items()}),
        ("wan_ti2v", product("lora_unet_blocks_0_self_attn_q", DOWN_UP, WIDTH, WIDTH)),  # wants all layers of a block
        ("wan_ti2v", product("diffusion_model.head.head", A_B, 192, WIDTH, None)),  # the least of no numbers
        ("flux", product("base_model.model.double_blocks.0.img_attn.proj", A_B, WIDTH, WIDTH, None)),  # wants all layers
    ],
)
def test_a_file_that_a_converter_stumbles_over_is_refused_with_its_first_key(tiny: str, tensors: Tensors) -> None:
    said = refusal(tiny, path := written(tensors))
    assert said.startswith(f"model.lora.0: diffusers cannot read it for {tiny.partition('_')[0]}: ")
    assert f"(got {str(path)!r}: {len(tensors)} keys, the first {min(tensors)})" in said or min(tensors)[:-20] in said
    assert said.endswith("; give an adapter that was trained on this model")


def test_zeros_that_are_left_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    key = "diffusion_model.blocks.0.norm3.diff"
    with caplog.at_level(logging.INFO, "diffopt"):
        b = fused("wan_ti2v", (written(beside("wan_ti2v") | {key: torch.zeros(8)}), 1.0))
        assert b.pipeline().json("pipeline.json")["lora"][0]["idle"] == [key]
    assert f"model.lora.0: 1 keys are left out, and would change nothing: {key}" in caplog.text


def test_biases_are_added() -> None:
    own = beside("wan_ti2v") | {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.randn(WIDTH)}
    own |= product("diffusion_model.blocks.0.self_attn.k", A_B, WIDTH, WIDTH, None)  # and has none
    b = fused("wan_ti2v", (written(own), SCALE))
    ours, before = open_pipeline(b.context(), b.pipeline()), plain("wan_ti2v")
    change = [
        layer(ours, n).bias - layer(before, n).bias
        for n in ("transformer.blocks.0.attn1.to_q", "transformer.blocks.0.attn1.to_k")
    ]
    torch.testing.assert_close(change[0], SCALE * own["diffusion_model.blocks.0.self_attn.q.diff_b"])
    assert not change[1].any()


def test_a_bias_for_a_layer_without_one_is_refused() -> None:
    own = product(f"unet.{SDXL}", A_B, WIDTH, WIDTH, None) | {f"unet.{SDXL}.lora_B.bias": torch.ones(WIDTH)}
    assert f"unet.{SDXL}: a bias, in the model none" in refusal("sdxl", written(own))


def test_a_text_encoders_output_without_which_diffusers_tells_no_layout_is_refused_where_it_is_missing() -> None:
    said = refusal("sdxl", written(product("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", DOWN_UP, 32, 32)))
    assert "matches no layer of the model (got" in said


def keeping(tensors: Tensors) -> Account:
    """With a converter that knows of no alphas."""

    def convert(given: Tensors) -> tuple[Tensors, dict[str, Any]]:
        return {k: x for k, x in given.items() if not k.endswith(".alpha")}, {}

    return account(tensors, convert)


def test_an_alpha_that_a_converter_leaves_out_is_told_unless_it_scales_by_one() -> None:
    assert keeping(product("x", A_B, 8, 8, alpha=2.0)).unscaled == ["x.alpha"]
    assert keeping(product("x", A_B, 8, 8, alpha=0.0)).unscaled == ["x.alpha"]
    ones = keeping(product("x", A_B, 8, 8, alpha=float(RANK)))
    assert (ones.unscaled, ones.idle) == ([], ["x.alpha"])


def test_an_alpha_that_is_left_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = product(PEFT, A_B, WIDTH, WIDTH)
    read = lora._converted
    monkeypatch.setattr(
        lora, "_converted", lambda *given: ({k: x for k, x in read(*given)[0].items() if "alpha" not in k}, {}, None)
    )
    said = refusal("flux", written(own))
    assert said.startswith("model.lora.0: diffusers leaves out 1 of its alphas for flux and would fuse what they scale too str")
    assert f"weakly, the first {PEFT}.alpha (got " in said


HALF = {
    "kohya's": ("sdxl", beside("sdxl") | foreign("kohya-sdxl", beside("sdxl")), 2),
    "mixed": ("flux", beside("flux mixed") | beside("flux"), 3),
    "feed forward": ("flux", beside("flux mixed") | ODD["feed forward"][1], 3),
}
"""Seen in public: diffusers reports 12053, 7157 and 10599."""


@pytest.mark.parametrize("name", HALF)
def test_an_adapter_of_which_half_the_layers_are_in_the_model_is_refused(name: str) -> None:
    tiny, tensors, many = HALF[name]
    assert re.search(rf"{many} of its 6 keys match no layer of the model, the first lora_", refusal(tiny, written(tensors)))
