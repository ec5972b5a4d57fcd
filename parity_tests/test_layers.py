"""Every elementary layer on its own, in both frameworks and against others' code: it runs, its shapes, its values.

Images are (batch, channels, height, width), odd-sized, not square, with values of both signs; everything is in float64.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import shared
import torch_impl
from shared import compare, shapes, weights

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras
import tensorflow

import keras_impl

BOUNDS = compare.BOUNDS["float64"]


class Case(NamedTuple):
    """A layer as a spec has it, without its name; the height and width of its images; and its mode."""

    layer: dict
    size: tuple[int, int]
    training: bool = False

    def __str__(self):
        words = [f"{key}={value}" for key, value in self.layer.items() if key not in ("type", "in")]
        return "-".join([self.layer["type"], *words, f"{self.size[0]}x{self.size[1]}", *["training"] * self.training])

    @property
    def fits(self):
        """Whether a window, with its padding, is within the image."""
        if "kernel" not in self.layer or self.layer.get("padding") == "same":
            return True
        extent = self.layer.get("dilation", 1) * (self.layer["kernel"] - 1) + 1
        return extent <= min(self.size) + 2 * self.layer.get("padding", 0)


def product(kind, **choices):
    """A layer of this type for every combination of the options."""
    sizes = {"in": 3, "out": 4} if kind == "conv" else {}
    return [
        {"type": kind, **sizes, **dict(zip(choices, values, strict=True))} for values in itertools.product(*choices.values())
    ]


SIZES = ((7, 10), (11, 9))
CONVOLUTIONS = [{"type": "conv", "in": 3, "out": 4, "kernel": 3}]
CONVOLUTIONS += product("conv", kernel=[1, 2, 3, 5, 7], stride=[1, 2, 3], padding=[0, 1, 2, "same"])
CONVOLUTIONS += product("conv", kernel=[1, 2, 3, 5, 7], padding=[0, 1, 2, "same"], dilation=[2, 4])
CONVOLUTIONS += product("conv", kernel=[1, 2, 3], stride=[1, 2], padding=[1, "same"], bias=[False, True])
POOLS = [
    layer
    for kind in ("max_pool", "avg_pool")
    for layer in product(kind, kernel=[2, 3], stride=[1, 2], padding=[0, 1, "same"]) + [{"type": kind, "kernel": 3}]
]
NORMS = [{"type": "batch_norm", "in": 3, **options} for options in ({}, {"eps": 1e-3}, {"momentum": 0.01})]
NORMS.append({"type": "batch_norm", "in": 3, "eps": 1e-3, "momentum": 0.01})
OTHERS = [{"type": kind} for kind in ("relu", "global_avg_pool", "flatten")]
# Not a type of specs but a part of blocks. An odd difference leaves the odd channel behind the input's.
PADS = product("pad_channels", stride=[1, 2, 3], out=[3, 4, 6, 8])

CASES = [Case(layer, size) for layer in CONVOLUTIONS + POOLS + OTHERS + PADS for size in SIZES]
CASES += [Case(layer, size, training) for layer in NORMS for size in SIZES for training in (False, True)]
CASES += [
    Case({"type": "linear", "in": 3 * math.prod(size), "out": 5, **options}, size)
    for size in SIZES
    for options in ({}, {"bias": True}, {"bias": False})
]
IMPOSSIBLE = [case for case in CASES if not case.fits]
CASES = [case for case in CASES if case.fits]


def spec_of(case):
    before = [{"name": "flatten", "type": "flatten"}] if case.layer["type"] == "linear" else []
    return {"name": "one_layer", "input": [3, *case.size], "layers": [*before, {"name": "layer", **case.layer}]}


def random_images(size):
    # Mostly below zero, so that a pad of zeros would win many a maximum.
    return np.random.default_rng(0).standard_normal((3, 3, *size)) - 0.5


class Result(NamedTuple):
    """What a layer gave in one framework, and its state afterwards, with PyTorch's names and axes."""

    output: np.ndarray
    gradients: dict[str, np.ndarray]  # of the sum of the output times a random projection
    state: dict[str, np.ndarray]


