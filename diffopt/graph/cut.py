"""Cutting a graph at borders into the parts that a step must compute and those whose outputs it can take from before."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import onnx

from diffopt.graph.border import BORDER, DOMAIN
from diffopt.graph.count import DEQUANTIZE, QUANTIZE


@dataclass(frozen=True)
class Part:
    """Some nodes of a graph, in order, and the names of what they take and give."""

    nodes: list[onnx.NodeProto]
    reused: bool
    """Only needed for what crosses a border: a step that takes that from before does without this part."""
    inputs: list[str]
    outputs: list[str]
    entering: dict[str, str]
    """For those of the outputs that are reused as a change: the name of what they are a change to."""


def cut(graph: onnx.GraphProto, stored: Collection[str] = ()) -> list[Part]:
    """The parts of a graph with borders, in an order in which they can run. The borders become Identity. `stored` are
    initializers that the graph does not hold yet.

    What a step needs that reuses is what `graph`'s outputs depend on, not looking past a border. Everything else is in
    parts that it does without. So the parts follow from the graph alone, whatever crosses them: skip connections,
    embeddings of time. A node is in the last part that it can be in, so that little crosses. Constants, shapes and
    quantizers go with whoever reads them, and may then be in several parts: what crosses is of the graph's own precision.
    """
    nodes = list(graph.node)
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    inner = {*stored, *(i.name for i in graph.initializer)}
    outer = {i.name for i in graph.input} - inner
    ends = {o.name for o in graph.output}
    mobile = _mobile(nodes, maker, outer, ends)
    readers = _readers(nodes, maker, mobile)
    needed, borders = _needed(nodes, maker, ends)
    depth: dict[int, int] = {}
    for i in reversed(range(len(nodes))):
        if i not in mobile:
            depth[i] = max((depth[j] + ((i in needed) != (j in needed)) for j in readers(i)), default=0)
    members: dict[tuple[int, bool], set[int]] = {}
    for i, d in depth.items():
        members.setdefault((-d, i not in needed), set()).add(i)
    places = sorted(members)
    whole = {place: _closed(members[place], nodes, maker, mobile) for place in places}
    taken = {place: _taken(whole[place], nodes, inner) for place in places}
    entering = {nodes[i].output[0]: nodes[i].input[1] for i in borders if len(nodes[i].input) > 1}
    parts = []
    for place in places:
        wanted = ends.union(entering.values(), *(names for other, names in taken.items() if other != place))
        gives = [name for i in sorted(members[place]) for name in nodes[i].output if name in wanted]
        came = {name: entering[name] for name in gives if name in entering}
        parts.append(Part([_plain(nodes[i]) for i in sorted(whole[place])], place[1], sorted(taken[place]), gives, came))
    return parts


def _needed(nodes: list[onnx.NodeProto], maker: dict[str, int], ends: Iterable[str]) -> tuple[set[int], set[int]]:
    """Nodes of which the outputs `ends` are made, up to the next borders; and those borders."""
    found, borders, todo = set[int](), set[int](), [maker[name] for name in ends]
    while todo:
        i = todo.pop()
        if i in found or i in borders:
            continue
        border = _border(nodes[i])
        (borders if border else found).add(i)
        todo += [maker[name] for name in nodes[i].input[1 if border else 0 :] if name in maker]
    return found, borders


def _mobile(nodes: list[onnx.NodeProto], maker: dict[str, int], outer: set[str], ends: set[str]) -> set[int]:
    """Nodes that are in whatever part their readers are: what the values of the graph's inputs do not reach, and quantizers.

    Shapes are such too: an engine takes no shape for an input.
    """
    reached, found = {*outer}, set[int]()
    for i, node in enumerate(nodes):
        constant = node.op_type == "Shape" or not reached.intersection(node.input)
        if not constant:
            reached.update(node.output)
        if (constant or _quantizes(node, nodes, maker)) and not ends.intersection(node.output):
            found.add(i)
    return found


def _quantizes(node: onnx.NodeProto, nodes: list[onnx.NodeProto], maker: dict[str, int]) -> bool:
    """Also the cast that follows a dequantizer which gives FP32 alone."""
    if node.op_type == "Cast" and node.input[0] in maker:
        return nodes[maker[node.input[0]]].op_type in DEQUANTIZE
    return node.op_type in (*QUANTIZE, *DEQUANTIZE)


def _readers(nodes: list[onnx.NodeProto], maker: dict[str, int], mobile: set[int]) -> Callable[[int], set[int]]:
    """For a node those that read it, looking through mobile ones."""
    direct: dict[int, set[int]] = {}
    for i, node in enumerate(nodes):
        for name in node.input:
            if name in maker:
                direct.setdefault(maker[name], set()).add(i)

    def find(i: int) -> set[int]:
        found, todo = set[int](), [*direct.get(i, ())]
        while todo:
            j = todo.pop()
            if j in mobile:
                todo += direct.get(j, ())
            else:
                found.add(j)
        return found

    return find


def _closed(members: set[int], nodes: list[onnx.NodeProto], maker: dict[str, int], mobile: set[int]) -> set[int]:
    """The nodes, and the mobile ones that they read."""
    found, todo = {*members}, [*members]
    while todo:
        for name in nodes[todo.pop()].input:
            if (j := maker.get(name)) in mobile and j not in found:
                found.add(j)
                todo.append(j)
    return found


def _taken(part: set[int], nodes: list[onnx.NodeProto], inner: set[str]) -> set[str]:
    """Names that the part reads and does not make."""
    made = {name for i in part for name in nodes[i].output}
    read = {name for i in part for name in (nodes[i].input[:1] if _border(nodes[i]) else nodes[i].input) if name}
    return read - made - inner


def _border(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == BORDER and node.domain == DOMAIN)


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name) if _border(node) else node
