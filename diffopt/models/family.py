"""What diffopt must know about a family of models; all else is read from the model itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Json = Mapping[str, Any]
"""A component's config.json."""
Encode = Callable[["torch.Tensor"], "torch.Tensor"]
"""From pixels in -1..1 to latents (diffopt/pipeline/latents.py)."""


@dataclass(frozen=True)
class Size:
    """The extent of one backbone call: batch in rows, height and width in pixels, frames, text in tokens."""

    batch: int
    height: int
    width: int
    text: int
    frames: int = 1


def present(**named: Any) -> dict[str, Any]:
    """Those that are not None: pipelines give None for what they did not compute."""
    return {name: value for name, value in named.items() if value is not None}


def masked(states: Any, mask: Any, negative: Any, negative_mask: Any) -> dict[str, Any]:
    """Pipeline arguments of states and which of them are no padding, in the order in which an encode_prompt gives them."""
    return present(
        prompt_embeds=states,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
    )


def masked_shapes(prompts: int, model: Any, width: int) -> dict[str, tuple[int, ...]]:
    """Their shapes without guidance, of so many numbers a token."""
    tokens = prompts, model.max_sequence_length
    return {"prompt_embeds": (*tokens, width), "prompt_attention_mask": tokens}


def with_negative(texts: dict[str, Any], negative: Callable[[], Mapping[str, Any]], guided: bool) -> dict[str, Any]:
    """The texts, and with guidance those of the negative prompt, of a pipeline that is asked for them alone."""
    return {**texts, **({f"negative_{name}": x for name, x in negative().items()} if guided else {})}


def video(model: Any) -> dict[str, Any]:
    """Pipeline arguments of a video."""
    size = {"height": model.height, "width": model.width, "num_frames": model.frames}
    return {**size, "guidance_scale": model.guidance_scale}


def paired(shapes: Mapping[str, tuple[int, ...]], guided: bool) -> dict[str, tuple[int, ...]]:
    """The shapes, and with guidance those of the negative prompt, which have the same."""
    return {**shapes, **({f"negative_{name}": shape for name, shape in shapes.items()} if guided else {})}


