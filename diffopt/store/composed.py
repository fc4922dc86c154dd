"""A pipeline some of whose parts come from elsewhere: a directory of links to its files, and to those in their place.

What is wrong is a ValueError, `what; advice`.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffopt.store import coded
from diffopt.store.files import json_object
from diffopt.store.tensor_file import GGUF, SUFFIX, Tensor, tensors

INDEX = "model_index.json"
ORIGINAL = "original"
"""What a file that has a part under its makers' names is linked as, in the part's folder."""
BACKBONES = ("transformer", "unet", "prior")
"""What pipelines call the part that a lone file is taken for."""
FILES = (SUFFIX, GGUF)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WITHIN = "model.diffusion_model."
"""Before every name of a backbone in a file that has other parts too, and in some that have none."""
PARTS = {
    "first_stage_model.": ("vae", "", 0),
    "vae.": ("vae", "", 0),
    "cond_stage_model.": ("text_encoder", "CLIP", 0),
    "conditioner.embedders.0.": ("text_encoder", "CLIP", 0),
    "conditioner.embedders.1.": ("text_encoder", "CLIP", 1),
    "text_encoders.clip_l.": ("text_encoder", "CLIP", 0),
    "text_encoders.clip_g.": ("text_encoder", "CLIP", 1),
    "text_encoders.t5xxl.": ("text_encoder", "T5", 0),
}
"""By what stands before a part's names in a file of several: what the part's name begins with, its class, and which of those it
is. As diffusers' `CHECKPOINT_KEY_NAMES` and ComfyUI's `comfy/supported_models.py` have them."""

BACKBONE = "backbone"
TOLD = {
    BACKBONE: (WITHIN,),
    "text encoders": tuple(p for p, (n, _, _) in PARTS.items() if n.startswith("text")),
    "VAE": tuple(p for p, (n, _, _) in PARTS.items() if n == "vae"),
}
"""For people, the kinds of parts that a file may have, and what stands before their names."""
STORED = {"F32": "FP32", "F16": "FP16", "BF16": "BF16", "F8_E4M3": "FP8", "F8_E5M2": "FP8 (E5M2)"}

OTHERS = ("I64", "I32", "BOOL")
"""Of tables, which are no weights."""

Own = tuple[tuple[str | None, Path], ...]
"""By part, or by None where the file or folder tells, what stands in its place."""


@dataclass(frozen=True)
class Extension:
    """A pipeline that another one becomes by parts that it lacks."""

    of: str
    """The class of the other."""
    into: str
    """Its own."""
    parts: tuple[str, ...]


def composed(base: Path, own: Own, extension: Extension | None = None) -> Path:
    """The directory of links, which goes when the process ends; the same one for the same files."""
    stamps = tuple(p.stat().st_mtime_ns for p in (base / INDEX, *(path for _, path in own)) if p.exists())
    return _composed(base.resolve(), tuple((n, p.resolve()) for n, p in own), extension, stamps)


@cache
def _composed(base: Path, own: Own, extension: Extension | None, _stamps: tuple[int, ...]) -> Path:
    classes = classes_of(base)
    placed: dict[str, Path] = {}
    for name, path in own:
        placed |= {n: _folder(path, n) for n in _parts(path, classes)} if name is None else {name: _folder(path, name)}
    added = _added(base, placed, classes, extension) if extension else {}
    classes |= added
    if strange := sorted({*placed} - {*classes}):
        raise ValueError(f"the pipeline has no {strange[0]}; name one of {', '.join(classes)}")
    made = Path(tempfile.mkdtemp(dir=_root()))
    for path in base.iterdir():
        if path.name not in placed and not path.name.startswith(".") and not (added and path.name == INDEX):
            (made / path.name).symlink_to(path.resolve())
    if added and extension:
        index = json_object(base / INDEX) | {"_class_name": extension.into}
        (made / INDEX).write_text(json.dumps(index | {n: ["diffusers", c] for n, c in added.items()}, indent=2, sort_keys=True))
    for name, path in placed.items():
        _checked(path)
        if (kind := class_of(path) if path.is_dir() else classes[name]) != classes[name] and _of_diffusers(path):
            raise ValueError(f"is a {kind}, and the pipeline's {name} is a {classes[name]}; give one of that class")
        if path.is_dir():
            (made / name).symlink_to(path)
            continue
        (made / name).mkdir()
        if (base / name).is_dir() and not (base / name / "config.json").is_file():
            raise ValueError(f"the pipeline's {name} has no weights that a file could be; name one of its models")
        if (config := base / name / "config.json").is_file():
            (made / name / config.name).symlink_to(config.resolve())
        (made / name / ORIGINAL).symlink_to(path)
    return made


def _added(base: Path, placed: Mapping[str, Path], classes: Mapping[str, str], extension: Extension) -> dict[str, str]:
    """Classes of the parts by which the pipeline becomes another one."""
    lacked = [n for n in extension.parts if n in placed and n not in classes]
    named = json_object(base / INDEX).get("_class_name")
    if lacked and named != extension.of:
        raise ValueError(f"is a {named}, and with a {lacked[0]} only a {extension.of} is a {extension.into}; choose that one")
    if files := [n for n in lacked if placed[n].is_file()]:
        raise ValueError(f"its {files[0]} is a file, and its config is nowhere; give the folder that has its config.json too")
    return {n: class_of(placed[n]) for n in lacked}


def classes_of(base: Path) -> dict[str, str]:
    """Of the parts that a pipeline's index names."""
    try:
        found = json_object(base / INDEX)
    except (OSError, ValueError):
        raise ValueError(f"holds no {INDEX} that can be read; give the directory that save_pretrained wrote") from None
    return {n: v[1] for n, v in found.items() if isinstance(v, list) and len(v) == 2 and v[0]}


