"""Where Keras differs from PyTorch: the elementary layers. Images are (batch, height, width, channels).

Every layer knows its sizes, so its weights are there from the start, under PyTorch's names; `load` brings their values.
Kernels are (height, width, in, out) and (in, out).
"""

import contextlib
import importlib
import math
import threading

import keras
from keras import ops

from shared.checks import Error
from shared.interpolation import interpolation_matrix

fused = importlib.import_module(".fused", __package__) if keras.backend.backend() == "tensorflow" else None


class Model(keras.Model):
    """A Keras model that calls its layers by their attributes' names, and saves itself as its spec."""

    def __setattr__(self, name, value):
        if isinstance(value, keras.Layer):
            value.name = name  # summary() and get_layer() show it
        if name == "spec":
            object.__setattr__(self, name, value)  # Keras would make tracking ones of its lists, which are no JSON
        else:
            super().__setattr__(name, value)

    def build(self, input_shape):
        self.call(keras.KerasTensor(input_shape))  # every layer hears of its shape, for summary()

    def get_config(self):
        config = super().get_config()
        frozen = [layer.name for layer in self.layers if not layer.trainable]
        return {"spec": self.spec, "dtype": config["dtype"], "frozen": frozen}

    @classmethod
    def from_config(cls, config):
        with precision(keras.dtype_policies.deserialize(config["dtype"])):
            model = cls(config["spec"])
        for name in config["frozen"]:
            model.get_layer(name).trainable = False
        return model


class Layer(keras.Layer):
    """A layer that Keras need not build: it has its weights from the start."""

    def __init__(self):
        super().__init__()
        self.built = True


class Chain(Layer):
    """Layers that run one after the other, under the names "0", "1", "2"."""

    def __init__(self, *layers):
        super().__init__()
        for number, layer in enumerate(layers):
            setattr(self, str(number), layer)
        self.length = len(layers)

    def __dir__(self):
        # Keras saves what it finds here, and on PyTorch modules leave out attributes whose names are numbers.
        return [*super().__dir__(), *(str(number) for number in range(getattr(self, "length", 0)))]

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return [getattr(self, str(number)) for number in range(self.length)][index]

    def call(self, x, training=None):
        for layer in self:
            x = layer(x)
        return x


class Identity(Layer):
    """Gives what it gets."""

    def call(self, x):
        return x


class Conv(Layer):
    """Convolution. `padding` is in pixels on each side, or "same": out = ceil(in / stride), the odd pixel bottom and right.

    Keras's own "same" is that rule. It pads a strided convolution otherwise than PyTorch's number of pixels does.
    """

    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=0, dilation=1, bias=True, groups=1):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        if stride == 1 and 2 * self.pixels == dilation * (kernel - 1):
            self.padding = "same"  # the same pixels, and the convolution pads without a copy of the map
        self.weight = self.add_weight((kernel, kernel, in_channels // groups, out_channels), "zeros", name="weight")
        self.bias = self.add_weight((out_channels,), "zeros", name="bias") if bias else None

    @property
    def pixels(self):
        return 0 if self.padding == "same" else self.padding

    def call(self, x):
        x = pad(x, self.pixels)
        if self.groups > 1 and keras.backend.backend() == "tensorflow":
            # On the CPU TensorFlow has no gradients of grouped convolutions; Keras compiles each with XLA, call by call.
            pairs = zip(ops.split(x, self.groups, -1), ops.split(self.weight, self.groups, -1), strict=True)
            x = ops.concatenate([self._conv(*pair) for pair in pairs], -1)
        else:
            x = self._conv(x, self.weight)
        if self.bias is None:
            return x
        return fused.add_bias(x, self.bias.value) if fused else x + self.bias

    def _conv(self, x, kernel):
        padding = "same" if self.padding == "same" else "valid"
        return ops.conv(x, kernel, self.stride, padding, dilation_rate=self.dilation)


class BatchNorm(Layer):
    """Batch norm by PyTorch's rules.

    `momentum` is the share of the new batch in the running statistics, and the running variance takes in the unbiased
    variance of the batch; `keras.layers.BatchNormalization` has the share of the old and the biased variance. As everywhere
    in Keras, a layer that is not trainable keeps its running statistics and normalises by them.
    """

    def __init__(self, in_channels, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        options = {"shape": (in_channels,), "autocast": False}
        self.weight = self.add_weight(initializer="ones", name="weight", **options)
        self.bias = self.add_weight(initializer="zeros", name="bias", **options)
        options |= {"trainable": False, "aggregation": "mean"}  # of several devices
        self.running_mean = self.add_weight(initializer="zeros", name="running_mean", **options)
        self.running_var = self.add_weight(initializer="ones", name="running_var", **options)

    def call(self, x, training=None):
        by_batch = training and self.trainable
        if fused and fused.normalises(x):
            running = (None, None) if by_batch else (self.running_mean.value, self.running_var.value)
            x, mean, variance = fused.batch_norm(x, self.weight.value, self.bias.value, *running, self.eps)
        else:
            x, mean, variance = self._normalise(x, by_batch)
        if by_batch:
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, variance)
        return x

    def _normalise(self, x, by_batch):
        """The map, and the mean and unbiased variance of the batch if they are what it is normalised by."""
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))  # half precision is too coarse for the statistics
        unbiased = None
        if by_batch:
            mean, variance = ops.moments(x, axes=(0, 1, 2))
            count = ops.cast(math.prod(ops.shape(x)[:3]), x.dtype)
            unbiased = variance * count / ops.maximum(count - 1, 1)
        else:
            mean, variance = (ops.cast(running, x.dtype) for running in (self.running_mean, self.running_var))
        bias, weight = ops.cast(self.bias, x.dtype), ops.cast(self.weight, x.dtype)
        x = ops.batch_normalization(x, mean, variance, -1, bias, weight, self.eps)
        return ops.cast(x, self.compute_dtype), mean, unbiased

    def _follow(self, running, new):
        running.assign((1 - self.momentum) * running + self.momentum * ops.cast(new, running.dtype))


