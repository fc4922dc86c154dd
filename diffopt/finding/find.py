"""The family of a pipeline, found by opening it without its weights and running it small."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffopt.errors import PlanError, pass_on
from diffopt.files.found import Found
from diffopt.finding import structure
from diffopt.finding.pictures import taken
from diffopt.finding.recorded import SEVERAL, Unfit, flat, template
from diffopt.finding.rehearsal import AREA, DTYPE, FRAMES, Rehearsal, Seen, needed, said, unfilled
from diffopt.finding.texts import SHORT, text_templates
from diffopt.finding.training import trained
from diffopt.models import unknown
from diffopt.models.family import Size
from diffopt.models.found import MENDED
from diffopt.models.index import index_of
from diffopt.models.ltx2 import FURTHER
from diffopt.models.parts import INDEX, Parts
from diffopt.models.prompt_encoding import returns
from diffopt.models.template import made
from diffopt.quantization.layers import expected_layers

SCALES = ("vae_scale_factor_spatial", "vae_scale_factor", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
TIMES = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
"""How pipelines call their pixels per latent, and their frames per latent."""
FIXED = {"use_resolution_binning": False, "_auto_resize": False} | {n: v for n, v in FURTHER.items() if n != "guidance_rescale"}
"""Arguments that a call is given where it takes them: else it draws another size, and resizes, or guides by further calls."""
STRONG = 3.0
"""A guidance scale that guides."""
STEPS = 2
COMMON = (8, 16, 32, 64)
"""Pixels that a side may have to be a multiple of, whatever the VAE's scale is."""


def find(directory: Path) -> Found:
    """Raises PlanError, a line, for a pipeline that cannot be calibrated."""
    try:
        index = index_of(directory)
        cls = _class(index.pipeline)
        parts = Parts(directory, unknown(directory))
        whole = any(parts.weights(n) or parts.original(n) for n in index.backbones)  # configs alone need none of texts
        needed_here = [n for n in parts.named if whole or n in (*index.backbones, "vae", "scheduler")]
        if absent := [n for n in needed_here if not (directory / n).is_dir()]:
            more = f", nor {' and '.join(absent[1:])}" if absent[1:] else ""
            raise ValueError(f"has no folder {absent[0]}{more}, which its {INDEX} names; download the whole pipeline")
        for part in ("vae", "scheduler"):
            if part not in index.classes:
                raise ValueError(f"is a {index.pipeline} without a {part}, which diffopt needs; give a pipeline of latents")
        if lacks := needed(cls):
            raise ValueError(
                f"is a {index.pipeline}, whose call needs {' and '.join(lacks)}; give one that draws by text alone"
            )
        names = returns(cls)
        if "image" in signature(cls.encode_prompt).parameters and taken(cls, index.classes):
            raise ValueError(f"is a {index.pipeline}, whose text encoder is given the picture too; write its family in a file")
    except ValueError as e:
        what, _, advice = str(e).partition("; ")
        raise PlanError(f"model.source: {what} (got {directory.name!r}); {advice or 'give another pipeline'}") from None
    run = Rehearsal(directory, cls, index.backbones, index.classes)
    try:
        return _Search(run, names).found()
    except PlanError:
        raise
    except Exception as e:  # another's code
        raise _unrun(cls, said(e)) from None


