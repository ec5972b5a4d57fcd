"""Networks for other programs, written by Keras, and what they give when read back. Images have the channels last."""

import keras

import shared

from .layers import construct
from .network import Network
from .weights import load


def saved_model(path, spec, state):
    """Write a network as the folder of a SavedModel: images (batch, height, width, channels) to logits, any size of batch."""
    net = construct(Network, spec, "float32")
    load(net, state)
    channels, height, width = spec["input"]
    images = keras.InputSpec("float32", (None, height, width, channels), name="images")
    try:
        net.export(path, "tf_saved_model", verbose=False, input_signature=[images])
    except Exception as error:  # TensorFlow's errors, a full disk's too, are of classes of their own
        reason = str(error).strip().partition("\n")[0]
        raise shared.Error(f"{spec['name']} cannot be written as a SavedModel: {reason}") from None


def keras_logits(path, images):
    """What the network in a `.keras` file gives."""
    return keras.ops.convert_to_numpy(keras.models.load_model(path)(images))


def tensorflow_logits(path, images):
    """What a SavedModel gives, without Keras."""
    import tensorflow as tf

    model = tf.saved_model.load(path)  # its variables live as long as it does
    return model.serve(images).numpy()
