"""A LoRA adapter: its file, how strongly it is fused, and what its header says. Imports no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open

from diffopt.errors import pass_on
from diffopt.store.source import ADAPTER, AdapterSource, Source, read_adapter
from diffopt.store.tensor_file import SUFFIX

Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors, by name."""
HALVES = ("lora_A", "lora_B")
"""Of a layer's product as peft names them: [rank, in, ...] and [out, rank, ...]."""


class Adapter(BaseModel):
    """One entry of `model.lora`; its path alone, as a text, stands for it at scale 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    path: AdapterSource
    """A .safetensors file, a directory that holds one, or `ORG/NAME[@REVISION]` of the hub."""
    weight_name: str | None = None
    """The file within the directory or the repository, where there are several."""
    scale: float = Field(default=1.0, strict=True)
    """Factor of its product, which its own alpha over rank has scaled already."""
    backbone: str | None = None
    """Of a model with several, the one that it is for; null is the first, as diffusers has it."""

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, given: Any) -> Any:
        given = {"path": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            return given
        try:
            source, name = read_adapter(given.get("path")), given.get("weight_name")
        except ValueError:  # the field says so
            return given
        if name is not None and not (isinstance(name, str) and name.endswith(SUFFIX)):
            raise ValueError(f"weight_name is not the name of a {SUFFIX} file; give one, or drop it")
        if source.local is None:
            return given | {"path": replace(source, adapter=name or ADAPTER)}
        return given | {"path": Source(str(_file(source.local, source.name, name)), adapter=ADAPTER), "weight_name": None}

    @property
    def label(self) -> str:
        """Its file's name and its scale, for people."""
        name = self.path.name.rpartition("/")[2] if self.path.local else self.path.name
        inner = f":{self.weight_name}" if self.weight_name else ""
        return f"{name}{inner} at scale {self.scale:g}" + (f" into {self.backbone}" if self.backbone else "")


def _file(found: Path, given: str, name: str | None) -> Path:
    """The adapter's file, spelled as the user has. Raises ValueError where it is not one."""
    if found.is_file():
        if name is not None:
            raise ValueError("is a file, which has no weight_name; drop that")
        if found.suffix != SUFFIX:
            raise ValueError(f"is not a {SUFFIX} file; convert it, other forms can run code when they are loaded")
        return Path(given)
    if name is not None:
        if not (found / name).is_file():
            raise ValueError(f"has no file {name}; check weight_name")
        return Path(given) / name
    files = sorted(p.name for p in found.glob(ADAPTER))
    if len(files) != 1:
        advice = f"set its weight_name, one of {', '.join(files)}" if files else "give the directory of an adapter"
        raise ValueError(f"holds {len(files)} {SUFFIX} files; {advice}")
    return Path(given) / files[0]


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a safetensors file, from its header. Raises ValueError for a file that is none, or not whole."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in [*file.keys()]}
    except (SafetensorError, OSError) as e:
        pass_on(e)
        raise ValueError(f"cannot be read as safetensors: {str(e).splitlines()[0][:120]}; download it again") from None


@dataclass(frozen=True)
class Fit:
    """How an adapter's tensors meet a model's layers."""

    layers: dict[str, list[str]]
    """By component, the layers that it changes."""
    strangers: list[str]
    """Its keys that match no layer, or lack their other half."""
    misfits: list[str]
    """A text for each layer that it names and that has other sizes."""

    def problem(self, path: str, many: int) -> str | None:
        """Why it cannot be fused, of its `many` keys; None where it can."""
        advice = "give an adapter that was trained on this model"
        if not any(self.layers.values()) and not self.misfits:
            first = f", the first {self.strangers[0]}" if self.strangers else ""
            return f"matches no layer of the model (got {path!r}: {many} keys{first}); {advice}"
        if self.misfits:
            total = len(self.misfits) + sum(map(len, self.layers.values()))
            what = f"{len(self.misfits)} of its {total} layers have other sizes, the first {self.misfits[0]}"
            return f"was trained on another architecture: {what} (got {path!r}); {advice}"
        if self.strangers:
            what = f"{len(self.strangers)} of its {many} keys match no layer of the model, the first {self.strangers[0]}"
            return f"{what} (got {path!r}); {advice}, or take them out of the file"
        return None


def fit(keys: Shapes, layers: Mapping[str, Shapes | None]) -> Fit:
    """Match keys `COMPONENT.LAYER.lora_A.weight` with the weights of layers, which are by component and name.

    A component that is None is one that the model has, but not here: what names it is not judged.
    """
    halves: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    strangers: list[str] = []
    for key, shape in keys.items():
        component, layer, half = _parts(key)
        if component in layers and layers[component] is None:
            continue
        if half is None or layer not in (layers.get(component) or {}):
            strangers.append(key)
        else:
            halves.setdefault((component, layer), {})[half] = shape
    hit: dict[str, list[str]] = {}
    misfits = []
    for (component, layer), found in halves.items():
        weight = (layers[component] or {})[layer]
        if not {*HALVES} <= set(found):
            strangers += [k for k in keys if _parts(k)[:2] == (component, layer)]
            continue
        down, up = found["lora_A"], found["lora_B"]
        if len(down) != len(weight) or len(up) != len(weight):
            misfits.append(f"{component}.{layer}: {_sides(up)} by {_sides(down)}, in the model {_sides(weight)}")
        elif (up[0], *down[1:]) != weight or up[1] != down[0]:
            misfits.append(f"{component}.{layer}: {_sides((up[0], *down[1:]))}, in the model {_sides(weight)}")
        else:
            hit.setdefault(component, []).append(layer)
    return Fit(hit, strangers, misfits)


def _parts(key: str) -> tuple[str, str, str | None]:
    """Component, layer, and which half; None for what is no half of a product."""
    component, _, rest = key.partition(".")
    layer, _, tail = rest.rpartition(".lora_")
    half, _, kind = tail.partition(".")
    if half in ("A", "B") and kind == "weight":
        return component, layer, f"lora_{half}"
    if half == "B" and kind == "bias":
        return component, layer, "bias"
    return component, rest, None


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def plain(keys: Iterable[str], components: Iterable[str]) -> bool:
    """Whether the keys are in diffusers' own layout for these components, which needs no conversion to be matched."""
    there = {*components}
    return all(_parts(k)[2] is not None and _parts(k)[0] in there for k in keys)
