"""What the comparison and the training loop drive: a Keras network with its optimiser, in NumPy arrays.

Images come as (batch, channels, height, width), labels as whole numbers; weights and gradients have PyTorch's names.
"""

import contextlib
import threading

import keras
import numpy as np
from keras import ops

import shared
from shared import recipes, weights
from shared.dropout import masks

from . import optimizers
from .layers import Dropout, members
from .network import build
from .weights import load, state, to_keras, to_pytorch, variables

OPTIMIZERS = {"sgd": optimizers.SGD, "adam": optimizers.Adam, "adamw": optimizers.AdamW}


class Engine:
    """A network, and in training its optimiser, on Keras's TensorFlow backend.

    `optimizer` is a recipe's: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}; without one the engine takes no steps.
    `seed` is of what dropout drops. With `compiled`, XLA compiles the training step. A network that was built in the scope of
    a `tf.distribute` strategy trains on all of its devices, each of which takes one of the `shares` of every batch.
    """

    framework = "Keras"
    rank, processes = 0, 1

    def __init__(self, net, optimizer=None, seed=0, compiled=False):
        if keras.backend.backend() != "tensorflow":
            raise shared.Error(f"training and gradients need Keras on tensorflow, found {keras.backend.backend()}")
        import tensorflow

        self.net, self.seed, self.tf = net, seed, tensorflow
        self.dropouts = {name: layer for name, layer in members(net) if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode, which dropout counts
        self.weights = {name: variable for name, variable in variables(net).items() if variable.trainable}
        self.slots, self.optimizer = weights.slots(optimizer), None
        one = tensorflow.distribute.get_strategy()
        self.strategy = next((getattr(v.value, "distribute_strategy", one) for v in self.weights.values()), one)
        self.shares = self.strategy.num_replicas_in_sync
        if optimizer:
            options = {"momentum": 0.0} | optimizer if optimizer["name"] == "sgd" else dict(optimizer)
            with self.strategy.scope():
                self.optimizer = OPTIMIZERS[options.pop("name")](**options)
                self.optimizer.build(list(self.weights.values()))
        self._predict = tensorflow.function(lambda images: net(images, training=False))  # twice as quick as eagerly
        self._class_maps = tensorflow.function(net.class_maps)
        self._step = tensorflow.function(self._one_step, jit_compile=compiled or None)
        self._steps = self._step if self.shares == 1 else tensorflow.function(self._all_steps)

    def step(self, images, labels, learning_rate=None):
        """One training step; returns the mean cross-entropy before it, and how many of the images were classified right."""
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate
        dropped = self._masks(images)
        if self.shares == 1:
            loss, right = self._steps(self._tensor(images), ops.convert_to_tensor(labels), dropped)
        else:
            shares = (self._shared(self._tensor(images)), self._shared(ops.convert_to_tensor(labels)))
            loss, right = self._steps(*shares, {name: self._shared(array) for name, array in dropped.items()})
        return float(loss), int(right)

    def loss(self, images, labels):
        """The mean cross-entropy in training mode, in which running statistics move."""
        return float(self._loss(self._tensor(images), ops.convert_to_tensor(labels), self._masks(images))[0])

    def predict(self, images):
        """Logits in evaluation mode."""
        return _numpy(self._predict(self._tensor(images)))

    def class_maps(self, images):
        """(batch, classes, height, width) in evaluation mode."""
        return self.channels_first(_numpy(self._class_maps(self._tensor(images))))

    def activations(self, images):
        """{layer name: output} in evaluation mode, as Keras gives it."""
        return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images, labels):
        """{name: gradient} of the loss in training mode, and the image's as "input". Takes no step.

        As in every pass in training mode, the running statistics of batch norms move.
        """
        dropped, images = self._masks(images), self._tensor(images)
        with self.tf.GradientTape() as tape:
            tape.watch(images)
            loss, _ = self._loss(images, ops.convert_to_tensor(labels), dropped)
        wanted = {"input": images, **{name: variable.value for name, variable in self.weights.items()}}
        found = tape.gradient(loss, wanted, unconnected_gradients="zero")
        image = self.channels_first(_numpy(found.pop("input")))
        return {"input": image, **{name: to_pytorch(_numpy(gradient)) for name, gradient in found.items()}}

    def state(self):
        """The weights and, in training, what the optimiser keeps besides, as `shared.weights.slots` names it."""
        arrays = state(self.net)
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                arrays[f"optimizer.{slot}.{name}"] = to_pytorch(_numpy(variable))
        return arrays

    def load(self, arrays, steps=0):
        """Take up a run where `state` gave these arrays, after as many steps; without an optimiser's, that begins anew."""
        load(self.net, {name: array for name, array in arrays.items() if not name.startswith("optimizer.")})
        self.passes = steps
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                array = arrays.get(f"optimizer.{slot}.{name}")
                variable.assign(np.zeros(variable.shape) if array is None else to_keras(array))
        if self.optimizer:
            self.optimizer.iterations.assign(steps)

    def total(self, array):
        """The sum of an array over all processes, of which there is one."""
        return array

    @staticmethod
    def channels_first(output):
        """A map, as the network gives it, as (batch, channels, height, width)."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output

    def _one_step(self, images, labels, dropped):
        with self.tf.GradientTape() as tape:
            loss, right = self._loss(images, labels, dropped)
            share = loss / self.shares  # the optimiser adds up what all devices give
        found = tape.gradient(share, [variable.value for variable in self.weights.values()])
        # A weight that nothing uses has no gradient, and PyTorch leaves it alone: no weight decay either.
        pairs = [(g, v) for g, v in zip(found, self.weights.values(), strict=True) if g is not None]
        self.optimizer.apply_gradients(pairs)
        return loss, right

    def _all_steps(self, images, labels, dropped):
        loss, right = self.strategy.run(self._one_step, args=(images, labels, dropped))
        reduce, kinds = self.strategy.reduce, self.tf.distribute.ReduceOp
        return reduce(kinds.MEAN, loss, axis=None), reduce(kinds.SUM, right, axis=None)

    def _loss(self, images, labels, dropped):
        """The loss, and how many images are classified right."""
        for name, tensor in dropped.items():
            self.dropouts[name].masks[threading.get_ident()] = tensor
        try:
            logits = self.net(images, training=True)
        finally:
            for layer in self.dropouts.values():
                layer.masks.pop(threading.get_ident(), None)
        logits = ops.cast(logits, self.net.variable_dtype)
        right = ops.sum(ops.cast(ops.equal(ops.argmax(logits, -1), ops.cast(labels, "int32")), "int32"))
        return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)), right

    def _masks(self, images):
        """What dropout keeps in the coming pass, for each such layer."""
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        arrays = masks(self.net.spec, rates, images.shape, self.passes, self.seed)
        self.passes += 1
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _shared(self, batch):
        """Of a batch, each device's share."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: batch[context.replica_id_in_sync_group :: self.shares]
        )

    def _tensor(self, array):
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return ops.convert_to_tensor(array, dtype=self.net.compute_dtype)


def trainer(spec, recipe, compiled=False, devices=None):
    """An engine that trains a new network by a recipe, as `shared.recipes.load_recipe` gives it, on the GPU if there is one.

    With `devices`, that many GPUs, or parts of the CPU, share each batch. Raises `shared.Error` where there are fewer.
    """
    with _devices(devices):
        net = build(spec, recipe["seed"], recipe["precision"])
        layers = dict(members(net))
        for name in recipes.frozen(recipe, spec):
            layers[name].trainable = False
    return Engine(net, recipe["optimizer"], recipe["seed"], compiled)


def _devices(count):
    """The scope in which a network is one for many devices."""
    if not count or count == 1:
        return contextlib.nullcontext()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and len(gpus) < count:
        raise shared.Error(f"--devices is {count}, but there are {len(gpus)} GPUs")
    kind = "GPU" if gpus else "CPU"
    if not gpus:
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    return tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(count)]).scope()


def _numpy(tensor):
    array = ops.convert_to_numpy(tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
