"""Graphs cut at reused blocks: nothing is lost, and they compute what a torch backbone does whose blocks are reused."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from backbones import BACKBONES, made
from conftest import some
from quantized import FORMATS, quantize
from test_backbone_graphs import apart, computed, graph, needs_builder, profile, root, session

from diffopt.caches.policy import Reuse
from diffopt.caches.segment import Segment
from diffopt.files.graph import PartFile
from diffopt.graph import write
from diffopt.graph.engine import builder
from diffopt.graph.engine.options import Options
from diffopt.graph.part_files import CutPoints
from diffopt.runtimes.cut_graph import Change, CutGraph, Place

STEPS = (False, True, False, True, True)
"""Of a run, those that reuse."""


OUTPUT = {
    "flux": [("transformer_blocks.1",), ("single_transformer_blocks.0",)],
    "sdxl": [(n,) for n in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")],
    "sd3": [("transformer_blocks.0",)],
    "ltx": [("transformer_blocks.0",)],
    "wan": [("blocks.0",)],
    "qwen": [("transformer_blocks.0",)],
}
RESIDUAL = {
    "flux": [("transformer_blocks.1",), ("single_transformer_blocks.0", "single_transformer_blocks.1")],
    "sd3": [("transformer_blocks.1",)],
    "ltx": [("transformer_blocks.1",)],
    "wan": [("blocks.1",)],
    "qwen": [("transformer_blocks.1",)],
}
APART = {"flux": [("transformer_blocks.0",), ("single_transformer_blocks.0",)]}
"""Residuals, with a block between that every step computes."""
POLICIES = [
    *((family, "output") for family in OUTPUT),
    *((family, "residual") for family in RESIDUAL),
    *((family, "apart") for family in APART),
]
FEW = ("flux", "sdxl", "sd3")
policies = pytest.mark.parametrize(("family", "policy"), some(POLICIES, [x for x in POLICIES if x[0] == "flux"]))
few = pytest.mark.parametrize("family", some(FEW, ["flux"]))
FAST = Options(level=0)


def segments(family: str, policy: str, model: torch.nn.Module) -> list[Segment]:
    found = {"output": OUTPUT, "residual": RESIDUAL, "apart": APART}[policy][family]
    reuse: Reuse = "output" if policy == "output" else "residual"
    return [Segment({n: model.get_submodule(n) for n in names}, bool, reuse) for names in found]


@contextmanager
def reusing(found: Sequence[Segment]) -> Iterator[dict[str, bool]]:
    """The plain definition: the last module of a segment gives what it gave, or what it added, in the last computed call."""
    now, entered, kept, hooks = {"reuses": False}, dict[int, Any](), dict[int, Any](), list[Any]()

    def enter(i: int, module: Any) -> Callable[..., None]:
        order = signature(module.forward)

        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            given = order.bind(*args, **kwargs).arguments
            entered[i] = given.get("encoder_hidden_states"), given["hidden_states"]

        return hook

    def leave(i: int, residual: bool) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, out: Any) -> Any:
            if not residual:
                kept[i] = kept[i] if now["reuses"] else out
                return kept[i]
            both = out if isinstance(out, tuple) else (None, out)
            if not now["reuses"]:
                kept[i] = [None if x is None else x - e for x, e in zip(both, entered[i], strict=True)]
                return out
            both = tuple(None if r is None else e + r for r, e in zip(kept[i], entered[i], strict=True))
            return both if isinstance(out, tuple) else both[-1]

        return hook

    for i, segment in enumerate(found):
        modules = [*segment.modules.values()]
        if segment.residual:
            hooks.append(modules[0].register_forward_pre_hook(enter(i, modules[0]), with_kwargs=True))
        hooks.append(modules[-1].register_forward_hook(leave(i, segment.residual)))
    yield now
    for hook in hooks:
        hook.remove()


@cache
def part_files(
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
    cut = CutPoints(segments(family, policy, model), calls)
    return folder, write.write(model, inputs, folder / "model.onnx", 20, axes, backbone.arguments, cut), model, layers


def parts(folder: Path, found: write.Graph, reuses: Callable[[int], bool]) -> CutGraph:
    def run(part: PartFile) -> Any:
        own = session(folder / part.file)
        return lambda inputs, outputs: own.run(list(outputs), dict(inputs))

    assert found.parts is not None
    change = Change(np.subtract, np.add)
    return CutGraph(found.parts, [run(p) for p in found.parts], change, reuses)


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


def run(family: str, run_parts: CutGraph, key: str = "") -> list[np.ndarray]:
    return [run_parts(fed(x), Place(i, key))["out"] for i, x in enumerate(steps(family))]


@policies
def test_a_run_that_reuses_nothing_computes_what_the_whole_graph_does(family: str, policy: str) -> None:
    # onnxruntime joins operators across what is a border here, in SDXL's convolutions; otherwise it is equal to the bit.
    folder, found, *_ = part_files(family, policy)
    whole, *_ = graph(family, None, torch.float32, False)
    for ours, inputs in zip(run(family, parts(folder, found, lambda _: False)), steps(family), strict=True):
        theirs = computed(whole, inputs)
        assert np.array_equal(ours, theirs) if family != "sdxl" else apart(ours, theirs) < 1e-6


@policies
def test_a_run_that_reuses_computes_what_the_backbone_with_reused_blocks_does(family: str, policy: str) -> None:
    folder, found, model, _ = part_files(family, policy)
    ours = run(family, parts(folder, found, STEPS.__getitem__))
    with reusing(segments(family, policy, model)) as now:
        for i, inputs in enumerate(steps(family)):
            now["reuses"] = STEPS[i]
            theirs = BACKBONES[family].call(model, inputs).numpy()
            assert apart(ours[i], theirs) < 1e-5, i
    for i, inputs in enumerate(steps(family)):
        if STEPS[i]:
            assert apart(BACKBONES[family].call(model, inputs).numpy(), ours[i]) > 1e-3, i


@policies
def test_every_weight_is_in_exactly_one_part_and_no_part_is_empty(family: str, policy: str) -> None:
    folder, found, *_ = part_files(family, policy)
    whole, *_ = graph(family, None, torch.float32, False)
    held: Counter[str] = Counter()
    assert found.parts is not None
    for part in found.parts:
        model = onnx.load(folder / part.file)
        onnx.checker.check_model(model)
        assert len(model.graph.node) > 0
        assert [i.name for i in model.graph.input] == part.inputs
        assert [o.name for o in model.graph.output] == part.outputs != []
        held.update(i.name for i in model.graph.initializer if np.prod(i.dims) > 16)
    wanted = {i.name for i in onnx.load(whole).graph.initializer if np.prod(i.dims) > 16}
    assert held == dict.fromkeys(wanted, 1)
    assert [p.reused for p in found.parts].count(True) == (2 if policy == "apart" else 1)


@pytest.mark.parametrize(
    ("family", "name"),
    some(product(("flux", "sdxl", "sd3"), ("int8", "fp8")), [("flux", "fp8")]),
)
def test_every_quantizer_is_kept(family: str, name: str) -> None:
    _, found, _, layers = part_files(family, "output", name, torch.float16)
    _, whole, *_ = graph(family, name, torch.float16, False)
    assert found.quantized_products == found.quantized_inputs == layers - len(found.unused) > 0
    assert found.operators == whole.operators


def test_what_crosses_is_not_quantized() -> None:
    # Two layers of different parts read one tensor, each by a quantizer of its own: that goes with the layer.
    folder, found, *_ = part_files("wan", "output", "int8", torch.float16)
    assert found.parts is not None
    for part in found.parts:
        model = onnx.load(folder / part.file)
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} <= {*floats}


@pytest.mark.matrix
def test_an_int8_graph_that_is_cut_computes_what_it_does_in_one_piece() -> None:
    folder, found, *_ = part_files("flux", "residual", "int8")
    whole, *_ = graph("flux", "int8", torch.float32, False)
    for ours, inputs in zip(run("flux", parts(folder, found, lambda _: False)), steps("flux"), strict=True):
        assert np.array_equal(ours, computed(whole, inputs))


@few
def test_a_cut_graph_takes_every_batch_up_to_its_most(family: str) -> None:
    folder, found, *_ = part_files(family, "output", dynamic=True)
    whole, *_ = graph(family, None, torch.float32, True)
    once = parts(folder, found, lambda _: False)
    for rows in (1, 3, 4):
        inputs = BACKBONES[family].inputs(rows)
        assert apart(once(fed(inputs), None)["out"], computed(whole, inputs)) < 1e-6, rows


BUILT = [
    (family, policy, *more)
    for family, policy in (("flux", "residual"), ("sdxl", "output"), ("sd3", "output"))
    for more in ((None, False), ("int8", False), ("fp8", True))
]


@needs_builder
@pytest.mark.matrix
@pytest.mark.parametrize(("family", "policy", "name", "dynamic"), BUILT)
def test_a_plan_is_built_of_every_part(family: str, policy: str, name: str | None, dynamic: bool) -> None:
    folder, found, *_ = part_files(family, policy, name, torch.float16, **({"dynamic": True} if dynamic else {}))
    assert found.parts is not None
    for part in found.parts:
        built = builder.build(folder / part.file, FAST, part.profile)
        assert len(built.plan) > 10_000
        assert built.profiles == ([part.profile] if part.profile else [])


@needs_builder
@pytest.mark.matrix
@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("int8_sq", "fp8")])
def test_a_plan_is_built_of_every_part_in_every_format(name: str) -> None:
    folder, found, *_ = part_files("flux", "residual", name, torch.float16)
    assert found.parts is not None
    for part in found.parts:
        assert len(builder.build(folder / part.file, FAST).plan) > 10_000


# The scheduler of the parts.


def part(reused: bool, inputs: list[str], outputs: list[str], entering: dict[str, str] | None = None) -> PartFile:
    return PartFile("", reused, inputs, outputs, entering or {}, None, 0)


def test_only_calls_of_one_place_in_a_step_reuse_each_other() -> None:
    calls: list[list[str]] = []
    parts = [
        part(False, ["x"], ["a"]),
        part(True, ["a"], ["b", "idle"]),
        part(False, ["a", "b"], ["out"]),
    ]

    def engine(name: str) -> Callable[..., list[Any]]:
        def run(inputs: Any, outputs: Any) -> list[Any]:
            calls[-1].append(name)
            return [sum(inputs.values()) for _ in outputs]

        return run

    scheduler = CutGraph(parts, [engine(n) for n in "abc"], Change(np.subtract, np.add), lambda step: step in (1, 3))

    def call(x: float, step: int | None, key: str = "cond") -> float:
        calls.append([])
        found: float = scheduler({"x": x}, None if step is None else Place(step, key))["out"]
        return found

    assert (call(1.0, 0), call(10.0, 0, "uncond")) == (2.0, 20.0)
    assert (call(3.0, 1), call(30.0, 1, "uncond")) == (4.0, 40.0)  # x of now, b of step 0
    assert calls == [[*"abc"], [*"abc"], [*"ac"], [*"ac"]]
    assert call(5.0, 3) == 10.0  # step 2 did not come here, and what step 0 made is too old
    assert call(7.0, 3, "other shapes") == 14.0
    assert (scheduler.hits, scheduler.calls) == (2, 6)
    call(1.0, 2)
    scheduler.forget()
    assert call(5.0, 3) == 10.0
    assert call(5.0, None) == 10.0


def test_a_change_is_added_to_what_is_computed_anew() -> None:
    parts = [
        part(False, ["x"], ["a"]),
        part(True, ["a"], ["b", "c"], {"b": "a", "c": "b"}),
        part(False, ["c"], ["out"]),
    ]
    runs = [lambda i, _: [i["x"]], lambda i, _: [i["a"] + 1, i["a"] + 11], lambda i, _: [i["c"]]]
    scheduler = CutGraph(parts, runs, Change(np.subtract, np.add), lambda step: step == 1)
    assert scheduler({"x": 1.0}, Place(0, ""))["out"] == 12.0
    assert scheduler({"x": 5.0}, Place(1, ""))["out"] == 16.0
