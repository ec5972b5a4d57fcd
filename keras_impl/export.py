"""Networks for other programs, written by Keras, and their outputs when read back. Images have the channels last."""

from pathlib import Path

import keras
import numpy as np

import shared
from shared.spec import Spec
from shared.weights import State

from .layers import construct
from .network import Network
from .plain import functional
from .weights import load


def saved_model(path: str | Path, spec: Spec, state: State) -> None:
    """Write a network as a SavedModel, a folder: images (batch, height, width, channels) to logits, for batches of any size.

    Raises `shared.Error` if TensorFlow cannot write it.
    """
    net = construct(Network, spec, "float32")
    load(net, state)
    channels, height, width = spec["input"]
    images = keras.InputSpec("float32", (None, height, width, channels), name="images")
    try:
        net.export(path, "tf_saved_model", verbose=False, input_signature=[images])
    except Exception as error:  # TensorFlow has its own classes of errors, even for a full disk
        reason = str(error).strip().partition("\n")[0]
        raise shared.Error(f"{spec['name']} cannot be written as a SavedModel: {reason}") from None


def plain(path: str | Path, spec: Spec, state: State) -> None:
    """Write a network as a `.keras` file of Keras's own layers, see `functional`.

    Raises `shared.Error` if two layers would have the same name.
    """
    net = construct(Network, spec, "float32")
    load(net, state)
    functional(net).save(path)


def keras_logits(path: str | Path, images: np.ndarray) -> np.ndarray:
    """The logits of the network in a `.keras` file."""
    return keras.ops.convert_to_numpy(keras.models.load_model(path)(images))


def tensorflow_logits(path: str | Path, images: np.ndarray) -> np.ndarray:
    """The logits of a SavedModel, computed without Keras."""
    import tensorflow as tf

    model = tf.saved_model.load(path)  # its variables live as long as it does
    return model.serve(images).numpy()
