"""Every elementary layer on its own, in both frameworks and against others' code: it runs, its shapes, its values.

Images are (batch, channels, height, width), odd-sized, not square, with values of both signs; everything is in float64.
"""

import collections
import functools
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import shared
import torch_impl

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras
import tensorflow

import keras_impl
from shared import shapes, weights
from twins import ladder

TOLERANCES = ladder.TOLERANCES["float64"]


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
POOLS += product("max_pool", kernel=[2, 3], stride=[2, 3], padding=[0, 1], ceil=[True])
POOLS += product("adaptive_avg_pool", size=[1, 2, 3, 6, 7, 12])
NORMS = [{"type": "batch_norm", "in": 3, **options} for options in ({}, {"eps": 1e-3}, {"momentum": 0.01})]
NORMS.append({"type": "batch_norm", "in": 3, "eps": 1e-3, "momentum": 0.01})
RESPONSES = product("local_response_norm", size=[1, 2, 3, 4, 5, 8])
RESPONSES += [{"type": "local_response_norm", "size": 3, **options} for options in ({"alpha": 2}, {"beta": 0.5}, {"k": 2})]
RESPONSES.append({"type": "local_response_norm", "size": 2, "alpha": 0.3, "beta": 1.5, "k": 0.5})
OTHERS = [{"type": kind} for kind in ("relu", "scaled_tanh", "global_avg_pool", "flatten")] + [{"type": "dropout", "rate": 0.5}]
UPSAMPLES = product("upsample", scale=[1, 2, 3, 8])
UPSAMPLES += [{"type": "upsample_transposed", "in": 3, "scale": scale} for scale in (2, 4, 8)]
# Not a type of specs but a part of blocks. An odd difference leaves the odd channel behind the input's.
PADS = product("pad_channels", stride=[1, 2, 3], out=[3, 4, 6, 8])

CASES = [Case(layer, size) for layer in CONVOLUTIONS + POOLS + RESPONSES + OTHERS + UPSAMPLES + PADS for size in SIZES]
CASES += [Case(layer, size, training) for layer in NORMS for size in SIZES for training in (False, True)]
CASES.append(Case({"type": "adaptive_avg_pool", "size": 3}, (1, 4)))
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
        if self.layer["type"] == "upsample_transposed":  # not the kernel that it starts with, which is symmetric
            self.state = {name: projection(array.shape) for name, array in self.state.items()}
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
    assert ladder.relative(ours.output, theirs.output) <= TOLERANCES["activations"]


def test_gradients(pair):
    ours, theirs = pair.results
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in ours.gradients.items():
        assert gradient.any(), name
        assert ladder.relative(gradient, theirs.gradients[name]) <= TOLERANCES["gradients"], name


def test_values_by_other_code(pair):
    expected = oracle(pair)
    for output, _, _ in pair.results:
        assert ladder.relative(expected, output) <= TOLERANCES["activations"]


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
    if kind == "avg_pool":
        return F.avg_pool2d(torch.from_numpy(images), layer["kernel"], **options).numpy()
    if kind == "max_pool":
        ceil = layer.get("ceil", False)
        return F.max_pool2d(torch.from_numpy(images), layer["kernel"], **options, ceil_mode=ceil).numpy()
    if kind == "adaptive_avg_pool":
        return adaptive_average(images, layer["size"])
    if kind == "local_response_norm":
        return local_response(images, **{key: value for key, value in layer.items() if key != "type"})
    if kind == "relu":
        return np.maximum(images, 0)
    if kind == "scaled_tanh":
        return 1.7159 * np.tanh(images * 2 / 3)
    if kind == "dropout":  # in evaluation mode; test_dropout.py has the other
        return images
    if kind == "global_avg_pool":
        return images.mean((2, 3), keepdims=True)
    if kind == "upsample":
        return bilinear(images, layer["scale"])
    if kind == "upsample_transposed":
        return scattered(images, state["weight"][:, 0], layer["scale"])
    vector = images.reshape(len(images), -1)
    if kind == "flatten":
        return vector
    if kind == "linear":
        return vector @ state["weight"].T + state.get("bias", 0)
    assert kind == "pad_channels"
    before, added = (layer["out"] - 3) // 2, layer["out"] - 3
    small = images[:, :, :: layer["stride"], :: layer["stride"]]
    return np.pad(small, [(0, 0), (before, added - before), (0, 0), (0, 0)])


