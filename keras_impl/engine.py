"""What the comparison and the training loop drive: a Keras network with its optimiser, in NumPy arrays.

Images come as (batch, channels, height, width), labels as whole numbers; weights and gradients have PyTorch's names.
"""

import keras
import numpy as np
from keras import ops

import shared
from shared.dropout import kept

from .layers import Dropout, members
from .optimizers import SGD
from .weights import state, to_pytorch, variables


class Engine:
    """A network in training by stochastic gradient descent with momentum, on Keras's TensorFlow backend."""

    framework = "Keras"

    def __init__(self, net, learning_rate=0.1, momentum=0.9):
        if keras.backend.backend() != "tensorflow":
            raise shared.Error(f"training and gradients need Keras on tensorflow, found {keras.backend.backend()}")
        import tensorflow

        self.net, self.tf = net, tensorflow
        self.dropouts = {name: layer for name, layer in members(net) if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode, which dropout counts
        self.optimizer = SGD(learning_rate, momentum)
        self.optimizer.build(net.trainable_variables)
        self._step = tensorflow.function(self._one_step)

    def step(self, images, labels):
        """One training step; returns the mean cross-entropy before it."""
        return float(self._step(self._tensor(images), ops.convert_to_tensor(labels), self._kept(images)))

    def loss(self, images, labels):
        """The mean cross-entropy in training mode, in which running statistics move."""
        return float(self._loss(self._tensor(images), ops.convert_to_tensor(labels), self._kept(images)))

    def predict(self, images):
        """Logits in evaluation mode."""
        return _numpy(self.net(self._tensor(images), training=False))

    def activations(self, images):
        """{layer name: output} in evaluation mode, as Keras gives it."""
        return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images, labels):
        """{name: gradient} of the loss in training mode, and the image's as "input". Takes no step.

        As in every pass in training mode, the running statistics of batch norms move.
        """
        dropped, images = self._kept(images), self._tensor(images)
        weights = {name: v.value for name, v in variables(self.net).items() if v.trainable}
        with self.tf.GradientTape() as tape:
            tape.watch(images)
            loss = self._loss(images, ops.convert_to_tensor(labels), dropped)
        found = tape.gradient(loss, {"input": images, **weights}, unconnected_gradients="zero")
        image = self.channels_first(_numpy(found.pop("input")))
        return {"input": image, **{name: to_pytorch(_numpy(gradient)) for name, gradient in found.items()}}

    def state(self):
        return state(self.net)

    @staticmethod
    def channels_first(output):
        """A map, as the network gives it, as (batch, channels, height, width)."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output

    def _one_step(self, images, labels, dropped):
        with self.tf.GradientTape() as tape:
            loss = self._loss(images, labels, dropped)
        weights = self.net.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in weights], unconnected_gradients="zero")
        self.optimizer.apply(gradients, weights)
        return loss

    def _loss(self, images, labels, dropped):
        for name, tensor in dropped.items():
            self.dropouts[name].kept = tensor
        try:
            logits = self.net(images, training=True)
        finally:
            for layer in self.dropouts.values():
                layer.kept = None
        return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))

    def _kept(self, images):
        """What dropout keeps in the coming pass, for each such layer."""
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        arrays = kept(self.net.spec, rates, images.shape, self.passes)
        self.passes += 1
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _tensor(self, array):
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return ops.convert_to_tensor(array, dtype=self.net.compute_dtype)


def _numpy(tensor):
    array = ops.convert_to_numpy(tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
