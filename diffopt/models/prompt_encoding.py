"""Prompts through a pipeline's own `encode_prompt`, whatever it is called with and gives."""

import ast
import re
from collections.abc import Mapping, Sequence
from inspect import Parameter, getsource, signature
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FIRST = re.compile(r"[A-Za-z_]\w*")
EACH = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")


def returns(cls: type) -> tuple[str | None, ...]:
    """What the `encode_prompt` of a pipeline's class gives, by the names that its last return statement has; None for what
    a call of the pipeline does not take. Raises ValueError where no name is an argument of the call."""
    if not hasattr(cls, "encode_prompt"):
        raise ValueError("has no encode_prompt, so that its prompts cannot be encoded beforehand")
    names, takes = given_back(cls.encode_prompt), signature(cls.__call__).parameters
    found = tuple(n if n in takes else None for n in names)
    if not any(found):
        raise ValueError(f"takes none of what its encode_prompt gives (got {', '.join(names)})")
    return found


def given_back(function: Any) -> list[str]:
    """The names in a function's last return statement; of what is no name that which it begins with, or nothing."""
    tree = ast.parse(dedent(getsource(function)))
    given = [x.value for x in ast.walk(tree) if isinstance(x, ast.Return) and x.value is not None]
    last = given[-1] if given else ast.Tuple([])
    parts = last.elts if isinstance(last, ast.Tuple) else [last]
    return [m[0] if (m := FIRST.match(ast.unparse(x))) else "" for x in parts]


def encoded(
    pipe: Any, prompts: Sequence[str], names: Sequence[str | None], guided: bool, model: Any
) -> "dict[str, torch.Tensor]":
    """Arguments of a call that stand for the prompts. Where encode_prompt knows of no guidance it is asked twice."""
    takes = signature(pipe.encode_prompt).parameters
    both = "negative_prompt" in takes or "do_classifier_free_guidance" in takes
    found = _asked(pipe, list(prompts), names, guided, model)
    call = signature(type(pipe).__call__).parameters
    if guided and not both:
        negative = _asked(pipe, [model.negative_prompt] * len(prompts), names, False, model)
        found |= {f"negative_{n}": x for n, x in negative.items() if f"negative_{n}" in call}
    return found


def _asked(pipe: Any, prompts: list[str], names: Sequence[str | None], guided: bool, model: Any) -> "dict[str, torch.Tensor]":
    import torch

    takes = signature(pipe.encode_prompt).parameters
    negative = [model.negative_prompt] * len(prompts) if guided else None
    given: dict[str, Any] = {
        "prompt": prompts,
        "device": pipe._execution_device,
        "do_classifier_free_guidance": guided,
        "negative_prompt": negative,
        "max_sequence_length": model.max_sequence_length,
        **dict.fromkeys(EACH, 1),
    }
    own = {n: v for n, v in given.items() if n in takes and not (v is None and n == "max_sequence_length")}
    call = signature(type(pipe).__call__).parameters
    own |= {  # such as the instruction before a prompt, which only the call has by default
        n: call[n].default for n in takes if n in call and n not in own and call[n].default not in (None, Parameter.empty)
    }
    own |= {
        n: None for n, p in takes.items() if p.default is Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD and n not in own
    }
    out = pipe.encode_prompt(**own)
    values = out if isinstance(out, (tuple, list)) else (out,)
    found = {n: x for n, x in zip(names, values, strict=False) if n and (guided or not n.startswith("negative_"))}
    for name, x in found.items():
        if x is None and "mask" in name and (of := _masked(name, found)) is not None:  # a way to say that nothing is padding
            found[name] = of.new_ones(of.shape[:2]).long()
    return {n: x for n, x in found.items() if isinstance(x, torch.Tensor)}


def _masked(name: str, found: Mapping[str, Any]) -> Any:
    """The embeddings that a mask is of."""
    start = "negative_prompt_embeds" if name.startswith("negative_") else "prompt_embeds"
    return found.get(start)
