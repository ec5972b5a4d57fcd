"""A graph of JAX's primitives in the common terms of `shared.operations`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import numpy as jnp

from shared.interpolation import interpolation_matrix
from shared.operations import GRID

from . import terms
from .jax_graph import BROADCAST, Node
from .terms import Binding, Change, Described, Piece, slice_attributes

BINARY = {
    "add": "add", "add_any": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "max": "maximum",
    "min": "minimum", "pow": "power",
}  # fmt: skip
UNARY = {
    "relu": "relu", "relu6": "relu6", "logistic": "sigmoid", "tanh": "tanh", "exp": "exp", "log": "log", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "square": "square", "integer_pow": "square", "abs": "abs", "neg": "neg", "erf": "erf", "erfc": "erfc",
    "sin": "sin", "cos": "cos", "log1p": "log1p", "expm1": "expm1", "floor": "floor", "round": "round", "sign": "sign",
}  # fmt: skip
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}
ELEMENTWISE = (set(UNARY) | BROADCAST | {"add_any", "not", "clamp", "is_finite", "convert_element_type"}) - {"rem", "atan2"}
BETWEEN = (  # the products of queries and keys, and their weights
    "transpose", "reshape", "broadcast_in_dim", "mul", "div", "add", "sub", "max", "exp", "reduce_max", "reduce_sum",
    "stop_gradient", "select_n",
)  # fmt: skip
RESHAPES = {"reshape", "squeeze", "expand_dims"}


class Terms(terms.Terms):
    """The pieces of a graph of JAX's."""

    elementwise = ELEMENTWISE
    additions = ("add",)

    @property
    def finders(self) -> tuple[Callable[[Any], None], ...]:
        return (self._named, self._attention, self._softmax, self._mean, self._reduction, self._anchor)

    def undone(self, node: Node) -> Change | None:
        """The way back through a node that only rearranges its first input; None for others."""
        shape, params = self.graph.shapes[node.inputs[0]], node.params
        if node.type in RESHAPES or (node.type == "broadcast_in_dim" and self._adds_axes(node)):
            return lambda t: jnp.reshape(t, shape)
        if node.type == "transpose":
            order = _inverse(params["permutation"])
            return lambda t: jnp.transpose(t, order)
        if node.type == "rev":
            return lambda t: jnp.flip(t, params["dimensions"])
        return None

    def floating(self, node: Node) -> bool:
        """Whether a node's result is of floats."""
        return node.floating

    def on_grid(self, root: str, nodes: Sequence[Node], output: str) -> np.ndarray | None:
        """What elementwise nodes make of `GRID` in place of the tensor `root`, or None if that is not of floats."""
        given: dict[str, Any] = {root: jnp.asarray(GRID)}
        for name in {name for node in nodes for name in node.inputs if name not in self.graph.dynamic}:
            given[name] = jnp.asarray(self.graph.static(name).reshape(-1)[0])
        grid = self.graph.run(nodes, given)[output]
        return np.asarray(grid) if grid.dtype == jnp.float64 else None

    def _adds_axes(self, node: Node) -> bool:
        """Whether a broadcast only adds axes of size 1."""
        return math.prod(self.graph.shapes[node.inputs[0]]) == math.prod(self.graph.shapes[node.outputs[0]])

    def _constant(self, tensor: str) -> float | None:
        """The number that a tensor consists of, whatever its shape, if it is neither of the input nor of a weight."""
        if tensor in self.graph.dynamic or self._weight(tensor):
            return None
        values = np.unique(self.graph.static(tensor))
        return float(values[0]) if len(values) == 1 else None

    def _spread(self, tensor: str) -> tuple[str, set[int]]:
        """(the tensor before axes of size 1 were added to it, the nodes that did)."""
        nodes: set[int] = set()
        while (node := self.maker(tensor, "broadcast_in_dim", "reshape", "stop_gradient")) is not None:
            if node.type != "stop_gradient" and not self._adds_axes(node):
                break
            nodes.add(node.index)
            tensor = node.inputs[0]
        return tensor, nodes

    # Functions of JAX's that are many primitives

    def _named(self, node: Node) -> None:
        """What `jnp.pad` and `jax.image.resize` do, told by what they compute."""
        for function, number in node.within:
            describe = {"_pad": self._padding, "_resize": self._resizing}.get(function)
            if not describe:
                continue
            nodes = {n.index for n in self.nodes.values() if (function, number) in n.within}
            found = self._only(nodes)
            if not found or nodes & self.claimed or {self.nodes[index].type for index in nodes} == {"pad"}:
                continue
            source, output = found
            program = self.graph.program([output], [source])

            def run(array: np.ndarray) -> np.ndarray:
                return np.asarray(self.graph.run(program, {source: jnp.asarray(array)})[output])  # noqa: B023

            described = describe(run, self.shape(source), self.shape(output))
            if described:
                self.add(Piece(described[0], [source], output, nodes, max(nodes), described[1]))
                return

    def _only(self, nodes: set[int]) -> tuple[str, str] | None:
        """(the only tensor that nodes read from without, the only one read without), or None."""
        read, used = self.borders(nodes)
        return (read[0], used[0]) if len(read) == len(used) == 1 else None

    def _padding(self, run: Callable[[np.ndarray], np.ndarray], shape: Sequence[int], made: Sequence[int]) -> Described:
        """A pad by reflection or of the edge."""
        axes = range(len(shape))

        def line(axis: int) -> np.ndarray:
            """The places along an axis that it takes."""
            places = np.expand_dims(np.arange(float(shape[axis])), [other for other in axes if other != axis])
            return np.moveaxis(run(np.broadcast_to(places, shape)), axis, 0).reshape(made[axis], -1)[:, 0]

        lines = [line(axis) for axis in axes]
        x = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
        for mode in ("edge", "reflect", "symmetric"):
            amounts = tuple(_amounts(places, size, mode) for places, size in zip(lines, shape, strict=True))
            if np.array_equal(np.pad(x, amounts, mode), run(x)):
                return "pad", {"amounts": amounts, "mode": mode, "value": 0.0}
        return None

    def _resizing(self, run: Callable[[np.ndarray], np.ndarray], shape: Sequence[int], made: Sequence[int]) -> Described:
        """Nearest or bilinear interpolation of pixels at their centres."""
        axes = [axis for axis, (a, b) in enumerate(zip(shape, made, strict=True)) if a != b] if len(shape) == len(made) else []
        if len(shape) != 4 or not axes or not (set(axes) <= {1, 2} or set(axes) <= {2, 3}):
            return None
        channels = 3 if set(axes) <= {1, 2} else 1
        size = tuple(n for axis, n in enumerate(made) if axis not in (0, channels))
        x = np.random.default_rng(0).normal(size=shape)
        bilinear = nearest = x
        for axis in axes:
            matrix = interpolation_matrix(shape[axis], made[axis])
            bilinear = np.moveaxis(np.tensordot(matrix, bilinear, (1, axis)), 0, axis)
            places = np.floor((np.arange(made[axis]) + 0.5) * shape[axis] / made[axis]).astype(int)
            nearest = np.take(nearest, places, axis)
        for how, wanted in (("nearest", nearest), ("bilinear", bilinear)):
            if np.allclose(run(x), wanted, rtol=1e-6, atol=1e-6):
                attributes = {"how": how, "size": size, "align_corners": False, "half_pixel": True}
                return "upsample", {"channels": channels, **attributes}
        return None

    def _softmax(self, node: Node) -> None:
        """exp(x - max x) / sum exp(x - max x), and its logarithm."""
        if node.type not in ("div", "sub") or len(self.dynamic(node)) != 2:
            return
        last, nodes = self._spread(node.inputs[1])
        logarithm = self.maker(last, "log") if node.type == "sub" else None
        if logarithm:
            last, more = self._spread(logarithm.inputs[0])
            nodes |= more | {logarithm.index}
        total = self.maker(last, "reduce_sum")
        power = self.maker(total.inputs[0], "exp") if total else None
        shifted = self.maker(power.inputs[0], "sub") if power else None
        wanted = (shifted if node.type == "sub" else power) if power and shifted else None
        if not total or not power or not shifted or not wanted or wanted.outputs[0] != node.inputs[0]:
            return
        last, more = self._spread(shifted.inputs[1])
        highest = self.maker(last, "max")  # with minus infinity
        if highest and len(self.dynamic(highest)) == 1:
            more |= {highest.index}
            last = self.dynamic(highest)[0]
        peak = self.maker(last, "reduce_max")
        axes = tuple(total.params["axes"])
        if not peak or peak.inputs[0] != shifted.inputs[0] or tuple(peak.params["axes"]) != axes or len(axes) != 1:
            return
        nodes |= more | {node.index, total.index, power.index, shifted.index, peak.index}
        found = self._only(nodes)
        if found and found[1] == node.outputs[0]:
            function = "softmax" if node.type == "div" else "log_softmax"
            attributes = {"function": function, "axis": int(axes[0])}
            self.add(Piece("activation", [found[0]], node.outputs[0], nodes, node.index, attributes))

    def _mean(self, node: Node) -> None:
        """A sum that is divided by the number of its terms."""
        if node.type not in ("div", "mul") or len(self.dynamic(node)) != 1:
            return
        summed, nodes = self._spread(self.dynamic(node)[0])
        total = self.maker(summed, "reduce_sum")
        divisor = self._constant(next(name for name in node.inputs if name not in self.graph.dynamic)) if total else None
        if not total or not divisor or node.inputs[0] not in self.graph.dynamic:
            return
        shape, axes = self.shape(total.inputs[0]), tuple(int(axis) for axis in total.params["axes"])
        count = math.prod(shape[axis] for axis in axes)
        keep = self.shape(node.outputs[0]) == _kept(shape, axes)
        gone = tuple(size for axis, size in enumerate(shape) if axis not in axes)
        if not math.isclose(divisor if node.type == "div" else 1 / divisor, count, rel_tol=1e-6):
            return
        if not keep and self.shape(node.outputs[0]) != gone:
            return
        nodes |= {node.index, total.index}
        if self._only(nodes):
            attributes = {"axes": tuple(sorted(axes)), "keep": keep}
            self.add(Piece("mean", [total.inputs[0]], node.outputs[0], nodes, node.index, attributes))

    def _reduction(self, node: Node) -> None:
        """A reduction whose axes are put back, of size 1."""
        after = self.reader(node.outputs[0], "broadcast_in_dim", "reshape") if node.type in REDUCTIONS else None
        axes = tuple(sorted(int(axis) for axis in node.params["axes"])) if after else ()
        if after and self.shape(after.outputs[0]) == _kept(self.shape(node.inputs[0]), axes):
            attributes = {"how": REDUCTIONS[node.type], "axes": axes, "keep": True}
            nodes = {node.index, after.index}
            self.add(Piece("reduce", [node.inputs[0]], after.outputs[0], nodes, after.index, attributes))

    # Attention

    def _attention(self, node: Node) -> None:
        """Softmax of scaled products of queries and keys, times values, all over (batch, time, heads, features)."""
        if node.type != "dot_general" or len(self.dynamic(node)) != 2:
            return
        for place, other in ((0, 1), (1, 0)):
            products, between, scale = self._between(node.inputs[place])
            if products:
                sides = [self._back(name) for name in (*products.inputs, node.inputs[other])]
                output, after = self._forth(node)
                query, key, value = (side[0] for side in sides)
                scale *= math.prod(side[2] for side in sides)
                nodes = {node.index, products.index}.union(between, after, *(side[1] for side in sides))
                for operands in ([query, key, value], [key, query, value]):
                    causal = self._is_attention(operands, output, nodes, scale)
                    if causal is not None:
                        self._add_attention(operands, output, nodes, {"scale": scale, "causal": causal})
                        return

    def _between(self, tensor: str) -> tuple[Node | None, set[int], float]:
        """(the product of two tensors of which a softmax makes a tensor, the nodes from it on, their constant factors)."""
        waiting, sources, nodes, factor = [tensor], set[str](), set[int](), 1.0
        while waiting:
            name = waiting.pop()
            node = self.maker(name, *BETWEEN)
            if node is None:
                sources.add(name)
            elif node.index not in nodes:
                nodes.add(node.index)
                waiting += self.dynamic(node)
                factor *= self._factor(node) or 1.0
        products = self.maker(sources.pop(), "dot_general") if len(sources) == 1 else None
        fits = products and len(self.dynamic(products)) == 2 and any(self.nodes[index].type == "exp" for index in nodes)
        return (products if fits else None), nodes, factor

    def _factor(self, node: Node) -> float | None:
        """The number by which a node multiplies a tensor, if it does that."""
        still = [name for name in node.inputs if name not in self.graph.dynamic]
        if node.type not in ("mul", "div") or len(still) != 1 or (node.type == "div" and still[0] == node.inputs[0]):
            return None
        number = self._constant(still[0])
        return number if node.type == "mul" or not number else 1 / number

    def _back(self, tensor: str) -> tuple[str, set[int], float]:
        """(the tensor with four axes before one was scaled and rearranged, the nodes that did so, their constant factors)."""
        nodes: set[int] = set()
        factor = 1.0
        while (node := self.maker(tensor, "transpose", "reshape", "mul", "div")) is not None:
            scaled = self._factor(node)
            if len(self.dynamic(node)) != 1 or (
                scaled is None if node.type in ("mul", "div") else len(self.shape(tensor)) == 4
            ):
                break
            factor *= scaled or 1.0
            nodes.add(node.index)
            tensor = self.dynamic(node)[0]
        return tensor, nodes, factor

    def _forth(self, node: Node) -> tuple[str, set[int]]:
        """(the first tensor after a node that has four axes and time before heads, the nodes up to there)."""
        tensor, nodes = node.outputs[0], set[int]()
        while (after := self.reader(tensor, "transpose", "reshape")) is not None:
            if len(self.shape(tensor)) == 4 and after.type == "reshape":
                break
            nodes.add(after.index)
            tensor = after.outputs[0]
        return tensor, nodes

    def _is_attention(self, operands: list[str], output: str, nodes: set[int], scale: float) -> bool | None:
        """Whether the attention that a part of the graph computes is causal; None if it is no attention."""
        read, used = self.borders(nodes)
        if set(read) != set(operands) or used != [output] or any(len(self.shape(name)) != 4 for name in (*operands, output)):
            return None
        program = self.graph.program([output], operands)
        rng = np.random.default_rng(0)
        query, key, value = arrays = [rng.normal(size=self.shape(name)) for name in operands]
        if query.shape[2:] != key.shape[2:] or key.shape != value.shape:
            return None
        result = self.graph.run(program, dict(zip(operands, map(jnp.asarray, arrays), strict=True)))[output]
        scores = scale * np.einsum("bqhd,bkhd->bhqk", query, key)
        for causal in (False, True):
            masked = np.where(np.tri(*scores.shape[2:]) > 0, scores, -np.inf) if causal else scores
            weights = np.exp(masked - masked.max(-1, keepdims=True))
            wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)
            if wanted.shape == result.shape and np.allclose(result, wanted, rtol=1e-6, atol=1e-8):
                return causal
        return None

    def _add_attention(self, operands: list[str], output: str, nodes: set[int], attributes: dict[str, Any]) -> None:
        order = (0, 2, 1, 3)
        names = [self._heads_first(name, max(nodes), number) for number, name in enumerate(operands)]

        def turned(t: Any) -> Any:
            return jnp.transpose(t, order)

        made = f"{output}/heads"
        self.add(
            Piece(
                "attention", names, output, nodes, max(nodes), attributes, output=made, given=operands, before=[turned] * 3,
                after=turned,
            )
        )  # fmt: skip
        self._transposed(made, output, order, max(nodes))

    # Convolutions, pools and matrix products

    def _anchor(self, node: Node) -> None:
        """A convolution, a pool or a product with a weight, together with what surrounds it."""
        moving = [name in self.graph.dynamic for name in node.inputs]
        if node.type == "conv_general_dilated" and moving == [True, False]:
            self._convolution(node)
        elif node.type in ("reduce_window_max", "reduce_window_sum") and moving[0]:
            self._pool(node)
        elif node.type == "dot_general" and moving == [True, False]:
            self._linear(node)

    def _convolution(self, node: Node) -> None:
        params, (source, kernel) = node.params, node.inputs
        into, form, out = params["dimension_numbers"]
        spread, dilation = tuple(params["lhs_dilation"]), tuple(params["rhs_dilation"])
        size = [self.shape_of_static(kernel)[axis] for axis in form]
        turned = any(n.type == "rev" for n in self.graph.program([kernel], []))
        transposed = turned or any(step > 1 for step in spread)
        plain = into == out and list(into[2:]) == sorted(into[2:]) and params["batch_group_count"] == 1
        if not plain or (transposed and any(step > 1 for step in params["window_strides"])):
            return
        padding = tuple((int(a), int(b)) for a, b in params["padding"])
        groups = int(params["feature_group_count"])
        if transposed:
            reach = [d * (k - 1) for d, k in zip(dilation, size[2:], strict=True)]
            padding = tuple((r - a, r - b) for r, (a, b) in zip(reach, padding, strict=True))
        attributes = {
            "channels": into[1],
            "stride": tuple(spread if transposed else params["window_strides"]),
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "transposed": transposed,
        }
        nodes = {node.index}
        tensor, bias = self._bias(node.outputs[0], nodes, into[1])
        bindings = {"kernel": self.binding(kernel, *_kernel(form, groups, transposed)), **bias}
        self.add(Piece("convolution", [source], tensor, nodes, max(nodes), attributes, bindings))

    def _pool(self, node: Node) -> None:
        params = node.params
        window, strides, padding = (params[name] for name in ("window_dimensions", "window_strides", "padding"))
        wide = [axis for axis in range(len(window)) if window[axis] > 1 or strides[axis] > 1 or any(padding[axis])]
        rank = len(window)
        channels = 1 if wide and min(wide) > 1 else rank - 1
        axes = [axis for axis in range(1, rank) if axis != channels]
        spread = (*params["base_dilation"], *params["window_dilation"])
        if not set(wide) <= set(axes) or any(step > 1 for step in spread):
            return
        nodes, output, padded = {node.index}, node.outputs[0], any(map(any, padding))
        counted = False
        if node.type == "reduce_window_sum":
            divided = self.reader(output, "div")
            if not divided or divided.inputs[1] in self.graph.dynamic:
                return
            count = self.graph.static(divided.inputs[1])
            counted = padded and bool((count == math.prod(window)).all())
            ones = self.graph.run([node], {node.inputs[0]: jnp.ones(self.shape(node.inputs[0]))})[output]
            if not (counted or np.array_equal(np.broadcast_to(count, np.shape(ones)), ones)):
                return
            nodes.add(divided.index)
            output = divided.outputs[0]
        attributes = {
            "channels": channels,
            "stride": tuple(strides[axis] for axis in axes),
            "padding": tuple(tuple(map(int, padding[axis])) for axis in axes),
            "window": tuple(window[axis] for axis in axes),
            "how": "max" if node.type == "reduce_window_max" else "average",
            "count_padding": counted,
        }
        self.add(Piece("pool", [node.inputs[0]], output, nodes, max(nodes), attributes))

    def _linear(self, node: Node) -> None:
        """A product of the last axes with a weight, whose own axes may be several: reshapes stand around it then."""
        source, kernel = node.inputs
        (left, right), batch = node.params["dimension_numbers"]
        shape, size, form = self.shape(source), self.shape_of_static(kernel), self.shape(node.outputs[0])
        pairs = sorted(zip(left, right, strict=True))
        if any(batch) or [a for a, _ in pairs] != list(range(len(shape) - len(pairs), len(shape))):
            return
        order = [b for _, b in pairs] + [axis for axis in range(len(size)) if axis not in right]
        rows = math.prod(size[axis] for axis in right)
        back, whole = _inverse(order), tuple(size[axis] for axis in order)
        binding = self.binding(
            kernel,
            lambda t: jnp.reshape(jnp.transpose(t, order), (rows, -1)),
            lambda t: jnp.transpose(jnp.reshape(t, whole), back),
        )
        kept = shape[: len(shape) - len(pairs)]
        nodes, columns, given, before = {node.index}, form[len(kept) :], [source], list[Change]()
        channels = {"channels": len(kept)}
        if len(pairs) > 1:
            name = f"{source}/flat/{node.index}"
            self._reshaped(source, name, (*kept, rows), node.index)
            given, before = [name], [lambda t: jnp.reshape(t, shape)]
        tensor, bias = self._bias_of(node.outputs[0], nodes, columns)
        bindings = {"kernel": binding, **bias}
        if len(columns) == 1:
            self.add(Piece("linear", given, tensor, nodes, max(nodes), channels, bindings, given=[source], before=before))
            return
        output, flat = f"{tensor}/flat", (*kept, math.prod(columns))
        self.add(
            Piece(
                "linear", given, tensor, nodes, max(nodes), channels, bindings, output=output, given=[source], before=before,
                after=lambda t: jnp.reshape(t, flat),
            )
        )  # fmt: skip
        self._reshaped(output, tensor, form, max(nodes))

    def _bias_of(self, tensor: str, nodes: set[int], columns: Sequence[int]) -> tuple[str, dict[str, Binding]]:
        """(result with the bias, {"bias": it}) if one is added to all columns of a product, or (the tensor, nothing)."""
        if len(columns) == 1:
            return self._bias(tensor, nodes, -1)
        node = self.reader(tensor, "add")
        other = next((name for name in node.inputs if name != tensor), "") if node else ""
        if not node or not other or other in self.graph.dynamic:
            return tensor, {}
        size = self.shape_of_static(other)
        if math.prod(size) != math.prod(columns) or tuple(size[-len(columns) :]) != tuple(columns):
            return tensor, {}
        nodes.add(node.index)
        return node.outputs[0], {"bias": self.binding(other, lambda t: jnp.reshape(t, (-1,)), lambda t: jnp.reshape(t, size))}

    # What is left

    def described(self, node: Node, number: int) -> tuple[str, dict[str, Any]]:
        """(kind, attributes) of one result of a node."""
        if node.type in UNARY:
            return "activation", {"function": UNARY[node.type]}
        if node.type in BINARY:
            return BINARY[node.type], {}
        if node.type == "stop_gradient":
            return "stop_gradient", {}
        describe = DESCRIBED.get(node.type)
        if describe and (found := describe(self, node, number)):
            return found
        arguments = {
            name: str(value) for name, value in node.params.items() if isinstance(value, (bool, int, float, str, tuple))
        }
        return "other", {"operation": node.type, "arguments": arguments}


