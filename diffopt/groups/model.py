"""`model=`: which pipeline, at which size."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from diffopt import models
from diffopt.errors import suggestion
from diffopt.files.found import Found
from diffopt.groups.choices import Choices
from diffopt.groups.lora_file import Adapter
from diffopt.groups.quantized_source import Quantized, only_fp8, recognised
from diffopt.groups.view import View
from diffopt.models import Family
from diffopt.models.index import index_of, misnamed
from diffopt.schema import Group
from diffopt.store import assets, coded
from diffopt.store.composed import BACKBONE, INDEX, TOLD, Extension, class_of, coded_in, composed, held, stored, weights
from diffopt.store.files import json_object
from diffopt.store.source import ModelSource, Source
from diffopt.store.tensor_file import SUFFIX, tensors

Dtype = Literal["float32", "bfloat16", "float16"]
Weights = Literal["pretrained", "random"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of one value, by dtype."""

OPTIONAL = ("guidance_scale", "guidance_scale_2", "negative_prompt", "max_sequence_length", "frames")
"""Fields that only some families read."""


class Model(Group):
    readers: ClassVar[dict[str, str]] = {
        "source": "a model with pretrained weights",
        "architecture": "a model with random weights",
        "variant": "a model with pretrained weights",
        "base": "a model that is quantized already, or a backbone alone",
        "parts": "a model with pretrained weights",
        "trust": "a model with pretrained weights",
        "negative_prompt": "a model that is guided (model.guidance_scale above 1)",
    }

    family: str
    """Name of a file in diffopt/models, or of another package's family; `auto` is found out by `load`, from the source."""
    found: Found | None = None
    """What `auto` is, as `diffopt inspect` prints it: then nothing is found out, and this is taken."""
    source: ModelSource
    """A diffusers pipeline: a directory, `asset:DIR`, or `ORG/NAME[@REVISION]` of the hub. Or a backbone alone, or what is
    quantized already: a directory, or a .safetensors or .gguf file, which may have other parts too."""
    base: ModelSource | None = None
    """Of a source that is no whole pipeline: the one that has its other parts and the configs; of one that is quantized
    already the pipeline that it was made of, its reference."""
    parts: dict[str, ModelSource] = Field(default_factory=dict)
    """By name parts that stand in the place of the pipeline's own, or that it lacks, as a ControlNet: a folder, `ORG/NAME` of
    the hub, or a .safetensors or .gguf file."""
    architecture: ModelSource | None = None
    """Its configs alone, for random weights: a directory laid out as the source, without weights."""
    weights: Weights = "pretrained"
    """`random` are random weights of the architecture's size: for planning, timing and testing, never for quality."""
    variant: str | None = Field(default=None, pattern=r"^[\w-]+$")
    """Of weights that are there as *.VARIANT.*, such as fp16; null are plain ones, or the only variant that there is."""
    trust: Literal["pickle"] | None = None
    """`pickle` lets a folder of yours have weights as .bin files, of which torch's reader of weights alone takes tensors and
    nothing that could run; null refuses them. Such files are never fetched from the hub."""
    dtype: Dtype
    """What the weights are cast to when loaded."""
    lora: list[Adapter] = Field(default_factory=list)
    """LoRA adapters that are fused into the model before anything else is done with it."""
    scheduler: str | None = None
    """A diffusers scheduler class instead of the source's own; it takes over the source's settings."""
    height: int = Field(ge=8)
    """Pixels."""
    width: int = Field(ge=8)
    """Pixels."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a video."""
    guidance_scale: float = Field(default=0.0, ge=0)
    guidance_scale_2: float | None = Field(default=None, ge=0)
    """Guidance of a second backbone, for low noise; null takes `guidance_scale`."""
    negative_prompt: str = ""
    """What guidance steers away from."""
    max_sequence_length: int | None = Field(default=None, ge=1)
    """Tokens that the long text encoder is padded to."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """What becomes of a prompt with more tokens than the text encoder takes."""
    _calibrates: bool = PrivateAttr(default=False)
    """Whether another group asks for a model in numbers: then a backbone that is stored in FP8 is not taken as it is."""

    @cached_property
    def origin(self) -> Source:
        """Where the pipeline's files come from: the source with its parts, or the base with these and with the source, unless
        that is quantized already, or the architecture for random weights."""
        if self.weights == "random":
            return self.architecture or self.base or self.source
        own: list[tuple[str | None, Source]] = [(n, replace(s, part=n)) for n, s in self.parts.items()]
        if self.base and self.quantized is None:
            own = [(None, self.source), *own]
        return replace(self.base or self.source, own=tuple(own), extension=_extension(self))

    @property
    def fetched(self) -> Source:
        """`origin`, of the hub with the variant that is wanted of it."""
        variant = self.variant if self.weights == "pretrained" else None
        return self.origin if self.origin.local else replace(self.origin, variant=variant)

    @cached_property
    def quantized(self) -> Quantized | None:
        """What the source is, where it is quantized already and taken as it is. Raises ValueError where it is and cannot be
        read."""
        local = self.source.local if self.weights == "pretrained" else None
        try:
            if local and self._calibrates and only_fp8(local):
                return None
            return recognised(local, _family_of(self)) if local else None
        except ValueError as e:
            raise _where("source", self.source, e) from None

    def told(self, found: Found) -> Self:
        """The same with what `auto` is found to be. Raises ValidationError for what that cannot."""
        given = {n: getattr(self, n) for n in type(self).model_fields} | {"found": found}
        return self.model_validate(given, context={"calibrates": self._calibrates})

    @property
    def own(self) -> str | None:
        """For people, what the source has, where the rest is another pipeline's."""
        if self.base is None or self.quantized or not (path := self.source.local):
            return None
        there = weights(path)
        what = held(there) if path.is_file() else f"{BACKBONE} alone in {stored(there)}"
        return f"{self.source.name} is a {what}; what it lacks is {self.base.name}'s"

    @property
    def dequantized(self) -> Iterator[str]:
        """For people, which of its weights are there as codes, and become numbers."""
        if self.weights == "random":
            return
        own: list[tuple[str, Path | None]] = [(f"{s.name} as {n}", s.local) for n, s in self.parts.items()]
        if self.base and not self.quantized:
            own.append((self.source.name, self.source.local))
        elif not self.quantized and (whole := self.source.directory):
            folders = sorted(p.parent for p in whole.glob("*/config.json") if p.parent.name not in self.parts)
            own += [(f"{p.name} of {self.source.name}", p) for p in folders if _in_codes(p)]
        for name, path in own:
            if path and (codes := coded_in(weights(path))):
                yield f"{name} is stored in {codes}: dequantized to {self.dtype}"

    @model_validator(mode="before")
    @classmethod
    def _drawn_of_its_configs(cls, given: Any) -> Any:
        """Of a pipeline that is found, random weights are drawn for its folder's configs, by whichever name that is given."""
        if not isinstance(given, Mapping) or (given.get("family"), given.get("weights")) != (models.AUTO.name, "random"):
            return given
        source, architecture = (None if given.get(n) == "???" else given.get(n) for n in ("source", "architecture"))
        if architecture and not source:
            return {**given, "source": architecture}
        if source and not architecture and assets.locate(str(source)).is_dir():
            return {**given, "architecture": source}
        return given

    @model_validator(mode="after")
    def _holds_the_family(self, info: ValidationInfo) -> Self:
        self._calibrates = bool(info.context and info.context.get("calibrates"))
        if self.family != models.AUTO.name:
            if self.family not in models.names():
                raise ValueError(f"family: no such family (got {self.family!r}); {suggestion(self.family, models.names())}")
            if self.found:
                raise ValueError(
                    f"found: says what model.family=auto is (got family {self.family}); set model.family=auto, or drop it"
                )
        if self.weights == "random" and self.architecture is None:
            raise ValueError(
                f"weights: this model has no architecture to draw them for (got {self.weights}); set model.architecture"
            )
        _check_base(self)
        _check_own(self)
        family = models.of(self)
        if directory := self.origin.directory:
            _check_index(directory, self.origin, self, "base" if self.base else "source")
        step = family.size_step
        for name, value in {"height": self.height, "width": self.width}.items():
            if value % step:
                raise ValueError(f"{name}: is not a multiple of {step} pixels (got {value}); round it")
        if family.frame_step and (self.frames is None or (self.frames - 1) % family.frame_step):
            raise ValueError(f"frames: is not a multiple of {family.frame_step} plus one (got {self.frames}); round it")
        takes = _taken(family)
        for name in OPTIONAL:
            if name not in takes and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {self.family} does not read it (got {getattr(self, name)!r}); drop it")
        if "max_sequence_length" in takes and self.max_sequence_length is None and self.family != models.AUTO.name:
            raise ValueError("max_sequence_length: is not set (got None); give the tokens that the text encoder is padded to")
        for i, adapter in enumerate(self.lora):
            if any(_target(adapter) == _target(other) for other in self.lora[:i]):
                raise ValueError(f"lora: names one twice (got {adapter.path.name!r}); name it once, with its whole scale")
        if self.scheduler is not None and self.scheduler not in (there := _schedulers()):
            raise ValueError(
                f"scheduler: diffusers has no such class (got {self.scheduler!r}); {suggestion(self.scheduler, there)}"
            )
        return self


