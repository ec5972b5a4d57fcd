"""A recording by hand, in NumPy: small networks in either layout, to test alignment and blame without a framework."""

import math

import numpy as np

from shared.operations import Operation

FIRST, LAST = "PyTorch", "Keras on TensorFlow"


class Network:
    """A network written operation by operation; each method adds one and returns its name.

    `framework` decides where channels are. Every operation is a function of channels-first arrays.
    """

    def __init__(self, framework=FIRST, seed=0):
        self.framework, self.inputs, self.outputs = framework, ["input"], []
        self.operations, self.functions, self.arrays = [], {}, {}
        self.notes, self.random = [], []
        self.shapes = {}
        self.generator = np.random.default_rng(seed)

    def start(self, *shape):
        """The input, whose shape without the batch is given channels first."""
        self.shapes["input"] = self.laid(np.zeros((2, *shape))).shape
        return "input"

    def laid(self, array):
        """A channels-first array as this framework has it."""
        return np.moveaxis(array, 1, -1) if self.framework == LAST and array.ndim > 2 else array

    def back(self, array):
        return np.moveaxis(array, -1, 1) if self.framework == LAST and array.ndim > 2 else array

    @property
    def keys(self):
        return [str(place) for place in range(len(self.outputs))]

    @property
    def channels(self):
        return -1 if self.framework == LAST else 1

    def add_operation(self, name, kind, inputs, run, weights=None, /, **attributes):
        """Add any operation; `run` takes arrays in this framework's axes and {role: array}."""
        weights = weights or {}
        result = run([np.zeros(self.shapes[i]) for i in inputs], weights)
        self.shapes[name] = result.shape
        names = {role: f"{name}.{role}" for role in weights}
        self.operations.append(
            Operation(name, kind, tuple(inputs), result.shape, attributes, names, source=f"net.py:{len(self.operations) + 1}")
        )
        self.functions[name] = run
        self.arrays |= {(name, role): np.asarray(array, float) for role, array in weights.items()}
        self.outputs = [name]
        return name

    def both(self, function):
        """A function of channels-first arrays as one of this framework's."""
        return lambda inputs, weights: self.laid(function([self.back(x) for x in inputs], weights))

    def conv(self, name, x, out, kernel=3, stride=1, padding=1, dilation=1, bias=False, groups=1):
        pairs = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
        count = self.back(np.zeros(self.shapes[x])).shape[1]
        weights = {
            "kernel": self.generator.standard_normal((out, count // groups, kernel, kernel))
            / math.sqrt(count * kernel**2 / groups)
        }
        if bias:
            weights["bias"] = self.generator.standard_normal(out)

        def run(inputs, weights):
            return (
                convolution(inputs[0], weights["kernel"], pairs, stride, dilation, groups)
                + weights.get("bias", np.zeros(out))[:, None, None]
            )

        settings = {
            "stride": (stride,) * 2,
            "padding": pairs,
            "dilation": (dilation,) * 2,
            "groups": groups,
            "transposed": False,
        }
        return self.add_operation(name, "convolution", [x], self.both(run), weights, channels=self.channels, **settings)

    def norm(self, name, x, epsilon=1e-5, momentum=0.1, over="batch"):
        count = self.back(np.zeros(self.shapes[x])).shape[1]
        draw = self.generator.uniform
        weights = {
            "scale": draw(0.5, 1.5, count),
            "shift": draw(-1, 1, count),
            "mean": draw(-1, 1, count),
            "variance": draw(0.5, 2, count),
        }

        def run(inputs, weights):
            mean, variance, scale, shift = (weights[role][:, None, None] for role in ("mean", "variance", "scale", "shift"))
            return (inputs[0] - mean) / np.sqrt(variance + epsilon) * scale + shift

        settings = {"over": over, "epsilon": epsilon, "momentum": momentum, "training": False}
        return self.add_operation(name, "normalization", [x], self.both(run), weights, channels=self.channels, **settings)

    def activation(self, name, x, function="relu"):
        functions = {
            "relu": lambda x: np.maximum(x, 0),
            "relu6": lambda x: np.clip(x, 0, 6),
            "tanh": np.tanh,
            "silu": lambda x: x / (1 + np.exp(-x)),
        }
        return self.add_operation(name, "activation", [x], lambda i, w: functions[function](i[0]), function=function)

    def pool(self, name, x, window=3, stride=2, padding=1, how="max", count_padding=True):
        pairs = padding if isinstance(padding, tuple) else ((padding, padding),) * 2

        def run(inputs, weights):
            return pooled(inputs[0], window, stride, pairs, how, count_padding)

        settings = {
            "how": how,
            "window": (window,) * 2,
            "stride": (stride,) * 2,
            "padding": pairs,
            "count_padding": count_padding,
        }
        return self.add_operation(name, "pool", [x], self.both(run), channels=self.channels, **settings)

    def pad(self, name, x, pairs, value=0.0):
        amounts = self.laid(np.zeros((1, 1, 1, 1))).ndim * [(0, 0)]
        for axis, pair in zip((1, 2) if self.framework == LAST else (2, 3), pairs, strict=True):
            amounts[axis] = pair
        return self.add_operation(
            name,
            "pad",
            [x],
            lambda i, w: np.pad(i[0], amounts, constant_values=value),
            amounts=tuple(amounts),
            mode="constant",
            value=value,
        )

    def sum(self, name, *inputs):
        return self.add_operation(name, "add", inputs, lambda i, w: i[0] + i[1])

    def constant(self, name, kind, x, value):
        functions = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}
        return self.add_operation(
            name, kind, [x], lambda i, w: functions[kind](i[0], w["constant"]), {"constant": np.asarray(value, float)}
        )

    def concatenate(self, name, *inputs):
        axis = self.channels
        return self.add_operation(name, "concatenate", inputs, lambda i, w: np.concatenate(i, axis), axis=axis)

    def mean(self, name, x):
        axes = (1, 2) if self.framework == LAST else (2, 3)
        return self.add_operation(name, "mean", [x], lambda i, w: i[0].mean(axes), axes=axes, keep=False)

    def reshape(self, name, x, *shape):
        return self.add_operation(name, "reshape", [x], lambda i, w: i[0].reshape(len(i[0]), *shape), shape=(2, *shape))

    def flatten(self, name, x):
        return self.reshape(name, x, math.prod(self.shapes[x][1:]))

    def transpose(self, name, x, *order):
        return self.add_operation(name, "transpose", [x], lambda i, w: i[0].transpose(order), order=order)

    def reverse(self, name, x):
        """The channels in the other order."""
        shape = self.shapes[x]
        steps = [-1 if axis == self.channels % len(shape) else 1 for axis in range(len(shape))]
        cuts = tuple(slice(None, None, step) for step in steps)
        nothing = (None,) * len(shape)
        return self.add_operation(
            name, "slice", [x], lambda i, w: i[0][cuts], starts=nothing, stops=nothing, steps=tuple(steps)
        )

    def linear(self, name, x, out):
        count = self.shapes[x][-1]
        weights = {
            "kernel": self.generator.standard_normal((count, out)) / math.sqrt(count),
            "bias": self.generator.standard_normal(out),
        }
        return self.add_operation(name, "linear", [x], lambda i, w: i[0] @ w["kernel"] + w["bias"], weights, channels=-1)

    def values(self, inputs, only=None):
        values = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            values[operation.name] = self.apply(operation.name, [values[name] for name in operation.inputs])
        return {name: value for name, value in values.items() if only is None or name in only}

    def apply(self, name, inputs, weights=None):
        own = {role: array for (owner, role), array in self.arrays.items() if owner == name}
        return self.functions[name](list(inputs), own | dict(weights or {}))

    def weight(self, name, role):
        return self.arrays[name, role]

    def load(self, weights):
        for key, array in weights.items():
            assert self.arrays[key].shape == array.shape
            self.arrays[key] = array


def windows(x, size, stride, dilation=1):
    """(batch, channels, height, width, size, size) views of what each window holds."""
    reach = dilation * (size - 1) + 1
    return np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))[:, :, ::stride, ::stride, ::dilation, ::dilation]


def convolution(x, kernel, padding, stride, dilation, groups):
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    parts = zip(np.split(x, groups, 1), np.split(kernel, groups, 0), strict=True)
    return np.concatenate([np.einsum("bchwij,ocij->bohw", windows(p, k.shape[2], stride, dilation), k) for p, k in parts], 1)


def pooled(x, size, stride, padding, how, count_padding):
    amounts = ((0, 0), (0, 0), *padding)
    if how == "max":
        return windows(np.pad(x, amounts, constant_values=-np.inf), size, stride).max((4, 5))
    total = windows(np.pad(x, amounts), size, stride).sum((4, 5))
    return total / (size**2 if count_padding else windows(np.pad(np.ones_like(x), amounts), size, stride).sum((4, 5)))
