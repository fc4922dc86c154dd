"""Every family in every format at tiny size on a CPU, through the product's own chain: calibrate, save, restore, export,
build an engine plan, run, cache. What cannot be is refused in one line before anything runs.

The cells of `make test` are those of two formats and of one family, of fewer layers, most not drawn, and without a
cache and a second restoring, which have tests of their own. `make matrix` has all, and writes tests/matrix.json and the
manual's table of it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import composed
from matrix_table import CELLS, FORMATS, STEPS
from tiny import PROMPTS, album, call, pictured, saved
from tiny_pipelines import TINY

from diffopt import models
from diffopt.artifact import Checkpoint, Pipeline
from diffopt.errors import DiffoptError
from diffopt.files.pipeline import PipelineFile
from diffopt.graph.count import quantized_inputs, quantized_products
from diffopt.jobs import job
from diffopt.jobs.job import Job
from diffopt.jobs.runner import run_plan
from diffopt.quantization.checkpoint import restore
from diffopt.stage import Context

MODELS = {
    "flux": "flux_dev",
    "flux2": "flux2_dev",
    "flux2_klein": "flux2_klein",
    "flux_fill": "flux_fill",
    "flux_kontext": "flux_kontext",
    "sd3": "sd3_medium",
    "sdxl": "sdxl",
    "sdxl_controlnet": "sdxl_controlnet",
    "sd21": "sd21",
    "cosmos25": "cosmos25_2b",
    "hunyuan_video15": "hunyuan_video15",
    "ltx": "ltx",
    "ltx2": "ltx2",
    "wan": "wan22_a14b",
    "wan_i2v": "wan22_i2v_a14b",
    "wan_ti2v": "wan22_5b",
    "qwen_image": "qwen_image",
    "qwen_image_edit": "qwen_image_edit_2511",
    "chroma": "chroma",
    "z_image": "z_image",
    "pixart": "pixart_sigma",
    "pixart_alpha": "pixart_alpha",
    "sana": "sana",
    "sana_sprint": "sana_sprint",
    "svd": "svd_xt",
}
"""For each tiny pipeline the option of the group `model` that it is a small copy of."""
SMALL = {"int4_awq": ["format.block_size=32"], "w4a8_awq": ["format.block_size=32"], "nvfp4_svdquant": ["format.rank=4"]}
"""Blocks and ranks that fit tiny layers."""
UNCALIBRATED = {"mxfp8"}

OTHER = ["cache=cachify", "cache.every=2"]
CACHE = {
    "cosmos25": OTHER,
    "hunyuan_video15": OTHER,
    "ltx2": OTHER,
    "sdxl": OTHER,
    "sdxl_controlnet": OTHER,
    "sd21": [*OTHER, 'cache.blocks=["*","!up_blocks.-1"]'],
    "sd3": [*OTHER, 'cache.blocks=["*","!transformer_blocks.0"]'],
    "chroma": [*OTHER, 'cache.blocks=["*","!transformer_blocks.0"]'],
    "pixart": OTHER,
    "pixart_alpha": OTHER,
    "svd": OTHER,
    **dict.fromkeys(("flux2", "flux2_klein", "sana", "sana_sprint", "z_image"), OTHER),
}
"""Of families whose blocks diffusers' FirstBlockCache does not know; the others are cached by it."""
FIRST_BLOCK = ["cache=first_block", "cache.threshold=5"]

