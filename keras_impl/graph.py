"""What a Keras model runs, as a graph of its backend's operations: what is the same on every backend.

The graph is traced with every layer's dtype policy set to float64, so that constants such as an epsilon are exact; the layers
get their own policies back at once, and variables are only read. A model that does not run so, since its code names another
dtype, is traced as it is.
"""

import contextlib
import fractions
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from shared.checks import Error

# Exceptions of backends for a branch on a value that is not known while tracing.
FLOW = {
    "OperatorNotAllowedInGraphError",
    "TracerBoolConversionError",
    "TracerIntegerConversionError",
    "TracerArrayConversionError",
    "ConcretizationTypeError",
}
Values = dict[str, Any]  # {name of a tensor in the graph: its value}

OWN_FILES = (
    "/site-packages/",
    "keras_impl/recording.py",
    "keras_impl/graph.py",
    "_graph.py",
    "importlib",
    "<frozen",
    "/lib/python3",
)


@dataclass(eq=False)
class Call:
    """One call of a layer: the path of attributes that leads to it, and the numbers of the nodes it made."""

    layer: keras.Layer
    path: str
    start: int = 0
    stop: int = 0


@dataclass
class Node:
    """One operation of the graph, of a type that its backend names: "Conv2D", "conv_general_dilated".

    `inputs` are the tensors it reads, past identities; `index` is its place in the order; `source` is the line that made it.
    """

    index: int
    type: str
    inputs: list[str]
    outputs: list[str]
    source: str


@dataclass
class Graph:
    """Nodes in the order in which they ran, and who calls them.

    Fields:
        keys: Where each output is in what the model returns, see `keys`.
        nodes: {number: node}, without identities.
        producer: {tensor: number of the node that makes it}.
        leaves: {tensor: value} of variables and constants.
        names: {tensor: name} of those leaves that are variables, which `variables` has.
        integers: {tensor: dtype} of those of whole numbers, which backends do not mix.
        dynamic: The tensors that depend on the values of the network's inputs, not only on their shapes.
        calls: Of layers, outer ones first.
        exact: Whether the constants are float64's.
        dropouts: (path, rate) of the layers that were not let drop anything.
    """

    inputs: list[str]
    outputs: list[str]
    keys: list[str] = field(default_factory=list)
    nodes: dict[int, Any] = field(default_factory=dict)
    producer: dict[str, int] = field(default_factory=dict)
    leaves: Values = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    integers: dict[str, str] = field(default_factory=dict)
    dynamic: set[str] = field(default_factory=set)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    exact: bool = True
    dropouts: list[tuple[str, float]] = field(default_factory=list)

    def program(self, targets: Sequence[str], given: Sequence[str]) -> list[Any]:
        """The nodes that compute `targets` from `given`, variables and constants, in order."""
        needed: set[int] = set()
        waiting, known = list(targets), set(given) | set(self.leaves)
        while waiting:
            tensor = waiting.pop()
            if tensor in known or self.producer[tensor] in needed:
                continue
            needed.add(self.producer[tensor])
            waiting += self.nodes[self.producer[tensor]].inputs
        return [self.nodes[index] for index in sorted(needed)]

    def run(self, program: Sequence[Any], given: Values) -> Values:
        """The value of each tensor of a program, computed in float64. `given` comes before what the graph holds."""
        raise NotImplementedError

    def after(self, given: Values) -> Values:
        """The value of each variable after the network has run."""
        raise NotImplementedError

    def static(self, tensor: str) -> np.ndarray:
        """The value of a tensor that does not depend on the inputs."""
        return np.asarray(self.run(self.program([tensor], []), {})[tensor])


def trace(model: keras.Layer, inputs: Sequence[Any], backend: str, make: Callable[[list[np.ndarray]], Any]) -> tuple[Any, bool]:
    """(what `make` makes of a model on inputs of these shapes and dtypes, whether its constants are float64's).

    Raises `Error` for a model that cannot run on them, or whose flow depends on the values.
    """
    arrays = [np.asarray(x) for x in inputs]
    if not all(layer.built for layer in model._flatten_layers()):
        _run(model, arrays)
    try:
        with _float64(model):
            return make(arrays), True
    except Exception:  # code that names a dtype
        try:
            return make(arrays), False
        except Exception as error:
            if isinstance(error, Error):
                raise
            if type(error).__name__ in FLOW or "symbolic" in str(error):
                reason = f"its flow depends on the values of its inputs{_place(error)}, and only one path could be recorded"
                raise Error(f"{model.name}: {reason}") from None
            _run(model, arrays)
            raise Error(f"{model.name}: {backend} cannot trace a graph of it: {_first_line(error)}") from None


def _run(model: keras.Layer, arrays: Sequence[np.ndarray]) -> None:
    """Run a model, which builds what is not built yet. Raises `Error` if it does not run on these arrays."""
    try:
        call(model, [keras.ops.convert_to_tensor(x) for x in arrays], False)
    except Exception as error:  # the user's code runs: anything may come
        raise Error(f"{model.name}: does not run on {_shapes(arrays)}: {_first_line(error)}") from None


def _shapes(arrays: Sequence[np.ndarray]) -> str:
    return ", ".join(f"{array.dtype} of shape {array.shape}" for array in arrays)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _place(error: Exception) -> str:
    """Where in the user's code an error came up: " (net.py:12)", or ""."""
    place, step = "", error.__traceback__
    while step:
        name = step.tb_frame.f_code.co_filename
        if not any(part in name for part in OWN_FILES):
            place = f" ({name.rpartition('/')[2]}:{step.tb_lineno})"
        step = step.tb_next
    return place


