"""The ladder of parity: how far engines that hold the same weights are apart.

A difference is relative, ||a - b|| / ||a|| for each array. The first engine is a, the reference; of several others, the one
that is farthest from it counts. Arrays of the engines are compared in PyTorch's names and layouts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared.spec import Spec
from shared.weights import State

from .backends import Engine, Package

# What may differ by how much, by the precision of the networks: one tolerance a rung, for every network.
TOLERANCES = {
    "float64": {"activations": 1e-12, "gradients": 1e-9, "statistics": 1e-12, "losses": 1e-10, "weights": 1e-10},
    "float32": {"logits": 1e-4},
    "bfloat16": {"logits": 3e-2},
    "mixed_float16": {"losses": 5e-3},  # ten times its rounding
}


class Difference(NamedTuple):
    """How far one array of another engine is from the first's."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # as the frameworks have them, without the batch
    value: float
    farthest: int = 1  # the number of the engine that is so far away; the first is 0


def relative(a: Any, b: Any, scale: Any = None) -> float:
    """||a - b|| / ||a||, or over ||scale|| if given. Infinite if the shapes differ."""
    if np.shape(a) != np.shape(b):
        return np.inf
    distance = np.linalg.norm(np.subtract(a, b))
    return float(distance / np.linalg.norm(a if scale is None else scale)) if distance != 0 else 0.0


def farthest(a: Any, others: Sequence[Any], scale: Any = None) -> tuple[float, int]:
    """(the largest `relative` difference of others from an array, which of them has it: 1 for the first).

    An array that is None is missing. NaN counts as largest.
    """
    values = [np.inf if a is None or b is None else relative(a, b, scale) for b in others]
    place = max(range(len(values)), key=lambda at: _nan_last(values[at]))
    return values[place], place + 1


def largest(differences: Sequence[Difference]) -> Difference:
    """The largest of them; NaN counts as largest."""
    return max(differences, key=lambda d: _nan_last(d.value))


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value


def first_beyond(differences: Sequence[Difference], tolerance: float) -> Difference | None:
    """The first that exceeds the tolerance or is NaN, or None."""
    return next((d for d in differences if not d.value <= tolerance), None)


def activations(engines: Sequence[Engine], images: np.ndarray) -> list[Difference]:
    """Rung 2: the output of every layer in evaluation mode."""
    outputs = [engine.activations(images) for engine in engines]
    differences = []
    for name in _names(outputs):
        maps = [of_engine.get(name) for of_engine in outputs]
        first, *others = (None if m is None else engine.channels_first(m) for engine, m in zip(engines, maps, strict=True))
        sizes = tuple(() if m is None else m.shape[1:] for m in maps)
        differences.append(Difference(name, sizes, *farthest(first, others)))
    return differences


def gradients(engines: Sequence[Engine], images: np.ndarray, labels: np.ndarray) -> list[Difference]:
    """Rung 3: the gradient of every parameter and of the image, in training mode.

    The bias of a convolution is measured against the gradient of its kernel where that is the larger. For a batch norm cancels
    the bias before it, even with a pool or a convolution in between: the true gradient is then zero, and the computed one is
    rounding noise, different in each framework.
    """
    arrays = [engine.gradients(images, labels) for engine in engines]
    return _all(arrays, _kernels(arrays[0]))


def statistics(engines: Sequence[Engine]) -> list[Difference]:
    """Rung 4: the running statistics of batch norms, after passes in training mode."""
    states = [engine.state() for engine in engines]
    running = [{k: v for k, v in state.items() if ".running_" in k} for state in states]
    return _all(running)


def states(engines: Sequence[Engine]) -> list[Difference]:
    """Rung 5: all weights, running statistics and arrays of the optimiser, after steps of training.

    What the optimiser keeps of the bias of a convolution is measured as its gradient is, for the same reason.
    """
    return between(*(engine.state() for engine in engines))


def between(*arrays: State) -> list[Difference]:
    """As `states`, for two states or more."""
    return _all(arrays, _kernels({name: array for name, array in arrays[0].items() if name.startswith("optimizer.")}))


def _kernels(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name of the bias of a convolution: its own array or the kernel's, whichever is larger}."""
    scales = {}
    for name, array in arrays.items():
        kernel = arrays.get(name.removesuffix("bias") + "weight")
        if name.endswith(".bias") and kernel is not None and kernel.ndim == 4:
            scales[name] = max(array, kernel, key=lambda values: float(np.linalg.norm(values)))
    return scales


def _all(states: Sequence[State], scales: State | None = None) -> list[Difference]:
    scales, differences = scales or {}, []
    for name in _names(states):
        first, *others = (state.get(name) for state in states)
        sizes = tuple(() if array is None else array.shape for array in (first, *others))
        differences.append(Difference(name, sizes, *farthest(first, others, scales.get(name))))
    return differences


def _names(arrays: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in any of them, in order."""
    return list(dict.fromkeys(name for each in arrays for name in each))


def one_rounding_apart(state: State, dtype: str) -> State:
    """The state with its numbers scaled by the smallest step away from 1 in the precision, up and down in turn."""
    step = 2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps
    return {name: array * (1 + step * np.resize([1, -1], array.shape)).astype(array.dtype) for name, array in state.items()}


def chaos(
    package: Package,
    spec: Spec,
    state: State,
    images: np.ndarray,
    labels: np.ndarray,
    dtype: str = "float64",
    viewed: np.ndarray | None = None,
) -> dict[str, float]:
    """{rung: largest difference} of a framework from itself, when its weights start one rounding apart: rungs 2 to 4.

    Rung 2 is measured on the images `viewed`, if given. A tolerance exceeded here is due to the network, which magnifies the
    smallest difference, and not to a framework.
    """
    nets = [package.build(spec, dtype=dtype) for _ in range(2)]
    for net in nets:
        package.load(net, state)
    package.load(nets[1], one_rounding_apart(package.state(nets[1]), dtype))
    engines = [package.Engine(net) for net in nets]
    viewed = images if viewed is None else viewed
    differences = {"activations": activations(engines, viewed), "gradients": gradients(engines, images, labels)}
    differences["statistics"] = statistics(engines)
    return {rung: largest(values).value for rung, values in differences.items() if values}


def first_rate(loss: float, gradients: State) -> float:
    """A learning rate for a first look at any network: its first step lowers the loss by 2 %, to first order; at most 0.05."""
    square = sum(float(np.sum(np.square(g))) for name, g in gradients.items() if name != "input")
    return min(0.05, 0.02 * loss / square) if square else 0.05
