"""A tiny random pipeline on disk, and the stages run on it by hand: no Hydra, no plan, no store.

`bench()` is FLUX's with one block of a kind; `bench(family="sdxl")` is SDXL's, and so for every entry of
tiny_pipelines.TINY: that of FLUX has two blocks of a kind, one of which a cache can reuse. Each is made once per process and
shared: what its methods make is remembered, and never changed by a test.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from tiny_pipelines import EMOJI, TINY

from diffopt import formats, models
from diffopt.artifact import (
    CalibChunk,
    CalibStats,
    Checkpoint,
    Embeddings,
    EvalEmbeddings,
    HessianChunk,
    HistogramChunk,
    OnnxGraph,
    Pipeline,
    Recording,
)
from diffopt.data import prompts
from diffopt.data.prompts import PromptSet
from diffopt.formats.method import COUNTED, Awq, Inputs, Rounding, Weights
from diffopt.groups import CallView, ChunkView, FormatView, ScaleView
from diffopt.groups.calib import Collect
from diffopt.groups.cut import CutView
from diffopt.groups.encoded import CalibPromptsView, EvalPromptsView
from diffopt.groups.model import TextView
from diffopt.stage import Context
from diffopt.stages import encode
from diffopt.stages.correlate import correlate
from diffopt.stages.count import count
from diffopt.stages.embed import embed
from diffopt.stages.export import GraphView, SizeView, export
from diffopt.stages.load import LoadView, load
from diffopt.stages.merge import merge
from diffopt.stages.observe import observe
from diffopt.stages.quantize import quantize
from diffopt.stages.record import record
from diffopt.store import assets
from diffopt.store.source import Source, Sources

PROMPTS = (
    "a noto style emoji of armenia flag",
    "delivery truck, twemoji style",
    "red apple",
    "man with white hair, noto style",
    "grinning face with star eyes",
    "banana",
    "call me hand, noto style",
)
SEED, STEPS, BATCH, CHUNK = 11, 2, 2, 4
BLOCK, RANK = 32, 8
"""INT4's block size and SVDQuant's rank: layers here have 64 to 320 inputs."""
ONE: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1}
LAYERS = 14 + 6
"""Linear layers in the blocks of `bench()`: 2 x (AdaLN, q k v, out, 2 feed forward) in the double one; AdaLN, q k v, mlp, out
in the single one."""


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="diffopt-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def folder() -> Path:
    """A new directory that goes when the process ends."""
    return Path(tempfile.mkdtemp(dir=_root()))


def save(directory: Path, tiny: str = "flux", **changes: Any) -> None:
    """Write the pipeline as save_pretrained does; `changes` are the backbone's."""
    torch.manual_seed(0)
    TINY[tiny].make(**changes).save_pretrained(directory)


def called(side: int, tokens: int | None, **kw: Any) -> CallView:
    """What a pipeline is called with, for square pictures."""
    defaults = {"frames": None, "guidance_scale": 0.0, "negative_prompt": "", "long_prompts": "refuse"}
    return CallView(**{"height": side, "width": side, "max_sequence_length": tokens} | defaults | kw)


