"""A graph of TensorFlow's operations in the common terms of `shared.operations`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from shared.operations import GRID

from . import terms
from .tensorflow_graph import SHAPES, Node
from .terms import (
    Change,
    Described,
    Piece,
    slice_attributes,
)  # fmt: skip

CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2"}
POOLS = {"MaxPool": "max", "AvgPool": "average", "MaxPool3D": "max", "AvgPool3D": "average", "MaxPoolV2": "max"}
PRODUCTS = {"MatMul", "BatchMatMulV2", "BatchMatMulV3", "BatchMatMul", "Einsum"}
REARRANGED = {"Reshape", "Transpose", "ExpandDims", "Squeeze", "Cast", "ReadVariableOp"}
BINARY = {
    "AddV2": "add", "Add": "add", "Sub": "subtract", "Mul": "multiply", "RealDiv": "divide", "DivNoNan": "divide",
    "Maximum": "maximum", "Minimum": "minimum", "Pow": "power", "AddN": "add", "BiasAdd": "add",
}  # fmt: skip
UNARY = {
    "Relu": "relu", "Relu6": "relu6", "LeakyRelu": "leaky_relu", "Elu": "elu", "Selu": "selu", "Sigmoid": "sigmoid",
    "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign", "Softmax": "softmax", "LogSoftmax": "log_softmax",
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Rsqrt": "rsqrt", "Square": "square", "Abs": "abs", "Neg": "neg",
    "Erf": "erf", "Erfc": "erfc", "Reciprocal": "reciprocal", "Sin": "sin", "Cos": "cos", "Log1p": "log1p", "Expm1": "expm1",
    "Floor": "floor", "Round": "round", "Sign": "sign",
}  # fmt: skip
REDUCTIONS = {"Sum": "sum", "Max": "max", "Min": "min", "Prod": "prod"}
ELEMENTWISE = (
    (set(BINARY) - {"AddN", "BiasAdd"}) | (set(UNARY) - {"Softmax", "LogSoftmax"}) | {"ClipByValue", "SelectV2", "Less"}
)
ELEMENTWISE |= {"Greater", "GreaterEqual", "LessEqual", "ZerosLike", "OnesLike"}


class Terms(terms.Terms):
    """The pieces of a graph of TensorFlow's."""

    elementwise = ELEMENTWISE
    additions = ("BiasAdd", "AddV2", "Add")
    ignored = SHAPES

    @property
    def finders(self) -> tuple[Callable[[Any], None], ...]:
        return (self._attention, self._grouped, self._anchor)

    def operands(self, node: Node) -> list[str]:
        return node.inputs[:-1] if node.type == "ConcatV2" else super().operands(node)  # the last is the axis

    def undone(self, node: Node) -> Change | None:
        """The way back through a node that only rearranges its first input; None for others."""
        if node.type not in REARRANGED or any(name in self.graph.names for name in node.inputs[1:]):
            return None
        if node.type == "Transpose":
            order = tuple(np.argsort(self.graph.static(node.inputs[1])).tolist())
            return lambda t: tf.transpose(t, order)
        if node.type in ("Cast", "ReadVariableOp"):
            return lambda t: t
        form = self.shape_of_static(node.inputs[0])
        return lambda t: tf.reshape(t, form)

    def floating(self, node: Node) -> bool:
        """Whether a node's result is of floats."""
        return bool(node.op.outputs[0].dtype.is_floating)

    def on_grid(self, root: str, nodes: Sequence[Node], output: str) -> np.ndarray | None:
        """What elementwise nodes make of `GRID` in place of the tensor `root`, or None if that is not of floats."""
        statics = [self.graph.program([name], []) for n in nodes for name in n.inputs if name not in self.graph.dynamic]
        grid = self.graph.run([*(n for part in statics for n in part), *nodes], {root: tf.constant(GRID)})[output]
        return np.asarray(grid) if grid.dtype == tf.float64 else None

    # Attention

    def _attention(self, node: Node) -> None:
        """Softmax of scaled products of queries and keys, times values: einsums over (batch, time, heads, features)."""
        if node.type != "Softmax":
            return
        nodes, scale, causal, tensor = [node], 1.0, False, node.inputs[0]
        while (before := self.maker(tensor, "Mul", "RealDiv", "SelectV2")) is not None:
            moving = self.dynamic(before)
            if before.type == "SelectV2":
                if len(moving) != 1 or moving[0] != before.inputs[1] or not self._is_causal(before):
                    return
                causal = True
            elif len(moving) == 1:
                other = before.inputs[1 - before.inputs.index(moving[0])]
                if math.prod(self.graph.static(other).shape) != 1:
                    return
                factor = float(self.graph.static(other).reshape(-1)[0])
                scale *= factor if before.type == "Mul" else 1 / factor
            nodes.append(before)
            tensor = moving[0]
        first, last = self.maker(tensor, "Einsum"), self.reader(node.outputs[0], "Einsum")
        if not first or not last or len(self.dynamic(first)) != 2 or len(self.dynamic(last)) != 2:
            return
        (query, key), form = first.inputs, _letters(first.get("equation"))
        scaled = self.maker(query, "Mul")
        if scaled and len(self.dynamic(scaled)) == 1 and self.reader(query, "Einsum"):
            other = next(name for name in scaled.inputs if name not in self.graph.dynamic)
            if math.prod(self.graph.static(other).shape) == 1:
                scale *= float(self.graph.static(other).reshape(-1)[0])
                nodes.append(scaled)
                query = self.dynamic(scaled)[0]
        if form == "abcd,aecd->acbe":
            pass
        elif form == "abcd,aecd->aceb":  # the keys come first
            query, key = key, query
        else:
            return
        value = last.inputs[1] if last.inputs[0] == node.outputs[0] else last.inputs[0]
        operands = [query, key, value]
        indices = {n.index for n in [*nodes, first, last]}
        order = (0, 2, 1, 3)
        names = [self._heads_first(name, first.index, number) for number, name in enumerate(operands)]
        output = f"{last.outputs[0]}/heads"
        self.add(
            Piece(
                "attention", names, last.outputs[0], indices, last.index, {"scale": scale, "causal": causal}, output=output,
                given=operands, before=[lambda t: tf.transpose(t, order)] * 3, after=lambda t: tf.transpose(t, order),
            )
        )  # fmt: skip
        self._transposed(output, last.outputs[0], order, last.index)

    def _is_causal(self, node: Node) -> bool:
        """Whether a choice between products and a constant keeps those of no later key, and the constant hides the others."""
        mask, rows = self.graph.static(node.inputs[0]), self.shape(node.inputs[1])[-2:]
        hidden = self.graph.static(node.inputs[2])
        return bool(
            hidden.max() < -1e3 and (np.broadcast_to(mask, (*mask.shape[:-2], *rows)) == (np.tri(rows[0], rows[1]) > 0)).all()
        )

    # Convolutions, pools and matrix products

    def _grouped(self, node: Node) -> None:
        """A convolution in groups written as a split, convolutions and a concatenation."""
        if node.type != "ConcatV2" or len(node.inputs) < 3:
            return
        parts = [self.maker(name, "Conv2D") for name in node.inputs[:-1]]
        split = parts[0] and self.maker(parts[0].inputs[0], "Split")
        if not split or any(part is None or part.inputs[1] in self.graph.dynamic for part in parts):
            return
        whole = [part for part in parts if part]
        if [part.inputs[0] for part in whole] != split.outputs:
            return
        divided = self.graph.nodes.get(self.graph.producer.get(whole[0].inputs[1], -1))
        if not divided or divided.type != "Split" or [part.inputs[1] for part in whole] != divided.outputs:
            return
        attributes = {**self._windows(whole[0], self.shape(whole[0].inputs[0])), "groups": len(whole), "transposed": False}
        binding = self.binding(divided.inputs[1], *_kernel(2))
        nodes = {split.index, node.index, *(part.index for part in whole)}
        tensor, bias = self._bias(node.outputs[0], nodes, -1)
        bindings = {"kernel": binding, **bias}
        self.add(Piece("convolution", [split.inputs[1]], tensor, nodes, max(nodes), attributes, bindings))

    def _anchor(self, node: Node) -> None:
        """A convolution, a pool or a product with a weight, together with what surrounds it."""
        if node.type in POOLS and node.inputs[0] in self.graph.dynamic:
            self._pool(node)
        elif node.type in CONVOLUTIONS:
            data, kernel = (2, 1) if "BackpropInput" in node.type else (0, 1)
            if node.inputs[kernel] not in self.graph.dynamic and node.inputs[data] in self.graph.dynamic:
                self._convolution(node, node.inputs[data], node.inputs[kernel])
        elif node.type in PRODUCTS and len(node.inputs) == 2 and node.inputs[1] not in self.graph.dynamic:
            self._linear(node)

    def _around(self, node: Node, source: str) -> tuple[str, str, set[int], int, list[Any]]:
        """What is within a detour over another form: (input, output, nodes, axes more, space to batch's numbers)."""
        nodes, output, detour, more = {node.index}, node.outputs[0], [], 0
        expand, squeeze = self.maker(source, "ExpandDims"), self.reader(output, "Squeeze")
        if expand and squeeze and len(self.shape(expand.inputs[0])) == len(self.shape(squeeze.outputs[0])):
            nodes |= {expand.index, squeeze.index}
            source, output, more = expand.inputs[0], squeeze.outputs[0], 1
        space, batch = self.maker(source, "SpaceToBatchND"), self.reader(output, "BatchToSpaceND")
        if space and batch:
            nodes |= {space.index, batch.index}
            block, pads, crops = (self.graph.static(n) for n in (*space.inputs[1:], batch.inputs[2]))
            detour = [block.tolist(), [[int(a), int(b - c)] for (a, b), (_, c) in zip(pads, crops, strict=True)]]
            source, output = space.inputs[0], batch.outputs[0]
        return source, output, nodes, more, detour

    def _windows(self, node: Node, shape: Sequence[int], window: Sequence[int] = ()) -> dict[str, Any]:
        """Channels, stride, padding and dilation of a node on an input of a shape, a kernel's or a pool's window."""
        first = str(node.get("data_format", "NHWC")).startswith("NC")
        rank = len(shape)
        axes = range(2, rank) if first else range(1, rank - 1)
        window = window or self.shape_of_static(node.inputs[1])[: rank - 2]
        strides = [node.get("strides")[axis] for axis in axes]
        dilations = [(node.get("dilations") or [1] * rank)[axis] for axis in axes]
        reach = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
        padding = [(0, 0)] * len(axes)
        if node.get("padding") == "SAME":
            totals = [
                max((-(-shape[axis] // s) - 1) * s + r - shape[axis], 0)
                for axis, s, r in zip(axes, strides, reach, strict=True)
            ]
            padding = [(total // 2, total - total // 2) for total in totals]
        elif node.get("padding") == "EXPLICIT":
            padding = [tuple(node.get("explicit_paddings")[2 * axis : 2 * axis + 2]) for axis in axes]
        return {
            "channels": 1 if first else rank - 1,
            "stride": tuple(strides),
            "padding": tuple(padding),
            "dilation": tuple(dilations),
        }

    def _convolution(self, node: Node, source: str, kernel: str) -> None:
        rank = len(self.shape(source)) - 2
        size = self.shape_of_static(kernel)
        transposed, depthwise = "BackpropInput" in node.type, node.type == "DepthwiseConv2dNative"
        if transposed:  # the padding is that of the convolution whose gradient it is
            attributes = self._windows(node, self.shape(node.outputs[0]))
            attributes["padding"] = self._cut(attributes, self.shape(source), self.shape(node.outputs[0]), size)
        else:
            attributes = self._windows(node, self.shape(source))
        channels = self.shape(source)[attributes["channels"]]
        attributes["groups"] = channels if depthwise else channels // size[-1 if transposed else -2]
        attributes["transposed"] = transposed
        start, output, nodes, more, detour = self._around(node, source)
        if more:
            drop = 1 if self.shape(source)[1] == 1 and size[0] == 1 else 2
            attributes |= {key: attributes[key][drop - 1 + (drop == 1) :] for key in ("stride", "padding", "dilation")}
            attributes["channels"] -= 1
        if detour:
            attributes |= {"dilation": tuple(detour[0]), "padding": tuple((pair[0], pair[1]) for pair in detour[1])}
        tensor, bias = self._bias(output, nodes, attributes["channels"])
        form = _depthwise_kernel(size) if depthwise else _kernel(rank)
        bindings = {"kernel": self.binding(kernel, *_squeezed(form, size, more)), **bias}
        self.add(Piece("convolution", [start], tensor, nodes, max(nodes), attributes, bindings))

    def _cut(self, known: Mapping[str, Any], small: Sequence[int], large: Sequence[int], size: Sequence[int]) -> Any:
        """What a transposed convolution cuts off the whole result, pairs an axis."""
        first = known["channels"] == 1
        cuts = []
        for number, (before, _) in enumerate(known["padding"]):
            axis = number + (2 if first else 1)
            whole = (small[axis] - 1) * known["stride"][number] + known["dilation"][number] * (size[number] - 1) + 1
            cuts.append((before, whole - large[axis] - before))
        return tuple(cuts)

    def _pool(self, node: Node) -> None:
        source = node.inputs[0]
        shape = self.shape(source)
        first = str(node.get("data_format", "NHWC")).startswith("NC")
        window = [node.get("ksize")[axis] for axis in (range(2, len(shape)) if first else range(1, len(shape) - 1))]
        attributes = self._windows(node, shape, window)
        del attributes["dilation"]
        start, output, nodes, more, _ = self._around(node, source)
        attributes["window"] = tuple(window)
        if more:
            drop = 0 if shape[1] == 1 else 1
            keep = slice(1, None) if drop == 0 else slice(0, -1)
            attributes |= {key: attributes[key][keep] for key in ("stride", "padding", "window")}
            attributes["channels"] -= 1
        attributes |= {"how": POOLS[node.type], "count_padding": False}
        self.add(Piece("pool", [start], output, nodes, max(nodes), attributes))

    def _linear(self, node: Node) -> None:
        """A product with a matrix over the last axis, past reshapes that keep the others."""
        source, kernel = node.inputs
        size = self.shape_of_static(kernel)
        turned = bool(node.get("transpose_b") or node.get("adj_y"))
        if node.type == "Einsum":
            inputs, _, result = str(node.get("equation")).replace("...", "").partition("->")
            left, _, right = inputs.partition(",")
            plain = len(right) == 2 and left and result == left[:-1] + right[1] and right[0] == left[-1]
            if not plain:
                return
        if len(size) != 2 or node.get("transpose_a") or node.get("adj_x"):
            return
        nodes, output = {node.index}, node.outputs[0]
        width, shape = size[0] if turned else size[1], self.shape(output)
        before, after = self.maker(source, "Reshape"), self.reader(output, "Reshape")
        if before and after and self.shape(before.inputs[0])[:-1] == self.shape(after.outputs[0])[:-1]:
            if self.reader(before.outputs[0], node.type) and self.shape(after.outputs[0])[-1] == width:
                nodes |= {before.index, after.index}
                source, output, shape = before.inputs[0], after.outputs[0], self.shape(after.outputs[0])
                after = None
        split = self.reader(output, "Reshape")  # into heads, before the bias is added
        form = self.shape(split.outputs[0]) if split else ()
        if split and self.innermost.get(split.index) is self.innermost.get(node.index) and form[: len(shape) - 1] == shape[:-1]:
            self._linear_in_heads(nodes, source, kernel, split, turned, shape)
            return
        tensor, bias = self._bias(output, nodes, -1)
        bindings = {"kernel": self.binding(kernel, *_turned(turned)), **bias}
        channels = {"channels": len(self.shape(source)) - 1}
        self.add(Piece("linear", [source], tensor, nodes, max(nodes), channels, bindings))

    def _linear_in_heads(self, nodes: set[int], source: str, kernel: str, split: Node, turned: bool, shape: Any) -> None:
        """A product whose features are then divided into heads: a linear operation, and a reshape."""
        nodes.add(split.index)
        tensor, form = split.outputs[0], self.shape(split.outputs[0])
        bindings = {"kernel": self.binding(kernel, *_turned(turned))}
        node = self.reader(tensor, "AddV2", "Add")
        other = next((n for n in node.inputs if n != tensor), "") if node else ""
        if node and other not in self.graph.dynamic and math.prod(self.shape_of_static(other)) == shape[-1]:
            size = self.shape_of_static(other)
            bindings["bias"] = self.binding(other, lambda t: tf.reshape(t, (-1,)), lambda t: tf.reshape(t, size))
            nodes.add(node.index)
            tensor = node.outputs[0]
        output, channels = f"{tensor}/flat", {"channels": len(shape) - 1}
        change: Change = lambda t: tf.reshape(t, shape)  # noqa: E731
        self.add(Piece("linear", [source], tensor, nodes, max(nodes), channels, bindings, output=output, after=change))
        self._reshaped(output, tensor, form, max(nodes))

    def described(self, node: Node, number: int) -> tuple[str, dict[str, Any]]:
        """(kind, attributes) of one result of a node."""
        shape = self.shape(node.outputs[number])
        if node.type in UNARY:
            return "activation", _activation(node, len(shape))
        if node.type in BINARY:
            return BINARY[node.type], {}
        if node.type == "StopGradient":
            return "stop_gradient", {}
        if node.type in PRODUCTS and node.type != "Einsum":
            turned = (bool(node.get("transpose_a") or node.get("adj_x")), bool(node.get("transpose_b") or node.get("adj_y")))
            return "matmul", {"transpose": turned}
        for types, describe in DESCRIBED:
            if node.type in types and (described := describe(self, node, number)):
                return described
        arguments = {a.name: node.get(a.name) for a in node.op.op_def.attr if a.type not in ("type", "func", "tensor")}
        return "other", {"operation": node.type, "arguments": {name: str(value) for name, value in arguments.items()}}


def _letters(equation: Any) -> str:
    """An einsum's equation with letters in the order of their first use: "abcd,aecd->acbe"."""
    names: dict[str, str] = {}
    return "".join(names.setdefault(c, "abcdefghij"[len(names)]) if c.isalpha() else c for c in str(equation))


def _kernel(rank: int) -> tuple[Change, Change]:
    """From (height, width, in, out) to (out, in, height, width), and back; a transposed one's come out as (in, out, …)."""
    to, back = (rank + 1, rank, *range(rank)), (*range(2, rank + 2), 1, 0)
    return lambda t: tf.transpose(t, to), lambda t: tf.transpose(t, back)


def _depthwise_kernel(size: Sequence[int]) -> tuple[Change, Change]:
    """From (height, width, in, multiplier) to (in * multiplier, 1, height, width), and back."""
    height, width, channels, many = size
    return (
        lambda t: tf.transpose(tf.reshape(t, (height, width, 1, channels * many)), (3, 2, 0, 1)),
        lambda t: tf.reshape(tf.transpose(t, (2, 3, 1, 0)), (height, width, channels, many)),
    )


def _squeezed(form: tuple[Change, Change], size: Sequence[int], more: int) -> tuple[Change, Change]:
    """The layouts of a convolution over one axis that ran over two."""
    if not more:
        return form
    common, own = form
    axis = 2 if size[0] == 1 else 3
    return lambda t: tf.squeeze(common(t), axis), lambda t: own(tf.expand_dims(t, axis))


def _turned(turned: bool) -> tuple[Change, Change]:
    return (tf.transpose, tf.transpose) if turned else (lambda t: t, lambda t: t)


def _activation(node: Node, rank: int) -> dict[str, Any]:
    function: dict[str, Any] = {"function": UNARY[node.type]}
    if node.type == "LeakyRelu":
        function["slope"] = float(str(np.float32(node.get("alpha"))))
    elif node.type == "Elu":
        function["slope"] = 1.0
    elif node.type in ("Softmax", "LogSoftmax"):
        function["axis"] = rank - 1
    return function


def _axes(terms: Terms, tensor: str, rank: int) -> tuple[int, ...]:
    return tuple(sorted(int(axis) % rank for axis in terms.graph.static(tensor).reshape(-1)))


def _mean(terms: Terms, node: Node, number: int) -> Described:
    axes = _axes(terms, node.inputs[1], len(terms.shape(node.inputs[0])))
    return "mean", {"axes": axes, "keep": bool(node.get("keep_dims"))}


def _reduce(terms: Terms, node: Node, number: int) -> Described:
    axes = _axes(terms, node.inputs[1], len(terms.shape(node.inputs[0])))
    return "reduce", {"how": REDUCTIONS[node.type], "axes": axes, "keep": bool(node.get("keep_dims"))}


def _concatenate(terms: Terms, node: Node, number: int) -> Described:
    if sum(name not in terms.graph.dynamic for name in terms.operands(node)) > 1:
        return None
    return "concatenate", {"axis": int(terms.graph.static(node.inputs[-1])) % len(terms.shape(node.outputs[0]))}


def _reshape(terms: Terms, node: Node, number: int) -> Described:
    return "reshape", {"shape": terms.shape(node.outputs[0])}


def _transpose(terms: Terms, node: Node, number: int) -> Described:
    return "transpose", {"order": tuple(terms.graph.static(node.inputs[1]).tolist())}


def _pad(terms: Terms, node: Node, number: int) -> Described:
    amounts = tuple(map(tuple, terms.graph.static(node.inputs[1]).tolist()))
    value = float(terms.graph.static(node.inputs[2])) if node.type == "PadV2" else 0.0
    mode = {"REFLECT": "reflect", "SYMMETRIC": "symmetric"}.get(str(node.get("mode")), "constant")
    return "pad", {"amounts": amounts, "mode": mode, "value": value}


def _slice(terms: Terms, node: Node, number: int) -> Described:
    """StridedSlice, without new axes or an ellipsis; axes dropped are dropped by a reshape after it."""
    shape = terms.shape(node.inputs[0])
    begins, ends, steps = (terms.graph.static(name).tolist() for name in node.inputs[1:4])
    if node.get("new_axis_mask") or any(step < 0 for step in steps):
        return None
    masks = {name: int(node.get(f"{name}_mask")) for name in ("begin", "end", "ellipsis", "shrink_axis")}
    ranges: list[tuple[int, int, int]] = []
    shrunk = False
    for place, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        if masks["ellipsis"] >> place & 1:
            ranges += [(0, n, 1) for n in shape[len(ranges) : len(shape) - (len(begins) - place - 1)]]
            continue
        size = shape[len(ranges)]
        if masks["shrink_axis"] >> place & 1:
            shrunk = True
            ranges.append((begin % size, begin % size + 1, 1))
            continue
        chosen = slice(None if masks["begin"] >> place & 1 else begin, None if masks["end"] >> place & 1 else end, step)
        ranges.append(chosen.indices(size))
    ranges += [(0, n, 1) for n in shape[len(ranges) :]]
    return "slice", slice_attributes(ranges, shrunk)


def _basic_slice(terms: Terms, node: Node, number: int) -> Described:
    starts = terms.graph.static(node.inputs[1]).tolist()
    return "slice", slice_attributes([(a, a + n, 1) for a, n in zip(starts, terms.shape(node.outputs[0]), strict=True)])


def _split(terms: Terms, node: Node, number: int) -> Described:
    source = node.inputs[1] if node.type == "Split" else node.inputs[0]
    axis = int(terms.graph.static(node.inputs[0] if node.type == "Split" else node.inputs[2])) % len(terms.shape(source))
    start = sum(terms.shape(name)[axis] for name in node.outputs[:number])
    ranges = [(0, n, 1) for n in terms.shape(source)]
    ranges[axis] = (start, start + terms.shape(node.outputs[number])[axis], 1)
    return "slice", slice_attributes(ranges)


def _unpack(terms: Terms, node: Node, number: int) -> Described:
    shape = terms.shape(node.inputs[0])
    ranges = [(0, n, 1) for n in shape]
    ranges[node.get("axis") % len(shape)] = (number, number + 1, 1)
    return "slice", slice_attributes(ranges, True)


def _resize(terms: Terms, node: Node, number: int) -> Described:
    size = terms.shape(node.outputs[0])[1:3]
    how = {"ResizeNearestNeighbor": "nearest", "ResizeBilinear": "bilinear", "ResizeBicubic": "bicubic"}[node.type]
    corners, centres = bool(node.get("align_corners")), bool(node.get("half_pixel_centers"))
    return "upsample", {"channels": 3, "how": how, "size": size, "align_corners": corners, "half_pixel": centres}


def _norm(terms: Terms, node: Node, number: int) -> Described:
    if number or node.get("is_training") or any(name in terms.graph.dynamic for name in node.inputs[1:]):
        return None
    epsilon = float(str(np.float32(node.get("epsilon"))))
    channels = 1 if node.get("data_format") == "NCHW" else 3
    attributes = {"over": "batch", "channels": channels, "epsilon": epsilon, "momentum": None, "training": False}
    return "normalization", attributes


def _gather(terms: Terms, node: Node, number: int) -> Described:
    axis = int(terms.graph.static(node.inputs[2])) if node.type == "GatherV2" else 0
    words = node.inputs[0] not in terms.graph.dynamic and len(terms.shape_of_static(node.inputs[0])) == 2
    return ("embedding", {}) if words and not axis and not node.get("batch_dims") else None


def _cast(terms: Terms, node: Node, number: int) -> Described:
    return "cast", {"dtype": node.get("DstT").name}


def _lrn(terms: Terms, node: Node, number: int) -> Described:
    size = 2 * node.get("depth_radius") + 1
    alpha, beta, k = (float(str(np.float32(node.get(name)))) for name in ("alpha", "beta", "bias"))
    return "local_response_normalization", {"channels": 3, "size": size, "alpha": alpha * size, "beta": beta, "k": k}


DESCRIBED: list[tuple[set[str], Callable[[Terms, Node, int], Described]]] = [
    ({"Mean"}, _mean),
    (set(REDUCTIONS), _reduce),
    ({"ConcatV2"}, _concatenate),
    ({"Reshape", "ExpandDims", "Squeeze"}, _reshape),
    ({"Transpose"}, _transpose),
    ({"Pad", "PadV2", "MirrorPad"}, _pad),
    ({"StridedSlice"}, _slice),
    ({"Slice"}, _basic_slice),
    ({"Split", "SplitV"}, _split),
    ({"Unpack"}, _unpack),
    ({"ResizeNearestNeighbor", "ResizeBilinear", "ResizeBicubic"}, _resize),
    ({"FusedBatchNormV3"}, _norm),
    ({"GatherV2", "Gather", "ResourceGather"}, _gather),
    ({"Cast"}, _cast),
    ({"LRN"}, _lrn),
]
