"""The engine that comparison and training drive: a Keras network with its optimiser, in NumPy arrays.

Images are (batch, channels, height, width), labels whole numbers; weights and gradients have PyTorch's names and layouts.
"""

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

import shared
from shared import recipes, weights
from shared.dropout import masks
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from . import optimizers
from .layers import Dropout, Tensor, named_layers
from .network import Network, build
from .weights import load, state, to_keras, to_pytorch, variables

OPTIMIZERS = {"sgd": optimizers.SGD, "adam": optimizers.Adam, "adamw": optimizers.AdamW}


class Engine:
    """A network, and in training its optimiser, on Keras's TensorFlow backend.

    `optimizer` is a recipe's: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}; without one the engine takes no steps.
    `seed` determines what dropout drops. With `compiled`, XLA compiles the training step. A network built in the scope of a
    `tf.distribute` strategy trains on all of the strategy's devices; each takes one of the `shares` of every batch.
    Raises `shared.Error` on Keras's other backends.
    """

    framework = "Keras"
    rank, processes = 0, 1

    def __init__(self, net: Network, optimizer: dict[str, Any] | None = None, seed: int = 0, compiled: bool = False) -> None:
        if keras.backend.backend() != "tensorflow":
            raise shared.Error(
                f"this engine needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()}: networks run there, but "
                "neither train nor predict yet"
            )
        import tensorflow

        self.net, self.seed, self.tf = net, seed, tensorflow
        self.dropouts = {name: layer for name, layer in named_layers(net) if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode: each has dropout masks of its own
        self.weights = {name: variable for name, variable in variables(net).items() if variable.trainable}
        self.slots = weights.slots(optimizer)
        self.optimizer: Any = None
        one_device = tensorflow.distribute.get_strategy()
        self.strategy = next((getattr(v.value, "distribute_strategy", one_device) for v in self.weights.values()), one_device)
        self.shares = self.strategy.num_replicas_in_sync
        if optimizer:
            options = {"momentum": 0.0} | optimizer if optimizer["name"] == "sgd" else dict(optimizer)
            with self.strategy.scope():
                self.optimizer = OPTIMIZERS[options.pop("name")](**options)
                self.optimizer.build(list(self.weights.values()))
        self._predict = tensorflow.function(lambda images: net(images, training=False))  # twice as fast as eager
        self._class_maps = tensorflow.function(net.class_maps)
        self._step = tensorflow.function(self._one_step, jit_compile=compiled or None)
        self._steps = self._step if self.shares == 1 else tensorflow.function(self._all_steps)

    def step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float | None = None) -> tuple[float, int]:
        """One training step: (mean cross-entropy before it, number of correctly classified images)."""
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate
        dropout_masks = self._masks(images)
        if self.shares == 1:
            loss, correct = self._steps(self._tensor(images), ops.convert_to_tensor(labels), dropout_masks)
        else:
            shares = (self._split(self._tensor(images)), self._split(ops.convert_to_tensor(labels)))
            loss, correct = self._steps(*shares, {name: self._split(mask) for name, mask in dropout_masks.items()})
        return float(loss), int(correct)

    def loss(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The mean cross-entropy in training mode, which updates the running statistics."""
        return float(self._loss(self._tensor(images), ops.convert_to_tensor(labels), self._masks(images))[0])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, (batch, classes)."""
        return _numpy(self._predict(self._tensor(images)))

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """(batch, classes, height, width) in evaluation mode. Raises `shared.Error` if the network has no class maps."""
        return self.channels_first(_numpy(self._class_maps(self._tensor(images))))

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """{layer name: output} in evaluation mode, with Keras's axes: channels last."""
        return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """{name: gradient} of the loss in training mode, with that of the images as "input". Takes no step.

        As every pass in training mode does, it updates the running statistics of batch norms.
        """
        dropout_masks, inputs = self._masks(images), self._tensor(images)
        with self.tf.GradientTape() as tape:
            tape.watch(inputs)
            loss, _ = self._loss(inputs, ops.convert_to_tensor(labels), dropout_masks)
        sources = {"input": inputs, **{name: variable.value for name, variable in self.weights.items()}}
        gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
        of_input = self.channels_first(_numpy(gradients.pop("input")))
        return {"input": of_input, **{name: to_pytorch(_numpy(gradient)) for name, gradient in gradients.items()}}

    def state(self) -> State:
        """The weights and, in training, the optimiser's arrays, named as by `shared.weights.slots`."""
        arrays = state(self.net)
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                arrays[f"optimizer.{slot}.{name}"] = to_pytorch(_numpy(variable))
        return arrays

    def load(self, arrays: State, steps: int = 0) -> None:
        """Resume after `steps` steps, when `state` gave these arrays; an optimiser whose arrays are missing starts afresh.

        Raises `shared.Error` if the weights do not fit the network.
        """
        load(self.net, {name: array for name, array in arrays.items() if not name.startswith("optimizer.")})
        self.passes = steps
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                array = arrays.get(f"optimizer.{slot}.{name}")
                variable.assign(np.zeros(variable.shape) if array is None else to_keras(array))
        if self.optimizer:
            self.optimizer.iterations.assign(steps)

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes: here there is always one."""
        return array

    @staticmethod
    def channels_first(output: np.ndarray) -> np.ndarray:
        """An output of the network as (batch, channels, height, width), if it is a map."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output

    def _one_step(self, images: Tensor, labels: Tensor, dropout_masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A step on one device: (loss, number of correctly classified images) before it."""
        with self.tf.GradientTape() as tape:
            loss, correct = self._loss(images, labels, dropout_masks)
            share = loss / self.shares  # the optimiser sums the gradients of all devices
        gradients = tape.gradient(share, [variable.value for variable in self.weights.values()])
        # A weight that nothing uses has no gradient, and PyTorch does not change it: no weight decay either.
        pairs = [(g, v) for g, v in zip(gradients, self.weights.values(), strict=True) if g is not None]
        self.optimizer.apply_gradients(pairs)
        return loss, correct

    def _all_steps(self, images: Tensor, labels: Tensor, dropout_masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A step on all devices."""
        loss, correct = self.strategy.run(self._one_step, args=(images, labels, dropout_masks))
        reduce, kinds = self.strategy.reduce, self.tf.distribute.ReduceOp
        return reduce(kinds.MEAN, loss, axis=None), reduce(kinds.SUM, correct, axis=None)

    def _loss(self, images: Tensor, labels: Tensor, dropout_masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, number of correctly classified images) in training mode."""
        for name, mask in dropout_masks.items():
            self.dropouts[name].masks[threading.get_ident()] = mask
        try:
            logits = self.net(images, training=True)
        finally:
            for layer in self.dropouts.values():
                layer.masks.pop(threading.get_ident(), None)
        logits = ops.cast(logits, self.net.variable_dtype)
        correct = ops.sum(ops.cast(ops.equal(ops.argmax(logits, -1), ops.cast(labels, "int32")), "int32"))
        return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)), correct

    def _masks(self, images: np.ndarray) -> dict[str, Tensor]:
        """{dropout layer: mask} for the coming pass in training mode, which it counts."""
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        arrays = masks(self.net.spec, rates, images.shape, self.passes, self.seed)
        self.passes += 1
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _split(self, batch: Tensor) -> Tensor:
        """A batch divided among the devices."""
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: batch[context.replica_id_in_sync_group :: self.shares]
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        """An array as Keras takes it: in the network's precision, with the channels last if it has them."""
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return ops.convert_to_tensor(array, dtype=self.net.compute_dtype)


def trainer(spec: Spec, recipe: Recipe, compiled: bool = False, devices: int | None = None) -> Engine:
    """An engine that trains a new network by a recipe, as `shared.recipes.load` gives it, on the GPU if there is one.

    With `devices`, that many GPUs, or parts of the CPU, share each batch. Raises `shared.Error` if there are fewer GPUs.
    """
    with _devices(devices):
        net = build(spec, recipe["seed"], recipe["precision"])
        layers = dict(named_layers(net))
        for name in recipes.frozen(recipe, spec):
            layers[name].trainable = False
    return Engine(net, recipe["optimizer"], recipe["seed"], compiled)


def _devices(count: int | None) -> contextlib.AbstractContextManager[Any]:
    """The scope in which a network is built for `count` devices."""
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


def _numpy(tensor: Tensor) -> np.ndarray:
    array = ops.convert_to_numpy(tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
