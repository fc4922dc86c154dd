"""The architectures in the package: their size, and the exact set of layers that is quantized at full size.

tests/layers.json holds the sets; write it anew with `python -m pytest tests/test_architectures.py --golden`, and say in
the commit why a set changed.
"""

import hashlib
import json
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tiny import Bench, called, folder

from diffopt import models
from diffopt.caches.policy import Policy, block_names
from diffopt.files.layers import Layer, read_layers
from diffopt.files.pipeline import PipelineFile
from diffopt.quantization.layers import taken
from diffopt.store import assets

GOLDEN = Path(__file__).with_name("layers.json")
ROOT = assets.locate("asset:architectures")
NAMES = sorted(p.name for p in ROOT.iterdir())
FAMILIES = {
    "chroma": "chroma",
    "cosmos25_2b": "cosmos25",
    "flux2_dev": "flux2",
    "flux2_klein": "flux2_klein",
    "flux_dev": "flux",
    "flux_fill": "flux_fill",
    "flux_kontext": "flux_kontext",
    "flux_schnell": "flux",
    "hunyuan_video15": "hunyuan_video15",
    "ltx": "ltx",
    "ltx2": "ltx2",
    "pixart_alpha": "pixart",
    "pixart_sigma": "pixart",
    "qwen_image": "qwen_image",
    "sana": "sana",
    "sana_sprint": "sana_sprint",
    "qwen_image_edit_2511": "qwen_image_edit",
    "sd21": "sd21",
    "sd35_large": "sd3",
    "sd35_medium": "sd3",
    "sd3_medium": "sd3",
    "sdxl": "sdxl",
    "sdxl_controlnet": "sdxl_controlnet",
    "sdxl_turbo": "sdxl",
    "svd_xt": "svd",
    "wan22_5b": "wan",
    "wan22_a14b": "wan",
    "z_image": "z_image",
    "z_image_turbo": "z_image",
    "wan22_i2v_a14b": "wan_i2v",
}
GUIDED = {"hunyuan_video15": {"guider"}}
"""Of models whose guidance is a part of the pipeline, its folder."""
every_architecture = pytest.mark.parametrize("name", NAMES)

# Published: model cards and technical reports, in billions. SD3's count their table of positions too, which is a buffer.
PARAMETERS = {
    "chroma": 8.90,
    "cosmos25_2b": 2.06,
    "flux2_dev": 32.22,
    "flux2_klein": 3.876,
    "flux_dev": 11.90,
    "flux_fill": 11.90,
    "flux_kontext": 11.90,
    "flux_schnell": 11.89,
    "hunyuan_video15": 8.33,
    "ltx": 13.04,
    "ltx2": 18.88,
    "pixart_alpha": 0.611,
    "pixart_sigma": 0.611,
    "qwen_image": 20.43,
    "sana": 1.604,
    "sana_sprint": 1.610,
    "qwen_image_edit_2511": 20.43,
    "sd21": 0.866,
    "sd35_large": 8.06,
    "sd35_medium": 2.24,
    "sd3_medium": 2.03,
    "sdxl": 2.567,
    "sdxl_controlnet": 2.567,
    "sdxl_turbo": 2.567,
    "svd_xt": 1.525,
    "wan22_5b": 5.00,
    "wan22_a14b": 2 * 14.29,
    "z_image": 6.155,
    "z_image_turbo": 6.155,
    "wan22_i2v_a14b": 2 * 14.29,
}
BLOCKS = {
    "chroma": (19, 38),
    "cosmos25_2b": (28,),
    "flux2_dev": (8, 48),
    "flux2_klein": (5, 20),
    "flux_dev": (19, 38),
    "flux_fill": (19, 38),
    "flux_kontext": (19, 38),
    "flux_schnell": (19, 38),
    "hunyuan_video15": (54,),
    "ltx": (48,),
    "ltx2": (48,),
    "pixart_alpha": (28,),
    "pixart_sigma": (28,),
    "qwen_image": (60,),
    "sana": (20,),
    "sana_sprint": (20,),
    "qwen_image_edit_2511": (60,),
    "sd21": (4, 4),
    "sd35_large": (38,),
    "sd35_medium": (24,),
    "sd3_medium": (24,),
    "sdxl": (3, 3),
    "sdxl_controlnet": (3, 3),
    "sdxl_turbo": (3, 3),
    "svd_xt": (4, 4),
    "wan22_5b": (30,),
    "wan22_a14b": (40,),
    "z_image": (2, 2, 30),
    "z_image_turbo": (2, 2, 30),
    "wan22_i2v_a14b": (40,),
}


