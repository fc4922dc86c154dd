"""A pipeline run without its weights, to see what it passes to its backbone and what it makes of the prediction."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from diffopt.caches.loop import unwatch, watch
from diffopt.errors import PlanError
from diffopt.finding import structure
from diffopt.finding.hollow import hollow
from diffopt.finding.pictures import ARGUMENTS, CONTROL, random, taken
from diffopt.finding.recorded import SEVERAL
from diffopt.models.family import Size
from diffopt.models.pipelines import GUIDER, part_class
from diffopt.models.prompt_encoding import encoded
from diffopt.pipeline.open import default_dtype

DTYPE = torch.bfloat16
"""Of the rehearsal: what has it is of the model's dtype, what is in FP32 always is."""
FRAMES = ("num_frames", "frames", "video_length")
"""How pipelines call the frames of a video."""
AREA = "max_area"
"""How FLUX.1 Kontext's calls the pixels that it draws, which are no more than those by default."""
STATISTICS = ("latents_mean", "latents_std")
"""Tables of a VAE that pipelines compute with by themselves."""
PROMPT = "a red apple on a table"


class Enough(Exception):
    """The first backbone call is all that was wanted."""


@dataclass
class Call:
    backbone: str
    given: dict[str, Any]
    """Its arguments by name."""
    out: Any = None


@dataclass
class Seen:
    """What one run of a pipeline did."""

    calls: list[Call] = field(default_factory=list)
    """Of backbones."""
    steps: list[tuple[Any, Any]] = field(default_factory=list)
    """Of the scheduler: the prediction and the latents that it was given."""