def _in_codes(folder: Path) -> bool:
    """Whether a part's weights are codes; what is broken is said where it is opened."""
    with suppress(ValueError):
        return coded.own(sorted(folder.glob(f"*{SUFFIX}")))
    return False


def _extension(model: Model) -> Extension | None:
    """What its pipeline becomes by its parts, where it is not known yet whether it is that already."""
    if model.family == models.AUTO.name:
        return None
    family = models.family(model.family)
    added = {*family.beside} & {*model.parts}
    return Extension(family.extends, family.pipeline, family.beside) if family.extends and added else None


def _family_of(model: Model) -> Family:
    """Its family, as far as what it was made of tells; `of` asks for its origin, which asks what it is."""
    if model.family != models.AUTO.name or model.found:
        return models.of(model)
    return models.unknown((model.base or model.source).directory)


def _taken(family: Family) -> set[str]:
    """Those of OPTIONAL that a family reads; all of them while it is not known."""
    if family.name == models.AUTO.name:
        return {*OPTIONAL}
    return {*family.reads, *(["frames"] if family.frame_step else [])}


def _target(adapter: Adapter) -> tuple[Source, str | None]:
    """What must not be fused twice."""
    return adapter.path, adapter.backbone


def _check_base(model: Model) -> None:
    """Whether the source is quantized already, and what it was made of is named then."""
    source, found = model.source, model.quantized
    if found and model.base is None:
        raise ValueError(
            f"base: the source is quantized already ({found.about}), and what it was made of is not named (got None); set "
            "model.base to the full-precision pipeline, which is its reference and has its other parts"
        )
    if found:
        return
    whole = source.directory is not None and (source.directory / INDEX).is_file()
    if model.base is not None and (source.local is None or whole):
        what = "is on the hub, and is read when it is here" if source.local is None else "is a whole pipeline, not quantized"
        advice = "download it, and give its directory" if source.local is None else "drop model.base"
        raise ValueError(
            f"base: is for a source that is quantized already or a backbone alone, and this {what} "
            f"(got {source.name!r}); {advice}"
        )
    if model.base is None and source.local and not whole:
        _check_alone(source, source.local)