@dataclass
class Bench:
    """A source, and its artifacts made by the stages themselves."""

    root: Path
    source: str
    dtype: str = "float32"
    call: CallView = field(default_factory=lambda: called(32, 16, long_prompts="cut"))
    prompts: tuple[str, ...] = PROMPTS
    device: str = "cpu"
    family: str = "flux"
    weights: str = "pretrained"
    lora: list[Any] = field(default_factory=list)
    variant: str | None = None
    made: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = 1 if self.family != "auto" and models.family(self.family).single else BATCH
        self.sources = Sources(self.root / "sources.json")

    def context(self, out: Path | None = None) -> Context:
        """A stage's context; writes to a new directory unless `out` is given."""
        out = out or Path(tempfile.mkdtemp(dir=self.root))
        return Context(out, self.sources.pinned, self.sources.locate, self.device)

    def pipeline(self) -> Pipeline:
        def make(ctx: Context) -> Pipeline:
            source = {"source": Source(self.source), "weights": self.weights, "dtype": self.dtype, "lora": self.lora}
            view = LoadView(family=self.family, scheduler=None, variant=self.variant, **source)
            load.run(ctx, view)
            return Pipeline(ctx.out, "pipeline")

        return self._once("pipeline", make)

    def backbone(self) -> Any:
        """A new copy of the plain backbone."""
        from diffopt.pipeline.open import open_backbone

        return open_backbone(self.context(), self.pipeline())

    def texts(self, start: int, stop: int) -> Embeddings:
        def make(ctx: Context) -> Embeddings:
            given = {n: getattr(self.call, n) for n in TextView.model_fields}
            view = CalibPromptsView(prompts=prompt_set(self.prompts[start:stop]), batch_size=self.batch)
            embed.run(ctx, TextView(**given), view, self.pipeline())
            return Embeddings(ctx.out, "embeddings")

        return self._once(("texts", start, stop), make)

    def encoded(self, prompts: PromptSet, batch: int) -> EvalEmbeddings:
        """Embeddings of an evaluation's prompts."""

        def make(ctx: Context) -> EvalEmbeddings:
            given = {n: getattr(self.call, n) for n in TextView.model_fields}
            view = EvalPromptsView(prompts=prompts, batch_size=batch)
            encode.encode.run(ctx, TextView(**given), view, self.pipeline())
            return EvalEmbeddings(ctx.out, "encoded")

        return self._once(("encoded", prompts.prompts, batch), make)

    def view(self, start: int, stop: int, steps: int = STEPS, per_step: bool = False) -> ChunkView:
        part = prompt_set(self.prompts[start:stop])
        return ChunkView(prompts=part, start=start, batch_size=self.batch, n_steps=steps, per_step=per_step)

    def chunk(self, start: int, stop: int, steps: int = STEPS, per_step: bool = False) -> CalibChunk:
        def make(ctx: Context) -> CalibChunk:
            view = self.view(start, stop, steps, per_step)
            observe.run(ctx, self.call, view, self.pipeline(), self.texts(start, stop), SEED)
            return CalibChunk(ctx.out, "chunk")

        return self._once(("chunk", start, stop, steps, per_step), make)

    def recordings(self, size: int, steps: int = STEPS) -> tuple[Recording, ...]:
        """Of the first `size` prompts, in chunks of CHUNK."""
        return tuple(self.recording(i, min(i + CHUNK, size), steps) for i in range(0, size, CHUNK))

    def recording(self, start: int, stop: int, steps: int = STEPS) -> Recording:
        def make(ctx: Context) -> Recording:
            record.run(ctx, self.call, self.view(start, stop, steps), self.pipeline(), self.texts(start, stop), SEED)
            return Recording(ctx.out, "recording")

        return self._once(("recording", start, stop, steps), make)

    def hessians(self, size: int, steps: int = STEPS) -> tuple[HessianChunk, ...]:
        """Of the first `size` prompts, in chunks of CHUNK."""
        return tuple(self.hessian(i, min(i + CHUNK, size), steps) for i in range(0, size, CHUNK))

    def hessian(self, start: int, stop: int, steps: int = STEPS) -> HessianChunk:
        def make(ctx: Context) -> HessianChunk:
            correlate.run(ctx, self.call, self.view(start, stop, steps), self.pipeline(), self.texts(start, stop), SEED)
            return HessianChunk(ctx.out, "hessian")

        return self._once(("hessian", start, stop, steps), make)

    def histograms(self, size: int, steps: int = STEPS) -> tuple[HistogramChunk, ...]:
        """Of the first `size` prompts, in chunks of CHUNK."""
        return tuple(self.histogram(i, min(i + CHUNK, size), steps) for i in range(0, size, CHUNK))

    def histogram(self, start: int, stop: int, steps: int = STEPS) -> HistogramChunk:
        def make(ctx: Context) -> HistogramChunk:
            count.run(ctx, self.call, self.view(start, stop, steps), self.pipeline(), self.texts(start, stop), SEED)
            return HistogramChunk(ctx.out, "histogram")

        return self._once(("histogram", start, stop, steps), make)

    def stats(self, size: int, steps: int = STEPS, per_step: bool = False) -> CalibStats:
        """Of the first `size` prompts, in chunks of CHUNK."""

        def make(ctx: Context) -> CalibStats:
            parts = [(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)]
            merge.run(ctx, tuple(self.chunk(first, last, steps, per_step) for first, last in parts))
            return CalibStats(ctx.out, "stats")

        return self._once(("stats", size, steps, per_step), make)

    def checkpoint(
        self,
        name: str,
        *,
        alpha: float = 0.5,
        exclude: tuple[str, ...] = (),
        mha: bool = False,
        size: int = CHUNK,
        steps: int = STEPS,
        percentile: float = 1.0,
        collect: Collect = "default",
        share: bool = False,
        round: bool = False,
        rank: int = RANK,
        rank_iterations: int = 0,
        weights: Weights = "max",
        awq: Awq = "lite",
        inputs: Inputs = "max",
        within: float = 99.99,
        rounding: Rounding = "nearest",
        damping: float = 1.0,
    ) -> Checkpoint:
        def make(ctx: Context) -> Checkpoint:
            method = formats.method(name)
            chosen = FormatView(
                name=name,
                exclude=list(exclude),
                quantize_mha=mha,
                share_scales=share,
                round_scales=round,
                block_size=method.block_size and BLOCK,
                rank=method.rank and rank,
                rank_iterations=rank_iterations,
                weights=weights,
                awq=awq,
                inputs=inputs,
                input_percentile=within,
                rounding=rounding,
                damping=damping,
            )
            hessians = self.hessians(size, steps) if weights == "local_hessian" else ()
            histograms = self.histograms(size, steps) if inputs in COUNTED else ()
            per_step = (percentile, collect) != (1.0, "default")
            stats = self.stats(size, steps, per_step) if method.observes else None
            recordings = self.recordings(size) if method.records or rounding == "gptq" else ()
            view = ScaleView(alpha=alpha, percentile=percentile, collect_method=collect)
            scale = None if method.algorithm is None else view
            quantize.run(ctx, chosen, scale, self.pipeline(), stats, recordings, hessians=hessians, histograms=histograms)
            return Checkpoint(ctx.out, "checkpoint")

        return self._once(
            (
                name,
                alpha,
                exclude,
                mha,
                size,
                steps,
                percentile,
                collect,
                share,
                round,
                rank,
                rank_iterations,
                weights,
                awq,
                inputs,
                within,
                rounding,
                damping,
            ),
            make,
        )

    def graph(
        self,
        name: str | None,
        *,
        dtype: str | None = None,
        batch: int = 1,
        most: int | None = None,
        opset: int = 20,
        cut: CutView | None = None,
        **kw: Any,
    ) -> OnnxGraph:
        """The ONNX graph of a format, or of the plain backbone for None; whole, or cut for a cache."""
        dtype = dtype or self.dtype

        def make(ctx: Context) -> OnnxGraph:
            self.write_graph(ctx, name, dtype=dtype, batch=batch, most=most, opset=opset, cut=cut, **kw)
            return OnnxGraph(ctx.out, "graph")

        return self._once(("graph", name, dtype, batch, most, opset, repr(cut), *kw.items()), make)

    def write_graph(
        self,
        ctx: Context,
        name: str | None,
        *,
        dtype: str | None = None,
        batch: int = 1,
        most: int | None = None,
        opset: int = 20,
        cut: CutView | None = None,
        **kw: Any,
    ) -> None:
        size = SizeView(**{n: getattr(self.call, n) for n in SizeView.model_fields})
        view = GraphView(opset=opset, batch_size=batch, max_batch_size=most, high_precision_dtype=dtype)
        export.run(ctx, size, view, self.pipeline(), self.checkpoint(name, **kw) if name else None, cut)

    def inputs(self, batch: int = 1) -> dict[str, torch.Tensor]:
        """Backbone inputs of this bench's size, of the first backbone."""
        from diffopt.models.family import Size

        size = Size(batch, self.call.height, self.call.width, self.call.max_sequence_length or 0, self.call.frames or 1)
        backbone = self.backbone()
        first = next(iter(backbone.values())) if isinstance(backbone, torch.nn.ModuleDict) else backbone
        found = models.family(self.family).inputs(first, self.vae(), size)
        return {n: x.to(self.device) if isinstance(x, torch.Tensor) else x for n, x in found.items()}

    def draw(self, pipe: Any, prompts: list[str], seeds: list[int], steps: int, **kw: Any) -> np.ndarray:
        """One batch by `pipe`, which encodes the prompts itself."""
        from diffopt.pipeline.draw import draw
        from diffopt.pipeline.open import family_of
        from diffopt.pipeline.texts import encode

        texts = encode(self.context(), pipe, self.pipeline(), prompt_set(prompts).given().prompts, self.call)
        return draw(pipe, texts, seeds, steps, family_of(self.pipeline()).arguments(self.call), **kw)

    def vae(self) -> dict[str, Any]:
        return json.loads((assets.locate(self.source) / "vae" / "config.json").read_text())

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self.made:
            self.made[key] = make(self.context())
        return self.made[key]


