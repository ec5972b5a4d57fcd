"""Two recordings beside one another: which operation of B is which of A's, and where each element of A's values is in B's.

Operations are first brought to one form (`nodes`): a zero pad before a convolution is the convolution's, an average pool over
the whole map is a mean, what only rearranges elements is carried along as positions. The nodes of both are put in an order that
depends on the flow of data alone and matched as sequences are; `Alignment.layout` then follows the axes through both.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from shared.operations import Operation, Recording

COMMUTATIVE = ("add", "multiply", "maximum", "minimum")
ARITHMETIC = ("add", "subtract", "multiply", "divide")
SPATIAL = ("convolution", "pool", "upsample", "local_response_normalization")
GAP = {"activation": 1.0, "pad": 0.7, "scaling": 1.0, "add": 1.2}  # what an operation without a partner costs; others 1.5
FOREIGN = math.inf  # the cost of pairing kinds that are never one another's port


@dataclass(frozen=True)
class Node:
    """Operations of a recording that are one in both frameworks' terms; `members` are run one after the other."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    weights: Mapping[str, tuple[str, str]]  # {role: (operation, its role there)}
    members: tuple[Operation, ...]

    @property
    def source(self) -> str:
        """File and line of the user's code, or ""."""
        return next((member.source for member in reversed(self.members) if member.source), "")


class Root(NamedTuple):
    """What a value is a rearrangement of, and the position there of each of its elements, or None if it is the same."""

    name: str
    positions: np.ndarray | None


Layout = tuple[int, ...] | np.ndarray | None  # the order of A's axes in B; or positions in A of B's elements; None: not known


