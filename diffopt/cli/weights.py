"""What a file of weights or a backbone alone is, by its headers: for `diffopt inspect`."""

from collections.abc import Mapping
from pathlib import Path

from diffopt import models
from diffopt.cli.searchpath import bundled
from diffopt.errors import ConfigError
from diffopt.groups.quantized_source import only_fp8, recognised
from diffopt.models.index import denoisers
from diffopt.store.composed import BACKBONE, TOLD, class_of, held, is_adapter, refused, stored
from diffopt.store.tensor_file import Tensor, tensors
from diffopt.text import size


def told(path: Path) -> dict[str, str]:
    """By what each is. Raises ConfigError for what is no weights."""
    try:
        if path.is_file() and (reason := refused(path)):
            raise ValueError(reason)
        kind = class_of(path) if path.is_dir() else ""
        there = tensors(path)
        if is_adapter(there):
            return {"weights": _weights(there), "holds": "a LoRA adapter", "use": f"model.lora=[{{path: {path}}}]"}
        codes = only_fp8(path)
        came = None if codes and not _four(there) else recognised(path, models.AUTO)
    except ValueError as e:
        what, _, advice = str(e).partition("; ")
        raise ConfigError(f"diffopt inspect: {what} (got {str(path)!r}); {advice}") from None
    lacks = [n for n, p in TOLD.items() if n != BACKBONE and not any(k.startswith(p) for k in there)]
    rows = {"weights": _weights(there), "holds": f"{kind} alone" if kind else held(there).rpartition(" in ")[0]}
    if not kind:
        names, base = _model(there)
        rows |= {"model": names, **({"base": base} if base else {})}
    taken = f"{came.about}: it is taken as it is, and nothing is calibrated" if came else ""
    numbers = f"{'' if came else stored(there) + ': '}with a format it is dequantized to model.dtype" if codes else ""
    rows["quantized"] = "; ".join(x for x in (taken, numbers) if x) or "no"
    if kind and kind not in denoisers():
        return rows | {"use": f"model.parts={{NAME: {path}}}, NAME as the pipeline calls it"}
    rows["use"] = f"model.source={path} model.base=PIPELINE, which has its {', '.join([*lacks, 'configs'])} and tokenizers"
    return rows


def _four(there: Mapping[str, Tensor]) -> bool:
    """Whether what is in FP8 has four bits of exponent, as the formats have."""
    return not any(x.dtype == "F8_E5M2" for x in there.values())


def _weights(there: Mapping[str, Tensor]) -> str:
    return f"{len(there)} tensors, {size(sum(x.size for x in there.values()))}, most in {stored(there)}"


def _model(there: Mapping[str, Tensor]) -> tuple[str, str]:
    """Which model a file is of as diffusers tells it, and the pipeline that diffusers takes for its base."""
    import torch
    from diffusers.loaders.single_file_utils import (
        CHECKPOINT_KEY_NAMES,
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    found = infer_diffusers_model_type({n: torch.empty(x.shape, device="meta") for n, x in there.items()})
    if found == "v1" and CHECKPOINT_KEY_NAMES["v1"] not in there:  # what it says where it does not know
        return "not known to diffusers by its tensors' names; choose model=OPTION yourself", ""
    base = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(found, {}).get("pretrained_model_name_or_path", "")
    own = [p.stem for p in sorted((bundled("conf") / "model").glob("*.yaml")) if f"source: {base}\n" in p.read_text() and base]
    return found + (f", choose model={own[0]}" if own else ""), base
