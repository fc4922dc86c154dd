"""Every family on its tiny pipeline: what diffopt says of a pipeline is what the pipeline does."""

import shutil
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import STEPS, TINY, Bench, bench, prompt_set, random_bench, saved

from diffopt import models
from diffopt.data import pictures
from diffopt.data.pictured import fitted
from diffopt.errors import GateError
from diffopt.files.pipeline import PipelineFile
from diffopt.groups.eval import RuntimeView
from diffopt.groups.model import OPTIONAL, Model
from diffopt.models.family import Size, prediction
from diffopt.pipeline.draw import draw
from diffopt.pipeline.open import open_pipeline
from diffopt.pipeline.texts import encode
from diffopt.quantization import observer
from diffopt.quantization.layers import layers_of, without
from diffopt.runtimes.stand_in import StandIn
from diffopt.stages.reference import reference
from diffopt.stages.sample import sample

PROMPTS = ["a red apple on a table", "banana"]
LONGEST = ("qwen_image", "qwen_image_edit", "z_image")
"""They pad to the longest prompt."""
SLOW = (
    "cosmos25",
    "flux2",
    "flux_fill",
    "hunyuan_video15",
    "ltx2",
    "qwen_image_edit",
    "sana_sprint",
    "sdxl_controlnet",
    "wan_i2v",
)
"""Of those that are made of another family, what it has is tried by `make matrix`."""
NAMES = [pytest.param(n, marks=[pytest.mark.matrix] if n in SLOW else []) for n in TINY]
every_family = pytest.mark.parametrize("name", NAMES)


@cache
def pipe(name: str, dtype: str = "float32") -> Any:
    return open_pipeline(bench(dtype, family=name).context(), bench(dtype, family=name).pipeline())


def family_of(name: str) -> models.Family:
    return models.family(TINY[name].family)


def asked(name: str) -> list[str]:
    """Two prompts, or the one that its pipeline takes: texts, paths of pictures, or texts that have pictures."""
    shown, many = family_of(name).animates or family_of(name).pictures, 1 if family_of(name).single else 2
    return [*prompt_set(bench(family=name).prompts[:many]).given().prompts] if shown else PROMPTS


def called(name: str, **changes: Any) -> Any:
    return bench(family=name).call.model_copy(update=changes)


def with_guidance(name: str, scale: float) -> Any:
    return called(name, guidance_scale=scale)


