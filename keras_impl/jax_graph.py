"""What a Keras model runs on JAX, as a graph of the primitives of its jaxpr, and an interpreter of it in float64.

Functions that a jaxpr calls are part of the graph, but those that JAX differentiates in its own way, as `relu`: they stay one
node. The interpreter computes in float64, whatever the graph was traced in, as Keras has means and tanh in float32 there.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from shared.checks import Error

from . import graph as graphs
from .graph import Call, Values
from .layers import check_jax

SAME = {"copy", "copy_p", "reduce_precision", "optimization_barrier", "sharding_constraint", "layout_constraint", "pvary"}
CALLED = {  # primitives that call a jaxpr, and the parameter that has it
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_lin": "call_jaxpr",
}  # fmt: skip
OWN_GRADIENT = {"relu": jax.nn.relu, "relu6": jax.nn.relu6, "logaddexp": jnp.logaddexp}
FLOW = {"cond", "while"}
BROADCAST = {  # primitives that take operands of other shapes by NumPy's rule
    "add", "sub", "mul", "div", "max", "min", "pow", "rem", "atan2", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor",
    "select_n", "logaddexp",
}  # fmt: skip
SCOPE = "keras_call_"  # with the number of a layer's call: the name of the scope in which it runs


@dataclass
class Node(graphs.Node):
    """One equation of a jaxpr.

    Fields:
        run: The primitive, or the function of JAX that it is.
        params: Its parameters.
        dtypes: Of the operands, where it calls a jaxpr, whose dtypes are fixed.
        floating: Whether the first result is of floats.
        within: The names of the functions in which it is, with the numbers of their calls, outer ones first.
    """

    run: Callable[..., Any]
    params: dict[str, Any]
    dtypes: list[Any] | None = None
    floating: bool = True
    within: tuple[tuple[str, int], ...] = ()


@dataclass
class Graph(graphs.Graph):
    """A graph of JAX's primitives. `updates` is {variable's tensor: what the network leaves there}."""

    updates: dict[str, str] = field(default_factory=dict)

    def run(self, program: Sequence[Node], given: Values) -> Values:
        """The value of each tensor of a program, computed in float64. `given` comes before what the graph holds."""
        values = {**self.leaves, **given}
        for node in program:
            results = execute(node, [values[name] for name in node.inputs])
            values |= {name: value for name, value in zip(node.outputs, results, strict=True) if name not in given}
        return values

    def after(self, given: Values) -> Values:
        """The value of each variable after the network has run."""
        values = self.run(self.program(list(self.updates.values()), list(given)), given)
        return {**self.leaves, **given, **{name: values[made] for name, made in self.updates.items()}}


def exact(value: Any) -> Any:
    """An array of JAX's with floats as float64; others as they are."""
    value = jnp.asarray(value)
    return value.astype(jnp.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value


def execute(node: Node, inputs: Sequence[Any]) -> list[Any]:
    """What one node returns, in float64."""
    operands = list(inputs)
    if node.type in BROADCAST:
        shape = np.broadcast_shapes(*(np.shape(x) for x in operands))
        operands = [x if np.shape(x) == shape else jnp.broadcast_to(x, shape) for x in operands]
    if node.dtypes:
        operands = [x.astype(dtype) for x, dtype in zip(operands, node.dtypes, strict=True)]
    results = node.run(*operands, **node.params)
    return [exact(result) for result in (results if isinstance(results, (list, tuple)) else [results])]


def gradients(function: Callable[[Values, list[Any]], Any], leaves: Values, tensors: list[Any]) -> tuple[Values, list[Any]]:
    """(gradients by leaf, by tensor) of a number that is a function of both; None for tensors that are not of floats."""
    leaves = {name: value for name, value in leaves.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    places = [place for place, x in enumerate(tensors) if jnp.issubdtype(x.dtype, jnp.floating)]

    def of_floats(leaves: Values, floats: list[Any]) -> Any:
        given = dict(zip(places, floats, strict=True))
        return function(leaves, [given.get(place, x) for place, x in enumerate(tensors)])

    found, of_floating = jax.grad(of_floats, (0, 1))(leaves, [tensors[place] for place in places])
    by_place = dict(zip(places, of_floating, strict=True))
    return found, [by_place.get(place) for place in range(len(tensors))]


def trace(model: keras.Layer, inputs: Sequence[Any], training: bool, random: bool = True) -> Graph:
    """The graph of a model on inputs of these shapes and dtypes; without `random`, layers without weights as in evaluation.

    Raises `Error` for a model that cannot run on them, or whose flow depends on the values, and where JAX has no float64.
    """
    check_jax(float64=True)
    traced, exactly = graphs.trace(model, inputs, "JAX", lambda arrays: _trace(model, arrays, training, random))
    graph = _Flattening(model, *traced).graph
    graph.exact = exactly
    graph.dropouts = [] if random else graphs.dropouts(graph.calls)
    return graph


def _trace(
    model: keras.Layer, arrays: Sequence[np.ndarray], training: bool, random: bool
) -> tuple[ClosedJaxpr, list[Any], list[Call], list[str]]:
    """The jaxpr of a model, whose first inputs and last outputs are the variables' values; the variables; calls of layers; the
    outputs' keys."""
    keys: list[str] = []
    variables = list({id(variable): variable for variable in graphs.variables(model)}.values())
    floating = keras.config.floatx()

    def run(values: list[Any], tensors: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            outputs = graphs.call(model, tensors, training)
            keys[:] = graphs.keys(outputs)
            left = [scope.get_current_value(variable) for variable in variables]
            return [*map(jnp.asarray, keras.tree.flatten(outputs)), *left]

    def shaped(x: Any, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, dtype)

    specs = [shaped(x, floating if x.dtype.kind == "f" else x.dtype) for x in arrays]

    def span(call: Call, number: int) -> Any:
        return jax.named_scope(f"{SCOPE}{number}")

    with _plain_errors(), graphs.noted_calls(lambda: True, span, random) as calls:
        jaxpr = jax.make_jaxpr(run)([shaped(variable, variable.dtype) for variable in variables], specs)
    return jaxpr, variables, calls, keys


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of JAX's as they are: Keras, where it adds the layer to them, cannot make those that take a tracer."""
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()


class _Flattening:
    """The graph of a jaxpr, with those that it calls in it."""

    def __init__(
        self, model: keras.Layer, closed: ClosedJaxpr, variables: list[Any], calls: list[Call], keys: list[str]
    ) -> None:
        self.model, self.graph, self.functions = model, Graph([], [], keys, calls=calls), 0
        invars = closed.jaxpr.invars
        names = {var: f"variable:{number}" for number, var in enumerate(invars[: len(variables)])}
        names |= {var: f"input:{number}" for number, var in enumerate(invars[len(variables) :])}
        self.graph.inputs = list(names.values())[len(variables) :]
        self.graph.dynamic |= set(self.graph.inputs)
        for var, name in names.items():
            self.graph.shapes[name] = tuple(var.aval.shape)
            self._note_integers(var, name)
        held = dict(zip(names.values(), variables, strict=False))
        self.graph.leaves |= {name: exact(variable.value) for name, variable in held.items()}
        results = self._add(closed, list(names.values()), "", "", ())
        self.graph.outputs = results[: len(results) - len(variables)]
        ends = results[len(self.graph.outputs) :]
        self.graph.updates = {name: end for name, end in zip(held, ends, strict=True) if name != end}
        needed = self.graph.program([*self.graph.outputs, *self.graph.updates.values()], self.graph.inputs)
        self.graph.nodes = {node.index: node for node in needed}
        read = {name for node in needed for name in node.inputs} | set(self.graph.outputs)
        self.graph.variables = {name: variable for name, variable in held.items() if name in read}
        used = graphs.variable_names(calls, list(self.graph.variables.values()))
        self.graph.names = dict(zip(self.graph.variables, used, strict=True))

    def _add(self, closed: ClosedJaxpr, operands: list[str], scope: str, source: str, within: Any) -> list[str]:
        """The equations of a jaxpr on operands, in a scope and functions; the names of its results."""
        names = dict(zip(closed.jaxpr.invars, operands, strict=True))
        names |= {var: self._leaf(value) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)}

        def name(atom: Any) -> str:
            return self._leaf(atom.val) if isinstance(atom, Literal) else names[atom]

        for equation in closed.jaxpr.eqns:
            read = [name(atom) for atom in equation.invars]
            place = f"{scope}/{equation.source_info.name_stack}"
            traceback = equation.source_info.traceback
            frames = [(f.file_name, f.line_num) for f in traceback.frames] if traceback else []
            line = source if within else graphs.source_line(frames)
            made = self._equation(equation, read, place, line, within)
            names |= dict(zip(equation.outvars, made, strict=True))
        return [name(atom) for atom in closed.jaxpr.outvars]

    def _leaf(self, value: Any) -> str:
        name = f"constant:{len(self.graph.leaves)}"
        self.graph.leaves[name] = exact(graphs.meant(np.asarray(value)) if np.size(value) == 1 else value)
        self.graph.shapes[name] = tuple(np.shape(value))
        return name

    def _equation(self, equation: Any, read: list[str], scope: str, source: str, within: Any) -> list[str]:
        """The names of an equation's results."""
        kind = equation.primitive.name
        if kind in SAME or (kind == "convert_element_type" and _floats(equation.invars[0]) and _floats(equation.outvars[0])):
            return read
        if kind in CALLED and CALLED[kind] in equation.params:
            called = equation.params[CALLED[kind]]
            closed = ClosedJaxpr(called, ()) if isinstance(called, Jaxpr) else called
            function = str(equation.params.get("name") or closed.jaxpr.debug_info.func_name)
            if kind != "custom_jvp_call" or function not in OWN_GRADIENT:
                self.functions += 1
                return self._add(closed, read, scope, source, (*within, (function, self.functions)))
            return self._node(equation, function, OWN_GRADIENT[function], {}, read, scope, source, within)
        params = equation.params
        if kind == "integer_pow" and params["y"] != 2:
            read, params, kind = [*read, self._leaf(np.float64(params["y"]))], {}, "pow"
            return self._node(equation, kind, jnp.power, params, read, scope, source, within)
        if kind != "bitcast_convert_type":
            params = {key: jnp.dtype("float64") if _is_float(value) else value for key, value in params.items()}
        return self._node(equation, kind, equation.primitive.bind, params, read, scope, source, within)

    def _node(
        self, equation: Any, kind: str, run: Any, params: dict[str, Any], read: list[str], scope: str, source: str, within: Any
    ) -> list[str]:
        graph, index = self.graph, len(self.graph.nodes)  # all that there are so far
        dynamic = any(name in graph.dynamic for name in read)
        if kind in FLOW and dynamic:
            place = f" ({source.rpartition('/')[2]})" if source else ""
            reason = f"its flow depends on the values of its inputs{place}: it runs JAX's {kind}, which has no common term"
            raise Error(f"{self.model.name}: {reason}")
        fixed = [x.aval.dtype for x in equation.invars] if any(map(_is_jaxpr, params.values())) else None
        shapes = [tuple(var.aval.shape) for var in equation.outvars]
        if kind in BROADCAST:
            read = self._unbroadcast(read, shapes[0])
        made = [f"{kind}:{index}:{number}" for number in range(len(shapes))]
        graph.nodes[index] = Node(index, kind, read, made, source, run, params, fixed, _floats(equation.outvars[0]), within)
        graph.producer |= dict.fromkeys(made, index)
        graph.shapes |= dict(zip(made, shapes, strict=True))
        for var, name in zip(equation.outvars, made, strict=True):
            self._note_integers(var, name)
        if dynamic:
            graph.dynamic |= set(made)
        for number in {int(found) for found in re.findall(rf"{SCOPE}(\d+)", scope)}:
            call = graph.calls[number]
            call.start, call.stop = (min(call.start, index) if call.stop else index), index + 1
        return made

    def _note_integers(self, var: Any, name: str) -> None:
        if jnp.issubdtype(var.aval.dtype, jnp.integer):
            self.graph.integers[name] = str(var.aval.dtype)

    def _unbroadcast(self, read: list[str], shape: tuple[int, ...]) -> list[str]:
        """Operands before they were broadcast to the shape of another by NumPy's rule, as TensorFlow's operations take them."""
        for place, name in enumerate(read):
            node = self.graph.nodes.get(self.graph.producer.get(name, -1))
            if node is None or node.type != "broadcast_in_dim" or len(node.inputs) > 1:
                continue
            small, dims = self.graph.shapes[node.inputs[0]], tuple(node.params["broadcast_dimensions"])
            rank = len(self.graph.shapes[name])
            trailing = dims == tuple(range(rank - len(small), rank))
            changed = [*read[:place], node.inputs[0], *read[place + 1 :]]
            if trailing and np.broadcast_shapes(*(self.graph.shapes[each] for each in changed)) == shape:
                read = changed
        return read


def _floats(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))


def _is_float(value: Any) -> bool:
    """Whether a parameter is a dtype of floats."""
    is_dtype = isinstance(value, (np.dtype, type)) and (isinstance(value, np.dtype) or issubclass(value, np.generic))
    return is_dtype and bool(jnp.issubdtype(value, jnp.floating))


def _is_jaxpr(value: Any) -> bool:
    many = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(each, (ClosedJaxpr, Jaxpr)) for each in many)
