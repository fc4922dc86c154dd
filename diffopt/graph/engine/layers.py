"""The layers of an engine plan: which operators of the graph each runs, and in which precision.

They are read as the builder itself lists them at the end of a build, in the words of its engine inspector. The inspector
proper wants the plan loaded, and that wants a GPU that can run it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffopt.files.plan import EngineLayer, EngineTensor

PRECISIONS = {
    "FP4E2M1": "FP4", "FP4": "FP4", "Int4": "INT4", "Int8": "INT8", "INT8": "INT8", "FP8": "FP8", "BFloat16": "BF16",
    "BF16": "BF16", "Half": "FP16", "FP16": "FP16", "Float": "FP32", "FP32": "FP32",
}  # fmt: skip
"""Ours of the builder's words, from few bits to many."""
ORDER = list(dict.fromkeys(PRECISIONS.values()))
LOW = frozenset({"FP4", "INT4", "INT8", "FP8"})
FOLDED = "folded"
"""Of a product that is no layer's: of constants alone, or one that nothing reads."""
GENERATED = "kgen"
"""The type of layers that are generated code around the products, which name the products whose ends they take part in."""
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
TENSOR = re.compile(r"Name: (.*?), (?:Location: \w+, )?Dimensions: \[([^\]]*)\].*?Datatype: ([^,}]*)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def read(listed: str) -> list[EngineLayer]:
    """The layers of a builder's list, in the order in which they run."""
    found = (_layer(line) for line in listed.splitlines() if line.startswith("Name: ") and ", LayerType: " in line)
    return [layer for layer in found if layer]


def _layer(line: str) -> EngineLayer | None:
    name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    kind, _, rest = rest.partition(", ")
    parts = re.split(r"(?:^|, )(Inputs|Constants|Outputs): \[", rest.partition(", TacticName: ")[0])
    sides = dict(zip(parts[1::2], parts[2::2], strict=True))
    if "Outputs" not in sides:  # a wait for another stream, which moves no numbers
        return None
    tactic = re.search(r"TacticName: ([^,]*)", line)
    tensors = {side: tuple(map(_tensor, TENSOR.findall(sides.get(side, "")))) for side in ("Inputs", "Constants", "Outputs")}
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=tensors["Inputs"],
        weights=tensors["Constants"],
        outputs=tensors["Outputs"],
        tactic=tactic[1] if tactic else "",
        nodes=tuple(NODE.findall(line)),
    )


def _tensor(found: tuple[str, str, str]) -> EngineTensor:
    """TensorRT's own kernels say `Row major Int8 format` where compiled ones say `Int8`."""
    name, shape, said = found
    word = next((w for w in said.split() if w in PRECISIONS), said.strip())
    return EngineTensor(name, tuple(int(n) for n in shape.split(",") if n.strip()), PRECISIONS.get(word, word))


def precision(layer: EngineLayer) -> str:
    """That of a layer's operands, as they come to it: `FP8`, or `INT4 weights, FP16 inputs` where the two differ.

    Of several inputs the one of the fewest bits counts: beside a product's own there are its block scales and what is added.
    Generated code has constants of many kinds, so there weights of many bits do not count.
    """
    inputs, weights = _fewest(layer.inputs), _fewest(layer.weights)
    beside = layer.kind == GENERATED and weights not in LOW
    if weights is None or inputs is None or weights == inputs or beside:
        return inputs or weights or "other"
    return f"{weights} weights, {inputs} inputs"


def _fewest(tensors: Iterable[EngineTensor]) -> str | None:
    """Scalars are factors of a product, not operands."""
    there = {t.type for t in tensors if len(t.shape) > 1}
    return next((p for p in ORDER if p in there), None)


@dataclass(frozen=True)
class Products:
    """The matrix products and convolutions of a graph, by the precision that they run in."""

    counts: Mapping[str, int]

    def low(self, inputs: bool) -> int:
        """Those of at most 8 bits: of the weights, and of the `inputs` too where they are asked for."""
        return sum(n for p, n in self.counts.items() if p.split()[0] in LOW and not (inputs and "," in p))


def products(layers: Iterable[EngineLayer], nodes: Iterable[str]) -> Products:
    """How the product `nodes` of a graph run. Several may be one layer: q, k and v are one product."""
    of: dict[str, EngineLayer] = {}
    for layer in layers:
        for node in layer.nodes:
            if node not in of or of[node].kind == GENERATED:
                of[node] = layer
    counts = Counter(precision(of[n]) if n in of else FOLDED for n in nodes)
    return Products(dict(sorted(counts.items(), key=lambda x: (-x[1], x[0]))))