@contextmanager
def recorded(name: str, dtype: str = "float32") -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The backbone calls: which backbone, and what it was given, flat and without what is None, empty or a switch."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def hook(which: str) -> Any:
        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = list(signature(module.forward).parameters)
            given = dict(zip(names, args, strict=False)) | kwargs
            given = {n: together(v) for n, v in family_of(name).flat(given).items() if n != "return_dict"}
            calls.append((which, {n: v for n, v in given.items() if v is not None and not (isinstance(v, dict) and not v)}))

        return record

    parts = {n: m for n in family_of(name).backbones if (m := getattr(pipe(name, dtype), n)) is not None}
    handles = [m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in parts.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def together(value: Any) -> Any:
    """Rows of several lengths in one tensor."""
    rows = isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
    return torch.nn.utils.rnn.pad_sequence(value, batch_first=True) if rows else value


def drawn(name: str, model: Any, many: int | None = None, steps: int = STEPS, dtype: str = "float32", **kw: Any) -> np.ndarray:
    return rows(name, model, range(len(asked(name)))[:many], steps, dtype, **kw)


def rows(name: str, model: Any, which: Sequence[int], steps: int = STEPS, dtype: str = "float32", **kw: Any) -> np.ndarray:
    """Those of the prompts, together, each by its own seed."""
    b, whole, prompts = bench(dtype, family=name), pipe(name, dtype), asked(name)
    texts = encode(b.context(), whole, b.pipeline(), [prompts[i] for i in which], model)
    return draw(whole, texts, list(which), steps, family_of(name).arguments(model), **kw)


def plainly(name: str, model: Any) -> np.ndarray:
    """The latents of the pipeline called with the prompts themselves, as its users call it."""
    family = family_of(name)
    if family.animates:
        shown = [fitted(path, model.width, model.height) for path in asked(name)]
        return draw(pipe(name), {"image": shown}, [0, 1], STEPS, family.arguments(model), decode=False)
    if family.pictures:
        return _edited(name, model)
    texts: dict[str, Any] = {"prompt": [*PROMPTS]}  # Z-Image's pipeline writes into the list
    if "max_sequence_length" in family.reads:
        texts["max_sequence_length"] = model.max_sequence_length
    if (
        "negative_prompt" in family.reads
        and family.guided(model)
        and (model.negative_prompt or name in ("qwen_image", "cosmos25"))
    ):
        texts["negative_prompt"] = [model.negative_prompt] * len(PROMPTS)
    return draw(pipe(name), texts, [0, 1], STEPS, family.arguments(model), decode=False)


def _edited(name: str, model: Any) -> np.ndarray:
    """By diffusers' own pipeline, which has each picture as PIL has it."""
    family, whole = family_of(name), pipe(name)
    own = getattr(diffusers, family.pipeline)(**whole.components, **CONFIGURED.get(name, {}))
    own.set_progress_bar_config(disable=True)
    prompts = asked(name)
    given: dict[str, Any] = {"prompt": [str(p) for p in prompts]}
    for role, argument in family.pictures.items():
        given[argument] = [fitted(p.pictures[role], model.width, model.height) for p in prompts]
    if "max_sequence_length" in family.reads:
        given["max_sequence_length"] = model.max_sequence_length
    if family.guided(model) and (model.negative_prompt or name in LONGEST):
        given["negative_prompt"] = [model.negative_prompt] * len(prompts)
    how = family.arguments(model)
    if name not in SINGLY:
        return draw(own, given, [*range(len(prompts))], STEPS, how, decode=False)
    rows = [{n: x[i] if isinstance(x, list) else x for n, x in given.items()} for i in range(len(prompts))]
    return np.concatenate([draw(own, row, [i], STEPS, how, decode=False) for i, row in enumerate(rows)])


WIDER = {"flux_fill": 2, "hunyuan_video15": 1, "wan_i2v": 1}
"""Of those that take the picture as further channels the axis of these."""
SINGLY = ("wan_i2v",)
"""diffusers' own pipelines take one picture, ours several."""
CONFIGURED: dict[str, dict[str, Any]] = {"wan_i2v": {"boundary_ratio": 0.8}}


def latents(name: str, model: Any) -> np.ndarray:
    """Of as many prompts at once as diffusers' own pipeline takes: a row's last bits depend on how many there are."""
    if name not in SINGLY:
        return drawn(name, model, decode=False)
    return np.concatenate([rows(name, model, [i], decode=False) for i in range(len(asked(name)))])


# What the pipeline is given.


@every_family
@pytest.mark.parametrize("negative_prompt", ["", "blurry picture"])
def test_embeddings_give_the_latents_that_the_prompts_give(name: str, negative_prompt: str) -> None:
    model = called(name, negative_prompt=negative_prompt)
    assert np.array_equal(latents(name, model), plainly(name, model))


@every_family
def test_embeddings_without_guidance_give_the_latents_that_the_prompts_give(name: str) -> None:
    model = with_guidance(name, 0.0)
    assert np.array_equal(latents(name, model), plainly(name, model))


@pytest.mark.matrix
@pytest.mark.parametrize("name", SINGLY)
def test_prompts_that_are_drawn_together_are_what_they_are_alone(name: str) -> None:
    """But for last bits: a product of more rows is summed in another order. It is 2.5e-6 at most here."""
    model = called(name)
    assert np.allclose(drawn(name, model, decode=False), latents(name, model), rtol=0, atol=1e-5)


@every_family
def test_a_negative_prompt_changes_the_picture_where_the_family_reads_it(name: str) -> None:
    plain, steered = drawn(name, called(name)), drawn(name, called(name, negative_prompt="banana"))
    assert np.array_equal(plain, steered) != ("negative_prompt" in family_of(name).reads)


@every_family
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_shapes_of_embeddings_are_known_beforehand(name: str, scale: float) -> None:
    family, model = family_of(name), with_guidance(name, scale)
    backbone = getattr(pipe(name), family.backbones[0])
    found = encode(bench(family=name).context(), pipe(name), bench(family=name).pipeline(), asked(name), model)
    shapes = {n: tuple(x.shape) for n, x in found.items() if n not in family.pictures.values()}
    told = family.embeddings(backbone.config, len(asked(name)), model)
    if name in LONGEST:
        told = {n: (s[0], shapes[n][1], *s[2:]) for n, s in told.items()}
        assert all(s[1] <= model.max_sequence_length for s in shapes.values())
    assert shapes == told


# What the backbone is given.


@every_family
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 0.0), ("float32", 3.0), pytest.param("bfloat16", 3.0, marks=pytest.mark.matrix)]
)
def test_example_inputs_are_what_the_pipeline_passes(name: str, dtype: str, scale: float) -> None:
    family, model = family_of(name), with_guidance(name, scale)
    with recorded(name, dtype) as calls:
        drawn(name, model, dtype=dtype, decode=False)
    which, theirs = calls[0]
    text = theirs["encoder_hidden_states"].shape[1] if name in LONGEST else model.max_sequence_length or 0
    size = Size(family.rows(model) * len(asked(name)), model.height, model.width, text, model.frames or 1)
    whole = pipe(name, dtype)
    ours = family.inputs(getattr(whole, which), dict(whole.vae.config), size)

    def about(given: dict[str, Any]) -> dict[str, Any]:
        return {n: (tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else v for n, v in given.items()}

    found, told = about(theirs), about(ours)
    if found["timestep"][1] == torch.int64:  # this scheduler counts in integers
        found["timestep"] = (found["timestep"][0], torch.float32)
    assert told == found


@every_family
def test_a_single_prompt_is_passed_as_the_example_inputs_of_one(name: str) -> None:
    family, model = family_of(name), with_guidance(name, 0.0)
    with recorded(name) as calls:
        drawn(name, model, 1, decode=False)
    text = calls[0][1]["encoder_hidden_states"].shape[1] if name in LONGEST else model.max_sequence_length or 0
    size = Size(1, model.height, model.width, text, model.frames or 1)
    ours = family.inputs(getattr(pipe(name), calls[0][0]), dict(pipe(name).vae.config), size)
    assert {n: getattr(v, "shape", v) for n, v in ours.items()} == {n: getattr(v, "shape", v) for n, v in calls[0][1].items()}


@every_family
def test_an_integer_timestep_predicts_the_same_as_the_examples_fp32(name: str) -> None:
    family, model = family_of(name), with_guidance(name, 0.0)
    with recorded(name) as calls:
        drawn(name, model, decode=False)
    which, given = calls[0]
    backbone = getattr(pipe(name), which)
    with torch.no_grad():
        theirs, ours = (
            prediction(backbone(**family.call(given | {"timestep": t}), return_dict=False))
            for t in (given["timestep"], given["timestep"].float())
        )
    assert torch.equal(theirs, ours)


@every_family
def test_example_inputs_run_the_backbone_and_it_answers_in_latents(name: str) -> None:
    family, b = family_of(name), bench(family=name)
    backbone = getattr(pipe(name), family.backbones[0])
    with torch.no_grad():
        out = prediction(backbone(**family.call(b.inputs(2)), return_dict=False))
    latents = b.inputs(2)["sample" if "sample" in b.inputs(2) else "hidden_states"]
    shape = list(latents.shape)
    if family.name == "pixart":  # it predicts a variance too, which the pipeline drops
        shape[1] *= 2
    if family.animates:  # the picture's latents stand beside the noisy ones
        shape[2] //= 2
    if name in WIDER:
        shape[WIDER[name]] = backbone.config.out_channels
    assert out.shape == tuple(shape)
    assert torch.isfinite(out).all()


@every_family
def test_inputs_within_dicts_come_back_flat(name: str) -> None:
    flat = bench(family=name).inputs()
    found = family_of(name).flat(family_of(name).call(flat))
    assert found.keys() == flat.keys()
    assert all(found[n] is flat[n] or torch.equal(found[n], flat[n]) for n in flat)


@every_family
def test_inputs_without_a_batch_axis_are_named(name: str) -> None:
    family = family_of(name)
    one, two = bench(family=name).inputs(1), bench(family=name).inputs(2)
    grown = {n for n, x in one.items() if isinstance(x, torch.Tensor) and x.shape != two[n].shape}
    assert {n for n, x in one.items() if isinstance(x, torch.Tensor)} - grown == set(family.unbatched)


@every_family
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_rows_and_calls_are_counted(name: str, scale: float) -> None:
    family, model = family_of(name), with_guidance(name, scale)
    with recorded(name) as calls:
        drawn(name, model, decode=False)
    rows = {len(given["encoder_hidden_states"]) for _, given in calls}
    assert rows == {family.rows(model) * len(asked(name))}
    assert len(calls) == family.calls(model) * STEPS


@every_family
def test_the_end_of_each_step_is_told(name: str) -> None:
    ended: list[None] = []
    drawn(name, with_guidance(name, 3.0), decode=False, on_step=lambda: ended.append(None))
    assert len(ended) == STEPS


def test_both_of_wans_backbones_are_called_and_the_second_has_its_own_guidance() -> None:
    with recorded("wan") as calls:
        plain = drawn("wan", called("wan"), steps=4, decode=False)
    assert [which for which, _ in calls] == ["transformer"] * 4 + ["transformer_2"] * 4
    assert not np.array_equal(drawn("wan", called("wan", guidance_scale_2=1.5), steps=4, decode=False), plain)


def test_a_graph_of_rows_of_one_length_refuses_others() -> None:
    b, family = bench(family="z_image"), family_of("z_image")
    flat = b.inputs(2)
    head: Any = SimpleNamespace(inputs={n: SimpleNamespace(dtype="float32", shape=[*x.shape]) for n, x in flat.items()})
    head.profile = None
    there = StandIn(lambda feeds: feeds["hidden_states"], head, family, pipe("z_image").transformer)
    rows = family.call(flat)
    assert torch.equal(there(**rows).sample, flat["hidden_states"])
    rows["cap_feats"][1] = rows["cap_feats"][1][:3]
    with pytest.raises(GateError, match=r"encoder_hidden_states: the graph takes rows of one length \(got 24, 3\); draw"):
        there(**rows)


# What is quantized.

ELSEWHERE = {"sd21": ["add_embedding"], "ltx2": ["prompt_adaln", "audio_prompt_adaln"]}
"""Of what is kept, layers that others of the family's models have."""


@every_family
def test_what_is_kept_in_full_precision_is_all_outside_the_blocks(name: str) -> None:
    family, backbone = family_of(name), getattr(pipe(name), family_of(name).backbones[0])
    inside = (*family.blocks, "mid_block")
    outside = {n for n, m in backbone.named_children() if n not in inside and any(True for _ in m.parameters())}
    outside -= {"txt_norm", "conv_norm_out"}  # no formats take norms
    assert {g for g in family.keep if "*" not in g} <= outside | {*ELSEWHERE.get(name, ())}
    left = without(layers_of(backbone), family.keep)
    assert left
    assert {layer.name.partition(".")[0] for layer in left} <= set(inside)


@every_family
def test_every_glob_of_what_is_kept_names_a_layer(name: str) -> None:
    layers = layers_of(getattr(pipe(name), family_of(name).backbones[0]))
    layers += (
        [replace(layers[0], name="patch_embedding")] if family_of(name).name in ("wan", "wan_i2v") else []
    )  # a 3-d convolution
    layers += [replace(layers[0], name="x_embedder.proj")] if name == "hunyuan_video15" else []  # another
    idle = [g for g in family_of(name).keep if len(without(layers, [g])) == len(layers)]
    assert idle == ELSEWHERE.get(name, [])


@every_family
def test_blocks_at_the_ends_are_kept_and_some_are_left(name: str) -> None:
    family, pinned = family_of(name), PipelineFile.read(bench(family=name).pipeline().path)
    layers = layers_of(bench(family=name).backbone())
    left = without(layers, family.kept(pinned.blocks, pinned.backbones))
    longest = family.longest(pinned.blocks)
    count = pinned.blocks[longest]
    depth = 2 if len(pinned.backbones) > 1 else 1
    numbers = {int(layer.name.split(".")[depth]) for layer in left if longest in layer.name.split(".")}
    assert numbers == set(range(family.ends, count - family.ends))


@every_family
def test_convolutions_are_told(name: str) -> None:
    left = without(layers_of(getattr(pipe(name), family_of(name).backbones[0])), family_of(name).keep)
    assert any(layer.kind == "convolution" for layer in left) == family_of(name).convolutions


PARTLY = {"sana": (".attn2",), "sana_sprint": (".attn2",)}
"""Of the families whose attention cannot be quantized what modelopt sees all the same: not the linear attention."""


@every_family
def test_attention_that_can_be_quantized_is_seen_by_modelopt(name: str) -> None:
    from modelopt.torch.quantization.conversion import replace_quant_module

    family, b = family_of(name), bench(family=name)
    backbone = b.backbone()
    first = next(iter(backbone.values())) if isinstance(backbone, torch.nn.ModuleDict) else backbone
    attentions = {layer.name for layer in layers_of(first) if layer.kind == "attention"}
    replace_quant_module(first)
    seen = set()
    for module_name, module in first.named_modules():
        if module_name.endswith(("q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer")):
            module.register_forward_pre_hook(lambda _m, _a, n=module_name: seen.add(n))
    with torch.no_grad():
        first(**family.call(b.inputs()))
    assert attentions
    known = attentions if family.attention else {a for a in attentions if a.endswith(PARTLY.get(name, ()))}
    assert seen == {f"{a}.{x}_bmm_quantizer" for a in known for x in "qkv"}


@every_family
def test_every_layer_that_formats_take_is_observed(name: str) -> None:
    b, family = bench(family=name), family_of(name)
    pinned = PipelineFile.read(b.pipeline().path)
    found = load_file(b.chunk(0, 2).path / "extremes.safetensors")
    left = without(layers_of(b.backbone()), family.kept(pinned.blocks, pinned.backbones))
    wanted = {f"{layer.name}.input_quantizer" for layer in left if layer.kind != "attention"}
    idle = {n for n in wanted if n.startswith("transformer_2.")}  # two steps do not reach the low noise
    assert wanted - idle <= found.keys()
    assert all(torch.isfinite(x).all() for x in found.values())


@every_family
def test_no_family_changes_an_input_that_is_held_back_and_its_extremes_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    b, family = bench(family=name), family_of(name)
    backbone = b.backbone()
    first = next(iter(backbone.values())) if isinstance(backbone, torch.nn.ModuleDict) else backbone
    found = []
    for room in (0, 2**30):
        monkeypatch.setitem(observer.HELD, "cpu", room)
        with observer.observed(first) as extremes, torch.no_grad():
            first(**family.call(b.inputs(2)))
        found.append(extremes)
    plain, held = found
    assert held.keys() == plain.keys()
    assert all(torch.equal(held[n], plain[n]) for n in plain)


# Pictures.


@pytest.mark.parametrize("name", ["sdxl", "ltx", *(pytest.param(n, marks=pytest.mark.matrix) for n in ("ltx2", "wan", "svd"))])
def test_a_quantized_model_and_its_reference_are_drawn_and_a_video_is_a_strip(name: str, tmp_path: Path) -> None:
    b = bench(family=name)
    view = RuntimeView(prompts=prompt_set(b.prompts[:2]), batch_size=2, steps=STEPS, runtime="torch")
    folders = [tmp_path / "reference", tmp_path / "sample"]
    for out in folders:
        out.mkdir()
    texts = b.encoded(view.prompts, 2)
    reference.run(b.context(folders[0]), b.call, view, b.pipeline(), texts, 0)
    sample.run(b.context(folders[1]), b.call, None, view, b.pipeline(), texts, b.checkpoint("fp8"), 0)
    theirs, ours = (dict(pictures.read(out)) for out in folders)
    width = b.call.width * (4 if b.call.frames else 1)
    for prompt in view.prompts.prompts:
        assert ours[prompt].shape == theirs[prompt].shape == (b.call.height, width, 3)
        assert 0 < np.abs(ours[prompt].astype(int) - theirs[prompt]).mean() < 32
    heard = [[(out / f"{i:03}.wav") for i in range(2) if (out / f"{i:03}.wav").is_file()] for out in folders]
    assert [len(x) for x in heard] == [2 if name == "ltx2" else 0] * 2
    for plain, quantized in zip(*heard, strict=True):
        with wave.open(str(plain)) as one, wave.open(str(quantized)) as other:
            assert one.getparams() == other.getparams()
            assert (one.getnchannels(), one.getframerate()) == (2, 24000)
            assert one.readframes(one.getnframes()) != other.readframes(other.getnframes())


# Random weights.


@every_family
def test_a_model_of_random_weights_goes_through_load_embed_and_observe(name: str) -> None:
    b: Bench = random_bench(name)
    found = load_file(b.chunk(0, 2).path / "extremes.safetensors")
    trained = load_file(bench(family=name).chunk(0, 2).path / "extremes.safetensors")
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in trained.items()}
    given = {n: x for n, x in found.items() if not n.startswith("image_embedder")}  # HunyuanVideo 1.5 gets no picture
    assert all(torch.isfinite(x).all() and (x > 0).any() for x in given.values())