UNET: dict[str, Any] = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": (2,),
}
FEWER: dict[str, dict[str, Any]] = {
    "flux": {"num_layers": 1, "num_single_layers": 1},
    "chroma": {"num_layers": 1, "num_single_layers": 1},
    "flux2": {"num_layers": 1, "num_single_layers": 1},
    "flux2_klein": {"num_layers": 1, "num_single_layers": 1},
    "sana": {"num_layers": 1},
    "sana_sprint": {"num_layers": 1},
    "z_image": {"n_layers": 5},
    "sd3": {"num_layers": 2},
    "pixart": {"num_layers": 2},
    "svd": {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",),
        "up_block_types": ("UpBlockSpatioTemporal",),
        "num_attention_heads": (2,),
    },
    "sd21": UNET,
    "sdxl": UNET | {"transformer_layers_per_block": (1,)},
    "flux_fill": {"num_layers": 1, "num_single_layers": 1},
    "flux_kontext": {"num_layers": 1, "num_single_layers": 1},
    "sdxl_controlnet": UNET | {"transformer_layers_per_block": (1,)},
}
"""Layers enough where no cache is tried: a plan takes as long as a model has layers."""

SECOND = {
    "cosmos25",
    "flux2",
    "flux2_klein",
    "flux_fill",
    "flux_kontext",
    "hunyuan_video15",
    "ltx2",
    "pixart_alpha",
    "qwen_image_edit",
    "sana",
    "sana_sprint",
    "sdxl_controlnet",
    "wan",
    "wan_i2v",
}
"""Of these families, or of those they are made of, another model is quick: Wan's of one backbone. test_graph.py exports one of
two."""
TWO = ("wan", "wan_i2v")
"""Those of two backbones."""
DRAWN = {("sdxl", "int8_sq"), ("ltx", "int8_sq")}
"""Of the other families a UNet and a video: test_families.py draws each, and export reads every checkpoint."""


UNBUILT = "runs no matrix product in mxfp8"
"""Of a plan in MXFP8. Most of its products take their weights in FP8 and FP16 inputs; whether one or two take both in FP8 is
found by TensorRT-RTX on the machine that builds, and where none does the plan is refused. Of the same tiny models
none did in nine families on one CPU, and in more on another."""


def quick(family: str, name: str) -> bool:
    return family == "flux" or (name in ("int8_sq", "fp8") and family not in SECOND)


WANTED = [
    pytest.param(family, name, id=f"{family}-{name}", marks=[] if quick(family, name) else [pytest.mark.matrix])
    for family in MODELS
    for name in FORMATS
]


@cache
def overrides(family: str, whole: bool) -> tuple[str, ...]:
    tiny = TINY[family]
    picks = {
        "model": MODELS[family],
        "model.source": saved(family, **({} if whole else FEWER.get(family, {}))),
        "model.dtype": "float32",
        "model.height": tiny.side,
        "model.width": tiny.side,
        "model.guidance_scale": tiny.guidance,
    }
    if tiny.tokens:
        picks |= {"model.max_sequence_length": tiny.tokens, "model.long_prompts": "cut"}
    if tiny.frames:
        picks["model.frames"] = tiny.frames
    return tuple(f"{k}={v}" for k, v in picks.items())


def drawing(family: str, prompts: Path, whole: bool) -> list[str]:
    steps = 6 if whole and family in TWO else 2  # each of its two backbones must take steps enough to be cached
    given = {"prompts": prompts, "size": 2, "batch_size": each(family), "steps": steps, "metrics": "[psnr]", "latency": "false"}
    return ["eval=default", *(f"eval.{k}={v}" for k, v in given.items())]


def each(family: str) -> int:
    """Prompts a call."""
    return 1 if models.family(TINY[family].family).single else 2


def calibration(name: str, prompts: Path, batch: int = 2) -> list[str]:
    sizes = {"size": 4, "batch_size": batch, "chunk": 4, "n_steps": 2}
    given = [f"calib.{k}={v}" for k, v in sizes.items()]
    return [] if name in UNCALIBRATED else ["calib=default", f"calib.prompts={prompts}", *given]


def attempt(store: Path, *picks: str) -> tuple[Job | None, str]:
    """Run a recipe as one job does: the job, and the error that ended it."""
    made = None
    try:
        made = job.prepare(composed(*picks, f"store={store}"), [], dry=False, sweep=False)
        run_plan(made.plan, made.choices, made.store, made.sources)
    except DiffoptError as e:
        return made, str(e)
    return made, ""


