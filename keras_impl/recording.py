"""What any Keras model runs on one input, in the common terms of `shared.operations`; on TensorFlow and on JAX."""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from shared.checks import Error
from shared.operations import Operation

TITLES = {"tensorflow": "TensorFlow", "jax": "JAX"}  # of the backends that have a graph and terms


def record(model: Any, inputs: Sequence[np.ndarray], training: bool = False, random: bool = True) -> "Recording":
    """What a Keras model, or that of a `.keras` file, runs on inputs, whose axes are Keras's.

    The recording computes in float64 and has its own copy of the weights: the model is only read. With `training`, batch norms
    use the batch's statistics. Without `random`, layers that hold no weights, as dropout, run as in evaluation. Raises `Error`
    for what is no model of Keras's, does not run on these inputs, or decides by their values what to run.
    """
    if isinstance(model, (str, Path)):
        model = load(model)
    if not isinstance(model, keras.Layer):
        raise Error(f"{type(model).__name__} is not a Keras model or layer")
    if keras.backend.backend() not in TITLES:
        other = keras.backend.backend()
        raise Error(f"recording needs Keras on TensorFlow or JAX, and this is on {other}: set KERAS_BACKEND=tensorflow")
    return Recording(model, [np.asarray(x) for x in inputs], training, random)