@every_family
def test_a_pipeline_of_random_weights_draws(name: str) -> None:
    b: Bench = random_bench(name)
    whole = open_pipeline(b.context(), b.pipeline())
    many = len(asked(name))
    picture = b.draw(whole, [*b.prompts[:many]], [1, 2][:many], STEPS)
    frames = (b.call.frames,) if b.call.frames else ()
    assert picture.shape == (many, *frames, b.call.height, b.call.width, 3)
    assert np.isfinite(picture).all()


# Caches.


@every_family
def test_block_caches_know_the_blocks_where_the_family_says_so(name: str) -> None:
    from diffusers import FirstBlockCacheConfig

    family, b = family_of(name), bench(family=name)
    backbone = b.backbone()
    first = next(iter(backbone.values())) if isinstance(backbone, torch.nn.ModuleDict) else backbone
    later = getattr(first, family.blocks[0])[-1]
    computed: list[None] = []
    next(later.children()).register_forward_pre_hook(lambda *_: computed.append(None))
    try:
        first.enable_cache(FirstBlockCacheConfig(threshold=9.0))
        with torch.no_grad(), first.cache_context("cond"):
            for _ in range(2):
                first(**family.call(b.inputs()))
    except (AttributeError, TypeError, ValueError):  # it has no caches, or they do not know its blocks or what those give
        assert not family.block_cache
    else:
        assert (len(computed) == 1) == family.block_cache


