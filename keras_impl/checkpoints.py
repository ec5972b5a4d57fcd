"""Keras's checkpoint files, written by Keras. `shared/keras_files.py` reads them."""

import keras
import numpy as np

import shared
from shared.coexist import silence
from shared.files import atomic_path
from shared.weights import check_state

from .layers import construct, precision
from .network import Network
from .weights import load


def write_keras(path, spec, state):
    """Write a network with a state: as a whole into a `.keras` file, its weights into a `.weights.h5` file."""
    net = construct(Network, spec, _dtype(state))
    load(net, state)
    with atomic_path(path) as temporary:
        (net.save_weights if str(path).endswith(".weights.h5") else net.save)(temporary)


def write_application(path, spec, arrays):
    """Write the model of `keras.applications` that "weights" in the spec names into an `.h5` file.

    `arrays` has Keras's names, "conv1_conv/kernel", and layouts. Raises `shared.Error` where they are not the model's.
    """
    name = spec["weights"].partition(" ")[2]
    application = getattr(keras.applications, name, None)
    if not application:
        raise shared.Error(f'{path}: "weights" in the spec names {name!r}, which keras.applications has not')
    channels, height, width = spec["input"]
    last = shared.unroll(spec)[-1]
    top = {"classes": last.sizes[1]} if last.type == "linear" else {"include_top": False}
    with precision(_dtype(arrays)):
        model = application(weights=None, input_shape=(height, width, channels), **top)
    check_state(arrays, {f"{layer.name}/{v.name}": tuple(v.shape) for layer in model.layers for v in layer.weights})
    for layer in model.layers:
        layer.set_weights([arrays[f"{layer.name}/{variable.name}"] for variable in layer.weights])
    with atomic_path(path) as temporary, silence():  # Keras would rather have a .keras file, and says so
        model.save(temporary)


def _dtype(arrays):
    return "float64" if any(np.asarray(array).dtype == np.float64 for array in arrays.values()) else "float32"
