"""A tiny random FLUX pipeline on disk, and the stages run on it by hand: no Hydra, no plan, no store.

`bench()` is made once per process and shared: what its methods make is remembered, and never changed by a test.
"""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffopt import asset, formats
from diffopt.artifact import CalibChunk, CalibStats, Checkpoint, Embeddings, OnnxGraph, Pipeline, Recording
from diffopt.groups import CallView, ChunkView, FormatView, ScaleView
from diffopt.groups.model import TextView
from diffopt.prompts import PromptSet
from diffopt.source import Source, Sources
from diffopt.stage import Context
from diffopt.stages.embed import PromptsView, embed
from diffopt.stages.export import GraphView, SizeView, export
from diffopt.stages.load import LoadView, load
from diffopt.stages.merge import merge
from diffopt.stages.observe import observe
from diffopt.stages.quantize import quantize
from diffopt.stages.record import record

EMOJI = "asset:emoji/emoji-flux"
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
DOUBLE, SINGLE, HEADS, HEAD = 2, 2, 2, 32
LAYERS = 14 * DOUBLE + 6 * SINGLE
"""Linear layers in blocks: 2 x (AdaLN, q k v, out, 2 feed forward) in a double one; AdaLN, q k v, mlp, out in a single one."""


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="diffopt-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def transformer(**changes: Any) -> torch.nn.Module:
    """Random, with some loud channels as trained models have them, so that what is quantized how makes a difference."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    sizes = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": DOUBLE,
        "num_single_layers": SINGLE,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (8, 12, 12),
        "guidance_embeds": False,
    }
    model = FluxTransformer2DModel(**sizes | changes).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and "blocks" in name:
                layer.weight *= torch.exp(torch.randn(layer.out_features, 1, generator=draw))
    return model


def save(directory: Path, **changes: Any) -> None:
    """Write the pipeline as save_pretrained does; `changes` are the transformer's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    emoji = asset.locate(EMOJI)
    torch.manual_seed(0)
    ends = {"bos_token_id": 1534, "eos_token_id": 1535, "pad_token_id": 1535}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=1536, max_position_embeddings=32, **text, **ends)).eval()
    t5 = T5EncoderModel(T5Config(vocab_size=1024, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)).eval()
    # 16 latent channels packed 2x2 would be 64; 4 make the transformer's 16. Two levels halve the picture once.
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=AutoTokenizer.from_pretrained(emoji / "tokenizer"),
        text_encoder_2=t5,
        tokenizer_2=AutoTokenizer.from_pretrained(emoji / "tokenizer_2"),
        transformer=transformer(**changes),
    ).save_pretrained(directory)


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
    made: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sources = Sources(self.root / "sources.json")

    def context(self, out: Path | None = None) -> Context:
        """A stage's context; writes to a new directory unless `out` is given."""
        out = out or Path(tempfile.mkdtemp(dir=self.root))
        return Context(out, self.sources.pinned, self.sources.locate, self.device)

    def pipeline(self) -> Pipeline:
        def make(ctx: Context) -> Pipeline:
            view = LoadView(family="flux", source=Source(self.source), weights="pretrained", dtype=self.dtype, scheduler=None)
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
            view = PromptsView(prompts=PromptSet("tests", self.prompts[start:stop]), batch_size=BATCH)
            embed.run(ctx, TextView(**given), view, self.pipeline())
            return Embeddings(ctx.out, "embeddings")

        return self._once(("texts", start, stop), make)

    def view(self, start: int, stop: int, steps: int = STEPS) -> ChunkView:
        part = PromptSet("tests", self.prompts[start:stop])
        return ChunkView(prompts=part, start=start, batch_size=BATCH, n_steps=steps)

    def chunk(self, start: int, stop: int) -> CalibChunk:
        def make(ctx: Context) -> CalibChunk:
            observe.run(ctx, self.call, self.view(start, stop), self.pipeline(), self.texts(start, stop), SEED)
            return CalibChunk(ctx.out, "chunk")

        return self._once(("chunk", start, stop), make)

    def recordings(self, size: int, steps: int = STEPS) -> tuple[Recording, ...]:
        """Of the first `size` prompts, in chunks of CHUNK."""
        return tuple(self.recording(i, min(i + CHUNK, size), steps) for i in range(0, size, CHUNK))

    def recording(self, start: int, stop: int, steps: int = STEPS) -> Recording:
        def make(ctx: Context) -> Recording:
            record.run(ctx, self.call, self.view(start, stop, steps), self.pipeline(), self.texts(start, stop), SEED)
            return Recording(ctx.out, "recording")

        return self._once(("recording", start, stop, steps), make)

    def stats(self, size: int) -> CalibStats:
        """Of the first `size` prompts, in chunks of CHUNK."""

        def make(ctx: Context) -> CalibStats:
            merge.run(ctx, tuple(self.chunk(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)))
            return CalibStats(ctx.out, "stats")

        return self._once(("stats", size), make)

    def checkpoint(
        self, name: str, *, alpha: float = 0.5, exclude: tuple[str, ...] = (), mha: bool = False, size: int = CHUNK
    ) -> Checkpoint:
        def make(ctx: Context) -> Checkpoint:
            method = formats.method(name)
            chosen = FormatView(
                name=name,
                exclude=list(exclude),
                quantize_mha=mha,
                block_size=method.block_size and BLOCK,
                rank=method.rank and RANK,
            )
            stats = self.stats(size) if method.observes else None
            recordings = self.recordings(size) if method.search else ()
            scale = None if method.algorithm is None else ScaleView(alpha=alpha)
            quantize.run(ctx, chosen, scale, self.pipeline(), stats, recordings)
            return Checkpoint(ctx.out, "checkpoint")

        return self._once((name, alpha, exclude, mha, size), make)

    def graph(
        self,
        name: str | None,
        *,
        dtype: str | None = None,
        batch: int = 1,
        most: int | None = None,
        opset: int = 20,
        **kw: Any,
    ) -> OnnxGraph:
        """The ONNX graph of a format, or of the plain backbone for None."""
        dtype = dtype or self.dtype

        def make(ctx: Context) -> OnnxGraph:
            self.write_graph(ctx, name, dtype=dtype, batch=batch, most=most, opset=opset, **kw)
            return OnnxGraph(ctx.out, "graph")

        return self._once(("graph", name, dtype, batch, most, opset, *kw.items()), make)

    def write_graph(
        self,
        ctx: Context,
        name: str | None,
        *,
        dtype: str | None = None,
        batch: int = 1,
        most: int | None = None,
        opset: int = 20,
        **kw: Any,
    ) -> None:
        size = SizeView(**{n: getattr(self.call, n) for n in SizeView.model_fields})
        view = GraphView(opset=opset, batch_size=batch, max_batch_size=most, high_precision_dtype=dtype)
        export.run(ctx, size, view, self.pipeline(), self.checkpoint(name, **kw) if name else None)

    def inputs(self, batch: int = 1) -> dict[str, torch.Tensor]:
        """Backbone inputs of this bench's size."""
        from diffopt.models.family import Size
        from diffopt.models.flux import FAMILY

        size = Size(batch, self.call.height, self.call.width, self.call.max_sequence_length)
        return {n: x.to(self.device) for n, x in FAMILY.inputs(self.backbone(), self.vae(), size).items()}

    def draw(self, pipe: Any, prompts: list[str], seeds: list[int], steps: int, **kw: Any) -> np.ndarray:
        """One batch by `pipe`, which encodes the prompts itself."""
        from diffopt.pipeline.draw import draw
        from diffopt.pipeline.open import family_of
        from diffopt.pipeline.texts import encode

        texts = encode(self.context(), pipe, self.pipeline(), prompts, self.call)
        return draw(pipe, texts, seeds, steps, family_of(self.pipeline()).arguments(self.call), **kw)

    def vae(self) -> dict[str, Any]:
        return json.loads((asset.locate(self.source) / "vae" / "config.json").read_text())

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self.made:
            self.made[key] = make(self.context())
        return self.made[key]