def call(model: keras.Layer, tensors: list[Any], training: bool) -> Any:
    """The model on its inputs: one, a list of them, one an argument, or by name, as its `call` takes them."""
    named = getattr(model, "_inputs_struct", None)  # of a functional model
    if isinstance(named, dict) and len(named) == len(tensors):
        return model(dict(zip(named, tensors, strict=True)), training=training)
    if len(tensors) == 1:
        return model(tensors[0], training=training)
    parameters = inspect.signature(model.call).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(required) >= len(tensors):
        return model(*tensors, training=training)
    return model(tensors, training=training)


def keys(outputs: Any) -> list[str]:
    """Where each output is in what a model returns: "logits", "aux.0"; "" for the only one."""
    return [".".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(outputs)]


@contextlib.contextmanager
def _float64(model: keras.Layer) -> Iterator[None]:
    """All layers of a model compute in float64 here."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer.dtype_policy, "quantization_mode", None) is None]
    before = [layer._dtype_policy for layer in layers]
    floatx = keras.config.floatx()
    policy = keras.dtype_policies.DTypePolicy("float64")
    policy._variable_dtype = "float32"  # other than float64, so that Keras casts each variable as it is read
    try:
        keras.config.set_floatx("float64")
        for layer in layers:
            layer._dtype_policy = policy
        yield
    finally:
        keras.config.set_floatx(floatx)
        for layer, own in zip(layers, before, strict=True):
            layer._dtype_policy = own


@contextlib.contextmanager
def noted_calls(
    here: Callable[[], bool], span: Callable[[Call, int], contextlib.AbstractContextManager[Any]], random: bool = True
) -> Iterator[list[Call]]:
    """The calls of layers made in this context where `here` holds; each, with its number, runs in the context `span` gives.

    Without `random`, layers that hold no weights run as in evaluation.
    """
    calls: list[Call] = []
    stack: list[Call] = []
    original = keras.Layer.__call__

    def noted(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if not here():
            return original(layer, *args, **kwargs)
        path = ".".join(filter(None, (stack[-1].path, _name(stack[-1].layer, layer)))) if stack else ""
        stack.append(Call(layer, path))
        calls.append(stack[-1])
        if not random and not layer.weights and layer._call_has_training_arg:
            kwargs["training"] = False
        try:
            with span(stack[-1], len(calls) - 1):
                return original(layer, *args, **kwargs)
        finally:
            stack.pop()

    keras.Layer.__call__ = noted
    try:
        yield calls
    finally:
        keras.Layer.__call__ = original


def dropouts(calls: Iterable[Call]) -> list[tuple[str, float]]:
    """(path, rate) of the called layers without weights that drop or add something at random in training."""
    rates = [
        (one.path, getattr(one.layer, "rate", getattr(one.layer, "stddev", None))) for one in calls if not one.layer.weights
    ]
    return [(path, float(rate)) for path, rate in rates if isinstance(rate, (int, float)) and rate > 0]


def _name(parent: keras.Layer, layer: keras.Layer) -> str:
    """The name of a layer within the one that calls it: its attribute's, or its own in a functional model."""
    if isinstance(parent, (keras.Sequential, keras.src.models.Functional)):
        return str(layer.name)
    for name, value in vars(parent).items():
        if name.startswith("_") and name != "_layers":
            continue
        if value is layer:
            return str(name)
        if isinstance(value, (list, tuple)) and name != "_layers":
            for number, member in enumerate(value):
                if member is layer:
                    return f"{name}.{number}"
        if isinstance(value, Mapping):
            for key, member in value.items():
                if member is layer:
                    return f"{name}.{key}"
    return next((name.lstrip("_") for name, value in vars(parent).items() if value is layer), str(layer.name))


def variables(model: keras.Layer) -> list[Any]:
    return [*model.variables, *(v for layer in model._flatten_layers() for v in layer.variables)]


def meant(value: np.ndarray) -> np.ndarray:
    """A float32 number as the decimal, ratio or root of a ratio that it was rounded from; other arrays as they are."""
    if value.dtype != np.float32 or value.size != 1 or not np.isfinite(value).all():
        return value
    number = float(value.reshape(-1)[0])
    decimal = float(str(np.float32(number)))
    ratio = fractions.Fraction(number).limit_denominator(1000)
    root = math.copysign(math.sqrt(fractions.Fraction(number * number).limit_denominator(1000)), number)
    guesses = [decimal] if float(f"{decimal:.6g}") == decimal else []  # written with few digits
    for guess in (*guesses, float(ratio), root):
        if np.float32(guess) == np.float32(number):
            return np.full(value.shape, guess)
    return np.full(value.shape, decimal)


def variable_names(calls: Sequence[Call], read: Sequence[Any]) -> list[str]:
    """A name for each variable that is read, all different: the path of its layer and its own."""
    paths: dict[int, str] = {}  # inner layers come later, and own the variables
    for one in calls:
        paths |= {id(variable): ".".join(filter(None, (one.path, variable.name))) for variable in one.layer.variables}
    taken: set[str] = set()
    names = []
    for variable in read:
        base = name = paths.get(id(variable), str(variable.name).removesuffix(":0"))
        number = 2
        while name in taken:
            name, number = f"{base}#{number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def source_line(frames: Iterable[tuple[str, int]]) -> str:
    """File and line of the user's code among frames, the innermost first, or ""."""
    return next((f"{name}:{line}" for name, line in frames if not any(part in name for part in OWN_FILES)), "")