# The group `model`.


def test_guidance_that_a_distilled_model_ignores_is_refused() -> None:
    given = {"family": "flux2_klein", "dtype": "float32", "height": 64, "width": 64, "max_sequence_length": 512}
    with pytest.raises(ValidationError, match=r"this model is distilled, and its pipeline ignores guidance \(got 4\.0\); set"):
        Model(source="asset:architectures/flux2_klein", guidance_scale=4.0, **given)
    assert Model(source="asset:architectures/flux2_klein", guidance_scale=1.0, **given)
    assert Model(source=str(saved("flux2_klein")), guidance_scale=4.0, **given)


def chosen(name: str, **changes: Any) -> Model:
    given = bench(family=name).call.model_dump() | {"family": TINY[name].family, "source": str(saved(name)), "dtype": "float32"}
    given = {k: v for k, v in given.items() if k in family_of(name).reads or k not in OPTIONAL or k == "frames"}
    return Model(**given | changes)


@every_family
def test_a_family_takes_its_own_pipelines_directory_and_no_others(name: str) -> None:
    assert chosen(name).family == TINY[name].family
    other = saved("flux" if name != "flux" else "sd3")
    with pytest.raises(ValidationError, match=r"source: holds a \w+Pipeline, but family"):
        chosen(name, source=str(other))


