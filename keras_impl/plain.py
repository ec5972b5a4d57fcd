"""A network as a functional model of Keras's own layers, for people who do not have this package.

A function for each type of layer and block: it gets ours, the output of the layer before, (batch, height, width, channels), and
its name in the spec, which with _ for . is the name of Keras's layer: "layer1_0_conv1". What one of ours does in several of
Keras's has a word more: "conv1_pad".
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from shared.checks import Error
from shared.interpolation import interpolation_matrix

from . import blocks, inception, layers, preactivation
from .layers import Tensor
from .network import Network

Layer = Any  # one of ours


def functional(net: Network) -> keras.Model:
    """The network of Keras's own layers: for images of the spec's size, in the same precision, with copies of the weights.

    The logarithm in a local response norm, for which Keras has no layer, is an operation of `keras.ops`. Weights that nothing
    uses are left out. In training, batch norms follow the biased variance of the batch, as everywhere in Keras. On JAX and
    PyTorch, Keras's batch norms and means compute in float32 even in a float64 model.
    Raises `shared.Error` if two layers would have the same name, a layer of the network was replaced by a foreign one, or there
    are more than Keras can follow by recursion, as in a ResNet-1001.
    """
    channels, height, width = net.spec["input"]
    with layers.precision(net.dtype_policy):
        images = keras.Input((height, width, channels), dtype=net.variable_dtype, name="images")
        x = images
        for name, layer in net.chain():
            x = run(layer, x, name)
        try:
            return keras.Model(images, x, name=net.name)
        except ValueError as error:
            raise Error(f"{net.name} cannot be built from Keras's own layers: {error}") from None
        except RecursionError:
            raise Error(
                f"{net.name} has too many layers for a functional model, which Keras builds and loads by recursion"
            ) from None


def run(layer: Layer, x: Tensor, name: str) -> Tensor:
    """The output of a layer or block of ours, by layers of Keras's."""
    if type(layer) not in PLAIN:
        raise Error(f"layer {name!r} is a {type(layer).__name__}, not one of this package's layers")
    return PLAIN[type(layer)](layer, x, name)


def add(kind: type[keras.Layer], x: Any, name: str, *arguments: Any, weights: Sequence[Any] = (), **options: Any) -> Tensor:
    """The output of a new layer of Keras's, which gets the values of these `weights`."""
    layer = kind(*arguments, name=name.replace(".", "_"), **options)
    y = layer(x)
    if weights:
        layer.set_weights([keras.ops.convert_to_numpy(weight) for weight in weights])
    return y


def conv(layer: layers.Conv, x: Tensor, name: str) -> Tensor:
    out_channels, bias = layer.weight.shape[-1], layer.bias is not None
    return add(
        keras.layers.Conv2D, pad(x, name, layer.pixels), name, out_channels, layer.weight.shape[0], layer.stride,
        "same" if layer.padding == "same" else "valid", dilation_rate=layer.dilation, groups=layer.groups, use_bias=bias,
        weights=[layer.weight, *([layer.bias] if bias else [])],
    )  # fmt: skip


def batch_norm(layer: layers.BatchNorm, x: Tensor, name: str) -> Tensor:
    weights = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    return add(keras.layers.BatchNormalization, x, name, momentum=layer.momentum, epsilon=layer.epsilon, weights=weights)


