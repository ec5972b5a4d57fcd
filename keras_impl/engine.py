"""The engine that comparison and training drive: a Keras network with its optimiser, in NumPy arrays.

Here is what all of Keras's backends have in common; `tensorflow_engine`, `jax_engine` and `torch_engine` differentiate, compile
and divide a batch among devices.
Images are (batch, channels, height, width), labels whole numbers or `Mixed`, or masks as `shared.masks.labels` makes them;
weights and gradients have PyTorch's names and layouts.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

import shared
from shared import mixup, recipes, weights
from shared.dropout import masks
from shared.masks import IGNORED
from shared.mixup import Labels, Mixed
from shared.spec import Spec
from shared.weights import State

from . import optimizers
from .layers import Dropout, Tensor, mean, named_layers
from .network import Network
from .weights import load, state, to_keras, to_pytorch, variables

Function = Callable[..., Any]

OPTIMIZERS = {"sgd": optimizers.SGD, "adam": optimizers.Adam, "adamw": optimizers.AdamW}


class Engine:
    """A network, and in training its optimiser, on any backend of Keras's: its subclasses run.

    `optimizer` is a recipe's: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}; without one the engine takes no steps.
    `seed` determines the dropout masks. The loss of a network in mixed_float16 is scaled by `optimizers.GradScaler`, which
    skips steps whose gradients are not finite. With `compiled`, XLA compiles the training step, as it always does on JAX and
    never on PyTorch.

    A network built for several devices trains on all of them; each takes one of the `shares` of every batch. In one of several
    `processes`, `step` gets the share of its own process alone, the images rank, rank + processes, … of the batch, and raises
    `shared.checks.LostProcessError` if another process is gone.

    `label_smoothing` and `class_weights` are those of `torch.nn.functional.cross_entropy`; it is each device's share of each
    batch that is divided by the weights of its labels. A step takes the mean gradient of `accumulate` batches,
    each with batch statistics and dropout masks of its own. With `ema`, the engine keeps an average of
    all arrays of the network, by timm's rule: it starts as they do, and each step makes it ema average + (1 - ema) array.
    Raises `shared.Error` on a backend that has no engine.
    """

    framework = "Keras"

    def __init__(
        self, net: Network, optimizer: dict[str, Any] | None = None, seed: int = 0, compiled: bool = False,
        label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None, accumulate: int = 1,
        ema: float | None = None,
    ) -> None:  # fmt: skip
        if type(self) is Engine:
            raise shared.Error(
                f"an engine needs Keras on TensorFlow, JAX or PyTorch, but Keras runs on {keras.backend.backend()}"
            )
        self.net, self.seed = net, seed
        self.label_smoothing, self.class_weights, self.accumulate, self.ema = label_smoothing, class_weights, accumulate, ema
        self.dropouts = {name: layer for name, layer in named_layers(net) if isinstance(layer, Dropout)}
        self.passes = 0  # in training mode: each has dropout masks of its own
        self.weights = {name: variable for name, variable in variables(net).items() if variable.trainable}
        self.slots = weights.slots(optimizer)
        self.optimizer: Any = None
        self.scaler = optimizers.GradScaler() if optimizer and net.dtype_policy.name == recipes.SCALED else None
        self.rank = 0  # of this process, of as many `processes`
        self.processes = self.shares = 1
        self._find_devices()
        self.clip = {key: value for key, value in (optimizer or {}).items() if key.startswith("clip_")}
        with self._on_all_devices():
            self.optimizer = _optimizer(optimizer, net.spec, self.weights) if optimizer else None
            arrays = variables(net) if ema else {}
            # Of NumPy arrays: of a variable's value, Keras would make the same variable.
            self.average = {n: keras.Variable(_numpy(v), trainable=False, dtype=v.dtype) for n, v in arrays.items()}
        self._predict = self._inference(lambda images: net(images, training=False))
        self._class_maps = self._inference(net.class_maps)
        self.waiting: list[str] = []  # layers that `freeze` keeps until `thaw`
        self._compiled = compiled
        self._trace()
        self._follow = self._updating(self._update_average, repeated=True)

    def freeze(self, layers: Sequence[str]) -> None:
        """Keep layers unchanged until `thaw`, running statistics included; the optimiser still has slots for their weights."""
        self.waiting = list(layers)
        self._set_waiting(False)

    def thaw(self, step: int) -> None:
        """Train the frozen layers from this step of the run on: Adam's corrections count their steps from here."""
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
        """Make the functions of a pass in training mode, whose graphs know what trains."""
        self.training = {name: variable for name, variable in self.weights.items() if variable.trainable}
        self._steps = self._training(self._one_step)
        self._updating_loss, self._all_gradients = self._updating(self._loss), self._updating(self._loss_and_gradients)

    def step(self, images: np.ndarray, labels: Labels, learning_rate: float | None = None) -> tuple[float, int]:
        """One training step: (mean loss before it, number of correctly classified images, or pixels).

        A mixed image counts as correct if it gets the label of the image with the larger share.
        """
        if learning_rate is not None:
            self.optimizer.learning_rate = learning_rate
        with self._together():
            return self._whole_step(images, labels)

    def _whole_step(self, images: np.ndarray, labels: Labels) -> tuple[float, int]:
        size, passes, gradients, taken = len(images) // self.accumulate, [], None, None
        scale = ops.convert_to_tensor(self.scaler.scale, "float32") if self.scaler else None
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
        return float(self._updating_loss(self._tensor(images), _labels(labels), self._masks(images))[0])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Logits in evaluation mode, (batch, classes), or (batch, classes, height, width) if the network ends in a map."""
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
        """{name: gradient} of the loss in training mode; the gradient of the images is called "input". Takes no step.

        As every pass in training mode does, it updates the running statistics of batch norms.
        """
        of_input, gradients = self._all_gradients(self._tensor(images), _labels(labels), self._masks(images))
        of_weights = {
            name: np.zeros(variable.shape) if gradients[name] is None else _numpy(gradients[name])
            for name, variable in self.weights.items()
        }
        return {"input": self.channels_first(_numpy(of_input))} | {n: to_pytorch(array) for n, array in of_weights.items()}

    def unit_gradients(self, images: np.ndarray, units: Mapping[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """{layer: gradient of its unit with respect to the images, in their shape}, in evaluation mode.

        `units` has the (row, column) of each layer's. The unit of an image is the channel with the largest activation there: a
        ReLU that outputs 0 would have no gradient.
        """

        def largest(inputs: Tensor) -> dict[str, Tensor]:
            outputs = self.net.activations(inputs)
            return {name: ops.sum(ops.max(outputs[name][:, row, column], -1)) for name, (row, column) in units.items()}

        gradients = self._input_gradients(largest, self._tensor(images))
        return {name: self.channels_first(_numpy(gradient)) for name, gradient in gradients.items()}

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
            average.assign(_numpy(own[name]) if array is None else to_keras(array))
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
        """In this context the network holds the average, for evaluation only."""
        arrays = variables(self.net)
        own = {name: _numpy(arrays[name]) for name in self.average}
        try:
            for name, average in self.average.items():
                arrays[name].assign(_numpy(average))
            yield
        finally:
            for name, array in own.items():
                arrays[name].assign(array)

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, float64 if there are several. Raises an error as `step` does."""
        if self.processes == 1:
            return array
        with self._together():
            return self._sum_of_processes(np.array(array, np.float64))

    @staticmethod
    def channels_first(output: np.ndarray) -> np.ndarray:
        """An output of the network as (batch, channels, height, width), if it is a map."""
        return np.moveaxis(output, -1, 1) if output.ndim == 4 else output

    def _find_devices(self) -> None:
        """Set `rank`, `processes` and `shares` if the network was built for several devices."""

    def _on_all_devices(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which variables are made for all devices."""
        return contextlib.nullcontext()

    def _together(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which processes wait for one another."""
        return contextlib.nullcontext()

    def _inference(self, function: Function) -> Function:
        """A function of arrays that reads the network's variables, made fast."""
        raise NotImplementedError

    def _updating(self, function: Function, repeated: bool = False) -> Function:
        """A function of arrays that may change any variable, made so that it does; made fast if it is called repeatedly."""
        raise NotImplementedError

    def _training(self, function: Function) -> Function:
        """`_one_step`, made fast, on all devices: it returns the mean loss, and the sum of what is correct."""
        raise NotImplementedError

    def _derivatives(
        self, function: Function, images: Tensor, variables: Mapping[str, keras.Variable], of_images: bool = False
    ) -> tuple[Any, Tensor | None, dict[str, Tensor | None]]:
        """(what a function of images returns beside a loss, the loss's gradient for them if wanted, {name: gradient}).

        The function returns (loss, anything else). The gradient for a variable that it does not use is None.
        """
        raise NotImplementedError

    def _input_gradients(self, function: Function, images: Tensor) -> dict[str, Tensor]:
        """{name: gradient} for the images, of a function of them that returns {name: number}."""
        raise NotImplementedError

    def _sum_of_processes(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes, of which there are several."""
        raise NotImplementedError

    def _loss_and_gradients(self, images: Tensor, labels: Any, dropout_masks: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """(the loss's gradient for the images, {weight: gradient}) in training mode."""
        return self._derivatives(lambda x: self._loss(x, labels, dropout_masks), images, self.weights, of_images=True)[1:]

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

        def share(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            loss, correct = self._loss(x, labels, dropout_masks)
            part = loss / (self.shares * self.accumulate)  # the gradients of all devices are summed
            return part if scale is None else part * scale, (loss, correct)

        (loss, correct), _, of_training = self._derivatives(share, images, self.training)
        gradients = [of_training.get(name) for name in self.weights]
        if before is not None:
            pairs = zip(before, gradients, strict=True)
            gradients = [None if gradient is None else total + gradient for total, gradient in pairs]
        if not last:
            return loss, correct, gradients, None
        gradients, taken = self._clipped(gradients, scale)
        self.optimizer.taken = taken
        # A weight that nothing uses has no gradient, and PyTorch does not change it: no weight decay either.
        self.optimizer.apply_gradients([(g, v) for g, v in zip(gradients, self.weights.values(), strict=True) if g is not None])
        return loss, correct, None, taken

    def _clipped(self, gradients: Sequence[Tensor], scale: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """(gradients divided by the scale and clipped; whether they are finite, if there is a scale)."""
        is_finite = None
        if scale is not None:
            is_finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients if g is not None]))
            gradients = [None if g is None else g / scale for g in gradients]
        return optimizers.clipped(gradients, **self.clip), is_finite

    def _update_average(self) -> None:
        """The average after a step."""
        own, share = variables(self.net), 1 - (self.ema or 0)
        for name, average in self.average.items():
            before = ops.convert_to_tensor(average)
            average.assign(before + share * (ops.convert_to_tensor(own[name]) - before))

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
            return mean(losses)
        # An array, since Keras turns a list into float32.
        given = None if self.class_weights is None else np.array(self.class_weights)
        of_class = ops.ones_like(logits[0]) if given is None else ops.cast(given, logits.dtype)
        scales = ops.take(of_class, labels)
        uniform = -mean(of_class * ops.log_softmax(logits, -1), -1)
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
            uniform = -mean(of_class * ops.log_softmax(logits, -1), -1) * ops.cast(counts, logits.dtype)
            total = (1 - self.label_smoothing) * total + self.label_smoothing * ops.sum(uniform)
        all_scales = ops.sum(scales)
        return total / (all_scales + ops.cast(all_scales == 0, logits.dtype))

    def _inputs(self, images: np.ndarray, labels: Labels) -> tuple[Any, Any, Any]:
        """Images, labels and dropout masks as `_steps` takes them."""
        inputs = self._tensor(images), _labels(labels), self._masks(images)
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
        raise NotImplementedError

    def _tensor(self, array: np.ndarray) -> Tensor:
        """An array as Keras takes it: in the network's precision, with the channels last if it has them."""
        array = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return ops.convert_to_tensor(array, dtype=self.net.compute_dtype)


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


def _numpy(tensor: Tensor) -> np.ndarray:
    array = ops.convert_to_numpy(tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
