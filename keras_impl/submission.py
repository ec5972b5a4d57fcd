"""Code of a reader's, run for `twins check`: a Keras layer, function or optimiser, in NumPy arrays with PyTorch's axes.

The same interface as in the other package. All is in float64.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from .layers import precision
from .weights import to_keras, to_pytorch

FRAMEWORK = "Keras"
LAYER, OPTIMIZER = keras.Layer, keras.optimizers.Optimizer
LAYER_NAME, OPTIMIZER_NAME = "keras.Layer", "keras.optimizers.Optimizer"
OPTIMIZERS = keras.optimizers  # where they are
RATE = "learning_rate"  # what an optimiser calls its learning rate
NAMES = {  # Keras's names of what PyTorch calls otherwise
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


@contextlib.contextmanager
def double() -> Iterator[None]:
    """New layers and tensors are float64 in this context, and Keras leaves the lines of a file in its tracebacks."""
    floatx, filtering = keras.config.floatx(), keras.config.is_traceback_filtering_enabled()
    keras.config.set_floatx("float64")
    keras.config.disable_traceback_filtering()
    try:
        with precision("float64"):
            yield
    finally:
        keras.config.set_floatx(floatx)
        if filtering:
            keras.config.enable_traceback_filtering()


class Layer:
    """A layer; the images are (batch, channels, height, width), and the layer gets them with the channels last."""

    def __init__(self, make: Callable[[], Any], images: np.ndarray) -> None:
        self.layer = make()
        self.layer(_own(images, "map"), training=False)  # Keras's own layers have their weights from then on

    def state(self) -> dict[str, np.ndarray]:
        """{name: array} of all weights and running statistics, under PyTorch's names, in its layouts."""
        return {name: to_pytorch(array(variable)) for name, variable in _variables(self.layer)}

    def trainable(self) -> set[str]:
        """The names of the weights that are trained."""
        return {name for name, variable in _variables(self.layer) if variable.trainable}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Set the weights and running statistics, all or some."""
        for name, variable in _variables(self.layer):
            if name in state:
                variable.assign(to_keras(state[name]))

    def output(self, images: np.ndarray, training: bool) -> np.ndarray:
        """The output for a batch."""
        return _foreign(array(self.layer(_own(images, "map"), training=training)), "map")

    def gradients(self, images: np.ndarray, projection: np.ndarray) -> dict[str, np.ndarray]:
        """{name: gradient} of the sum of output times projection, in training, with that of the images as "input"."""
        import tensorflow

        leaf = _own(images, "map")
        weights = {name: variable for name, variable in _variables(self.layer) if variable.trainable}
        with tensorflow.GradientTape() as tape:
            tape.watch(leaf)
            total = keras.ops.sum(self.layer(leaf, training=True) * _own(projection, "map"))
        values = [leaf, *(variable.value for variable in weights.values())]
        zero = tensorflow.UnconnectedGradients.ZERO
        first, *others = (array(gradient) for gradient in tape.gradient(total, values, unconnected_gradients=zero))
        named = zip(weights, map(to_pytorch, others), strict=True)
        return {"input": _foreign(first, "map"), **dict(named)}


def call(
    function: Callable[..., Any], arguments: Sequence[Any], layouts: Sequence[str], projection: np.ndarray | None = None,
    layout: str = "",
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:  # fmt: skip
    """([outputs], {number of an argument: gradient}) of a function of arrays and numbers.

    Gradients, of the sum of output times `projection`, are taken if that is given. Layouts are what arrays and outputs are:
    "map", "kernel", "linear" or "", and the function gets each with Keras's axes.
    """
    import tensorflow

    tensors = [_own(a, kind) if isinstance(a, np.ndarray) else a for a, kind in zip(arguments, layouts, strict=True)]
    numbers = [n for n, a in enumerate(arguments) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    with tensorflow.GradientTape() as tape:
        tape.watch([tensors[number] for number in numbers])
        result = function(*tensors)
        outputs = [_foreign(array(o), layout) for o in (result if isinstance(result, (tuple, list)) else [result])]
        if projection is None or outputs[0].shape != projection.shape or not tensorflow.is_tensor(result):
            return outputs, {}
        total = keras.ops.sum(result * keras.ops.cast(_own(projection, layout), result.dtype))
    zero = tensorflow.UnconnectedGradients.ZERO
    found = tape.gradient(total, [tensors[number] for number in numbers], unconnected_gradients=zero)
    return outputs, {n: _foreign(array(gradient), layouts[n]) for n, gradient in zip(numbers, found, strict=True)}


def draw(function: Callable[..., Any], shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that a function draws, for a shape (out, in, height, width), of which it gets Keras's order."""
    out_channels, in_channels, height, width = shape
    return _foreign(array(function((height, width, in_channels, out_channels))), "kernel")