def local_response_norm(layer: layers.LocalResponseNorm, x: Tensor, name: str) -> Tensor:
    channels = x.shape[-1]
    # A 1x1 convolution sums squares: input channel i counts for output channel o if i is in the window around o.
    numbers = range(channels)
    window = [[-(layer.size // 2) <= i - o <= (layer.size - 1) // 2 for o in numbers] for i in numbers]
    kernel = keras.ops.cast([[window]], x.dtype) * (layer.alpha / layer.size)
    squares = add(keras.layers.Multiply, [x, x], f"{name}_squares")
    offset = keras.ops.full((channels,), layer.k, x.dtype)
    total = add(keras.layers.Conv2D, squares, f"{name}_sum", channels, 1, trainable=False, weights=[kernel, offset])
    # No layer computes logarithms. On PyTorch, Keras would round the exponent of its power to float32.
    exponent = scaled(keras.ops.log(total), -layer.beta, f"{name}_exponent")
    return add(keras.layers.Multiply, [x, add(keras.layers.Activation, exponent, f"{name}_power", "exponential")], name)


def max_pool(layer: layers.MaxPool, x: Tensor, name: str) -> Tensor:
    pixels = layer.padding
    if pixels == "same" or (layer.stride == 1 and 2 * pixels == layer.kernel - 1):
        return add(keras.layers.MaxPooling2D, x, name, layer.kernel, layer.stride, "same")
    after = [pixels + (layer.missing(n, pixels) if layer.ceil else 0) for n in x.shape[1:3]]
    return add(keras.layers.MaxPooling2D, pad_for_maximum(x, name, pixels, after), name, layer.kernel, layer.stride)


def pad_for_maximum(x: Tensor, name: str, before: int, after: Sequence[int]) -> Tensor:
    """Pad a map, by as many pixels as `after` says for each axis at its end, with what never wins in a window."""
    if not before and not any(after):
        return x
    if isinstance(x._keras_history.operation, keras.layers.ReLU):
        return add(keras.layers.ZeroPadding2D, x, f"{name}_pad", tuple((before, more) for more in after))
    # No layer pads with minus infinity. Repeated edge pixels work as well: every window that sees them also contains the edge.
    for axis, more in zip((1, 2), after, strict=True):
        first = crop(x, f"{name}_first{axis}", axis, 0, 1)
        last = crop(x, f"{name}_last{axis}", axis, x.shape[axis] - 1, x.shape[axis])
        x = add(keras.layers.Concatenate, [first] * before + [x] + [last] * more, f"{name}_pad{axis}", axis)
    return x


def crop(x: Tensor, name: str, axis: int, start: int, end: int) -> Tensor:
    """The rows (axis 1) or columns (axis 2) of a map from `start` to before `end`."""
    cut, whole = (start, x.shape[axis] - end), (0, 0)
    return add(keras.layers.Cropping2D, x, name, (cut, whole) if axis == 1 else (whole, cut))


def avg_pool(layer: layers.AvgPool, x: Tensor, name: str) -> Tensor:
    if layer.padding == "same":
        return add(keras.layers.AveragePooling2D, x, name, layer.kernel, layer.stride, "same")
    return add(keras.layers.AveragePooling2D, pad(x, name, layer.padding), name, layer.kernel, layer.stride)


def adaptive_avg_pool(layer: layers.AdaptiveAvgPool, x: Tensor, name: str) -> Tensor:
    size, (height, width) = layer.size, x.shape[1:3]
    if height % size == width % size == 0:
        return add(keras.layers.AveragePooling2D, x, name, (height // size, width // size))
    for axis, last_name in ((1, f"{name}_rows"), (2, name)):
        parts, pixels = [], x.shape[axis]
        for i in range(size):
            start, end = i * pixels // size, -(-(i + 1) * pixels // size)
            part = crop(x, f"{name}_window{axis}_{i}", axis, start, end)
            window = (end - start, 1) if axis == 1 else (1, end - start)
            parts.append(add(keras.layers.AveragePooling2D, part, f"{name}_mean{axis}_{i}", window))
        x = add(keras.layers.Concatenate, parts, last_name, axis) if size > 1 else parts[0]
    return x


def flatten(layer: layers.Flatten, x: Tensor, name: str) -> Tensor:
    if len(x.shape) == 4 and x.shape[1:3] != (1, 1):
        x = add(keras.layers.Permute, x, f"{name}_channels_first", (3, 1, 2))  # PyTorch's order
    return add(keras.layers.Flatten, x, name)


def linear(layer: layers.Linear, x: Tensor, name: str) -> Tensor:
    bias = layer.bias is not None
    weights = [layer.weight, *([layer.bias] if bias else [])]
    return add(keras.layers.Dense, x, name, layer.weight.shape[-1], use_bias=bias, weights=weights)


def upsample(layer: layers.Upsample, x: Tensor, name: str) -> Tensor:
    # A matrix for each axis: TensorFlow's own resizing supports only float32.
    for axis, equation, last_name in ((1, "bhwc,hn->bnwc", f"{name}_rows"), (2, "bhwc,wn->bhnc", name)):
        shape = list(x.shape[1:])
        shape[axis - 1] *= layer.scale
        matrix = interpolation_matrix(x.shape[axis], shape[axis - 1]).T
        x = add(keras.layers.EinsumDense, x, last_name, equation, shape, trainable=False, weights=[matrix])
    return x


def upsample_transposed(layer: layers.UpsampleTransposed, x: Tensor, name: str) -> Tensor:
    channels, side = x.shape[-1], 2 * layer.scale
    kernel = np.zeros((side, side, channels, channels))
    kernel[..., range(channels), range(channels)] = keras.ops.convert_to_numpy(layer.weight)[:, :, 0]
    options: dict[str, Any] = {"strides": layer.scale, "use_bias": False, "trainable": False, "weights": [kernel]}
    x = add(keras.layers.Conv2DTranspose, x, f"{name}_whole", channels, side, **options)
    return add(keras.layers.Cropping2D, x, name, layer.scale // 2)


def scaled_tanh(layer: layers.ScaledTanh, x: Tensor, name: str) -> Tensor:
    x = scaled(x, 2 / 3, f"{name}_scale")
    return scaled(add(keras.layers.Activation, x, f"{name}_tanh", "tanh"), 1.7159, name)


def pad_channels(layer: layers.PadChannels, x: Tensor, name: str) -> Tensor:
    if layer.stride > 1:
        x = add(keras.layers.MaxPooling2D, x, f"{name}_subsample", 1, layer.stride)
    x = add(keras.layers.Permute, x, f"{name}_channels_first", (3, 1, 2))
    x = add(keras.layers.ZeroPadding2D, x, f"{name}_pad", ((layer.before, layer.after), (0, 0)))
    return add(keras.layers.Permute, x, name, (2, 3, 1))


def pad(x: Tensor, name: str, pixels: int) -> Tensor:
    """A map with that many zeros on each side, for the layer of this name."""
    return add(keras.layers.ZeroPadding2D, x, f"{name}_pad", pixels) if pixels else x


def relu(x: Tensor, name: str) -> Tensor:
    return add(keras.layers.ReLU, x, name)


def chain(layer: layers.Chain, x: Tensor, name: str) -> Tensor:
    for number, member in enumerate(layer):
        x = run(member, x, f"{name}.{number}")
    return x


def residual(block: blocks.BasicBlock | blocks.Bottleneck, x: Tensor, name: str) -> Tensor:
    count = 2 if isinstance(block, blocks.BasicBlock) else 3
    y = x
    for number in range(1, count + 1):
        y = member(block, f"bn{number}", member(block, f"conv{number}", y, name), name)
        if number < count:
            y = relu(y, f"{name}.relu{number}")
    if block.residual:
        y = add(keras.layers.Add, [y, member(block, "downsample", x, name)], f"{name}.add")
    return relu(y, f"{name}.relu")


def preact(block: preactivation.PreActBasic | preactivation.PreActBottleneck, x: Tensor, name: str) -> Tensor:
    count = 2 if isinstance(block, preactivation.PreActBasic) else 3
    y = relu(member(block, "bn1", x, name), f"{name}.relu1") if block.first_activation else x
    shortcut = member(block, "downsample", y if block.projects else x, name)
    y = member(block, "conv1", y, name)
    for number in range(2, count + 1):
        y = relu(member(block, f"bn{number}", y, name), f"{name}.relu{number}")
        y = member(block, f"conv{number}", y, name)
    return add(keras.layers.Add, [y, shortcut], f"{name}.add")


def residual_unit(block: preactivation.ResidualUnit, x: Tensor, name: str) -> Tensor:
    y = relu(x, f"{name}.relu") if block.activation == "relu_only_preactivation" else x
    y = relu(member(block, "bn1", member(block, "conv1", y, name), name), f"{name}.relu1")
    y = member(block, "conv2", y, name)
    if block.activation != "bn_after_addition":
        y = member(block, "bn2", y, name)
    if block.activation == "relu_before_addition":
        y = relu(y, f"{name}.relu2")
    shortcut = member(block, "downsample", member(block, "dropout", x, name), name)
    if block.gate is not None:
        gate = add(keras.layers.Activation, member(block, "gate", x, name), f"{name}.sigmoid", "sigmoid")
        complement = add(keras.layers.Rescaling, gate, f"{name}.complement", -1.0, 1.0)
        shortcut = add(keras.layers.Multiply, [complement, shortcut], f"{name}.gated_shortcut")
        if block.exclusive:
            y = add(keras.layers.Multiply, [gate, y], f"{name}.gated_residual")
    y = scaled(y, block.residual_scale, f"{name}.residual_scale")
    y = add(keras.layers.Add, [scaled(shortcut, block.shortcut_scale, f"{name}.shortcut_scale"), y], f"{name}.add")
    if block.activation == "bn_after_addition":
        y = member(block, "bn2", y, name)
    return relu(y, f"{name}.relu") if block.activation in ("original", "bn_after_addition") else y


def scaled(x: Tensor, factor: float, name: str) -> Tensor:
    # Keras rounds a number to float32, but not an array, which it stores as one unless it is a scalar.
    return x if factor == 1 else add(keras.layers.Rescaling, x, name, np.array([factor]))


def conv_norm_relu(block: inception.ConvNormReLU, x: Tensor, name: str) -> Tensor:
    return relu(member(block, "bn", member(block, "conv", x, name), name), f"{name}.relu")


def inception_block(block: inception.Inception, x: Tensor, name: str) -> Tensor:
    branches = [member(block, f"branch{number}", x, name) for number in range(1, 5)]
    return add(keras.layers.Concatenate, branches, f"{name}.concatenate")


def inception_a(block: inception.InceptionA, x: Tensor, name: str) -> Tensor:
    branches = []
    for units in (
        ["branch1x1"],
        ["branch5x5_1", "branch5x5_2"],
        ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
        ["pool", "branch_pool"],
    ):
        y = x
        for unit in units:
            y = member(block, unit, y, name)
        branches.append(y)
    return add(keras.layers.Concatenate, branches, f"{name}.concatenate")


def member(block: keras.Layer, attribute: str, x: Tensor, name: str) -> Tensor:
    """The output of the layer that is this attribute of a block."""
    return run(getattr(block, attribute), x, f"{name}.{attribute}")


PLAIN: dict[type[keras.Layer], Callable[[Any, Tensor, str], Tensor]] = {
    layers.Conv: conv,
    layers.BatchNorm: batch_norm,
    layers.LocalResponseNorm: local_response_norm,
    layers.ReLU: lambda layer, x, name: relu(x, name),
    layers.ScaledTanh: scaled_tanh,
    layers.Dropout: lambda layer, x, name: add(keras.layers.Dropout, x, name, layer.rate),
    layers.MaxPool: max_pool,
    layers.AvgPool: avg_pool,
    layers.AdaptiveAvgPool: adaptive_avg_pool,
    layers.GlobalAvgPool: lambda layer, x, name: add(keras.layers.GlobalAveragePooling2D, x, name, keepdims=True),
    layers.Flatten: flatten,
    layers.Linear: linear,
    layers.Upsample: upsample,
    layers.UpsampleTransposed: upsample_transposed,
    layers.Identity: lambda layer, x, name: x,
    layers.PadChannels: pad_channels,
    layers.Chain: chain,
    blocks.BasicBlock: residual,
    blocks.Bottleneck: residual,
    preactivation.PreActBasic: preact,
    preactivation.PreActBottleneck: preact,
    preactivation.ResidualUnit: residual_unit,
    inception.ConvNormReLU: conv_norm_relu,
    inception.Inception: inception_block,
    inception.InceptionA: inception_a,
}