class Pair:
    """A layer in both frameworks, with the same random weights, and images for it."""

    def __init__(self, case, images=None):
        self.layer, self.size, self.training = self.case = case
        self.images = random_images(case.size) if images is None else images
        if self.layer["type"] == "pad_channels":
            options = 3, self.layer["out"], self.layer["stride"]
            with keras_impl.layers.precision("float64"):
                self.nets = torch_impl.layers.PadChannels(*options), keras_impl.layers.PadChannels(*options)
        else:
            self.nets = [package.build(spec_of(case), dtype="float64") for package in (torch_impl, keras_impl)]
        self.state = weights.randomised(torch_impl.state(self.nets[0]))
        for package, net in zip((torch_impl, keras_impl), self.nets, strict=True):
            package.load(net, self.state)

    @functools.cached_property
    def results(self):
        return self._in_pytorch(self.nets[0]), self._in_keras(self.nets[1])

    def _in_pytorch(self, net):
        images = torch.from_numpy(self.images).requires_grad_()
        # A copy, for ReLU writes over its input.
        output = net.train(self.training)(images.clone())
        tensors = {"input": images, **dict(net.named_parameters())}
        found = torch.autograd.grad(output, list(tensors.values()), torch.from_numpy(projection(output.shape)))
        gradients = {name: gradient.numpy() for name, gradient in zip(tensors, found, strict=True)}
        return Result(output.detach().numpy(), gradients, torch_impl.state(net))

    def _in_keras(self, net):
        images = tensorflow.constant(channels_last(self.images))
        sources = {name: v.value for name, v in keras_impl.weights.variables(net).items() if v.trainable}
        with tensorflow.GradientTape() as tape:
            tape.watch(images)
            output = net(images, training=self.training)
        direction = tensorflow.constant(channels_last(projection(channels_first(output.numpy()).shape)))
        found = tape.gradient(output, {"input": images, **sources}, output_gradients=direction)
        gradients = {"input": channels_first(found.pop("input").numpy())}
        gradients |= {name: keras_impl.weights.to_pytorch(gradient.numpy()) for name, gradient in found.items()}
        return Result(channels_first(output.numpy()), gradients, keras_impl.state(net))


def projection(shape):
    return np.random.default_rng(1).standard_normal(shape)


def channels_first(array):
    return keras_impl.Engine.channels_first(array)


def channels_last(array):
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request):
    return Pair(request.param)


def test_runs(pair):
    for output, gradients, _ in pair.results:
        for array in (output, *gradients.values()):
            assert array.dtype == np.float64
            assert np.isfinite(array).all()


def test_shapes(pair):
    if pair.layer["type"] == "pad_channels":
        shape, expected = (pair.layer["out"], *(math.ceil(n / pair.layer["stride"]) for n in pair.size)), {}
    else:
        rows = shapes.layers(spec_of(pair.case))
        shape, expected = rows[-1].shape, shapes.weights(rows)
    for output, _, state in pair.results:
        assert output.shape == (3, *shape)
        assert {name: array.shape for name, array in state.items()} == expected


def test_values(pair):
    ours, theirs = pair.results
    assert compare.relative(ours.output, theirs.output) <= BOUNDS["activations"]


def test_gradients(pair):
    ours, theirs = pair.results
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in ours.gradients.items():
        assert gradient.any(), name
        assert compare.relative(gradient, theirs.gradients[name]) <= BOUNDS["gradients"], name


def test_values_by_other_code(pair):
    expected = oracle(pair)
    for output, _, _ in pair.results:
        assert compare.relative(expected, output) <= BOUNDS["activations"]


def oracle(pair):
    """What the layer should give: by PyTorch's own functions, by Keras's own layers for "same", by NumPy for the rest."""
    layer, images, state = pair.layer, pair.images, bare(pair.state)
    kind, options = layer["type"], {key: layer[key] for key in ("stride", "padding", "dilation") if key in layer}
    if layer.get("padding") == "same":
        return keras_same(layer, images, state)
    if kind == "conv":
        return F.conv2d(*map(torch.from_numpy, (images, *state.values())), **options).numpy()
    if kind == "batch_norm":
        return torch_batch_norm(pair)(torch.from_numpy(images)).detach().numpy()
    if kind in ("max_pool", "avg_pool"):
        pool = {"max_pool": F.max_pool2d, "avg_pool": F.avg_pool2d}[kind]
        return pool(torch.from_numpy(images), layer["kernel"], **options).numpy()
    if kind == "relu":
        return np.maximum(images, 0)
    if kind == "global_avg_pool":
        return images.mean((2, 3), keepdims=True)
    vector = images.reshape(len(images), -1)
    if kind == "flatten":
        return vector
    if kind == "linear":
        return vector @ state["weight"].T + state.get("bias", 0)
    assert kind == "pad_channels"
    before, added = (layer["out"] - 3) // 2, layer["out"] - 3
    small = images[:, :, :: layer["stride"], :: layer["stride"]]
    return np.pad(small, [(0, 0), (before, added - before), (0, 0), (0, 0)])


