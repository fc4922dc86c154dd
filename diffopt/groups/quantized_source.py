"""A model that is quantized already: where its backbones are, in which layout, and what their headers say. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffopt.files.json_file import loaded
from diffopt.models.family import Family
from diffopt.store import coded
from diffopt.store.composed import WITHIN
from diffopt.store.tensor_file import GGUF, SUFFIX, Tensor, json_object, metadata, tensors

Layout = Literal["huggingface", "comfyui", "native", "svdquant", "nunchaku"]
ALGORITHMS = {
    "FP8": "fp8", "NVFP4": "nvfp4", "NVFP4_SVD": "nvfp4_svdquant", "MXFP8": "mxfp8", "W8A8_SQ_PER_CHANNEL": "int8",
    "W4A16_AWQ": "int4_awq", "W4A8_AWQ": "w4a8_awq", "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
}  # fmt: skip
"""What Model-Optimizer calls the formats, those that are read; INT8 that smooths its inputs is int8_sq."""
CODES = ("U8", "I8")
"""Of four bits, INT8, and the scales of MXFP8."""
MIXED = "MIXED_PRECISION"
MARKS = {"float8_e4m3fn": "fp8", "nvfp4": "nvfp4", "mxfp8": "mxfp8", "int8_tensorwise": "int8"}
"""What ComfyUI calls them."""
KINDS = {"fp8": ["fp8"], "int8": ["int8"], "int4": ["int4_awq"], "nvfp4": ["nvfp4"], "mxfp8": ["mxfp8"], "fp8_attention": []}
"""Formats of a kind of kernel, where its tensors say no more."""
SMOOTHING, LOW_RANK = "pre_quant_scale", "svdquant_lora_a"


@dataclass(frozen=True)
class Quantized:
    """What a source is found to be."""

    layout: Layout
    backbones: Mapping[str, Path]
    """By name in the pipeline: a folder, or a file."""
    formats: tuple[str, ...]
    """Of its layers, sorted."""
    attention: bool = False
    """Whether the products of attention are in FP8 too."""
    source: str | None = None
    """The digest of the model that it was made of, where it says so."""
    share_scales: bool = False

    @property
    def name(self) -> str:
        """Of its format: that of its layers, or `auto` for a mix."""
        return self.formats[0] if len(self.formats) == 1 else "auto"

    @property
    def about(self) -> str:
        """For people."""
        attention = ", and FP8 attention" if self.attention else ""
        return f"{' and '.join(self.formats)} in the layout {self.layout}{attention}"


def recognised(path: Path, family: Family) -> Quantized | None:
    """What a local file or directory is; None for one that is not quantized.

    Raises ValueError, `what; advice`, for one that is and cannot be read.
    """
    try:
        return _recognised(path, family)
    except (TypeError, LookupError, AttributeError) as e:  # a value of another type than its writer has there
        raise ValueError(f"its config has what cannot be ({type(e).__name__}: {e}); download it again") from e


def _recognised(path: Path, family: Family) -> Quantized | None:
    if path.is_file():
        return None if path.suffix == GGUF else _single({family.backbones[0]: path}, None)
    if (path / "native.json").is_file():
        return _native(path, json_object(path / "native.json"), family)
    head = json_object(path / "deploy.json") if (path / "deploy.json").is_file() else None
    if head and head.get("layout") == "comfyui":
        return _single({n: path / f"{n}{SUFFIX}" for n in _names(head, family)}, head)
    folders = {n: path / n for n in family.backbones if (path / n / "config.json").is_file()} or {family.backbones[0]: path}
    configs = {n: json_object(p / "config.json") for n, p in folders.items() if (p / "config.json").is_file()}
    described = {n: c["quantization_config"] for n, c in configs.items() if c.get("quantization_config")}
    if not described:
        return None
    if plain := sorted({*configs} - {*described}):
        raise ValueError(
            f"has {plain[0]} in full precision beside {min(described)}, which is quantized; give one that is whole"
        )
    return _folders(folders, described, head)


def only_fp8(path: Path) -> bool:
    """Whether it is a file of a backbone in which FP8 is all that is quantized, so that it can be made numbers of."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    there = tensors(path)
    own = {n: x for n, x in there.items() if n.startswith(WITHIN)} or there
    return coded.in_fp8(own) and not any(x.dtype in CODES for n, x in own.items() if not n.endswith(".comfy_quant"))


def _folders(folders: Mapping[str, Path], described: Mapping[str, Any], head: Mapping[str, Any] | None) -> Quantized:
    """In Model-Optimizer's layout."""
    methods = {config.get("quant_method") for config in described.values() if isinstance(config, dict)}
    source = head.get("source") if head else None
    if methods in ({"svdquant"}, {"nunchaku_lite"}):
        for name, config in described.items():
            about = config.get("svdq_w4a4") if "nunchaku_lite" in methods else config
            precision = about.get("precision") if isinstance(about, dict) else about
            if precision != "nvfp4" or config.get("awq_w4a16"):
                raise ValueError(f"{name} is SVDQuant in {precision or 'W4A16'}, which is not read; give one in nvfp4")
            tensors(folders[name])
        shared = bool(head and head.get("share_scales"))
        layout: Layout = "svdquant" if "svdquant" in methods else "nunchaku"
        return Quantized(layout, folders, ("nvfp4_svdquant",), False, source, shared)
    found: set[str] = set()
    for name, config in described.items():
        if not isinstance(config, dict) or (method := config.get("quant_method")) not in ("modelopt", "modelopt_fp4"):
            method = config.get("quant_method") if isinstance(config, dict) else config
            raise ValueError(
                f"{name} is quantized by {method}, which is not read here; give one that Model-Optimizer's layout has"
            )
        formats, keys = {*formats_of(config).values()}, tensors(folders[name])
        if "int8" in formats and any(key.endswith(SMOOTHING) for key in keys):
            formats = formats - {"int8"} | {"int8_sq"}
        found |= formats
    return Quantized("huggingface", folders, tuple(sorted(found)), False, source, bool(head and head.get("share_scales")))