@dataclass(frozen=True)
class Family:
    """One family. `model` in the functions below is an object with the fields of the group `model`."""

    name: str
    pipeline: str
    """diffusers' pipeline class."""
    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    """Other pipeline classes whose directories hold the same components, and are opened as `pipeline`."""
    variants: tuple[str, ...] = field(default=(), kw_only=True)
    """Other pipeline classes of the family, whose directories are opened as they say."""
    backbone_class: str
    blocks: tuple[str, ...]
    """The backbone's attributes that hold its repeated blocks."""
    keep: tuple[str, ...]
    """Globs over module names, from the backbone's top, that stay in full precision in every format."""
    size_step: int
    """Height and width are multiples of this many pixels, in every model of the family."""
    arguments: Callable[[Any], dict[str, Any]]
    """Pipeline arguments of one call, besides the texts."""
    embed: Callable[[Any, list[str], Any], "dict[str, torch.Tensor]"]
    """Pipeline arguments that stand for a batch of prompts, from a pipeline with its text encoders, prompts, model."""
    embeddings: Callable[[Json, int, Any], dict[str, tuple[int, ...]]]
    """Their shapes, from the backbone's config, the number of prompts and model: for random weights."""
    inputs: Callable[[Any, Json, Size], dict[str, Any]]
    """Example backbone inputs by name, for a backbone, its VAE's config and a size; what is no tensor is a constant of
    the graph. `nested` ones stand beside the others: see `call`."""
    backbones: tuple[str, ...] = ("transformer",)
    """The pipeline's attributes that denoise, and the sub-folders they are stored in; a source may lack the later ones."""
    decoders: tuple[str, ...] = ()
    """Models beside the VAE that make what is drawn of what a call has denoised."""
    spare: tuple[str, ...] = ()
    """Text encoders and tokenizers that the pipeline can do without; a source leaves them out by null in its index."""
    misfit: Callable[[Mapping[str, Json]], str | None] = lambda _: None
    """Why a model's parts do not go together, from their configs by name; None where they do."""
    ends: int = 0
    """So many blocks at either end of the longest of `blocks` stay in full precision too."""
    frame_step: int | None = None
    """Videos have a multiple of this many frames, plus one; None for pictures."""
    frame_rate: Callable[[Json], int] = lambda _vae: 25
    """Frames a second at which its videos are played, from the VAE's config."""
    needs: str | None = None
    """A package that its pretrained pipelines need, which `diffopt[EXTRA]` brings under the name of its first word."""
    asks: bool = False
    """Whether its pipeline asks its backbone and its VAE what they are, where it computes with neither."""
    animates: bool = False
    """Its prompts are pictures, which its videos begin with, not texts."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """The pictures that each of its prompts has (diffopt/data/pictured.py), and the pipeline's arguments that they are. They
    are given to it as they are drawn, cut to the size of the model."""
    beside: tuple[str, ...] = ()
    """Parts of the pipeline that run at each step too, as a ControlNet, but are not quantized."""
    extends: str = ""
    """The pipeline class that becomes this one by what runs `beside`, given as `model.parts`."""
    single: bool = False
    """Whether its pipeline takes one prompt a call."""
    ours: str = ""
    """The module of diffopt/models with a class of the pipeline's name that does what diffusers' own does not."""
    reads: frozenset[str] = frozenset({"guidance_scale", "negative_prompt", "max_sequence_length"})
    """Those fields of the group `model` beside the size that its pipeline takes; the others must not be set."""
    guidance: Literal["none", "batched", "separate"] = "batched"
    """Classifier-free guidance: within the model or absent, as rows of one backbone call, or as a call of its own."""
    unguided: float = 1.0
    """The largest guidance scale that does not guide: most pipelines count the prompt's own prediction as 1."""
    distilled: Callable[[Json], bool] = lambda _index: False
    """Whether a model was distilled so that its pipeline ignores guidance, from its model_index.json."""
    template: "Callable[[Any, str], int] | None" = None
    """Tokens of a prompt with the chat around it that the pipeline puts there, from its tokenizer and the prompt; None where
    it puts nothing there that counts."""
    convolutions: bool = False
    """Whether its backbone has convolutions that INT8 and FP8 quantize."""
    attention: bool = True
    """Whether modelopt can quantize its attention."""
    lora: bool = True
    """Whether diffusers has a LoRA loader for its pipeline."""
    block_cache: bool = True
    """Whether diffusers' block caches know its blocks."""
    cross_attention: bool = True
    """Whether its blocks have attention to the text alone, beside or instead of that to all tokens."""
    cached: tuple[str, ...] = ()
    """Globs over block names (diffopt/caches/policy.py): what `cache=cachify` reuses where it names no blocks."""
    cached_every: int = 2
    """At how many steps it computes them once, where it says nothing of steps."""
    cached_reuse: Literal["output", "residual"] = "output"
    """What of them it reuses: what they gave, or what they added to what they were given."""
    unbatched: tuple[str, ...] = ()
    """Backbone inputs without a batch axis."""
    nested: Mapping[str, str] = field(default_factory=dict)
    """Backbone inputs within a dict or a tuple, by the name of that argument; those of a tuple are called `NAME.0`
    and so on."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Inputs that the backbone calls otherwise, by what they are called here."""
    listed: Mapping[str, str | None] = field(default_factory=dict)
    """Inputs that the backbone takes as a list with a tensor for each row, and the mask, an input here alone, that tells what
    of a row is no padding. Its graph has one batch size."""
    several: tuple[str, ...] = ()
    """Arguments that are lists of tensors of their own shapes: the inputs NAME_0, NAME_1 and so on."""
    conditions: "Callable[[Mapping[str, torch.Tensor], torch.Tensor], dict[str, torch.Tensor]] | None" = None
    """Backbone inputs that stand for a batch of texts, from the embeddings of `embed` without the negative ones and the
    packed latents; None where its training is not known."""
    condition: "Callable[[Encode, Mapping[str, torch.Tensor], Any], torch.Tensor] | None" = None
    """What the prompts' pictures are in training, from what encodes pixels, uint8 pictures [b, c, h, w] by the pipeline's
    argument, and model: `joined` is given it."""
    joined: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]" = lambda noisy, _condition: noisy
    """The packed noisy latents with `condition`'s, as the backbone takes them. What it predicts begins with theirs."""
    pack: "Callable[[torch.Tensor], torch.Tensor]" = lambda latents: latents
    """The VAE's latents [b, channels, (frames,) h, w] as the backbone takes and predicts them."""
    noisy: str = "hidden_states"
    """The backbone input that they are."""
    clock: float = 1000.0
    """The timestep of pure noise, where noise levels are those of a rectified flow."""
    backwards: bool = False
    """Whether its time runs from 0 at pure noise to `clock`, and it predicts latents - noise instead of the reverse."""
    density: Literal["logit_normal", "uniform"] = "logit_normal"
    """How noise levels were drawn when it was trained, before the scheduler's shift."""
    largest: Callable[[Json], int | None] = lambda _: None
    """Most pixels of a side, from the backbone's config, where positions are limited."""
    coarser: Callable[[Json, Json], int | None] = lambda _backbone, _vae: None
    """The size step of one model, from its backbone's and its VAE's config, where the family's models differ."""
    timed: bool = False
    """Whether its VAE's pixels and latents have an axis of time, as videos have: [b, channels, frames, h, w]."""
    resizable: bool = False
    """Whether one graph of its backbone computes every size of pictures: nothing of it is a constant that follows from one."""
    original: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """What Model-Optimizer's example builds plans for, least and most: `batch_size` in pictures, `heights`, `widths`, `frames`
    (examples/diffusers/quantization/onnx_utils/export.py); empty where it has none for the family."""
    join: "Callable[[Sequence[torch.Tensor]], torch.Tensor] | None" = None
    """One tensor of several predictions that a backbone gives, as a graph gives them; None where it gives one."""
    part: "Callable[[torch.Tensor, Mapping[str, torch.Tensor]], tuple[torch.Tensor, ...]]" = lambda found, _inputs: (found,)
    """The inverse, from that tensor and the call's inputs."""
    unpack: Callable[[Any, "torch.Tensor", Any], "torch.Tensor"] = lambda _pipe, latents, _model: latents
    """The latents that its pipeline gives in the shape that its VAE decodes, from the pipeline, those latents, model."""

    def opened(self, named: str) -> str | None:
        """The pipeline class that opens a directory whose index names `named`; None where it is another family's."""
        if named in self.variants:
            return named
        return self.pipeline if named in (self.pipeline, *self.aliases) else None

    def guided(self, model: Any) -> bool:
        """Whether a call of the pipeline computes an unconditional prediction too."""
        return self.guidance != "none" and model.guidance_scale > self.unguided

    def rows(self, model: Any) -> int:
        """Rows of a backbone call per picture."""
        return 2 if self.guidance == "batched" and self.guided(model) else 1

    def calls(self, model: Any) -> int:
        """Backbone calls per prediction: schedulers of higher order ask for several predictions a step."""
        return 2 if self.guidance == "separate" and self.guided(model) else 1

    def call(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The backbone's keyword arguments of flat inputs, those of a list in their order."""
        found: dict[str, Any] = {}
        masks = {n: flat.get(mask) for n, mask in self.listed.items() if mask}
        for name, value in flat.items():
            if name in self.nested:
                found.setdefault(self.nested[name], {})[name] = value
            elif name in self.listed:
                mask = masks.get(name)
                rows = [x if mask is None else x[mask[i].bool()] for i, x in enumerate(value)]
                found[self.renamed.get(name, name)] = rows
            elif (many := name.rpartition("_")[0]) in self.several:
                found[many] = (*found.get(many, ()), value)
            elif name not in self.listed.values():
                found[self.renamed.get(name, name)] = value
        tuples = {outer for name, outer in self.nested.items() if _place(name, outer) is not None} & {*found}
        return found | {outer: tuple(found[outer][f"{outer}.{i}"] for i in range(len(found[outer]))) for outer in tuples}

    def flat(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse: the keyword arguments, those within dicts, tuples and lists beside the others. Lists of tensors
        of one shape are one tensor."""
        inner = {}
        for name, outer in self.nested.items():
            if arguments.get(outer):
                place = _place(name, outer)
                inner[name] = arguments[outer][name if place is None else place]
        several = {f"{n}_{i}": x for n in self.several for i, x in enumerate(arguments.get(n) or ())}
        ours, within = {theirs: name for name, theirs in self.renamed.items()}, {*self.nested.values(), *self.several}
        return {ours.get(n, n): _joined(v) for n, v in arguments.items() if n not in within} | inner | several

    def kept(self, blocks: Mapping[str, int], backbones: Sequence[str]) -> list[str]:
        """Globs over the module names of what `open_backbone` gives that stay in full precision, the end blocks included.

        `blocks` counts the blocks of the backbone. With several backbones a module's name begins with its backbone's.
        """
        longest = self.longest(blocks)
        ends = sorted({*range(self.ends), *range(max(0, blocks[longest] - self.ends), blocks[longest])}) if self.ends else []
        globs = [*self.keep, *(f"{longest}.{i}" for i in ends)]
        return [f"{b}.{g}" for b in backbones for g in globs] if len(backbones) > 1 else globs

    def longest(self, blocks: Mapping[str, int]) -> str:
        """That of its lists of blocks which has the most, the first of several."""
        return max(self.blocks, key=lambda name: blocks[name])


def prediction(out: Any) -> "torch.Tensor":
    """What a backbone gave without `return_dict`; where it gives a list with a tensor for each row, one tensor."""
    found: torch.Tensor = _joined(out[0])
    return found


def _joined(x: Any) -> Any:
    import torch

    if isinstance(x, list) and x and all(isinstance(y, torch.Tensor) and y.shape == x[0].shape for y in x):
        return torch.stack(x)
    return x


def _place(name: str, outer: str) -> int | None:
    """Of an input within a tuple; None of one within a dict."""
    place = name.removeprefix(f"{outer}.")
    return int(place) if place != name and place.isdecimal() else None
