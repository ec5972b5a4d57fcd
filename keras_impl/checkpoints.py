"""Keras's checkpoint files, written by Keras. `shared/keras_files.py` reads them."""

from pathlib import Path

import keras
import numpy as np

import shared
from shared.coexist import silence
from shared.files import atomic_path
from shared.spec import Spec
from shared.weights import State, check_state

from .layers import construct, precision
from .network import Network
from .weights import load


def write_keras(path: str | Path, spec: Spec, state: State) -> None:
    """Write a network with a state: all of it into a `.keras` file, only its weights into a `.weights.h5` file.

    Raises `shared.Error` if the state does not fit the spec, or the file cannot be written.
    """
    net = construct(Network, spec, _dtype(state))
    load(net, state)
    with atomic_path(path) as temporary:
        (net.save_weights if str(path).endswith(".weights.h5") else net.save)(temporary)


def write_application(path: str | Path, spec: Spec, arrays: State) -> None:
    """Write the model of `keras.applications` that "weights" in the spec names into an `.h5` file.

    `arrays` has Keras's names, "conv1_conv/kernel", and layouts. Raises `shared.Error` if they do not fit the model.
    """
    name = spec["weights"].partition(" ")[2]
    application = getattr(keras.applications, name, None)
    if not application:
        raise shared.Error(f'{path}: "weights" in the spec names {name!r}, which is not in keras.applications')
    channels, height, width = spec["input"]
    last = shared.unroll(spec)[-1]
    top = {"classes": last.sizes[1]} if last.type == "linear" else {"include_top": False}
    with precision(_dtype(arrays)):
        model = application(weights=None, input_shape=(height, width, channels), **top)
    check_state(arrays, {f"{layer.name}/{v.name}": tuple(v.shape) for layer in model.layers for v in layer.weights})
    for layer in model.layers:
        layer.set_weights([arrays[f"{layer.name}/{variable.name}"] for variable in layer.weights])
    with atomic_path(path) as temporary, silence():  # Keras warns that it prefers .keras files
        model.save(temporary)


def _dtype(arrays: State) -> str:
    return "float64" if any(np.asarray(array).dtype == np.float64 for array in arrays.values()) else "float32"