@cache
def loaded(name: str) -> Any:
    """What `load` reads of the architecture, which it builds at full size without memory."""
    bench = Bench(folder(), f"asset:architectures/{name}", "bfloat16", called(64, 16), family=FAMILIES[name], weights="random")
    return bench.pipeline()


@cache
def quantized(name: str, convolutions: bool = False) -> list[Layer]:
    """The layers that a format takes of the model, at full size."""
    pinned, family = PipelineFile.read(loaded(name).path), models.family(FAMILIES[name])
    layers = read_layers(loaded(name).path)
    return taken(layers, family.kept(pinned.blocks, pinned.backbones), convolutions and family.convolutions)


def named(name: str, glob: str) -> list[str]:
    return [x.name for x in quantized(name) if re.fullmatch(glob, x.name)]


def collapsed(names: list[str]) -> list[str]:
    """The names with their numbers as ranges, the inner ones first: `transformer_blocks.{0-18}.attn.to_q`."""
    found = [tuple(name.split(".")) for name in names]
    for place in reversed(range(max(map(len, found)))):
        groups: dict[tuple[str, ...], list[int]] = {}
        others = []
        for parts in found:
            if len(parts) > place and parts[place].isdigit():
                groups.setdefault((*parts[:place], "", *parts[place + 1 :]), []).append(int(parts[place]))
            else:
                others.append(parts)
        found = others + [(*p[:place], _ranges(numbers), *p[place + 1 :]) for p, numbers in groups.items()]
    return sorted(".".join(parts) for parts in found)