class Rehearsal:
    """Of the pipeline in a directory."""

    def __init__(self, directory: Path, cls: Any, backbones: tuple[str, ...], classes: Mapping[str, tuple[str, str]]):
        self.directory, self.cls, self.backbones = directory, cls, backbones
        self.classes = classes
        """Library and class of each part that the pipeline has."""
        self.seen, self.enough = Seen(), False
        self.reached: set[str] = set()
        """Layers of backbones that some call came to."""
        self.filled: set[str] = set()
        """Inputs of backbones that some call gave a value."""
        self.takes = signature(cls.__call__).parameters
        self.pictures = taken(cls, classes)
        self.models = {n: self._hollow(n, n in backbones) for n in classes if (directory / n).is_dir() and self._is_model(n)}
        gone = [n for n in classes if not (directory / n).is_dir()]  # optional ones, that a pipeline does without
        self.pipe = self._open(dict.fromkeys(gone) | self.models)

    @property
    def beside(self) -> tuple[str, ...]:
        """Parts that run at each step too."""
        return (CONTROL,) if CONTROL in self.models else ()

    @property
    def backbone(self) -> Any:
        return self.models[self.backbones[0]]

    @property
    def unfilled(self) -> list[str]:
        """Inputs of the backbone that no call gave, or gave as None; those for a ControlNet and further settings left out."""
        return [n for n, p in inputs_of(self.backbone).items() if n not in self.filled and _is_tensor(p)]

    def texts(
        self, names: tuple[str | None, ...], rows: int, tokens: int | None, guided: bool = False
    ) -> dict[str, torch.Tensor]:
        """Embeddings of as many equal prompts, by the text encoders without their weights, in random numbers."""
        model = SimpleNamespace(max_sequence_length=tokens, negative_prompt="")
        with torch.no_grad():
            return encoded(self.pipe, [PROMPT] * rows, names, guided, model)

    def run(self, texts: Mapping[str, torch.Tensor], arguments: Mapping[str, Any], steps: int = 2, enough: bool = True) -> Seen:
        """A run on embeddings, without text encoders; `enough` ends it at the first backbone call. Raises what it raises."""
        self.seen, self.enough = Seen(), enough
        pipe = self._silent
        takes_none = {"negative_prompt": None} if "negative_prompt" in self.takes else {}
        rows = len(next(iter(texts.values())))
        generator = [torch.Generator().manual_seed(i) for i in range(rows)]
        with suppress(Enough), torch.no_grad(), self._watched(pipe):
            pipe(
                **texts,
                **takes_none,
                **arguments,
                num_inference_steps=steps,
                output_type="latent",
                generator=generator,
            )
        return self.seen

    @property
    def _silent(self) -> Any:
        """The pipeline without its text encoders and tokenizers, as calibration opens it."""
        if not hasattr(self, "_without"):
            kept = (*self.backbones, *self.beside, "scheduler", "vae", GUIDER)
            own = {n: m for n, m in self.models.items() if n in kept}
            self._without = self._open({**dict.fromkeys(n for n in self.classes if n not in kept), **own})
        return self._without

    @contextmanager
    def _watched(self, pipe: Any) -> Iterator[None]:
        scheduler = pipe.scheduler
        step = scheduler.step

        def stepped(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.steps.append((model_output, sample))
            return step(model_output, timestep, sample, *args, **kwargs)

        watch(scheduler, step=stepped)
        try:
            yield
        finally:
            unwatch(scheduler)

    def _is_model(self, name: str) -> bool:
        library, kind = self.classes[name]
        cls = getattr(transformers, kind, None) if library == "transformers" else part_class(library, kind)
        return isinstance(cls, type) and issubclass(cls, torch.nn.Module)

    def _hollow(self, name: str, denoises: bool) -> torch.nn.Module:
        library, kind = self.classes[name]
        folder = self.directory / name

        def make() -> torch.nn.Module:
            with default_dtype(DTYPE):
                if library == "transformers":
                    cls: Any = getattr(transformers, kind)
                    found: torch.nn.Module = cls(cls.config_class.from_pretrained(folder)).to(DTYPE)
                else:
                    cls = part_class(library, kind)
                    found = cls.from_config(json.loads((folder / "config.json").read_text()))
            if denoises:
                self._listen(found)
            return found.eval()

        def watch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], None]:
            takes = inputs_of(self.models[name])
            call = Call(name, dict(zip(takes, args, strict=False)) | kwargs)
            if lacking := [n for n, p in takes.items() if p.default is Parameter.empty and n not in call.given]:
                raise unfilled(self.cls, kind, lacking)
            self.filled |= {n for n, value in call.given.items() if value is not None}
            self.seen.calls.append(call)
            if self.enough:
                raise Enough
            return lambda out: setattr(call, "out", out)

        if name == "vae" and self.pictures:  # it encodes them, which is no call of its forward
            return make()
        with torch.device("meta"):
            empty = make()
        for table in ({*STATISTICS} & {*empty._buffers}) - ({*empty._buffers} if denoises else set()):
            empty._buffers[table] = torch.ones(empty._buffers[table].shape, dtype=DTYPE)  # type: ignore[union-attr]
        return hollow(empty, make, watch if denoises else None)

    def _listen(self, backbone: torch.nn.Module) -> None:
        """Have every product of it say when it is called."""
        for name, module in backbone.named_modules():
            if isinstance(module, structure.Products):
                module.register_forward_hook(lambda *_, name=name: self.reached.add(name))

    def _open(self, own: Mapping[str, Any]) -> Any:
        try:
            pipe = self.cls.from_pretrained(self.directory, dtype=DTYPE, **own)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as e:
            raise PlanError(
                f"model.source: its {self.cls.__name__} cannot be opened (got {said(e)}); download it again"
            ) from None
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, size: Size, scale: float, guidance: str | None, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Of a call at a size, in pixels, with such guidance."""
        given: dict[str, Any] = {"height": size.height, "width": size.width, **dict.fromkeys(FRAMES, size.frames)}
        given |= {AREA: size.height * size.width}
        found = {n: v for n, v in given.items() if n in self.takes} | random(self.pictures, size)
        return found | ({guidance: scale} if guidance else {}) | dict(fixed)


def inputs_of(backbone: Any) -> dict[str, Parameter]:
    """The arguments of its call, without those that have no name."""
    own = list(signature(type(backbone).forward).parameters.values())[1:]
    return {p.name: p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _is_tensor(p: Parameter) -> bool:
    """By its annotation: a switch or a dict of settings is none, and a ControlNet's states are lists or its middle block's."""
    return "Tensor" in str(p.annotation) and p.name not in SEVERAL and not p.name.startswith("mid_block_")


def unfilled(cls: Any, backbone: str, names: Sequence[str], reason: str = "") -> PlanError:
    """Of inputs that a backbone cannot do without, and a pipeline has no place for."""
    got = f", and says {reason}" if reason else ""
    return PlanError(
        f"model.source: its backbone needs {' and '.join(names)}, which its pipeline never fills "
        f"(got a {backbone} in a {cls.__name__}{got}); give the pipeline that the backbone was trained in"
    )


def said(error: BaseException) -> str:
    """The first line of it."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def needed(cls: Any) -> list[str]:
    """Arguments that a call must have, besides a text and its pictures."""
    own = list(signature(cls.__call__).parameters.values())[1:]
    return [
        p.name
        for p in own
        if p.default is Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("prompt", *ARGUMENTS)
    ]
