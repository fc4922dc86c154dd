"""Under whose names a file has a part's weights, found by its header alone: what fits the model whole is taken."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from diffopt.files.originals import Original
from diffopt.layouts.names import Names
from diffopt.pipeline.original import Tensors, check_scales, empty, renamed
from diffopt.store.composed import WITHIN, coded_in, prefixes
from diffopt.store.tensor_file import tensors

INNER = ("", "transformer.", "transformer.text_model.", "text_model.", "model.")
"""What files have before a text encoder's names, besides its own prefix; the last is OpenCLIP's."""


def original(files: Sequence[Path], part: str, classes: Mapping[str, str], model: Any, names: Names | None) -> Original:
    """How `part`, a module on the meta device, is read. `names` are those of its family, of a backbone.

    Raises ValueError, `what; advice`, for files that the part is not in, or that have a scale which is none.
    """
    there = empty(files, "")
    prefix = prefixes(there, classes).get(part) or (WITHIN if any(n.startswith(WITHIN) for n in there) else "")
    reasons = []
    for way in _ways({n.removeprefix(prefix): x for n, x in there.items() if n.startswith(prefix)}, prefix, model, names):
        reason = _misfit(empty(files, way.prefix), way, model)
        if reason is None:
            check_scales(files, way.prefix)
            return replace(
                way, stored=coded_in({n: x for p in files for n, x in tensors(p).items() if n.startswith(way.prefix)})
            )
        reasons.append(reason)
    kind = type(model).__name__
    best = min(reasons, key=lambda r: r[0])[1] if reasons else f"diffusers reads no single file of a {kind}"
    raise ValueError(f"is no {kind}, the {part} of the pipeline: {best}; choose the base that it was made from")


def _ways(there: Tensors, prefix: str, model: Any, names: Names | None) -> Iterator[Original]:
    kind, own = type(model).__name__, model.state_dict()
    text = "transformers" in type(model).__module__
    for inner in INNER if text else ("",):
        if any(n.startswith(inner) for n in there):
            yield Original("same", prefix + inner)
    if names is not None:
        table = names.found(own)
        yield Original("makers", prefix, table, tuple(sorted(names.turned(own))))
    if kind in SINGLE_FILE_LOADABLE_CLASSES:
        yield Original("diffusers", prefix)
    if text and "positional_embedding" in {n.removeprefix("model.") for n in there}:
        yield Original("open_clip", prefix + ("model." if "model.positional_embedding" in there else ""))


def _misfit(there: Tensors, way: Original, model: Any) -> tuple[int, str] | None:
    """How many of the model's tensors a file has not so, and the first of them; None where it has all."""
    own = model.state_dict()
    if way.way == "makers":
        lacking = [n for n in way.names if n not in there]
        strange = sorted({*there} - {*way.names})
        if lacking or strange:
            first = f"it has no {lacking[0]}" if lacking else f"it has {strange[0]}, which the model has not"
            return len(lacking) + len(strange), first
    if way.way == "same" and "transformers" not in type(model).__module__ and (strange := sorted({*there} - {*own})):
        return len({*own} - {*there}) + len(strange), f"it has {strange[0]}, which the model has not"
    try:
        found = renamed(there, way, model)
    except Exception as e:  # diffusers' converters, of names that they do not expect
        return len(
            own
        ), f"diffusers' converter fails at {type(e).__name__} {str(e).splitlines()[0][:80] if str(e) else ''}".strip()
    if lacking := sorted({*own} - {*found}):
        return len(lacking), f"it has nothing for {lacking[0]}" + (f" and {len(lacking) - 1} more" if lacking[1:] else "")
    for name, x in found.items():
        if x.shape != own[name].shape:
            return 0, f"its {name} is {list(x.shape)}, and the model's {list(own[name].shape)}"
    return None
