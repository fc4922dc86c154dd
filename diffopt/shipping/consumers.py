"""Five programs that load such folders: what each reads, how, and why not. As their sources have it, of the versions named.

diffusers is tested here; the others were read, not run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diffopt.layouts import COMFYUI
from diffopt.shipping.ways import CHECKPOINTS, WAYS, Way

SMOOTHED = frozenset({"int8_sq", "int4_awq", "w4a8_awq", "nvfp4_svdquant"})
"""Formats that multiply an input before it is rounded: `pre_quant_scale`."""
ONE_SCALE = frozenset({"fp8", "nvfp4"})
"""Formats of which servers that fuse q, k and v keep one scale of the three."""


@dataclass(frozen=True)
class Load:
    """What is to be loaded."""

    way: Way
    formats: frozenset[str]
    """Of its quantized layers."""
    backbones: tuple[str, ...]
    backbone_class: str
    pipeline: str
    dtype: str
    share_scales: bool
    whole: bool
    """Whether the rest of the pipeline is there."""
    place: str = "DIR"
    """What stands for the folder."""
    base: str = "BASE"
    """And for the base model."""
    sharded: bool = False
    """Whether a backbone's weights are several files."""


@dataclass(frozen=True)
class Consumer:
    name: str
    version: str
    reads: Mapping[str, frozenset[str]]
    """By `export.kind` the formats; `diffusers` are plain weights, of any format."""
    code: Callable[[Load], list[str]]
    language: str = "sh"
    mixes: bool = False
    """Whether layers may have different formats."""
    fuses: bool = False
    """Whether q, k and v are one product with one scale."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """By format, the GPU."""
    assembled: bool = False
    """Whether it takes a whole pipeline alone."""
    ran: frozenset[str] = frozenset()
    """Of what it reads, what tests here load with it."""

    @property
    def there(self) -> list[str]:
        """Of what it reads, what is written here."""
        return [k for k in self.reads if k in {w.kind for w in WAYS.values()}]

    def refusal(self, load: Load) -> str | None:
        """Why it does not load this; None where it does."""
        kind = load.way.kind
        if kind not in self.reads:
            return f"it does not read this layout; it reads what {' or '.join(f'`--as {_as(k)}`' for k in self.there)} writes"
        if self.assembled and not load.whole:
            parts = " and ".join(f"`{n}/`" for n in load.backbones)
            return f"it takes a whole pipeline; put {parts} into a copy of the base model's folder, in the place of its own"
        if kind in CHECKPOINTS:
            return None
        if unread := sorted(load.formats - self.reads[kind]):
            why = ": its layers have a `pre_quant_scale`" if unread[0] in SMOOTHED and self.name != "ComfyUI" else ""
            return f"it does not read {unread[0]} in this layout{why}; it reads {', '.join(sorted(self.reads[kind]))}"
        if len(load.formats) > 1 and not self.mixes:
            return f"it reads no mix of formats, which this is: {', '.join(sorted(load.formats))}"
        if self.name == "diffusers" and kind == "huggingface" and load.sharded:
            return "its reader of this layout takes one file, and these weights are several; raise `export.max_shard_size`"
        if self.fuses and load.formats & ONE_SCALE and not load.share_scales:
            return (
                "it keeps one scale of the three of q, k and v, so it would compute with other weights than were scored; "
                "calibrate with `format.share_scales=true`"
            )
        return None

    def gpu(self, load: Load) -> str:
        return ", ".join(dict.fromkeys(self.needs[f] for f in sorted(load.formats) if f in self.needs))


def _as(kind: str) -> str:
    return next((w.name for w in WAYS.values() if w.kind == kind), kind)


def _vllm(x: Load) -> list[str]:
    return [f"vllm serve {x.place} --omni"]


def _sglang(x: Load) -> list[str]:
    if x.way.kind == "comfyui":
        file = f"{x.place}/{x.backbones[0]}.safetensors"
        return [f'sglang generate --model-path {x.base} --transformer-weights-path {file} --prompt "..."']
    whole = x.place if x.whole else x.base
    override = "" if x.way.kind == "diffusers" and x.whole else f" --transformer-path {x.place}/{x.backbones[0]}"
    return [f'sglang generate --model-path {whole}{override} --prompt "..."']


def _trtllm(x: Load) -> list[str]:
    return ["from tensorrt_llm import VisualGen", f'engine = VisualGen(model="{x.place}")']


def _comfyui(x: Load) -> list[str]:
    name = x.backbones[0]
    return [
        f"cp {x.place}/{name}.safetensors ComfyUI/models/diffusion_models/",
        "# then the node `Load Diffusion Model`; text encoders and VAE are loaded by nodes of their own",
    ]


def _diffusers(x: Load) -> list[str]:
    head = ["import torch", f"from diffusers import {x.pipeline}"]
    if x.way.kind == "modelopt":
        head = ["import torch, modelopt.torch.opt as mto, modelopt.torch.quantization", head[1]]
        head += ["mto.enable_huggingface_checkpointing()    # without it the quantizers are left out"]
    if x.way.kind == "huggingface":  # NVFP4, by diffusers' reader of such files
        name, whole = x.backbones[0], x.place if x.whole else x.base
        return [
            "import torch",
            f"from diffusers import BFLQuantizationConfig, {x.backbone_class}, {x.pipeline}",
            f"{name} = {x.backbone_class}.from_single_file(",
            f'    "{x.place}/{name}/diffusion_pytorch_model.safetensors", config="{x.place}", subfolder="{name}",',
            f"    quantization_config=BFLQuantizationConfig(), torch_dtype=torch.{x.dtype},",
            ")",
            f'pipe = {x.pipeline}.from_pretrained("{whole}", {name}={name}, torch_dtype=torch.{x.dtype})',
        ]
    if x.way.kind == "nunchaku":
        head.insert(0, "# pip install kernels; with DIFFUSERS_TRUST_REMOTE_KERNELS=true in the environment")
    if x.whole:
        return [*head, f'pipe = {x.pipeline}.from_pretrained("{x.place}", torch_dtype=torch.{x.dtype})']
    head = [line.replace("import ", f"import {x.backbone_class}, ", 1) if "diffusers import" in line else line for line in head]
    own = [f'{n} = {x.backbone_class}.from_pretrained("{x.place}/{n}", torch_dtype=torch.{x.dtype})' for n in x.backbones]
    given = ", ".join(f"{n}={n}" for n in x.backbones)
    return [
        *head,
        *own,
        f'pipe = {x.pipeline}.from_pretrained("{x.base}", {given}, torch_dtype=torch.{x.dtype})',
    ]


def _named(*formats: str) -> frozenset[str]:
    return frozenset(formats)


SERVER = {"fp8": "an NVIDIA GPU of compute capability 8.9 or more", "nvfp4": "an NVIDIA GPU of compute capability 10.0 or more"}
"""By format what their kernels take."""
ANY = frozenset[str]()
"""Weights without codes: of any format."""
PLAIN = {"diffusers": ANY}

CONSUMERS = (
    Consumer(
        "vLLM-Omni", "0.30.0", {"huggingface": _named("fp8", "nvfp4"), "svdquant": _named("nvfp4_svdquant"), **PLAIN}, _vllm,
        mixes=True, fuses=True, assembled=True, needs={**SERVER, "nvfp4_svdquant": SERVER["nvfp4"]},
    ),
    Consumer(
        "SGLang", "0.5.23", {"huggingface": _named("fp8", "nvfp4"), "comfyui": _named("fp8", "nvfp4"), **PLAIN}, _sglang,
        fuses=True, needs=SERVER,
    ),
    Consumer(
        "TensorRT-LLM", "VisualGen",
        {"huggingface": _named("fp8", "nvfp4", "int8", "int8_sq", "int4_awq", "w4a8_awq"), **PLAIN}, _trtllm,
        "python", fuses=True, assembled=True, needs=SERVER,
    ),
    Consumer("ComfyUI", "of 2026", {"comfyui": frozenset(COMFYUI)}, _comfyui, mixes=True),
    Consumer(
        "diffusers", "0.42.1",
        {"huggingface": _named("nvfp4"), "nunchaku": _named("nvfp4_svdquant"), "modelopt": ANY, **PLAIN}, _diffusers,
        "python", needs={"nvfp4_svdquant": SERVER["nvfp4"]}, ran=_named("huggingface", "modelopt", "diffusers"),
    ),
)  # fmt: skip
