"""What a Keras model runs on TensorFlow, as a graph of TensorFlow's operations, and an interpreter of it in float64.

The interpreter computes in float64, whatever the graph was traced in: TensorFlow's raw operations take any precision, and those
that have none of float64 are computed in their own.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shared.checks import Error
from shared.interpolation import interpolation_matrix

from . import graph as graphs
from .graph import Call, Values

# Pass their input on as it is, as a cast between floats does. Their gradients are the identity's, except for `StopGradient`.
SAME = {"Identity", "IdentityN", "PreventGradient", "CheckNumerics", "EnsureShape", "PlaceholderWithDefault"}
SHAPES = {"Shape", "ShapeN", "Size", "Rank"}  # of their input they read the shape alone
CONTROL = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "PartitionedCall", "StatefulPartitionedCall"}
ASSIGN = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}


@dataclass
class Node(graphs.Node):
    """One of TensorFlow's operations."""

    op: tf.Operation

    def get(self, name: str, default: Any = None) -> Any:
        """One attribute; texts are decoded."""
        try:
            value = self.op.get_attr(name)
        except ValueError:
            return default
        return value.decode() if isinstance(value, bytes) else value


@dataclass
class Graph(graphs.Graph):
    """A graph of TensorFlow's operations. `dtypes` are the variables', by tensor."""

    dtypes: dict[str, tf.DType] = field(default_factory=dict)

    def run(self, program: Sequence[Node], given: Values) -> Values:
        """The value of each tensor of a program, and of each variable after it. `given` comes before what the graph holds."""
        values = {**self.leaves, **given}
        for node in program:
            operands = [values[name] for name in node.inputs]
            if node.type in ASSIGN:
                old, new = operands
                changed = {"AssignVariableOp": new, "AssignAddVariableOp": old + new, "AssignSubVariableOp": old - new}
                values[node.inputs[0]] = changed[node.type]
                continue
            results = execute(node, operands, self.dtypes)
            values |= {name: value for name, value in zip(node.outputs, results, strict=True) if name not in given}
        return values

    def after(self, given: Values) -> Values:
        """The value of each variable after the network has run."""
        return self.run(list(self.nodes.values()), given)


def exact(value: Any) -> Any:
    """A tensor with floats as float64; others as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return tf.constant(value)
    value = tf.convert_to_tensor(value)
    return tf.cast(value, tf.float64) if value.dtype.is_floating else value


def execute(node: Node, inputs: list[Any], dtypes: Mapping[str, tf.DType]) -> list[Any]:
    """What one operation returns, in float64; `dtypes` are the variables' own."""
    if node.type == "ReadVariableOp":
        return inputs
    if node.type == "Cast":
        to = node.get("DstT")
        return [tf.cast(inputs[0], tf.float64 if to.is_floating else to)]
    if node.type in CONTROL or node.type.startswith("TensorList"):
        return _in_own_types(node, inputs, dtypes)
    if node.type in PRECISE:
        return PRECISE[node.type](node, inputs)
    try:
        return [exact(result) for result in raw(node, inputs, tf.float64)]
    except (tf.errors.OpError, TypeError, ValueError):
        lower = [tf.cast(x, tf.float32) if x.dtype == tf.float64 else x for x in inputs]
        return [exact(result) for result in raw(node, lower, tf.float32)]


def raw(node: Node, inputs: list[Any], dtype: tf.DType | None) -> list[Any]:
    """What one of TensorFlow's operations returns, with attributes that name a floating dtype changed to `dtype`, if given."""
    function = getattr(tf.raw_ops, node.type, None)
    if function is None:
        raise Error(f"{node.op.name}: TensorFlow's operation {node.type} cannot run on its own")
    arguments: dict[str, Any] = {}
    rest = list(inputs)
    definition = node.op.op_def
    for argument in definition.input_arg:
        if argument.number_attr or argument.type_list_attr:
            count = node.get(argument.number_attr) if argument.number_attr else len(node.get(argument.type_list_attr))
            arguments[argument.name], rest = rest[:count], rest[count:]
        else:
            arguments[argument.name] = rest.pop(0)
    accepted = inspect.signature(function).parameters
    for attribute in definition.attr:
        if attribute.name in accepted and attribute.name not in arguments:
            value = node.op.get_attr(attribute.name)
            floating = isinstance(value, tf.DType) and value.is_floating
            arguments[attribute.name] = dtype if floating and dtype else value
    spare = [name for name in accepted if name not in arguments and name != "name"]  # renamed in Python: Mean's axis
    renamed = dict(zip((name for name in arguments if name not in accepted), spare, strict=False))
    results = function(**{renamed.get(name, name): value for name, value in arguments.items()})
    if isinstance(results, tf.Operation) or results is None:
        return []
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _in_own_types(node: Node, inputs: list[Any], dtypes: Mapping[str, tf.DType]) -> list[Any]:
    """An operation that runs functions, whose types are fixed: it gets the dtypes it was traced with, and variables anew."""
    variables, operands = [], []
    for x, tensor, name in zip(inputs, node.op.inputs, node.inputs, strict=True):
        if tensor.dtype == tf.resource:
            variables.append(tf.Variable(tf.cast(x, dtypes[name])))
            x = variables[-1].handle
        operands.append(tf.cast(x, tensor.dtype) if tensor.dtype.is_floating else x)
    return [exact(result) for result in raw(node, operands, None)]