def bench(dtype: str = "float32", guidance: bool = False, device: str = "cpu") -> Bench:
    """The tiny pipeline in a precision, and with or without a guidance embedding."""
    return _bench(dtype, guidance, device)


@cache
def _bench(dtype: str, guidance: bool, device: str) -> Bench:
    root = _root() / f"{dtype}-{guidance}-{device}"
    root.mkdir()
    directory = _root() / ("guided" if guidance else "plain")
    if not directory.exists():
        save(directory, guidance_embeds=guidance)
    return Bench(root, str(directory), dtype, device=device)


@cache
def emoji() -> Bench:
    """The embedded, trained pipeline."""
    root = _root() / "emoji"
    root.mkdir()
    call = called(64, 32)
    prompts = asset.locate("asset:emoji/prompts_calib.txt").read_text().splitlines()
    return Bench(root, EMOJI, call=call, prompts=tuple(prompts[: len(PROMPTS)]))


def recipe(name: str, alpha: float = 0.5, mha: bool = False, exclude: tuple[str, ...] = ()) -> tuple[list[Any], Any]:
    """modelopt's `quant_cfg` and `algorithm` for a format on FLUX."""
    from diffopt.models.flux import FAMILY

    method = formats.method(name)
    return method.rules(list(FAMILY.keep), list(exclude), mha, BLOCK), method.calibration(alpha, RANK)


def call(backbone: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The backbone's output, with CPU arithmetic where modelopt has none."""
    from diffopt.block_arithmetic import simulated

    with torch.no_grad(), simulated():
        return backbone(**inputs, return_dict=False)[0]
