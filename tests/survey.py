"""What is found in every backbone class of diffusers, and what comes of it in FP8; run, it writes the manual's table."""

import inspect
import json
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import diffusers
import tiny_backbones
import tiny_calls
import torch
from diffusers import ModelMixin
from diffusers.models import transformers, unets
from safetensors.torch import save_file
from torch.utils._pytree import tree_leaves

from diffopt.artifact import CalibStats, Checkpoint, Pipeline
from diffopt.errors import DiffoptError, PlanError
from diffopt.files.found import Found
from diffopt.files.pipeline import PipelineFile
from diffopt.finding import structure
from diffopt.groups import FormatView, ScaleView
from diffopt.pipeline.open import family_of, open_backbone
from diffopt.quantization import checkpoint
from diffopt.quantization.layers import layers_of, taken
from diffopt.quantization.observer import observed
from diffopt.stage import Context
from diffopt.stages.quantize import quantize

PAGE = Path(__file__).parent.parent / "diffopt" / "finding" / "README.md"
BEGIN, END = "<!-- survey: written by tests/survey.py -->\n", "<!-- survey ends -->"


def classes() -> dict[str, type[torch.nn.Module]]:
    """Of diffusers' transformers and UNets."""
    found = {}
    for package in (transformers, unets):
        for module in iter_modules(package.__path__):
            own = import_module(f"{package.__name__}.{module.name}")
            for name, cls in vars(own).items():
                if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == own.__name__:
                    found[name] = cls
    return dict(sorted(found.items()))


def row(cls: type[torch.nn.Module]) -> str:
    """Its blocks, how many of its linear layers are quantized, whether attention can be; and what came of it in FP8."""
    size = ""
    with torch.device("meta"):
        try:
            backbone: torch.nn.Module = cls()
        except (TypeError, ValueError):  # a config that has no defaults for what its class must have
            backbone, size = cls(**tiny_backbones.config(cls)), ", of its tiny config"
    try:
        blocks = structure.blocks_of(backbone)
    except PlanError as e:
        return f"none{size} | | | {said(e)}"
    layers = layers_of(backbone)
    kept = structure.kept_of(backbone, blocks)
    quantized, there = len(taken(layers, kept)), len(taken(layers, []))
    lists = ", ".join(f"`{n}` {len(getattr(backbone, n))}" for n in blocks)
    attention = "yes" if structure.quantizable(backbone, blocks) else "no"
    return f"{lists}{size} | {quantized} of {there} | {attention} | {fp8(cls)}"


def fp8(cls: type[torch.nn.Module]) -> str:
    """`ok` where its tiny model is calibrated by what is found of it, saved and restored bit for bit; else why not."""
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        try:
            return _tried(cls, Path(root))
        except Exception as e:  # a class's own code, or the line that refuses it
            return said(e)


def said(error: Exception) -> str:
    """In one line of a table."""
    line = (str(error).strip().splitlines() or [""])[0].partition("; ")[0].replace("|", "/")
    return line if isinstance(error, DiffoptError) else f"{type(error).__name__}: {line[:120]}"


def _tried(cls: type[torch.nn.Module], root: Path) -> str:
    pipeline, ctx = _pinned(cls, root), Context(root / "out", lambda s: s.name, lambda _: root / "source", "cpu")
    plain = open_backbone(ctx, pipeline)
    before = _outputs(plain, cls)
    if not before:
        return "its call computes nothing"
    for name in ("out", "stats"):
        (root / name).mkdir()
    with observed(plain, hold=False) as extremes:
        plain(**tiny_calls.inputs(cls))
    save_file({n: x.contiguous() for n, x in extremes.items()}, root / "stats" / "extremes.safetensors")
    mha = family_of(pipeline).attention
    how = FormatView(name="fp8", exclude=[], quantize_mha=mha)
    quantize.run(ctx, how, ScaleView(alpha=0.5), pipeline, CalibStats(root / "stats", "stats"), ())
    made = Checkpoint(ctx.out, "checkpoint")
    after, again = (_outputs(checkpoint.restore(ctx, pipeline, made), cls) for _ in range(2))
    if not all(torch.isfinite(x).all() for x in (*before, *after)):
        return "its outputs are not finite"
    if all(torch.equal(x, y) for x, y in zip(before, after, strict=True)):
        return "what is quantized changes nothing"
    if not all(torch.equal(x, y) for x, y in zip(after, again, strict=True)):
        return "is restored otherwise than it was made"
    return "ok"


def _pinned(cls: type[torch.nn.Module], root: Path) -> Pipeline:
    """Its tiny model as the backbone of a pipeline that has nothing else, and what is found of it."""
    model: Any = tiny_backbones.make(cls)
    model.save_pretrained(root / "source" / "backbone")
    index = {"_class_name": cls.__name__, "backbone": ["diffusers", cls.__name__]}
    (root / "source" / "model_index.json").write_text(json.dumps(index))
    blocks = structure.blocks_of(model)
    found = Found(
        pipeline=cls.__name__,
        backbone_class=cls.__name__,
        backbones=("backbone",),
        blocks=blocks,
        keep=structure.kept_of(model, blocks),
        size_step=8,
        arguments={},
        returns=(),
        texts={},
        inputs=None,
        convolutions=structure.UNET in blocks,
        attention=structure.quantizable(model, blocks),
    )
    (root / "pipeline").mkdir()
    PipelineFile(
        source="source",
        family="auto",
        weights="pretrained",
        dtype="float32",
        scheduler=None,
        components={"backbone": cls.__name__},
        backbones=found.backbones,
        parameters=sum(p.numel() for p in model.parameters()),
        blocks={n: len(getattr(model, n)) for n in blocks},
        largest=None,
        size_step=8,
        found=found,
    ).write(root / "pipeline")
    return Pipeline(root / "pipeline", "pipeline")


def _outputs(model: torch.nn.Module, cls: type[torch.nn.Module]) -> list[torch.Tensor]:
    """Of the same call each time."""
    torch.manual_seed(2)
    out: Any = model(**tiny_calls.inputs(cls))
    return [x for x in tree_leaves(dict(out) if isinstance(out, dict) else out) if isinstance(x, torch.Tensor)]


def table() -> Iterator[str]:
    found = classes()
    yield f"| class of diffusers {diffusers.__version__} | blocks | linear layers quantized | attention | tiny in FP8 |"
    yield "|---|---|---|---|---|"
    yield from (f"| {name.removesuffix('Model')} | {row(cls)} |" for name, cls in found.items())


def written() -> str:
    """The page with the table as it is now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{chr(10).join(table())}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written())
