"""What becomes of each key of an adapter's file: followed through diffusers' converters, which leave keys out silently."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffopt.errors import pass_on

Tensors = dict[str, torch.Tensor]
Converter = Callable[[Tensors], tuple[Tensors, dict[str, Any]]]
"""Of a file's tensors: those in diffusers' layout, and the alphas that are not in them yet. It may take its argument apart."""

INNER = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight", ".down.weight")
OUTER = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight", ".up.weight")
ALPHA = ".alpha"
"""Ends of keys in any layout: of a product's half that enters first, of the other, and of the number that scales it."""


@dataclass(frozen=True)
class Account:
    """An adapter's keys in diffusers' layout, and what became of those of its file."""

    state: Tensors
    alphas: dict[str, float]
    """By stem of the file's keys, numbers that are not in the state's tensors: they are multiplied by alpha / rank yet."""
    lost: list[str]
    """Keys that would change the model, and that were left out."""
    idle: list[str]
    """Keys that were left out and would change nothing: of products with a half of zeros, alphas that scale by 1."""
    unscaled: list[str]
    """Keys of alphas that were left out while what they scale was not."""


def account(tensors: Tensors, convert: Converter) -> Account:
    """Convert an adapter's tensors, and say what became of every key. Raises whatever `convert` does."""
    state, alphas = convert({key: Traced.of(x, key) for key, x in tensors.items()})
    used = {k for x in [*state.values(), *alphas.values()] for k in Traced.origins(x)} | {*state, *alphas}
    stems = {stem(k) for k in used}
    left = [k for k in tensors if k not in used and not (k.endswith(ALPHA) and stem(k) in stems)]
    zeros = {stem(k) for k in left if not k.endswith((*INNER, ALPHA)) and not tensors[k].any()}
    acting = {stem(k) for k in left if not k.endswith((*INNER, ALPHA)) and tensors[k].any()}
    lost = [k for k in left if stem(k) not in zeros - acting]
    deaf = _deaf(tensors, convert, state, alphas)
    ones = [k for k in deaf if _scale(tensors, k) == 1]
    own = {stem(k): float(x) for k, x in tensors.items() if k.endswith(ALPHA)} if alphas else {}
    return Account(state, own, lost, [k for k in left if k not in lost] + ones, [k for k in deaf if k not in ones])


def culprits(tensors: Tensors, convert: Converter) -> list[str]:
    """Keys that cannot be converted: of layers of which nothing comes, or an error, when they are given alone.

    All of them, where a converter wants some other layer too.
    """
    layers: dict[str, Tensors] = defaultdict(dict)
    for key, x in tensors.items():
        layers[stem(key)][key] = x
    bad = []
    for own in layers.values():
        try:
            bad += account(own, convert).lost
        except Exception as e:  # whatever it is, these keys are it
            pass_on(e)
            bad += own
    return bad


def stem(key: str) -> str:
    """The layer's name in a key, in any layout."""
    return next((key.removesuffix(end) for end in (*INNER, *OUTER, ALPHA) if key.endswith(end)), key)


def _deaf(tensors: Tensors, convert: Converter, state: Tensors, alphas: Mapping[str, Any]) -> list[str]:
    """Alphas in whose place any number would do, though their products are used.

    A converter makes Python's numbers of them, which cannot be followed: it is asked again with others.
    """
    numbers = [k for k in tensors if k.endswith(ALPHA)]
    if not numbers:
        return []
    others, other_alphas = convert({k: x * 2 + 1 if k in numbers else x for k, x in tensors.items()})
    scaled = [a.removesuffix(ALPHA) for a, x in alphas.items() if x != other_alphas.get(a)]
    made: dict[str, set[str]] = defaultdict(set)
    heard: set[str] = set()
    for key, x in state.items():
        for of in {stem(o) for o in Traced.origins(x)}:
            made[of].add(key)
        if not torch.equal(x, others[key]) or any(key == a or key.startswith(f"{a}.") for a in scaled):
            heard.add(key)
    return [k for k in numbers if (own := made.get(stem(k))) and not own & heard]


def _scale(tensors: Tensors, alpha: str) -> float | None:
    """What an alpha scales its product by, alpha / rank; None where its product is not found beside it."""
    inner = next((x for end in INNER if (x := tensors.get(stem(alpha) + end)) is not None), None)
    return None if inner is None else float(tensors[alpha]) / inner.shape[0]


class Traced(torch.Tensor):
    """A tensor that knows of which keys of a file it was made: loaders rename, split, join and scale what they read."""

    keys: frozenset[str]
    _none: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, x: torch.Tensor, key: str) -> "Traced":
        traced = x.as_subclass(cls)
        traced.keys = frozenset({key})
        return traced

    @classmethod
    def origins(cls, x: Any) -> frozenset[str]:
        return getattr(x, "keys", cls._none) if isinstance(x, cls) else cls._none

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        found = cls._none.union(*(cls.origins(x) for x in _leaves((args, kwargs or {}))))
        for x in _leaves(out):
            if isinstance(x, cls):
                x.keys = found
        return out


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, dict):
        yield from _leaves([*value.values()])
    else:
        yield value
