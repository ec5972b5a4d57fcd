"""The weights of a Keras network as NumPy arrays under PyTorch's names, in PyTorch's layouts, and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from shared.weights import TO_KERAS, TO_PYTORCH, State, as_arrays, check_state

from .layers import named_layers


def variables(net: keras.Layer) -> dict[str, keras.Variable]:
    """{PyTorch's name: variable} of all weights and running statistics; the names are those of the attributes."""
    return {
        f"{name}.{attribute}": value
        for name, layer in named_layers(net)
        for attribute, value in vars(layer).items()
        if isinstance(value, keras.Variable) and not attribute.startswith("_")
    }


def state(net: keras.Layer) -> State:
    """{name: array} of all weights and running statistics, under PyTorch's names, in its layouts; bfloat16 as float32."""
    arrays = {name: to_pytorch(keras.ops.convert_to_numpy(v)) for name, v in variables(net).items()}
    return {n: array.astype("float32") if array.dtype.name == "bfloat16" else array for n, array in arrays.items()}


def load(net: keras.Layer, state: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Set the weights and running statistics of a network to a state, converted to the network's precision.

    The values are arrays or tensors of any framework, on any device; pairs of names and values do as well as a mapping.
    Raises one `shared.Error` that lists every missing, unexpected and misshapen name; the network is then unchanged.
    """
    own, arrays = variables(net), as_arrays(state)
    check_state(arrays, {name: _permuted(variable.shape, TO_PYTORCH) for name, variable in own.items()})
    for name, variable in own.items():
        variable.assign(to_keras(arrays[name]))


def to_pytorch(array: np.ndarray) -> np.ndarray:
    """A kernel, or the gradient of one, in PyTorch's layout; any other array as it is."""
    return np.ascontiguousarray(array.transpose(TO_PYTORCH[array.ndim])) if array.ndim in TO_PYTORCH else array


def to_keras(array: np.ndarray) -> np.ndarray:
    """A kernel, or the gradient of one, in Keras's layout; any other array as it is."""
    return array.transpose(TO_KERAS[array.ndim]) if array.ndim in TO_KERAS else array


def _permuted(shape: Sequence[int], orders: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in orders[len(shape)]) if len(shape) in orders else tuple(shape)
