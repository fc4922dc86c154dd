"""Families, opening a pipeline, and drawing with it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import bench, emoji
from tiny_pipelines import DOUBLE, SINGLE, TINY

from diffopt import models
from diffopt.data.prompts import PromptSet
from diffopt.files.pipeline import PipelineFile
from diffopt.models.flux import FAMILY
from diffopt.pipeline.draw import batches
from diffopt.pipeline.open import open_pipeline

STEPS = 2


@pytest.fixture(scope="module")
def pipe() -> object:
    return open_pipeline(bench().context(), bench().pipeline())


def drawn(pipe: object, prompts: list[str], seeds: list[int], **kw: object) -> np.ndarray:
    return bench().draw(pipe, prompts, seeds, STEPS, **kw)


def test_a_picture_does_not_depend_on_the_others_seeds(pipe: object) -> None:
    one = drawn(pipe, ["a", "b", "c"], [1, 2, 3])
    other = drawn(pipe, ["a", "b", "c"], [7, 2, 9])
    assert np.array_equal(one[1], other[1])
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[2], other[2])


def test_a_picture_does_not_depend_on_its_place_in_the_batch(pipe: object) -> None:
    one, other = drawn(pipe, ["a", "b"], [1, 2]), drawn(pipe, ["b", "a"], [2, 1])
    assert np.abs(one - other[::-1]).max() < 1e-5  # a row of a product has last bits of its own with some CPUs' kernels
    assert np.abs(one - other).max() > 0.1


def test_a_picture_depends_on_its_prompt(pipe: object) -> None:
    same, other = drawn(pipe, ["red apple"], [1]), drawn(pipe, ["delivery truck"], [1])
    assert not np.array_equal(same, other)


def test_the_state_of_torchs_generator_does_not_matter(pipe: object) -> None:
    torch.manual_seed(0)
    one = drawn(pipe, ["a"], [1])
    torch.manual_seed(1)
    assert np.array_equal(drawn(pipe, ["a"], [1]), one)


def test_pictures_are_float_height_by_width_in_0_to_1(pipe: object) -> None:
    found = drawn(pipe, ["a", "b"], [1, 2])
    assert found.shape == (2, 32, 32, 3)
    assert found.dtype == np.float32
    assert 0 <= found.min() < found.max() <= 1


def test_latents_are_not_decoded(pipe: object) -> None:
    assert drawn(pipe, ["a"], [1], decode=False).shape == (1, 64, 16)


def test_every_step_is_told_of_when_it_ends(pipe: object) -> None:
    ended: list[None] = []
    drawn(pipe, ["a"], [1], on_step=lambda: ended.append(None))
    assert len(ended) == STEPS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_pipeline_is_opened_in_its_pinned_precision(dtype: str) -> None:
    b = bench(dtype)
    pipe = open_pipeline(b.context(), b.pipeline())
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):  # T5 keeps a part of itself in FP32
        assert {p.dtype for p in part.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in b.backbone().parameters()} == {getattr(torch, dtype)}


def test_the_backbone_alone_is_the_pipelines(pipe: object) -> None:
    alone = bench().backbone()
    assert not alone.training
    theirs = dict(pipe.transformer.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in alone.named_parameters())


def test_latents_of_16_bits_can_be_read(pipe: object) -> None:
    b = bench("bfloat16")
    found = drawn(open_pipeline(b.context(), b.pipeline()), ["a"], [1], decode=False)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_batches_keep_the_order_and_the_last_may_be_short() -> None:
    found = list(batches(PromptSet("tests", tuple("abcde")), 2))
    assert found == [(0, ("a", "b")), (2, ("c", "d")), (4, ("e",))]


# Families.


def test_every_family_has_a_tiny_pipeline_and_helpers_are_no_families() -> None:
    assert models.names() == sorted({tiny.family for tiny in TINY.values()})


@pytest.mark.parametrize("name", models.names())
def test_a_familys_name_is_its_files(name: str) -> None:
    assert models.family(name).name == name


@pytest.mark.parametrize("name", models.names())
def test_a_familys_classes_are_diffusers(name: str) -> None:
    import diffusers

    family = models.family(name)
    assert issubclass(getattr(diffusers, family.pipeline), diffusers.DiffusionPipeline)
    assert issubclass(getattr(diffusers, family.backbone_class), torch.nn.Module)


def test_importing_the_families_imports_no_torch() -> None:
    code = "import sys; from diffopt.models import family, names; list(map(family, names())); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_blocks_and_parameters_are_counted() -> None:
    pinned = PipelineFile.read(bench(family="flux").pipeline().path)
    assert pinned.blocks == {"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE}
    assert pinned.parameters == sum(p.numel() for p in bench(family="flux").backbone().parameters())


def test_the_embedded_model_has_2_double_and_6_single_blocks_and_11_million_parameters() -> None:
    pinned = PipelineFile.read(emoji().pipeline().path)
    assert pinned.blocks == {"transformer_blocks": 2, "single_transformer_blocks": 6}
    assert 11.0e6 < pinned.parameters < 11.2e6


def test_what_flux_keeps_in_full_precision_is_all_that_is_outside_its_blocks() -> None:
    outside = {n for n, _ in bench().backbone().named_children()} - set(FAMILY.blocks)
    assert set(FAMILY.keep) | {"pos_embed"} == outside


def test_every_field_of_a_pipeline_call_that_is_no_text_is_passed_on() -> None:
    assert FAMILY.arguments(bench().call) == {"height": 32, "width": 32, "guidance_scale": 0.0}
