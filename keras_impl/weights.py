"""The weights of a Keras network as NumPy arrays under PyTorch's names, in PyTorch's layouts, and back."""

import keras
import numpy as np

from shared.weights import TO_KERAS, TO_PYTORCH, check_state

from .layers import members


def variables(net):
    """{PyTorch's name: variable} of all weights and running statistics, read off the attributes."""
    return {
        f"{name}.{attribute}": value
        for name, layer in members(net)
        for attribute, value in vars(layer).items()
        if isinstance(value, keras.Variable) and not attribute.startswith("_")
    }


def state(net):
    """{name: array} of all weights and running statistics, under PyTorch's names, in its layouts; bfloat16 as float32."""
    arrays = {name: to_pytorch(keras.ops.convert_to_numpy(v)) for name, v in variables(net).items()}
    return {n: array.astype("float32") if array.dtype.name == "bfloat16" else array for n, array in arrays.items()}


def load(net, state):
    """Put a state into the network, converted to its precision.

    Raises `shared.Error`, with all of them in it, for missing, unexpected and misshapen names; the network is then unchanged.
    """
    found = variables(net)
    check_state(state, {name: _permuted(variable.shape, TO_PYTORCH) for name, variable in found.items()})
    for name, variable in found.items():
        variable.assign(to_keras(np.asarray(state[name])))


adopt = load  # in PyTorch the network keeps the arrays; Keras's variables have memory from the start


def to_pytorch(array):
    """A kernel, or the gradient of one, in PyTorch's layout."""
    return np.ascontiguousarray(array.transpose(TO_PYTORCH[array.ndim])) if array.ndim in TO_PYTORCH else array


def to_keras(array):
    """The way back."""
    return array.transpose(TO_KERAS[array.ndim]) if array.ndim in TO_KERAS else array


def _permuted(shape, orders):
    return tuple(shape[axis] for axis in orders[len(shape)]) if len(shape) in orders else tuple(shape)