def adaptive_average(images, size):
    """Position i is the mean from floor(i n / size) to ceil((i + 1) n / size): PyTorch's rule."""
    spans = [[slice(i * n // size, -(-(i + 1) * n // size)) for i in range(size)] for n in images.shape[2:]]
    return np.stack([np.stack([images[:, :, y, x].mean((2, 3)) for x in spans[1]], -1) for y in spans[0]], -2)


def bilinear(images, scale):
    """By `numpy.interp`, one axis after the other: the centre of output pixel i is at (i + 1/2) / scale - 1/2."""
    for axis in (2, 3):
        pixels = images.shape[axis]
        centres = (np.arange(pixels * scale) + 0.5) / scale - 0.5
        images = np.apply_along_axis(lambda row, at=centres, n=pixels: np.interp(at, np.arange(n), row), axis, images)
    return images


def scattered(images, kernels, scale):
    """A transposed convolution as its definition has it: each pixel adds its multiple of the kernel around its place."""
    count, channels, height, width = images.shape
    border, output = scale // 2, np.zeros((count, channels, (height + 1) * scale, (width + 1) * scale))
    for y, x in itertools.product(range(height), range(width)):
        place = np.s_[:, :, y * scale : (y + 2) * scale, x * scale : (x + 2) * scale]
        output[place] += images[:, :, y, x, None, None] * kernels
    return output[:, :, border:-border, border:-border]


def local_response(images, size, alpha=1e-4, beta=0.75, k=1.0):
    """As Krizhevsky et al. 2012 write it, with the mean for their sum; of an even size the longer half is before."""
    output, channels = np.empty_like(images), images.shape[1]
    for i in range(channels):
        neighbours = images[:, max(0, i - size // 2) : min(channels, i + (size - 1) // 2 + 1)]
        output[:, i] = images[:, i] / (k + alpha / size * (neighbours**2).sum(1)) ** beta
    return output


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
            assert ladder.relative(getattr(other, name).numpy(), state[f"layer.{name}"]) <= TOLERANCES["statistics"], name
        expected = by_hand if pair.training else pair.state["layer.running_var"]
        assert ladder.relative(expected, state["layer.running_var"]) <= TOLERANCES["statistics"]


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


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
def test_fused_batch_norm(dtype, eps):
    """TensorFlow's fused kernel, by PyTorch's in float64, on few pixels whose variance is about `eps`."""
    images = (np.sqrt(eps) * np.random.default_rng(0).normal(1, 1, (2, 3, 2, 3))).astype("float32")
    ours = torch.nn.BatchNorm2d(3, eps, dtype=torch.float64)
    with keras_impl.layers.precision(dtype):
        theirs = keras_impl.layers.BatchNorm(3, eps)
    tolerance = ladder.TOLERANCES[dtype.removeprefix("mixed_")]["logits"]
    for training in (True, False):
        x, y = torch.from_numpy(images).double().requires_grad_(), tensorflow.constant(channels_last(images))
        expected = ours.train(training)(x)
        (expected**3).sum().backward()
        with tensorflow.GradientTape() as tape:
            tape.watch(y)
            found = tensorflow.cast(theirs(y, training=training), "float32")
            loss = tensorflow.reduce_sum(found**3)
        gradient = channels_first(tensorflow.cast(tape.gradient(loss, y), "float32").numpy())
        assert ladder.relative(expected.detach().numpy(), channels_first(found.numpy())) <= tolerance
        assert ladder.relative(x.grad.numpy(), gradient) <= tolerance
        for name in ("running_mean", "running_var"):
            value = np.asarray(getattr(theirs, name).value, "float64")
            assert ladder.relative(getattr(ours, name).numpy(), value) <= tolerance, name


@pytest.mark.parametrize(
    ("dtype", "compiled", "fused"), [("float32", False, True), ("float32", True, False), ("float64", False, False)]
)
def test_where_batch_norm_is_fused(dtype, compiled, fused):
    with keras_impl.layers.precision(dtype):
        layer = keras_impl.layers.BatchNorm(3)
    function = tensorflow.function(lambda x: layer(x, training=True), jit_compile=compiled)
    graph = function.get_concrete_function(tensorflow.TensorSpec((2, 4, 4, 3), dtype)).graph
    assert ("FusedBatchNormV3" in {node.type for node in graph.get_operations()}) == (dtype == "float32" and not compiled)


ON_X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="TensorFlow has oneDNN's kernels on x86")


def by_onednn():
    """Whether this process computes with oneDNN's kernels."""
    return keras_impl.layers.fused.by_onednn(tensorflow.constant(0.0))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        *((3, 1, dilation, padding) for dilation in (2, 3) for padding in (0, 2, "same")),  # one operation
        *((1, stride, 1, padding) for stride in (2, 3) for padding in (0, "same")),  # oneDNN's own corrupts memory
    ],
)
def test_a_convolution_in_float32(kernel, stride, dilation, padding):
    """TensorFlow's own kernels, or oneDNN's, and their gradients, by PyTorch's in float64."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((2, 5, 11, 14)).astype("float32")
    arrays = {"weight": generator.standard_normal((6, 5, kernel, kernel)), "bias": generator.standard_normal(6)}
    pixels = dilation * (kernel // 2) if padding == "same" else padding
    ours = torch.nn.Conv2d(5, 6, kernel, stride, pixels, dilation, dtype=torch.float64)
    ours.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    theirs = keras_impl.layers.Conv(5, 6, kernel, stride, padding, dilation)
    theirs.weight.assign(arrays["weight"].transpose(2, 3, 1, 0))
    theirs.bias.assign(arrays["bias"])

    @tensorflow.function
    def step(y):
        with tensorflow.GradientTape() as tape:
            tape.watch(y)
            found = theirs(y)
            loss = tensorflow.reduce_sum(found**3)
        return found, *tape.gradient(loss, [y, theirs.weight.value])

    x, y = torch.from_numpy(images).double().requires_grad_(), tensorflow.constant(channels_last(images))
    expected = ours(x)
    (expected**3).sum().backward()
    found, gradient, of_kernel = (array.numpy() for array in step(y))
    operations = {node.type for node in step.get_concrete_function(y).graph.get_operations()}
    assert ("SpaceToBatchND" in operations) == (dilation > 1 and not by_onednn())
    assert ("StridedSlice" in operations) == (stride > 1 and by_onednn())
    tolerance = ladder.TOLERANCES["float32"]["logits"]
    assert ladder.relative(expected.detach().numpy(), channels_first(found)) <= tolerance
    assert ladder.relative(x.grad.numpy(), channels_first(gradient)) <= tolerance
    assert ladder.relative(ours.weight.grad.numpy(), of_kernel.transpose(3, 2, 0, 1)) <= tolerance


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
@pytest.mark.parametrize("options", [{"padding": 2, "dilation": 2}, {"padding": 1, "groups": 2}, {"kernel": 1, "stride": 2}])
def test_a_convolution_on_a_gpu_is_one_operation(options, dtype, monkeypatch):
    """And so are its gradients; there is no GPU in this test. The values are those of the CPU's ways around."""
    x = np.random.default_rng(0).standard_normal((2, 11, 14, 6))
    with keras_impl.layers.precision(dtype):
        layer = keras_impl.layers.Conv(6, 6, **{"kernel": 3} | options)
    layer.weight.assign(np.random.default_rng(1).standard_normal(layer.weight.shape))
    expected = layer(x)
    asked = []
    monkeypatch.setattr(keras_impl.layers.fused, "has_accelerator", lambda: asked.append(1) or True)

    def gradients(y):
        with tensorflow.GradientTape() as tape:
            tape.watch(y)
            total = tensorflow.reduce_sum(layer(y))
        return tape.gradient(total, [y, layer.weight.value])

    graph = tensorflow.function(gradients).get_concrete_function(tensorflow.constant(x)).graph
    kinds = collections.Counter(node.type for node in graph.get_operations())
    assert {name: count for name, count in kinds.items() if name.startswith("Conv2D")} == dict.fromkeys(
        ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"), 1
    )
    assert not {"SpaceToBatchND", "Split", "StridedSlice", "PartitionedCall", "StatefulPartitionedCall"} & set(kinds)
    assert asked and ladder.relative(expected, layer(x)) <= (1e-15 if dtype == "float64" else 1e-2)


@ON_X86
@pytest.mark.parametrize("value", ["0", "1"])
def test_both_sets_of_kernels(value):
    """A process has one of them, chosen before TensorFlow is imported; the processor says which without the variable."""
    command = [sys.executable, "-m", "pytest", "-n", "0", f"{__file__}::test_a_convolution_in_float32"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"TF_ENABLE_ONEDNN_OPTS": value})
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


# In a process of its own, with the kernels that the commands choose before TensorFlow is imported
COUNTING = """
import collections, json, sys
from twins import backends

(keras_impl,) = backends.start(backends.Backend.TF)
import tensorflow as tf
from tensorflow.python.eager import context

def operations(net, training):
    images = tf.zeros((1, 64, 64, 3))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(net(images, training=training))
        return tape.gradient(total, [variable.value for variable in net.trainable_variables]) if training else total

    context.context().enable_run_metadata()
    step()
    graphs = [graph for each in context.context().export_run_metadata().function_graphs for graph in each.partition_graphs]
    return collections.Counter(node.op.removeprefix("_Mkl").removeprefix("Native") for graph in graphs for node in graph.node)

net = keras_impl.build(sys.argv[1])
print(json.dumps([operations(net, True), operations(keras_impl.folded(net), False)]))
"""


@ON_X86
@pytest.mark.parametrize(
    ("network", "before_relu", "others", "convolutions"), [("resnet18", 9, 11, 20), ("drn_c_26", 15, 15, 31)]
)
def test_what_tensorflow_fuses(network, before_relu, others, convolutions):
    """In training, each batch norm and the ReLU after it; folded, each convolution with its bias, sum and ReLU."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, network], capture_output=True, text=True, check=True, env=environment
    )
    training, folded = map(collections.Counter, json.loads(done.stdout))
    assert (training["FusedBatchNormEx"], training["FusedBatchNormV3"]) == (before_relu, others)
    assert folded["FusedConv2D"] + folded["PadWithFusedConv2D"] == convolutions
    assert not folded.keys() & {"Conv2D", "BiasAdd", "AddV2", "Relu", "FusedBatchNormV3"}
    assert not (training | folded).keys() & {"SpaceToBatchND", "BatchToSpaceND"}  # a dilated convolution is one operation


PADDED = [case for case in CASES if case.layer["type"] == "max_pool" and {"padding", "ceil"} & case.layer.keys()]


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padding_never_wins_a_maximum(case):
    pair = Pair(case, images=-1 - np.abs(random_images(case.size)))
    for output, _, _ in pair.results:
        assert output.max() <= -1
        assert ladder.relative(oracle(pair), output) <= TOLERANCES["activations"]


def alone(layer, images, **options):
    """What a layer class gives in both packages, with no spec around it."""
    ours = getattr(torch_impl.layers, layer)(**options)(torch.from_numpy(images)).numpy()
    with keras_impl.layers.precision(images.dtype.name):
        theirs = getattr(keras_impl.layers, layer)(**options)(channels_last(images)).numpy()
    return ours, channels_first(theirs)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_pools_that_round_up(kernel):
    """As PyTorch's, of many sizes, where no more window may begin in the padding; one may be larger than the image."""
    for stride, padding, height in itertools.product(range(1, 6), range(kernel // 2 + 1), range(1, 13)):
        options, size = {"kernel": kernel, "stride": stride, "padding": padding}, (height, 13 - height)
        images = -1 - np.random.default_rng(0).random((1, 2, *size))
        spec = spec_of(Case({"type": "max_pool", **options, "ceil": True}, size)) | {"input": [2, *size]}
        try:
            expected = F.max_pool2d(torch.from_numpy(images), kernel, stride, padding, ceil_mode=True).numpy()
        except RuntimeError:
            with pytest.raises(shared.Error, match="the image is too small"):
                shapes.layers(spec)
            continue
        assert shapes.layers(spec)[0].shape == expected.shape[1:], (options, size)
        for output in alone("MaxPool", images, **options, ceil=True):
            assert np.array_equal(output, expected), (options, size)


@pytest.mark.parametrize("size", range(1, 9))
def test_adaptive_pools(size):
    """As PyTorch's, where the map does not divide and where it is smaller than what comes out."""
    for height in range(1, 13):
        images = np.random.default_rng(0).standard_normal((2, 3, height, 13 - height))
        expected = torch.nn.AdaptiveAvgPool2d(size)(torch.from_numpy(images)).numpy()
        for output in alone("AdaptiveAvgPool", images, size=size):
            assert ladder.relative(expected, output) <= TOLERANCES["activations"], images.shape


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("channels", [1, 7])
def test_local_response_norm_is_that_of_pytorch(channels, size):
    images = 5 * np.random.default_rng(0).standard_normal((2, channels, 3, 5))
    for options in ({}, {"alpha": 2.0, "beta": 0.5, "k": 3.0}):
        expected = torch.nn.LocalResponseNorm(size, **options)(torch.from_numpy(images)).numpy()
        for output in alone("LocalResponseNorm", images, size=size, **options):
            assert ladder.relative(expected, output) <= TOLERANCES["activations"]


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_local_response_norm_is_that_of_tensorflow(size):
    """Its window is odd, its alpha a `size`-th, its precision float32."""
    images = 5 * np.random.default_rng(0).standard_normal((2, 7, 3, 5), np.float32)
    for alpha, beta, k in ((1e-4, 0.75, 1.0), (2.0, 0.5, 3.0)):
        expected = tensorflow.nn.local_response_normalization(channels_last(images), size // 2, k, alpha / size, beta)
        for output in alone("LocalResponseNorm", images, size=size, alpha=alpha, beta=beta, k=k):
            assert ladder.relative(channels_first(expected.numpy()), output) <= 1e-6


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=str)
def test_windows_larger_than_the_image_are_refused(case):
    for package in (torch_impl, keras_impl):
        with pytest.raises(shared.Error, match="the image is too small"):
            package.build(spec_of(case))
    with pytest.raises(RuntimeError, match="size"):  # as PyTorch does
        options = {key: case.layer[key] for key in ("stride", "padding", "dilation") if key in case.layer}
        F.conv2d(torch.zeros(3, 3, *case.size), torch.zeros(4, 3, *[case.layer["kernel"]] * 2), **options)