def load(path: str | Path) -> keras.Model:
    """The model of a `.keras` file; only Keras's own code is run. Raises `Error` for any other file."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # what zipfile, json, h5py and Keras raise has no common class
        lines = str(error).splitlines() or [type(error).__name__]
        raise Error(f"{path}: not a model that Keras can load: {lines[0]}") from None


class Recording:
    """A recording of a Keras model, see `shared.operations.Recording`.

    Fields:
        notes: What a reader should know of it, in words.
        dropouts: (path, rate) of the layers that did not drop anything since `random` is False.
        random: The operations that draw random numbers.
    """

    def __init__(self, model: keras.Layer, arrays: Sequence[np.ndarray], training: bool, random: bool = True) -> None:
        backend = keras.backend.backend()
        tracing = importlib.import_module(f".{backend}_graph", __package__)
        terms = importlib.import_module(f".{backend}_terms", __package__)
        self.framework = f"Keras on {TITLES[backend]}"
        self._exact, self._gradients = tracing.exact, tracing.gradients
        self._graph = tracing.trace(model, arrays, training, random)
        if not self._graph.outputs:
            raise Error(f"{model.name}: returns nothing that could be compared")
        pieces = terms.Terms(self._graph, training).all()
        names = _names(pieces)
        self.inputs: list[str] = _input_names(model, len(arrays), set(names))
        results = dict(zip(self._graph.inputs, self.inputs, strict=True))
        results |= {piece.output: name for piece, name in zip(pieces, names, strict=True)}
        self._pieces = dict(zip(names, pieces, strict=True))
        self._programs = {
            name: self._graph.program([piece.target], piece.given) if piece.nodes else []
            for name, piece in self._pieces.items()
        }
        self.random = [
            name for name, program in self._programs.items() if any("random" in node.type.lower() for node in program)
        ]
        self.dropouts = self._graph.dropouts
        self._state: dict[str, Any] = {}
        self._reads = {name: tuple(results[tensor] for tensor in piece.inputs) for name, piece in self._pieces.items()}
        self.outputs: list[str] = [results[name] for name in self._graph.outputs if name in results]
        keys = zip(self._graph.outputs, self._graph.keys, strict=True)
        self.keys = [key for name, key in keys if name in results]
        if not self.outputs:
            raise Error(f"{model.name}: its outputs do not depend on its inputs")
        shapes = {name: value.shape for name, value in self._steps([self._exact(x) for x in arrays])}
        self.operations: list[Operation] = [self._operation(name, tuple(shapes[name])) for name in names]
        self.notes = [] if self._graph.exact else ["constants are in single precision: its code does not run in float64"]

    def _operation(self, name: str, shape: tuple[int, ...]) -> Operation:
        piece = self._pieces[name]
        nodes = [self._graph.nodes[index] for index in sorted(piece.nodes)]
        weights = {role: self._graph.names.get(binding.tensor, binding.tensor) for role, binding in piece.bindings.items()}
        source = next((node.source for node in reversed(nodes) if node.source), "")
        framework = "+".join(dict.fromkeys(node.type for node in nodes))
        return Operation(
            name, piece.kind, self._reads[name], shape, piece.attributes, weights, source, framework, piece.operands
        )

    def values(self, inputs: Sequence[np.ndarray], only: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """{name: result of each operation, and each input} on `inputs`, in float64; with `only`, of these names."""
        steps = self._steps([self._exact(x) for x in inputs])
        return {name: np.asarray(value) for name, value in steps if only is None or name in only}

    def _run(self, tensors: Sequence[Any], state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return dict(self._steps(tensors, state))

    def _steps(self, tensors: Sequence[Any], state: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
        """Each input and operation with its value, in order, held until it is last read."""
        values = dict(zip(self.inputs, tensors, strict=True))
        last = {read: name for name in self._pieces for read in self._reads[name]}
        yield from list(values.items())
        for name in self._pieces:
            values[name] = self._apply(name, [values[read] for read in self._reads[name]], {}, state)
            yield name, values[name]
            for read in {name, *self._reads[name]}:
                if last.get(read, name) == name:
                    del values[read]

    def _apply(
        self, name: str, inputs: Sequence[Any], weights: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> Any:
        piece = self._pieces[name]
        changed = [change(x) for change, x in zip(piece.before, inputs, strict=True)] if piece.before else list(inputs)
        whole = self._graph.integers
        changed = [keras.ops.cast(x, whole[t]) if t in whole else x for t, x in zip(piece.given, changed, strict=True)]
        given = dict(self._state if state is None else state) | dict(zip(piece.given, changed, strict=True))
        given |= {piece.bindings[role].tensor: piece.bindings[role].own(value) for role, value in weights.items()}
        result = self._graph.run(self._programs[name], given)[piece.target]
        return piece.after(result) if piece.after else result

    def apply(self, name: str, inputs: Sequence[np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The result of one operation alone, in float64, with `weights` in place of its own."""
        arrays = {role: self._exact(value) for role, value in (weights or {}).items()}
        return np.asarray(self._apply(name, [self._exact(x) for x in inputs], arrays))

    def weight(self, name: str, role: str) -> np.ndarray:
        """One weight of an operation, in the layout of `ROLES`."""
        binding = self._pieces[name].bindings[role]
        return np.asarray(binding.common(self._value(binding.tensor)))

    def _value(self, tensor: str) -> Any:
        if tensor in self._state:
            return self._state[tensor]
        if tensor in self._graph.leaves:
            return self._graph.leaves[tensor]
        return self._graph.run(self._graph.program([tensor], []), self._state)[tensor]

    def trains(self, name: str, role: str) -> bool | None:
        """Whether an optimiser moves a weight of an operation; None for one that is computed from others."""
        tensor, variables = self._pieces[name].bindings[role].tensor, self._graph.variables
        if tensor in self._graph.leaves:
            return bool(getattr(variables.get(tensor), "trainable", False))
        read = [each for node in self._graph.program([tensor], []) for each in node.inputs if each in variables]
        return None if any(variables[each].trainable for each in read) else False

    def load(self, weights: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Put arrays in the layouts of `ROLES` in place of the recording's weights; the model keeps its own."""
        for (name, role), array in weights.items():
            binding = self._pieces[name].bindings[role]
            self._state[binding.tensor] = binding.own(self._exact(array))

    def gradients(
        self, inputs: Sequence[np.ndarray], of_outputs: Sequence[np.ndarray]
    ) -> tuple[dict[tuple[str, str], np.ndarray], list[np.ndarray | None]]:
        """(gradients of weights, gradients of the inputs) of the sum of outputs times `of_outputs`.

        Weights' keys are (operation, role), their layouts those of `ROLES`; a weight that several operations read has the whole
        gradient at each.
        """
        bound = {(name, role): b for name, piece in self._pieces.items() for role, b in piece.bindings.items()}
        bound = {key: b for key, b in bound.items() if key[1] not in ("mean", "variance")}
        own = {b.tensor: self._value(b.tensor) for b in bound.values()}

        def total(leaves: dict[str, Any], tensors: Sequence[Any]) -> Any:
            values = self._run(tensors, self._state | leaves)
            pairs = zip(self.outputs, of_outputs, strict=True)
            return sum(keras.ops.sum(values[name] * self._exact(array)) for name, array in pairs)

        dense, of_inputs = self._gradients(total, own, [self._exact(x) for x in inputs])
        of_weights = {key: np.asarray(b.common(dense[b.tensor])) for key, b in bound.items() if b.tensor in dense}
        return of_weights, [None if gradient is None else np.asarray(gradient) for gradient in of_inputs]

    def statistics(self, inputs: Sequence[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
        """{(operation, "mean" or "variance"): running statistics after the network has run on `inputs`}."""
        given = self._state | {name: self._exact(x) for name, x in zip(self._graph.inputs, inputs, strict=True)}
        after = self._graph.after(given)
        return {
            (name, role): np.asarray(after[binding.tensor])
            for name, piece in self._pieces.items()
            for role, binding in piece.bindings.items()
            if role in ("mean", "variance")
        }


def _input_names(model: keras.Layer, count: int, taken: set[str]) -> list[str]:
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(set(names)) != count or taken & set(names):
        names = ["input"] if count == 1 else [f"input_{number}" for number in range(1, count + 1)]
    return [f"{name}#0" if name in taken else name for name in names]


def _names(pieces: Sequence[Any]) -> list[str]:
    """A name for each piece, all different: the path of its layer, and what it does where the layer does more."""
    members: dict[int, int] = {}
    for piece in pieces:
        members[id(piece.call)] = members.get(id(piece.call), 0) + 1
    used: dict[str, int] = {}
    names = []
    for piece in pieces:
        path = piece.call.path if piece.call else ""
        what = str(piece.attributes.get("function", piece.attributes.get("operation", piece.kind)))
        own = set(piece.bindings) - {"constant"} or members[id(piece.call)] == 1
        name = path if path and own else ".".join(filter(None, (path, what)))
        used[name] = used.get(name, 0) + 1
        names.append(f"{name}#{used[name]}" if used[name] > 1 else name)
    return names