def _fused_batch_norm(node: Node, inputs: list[Any]) -> list[Any]:
    """FusedBatchNormV3, which has no float64."""
    x, scale, shift, mean, variance = inputs
    unbiased = variance
    channels = 1 if node.get("data_format") == "NCHW" else 3
    shape = [-1 if axis == channels else 1 for axis in range(4)]
    if node.get("is_training"):
        axes = [axis for axis in range(4) if axis != channels]
        mean, variance = tf.reduce_mean(x, axes), tf.math.reduce_variance(x, axes)
        count = float(np.prod([x.shape[axis] for axis in axes]))
        unbiased = variance * (count / max(count - 1, 1))
    epsilon = float(str(np.float32(node.get("epsilon"))))  # the attribute is single precision: 0.001, not 0.0010000000475
    factor = scale / tf.sqrt(variance + epsilon)
    y = x * tf.reshape(factor, shape) + tf.reshape(shift - mean * factor, shape)
    return [y, mean, unbiased, mean, variance, tf.zeros((0,), tf.float64)][: len(node.outputs)]


def _resize_bilinear(node: Node, inputs: list[Any]) -> list[Any]:
    """ResizeBilinear, whose result is float32 whatever its input; TensorFlow's other conventions are left to it."""
    x, size = inputs
    if not node.get("half_pixel_centers") or node.get("align_corners"):
        return [tf.cast(raw(node, inputs, tf.float32)[0], tf.float64)]
    for axis, equation in ((1, "nh,bhwc->bnwc"), (2, "nw,bhwc->bhnc")):
        x = tf.einsum(equation, tf.constant(interpolation_matrix(x.shape[axis], int(size[axis - 1])), tf.float64), x)
    return [x]


def _convolution(node: Node, inputs: list[Any]) -> list[Any]:
    """Convolutions in float64, in groups one by one where the CPU has no gradient of them together."""
    x, kernel = inputs
    groups = x.shape[-1] // kernel.shape[2]
    if groups == 1 or node.get("data_format") != "NHWC":
        return raw(node, inputs, tf.float64)
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return [tf.concat([raw(node, list(part), tf.float64)[0] for part in parts], -1)]


PRECISE: dict[str, Callable[[Node, list[Any]], list[Any]]] = {
    "FusedBatchNormV3": _fused_batch_norm,
    "ResizeBilinear": _resize_bilinear,
    "Conv2D": _convolution,
}


def trace(model: keras.Layer, inputs: Sequence[Any], training: bool, random: bool = True) -> Graph:
    """The graph of a model on inputs of these shapes and dtypes; without `random`, layers without weights as in evaluation.

    Raises `Error` for a model that cannot run on them, or whose flow depends on the values.
    """
    traced, exactly = graphs.trace(model, inputs, "TensorFlow", lambda arrays: _trace(model, arrays, training, random))
    graph = _graph(model, [np.asarray(x) for x in inputs], training, *traced)
    graph.exact = exactly
    graph.dropouts = [] if random else graphs.dropouts(graph.calls)
    return graph


def gradients(function: Callable[[Values, list[Any]], Any], leaves: Values, tensors: list[Any]) -> tuple[Values, list[Any]]:
    """(gradients by leaf, by tensor) of a number that is a function of both; None, or nothing, where it does not depend."""
    leaves = {name: tf.convert_to_tensor(value) for name, value in leaves.items()}
    leaves = {name: value for name, value in leaves.items() if value.dtype.is_floating}
    with tf.GradientTape() as tape:
        tape.watch([*leaves.values(), *(x for x in tensors if x.dtype.is_floating)])
        total = function(leaves, tensors)
    found, of_tensors = tape.gradient(total, (leaves, tensors))
    return {name: tf.convert_to_tensor(value) for name, value in found.items() if value is not None}, of_tensors


def _trace(model: keras.Layer, arrays: Sequence[np.ndarray], training: bool, random: bool) -> tuple[Any, list[Call], list[str]]:
    """TensorFlow's graph of a model, the calls of layers, and the outputs' keys."""
    floating = keras.config.floatx()
    specs = [tf.TensorSpec(x.shape, floating if x.dtype.kind == "f" else x.dtype, f"input_{i}") for i, x in enumerate(arrays)]
    current: list[Any] = []
    keys: list[str] = []

    def run(*tensors: Any) -> Any:
        current.append(tf.compat.v1.get_default_graph())
        outputs = graphs.call(model, list(tensors), training)
        keys[:] = graphs.keys(outputs)
        return [tf.convert_to_tensor(x) for x in keras.tree.flatten(outputs)]

    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # functions within the model, as those Keras compiles, become part of the graph
    try:
        with graphs.noted_calls(lambda: tf.compat.v1.get_default_graph() is current[-1], _span, random) as calls:
            function = tf.compat.v1.wrap_function(run, specs)
    finally:
        tf.config.run_functions_eagerly(eager)
    return function, calls, keys


