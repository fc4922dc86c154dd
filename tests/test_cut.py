"""Graphs cut at reused blocks: nothing is lost, and they compute what a torch backbone does whose blocks are reused."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from backbones import BACKBONES, made
from quantized import quantize
from test_backbone_graphs import apart, computed, graph, profile, root, session

from diffopt.graph import write
from diffopt.graph.border import Stretch
from diffopt.graph.pieces import Cut, Piece
from diffopt.runtimes.parts import Change, Parts, Place

STEPS = (False, True, False, True, True)
"""Of a run, those that reuse."""


def states(model: torch.nn.Module, name: str) -> Callable[[Any, Any], tuple[Any, ...]]:
    """Of a block's arguments the text's states and the picture's."""
    own = signature(model.get_submodule(name).forward)

    def find(args: Any, kwargs: Any) -> tuple[Any, ...]:
        given = own.bind(*args, **kwargs).arguments
        return given.get("encoder_hidden_states"), given["hidden_states"]

    return find


OUTPUT = {
    "flux": [("transformer_blocks.1", "transformer_blocks.1"), ("single_transformer_blocks.0", "single_transformer_blocks.0")],
    "sdxl": [(n, n) for n in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")],
    "sd3": [("transformer_blocks.0", "transformer_blocks.0")],
    "ltx": [("transformer_blocks.0", "transformer_blocks.0")],
    "wan": [("blocks.0", "blocks.0")],
    "qwen": [("transformer_blocks.0", "transformer_blocks.0")],
}
RESIDUAL = {
    "flux": [("transformer_blocks.1", "transformer_blocks.1"), ("single_transformer_blocks.0", "single_transformer_blocks.1")],
    "sd3": [("transformer_blocks.1", "transformer_blocks.1")],
    "ltx": [("transformer_blocks.1", "transformer_blocks.1")],
    "wan": [("blocks.1", "blocks.1")],
    "qwen": [("transformer_blocks.1", "transformer_blocks.1")],
}
APART = {
    "flux": [("transformer_blocks.0", "transformer_blocks.0"), ("single_transformer_blocks.0", "single_transformer_blocks.0")]
}
"""Residuals, with a block between that every step computes."""
POLICIES = [
    *((family, "output") for family in OUTPUT),
    *((family, "residual") for family in RESIDUAL),
    *((family, "apart") for family in APART),
]
policies = pytest.mark.parametrize(("family", "policy"), POLICIES)


def stretches(family: str, policy: str, model: torch.nn.Module) -> list[Stretch]:
    ends = {"output": OUTPUT, "residual": RESIDUAL, "apart": APART}[policy][family]
    return [Stretch(first, last, None if policy == "output" else states(model, first)) for first, last in ends]


@contextmanager
def reusing(model: torch.nn.Module, found: Sequence[Stretch]) -> Iterator[dict[str, bool]]:
    """The plain definition: the last module of a stretch gives what it gave, or what it added, in the last computed call."""
    now, entered, kept = {"reuses": False}, dict[str, Any](), dict[str, Any]()

    def enter(stretch: Stretch) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            assert stretch.entering is not None
            entered[stretch.last] = stretch.entering(args, kwargs)

        return hook

    def leave(stretch: Stretch) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, out: Any) -> Any:
            if stretch.entering is None:
                kept[stretch.last] = kept[stretch.last] if now["reuses"] else out
                return kept[stretch.last]
            both = out if isinstance(out, tuple) else (None, out)
            if not now["reuses"]:
                kept[stretch.last] = [None if x is None else x - e for x, e in zip(both, entered[stretch.last], strict=True)]
                return out
            both = tuple(None if r is None else e + r for r, e in zip(kept[stretch.last], entered[stretch.last], strict=True))
            return both if isinstance(out, tuple) else both[-1]

        return hook

    hooks: list[Any] = []
    for stretch in found:
        if stretch.entering:
            hooks.append(model.get_submodule(stretch.first).register_forward_pre_hook(enter(stretch), with_kwargs=True))
        hooks.append(model.get_submodule(stretch.last).register_forward_hook(leave(stretch)))
    yield now
    for hook in hooks:
        hook.remove()