@dataclass
class Graph:
    """A recording in nodes."""

    recording: Recording
    nodes: dict[str, Node]
    roots: dict[str, Root]  # of each value
    shapes: dict[str, tuple[int, ...]]
    outputs: list[str]
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the shape of each node's kernel

    def operands(self, node: Node) -> list[Root]:
        """What a node takes."""
        return [self.roots[name] for name in node.inputs]

    def apply(self, node: Node, inputs: Sequence[np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The result of a node on `inputs`, with `weights` ({role of the node: array}) in place of its own."""
        values = list(inputs)
        for member in node.members:
            places = [(ours, role) for ours, (name, role) in node.weights.items() if name == member.name]
            mine = {role: (weights or {})[ours] for ours, role in places if ours in (weights or {})}
            if "constant" in mine and "bias" in node.weights:  # a bias that another operation adds
                shape = self.recording.weight(member.name, "constant").shape
                mine["constant"] = mine["constant"].reshape(shape)
            values = [self.recording.apply(member.name, values, mine or None)]
        return values[0]

    def weight(self, node: Node, role: str) -> np.ndarray:
        """A weight of a node, in the layout of `ROLES`."""
        array = self.recording.weight(*node.weights[role])
        return array.ravel() if role == "bias" else array

    def weights_name(self, node: Node, role: str) -> str:
        """The framework's name of a weight of a node."""
        owner, name = node.weights[role]
        return next(member.weights[name] for member in node.members if member.name == owner)


def graph(recording: Recording, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The nodes of a recording; `shapes` are those of the network's inputs."""
    known = dict(shapes) | {operation.name: tuple(operation.shape) for operation in recording.operations}
    roots = {name: Root(name, None) for name in recording.inputs}
    nodes = [_node(operation) for operation in recording.operations]
    for combine in (_absorb_pads, _absorb_biases, _absorb_arithmetic, _absorb_slices):
        nodes = combine(nodes, recording)
    kept: dict[str, Node] = {}
    for node in (_canonical(node, known) for node in nodes):
        moved = _rearranged(node, known) if node.kind != "other" else _permutation(node, recording, known)
        if moved is None:
            roots[node.name], kept[node.name] = Root(node.name, None), node
        else:
            name, positions = roots[node.inputs[0]]
            identity = isinstance(moved, str)
            if not identity:
                before = positions if positions is not None else np.arange(math.prod(known[name])).reshape(known[name])
                positions = moved(before)
            roots[node.name] = Root(name, positions)
    kernels = {n.name: tuple(recording.weight(*n.weights["kernel"]).shape) for n in kept.values() if "kernel" in n.weights}
    return Graph(recording, kept, roots, known, list(recording.outputs), kernels)


def _node(operation: Operation) -> Node:
    weights = {role: (operation.name, role) for role in operation.weights}
    return Node(
        operation.name, operation.kind, tuple(operation.inputs), tuple(operation.shape), dict(operation.attributes), weights,
        (operation,),
    )  # fmt: skip


def _consumers(nodes: Sequence[Node], recording: Recording) -> dict[str, int]:
    counts = dict.fromkeys(recording.outputs, 1)
    for name in itertools.chain.from_iterable(node.inputs for node in nodes):
        counts[name] = counts.get(name, 0) + 1
    return counts


def _merge(nodes: Sequence[Node], recording: Recording, join: Callable[[Node, Node], Node | None]) -> list[Node]:
    """Nodes with those joined to the only one that takes their result; `join(first, second)` gives the two as one, or None."""
    counts, merged = _consumers(nodes, recording), dict[str, Node]()
    for node in nodes:
        first = merged.get(node.inputs[0]) if len(node.inputs) == 1 else None
        both = join(first, node) if first and counts[first.name] == 1 else None
        if first and both:
            del merged[first.name]
        merged[node.name] = both or node
    return list(merged.values())


def _absorb_pads(nodes: Sequence[Node], recording: Recording) -> list[Node]:
    def join(pad: Node, node: Node) -> Node | None:
        if pad.kind != "pad" or node.kind not in ("convolution", "pool") or node.attributes.get("transposed"):
            return None
        if pad.attributes.get("mode", "constant") != "constant":
            return None
        channels = node.attributes["channels"] % len(pad.shape)
        amounts = [tuple(pair) for pair in pad.attributes["amounts"]]
        spatial = [pair for axis, pair in enumerate(amounts) if axis not in (0, channels)]
        own = [tuple(pair) for pair in node.attributes["padding"]]
        if any(amounts[axis] != (0, 0) for axis in (0, channels)) or min(itertools.chain(*spatial), default=0) < 0:
            return None
        value, attributes = pad.attributes.get("value", 0), dict(node.attributes)
        attributes["padding"] = tuple((a + c, b + d) for (a, b), (c, d) in zip(spatial, own, strict=True))
        if node.kind == "convolution":
            if value != 0:
                return None
        elif any(map(any, own)) and any(map(any, spatial)):
            return None  # two paddings that count differently
        elif node.attributes["how"] == "max":
            attributes["padding_value"] = float(value)
        elif value != 0:
            return None
        else:
            attributes["count_padding"] = True
        return replace(node, inputs=pad.inputs, attributes=attributes, members=pad.members + node.members)

    return _merge(nodes, recording, join)


def _absorb_biases(nodes: Sequence[Node], recording: Recording) -> list[Node]:
    def join(layer: Node, add: Node) -> Node | None:
        if add.kind != "add" or layer.kind not in ("convolution", "linear") or set(add.weights) != {"constant"}:
            return None
        axis = layer.attributes["channels"] if layer.kind == "convolution" else -1
        channels = layer.shape[axis % len(layer.shape)]
        constant = recording.weight(*add.weights["constant"])
        shape = [1] * len(layer.shape)
        shape[axis] = channels
        if (
            "bias" in layer.weights
            or np.broadcast_shapes(constant.shape, tuple(shape)) != tuple(shape)
            or constant.size == 1 < channels
        ):
            return None
        weights = {**layer.weights, "bias": add.weights["constant"]}
        return replace(layer, name=add.name, weights=weights, members=layer.members + add.members)

    return _merge(nodes, recording, join)


def _absorb_arithmetic(nodes: Sequence[Node], recording: Recording) -> list[Node]:
    """Chains of arithmetic with constants, as scale inputs, are one `scaling`."""

    def alone(node: Node) -> bool:
        return node.kind == "scaling" or (node.kind in ARITHMETIC and len(node.inputs) == 1 and "constant" in node.weights)

    def join(first: Node, second: Node) -> Node | None:
        if not (alone(first) and alone(second)):
            return None
        weights = {
            f"constant {index}": place for index, place in enumerate((*first.weights.values(), *second.weights.values()))
        }
        return replace(second, kind="scaling", inputs=first.inputs, weights=weights, members=first.members + second.members)

    return _merge(nodes, recording, join)


def _absorb_slices(nodes: Sequence[Node], recording: Recording) -> list[Node]:
    """A slice of a slice, an axis at a time as PyTorch has it, is one."""

    def join(first: Node, second: Node) -> Node | None:
        if first.kind != "slice" or second.kind != "slice":
            return None
        ranges = []
        for node in (first, second):
            ends = zip(*(node.attributes[key] for key in ("starts", "stops", "steps")), strict=True)
            ranges.append(list(ends))
        if len(ranges[0]) != len(ranges[1]) or not all(
            isinstance(n, int) and n >= 0 for r in ranges for ends in r for n in ends
        ):
            return None
        both = [range(*one)[slice(*two)] for one, two in zip(*ranges, strict=True)]
        cuts = {"starts": [r.start for r in both], "stops": [r.stop for r in both], "steps": [r.step for r in both]}
        attributes = {key: tuple(ends) for key, ends in cuts.items()}
        return replace(second, inputs=first.inputs, attributes=attributes, members=first.members + second.members)

    return _merge(nodes, recording, join)


def _canonical(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Node:
    """A node in the one of several forms that the alignment uses."""
    attributes = dict(node.attributes)
    if node.kind == "pool":
        before = shapes[node.inputs[0]]
        channels = attributes["channels"] % len(before)
        axes = tuple(axis for axis in range(len(before)) if axis not in (0, channels))
        whole = tuple(before[axis] for axis in axes) == tuple(attributes["window"])
        if whole and not any(map(any, attributes["padding"])) and all(node.shape[axis] == 1 for axis in axes):
            if attributes["how"] == "average":
                return replace(node, kind="mean", attributes={"axes": axes, "keep": True})
            return replace(node, kind="reduce", attributes={"how": "max", "axes": axes, "keep": True})
        if attributes["how"] == "max":
            attributes.setdefault("padding_value", -math.inf)
            attributes.pop("count_padding", None)
        return replace(node, attributes=attributes)
    if node.kind in ARITHMETIC and len(node.inputs) == 1 and "constant" in node.weights:
        return replace(node, kind="scaling", attributes={}, weights={"constant 0": node.weights["constant"]})
    if node.kind == "pad" and not any(map(any, attributes["amounts"])):
        return replace(node, kind="cast", attributes={})
    if node.kind in ("mean", "reduce"):
        attributes["axes"] = tuple(sorted(axis % len(shapes[node.inputs[0]]) for axis in attributes["axes"]))
        return replace(node, attributes=attributes)
    return node


def _rearranged(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """What a node does to an array of positions, if it only rearranges elements; "" if it does nothing; else None."""
    if len(node.inputs) != 1 or node.weights:
        return None
    before, attributes = shapes[node.inputs[0]], node.attributes
    if node.kind in ("cast", "stop_gradient") or (node.kind == "dropout" and not attributes.get("training")):
        return ""
    if node.kind == "reshape" and math.prod(before) == math.prod(node.shape):
        return lambda positions: positions.reshape(node.shape)
    if node.kind == "transpose":
        return lambda positions: positions.transpose(attributes["order"])
    if node.kind == "slice" and math.prod(before) == math.prod(node.shape):
        ends = [None if end is None or end < 0 else end for end in attributes["stops"]]  # -1: before the first
        cuts = tuple(map(slice, attributes["starts"], ends, attributes["steps"]))
        return lambda positions: positions[cuts].reshape(node.shape)
    return None


def _permutation(node: Node, recording: Recording, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """What an operation without a common term does to positions, if it only puts them in another order; else None."""
    if len(node.inputs) != 1 or node.weights or math.prod(shapes[node.inputs[0]]) != math.prod(node.shape):
        return None
    before = np.arange(math.prod(node.shape), dtype=np.float64).reshape(shapes[node.inputs[0]])
    try:
        after, negative = (recording.apply(node.name, [values]) for values in (before, -1 - before))
    except Exception:  # it may take whole numbers alone
        return None
    order = np.asarray(after).ravel()
    if not (np.array_equal(negative, -1 - after) and np.array_equal(np.sort(order), before.ravel())):
        return None
    return lambda positions: positions.ravel()[order.astype(int)].reshape(node.shape)


def in_order(graph: Graph, by_form: bool = False) -> list[Node]:
    """The nodes that the outputs depend on, in an order of the data's flow: operands first, of a sum the longer way first.

    With `by_form`, the order of what is concatenated depends on what it is, not on its place.
    """
    depth: dict[str, int] = {}
    forms: dict[str, int] = {}
    for node in graph.nodes.values():
        before = frozenset(forms.get(root.name, 0) for root in graph.operands(node))
        forms[node.name] = hash((node.kind, node.attributes.get("function"), graph.kernels.get(node.name), before))
        depth[node.name] = 1 + max((depth.get(root.name, 0) for root in graph.operands(node)), default=0)
    done: dict[str, Node] = {}
    stack = [(graph.roots[name].name, False) for name in reversed(graph.outputs)]
    while stack:
        name, ready = stack.pop()
        if name in done or name not in graph.nodes:
            continue
        node = graph.nodes[name]
        if ready:
            done[name] = node
            continue
        operands = [root.name for root in graph.operands(node)]
        if node.kind in COMMUTATIVE:
            operands.sort(key=lambda operand: -depth.get(operand, 0))
        elif by_form and node.kind == "concatenate":
            operands.sort(key=lambda operand: forms.get(operand, 0))
        stack.append((name, True))
        stack.extend((operand, False) for operand in reversed(operands))
    return list(done.values())


def _cost(a: Node, b: Node, kernels: tuple[Any, Any]) -> float:
    """The cost of pairing two nodes with kernels of two shapes, 0 for two that may be the same."""
    one, two = a.attributes, b.attributes
    if a.kind != b.kind:
        alike = {"pool", "mean", "reduce"}, set(ARITHMETIC), {"convolution", "linear"}, {"attention", "other"}
        if any({a.kind, b.kind} <= kinds for kinds in alike) and len(a.inputs) == len(b.inputs):
            return 1.8
        return FOREIGN
    if a.kind == "other":
        return 0.0 if one.get("operation") == two.get("operation") else 1.0
    cost = 0.6 * (kernels[0] != kernels[1])
    if sorted(a.shape) != sorted(b.shape):
        cost += 0.3
    if a.kind == "convolution":
        cost += 1.5 * (one.get("transposed") != two.get("transposed"))
    if a.kind == "normalization":
        cost += 0.5 * (one.get("over") != two.get("over"))
    cost += 0.1 * sum(one.get(key) != two.get(key) for key in ("stride", "dilation", "padding", "window", "groups"))
    cost += 0.6 * (a.kind in ("pool", "reduce") and one.get("how") != two.get("how"))
    if a.kind == "activation":
        cost += 0.6 * (one.get("function") != two.get("function"))
    cost += 0.4 * (len(a.inputs) != len(b.inputs))
    return cost + 0.05 * (set(a.weights) != set(b.weights))


def _pairs(
    ones: Sequence[Node], twos: Sequence[Node], costs: Callable[[Node, Node], float]
) -> tuple[float, list[tuple[Node, Node]]]:
    """The cheapest matching of two sequences that keeps their orders, and what it costs."""
    gaps = [[GAP.get(node.kind, 1.5) for node in nodes] for nodes in (ones, twos)]
    table = np.zeros((len(ones) + 1, len(twos) + 1))
    table[1:, 0], table[0, 1:] = np.cumsum(gaps[0]), np.cumsum(gaps[1])
    prices = np.array([[costs(a, b) for b in twos] for a in ones]).reshape(len(ones), len(twos))
    rows = table.tolist()
    for i in range(1, len(ones) + 1):
        above, row, gap, price = rows[i - 1], rows[i], gaps[0][i - 1], prices[i - 1].tolist()
        for j in range(1, len(twos) + 1):
            row[j] = min(above[j - 1] + price[j - 1], above[j] + gap, row[j - 1] + gaps[1][j - 1])
    pairs, i, j = [], len(ones), len(twos)
    while i and j:
        if rows[i][j] == rows[i - 1][j - 1] + prices[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((ones[i], twos[j]))
        elif rows[i][j] == rows[i - 1][j] + gaps[0][i - 1]:
            i -= 1
        else:
            j -= 1
    return rows[-1][-1], pairs[::-1]


@dataclass
class Alignment:
    """Two graphs, and which node of B is which of A's."""

    a: Graph
    b: Graph
    pairs: list[tuple[Node, Node]]
    only_a: list[Node]
    only_b: list[Node]
    partner: dict[str, str]  # {name in A: name in B}, inputs of the networks too
    layouts: dict[str, Layout] = field(default_factory=dict)  # {name in B: layout of its result}

    @property
    def back(self) -> dict[str, str]:
        """{name in B: name in A}."""
        return {b: a for a, b in self.partner.items()}

    @property
    def certain(self) -> bool:
        """Whether enough of both is paired that what is said of the rest can be trusted."""
        return 2 * len(self.pairs) >= max(len(self.pairs) + len(self.only_a), len(self.pairs) + len(self.only_b), 1)

    def _usual(self, rank: int) -> Layout:
        """How values of a rank lie in B as a rule: as the networks' inputs do."""
        known = [self.layouts.get(name) for name in self.b.recording.inputs]
        return next((order for order in known if isinstance(order, tuple) and len(order) == rank), None)

    def operand(self, one: Root, two: Root) -> Layout:
        """How an operand of A's lies in that of B's."""
        shapes = self.a.shapes[one.name], self.b.shapes[two.name]
        layout = self.layouts.get(two.name) if self.partner.get(one.name) == two.name else self._usual(len(shapes[0]))
        if isinstance(layout, tuple) and len(shapes[1]) != len(layout):
            layout = None
        if layout is None:
            layout = fitting(*shapes)
        if one.positions is None and two.positions is None:
            return layout
        size = math.prod(shapes[0])
        start = np.arange(size).reshape(shapes[0])
        if layout is None or size != math.prod(shapes[1]):
            return None
        laid = carried(start, layout)
        if laid.shape != shapes[1]:
            return None
        theirs = laid if two.positions is None else laid.ravel()[two.positions]
        ours = start if one.positions is None else one.positions
        where = np.full(size, -1)
        where[ours.ravel()] = np.arange(ours.size)
        return simplest(where[theirs], ours.shape)

    def of_operands(self, a: Node, b: Node) -> list[Layout]:
        """How each operand of A's node lies in that of B's."""
        return [self.operand(*roots) for roots in zip(self.a.operands(a), swapped(self, a, b), strict=False)]


def carried(array: np.ndarray, layout: Layout) -> np.ndarray:
    """An array of A's as it lies in B."""
    if layout is None:
        return array
    if isinstance(layout, tuple):
        return array.transpose(layout) if len(layout) == array.ndim else array
    return array.ravel()[layout] if layout.size == array.size else array


def fitting(one: tuple[int, ...], two: tuple[int, ...]) -> Layout:
    """The order of axes in which a shape of A's is B's: the same if that fits, else channels moved to the end or the front."""
    axes = tuple(range(len(one)))
    if len(one) != len(two):
        return None
    for order in (axes, (0, *axes[2:], *axes[1:2]), (0, *axes[-1:], *axes[1:-1]), *itertools.permutations(axes)):
        if tuple(one[axis] for axis in order) == two:
            return order
    return None


def simplest(positions: np.ndarray, shape: tuple[int, ...]) -> Layout:
    """Positions as an order of axes, if they are one."""
    if positions.ndim == len(shape) < 6 and positions.size == math.prod(shape):
        start = np.arange(positions.size).reshape(shape)
        for order in itertools.permutations(range(len(shape))):
            if tuple(shape[axis] for axis in order) == positions.shape and np.array_equal(start.transpose(order), positions):
                return order
    return positions


def by_channels(one: int, two: int, rank: int) -> tuple[int, ...]:
    """The order of axes that takes the axis `one` of A's to the axis `two` of B's and leaves the others in their order."""
    order = [axis for axis in range(rank) if axis != one % rank]
    order.insert(two % rank, one % rank)
    return tuple(order)


def _layout(alignment: Alignment, a: Node, b: Node, operands: Sequence[Layout]) -> Layout:
    """How the result of A's node lies in that of B's."""
    first, rank = (operands[0] if operands else None), len(a.shape)
    ours, theirs = a.attributes.get("channels"), b.attributes.get("channels")
    batch = a.kind == "normalization" and a.attributes.get("over") not in ("layer", "rms")
    if (
        a.kind == b.kind
        and len(b.shape) == rank
        and (a.kind in SPATIAL or batch)
        and isinstance(ours, int)
        and isinstance(theirs, int)
    ):
        return by_channels(ours, theirs, rank)
    if isinstance(first, tuple) and all(node.kind in ("mean", "reduce") for node in (a, b)):
        return _reduced(a, b, first)
    if isinstance(first, tuple) and len(first) == rank == len(b.shape):
        return first
    same_place = isinstance(first, np.ndarray) and a.shape == alignment.a.shapes[a.inputs[0]] and first.shape == b.shape
    return first if same_place else fitting(a.shape, b.shape)


def _reduced(a: Node, b: Node, order: tuple[int, ...]) -> Layout:
    """How a mean over axes lies in B, whose axes of size 1 may stay where A's do not."""
    left = [axis for axis in range(len(order)) if axis not in a.attributes["axes"]]
    array = np.arange(math.prod(a.shape)).reshape(a.shape)
    array = array.squeeze(a.attributes["axes"]) if a.attributes["keep"] else array
    array = array.transpose([left.index(axis) for axis in order if axis in left])
    array = np.expand_dims(array, b.attributes["axes"]) if b.attributes["keep"] else array
    return simplest(array, a.shape)


def swapped(alignment: Alignment, a: Node, b: Node) -> list[Root]:
    """B's operands in the order of A's, where the order means nothing."""
    ones, twos = alignment.a.operands(a), alignment.b.operands(b)
    if a.kind in COMMUTATIVE and len(ones) == len(twos) == 2:
        fits = [
            sum(alignment.partner.get(o.name) == t.name for o, t in zip(ones, order, strict=True))
            for order in (twos, twos[::-1])
        ]
        if fits[1] > fits[0]:
            return twos[::-1]
    return twos


def align(a: Graph, b: Graph, inputs: Sequence[Layout]) -> Alignment:
    """Match two graphs; `inputs` says how each input of A's lies in B's."""
    orders = [(in_order(a, by_form), in_order(b, by_form)) for by_form in (False, True)]

    known: dict[tuple[str, str], float] = {}  # three matchings ask for each

    def cost(one: Node, two: Node) -> float:
        key = one.name, two.name
        if key not in known:
            known[key] = _cost(one, two, (a.kernels.get(one.name), b.kernels.get(two.name)))
        return known[key]

    matchings = [_pairs(*order, cost) for order in orders]
    best = int(matchings[1][0] < matchings[0][0])
    (ones, twos), pairs = orders[best], matchings[best][1]
    before = {two.name: one.name for one, two in pairs} | dict(zip(b.recording.inputs, a.recording.inputs, strict=False))

    def in_place(one: Node, two: Node) -> float:
        """The cost of a pair and of operands that are none: of several alike, the one in this place is taken."""
        ours, theirs = a.operands(one), b.operands(two)
        apart = bool(ours and theirs) and not any(before.get(y.name) == x.name for x in ours for y in theirs)
        return cost(one, two) + 0.05 * apart

    pairs = _pairs(ones, twos, in_place)[1]
    partner = dict(zip(a.recording.inputs, b.recording.inputs, strict=False)) | {one.name: two.name for one, two in pairs}
    matched = {two.name for _, two in pairs}
    only_a, only_b = [n for n in ones if n.name not in partner], [n for n in twos if n.name not in matched]
    alignment = Alignment(a, b, pairs, only_a, only_b, partner)
    alignment.layouts |= dict(zip(b.recording.inputs, inputs, strict=False))
    for one, two in pairs:
        alignment.layouts[two.name] = _layout(alignment, one, two, alignment.of_operands(one, two))
    return alignment