def _parts(path: Path, classes: Mapping[str, str]) -> list[str]:
    """Those of a pipeline that a file has, or that a folder of one part is."""
    if path.is_file():
        _checked(path)
        there = prefixes(tensors(path), classes)
        return list(there) or [lone(classes)]
    folders = {n: path / n for n in classes if (path / n / "config.json").is_file()}
    if folders:
        return list(folders)
    kind = class_of(path)
    fitting = [n for n, c in classes.items() if c == kind]
    if not fitting:
        own = ", ".join(f"{n} {c}" for n, c in classes.items() if n.startswith(BACKBONES))
        raise ValueError(f"is a {kind}, which the pipeline of model.base has not (it has {own}); choose its own base")
    return [path.name] if path.name in fitting else fitting[:1]


def weights(path: Path) -> Mapping[str, Tensor]:
    """By the headers of a file, of a folder of one part, or of one of several."""
    inner = [] if path.is_file() or (path / "config.json").is_file() else [p.parent for p in path.glob("*/config.json")]
    return {f"{p.name}.{n}": x for p in inner for n, x in tensors(p).items()} if inner else tensors(path)


def _folder(path: Path, part: str) -> Path:
    return path / part if (path / part / "config.json").is_file() else path


def _checked(path: Path) -> None:
    keys = tensors(path)
    if path.is_dir():
        class_of(path)
        coded.check(sorted(path.glob(f"*{SUFFIX}")))
        return
    if not keys:
        raise ValueError(f"{path.name} holds no tensor; download it again")
    if is_adapter(keys):
        raise ValueError(f"{path.name} is an adapter, not a model; set model.lora to it, and model.source to its model")
    coded.check([path], (WITHIN, *PARTS))


def is_adapter(keys: Collection[str]) -> bool:
    """By its tensors' names, whether a file is a LoRA, LoHa or LoKr, as kohya, peft and diffusers name them."""
    return any("lora_" in k or ".lora" in k or ".hada_" in k or ".lokr_" in k for k in keys)


def class_of(folder: Path) -> str:
    """Of the one part that a folder has."""
    path = folder / "config.json"
    try:
        config = json_object(path)
        found = config.get("_class_name") or config["architectures"][0]
    except OSError:
        raise ValueError(f"holds neither {INDEX} nor config.json; give a pipeline's directory, or a backbone's") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("has a config.json that names no class; download it again") from None
    return str(found)


def held(there: Mapping[str, Tensor]) -> str:
    """For people, what a file has: `backbone alone in BF16`, `backbone, VAE in FP16`, `model alone in FP8`."""
    kinds = [n for n, prefixes in TOLD.items() if any(k.startswith(prefixes) for k in there)]
    what = ", ".join(kinds) if kinds[1:] else f"{kinds[0]} alone" if kinds else "model alone"
    return f"{what} in {stored(there)}"


def stored(there: Mapping[str, Tensor]) -> str:
    """For people, the precision that most bytes are in."""
    sizes: dict[str, int] = {}
    for x in there.values():
        sizes[x.dtype] = sizes.get(x.dtype, 0) + x.size
    most = max(sizes, key=lambda n: sizes[n], default="nothing")
    return STORED.get(most, most)


def coded_in(there: Mapping[str, Tensor]) -> str:
    """For people, what most of the weights are in that are codes: FP8, or a type of GGUF such as Q8_0; empty where they are
    plain numbers."""
    codes = {n: x for n, x in there.items() if x.dtype not in (*coded.WIDE, *OTHERS) and not coded.aside(n)}
    return stored(codes) if codes else ""


def _of_diffusers(folder: Path) -> bool:
    """Whether its config names the class that reads it; transformers' name the one that wrote it, which others can read."""
    return "_class_name" in json_object(folder / "config.json")


def lone(classes: Collection[str]) -> str:
    """The part that a file is taken for which does not say."""
    found = next((n for n in classes if n in BACKBONES), None)
    if found is None:
        raise ValueError(f"the pipeline has none of {', '.join(BACKBONES)}; name its part in model.parts")
    return found


def prefixes(keys: Collection[str], classes: Mapping[str, str]) -> dict[str, str]:
    """By part what stands before its names in a file of several; none where the file is of one part."""
    found = {lone(classes): WITHIN} if any(k.startswith(WITHIN) for k in keys) else {}
    for prefix, (begins, kind, place) in PARTS.items():
        fitting = [n for n, c in classes.items() if n.startswith(begins) and c.startswith(kind)]
        if fitting[place:] and any(k.startswith(prefix) for k in keys):
            found[fitting[place]] = prefix
    return found


@cache
def _root() -> Path:
    made, owner = Path(tempfile.mkdtemp(prefix="diffopt-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a process that was forked uses its parent's
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made


def passing(path: Path) -> bool:
    """Whether it was written into such a directory, and goes with it."""
    return path.resolve().is_relative_to(_root().resolve())


def refused(path: Path) -> str | None:
    """Why a file is none that is read, and what to do; None for one that may be."""
    if path.suffix in PICKLES:
        return f"is a pickle ({path.suffix}), which can run code when it is loaded; convert it to {SUFFIX}"
    return None if path.suffix in FILES else f"is no {SUFFIX} file; give a pipeline's directory, or such a file"