def test_a_directory_that_names_an_alias_of_the_pipeline_is_taken(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved("ltx"), tmp_path / "ltx"))
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("LTXPipeline", "LTXConditionPipeline"))
    assert chosen("ltx", source=str(copy)).source.name == str(copy)


def test_pixart_is_opened_by_its_directorys_own_class_and_from_the_hubs_older_names(tmp_path: Path) -> None:
    for name, kind in {"pixart": "PixArtSigmaPipeline", "pixart_alpha": "PixArtAlphaPipeline"}.items():
        assert type(pipe(name)).__name__ == kind
    copy = Path(shutil.copytree(saved("pixart"), tmp_path / "pixart"))
    for path in (copy / "model_index.json", copy / "transformer" / "config.json"):  # as PixArt-Sigma's on the hub
        path.write_text(path.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    b = bench(family="pixart")
    older = Bench(b.root, str(copy), call=b.call, family="pixart")
    drawn_by = [x.draw(open_pipeline(x.context(), x.pipeline()), PROMPTS, [1, 2], STEPS) for x in (b, older)]
    assert np.array_equal(*drawn_by)


@every_family
@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_the_family_does_not_read_is_refused(name: str, field: str) -> None:
    reads = family_of(name).reads | ({"frames"} if family_of(name).frame_step else set())
    value = {"negative_prompt": "blurry", "frames": 9, "max_sequence_length": 16}.get(field, 2.0)
    if field in reads:
        assert getattr(chosen(name, **{field: value}), field) == value
    else:
        with pytest.raises(ValidationError, match=f"{field}: {TINY[name].family} does not read it"):
            chosen(name, **{field: value})


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_a_number_of_frames_that_the_vae_cannot_do_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"frames: is not a multiple of \d plus one \(got 10\)"):
        chosen(name, frames=10)