def bare(state):
    return {name.removeprefix("layer."): array for name, array in state.items()}


def keras_same(layer, images, state):
    options = {"strides": layer.get("stride", 1), "padding": "same", "dtype": "float64"}
    if layer["type"] == "conv":
        bias = "bias" in state
        other = keras.layers.Conv2D(4, layer["kernel"], dilation_rate=layer.get("dilation", 1), use_bias=bias, **options)
        other.build((None, None, None, 3))
        other.set_weights([state["weight"].transpose(2, 3, 1, 0), *([state["bias"]] if bias else [])])
    else:
        pool = {"max_pool": keras.layers.MaxPooling2D, "avg_pool": keras.layers.AveragePooling2D}[layer["type"]]
        other = pool(layer["kernel"], **options)
    return channels_first(other(channels_last(images)).numpy())


def torch_batch_norm(pair):
    options = {"eps": pair.layer.get("eps", 1e-5), "momentum": pair.layer.get("momentum", 0.1)}
    other = torch.nn.BatchNorm2d(3, **options, dtype=torch.float64).train(pair.training)
    other.load_state_dict({name: torch.tensor(array) for name, array in bare(pair.state).items()})
    return other


@pytest.mark.parametrize("pair", [case for case in CASES if case.layer["type"] == "batch_norm"], ids=str, indirect=True)
def test_running_statistics(pair):
    """They move in training alone, and the variance, as PyTorch has it, by the unbiased variance of the batch."""
    other = torch_batch_norm(pair)
    other(torch.from_numpy(pair.images))
    momentum, variance = pair.layer.get("momentum", 0.1), pair.images.var((0, 2, 3), ddof=1)
    by_hand = (1 - momentum) * pair.state["layer.running_var"] + momentum * variance
    for _, _, state in pair.results:
        for name in ("running_mean", "running_var"):
            assert compare.relative(getattr(other, name).numpy(), state[f"layer.{name}"]) <= BOUNDS["statistics"], name
        expected = by_hand if pair.training else pair.state["layer.running_var"]
        assert compare.relative(expected, state["layer.running_var"]) <= BOUNDS["statistics"]


@pytest.mark.parametrize("frozen", ["network", "layer"])
def test_frozen_batch_norm_keeps_its_statistics(frozen):
    """Keras's rule: a layer that is not trainable is in evaluation mode, whatever the call says."""
    net = Pair(Case(NORMS[0], SIZES[0])).nets[1]
    images = channels_last(random_images(SIZES[0]))
    expected, before = net(images, training=False).numpy(), keras_impl.state(net)
    (net if frozen == "network" else net.layer).trainable = False
    output = net(images, training=True).numpy()
    assert np.array_equal(output, expected)
    assert all(np.array_equal(array, before[name]) for name, array in keras_impl.state(net).items())


PADDED = [case for case in CASES if case.layer["type"] == "max_pool" and case.layer.get("padding")]


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padding_never_wins_a_maximum(case):
    pair = Pair(case, images=-1 - np.abs(random_images(case.size)))
    for output, _, _ in pair.results:
        assert output.max() <= -1
        assert compare.relative(oracle(pair), output) <= BOUNDS["activations"]


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=str)
def test_windows_larger_than_the_image_are_refused(case):
    for package in (torch_impl, keras_impl):
        with pytest.raises(shared.Error, match="the image is too small"):
            package.build(spec_of(case))
    with pytest.raises(RuntimeError, match="size"):  # as PyTorch does
        options = {key: case.layer[key] for key in ("stride", "padding", "dilation") if key in case.layer}
        F.conv2d(torch.zeros(3, 3, *case.size), torch.zeros(4, 3, *[case.layer["kernel"]] * 2), **options)
