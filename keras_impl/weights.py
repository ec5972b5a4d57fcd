"""The weights of a Keras network as NumPy arrays under PyTorch's names, in PyTorch's layouts, and back."""

import keras
import numpy as np

from shared.weights import check

# Keras has (height, width, in, out) and (in, out), PyTorch (out, in, height, width) and (out, in).
TO_PYTORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0)}


def variables(layer, prefix=""):
    """{PyTorch's name: variable} of all weights and running statistics, read off the attributes."""
    found = {}
    attributes = vars(layer) | vars(layer).get("_modules", {})  # where Keras on PyTorch has a layer's layers
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        if isinstance(value, keras.Variable):
            found[prefix + name] = value
        elif isinstance(value, keras.Layer):
            found |= variables(value, f"{prefix}{name}.")
    return found


def state(net):
    """{name: array} of all weights and running statistics, under PyTorch's names and in its layouts."""
    return {name: to_pytorch(keras.ops.convert_to_numpy(v)) for name, v in variables(net).items()}


def load(net, state):
    """Put a state into the network, converted to its precision.

    Raises `shared.Error`, with all of them in it, for missing, unexpected and misshapen names; the network is then unchanged.
    """
    found = variables(net)
    check(state, {name: _permuted(variable.shape, TO_PYTORCH) for name, variable in found.items()})
    for name, variable in found.items():
        array = np.asarray(state[name])
        variable.assign(array.transpose(TO_KERAS[array.ndim]) if array.ndim in TO_KERAS else array)


def to_pytorch(array):
    """A kernel, or the gradient of one, in PyTorch's layout."""
    return np.ascontiguousarray(array.transpose(TO_PYTORCH[array.ndim])) if array.ndim in TO_PYTORCH else array


def _permuted(shape, orders):
    return tuple(shape[axis] for axis in orders[len(shape)]) if len(shape) in orders else tuple(shape)
