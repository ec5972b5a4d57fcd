"""The engine that comparison and training drive: a Keras network with its optimiser, in NumPy arrays.

Images are (batch, channels, height, width), labels whole numbers or `Mixed`, or masks as `shared.masks.labels` makes them;
weights and gradients have PyTorch's names and layouts.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import shared
from shared import mixup, recipes, weights
from shared.checks import LostProcessError
from shared.dropout import masks
from shared.masks import IGNORED
from shared.mixup import Labels, Mixed
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
    `seed` determines what dropout drops. The loss of a network in mixed_float16 is scaled by `optimizers.GradScaler`, which
    skips steps whose gradients are not finite. With `compiled`, XLA compiles the training step. A network built in the scope
    of a `tf.distribute` strategy trains on all of the strategy's devices; each takes one of the `shares` of every batch. With
    MultiWorkerMirroredStrategy these are divided among `processes`: `step` gets the share of its own process alone, the images
    rank, rank + processes, … of the batch, and raises `shared.checks.LostProcessError` if another process is gone.

    `label_smoothing` and `class_weights` are those of `torch.nn.functional.cross_entropy`; it is each device's share of each
    batch that is divided by the weights of its labels. A step takes the mean gradient of `accumulate` batches,
    each with batch statistics and dropout masks of its own. With `ema`, the engine keeps an average of
    all arrays of the network, by timm's rule: it starts as they do, and each step makes it ema average + (1 - ema) array.
    Raises `shared.Error` on Keras's other backends.
    """

    framework = "Keras"

    def __init__(
        self, net: Network, optimizer: dict[str, Any] | None = None, seed: int = 0, compiled: bool = False,
        label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None, accumulate: int = 1,
        ema: float | None = None,
    ) -> None:  # fmt: skip
        if keras.backend.backend() != "tensorflow":
            raise shared.Error(
                f"this engine needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()}: networks run there, but "
                "neither train nor predict yet"
            )
        import tensorflow

        self.net, self.seed, self.tf = net, seed, tensorflow
        self.label_smoothing, self.class_weights, self.accumulate, self.ema = label_smoothing, class_weights, accumulate, ema
        self.dropouts = {name: layer for name, layer in named_layers(net) if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode: each has dropout masks of its own
        self.weights = {name: variable for name, variable in variables(net).items() if variable.trainable}
        self.slots = weights.slots(optimizer)
        self.optimizer: Any = None
        self.scaler = optimizers.GradScaler() if optimizer and net.dtype_policy.name == recipes.SCALED else None
        one_device = tensorflow.distribute.get_strategy()
        self.strategy = next((getattr(v.value, "distribute_strategy", one_device) for v in self.weights.values()), one_device)
        self.shares = self.strategy.num_replicas_in_sync
        cluster = self.strategy.cluster_resolver
        self.rank: int = cluster.task_id if cluster else 0
        self.processes: int = cluster.cluster_spec().num_tasks("worker") if cluster else 1
        self.clip = {key: value for key, value in (optimizer or {}).items() if key.startswith("clip_")}
        with self.strategy.scope():
            self.optimizer = _optimizer(optimizer, net.spec, self.weights) if optimizer else None
            arrays = variables(net) if ema else {}
            # Of NumPy arrays: of a variable's value, Keras would make the same variable.
            self.average = {n: keras.Variable(_numpy(v), trainable=False, dtype=v.dtype) for n, v in arrays.items()}
        self._predict = tensorflow.function(lambda images: net(images, training=False))  # twice as fast as eager
        self._class_maps = tensorflow.function(net.class_maps)
        self.waiting: list[str] = []  # layers that `freeze` keeps until `thaw`
        self._compiled = compiled
        self._trace()
        self._follow = tensorflow.function(self._update_average)
        self._total = tensorflow.function(lambda array: self.strategy.reduce("SUM", array, axis=None))

    def freeze(self, layers: Sequence[str]) -> None:
        """Keep layers as they are until `thaw`, running statistics included; their weights have slots all the same."""
        self.waiting = list(layers)
        self._set_waiting(False)

    def thaw(self, step: int) -> None:
        """Train what `freeze` keeps, which begins at that step of the run: Adam's corrections count steps from there."""
        for place, name in enumerate(self.weights):
            if name not in self.training:
                self.optimizer.began[place] = step
        self._set_waiting(True)
        self.waiting = []

    def _set_waiting(self, trains: bool) -> None:
        layers = dict(named_layers(self.net))
        for name in self.waiting:
            layers[name].trainable = trains
        self._trace()

    def _trace(self) -> None:
        """Make the functions of a training step, of which the graphs know what trains."""
        self.training = {name: variable for name, variable in self.weights.items() if variable.trainable}
        self._step = self.tf.function(self._one_step, jit_compile=self._compiled or None)
        self._steps = self._step if self.shares == 1 else self.tf.function(self._all_steps)

    def step(self, images: np.ndarray, labels: Labels, learning_rate: float | None = None) -> tuple[float, int]:
        """One training step: (mean loss before it, number of correctly classified images, or pixels).

        Of mixed images, those that get the label of the image which shows more count as correct.
        """
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate
        with self._together():
            return self._whole_step(images, labels)

    def _whole_step(self, images: np.ndarray, labels: Labels) -> tuple[float, int]:
        size, passes, gradients, taken = len(images) // self.accumulate, [], None, None
        scale = self.tf.constant(self.scaler.scale, "float32") if self.scaler else None
        for number in range(self.accumulate):
            place = slice(number * size, (number + 1) * size)
            batch = self._inputs(images[place], mixup.part(labels, place))
            loss, correct, gradients, taken = self._steps(*batch, scale, gradients, number == self.accumulate - 1)
            passes.append((loss, correct))
        is_taken = taken is None or bool(taken)
        if self.scaler:
            self.scaler.update(is_taken)
        if self.ema and is_taken:
            self._follow()
        if not is_taken:
            self.optimizer.iterations.assign(self.optimizer.iterations.value - 1)
        return sum(float(loss) for loss, _ in passes) / self.accumulate, sum(int(correct) for _, correct in passes)

    def loss(self, images: np.ndarray, labels: Labels) -> float:
        """The mean loss in training mode, which updates the running statistics."""
        return float(self._loss(self._tensor(images), _labels(labels), self._masks(images))[0])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, (batch, classes) or, of a network that ends in a map, (batch, classes, height, width)."""
        return self.channels_first(_numpy(self._predict(self._tensor(images))))

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """(batch, classes, height, width) in evaluation mode. Raises `shared.Error` if the network has no class maps."""
        return self.channels_first(_numpy(self._class_maps(self._tensor(images))))

    def dense_class_maps(self, images: np.ndarray) -> np.ndarray:
        """The class maps at the size of the images, (batch, classes, height, width), in evaluation mode."""
        return self.channels_first(_numpy(self.net.dense_class_maps(self._tensor(images))))

    def activations(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """{layer name: output} in evaluation mode, with Keras's axes: channels last."""
        return {name: _numpy(output) for name, output in self.net.activations(self._tensor(images)).items()}

    def gradients(self, images: np.ndarray, labels: Labels) -> dict[str, np.ndarray]:
        """{name: gradient} of the loss in training mode, with that of the images as "input". Takes no step.

        As every pass in training mode does, it updates the running statistics of batch norms.
        """
        dropout_masks, inputs = self._masks(images), self._tensor(images)
        with self.tf.GradientTape() as tape:
            tape.watch(inputs)
            loss, _ = self._loss(inputs, _labels(labels), dropout_masks)
        sources = {"input": inputs, **{name: variable.value for name, variable in self.weights.items()}}
        gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
        of_input = self.channels_first(_numpy(gradients.pop("input")))
        return {"input": of_input, **{name: to_pytorch(_numpy(gradient)) for name, gradient in gradients.items()}}

    def unit_gradients(self, images: np.ndarray, units: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """{layer: gradient of its unit with respect to the images, in their shape}, in evaluation mode.

        `units` has the (row, column) of each layer's. The unit of an image is the one of the largest activation among the
        channels there: of a ReLU that gives 0 there would be no gradient.
        """
        inputs = self._tensor(images)
        with self.tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            outputs = self.net.activations(inputs)
            largest = {name: ops.sum(ops.max(outputs[name][:, row, column], -1)) for name, (row, column) in units.items()}
        return {name: self.channels_first(_numpy(tape.gradient(value, inputs))) for name, value in largest.items()}

    def state(self) -> State:
        """The weights, what the optimiser and the scaler of the loss keep, and the average.

        They are named as by `shared.weights.slots`, `shared.weights.SCALER` and "ema.…".
        """
        arrays = state(self.net)
        if self.scaler:
            arrays[weights.SCALER] = np.array(self.scaler.state(), np.float32)
        arrays |= {f"{weights.EMA}{name}": to_pytorch(_numpy(variable)) for name, variable in self.average.items()}
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                arrays[f"optimizer.{slot}.{name}"] = to_pytorch(_numpy(variable))
        return arrays

    def load(self, arrays: State, steps: int = 0) -> None:
        """Resume after `steps` steps, when `state` gave these arrays; an optimiser or average without arrays starts afresh.

        Raises `shared.Error` if the weights do not fit the network.
        """
        load(self.net, weights.of_network(arrays))
        self.passes = steps * self.accumulate
        own = variables(self.net)
        for name, average in self.average.items():
            array = arrays.get(weights.EMA + name)
            average.assign(own[name].value if array is None else to_keras(array))
        for slot in self.slots:
            for name, variable in zip(self.weights, self.optimizer.slots[slot], strict=True):
                array = arrays.get(f"optimizer.{slot}.{name}")
                variable.assign(np.zeros(variable.shape) if array is None else to_keras(array))
        if self.scaler:
            self.scaler = optimizers.GradScaler(*arrays.get(weights.SCALER, ()))
        if self.optimizer:
            self.optimizer.iterations.assign(steps - (self.scaler.skipped if self.scaler else 0))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The network holds the average in this context. It is for evaluation alone."""
        arrays = variables(self.net)
        own = {name: _numpy(arrays[name]) for name in self.average}
        try:
            for name, average in self.average.items():
                arrays[name].assign(average.value)
            yield
        finally:
            for name, array in own.items():
                arrays[name].assign(array)

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, float64 if there are several. Raises an error as `step` does."""
        if self.processes == 1:
            return array
        own = self.tf.constant(np.array(array, np.float64))
        here = self.shares // self.processes  # devices, of which the first has the array
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: self.tf.zeros_like(own) if context.replica_id_in_sync_group % here else own
        )
        with self._together():
            return _numpy(self._total(values))

    @staticmethod
    def channels_first(output: np.ndarray) -> np.ndarray:
        """An output of the network as (batch, channels, height, width), if it is a map."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """A context in which processes wait for one another."""
        try:
            yield
        except self.tf.errors.OpError as error:
            if self.processes == 1 or isinstance(error, self.tf.errors.ResourceExhaustedError):
                raise
            # TensorFlow notices a process that is gone by its heartbeats, within seconds, and ends what waits for it.
            raise LostProcessError(
                f"process {self.rank} of {self.processes}: the connection to another process is lost"
            ) from None

    def _one_step(
        self,
        images: Tensor,
        labels: Any,
        dropout_masks: Mapping[str, Tensor],
        scale: Tensor | None,
        before: list[Tensor] | None,
        last: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor] | None, Tensor | None]:
        """A pass on one device: (loss, number of correctly classified images, gradients so far, whether the step is taken).

        The `last` ends the step, which may be skipped if there is a `scale` of the loss. `before` are the gradients of the
        passes before it in this step.
        """
        with self.tf.GradientTape() as tape:
            loss, correct = self._loss(images, labels, dropout_masks)
            share = loss / (self.shares * self.accumulate)  # the optimiser sums the gradients of all devices
            share = share if scale is None else share * scale
        of_training = tape.gradient(share, {name: variable.value for name, variable in self.training.items()})
        gradients = [of_training.get(name) for name in self.weights]
        if before is not None:
            pairs = zip(before, gradients, strict=True)
            gradients = [None if gradient is None else total + gradient for total, gradient in pairs]
        if not last:
            return loss, correct, gradients, None
        taken = None
        if self.clip or scale is not None:
            gradients, taken = self._clipped(gradients, scale)
        self.optimizer.taken = taken
        # A weight that nothing uses has no gradient, and PyTorch does not change it: no weight decay either.
        self.optimizer.apply_gradients([(g, v) for g, v in zip(gradients, self.weights.values(), strict=True) if g is not None])
        return loss, correct, None, taken

    def _clipped(self, gradients: Sequence[Tensor], scale: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """(gradients of this device, divided by the scale and clipped, by what all devices have together; whether finite)."""
        used = [g for g in gradients if g is not None]
        if self.shares > 1:
            used = self.tf.distribute.get_replica_context().all_reduce(self.tf.distribute.ReduceOp.SUM, used)
        is_finite = None
        if scale is not None:
            is_finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in used]))
            used = [g / scale for g in used]
        clipped = iter(optimizers.clipped(used, **self.clip))
        return [None if g is None else next(clipped) / self.shares for g in gradients], is_finite

    def _all_steps(
        self,
        images: Tensor,
        labels: Any,
        dropout_masks: Mapping[str, Tensor],
        scale: Tensor | None,
        before: list[Tensor] | None,
        last: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor] | None, Tensor | None]:
        """`_one_step` on all devices."""
        arguments = (images, labels, dropout_masks, scale, before, last)
        loss, correct, gradients, taken = self.strategy.run(self._one_step, args=arguments)
        reduce, kinds = self.strategy.reduce, self.tf.distribute.ReduceOp
        if taken is not None:
            taken = self.strategy.experimental_local_results(taken)[0]
        return reduce(kinds.MEAN, loss, axis=None), reduce(kinds.SUM, correct, axis=None), gradients, taken

    def _update_average(self) -> None:
        """The average after a step."""
        own, share = variables(self.net), 1 - (self.ema or 0)
        for name, average in self.average.items():
            average.assign(average + share * (own[name] - average))

    def _loss(self, images: Tensor, labels: Any, dropout_masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, number of correctly classified images) in training mode."""
        for name, mask in dropout_masks.items():
            self.dropouts[name].masks[threading.get_ident()] = mask
        try:
            logits = self.net(images, training=True)
        finally:
            for layer in self.dropouts.values():
                layer.masks.pop(threading.get_ident(), None)
        logits = ops.cast(logits, self.net.variable_dtype)
        first = labels.first if isinstance(labels, Mixed) else labels
        correct = ops.sum(ops.cast(ops.equal(ops.argmax(logits, -1), ops.cast(first, "int32")), "int32"))
        return self._cross_entropy(logits, labels), correct

    def _cross_entropy(self, logits: Tensor, labels: Any) -> Tensor:
        """The loss for logits, by PyTorch's formula."""
        if isinstance(labels, Mixed):
            first, second = (self._cross_entropy(logits, some) for some in (labels.first, labels.second))
            share = ops.cast(labels.share, logits.dtype)
            return share * first + (1 - share) * second
        if len(labels.shape) > 1:
            return self._of_pixels(logits, labels)
        losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if not self.label_smoothing and self.class_weights is None:
            return ops.mean(losses)
        # An array, since Keras makes float32 of a list.
        given = None if self.class_weights is None else np.array(self.class_weights)
        of_class = ops.ones_like(logits[0]) if given is None else ops.cast(given, logits.dtype)
        scales = ops.take(of_class, labels)
        uniform = -ops.mean(of_class * ops.log_softmax(logits, -1), -1)
        total = (1 - self.label_smoothing) * ops.sum(scales * losses) + self.label_smoothing * ops.sum(uniform)
        return total / ops.sum(scales)

    def _of_pixels(self, logits: Tensor, labels: Any) -> Tensor:
        """The loss for masks: the mean over pixels that are not ignored, 0 if all are."""
        counts = ops.not_equal(labels, IGNORED)
        labels = ops.where(counts, labels, 0)
        of_class = np.ones(logits.shape[-1]) if self.class_weights is None else np.array(self.class_weights)
        of_class = ops.cast(of_class, logits.dtype)
        scales = ops.take(of_class, labels) * ops.cast(counts, logits.dtype)
        total = ops.sum(scales * ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))
        if self.label_smoothing:
            uniform = -ops.mean(of_class * ops.log_softmax(logits, -1), -1) * ops.cast(counts, logits.dtype)
            total = (1 - self.label_smoothing) * total + self.label_smoothing * ops.sum(uniform)
        return ops.divide_no_nan(total, ops.sum(scales))

    def _inputs(self, images: np.ndarray, labels: Labels) -> tuple[Any, Any, Any]:
        """Images, labels and dropout masks as `_steps` takes them."""
        inputs = (self._tensor(images), _labels(labels), self._masks(images))
        if self.shares == 1:
            return inputs
        pictures, labels, dropout_masks = inputs
        if isinstance(labels, Mixed):
            split = Mixed(self._split(labels.first), self._split(labels.second), labels.share)
        else:
            split = self._split(labels)
        return self._split(pictures), split, {name: self._split(mask) for name, mask in dropout_masks.items()}

    def _masks(self, images: np.ndarray) -> dict[str, Tensor]:
        """{dropout layer: mask} for the coming pass in training mode, which it counts."""
        rates = {name: layer.rate for name, layer in self.dropouts.items()}
        whole = (len(images) * self.processes, *images.shape[1:])
        arrays = masks(self.net.spec, rates, whole, self.passes, self.seed)
        self.passes += 1
        return {name: self._tensor(array[self.rank :: self.processes]) for name, array in arrays.items()}

    def _split(self, batch: Tensor) -> Tensor:
        """What this process has of a batch, divided among its devices."""
        here = self.shares // self.processes
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: batch[context.replica_id_in_sync_group % here :: here]
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        """An array as Keras takes it: in the network's precision, with the channels last if it has them."""
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return ops.convert_to_tensor(array, dtype=self.net.compute_dtype)