def _amounts(line: np.ndarray, size: int, mode: Any) -> tuple[int, int]:
    """What a pad has put before and after this many places, so that they became the line; (0, 0) if it was not of this mode."""
    more = len(line) - size
    pairs = [(before, more - before) for before in range(more + 1)]
    return next((pair for pair in pairs if np.array_equal(np.pad(np.arange(size), pair, mode), line)), (0, 0))


def _kept(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """A shape whose axes that are reduced stay, of size 1."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(np.argsort(order).tolist())


def _kernel(form: Sequence[int], groups: int, transposed: bool) -> tuple[Change, Change]:
    """From the axes that `form` names, to (out, in / groups, height, width), and back.

    That of a transposed convolution, which JAX has turned around, becomes (in, out / groups, height, width).
    """
    back = _inverse(form)

    def exchanged(t: Any) -> Any:
        first, second, *size = t.shape
        t = jnp.reshape(t, (groups, first // groups, second, *size))
        return jnp.flip(
            jnp.reshape(jnp.swapaxes(t, 1, 2), (groups * second, first // groups, *size)), tuple(range(2, t.ndim - 1))
        )

    if transposed:
        return lambda t: exchanged(jnp.transpose(t, form)), lambda t: jnp.transpose(exchanged(t), back)
    return lambda t: jnp.transpose(t, form), lambda t: jnp.transpose(t, back)


def _reduce(terms: Terms, node: Node, number: int) -> Described:
    axes = tuple(sorted(int(axis) for axis in node.params["axes"]))
    return "reduce", {"how": REDUCTIONS[node.type], "axes": axes, "keep": False}


def _concatenate(terms: Terms, node: Node, number: int) -> Described:
    if sum(name not in terms.graph.dynamic for name in terms.operands(node)) > 1:
        return None
    return "concatenate", {"axis": int(node.params["dimension"])}


def _reshape(terms: Terms, node: Node, number: int) -> Described:
    if node.type == "broadcast_in_dim" and not terms._adds_axes(node):
        return None
    return "reshape", {"shape": terms.shape(node.outputs[0])}


def _transpose(terms: Terms, node: Node, number: int) -> Described:
    return "transpose", {"order": tuple(int(axis) for axis in node.params["permutation"])}


def _pad(terms: Terms, node: Node, number: int) -> Described:
    amounts = tuple((int(before), int(after)) for before, after, _ in node.params["padding_config"])
    value = terms._constant(node.inputs[1])
    between = any(inner for _, _, inner in node.params["padding_config"])
    if value is None or between or any(n < 0 for pair in amounts for n in pair):
        return None
    return "pad", {"amounts": amounts, "mode": "constant", "value": value}


def _slice(terms: Terms, node: Node, number: int) -> Described:
    starts, stops = node.params["start_indices"], node.params["limit_indices"]
    steps = node.params["strides"] or [1] * len(starts)
    return "slice", slice_attributes([(int(a), int(b), int(c)) for a, b, c in zip(starts, stops, steps, strict=True)])


def _dynamic_slice(terms: Terms, node: Node, number: int) -> Described:
    """One whose places do not depend on the input."""
    if any(name in terms.graph.dynamic for name in node.inputs[1:]):
        return None
    shape, sizes = terms.shape(node.inputs[0]), node.params["slice_sizes"]
    places = [int(terms.graph.static(name)) for name in node.inputs[1:]]
    starts = [min(max(place, 0), whole - size) for place, whole, size in zip(places, shape, sizes, strict=True)]
    return "slice", slice_attributes([(a, a + n, 1) for a, n in zip(starts, sizes, strict=True)])


def _split(terms: Terms, node: Node, number: int) -> Described:
    axis, sizes = int(node.params["axis"]), [int(size) for size in node.params["sizes"]]
    ranges = [(0, n, 1) for n in terms.shape(node.inputs[0])]
    ranges[axis] = (sum(sizes[:number]), sum(sizes[: number + 1]), 1)
    return "slice", slice_attributes(ranges)


def _product(terms: Terms, node: Node, number: int) -> Described:
    """A product of matrices over the last two axes, as `matmul` has it."""
    (left, right), (first, second) = node.params["dimension_numbers"]
    rank = len(terms.shape(node.inputs[0]))
    leading = tuple(range(rank - 2))
    matrices = rank == len(terms.shape(node.inputs[1])) and len(left) == 1 and min(left[0], right[0]) >= rank - 2
    if not matrices or tuple(first) != leading or tuple(second) != leading:
        return None
    return "matmul", {"transpose": (left[0] == rank - 2, right[0] == rank - 1)}


def _cast(terms: Terms, node: Node, number: int) -> Described:
    return "cast", {"dtype": str(node.params["new_dtype"])}


DESCRIBED: dict[str, Callable[[Terms, Node, int], Described]] = {
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys((*RESHAPES, "broadcast_in_dim"), _reshape),
    "concatenate": _concatenate,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "dot_general": _product,
    "convert_element_type": _cast,
}