class LocalResponseNorm(Layer):
    """x / (k + alpha mean(x² over `size` neighbouring channels)) ** beta: Krizhevsky et al. 2012, section 3.3.

    The paper, and TensorFlow, have the sum where the mean is here and in Caffe: their alpha is `size` times smaller.
    Keras has no such layer, and TensorFlow's takes neither float64 nor an even size.
    """

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def call(self, x):
        around = (self.size // 2, (self.size - 1) // 2)
        squares = ops.pad(ops.square(x), [(0, 0), (0, 0), (0, 0), around])
        channels = x.shape[-1]
        total = sum(squares[..., i : i + channels] for i in range(self.size))
        return x / (self.k + self.alpha / self.size * total) ** self.beta


class Dropout(keras.layers.Dropout):
    """Dropout of a share `rate`. Where an `Engine` sets `masks`, from `shared.dropout`, both frameworks drop the same.

    `masks` is {thread: array}: each of several devices has a thread, and they take turns within a pass.
    """

    def __init__(self, rate):
        super().__init__(rate)
        self.masks = {}

    def call(self, x, training=None):
        mask = self.masks.get(threading.get_ident()) if training else None
        return super().call(x, training) if mask is None else x * mask


class ScaledTanh(Layer):
    """1.7159 tanh(2/3 x): LeCun et al. 1998, appendix A."""

    def call(self, x):
        return 1.7159 * ops.tanh(2 / 3 * x)


class ReLU(Layer):
    """max(x, 0)."""

    def call(self, x):
        return ops.relu(x)


class MaxPool(Layer):
    """Max pool. Padding never wins: it counts as minus infinity. `ceil` adds a window where pixels are left over."""

    def __init__(self, kernel, stride=None, padding=0, ceil=False):
        super().__init__()
        self.kernel, self.stride, self.padding, self.ceil = kernel, stride or kernel, padding, ceil

    def call(self, x):
        if self.padding == "same":
            return ops.max_pool(x, self.kernel, self.stride, "same")
        if self.ceil:
            more = [(self.padding, self.padding + self._missing(n)) for n in x.shape[1:3]]
            x = ops.pad(x, [(0, 0), *more, (0, 0)], constant_values=-math.inf)
        else:
            x = pad(x, self.padding, -math.inf)
        return ops.max_pool(x, self.kernel, self.stride, "valid")

    def _missing(self, pixels):
        """How many pixels a last window lacks; none for a window that would begin behind the last pixel, as in PyTorch."""
        windows, left = divmod(pixels + 2 * self.padding - self.kernel, self.stride)
        begins = (windows + 1) * self.stride
        return self.stride - left if left and begins < pixels + self.padding else 0


class AvgPool(Layer):
    """Average pool. Padding in pixels counts as zeros; "same" padding is left out of the average."""

    def __init__(self, kernel, stride=None, padding=0):
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def call(self, x):
        if self.padding == "same":
            return ops.average_pool(x, self.kernel, self.stride, "same")
        return ops.average_pool(pad(x, self.padding), self.kernel, self.stride, "valid")


class AdaptiveAvgPool(Layer):
    """Average pool to a map of `size` by `size`, by windows that may differ by a pixel and overlap."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        # Keras's own fails in graphs of TensorFlow where a window has one pixel.
        for axis in (1, 2):
            pixels = x.shape[axis]
            if pixels != self.size:
                windows = [slice(i * pixels // self.size, -(-(i + 1) * pixels // self.size)) for i in range(self.size)]
                parts = [x[:, window] if axis == 1 else x[:, :, window] for window in windows]
                x = ops.concatenate([ops.mean(part, axis, keepdims=True) for part in parts], axis)
        return x


class GlobalAvgPool(Layer):
    """The mean of each channel, as a map of 1x1."""

    def call(self, x):
        return ops.mean(x, axis=(1, 2), keepdims=True)


class Flatten(Layer):
    """A map as a vector in PyTorch's order: channels, height, width. Keras's own Flatten has the channels last."""

    def call(self, x):
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, math.prod(x.shape[1:])))


class Linear(Layer):
    """Fully connected layer."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.weight = self.add_weight((in_features, out_features), "zeros", name="weight")
        self.bias = self.add_weight((out_features,), "zeros", name="bias") if bias else None

    def call(self, x):
        x = ops.matmul(x, self.weight)
        return x if self.bias is None else x + self.bias


class PadChannels(Layer):
    """The shortcut without weights (He et al. 2015, section 3.3, option A): every stride-th pixel, and channels of zeros.

    The zeros lie half before and half after the input's channels, as in the checkpoints in circulation; the paper leaves
    their place open.
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.before, self.after = (out_channels - in_channels) // 2, -(-(out_channels - in_channels) // 2)
        self.stride = stride

    def call(self, x):
        return ops.pad(x[:, :: self.stride, :: self.stride, :], [(0, 0), (0, 0), (0, 0), (self.before, self.after)])


def relu(x):
    """max(x, 0)."""
    return ops.relu(x)


def sigmoid(x):
    return ops.sigmoid(x)


def concatenate(maps):
    """The channels of all maps, one behind the other."""
    return ops.concatenate(maps, -1)


def at_every_position(classifier, x):
    """A linear layer or 1x1 convolution at every position of a map."""
    return classifier(x)


def upsampled(maps, images):
    """Maps at the size of the images, bilinearly, by half-pixel centres; TensorFlow's own resizing is float32 alone."""
    for axis, equation in ((1, "nh,bhwc->bnwc"), (2, "nw,bhwc->bhnc")):
        matrix = interpolation_matrix(maps.shape[axis], images.shape[axis])
        maps = ops.einsum(equation, ops.convert_to_tensor(matrix, maps.dtype), maps)
    return maps


def pad(x, pixels, value=0.0):
    """Pad a map by as many pixels on each side."""
    # A copy, but TensorFlow's own explicit padding trains slower on the CPU: oneDNN has no gradients for it.
    return ops.pad(x, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], constant_values=value) if pixels else x