@dataclass
class _Search:
    run: Rehearsal
    names: tuple[str | None, ...]
    text: int = SHORT
    """Tokens of the prompts that it is tried with."""

    def __post_init__(self) -> None:
        takes = self.run.takes
        self.guidance_argument = _guidance_argument(takes)
        self.fixed = {n: v for n, v in FIXED.items() if n in takes}
        self.frame_step = _attribute(self.run.pipe, TIMES, 1) if {*FRAMES} & {*takes} else None
        self.tokens, self.texts = text_templates(self.run, self.names)

    def found(self) -> Found:
        backbone = self.run.backbone
        blocks = structure.blocks_of(backbone)
        step = self._step()
        sizes = _sizes(step, self.frame_step, self.text)
        calls = [self._seen(s).calls[0].given for s in sizes]
        reasons: dict[str, str] = {}
        inputs, nested = self._inputs(calls, sizes, reasons)
        plain, guidance = self._guidance(sizes[0])
        unet = structure.UNET in blocks
        keep = structure.kept_of(backbone, blocks)
        convolves = structure.convolves(backbone, blocks, keep)
        lost = structure.unreached(expected_layers(backbone, keep, convolves), self.run.reached)
        idle = structure.products(backbone) - self.run.reached
        adds = not unet and structure.adds(backbone, blocks)
        found = Found(
            pipeline=self.run.cls.__name__,
            backbone_class=type(backbone).__name__,
            backbones=self.run.backbones,
            blocks=blocks,
            keep=(*keep, *lost),
            unreached=lost,
            unfilled=tuple(self.run.unfilled) if idle else (),
            size_step=step,
            frame_step=self.frame_step,
            arguments=self._arguments(guidance),
            fixed=self.fixed,
            returns=self.names,
            texts=self.texts,
            tokens=self.tokens,
            inputs=inputs,
            nested=nested,
            several=tuple(n for n in SEVERAL if calls[0].get(n)),
            pictures=self.run.pictures,
            beside=self.run.beside,
            guidance=guidance,
            convolutions=convolves,
            attention=structure.quantizable(backbone, blocks),
            lora=hasattr(self.run.cls, "load_lora_weights"),
            block_cache=structure.known_to_hooks(backbone, blocks),
            cross_attention=structure.crossing(backbone, blocks),
            noisy=_first(backbone),
            timed=_timed(self.run),
            calls=max(1, round(len(plain.calls) / STEPS)),
            reasons=reasons,
            cached=("*", "!up_blocks.-1") if unet else ("*", f"!{blocks[0]}.0"),
            cached_reuse="residual" if adds else "output",
        )
        return trained(found, self.run, plain, self._given(sizes[0]), sizes[0])

    def _given(self, size: Size) -> dict[str, torch.Tensor]:
        """Embeddings of a size, in random numbers."""
        return {n: made(x, size, DTYPE) for n, x in self.texts.items()}

    def _seen(self, size: Size, scale: float = 1.0, **how: Any) -> Seen:
        texts: Mapping[str, torch.Tensor] = self._given(size)
        if scale > 1:
            takes = self.run.takes
            texts = {**texts, **{f"negative_{n}": x for n, x in texts.items() if f"negative_{n}" in takes}}
        return self.run.run(texts, self.run.arguments(size, scale, self.guidance_argument, self.fixed), **how)

    def _step(self) -> int:
        """The fewest pixels of which a side is a multiple: twice the VAE's scale, where its latents are packed or patched."""
        scale, reason = _attribute(self.run.pipe, SCALES, 8), ""
        steps = sorted({*(scale * k for k in (1, 2, 4, 8)), *(n for n in COMMON if n % scale == 0)})
        for step, text in ((s, t) for t in (SHORT, self.tokens) for s in steps if t):
            self.text = text
            frames = 1 + (self.frame_step or 0)
            try:
                shares = set()
                for height, width in ((5 * step, 3 * step), (7 * step, 9 * step)):
                    size = Size(1, height, width, text, frames)
                    given = self._seen(size, enough=False, steps=2).calls[0].given
                    shares.add(next(x.numel() for x in _tensors(given)) * 1e6 // (height * width))
                if len(shares) == 1:
                    return step
                reason = "its latents do not follow the size"
            except PlanError:
                raise
            except Exception as e:  # a pipeline's or a backbone's own, for a size that does not fit it
                pass_on(e)
                reason = said(e)
        if lacking := [n for n in self.run.unfilled if re.search(rf"\b{n}\b", reason)]:
            raise unfilled(self.run.cls, type(self.run.backbone).__name__, lacking, reason)
        raise _unrun(self.run.cls, reason)

    def _inputs(
        self, calls: list[dict[str, Any]], sizes: list[Size], reasons: dict[str, str]
    ) -> tuple[dict[str, Any] | None, dict[str, str]]:
        flats = [flat(c) for c in calls]
        given, nested = [f[0] for f in flats], flats[0][1]
        try:
            if len({tuple(sorted(g)) for g in given}) > 1:
                lists = {outer for _, own in flats for n, outer in own.items() if len({n in g for g in given}) > 1}
                raise Unfit(
                    f"{sorted(lists)[0]} is a list of another number of tensors at another size"
                    if lists
                    else "its inputs are not the same at all sizes"
                )
            found = {n: template(n, [g[n] for g in given], sizes, DTYPE) for n in given[0]}
            if (rows := next(iter(found.values()))["shape"][0]) != "batch":  # as of perturbed attention
                raise Unfit(f"a call without guidance has {rows} rows")
            return found, nested
        except Unfit as e:
            reasons["export"] = str(e)
            return None, nested

    def _guidance(self, size: Size) -> tuple[Seen, Any]:
        """A run without guidance, and how guidance is computed: seen from what it adds."""
        plain = self._seen(size, enough=False, steps=STEPS)
        if not self.guidance_argument:
            return plain, "none"
        guided = self._seen(size, STRONG, enough=False, steps=STEPS)
        if len(guided.calls) > len(plain.calls):
            return plain, "separate"
        rows = [len(_tensors(s.calls[0].given)[0]) for s in (plain, guided)]  # of what it denoises
        return plain, "batched" if rows[1] > rows[0] else "none"

    def _arguments(self, guidance: str) -> dict[str, str]:
        takes = self.run.takes
        names = {"height": "height", "width": "width", **dict.fromkeys(FRAMES, "frames")}
        names |= {AREA: "height * width"}
        found = {n: f for n, f in names.items() if n in takes}
        found |= {self.guidance_argument: "guidance_scale"} if self.guidance_argument else {}
        found |= {n: n for n in ("max_sequence_length",) if n in takes}
        return found | ({"negative_prompt": "negative_prompt"} if guidance != "none" and "negative_prompt" in takes else {})


def _class(name: str) -> Any:
    """diffusers', or that of ours which does what it does not."""
    return getattr(import_module(f"diffopt.models.{MENDED[name]}") if name in MENDED else diffusers, name)


def _unrun(cls: Any, reason: str) -> PlanError:
    what = f"its {cls.__name__} did not run on small random inputs (got {reason})"
    return PlanError(f"model.source: {what}; write its family in a file of a package")


def _guidance_argument(takes: Mapping[str, Parameter]) -> str | None:
    """The one of its arguments that guides as it is called by default; models distilled with guidance take another one."""
    there = [n for n in ("guidance_scale", "true_cfg_scale") if n in takes]
    return next((n for n in there if isinstance(d := takes[n].default, (int, float)) and d > 1), next(iter(there), None))


def _sizes(step: int, frame_step: int | None, text: int) -> list[Size]:
    """Sizes that tell which axis follows what. A text of another length than SHORT is one that cannot have others."""
    t, more = frame_step or 0, 8 if text == SHORT else 0
    base = Size(2, 4 * step, 6 * step, text, 1 + t)
    alone = [{"batch": 3}, {"height": 6 * step}, {"width": 10 * step}]
    alone += ([{"text": text + more}] if more else []) + ([{"frames": 1 + 3 * t}] if t else [])
    mixed = [Size(3, 10 * step, 4 * step, text + 2 * more, 1 + 3 * t), Size(1, 8 * step, 8 * step, text + more, 1 + 2 * t)]
    return [base, *(replace(base, **x) for x in alone), *mixed]


def _attribute(pipe: Any, names: tuple[str, ...], otherwise: int) -> int:
    return next((int(v) for n in names if isinstance(v := getattr(pipe, n, None), (int, float))), otherwise)


def _tensors(given: Mapping[str, Any]) -> list[torch.Tensor]:
    return [
        y for x in flat(given)[0].values() for y in (x if isinstance(x, (list, tuple)) else [x]) if isinstance(y, torch.Tensor)
    ]


def _first(backbone: Any) -> str:
    """The first argument of a backbone's call is what it denoises."""
    cls: Any = type(backbone)
    return next(n for n in signature(cls.__mro__[1].forward).parameters if n != "self")


def _timed(run: Rehearsal) -> bool:
    return any(isinstance(m, torch.nn.Conv3d) for m in run.models["vae"].modules()) if "vae" in run.models else False