def _ranges(numbers: list[int]) -> str:
    """`{0-18}` or `{1,3-5}`; a single one stands alone."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    found = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return found if found.isdigit() else "{" + found + "}"


def facts(name: str) -> dict[str, Any]:
    layers = quantized(name, convolutions=True)
    names = sorted(x.name for x in layers)
    return {
        "linear": sum(x.kind == "linear" for x in layers),
        "convolution": sum(x.kind == "convolution" for x in layers),
        "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        "names": collapsed(names),
    }


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.config.getoption("--golden"):
        GOLDEN.write_text(json.dumps({name: facts(name) for name in NAMES}, indent=1) + "\n")
    return json.loads(GOLDEN.read_text())


@every_architecture
def test_an_architecture_has_the_published_number_of_parameters(name: str) -> None:
    assert PipelineFile.read(loaded(name).path).parameters / 1e9 == pytest.approx(PARAMETERS[name], rel=3e-3)


@every_architecture
def test_an_architecture_has_the_published_number_of_blocks(name: str) -> None:
    assert tuple(PipelineFile.read(loaded(name).path).blocks.values()) == BLOCKS[name]


@every_architecture
def test_the_layers_that_are_quantized_are_those_in_the_golden_file(name: str, golden: dict[str, Any]) -> None:
    assert facts(name) == golden[name]


def test_the_golden_file_has_no_model_that_is_gone(golden: dict[str, Any]) -> None:
    assert set(golden) == set(NAMES)


@every_architecture
def test_an_architecture_is_laid_out_as_the_hubs_folder_and_weighs_nothing(name: str) -> None:
    index = json.loads((ROOT / name / "model_index.json").read_text())
    family = models.family(FAMILIES[name])
    assert family.opened(index["_class_name"])
    folders = {p.parent.name for p in (ROOT / name).rglob("*.json")} - {name}
    folders_of = {"vae", "scheduler", *family.beside, *family.decoders, *PipelineFile.read(loaded(name).path).backbones}
    assert folders == folders_of | GUIDED.get(name, set())
    assert folders <= index.keys()
    assert all(p.suffix == ".json" for p in (ROOT / name).rglob("*") if p.is_file())
    for part in folders:
        (path,) = (ROOT / name / part).glob("*.json")
        assert json.loads(path.read_text())["_class_name"] == index[part][1]


@pytest.mark.parametrize("name", ["flux_dev", "flux_schnell", "chroma"])
def test_the_output_of_every_single_block_is_quantized(name: str) -> None:
    assert len(named(name, r"single_transformer_blocks\.\d+\.proj_out")) == 38


@pytest.mark.parametrize(("name", "count"), [("sdxl", 11), ("sdxl_turbo", 11), ("sd21", 16)])
def test_the_projections_around_a_unets_transformers_are_quantized(name: str, count: int) -> None:
    for projection in ("proj_in", "proj_out"):
        assert len(named(name, rf".*attentions\.\d+\.{projection}")) == count


@pytest.mark.parametrize(("name", "blocks"), [("sd3_medium", 24), ("sd35_medium", 24), ("sd35_large", 38)])
def test_the_feed_forward_of_every_block_of_sd3_is_quantized(name: str, blocks: int) -> None:
    assert len(named(name, r"transformer_blocks\.\d+\.ff\.net\.0\.proj")) == blocks
    assert len(named(name, r"transformer_blocks\.\d+\.ff\.net\.2")) == blocks


@pytest.mark.parametrize(
    ("name", "blocks", "ends"),
    [
        ("ltx", 48, 3),
        ("ltx2", 48, 3),
        ("wan22_5b", 30, 3),
        ("wan22_a14b", 40, 3),
        ("qwen_image", 60, 2),
        ("z_image", 30, 2),
    ],
)
def test_the_blocks_at_both_ends_are_kept(name: str, blocks: int, ends: int) -> None:
    found = [re.match(r"(?:\w*blocks|layers)\.(\d+)\.", x.name.removeprefix("transformer.")) for x in quantized(name)]
    numbers = {int(x[1]) for x in found if x}
    assert numbers == set(range(ends, blocks - ends))


def test_both_of_wans_backbones_are_quantized_alike() -> None:
    high, low = named("wan22_a14b", r"transformer\..*"), named("wan22_a14b", r"transformer_2\..*")
    assert len(high) == 34 * 10
    assert [n.removeprefix("transformer.") for n in high] == [n.removeprefix("transformer_2.") for n in low]


@pytest.mark.parametrize(
    ("name", "largest"),
    [("sd3_medium", 3072), ("sd35_medium", 6144), ("sd35_large", 3072), ("wan22_a14b", 16384), ("sdxl", None)],
)
def test_the_largest_size_is_known(name: str, largest: int | None) -> None:
    assert PipelineFile.read(loaded(name).path).largest == largest


@pytest.mark.parametrize(
    ("name", "step"), [("wan22_a14b", 16), ("wan22_5b", 32), ("sdxl", 8), ("flux_dev", 16), ("ltx", 32), ("ltx2", 32)]
)
def test_the_size_step_is_the_models(name: str, step: int) -> None:
    assert PipelineFile.read(loaded(name).path).size_step == step


@pytest.mark.parametrize(
    ("name", "reused"),
    [
        ("pixart_sigma", [f"transformer_blocks.{i}" for i in range(21, 28)]),
        ("svd_xt", [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(3))]),
    ],
)
def test_a_block_cache_reuses_by_default_what_the_original_means_to(name: str, reused: list[str]) -> None:
    family = models.family(FAMILIES[name])
    names = block_names(PipelineFile.read(loaded(name).path).blocks, "mid_block" in reused)
    policy = Policy(family.cached, family.cached_every)
    assert policy.reused(names) == reused
    assert [step for step in range(7) if not policy.reuses(step)] == ([0, 3, 6] if family.name == "pixart" else [0, 2, 4, 6])