def optimise(
    optimizer: Callable[..., Any], options: dict[str, Any], weights: Sequence[np.ndarray],
    gradients: Sequence[Sequence[np.ndarray]], rates: Sequence[float],
) -> list[list[np.ndarray]]:  # fmt: skip
    """The weights after each step, with these gradients and learning rates."""
    variables = [keras.Variable(weight, dtype="float64") for weight in weights]
    running = optimizer(rates[0], **options)
    steps = []
    for rate, arrays in zip(rates, gradients, strict=True):
        running.learning_rate = rate
        running.apply([keras.ops.convert_to_tensor(gradient) for gradient in arrays], variables)
        steps.append([array(variable) for variable in variables])
    return steps


def settings(optimizer: Callable[..., Any], given: dict[str, Any], rate: float) -> dict[str, Any]:
    """All settings of an optimiser, those that are not given at their defaults."""
    return dict(optimizer(rate, **given).get_config())


def options(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """What an optimiser would be made with anew."""
    given = {name: value for name, value in optimizer.get_config().items() if value is not None}
    rate = given["learning_rate"]
    return given | ({"learning_rate": float(str(np.float32(rate)))} if isinstance(rate, float) else {})


def array(value: Any) -> np.ndarray:
    """A tensor or variable, or what NumPy takes for an array, as an array of its own."""
    if value is None or isinstance(value, tuple):
        missing = ": is there a return missing?" if value is None else ""
        raise TypeError(f"it returns {'None' if value is None else 'several values'}, expected a tensor{missing}")
    return np.array(keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value)


def _variables(layer: Any, prefix: str = "") -> Iterator[tuple[str, keras.Variable]]:
    """(PyTorch's name, variable) of all weights in a layer of anyone's, by the names of the attributes."""
    inner = [(name, value) for name, value in vars(layer).items() if not name.startswith("_")]
    if isinstance(layer, keras.Sequential):
        inner = [("", layer.layers)]
    for attribute, value in vars(layer).items():
        if isinstance(value, keras.Variable):
            name = attribute.strip("_")
            yield prefix + NAMES.get(name, name), value
    for name, value in inner:
        if isinstance(value, keras.Layer):
            yield from _variables(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            for number, member in enumerate(value):
                if isinstance(member, keras.Layer):
                    yield from _variables(member, f"{prefix}{name}.{number}.".replace("..", ".").lstrip("."))


def _own(values: np.ndarray, layout: str) -> Any:
    """An array with PyTorch's axes as a tensor with Keras's."""
    if layout == "map" and values.ndim == 4:
        values = values.transpose(0, 2, 3, 1)
    elif layout in ("kernel", "linear"):
        values = to_keras(values)
    return keras.ops.convert_to_tensor(np.ascontiguousarray(values))


def _foreign(values: np.ndarray, layout: str) -> np.ndarray:
    """An array with Keras's axes in PyTorch's order."""
    if layout == "map" and values.ndim == 4:
        return values.transpose(0, 3, 1, 2)
    return to_pytorch(values) if layout in ("kernel", "linear") else values
