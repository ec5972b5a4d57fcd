"""A graph of what a Keras model runs in the common terms of `shared.operations`: what is the same on every backend.

Whole layers come first (a normalisation, an upsampling, dropout), then what a backend finds together (attention, convolutions
and matrix products with what surrounds them), then elementwise functions, which are told by what they compute, and what is left
is a piece a node.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops

from shared.operations import GRID, known_function

from . import layers
from .graph import Call, Graph, Node

Change = Callable[[Any], Any]  # of a tensor's form
Described = tuple[str, dict[str, Any]] | None  # (kind, attributes)

OPERATORS = {
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "power",
}  # kinds with an operand that may be a constant


@dataclass(frozen=True)
class Binding:
    """A weight: the tensor of the graph that holds it, and the ways to the layout of `ROLES` and back."""

    tensor: str
    common: Change
    own: Change


@dataclass
class Piece:
    """One operation in common terms, and the tensors of the graph that it goes from and to.

    Fields:
        inputs: The tensors it takes; `before` changes the form of each to that of the graph's tensor in `given`.
        target: The tensor of the graph that it computes, of which `after` makes the result.
        output: The result's name among all pieces' results: `target`, or one more where it has another form.
        nodes: The nodes it consists of.
        index: Its place in the order.
    """

    kind: str
    inputs: list[str]
    target: str
    nodes: set[int]
    index: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)
    operands: tuple[int, ...] = ()
    output: str = ""
    given: list[str] = field(default_factory=list)
    before: list[Change] = field(default_factory=list)
    after: Change | None = None
    call: Call | None = None

    def __post_init__(self) -> None:
        self.output = self.output or self.target
        self.given = self.given or self.inputs


class Terms:
    """The pieces of a graph. A backend's own say what its types of nodes mean.

    Fields:
        finders: What makes pieces of nodes, in order, after whole layers.
        elementwise: Types of nodes that compute each number of their result from one of each operand.
        additions: Types of nodes that may add a bias.
        ignored: Types of nodes that are in no piece.
    """

    elementwise: set[str]
    additions: tuple[str, ...]
    ignored: set[str] = set()

    def __init__(self, graph: Graph, training: bool) -> None:
        self.graph, self.training = graph, training
        self.nodes = {
            index: node
            for index, node in graph.nodes.items()
            if node.type not in self.ignored and any(name in graph.dynamic for name in node.inputs)
        }
        self.readers: dict[str, list[int]] = {}
        for index, node in self.nodes.items():
            for name in node.inputs:
                self.readers.setdefault(name, []).append(index)
        self.claimed: set[int] = set()
        self.pieces: list[Piece] = []
        self.innermost: dict[int, Call] = {}
        for call in graph.calls:
            for index in range(call.start, call.stop):
                self.innermost[index] = call

    def all(self) -> list[Piece]:
        """The pieces, in the order in which they ran; only those that the outputs need."""
        for call in self.graph.calls:
            self._layer(call)
        for find in (*self.finders, self._function, self._single):
            for index in sorted(self.nodes, reverse=find == self._function):
                if index not in self.claimed:
                    find(self.nodes[index])
        needed, waiting = set(), list(self.graph.outputs)
        makers = {piece.output: piece for piece in self.pieces}
        while waiting:
            name = waiting.pop()
            if name in makers and name not in needed:
                needed.add(name)
                waiting += makers[name].inputs
        return [self.pieces[i] for i in self._order() if self.pieces[i].output in needed]

    def _order(self) -> list[int]:
        return sorted(range(len(self.pieces)), key=lambda i: (self.pieces[i].index, i))

    def add(self, piece: Piece) -> None:
        """One piece more; its nodes belong to no other."""
        piece.call = piece.call or self.innermost.get(max(piece.nodes, default=piece.index))
        self.claimed |= piece.nodes
        self.pieces.append(piece)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor on this input."""
        return self.graph.shapes[tensor]

    def operands(self, node: Any) -> list[str]:
        """The inputs of a node that are arrays to compute with, and not numbers that say how."""
        return list(node.inputs)

    def dynamic(self, node: Node) -> list[str]:
        """The inputs of a node that depend on the network's."""
        return [name for name in node.inputs if name in self.graph.dynamic]

    def maker(self, tensor: str, *types: str) -> Any | None:
        """The node, not yet in a piece, that makes a tensor, if it is of one of these types."""
        node = self.nodes.get(self.graph.producer.get(tensor, -1))
        return node if node and node.type in types and node.index not in self.claimed else None

    def reader(self, tensor: str, *types: str) -> Any | None:
        """The only node that reads a tensor, if it is of one of these types and not yet in a piece."""
        readers = self.readers.get(tensor, [])
        if len(set(readers)) != 1 or tensor in self.graph.outputs:
            return None
        node = self.nodes[readers[0]]
        return node if node.type in types and node.index not in self.claimed else None

    def borders(self, nodes: set[int]) -> tuple[list[str], list[str]]:
        """(the tensors of the input that nodes read and do not make, those that they make and others read)."""
        made = {name for i in nodes for name in self.nodes[i].outputs}
        inputs = list(dict.fromkeys(name for i in sorted(nodes) for name in self.dynamic(self.nodes[i]) if name not in made))
        used = [n for n in made if n in self.graph.outputs or any(r not in nodes for r in self.readers.get(n, ()))]
        return inputs, used

    def binding(self, tensor: str, common: Change = lambda t: t, own: Change = lambda t: t) -> Binding:
        """The weight behind a tensor: a variable or constant that was only rearranged, or else the tensor itself."""
        steps: list[Change] = []
        leaf = tensor
        while leaf not in self.graph.leaves:
            node = self.graph.nodes[self.graph.producer[leaf]]
            undo = self.undone(node)
            if not undo:
                return Binding(tensor, common, own)
            leaf = node.inputs[0]
            steps.append(undo)
        program = self.graph.program([tensor], [])

        def forward(value: Any) -> Any:
            return common(self.graph.run(program, {leaf: value})[tensor])

        def back(value: Any) -> Any:
            value = own(value)
            for undo in steps:
                value = undo(value)
            return value

        return Binding(leaf, forward, back)

    def shape_of_static(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor that does not depend on the input."""
        return self.graph.shapes.get(tensor) or tuple(self.graph.static(tensor).shape)

    # What a backend has of its own

    @property
    def finders(self) -> tuple[Callable[[Any], None], ...]:
        raise NotImplementedError

    def undone(self, node: Any) -> Change | None:
        """The way back through a node that only rearranges its first input; None for others."""
        raise NotImplementedError

    def described(self, node: Any, number: int) -> tuple[str, dict[str, Any]]:
        """(kind, attributes) of one result of a node, of which `kept` and `shrunk` say that a reshape follows."""
        raise NotImplementedError

    def floating(self, node: Any) -> bool:
        """Whether a node's result is of floats."""
        raise NotImplementedError

    def on_grid(self, root: str, nodes: Sequence[Any], output: str) -> np.ndarray | None:
        """What elementwise nodes make of `GRID` in place of the tensor `root`, or None if that is not of floats."""
        raise NotImplementedError

    # Whole layers

    def _layer(self, call: Call) -> None:
        """A layer that is one operation, if this is one."""
        found = next((make for kind, make in LAYERS.items() if isinstance(call.layer, kind)), None)
        nodes = {i for i in range(call.start, call.stop) if i in self.nodes}
        if not found or not nodes or nodes & self.claimed:
            return
        inputs, used = self.borders(nodes)
        described = found(call.layer, self, inputs) if len(inputs) == len(used) == 1 else None
        if not described:
            return
        kind, attributes, roles = described
        bindings = {}
        for role, variable in roles.items():
            handle = next((name for name, own in self.graph.variables.items() if own is variable), None)
            if handle:
                bindings[role] = Binding(handle, lambda t: t, lambda t: t)
        last = self.graph.producer[used[0]]
        self.add(Piece(kind, inputs, used[0], nodes, last, attributes, bindings, call=call))

    def _heads_first(self, tensor: str, index: int, number: int) -> str:
        name = f"{tensor}/heads/{index}/{number}"
        self._transposed(tensor, name, (0, 2, 1, 3), index)
        return name

    def _transposed(self, tensor: str, output: str, order: Sequence[int], index: int) -> None:
        """A transposition that the graph does not have."""
        self._within("transpose", tensor, output, index, {"order": tuple(order)}, lambda t: ops.transpose(t, order))

    def _reshaped(self, tensor: str, output: str, shape: Sequence[int], index: int) -> None:
        """A change of shape that the graph has within another operation."""
        self._within("reshape", tensor, output, index, {"shape": tuple(shape)}, lambda t: ops.reshape(t, shape))

    def _within(self, kind: str, tensor: str, output: str, index: int, attributes: dict[str, Any], after: Change) -> None:
        """An operation that is a part of another node's work: it claims no node of its own."""
        call = self.innermost.get(index)
        self.add(Piece(kind, [tensor], tensor, set(), index, attributes, output=output, after=after, call=call))

    def _bias(self, tensor: str, nodes: set[int], channels: int) -> tuple[str, dict[str, Binding]]:
        """(result with the bias, {"bias": it}) if the same layer adds one to a tensor, or (the tensor, nothing)."""
        node = self.reader(tensor, *self.additions)
        rank = len(self.shape(tensor))
        if not node or self.innermost.get(node.index) is not self.innermost.get(max(nodes)):
            return tensor, {}
        other = next((name for name in node.inputs if name != tensor), "")
        if not other or other in self.graph.dynamic:
            return tensor, {}
        size = self.shape_of_static(other)
        wide = (1,) * (rank - len(size)) + tuple(size) if node.type != "BiasAdd" else size
        count = self.shape(tensor)[channels]
        fits = wide == (count,) if node.type == "BiasAdd" else wide[channels] == count == math.prod(wide)
        if not fits or self.shape(node.outputs[0]) != self.shape(tensor):
            return tensor, {}
        nodes.add(node.index)
        return node.outputs[0], {"bias": self.binding(other, lambda t: ops.reshape(t, (-1,)), lambda t: ops.reshape(t, size))}

    # Elementwise functions

    def _function(self, node: Node) -> None:
        """A function of one tensor written in several elementwise operations."""
        if node.type not in self.elementwise or not self.floating(node):
            return
        alone: Piece | None = None  # what one operation is, unless it is a part of a function: relu of relu6
        for root, nodes in self._regions(node):
            interior = {name for n in nodes if n is not node for name in n.outputs}
            members = {n.index for n in nodes}
            leaks = any(r not in members for name in interior for r in self.readers.get(name, ())) or interior & set(
                self.graph.outputs
            )
            if leaks:
                continue
            grid = self.on_grid(root, sorted(nodes, key=lambda n: n.index), node.outputs[0])
            known = None if grid is None else known_function(np.broadcast_to(grid, GRID.shape))
            if known:
                piece = Piece("activation", [root], node.outputs[0], members, node.index, known)
                if len(nodes) > 1:
                    return self.add(piece)
                alone = piece
        if alone:
            self.add(alone)

    def _regions(self, node: Node, limit: int = 14) -> Iterator[tuple[str, list[Node]]]:
        """(tensor, the elementwise nodes that make the node's result of it alone), nearest first."""
        nodes, front = [node], set(self.dynamic(node))
        shape = self.shape(node.outputs[0])
        for _ in range(limit):
            if not all(self._scalar(name) for n in nodes[-1:] for name in n.inputs if name not in self.graph.dynamic):
                return
            if len(front) == 1 and self.shape(next(iter(front))) == shape:
                yield next(iter(front)), nodes
            last = max(front, key=lambda name: self.graph.producer.get(name, -1))
            before = self.nodes.get(self.graph.producer.get(last, -1))
            if not before or before.type not in self.elementwise or before.index in self.claimed:
                return
            front = front - {last} | set(self.dynamic(before))
            nodes = [*nodes, before]

    def _scalar(self, tensor: str) -> bool:
        return math.prod(self.shape_of_static(tensor)) == 1 and not self._weight(tensor)

    def _weight(self, tensor: str) -> bool:
        read = (name for n in self.graph.program([tensor], []) for name in n.inputs)
        return tensor in self.graph.names or any(name in self.graph.names for name in read)

    # What is left

    def _single(self, node: Node) -> None:
        moving = self.dynamic(node)
        for number, output in enumerate(node.outputs):
            if output not in self.graph.outputs and not self.readers.get(output):
                continue
            kind, attributes = self.described(node, number)
            bindings: dict[str, Binding] = {}
            operands: tuple[int, ...] = ()
            still = [name for name in self.operands(node) if name not in self.graph.dynamic]
            if kind == "normalization":
                bindings = {r: self.binding(n) for r, n in zip(("scale", "shift", "mean", "variance"), still, strict=True)}
            elif kind == "embedding":
                bindings = {"kernel": self.binding(node.inputs[0])}
            elif kind in OPERATORS or kind in ("matmul", "concatenate"):
                bindings = {role: self.binding(name) for role, name in zip(("constant",), still, strict=False)}
                operands = tuple(i for i, name in enumerate(node.inputs) if name in self.graph.dynamic) if still else ()
            elif kind == "other":
                bindings = {"constant": self.binding(still[0])} if still and self._weight(still[0]) else {}
            if attributes.pop("shrunk", False):
                name, shaped = f"{output}/kept", _shaped(attributes.pop("kept"))
                self.add(Piece(kind, moving, output, {node.index}, node.index, attributes, output=name, after=shaped))
                self._reshaped(name, output, self.shape(output), node.index)
            else:
                self.add(Piece(kind, moving, output, {node.index}, node.index, attributes, bindings, operands))


def _shaped(shape: Sequence[int]) -> Change:
    return lambda t: ops.reshape(t, shape)


def slice_attributes(ranges: Sequence[tuple[int, int, int]], shrunk: bool = False) -> dict[str, Any]:
    starts, stops, steps = zip(*ranges, strict=True)
    attributes = {"starts": starts, "stops": stops, "steps": steps}
    return {**attributes, "shrunk": True, "kept": tuple(len(range(*r)) for r in ranges)} if shrunk else attributes


# Layers that are one operation: {class: (layer, terms, inputs) -> (kind, attributes, {role: variable}), or None}

Layered = tuple[str, dict[str, Any], dict[str, Any]] | None


def _batch_norm(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    rank = len(terms.shape(inputs[0]))
    training = bool(terms.training and layer.trainable)
    attributes = {
        "over": "batch",
        "channels": rank - 1 if isinstance(layer, layers.BatchNorm) else layer.axis % rank,
        "epsilon": float(layer.epsilon),
        "momentum": round(1 - float(layer.momentum), 12),
        "training": training,
    }
    roles = {"scale": layer.gamma, "shift": layer.beta, "mean": layer.moving_mean, "variance": layer.moving_variance}
    return "normalization", attributes, roles


def _other_norm(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    rank = len(terms.shape(inputs[0]))
    attributes: dict[str, Any] = {"epsilon": float(layer.epsilon), "momentum": None, "training": False}
    roles = {"scale": getattr(layer, "gamma", None), "shift": getattr(layer, "beta", None)}
    if isinstance(layer, keras.layers.GroupNormalization):
        channels = layer.axis % rank
        groups = layer.groups if layer.groups > 0 else terms.shape(inputs[0])[channels]
        return "normalization", {"over": "group", "channels": channels, "groups": groups, **attributes}, roles
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if isinstance(layer, keras.layers.RMSNormalization):
        roles = {"scale": layer.scale}
        return "normalization", {"over": "rms", "channels": tuple(a % rank for a in axes), **attributes}, roles
    return "normalization", {"over": "layer", "channels": tuple(a % rank for a in axes), **attributes}, roles


def _upsampling(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    shape = terms.shape(inputs[0])
    factors = layer.size if isinstance(layer.size, (list, tuple)) else [layer.size]
    channels = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else len(shape) - 1
    spatial = [n for axis, n in enumerate(shape) if axis not in (0, channels)]
    how = getattr(layer, "interpolation", "nearest")
    size = tuple(n * factor for n, factor in zip(spatial, factors, strict=True))
    return "upsample", {"channels": channels, "how": how, "size": size, "align_corners": False, "half_pixel": True}, {}


def _ours(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    size = tuple(n * layer.scale for n in terms.shape(inputs[0])[1:3])
    return "upsample", {"channels": 3, "how": "bilinear", "size": size, "align_corners": False, "half_pixel": True}, {}


def _embedding(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    return "embedding", {}, {"kernel": layer.embeddings}


def _recurrent(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    config = {key: str(value) for key, value in layer.get_config().items() if isinstance(value, (bool, int, float, str))}
    return "other", {"operation": type(layer).__name__, "arguments": config}, {}


def _dropout(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    return "dropout", {"rate": float(layer.rate), "training": terms.training}, {}


def _local_response(layer: Any, terms: Terms, inputs: list[str]) -> Layered:
    attributes = {"size": layer.size, "alpha": float(layer.alpha), "beta": float(layer.beta), "k": float(layer.k)}
    return "local_response_normalization", {"channels": len(terms.shape(inputs[0])) - 1, **attributes}, {}


LAYERS: dict[type, Callable[[Any, Terms, list[str]], Layered]] = {
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.LayerNormalization: _other_norm,
    keras.layers.GroupNormalization: _other_norm,
    keras.layers.RMSNormalization: _other_norm,
    keras.layers.UpSampling1D: _upsampling,
    keras.layers.UpSampling2D: _upsampling,
    keras.layers.UpSampling3D: _upsampling,
    layers.Upsample: _ours,
    keras.layers.Dropout: _dropout,
    keras.layers.Embedding: _embedding,
    keras.layers.RNN: _recurrent,
    layers.LocalResponseNorm: _local_response,
}