def entry(made: Job, stage: str) -> Any:
    """The artifact of a stage, or None."""
    steps = [s for s in made.plan.steps if s.stage.name == stage and not s.name.endswith(".baseline")]
    return made.store.entry(steps[0].kind, steps[0].fingerprint) if steps else None


@pytest.fixture
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.getbasetemp() / "matrix-prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(("family", "name"), WANTED)
def test_a_family_goes_through_the_chain_in_a_format(
    family: str, name: str, store: Path, prompts: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.config.getoption("--matrix")
    drawn = whole or family == "flux" or (family, name) in DRAWN
    own = models.family(TINY[family].family)
    prompts = album().folder or prompts if own.animates else prompts
    prompts = Path(pictured(*own.pictures).where) if own.pictures else prompts
    picks = [*overrides(family, whole), f"format={name}", *SMALL.get(name, []), *calibration(name, prompts, each(family))]
    picks += drawing(family, prompts, whole) if drawn else []
    engine = ["export=tensorrt", "export.high_precision_dtype=float16", "export.builder_optimization_level=0"]
    cell: dict[str, Any] = {}
    CELLS.setdefault(family, {})[name] = cell
    made, said = attempt(store, *picks, *engine)
    assert made is not None, said
    for step, stage in STEPS.items():
        if drawn or stage != "sample":
            cell[step] = True if entry(made, stage) else said
    unbuilt = name == "mxfp8" and family != "flux" and UNBUILT in str(cell["build"])
    if unbuilt:  # but the weights of all that is quantized are in FP8
        assert re.search(
            r"though (\d+) of the graph are quantized \(got .*\b\1 in FP8 weights, FP16 inputs\b", str(cell["build"])
        )
        cell["build"] = str(cell["build"]).partition(", though")[0]  # without the numbers of this model
    if unbuilt and drawn:
        made, said = attempt(store, *picks, "export=onnx", "export.high_precision_dtype=float16")
        assert made is not None, said
        cell["run"] = True if entry(made, "sample") else said
    if whole:
        cached, said = attempt(store, *picks, *CACHE.get(family, FIRST_BLOCK))
        cell["cache"] = True if cached and entry(cached, "sample") else said
    for step, result in cell.items():
        assert result is True or (unbuilt and step == "build"), f"{step}: {result}"
    graphs = [*entry(made, "export").path.rglob("*.onnx")]  # one of each backbone
    assert len(graphs) == (2 if family in TWO else 1)
    for graph in graphs:
        onnx.checker.check_model(graph)
        if name == "mxfp8":  # whatever the builder makes of it
            model = onnx.load(graph)
            assert quantized_inputs(model) == quantized_products(model) > 0
    if whole:
        _check_restored(made)


def _check_restored(made: Job) -> None:
    """The stored checkpoint gives the same output each time it is restored, and another one than the plain backbone."""
    ctx = Context(made.store.root, made.sources.pinned, made.sources.locate)
    pipeline = Pipeline((p := entry(made, "load")).path, p.fingerprint)
    checkpoint = Checkpoint((c := entry(made, "quantize")).path, c.fingerprint)
    outputs = [_output(ctx, pipeline, made, x) for x in (checkpoint, checkpoint, None)]
    assert torch.isfinite(outputs[0]).all()
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def _output(ctx: Context, pipeline: Pipeline, made: Job, checkpoint: Checkpoint | None) -> torch.Tensor:
    from diffopt.models.family import Size
    from diffopt.pipeline.open import config, family_of

    family, model = family_of(pipeline), made.choices.model
    assert model is not None
    whole = restore(ctx, pipeline, checkpoint)
    backbone = next(iter(whole.values())) if isinstance(whole, torch.nn.ModuleDict) else whole
    vae = config(ctx, PipelineFile.read(pipeline.path), "vae")
    size = Size(2, model.height, model.width, model.max_sequence_length or 0, model.frames or 1)
    return call(backbone, family.call(family.inputs(backbone, vae, size)))