@cache
def pieces(
    family: str, policy: str, name: str | None = None, dtype: torch.dtype = torch.float32, dynamic: bool = False
) -> tuple[Path, write.Graph, torch.nn.Module, int]:
    """The folder, what was written, the backbone, and how many of its weights are quantized."""
    backbone, model = BACKBONES[family], made(family)
    inputs = backbone.inputs(2)
    layers = quantize(model, name, backbone.kinds, backbone.keep, lambda m: backbone.call(m, inputs)) if name else 0
    torch.nn.Module.to(model, dtype)
    inputs = {n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in inputs.items()}
    folder = root() / f"cut-{family}-{policy}-{name}-{str(dtype)[6:]}-{dynamic}"
    folder.mkdir()
    axes = backbone.batch_axes() if dynamic else None
    shapes = profile(family, 1, 2, 4)
    calls = {k: {n: x[k] for n, x in shapes.items()} for k in ("min", "opt", "max")} if dynamic else {}
    cut = Cut(stretches(family, policy, model), calls)
    return folder, write.write(model, inputs, folder / "model.onnx", 20, axes, backbone.arguments, cut), model, layers


def parts(folder: Path, found: write.Graph, reuses: Callable[[int], bool]) -> Parts:
    def run(piece: Piece) -> Any:
        own = session(folder / piece.file)
        return lambda inputs, outputs: own.run(list(outputs), dict(inputs))

    assert found.pieces is not None
    change = Change(np.subtract, np.add)
    return Parts([vars(p) for p in found.pieces], [run(p) for p in found.pieces], change, reuses)


def steps(family: str, rows: int = 2) -> list[dict[str, Any]]:
    """Inputs of a run's calls: its first input and the timestep change."""
    calls = []
    for i in range(len(STEPS)):
        inputs = BACKBONES[family].inputs(rows)
        latents = next(iter(inputs))
        calls.append(inputs | {latents: inputs[latents] * (1 + 0.2 * i), "timestep": inputs["timestep"] * (1 - 0.15 * i)})
    return calls


def fed(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {n: x.numpy() for n, x in inputs.items() if isinstance(x, torch.Tensor)}


def run(family: str, run_parts: Parts, key: str = "") -> list[np.ndarray]:
    return [run_parts(fed(x), Place(i, key))["out"] for i, x in enumerate(steps(family))]


@policies
def test_a_run_that_reuses_nothing_computes_what_the_whole_graph_does(family: str, policy: str) -> None:
    # onnxruntime joins operators across what is a border here, in SDXL's convolutions; otherwise it is equal to the bit.
    folder, found, *_ = pieces(family, policy)
    whole, *_ = graph(family, None, torch.float32, False)
    for ours, inputs in zip(run(family, parts(folder, found, lambda _: False)), steps(family), strict=True):
        theirs = computed(whole, inputs)
        assert np.array_equal(ours, theirs) if family != "sdxl" else apart(ours, theirs) < 1e-6


@policies
def test_a_run_that_reuses_computes_what_the_backbone_with_reused_blocks_does(family: str, policy: str) -> None:
    folder, found, model, _ = pieces(family, policy)
    ours = run(family, parts(folder, found, STEPS.__getitem__))
    with reusing(model, stretches(family, policy, model)) as now:
        for i, inputs in enumerate(steps(family)):
            now["reuses"] = STEPS[i]
            theirs = BACKBONES[family].call(model, inputs).numpy()
            assert apart(ours[i], theirs) < 1e-5, i
    for i, inputs in enumerate(steps(family)):
        if STEPS[i]:
            assert apart(BACKBONES[family].call(model, inputs).numpy(), ours[i]) > 1e-3, i


@policies
def test_every_weight_is_in_exactly_one_part_and_no_part_is_empty(family: str, policy: str) -> None:
    folder, found, *_ = pieces(family, policy)
    whole, *_ = graph(family, None, torch.float32, False)
    held: Counter[str] = Counter()
    assert found.pieces is not None
    for piece in found.pieces:
        model = onnx.load(folder / piece.file)
        onnx.checker.check_model(model)
        assert len(model.graph.node) > 0
        assert [i.name for i in model.graph.input] == piece.inputs
        assert [o.name for o in model.graph.output] == piece.outputs != []
        held.update(i.name for i in model.graph.initializer if np.prod(i.dims) > 16)
    wanted = {i.name for i in onnx.load(whole).graph.initializer if np.prod(i.dims) > 16}
    assert held == dict.fromkeys(wanted, 1)
    assert [p.reused for p in found.pieces].count(True) == (2 if policy == "apart" else 1)