def members(layer, prefix=""):
    """(name, layer) of all layers inside a layer, by the names of their attributes, as PyTorch's `named_modules`."""
    attributes = vars(layer) | vars(layer).get("_modules", {})  # where Keras on PyTorch has a layer's layers
    for name, value in attributes.items():
        if isinstance(value, keras.Layer) and not name.startswith("_"):
            yield prefix + name, value
            yield from members(value, f"{prefix}{name}.")


def construct(network, spec, dtype):
    """The network of a spec, built for images of the spec's size, with weights that `load` will fill."""
    try:
        keras.dtype_policies.get(dtype)
    except (TypeError, ValueError):
        raise Error(
            f"Keras has no precision {dtype!r}; expected float32, float64, bfloat16, mixed_bfloat16 or another"
        ) from None
    with precision(dtype):
        model = network(spec)
    channels, height, width = spec["input"]
    model.build((None, height, width, channels))
    return model


@contextlib.contextmanager
def precision(dtype):
    """Layers made in this context have this dtype policy: "float64", "mixed_bfloat16" or any other of Keras's."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def snapshot(x):
    """An output as it is, since no layer writes over another's."""
    return x


def dtype(net):
    """The name of a network's dtype policy."""
    return net.dtype_policy.name


def for_inference(net, like):
    """Make a network ready for inference alone, in the place of another."""
    net.trainable = False