def formats_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Of a `quantization_config`: by layer its format, that of all under an empty name. Raises ValueError as `recognised`."""
    algorithm = config.get("quant_algo")
    if algorithm == MIXED:
        layers = config.get("quantized_layers")
        if not isinstance(layers, dict) or not layers:
            raise ValueError(f"its config says {MIXED} and names no quantized_layers; download its config.json again")
        named = {n: x.get("quant_algo") if isinstance(x, dict) else x for n, x in layers.items()}
    else:
        named = {"": algorithm}
    for name in (n for n, x in named.items() if x not in ALGORITHMS):
        of = f" of {name}" if name else ""
        raise ValueError(
            f"its config has the quant_algo {named[name]}{of}, which is not read; it reads {', '.join(ALGORITHMS)}"
        )
    return {n: ALGORITHMS[str(x)] for n, x in named.items()}


def _single(files: Mapping[str, Path], head: Mapping[str, Any] | None) -> Quantized | None:
    """Files of a backbone each: ComfyUI's, or Black Forest Labs'."""
    found: set[str] = set()
    for name, path in files.items():
        if path.suffix != SUFFIX:
            raise ValueError(f"{path.name} is not a {SUFFIX} file; convert it, other forms can run code when they are loaded")
        if not path.is_file():
            raise ValueError(f"has no {path.name}, the {name} that its deploy.json names; copy it whole")
        there = tensors(path)
        own = {n: x for n, x in there.items() if n.startswith(WITHIN)}  # a text encoder beside it may be in FP8
        found |= {*layers_of(own or there, metadata(path)).values()}
    if not found:
        return None
    source = head.get("source") if head else None
    return Quantized("comfyui", files, tuple(sorted(found)), False, source, share_scales=True)


def layers_of(there: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, str]:
    """By name in a single file, the format of each quantized layer: by its mark, else by what its tensors are.

    Raises ValueError like `recognised`.
    """
    marks = {n.removesuffix(".comfy_quant"): _mark(n, x.text()) for n, x in there.items() if n.endswith(".comfy_quant")}
    if listed := about.get("_quantization_metadata"):
        try:
            marks |= {n: x["format"] for n, x in loaded(listed)["layers"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("its _quantization_metadata is broken; download it again") from None
    for name, mark in marks.items():
        if mark not in MARKS:
            raise ValueError(f"{name} is marked {mark}, which is not read; it reads {', '.join(MARKS)}")
    found = {name: MARKS[mark] for name, mark in marks.items()}
    for key in (k for k in there if k.endswith(".weight")):
        layer = key.removesuffix(".weight")
        if layer not in found and (kind := _kind(layer, there)):
            found[layer] = kind
    return found


def _mark(name: str, text: str) -> Any:
    try:
        return loaded(text)["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name} is no JSON that has a format; download it again") from None


def _kind(layer: str, there: Mapping[str, Tensor]) -> str | None:
    """Of a layer without a mark, by its tensors."""
    dtype = there[f"{layer}.weight"].dtype
    scale = there.get(f"{layer}.weight_scale") or there.get(f"{layer}.scale_weight")
    if dtype == "F8_E4M3":
        return "mxfp8" if scale and scale.dtype in ("U8", "F8_E8M0") else "fp8"
    if dtype == "U8" and f"{layer}.weight_scale_2" in there:
        return "nvfp4"
    if dtype == "I8" and scale:
        return "int8"
    if dtype == "F8_E5M2":
        raise ValueError(
            f"{layer}.weight is in FP8 with five bits of exponent, which no format has; choose one, and it is dequantized"
        )
    if dtype in CODES:
        raise ValueError(f"{layer}.weight is in {dtype} with nothing that says in which format; it is not read")
    return None


def _native(path: Path, head: Mapping[str, Any], family: Family) -> Quantized:
    names = _names(head, family)
    folders = {n: path / n if len(names) > 1 else path for n in names}
    kinds = {*_of(head, "layers").values()}
    if strange := kinds - {*KINDS}:
        raise ValueError(f"its native.json has the kind {min(map(str, strange))}, which is not read; update diffopt")
    found = {f for k in kinds for f in KINDS[k]}
    keys = [key for folder in folders.values() for key in tensors(folder)]
    if any(k.endswith(".low_rank_a") for k in keys):
        found = found - {"nvfp4"} | {"nvfp4_svdquant"}
    if "int8" in found and any(k.endswith(".smoothing") for k in keys):
        found = found - {"int8"} | {"int8_sq"}
    if not found:
        raise ValueError("its native.json names no layer with a kernel; pack the model again")
    source = head.get("source")
    return Quantized("native", folders, tuple(sorted(found)), "fp8_attention" in kinds, source if source else None)


def _of(head: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = head.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"its native.json has no {key}; pack the model again")
    return found


def _names(head: Mapping[str, Any], family: Family) -> list[str]:
    names = head.get("backbones")
    if not isinstance(names, list) or not names or not {*names} <= {*family.backbones}:
        raise ValueError(f"is of backbones that a {family.name} has not: {names}; choose another model=OPTION")
    return names