def bench(dtype: str = "float32", guidance: bool = False, device: str = "cpu", family: str | None = None) -> Bench:
    """The tiny pipeline `family` of TINY in a precision; FLUX with or without a guidance embedding."""
    return _bench(dtype, guidance, device, family)


@cache
def _bench(dtype: str, guidance: bool, device: str, family: str | None) -> Bench:
    root = _root() / f"{family}-{dtype}-{guidance}-{device}"
    root.mkdir()
    tiny, changes = family or "flux", {} if family else ONE
    about = TINY[tiny]
    call = called(about.side, about.tokens, guidance_scale=about.guidance, frames=about.frames, long_prompts="cut")
    return Bench(root, str(saved(tiny, guidance, **changes)), dtype, call, prompts_of(tiny), device, about.family)


@cache
def album() -> PromptSet:
    """As many pictures as PROMPTS are texts, of several sizes, smooth and each unlike the others."""
    from PIL import Image

    directory, draw = folder(), np.random.default_rng(3)
    for i in range(len(PROMPTS)):
        Image.fromarray(draw.integers(0, 256, (3, 4, 3), np.uint8)).resize((48 + 8 * i, 64)).save(directory / f"{i}.png")
    return prompts.read(str(directory))


def prompts_of(tiny: str) -> tuple[str, ...]:
    """What a tiny pipeline is asked for: texts, the names of the album's pictures, or texts that have pictures."""
    family = models.family(TINY[tiny].family)
    if family.pictures:
        return pictured(*family.pictures).prompts
    return album().prompts if family.animates else PROMPTS