def _check_alone(source: Source, path: Path) -> None:
    """Raises ValueError for a backbone alone, or what is none, of which no base is named."""
    try:
        there = tensors(path) if path.is_file() else {}
        what = held(there) if there else class_of(path)
    except ValueError as e:
        raise _where("source", source, e) from None
    lacks = [n for n, prefixes in TOLD.items() if n != BACKBONE and not any(k.startswith(prefixes) for k in there)]
    raise ValueError(
        f"base: the source is a {what}, without {', '.join([*lacks, 'configs'])} and tokenizers (got {source.name!r}); "
        "set model.base to a pipeline that has them"
    )


def _check_own(model: Model) -> None:
    """Whether what stands in the place of the pipeline's parts, or beside them, can."""
    base = replace(model.origin, own=()).directory
    for part, source in model.origin.own if base else ():
        assert base is not None
        try:
            if path := source.local:  # of what is on the hub it is known when it is here
                composed(base, ((part, path),), model.origin.extension)
        except ValueError as e:
            raise _where(f"parts.{part}" if part else "source", source, e) from None


def _where(field: str, source: Source, error: ValueError) -> ValueError:
    what, _, advice = str(error).partition("; ")
    return ValueError(f"{field}: {what} (got {source.name!r}); {advice}")


def _check_index(directory: Path, source: Source, model: Model, where: str) -> None:
    index = directory / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{where}: holds no model_index.json, so it is no diffusers pipeline (got {source.name!r}); "
            "give the directory that save_pretrained wrote"
        )
    try:
        names = json_object(index)
        found = names["_class_name"]
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"{where}: model_index.json names no pipeline class (got {source.name!r}); download it again"
        ) from None
    if (odd := misnamed(directory, names)) is not None:
        raise ValueError(
            f"{where}: model_index.json names no library and class of its {odd} (got {source.name!r}); download it again"
        )
    if model.family == models.AUTO.name:
        try:
            index_of(directory)
        except ValueError as e:
            raise _where(where, source, e) from None
    kind = models.of(model)
    if kind.opened(found) is None:
        raise ValueError(
            f"{where}: holds a {found}, but family {model.family} loads a {kind.pipeline} (got {source.name!r}); "
            "choose another model=OPTION, or set model.family"
        )
    if kind.guided(model) and kind.distilled(names):
        raise ValueError(
            f"guidance_scale: this model is distilled, and its pipeline ignores guidance (got {model.guidance_scale}); "
            f"set model.guidance_scale={kind.unguided}"
        )