@contextlib.contextmanager
def _span(call: Call, number: int) -> Iterator[None]:
    """A call with the numbers of the operations that are made in this context."""
    operations = tf.compat.v1.get_default_graph().get_operations
    call.start = len(operations())
    try:
        yield
    finally:
        call.stop = len(operations())


def _graph(
    model: keras.Layer, arrays: Sequence[np.ndarray], training: bool, function: Any, calls: list[Call], keys: list[str]
) -> Graph:
    """What was traced, with the shapes of all tensors from a run on the arrays."""
    graph = _simplified(function, calls, len(arrays), training)
    graph.keys = keys
    _add_leaves(graph, function.graph, model)
    values = {name: exact(x) for name, x in zip(graph.inputs, arrays, strict=True)}
    graph.shapes |= {name: tuple(value.shape) for name, value in values.items()}
    last = {name: index for index, node in graph.nodes.items() for name in node.inputs}
    for index, node in graph.nodes.items():
        values = graph.run([node], values)
        graph.shapes |= {name: tuple(values[name].shape) for name in node.outputs if hasattr(values[name], "shape")}
        if node.type in SHAPES:
            graph.leaves |= {name: values[name] for name in node.outputs}
        for name in {*node.inputs, *node.outputs}:
            if last.get(name, index) == index and name not in graph.leaves:
                values.pop(name, None)  # nothing reads it any more
    return graph


def _simplified(function: Any, calls: list[Call], inputs: int, training: bool) -> Graph:
    """Nodes without identities, and what depends on the inputs."""
    operations = function.graph.get_operations()
    alias: dict[str, str] = {}
    captured = {internal.name for _, internal in function.graph.captures}
    placeholders = [op.outputs[0].name for op in operations if op.type == "Placeholder" and op.outputs[0].name not in captured]
    outputs = [tensor.name for tensor in keras.tree.flatten(function.structured_outputs)]
    graph = Graph(placeholders[:inputs], outputs, calls=calls)
    graph.dynamic |= set(graph.inputs)
    for index, op in enumerate(operations):
        read = [alias.get(tensor.name, tensor.name) for tensor in op.inputs]
        made = [tensor.name for tensor in op.outputs]
        graph.integers |= {tensor.name: tensor.dtype.name for tensor in op.outputs if tensor.dtype.is_integer}
        floats = op.type == "Cast" and op.inputs[0].dtype.is_floating and op.outputs[0].dtype.is_floating
        if op.type in SAME or floats:
            alias |= dict(zip(made, read, strict=False))
        elif op.type not in ("Const", "Placeholder", "NoOp"):
            if op.type in ASSIGN and not training:
                continue
            graph.nodes[index] = Node(index, str(op.type), read, made, _source(op), op)
            graph.producer |= dict.fromkeys(made, index)
            if op.type not in SHAPES and any(name in graph.dynamic for name in read):
                graph.dynamic |= set(made)
    graph.outputs = [alias.get(name, name) for name in outputs]
    return graph


def _add_leaves(graph: Graph, traced: Any, model: keras.Layer) -> None:
    """Constants, and variables under Keras's names."""
    handles = {id(variable.value.handle): variable for variable in graphs.variables(model) if hasattr(variable.value, "handle")}
    others = {id(variable.handle): variable for variable in getattr(traced, "variables", ())}
    for op in traced.get_operations():
        if op.type == "Const":
            graph.leaves[op.outputs[0].name] = exact(graphs.meant(tf.make_ndarray(op.get_attr("value"))))
    read: dict[str, Any] = {}
    for external, internal in traced.captures:
        if external.dtype != tf.resource:
            graph.leaves[internal.name] = exact(external)
            continue
        variable = handles.get(id(external), others.get(id(external)))
        if variable is None:
            raise Error(f"{model.name}: reads {external}, whose variable TensorFlow does not report")
        read[internal.name] = variable
    graph.variables = read
    graph.names = dict(zip(read, graphs.variable_names(graph.calls, list(read.values())), strict=True))
    for name, variable in read.items():
        graph.dtypes[name] = tf.as_dtype(variable.dtype)
        graph.leaves[name] = exact(variable.value if hasattr(variable, "path") else variable)


def _source(op: tf.Operation) -> str:
    frames = reversed(list(op.traceback or ()))
    return graphs.source_line((f.filename, f.lineno) if hasattr(f, "filename") else (f[0], f[1]) for f in frames)