@cache
def pictured(*roles: str) -> PromptSet:
    """PROMPTS with a picture of each role: the album's, and as a mask its right half."""
    from PIL import Image

    directory, there = folder(), album().given().prompts
    rows = []
    for i, (text, path) in enumerate(zip(PROMPTS, there, strict=True)):
        row = {"prompt": f"{' and '.join(roles)}: {text}"}
        for role in roles:
            row[role] = f"{role}-{i}.png"
            whole = Image.open(path)
            half = np.zeros((whole.height, whole.width), np.uint8)
            half[:, whole.width // 2 :] = 255
            (Image.fromarray(half) if role == "mask" else whole).save(directory / row[role])
        rows.append(row)
    (directory / "prompts.json").write_text(json.dumps(rows))
    return prompts.read(str(directory / "prompts.json"))


ROLES = (("image",), ("image", "mask"), ("control",))


def prompt_set(names: Sequence[str]) -> PromptSet:
    """Of texts, or of some of the album's pictures or of `pictured`, from the first or by their names."""
    if own := [s for s in (pictured(*r) for r in ROLES) if {*names} <= {*s.prompts}]:
        return own[0].picked(own[0].prompts.index(n) for n in names)
    there = album()
    if not set(names) <= set(there.prompts):
        return PromptSet("tests", tuple(names))
    contents = dict(zip(there.prompts, there.contents, strict=True))
    return PromptSet("tests", tuple(names), there.folder, tuple(contents[n] for n in names))


@cache
def saved(tiny: str, guidance: bool = False, **changes: Any) -> Path:
    """The directory of a tiny pipeline, with `changes` to its backbone's config."""
    changes |= {"guidance_embeds": True} if guidance else {}
    directory = _root() / (f"{tiny}-{crc32(repr(changes).encode()):08x}" if changes else tiny)
    save(directory, tiny, **changes)
    return directory


def architecture(tiny: str) -> Path:
    """The configs alone of a tiny pipeline, laid out as the package's architectures."""
    directory = _root() / f"{tiny}-architecture"
    if not directory.exists():
        kept = [
            p
            for p in saved(tiny).rglob("*.json")
            if p.parent.name
            in ("", "vae", "unet", "controlnet", "scheduler", "guider", *models.family(TINY[tiny].family).decoders)
            or "transformer" in p.parent.name
        ]
        for path in [saved(tiny) / "model_index.json", *kept]:
            target = directory / path.relative_to(saved(tiny))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return directory


def random_bench(tiny: str) -> Bench:
    """A tiny pipeline that draws its weights, and has neither text encoders nor tokenizers."""
    about = TINY[tiny]
    call = called(about.side, about.tokens, guidance_scale=about.guidance, frames=about.frames, long_prompts="cut")
    made = {"call": call, "prompts": prompts_of(tiny), "family": about.family, "weights": "random"}
    return Bench(folder(), str(architecture(tiny)), **made)


@cache
def emoji() -> Bench:
    """The embedded, trained pipeline."""
    root = _root() / "emoji"
    root.mkdir()
    call = called(64, 32)
    known = assets.locate("asset:emoji/prompts_calib.txt").read_text().splitlines()
    return Bench(root, EMOJI, call=call, prompts=tuple(known[: len(PROMPTS)]))


def recipe(name: str, alpha: float = 0.5, mha: bool = False, exclude: tuple[str, ...] = ()) -> tuple[list[Any], Any]:
    """modelopt's `quant_cfg` and `algorithm` for a format on FLUX."""
    from diffopt.models.flux import FAMILY

    method = formats.method(name)
    return method.rules(list(FAMILY.keep), list(exclude), mha, BLOCK), method.calibration(alpha, RANK)


def aligned(module: Any) -> Any:
    """The same module, or the modules of a pipeline, with numbers where torch lays them: a file's own lie at no multiple of 64
    bytes, where products have other last bits on some CPUs. For what two ways of loading are to compute alike."""
    for part in module.components.values() if hasattr(module, "components") else [module]:
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.clone()
    return module


def call(backbone: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The backbone's output, with CPU arithmetic where modelopt has none."""
    from diffopt.models.family import prediction
    from diffopt.quantization.block_fake_quant import simulated

    with torch.no_grad(), simulated():
        return prediction(backbone(**inputs, return_dict=False))