def _schedulers() -> list[str]:
    """Names of diffusers' PyTorch schedulers, without importing it, which takes seconds."""
    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "schedulers" / "__init__.py").read_text()
    return sorted({w for w in text.split('"') if w.isidentifier() and w.endswith("Scheduler")})


class ReadView(View):
    """A view of the group `model`: of the fields that only some families read, the chosen one's."""

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        assert choices.model is not None
        family = models.of(choices.model)
        idle = set(OPTIONAL) - _taken(family)
        if not family.guided(choices.model):
            idle |= {"negative_prompt"}
        return cls.fields_read() - idle


class GuidedView(ReadView):
    """One to which only matters whether there is guidance, not how strong it is: a scale of 2 stands for all that steer."""

    @classmethod
    def split(cls, group: Group, choices: Choices) -> list[Self]:
        assert isinstance(group, Model)
        steered = {"guidance_scale": 2.0 if models.of(group).guided(group) else 0.0}
        return [cls(**{name: getattr(group, name) for name in cls.model_fields} | steered)]


class CallView(ReadView, of=Model):
    """What a pipeline is called with, texts included."""

    height: int
    width: int
    frames: int | None
    guidance_scale: float
    guidance_scale_2: float | None = None
    negative_prompt: str
    max_sequence_length: int | None
    long_prompts: Literal["refuse", "cut"]


class TextView(GuidedView, of=Model):
    """What the embeddings of a prompt depend on: a text's on guidance and lengths, a picture's on the size."""

    guidance_scale: float
    negative_prompt: str
    max_sequence_length: int | None
    long_prompts: Literal["refuse", "cut"]
    height: int
    width: int

    @classmethod
    def used(cls, choices: Choices) -> frozenset[str]:
        assert choices.model is not None
        size = frozenset({"height", "width"})
        if models.of(choices.model).animates:
            return size
        return super().used(choices) - (frozenset() if _pictured(choices) else size)


def _pictured(choices: Choices) -> bool:
    """Whether any of the prompts have pictures, which are cut to the size."""
    sets = [g.prompts for g in (choices.calib, choices.eval) if g]
    sets += [choices.train.data.prompts] if choices.train and choices.train.data.prompts else []
    return any(s.pictures for s in sets)