def trainer(spec: Spec, recipe: Recipe, compiled: bool = False, devices: int | None = None) -> Engine:
    """An engine that trains a new network by a recipe, as `shared.recipes.load` gives it, on the GPU if there is one.

    With `devices`, that many GPUs, or parts of the CPU, share each batch. Raises `shared.Error` if there are fewer GPUs.
    If the environment variable TF_CONFIG names several workers, it is the engine of this one, on all its GPUs or on its CPU;
    it waits for the others. TensorFlow may not have run anything in this process before.
    """
    with _devices(devices):
        net = build(spec, recipe["seed"], recipe["precision"])
        layers = dict(named_layers(net))
        for name in recipes.kept(recipe, spec):
            layers[name].trainable = False
    engine = Engine(net, recipe["optimizer"], recipe["seed"], compiled, **recipes.engine_options(recipe))
    if "thaw" in recipe:
        engine.freeze(recipes.frozen(recipe, spec))
    return engine


def _optimizer(optimizer: dict[str, Any], spec: Spec, named: Mapping[str, keras.Variable]) -> optimizers.Optimizer:
    """The optimiser of a recipe, with the rates and weight decays of `recipes.groups`."""
    own = ("name", "no_decay", "rates", "clip_norm", "clip_value")
    options = {key: value for key, value in optimizer.items() if key not in own}
    made = OPTIMIZERS[optimizer["name"]](**({"momentum": 0.0} if optimizer["name"] == "sgd" else {}) | options)
    places = {name: place for place, name in enumerate(named)}
    exempt = []
    for factor, decays, names in recipes.groups(optimizer, spec, named):
        made.factors |= {places[name]: factor for name in names}
        exempt += [] if decays else [named[name] for name in names]
    made.exclude_from_weight_decay(var_list=exempt)
    made.build(list(named.values()))
    return made


def _labels(labels: Labels) -> Any:
    """Labels as tensors: the share too, else each would be another graph."""
    if isinstance(labels, Mixed):
        first, second = (ops.convert_to_tensor(some) for some in (labels.first, labels.second))
        return Mixed(first, second, ops.convert_to_tensor(labels.share, "float64"))
    return ops.convert_to_tensor(labels)


def _devices(count: int | None) -> contextlib.AbstractContextManager[Any]:
    """The scope in which a network is built for `count` devices, or for those of all workers."""
    import tensorflow as tf

    workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {}).get("worker", [])
    if len(workers) > 1:
        try:
            return tf.distribute.MultiWorkerMirroredStrategy().scope()
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            first = f"{error}".partition("\n")[0]
            raise shared.Error(f"the workers of TF_CONFIG do not reach one another: {first}") from None
    if not count or count == 1:
        return contextlib.nullcontext()

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
