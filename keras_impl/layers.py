"""Where Keras differs from PyTorch: the elementary layers. Images are (batch, height, width, channels).

Every layer knows its sizes, so it has its weights from the start, under PyTorch's names; `load` sets their values.
Kernels are (height, width, in, out) and (in, out).
"""

import contextlib
import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from shared.checks import Error
from shared.interpolation import interpolation_matrix
from shared.spec import Spec

Padding = int | Literal["same"]
Tensor = Any  # of Keras's backend, or a `keras.KerasTensor` while a model is built

fused = importlib.import_module(".fused", __package__) if keras.backend.backend() == "tensorflow" else None


class Model(keras.Model):
    """A Keras model whose layers have the names of their attributes, and that is saved as its spec."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, keras.Layer):
            value.name = name  # summary() and get_layer() use it
        if name == "spec":
            object.__setattr__(self, name, value)  # Keras would replace its lists by tracked ones, which JSON cannot hold
        else:
            super().__setattr__(name, value)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Run the layers on a symbolic input (batch, height, width, channels), so that summary() has all shapes."""
        self.call(keras.KerasTensor(input_shape))

    def get_config(self) -> dict[str, Any]:
        """The spec, the dtype policy and what is frozen: what a `.keras` file holds beside the weights.

        "frozen" names the layers that are not trainable in one that is, and "trained" the reverse.
        """
        config = super().get_config()
        changed: dict[bool, list[str]] = {False: [], True: []}
        known = {"": True}
        for name, layer in named_layers(self):
            known[name] = layer.trainable
            if layer.trainable is not known[name.rpartition(".")[0]]:
                changed[layer.trainable].append(name)
        return {"spec": self.spec, "dtype": config["dtype"], "frozen": changed[False], "trained": changed[True]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Model":
        """The network that `get_config` describes."""
        with precision(keras.dtype_policies.deserialize(config["dtype"])):
            model = cls(config["spec"])
        changes = dict.fromkeys(config["frozen"], False) | dict.fromkeys(config.get("trained", []), True)
        for name, layer in named_layers(model):
            if name in changes:
                layer.trainable = changes[name]  # and with it what is inside
        return model


class Layer(keras.Layer):
    """A layer that Keras need not build: it has its weights from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.built = True


class Chain(Layer):
    """Layers that run one after another, under the names "0", "1", "2"."""

    def __init__(self, *layers: keras.Layer) -> None:
        super().__init__()
        for number, layer in enumerate(layers):
            setattr(self, str(number), layer)
        self.length = len(layers)

    def __dir__(self) -> list[str]:
        # Keras saves what is listed here, and on its torch backend modules omit attributes whose names are numbers.
        return [*super().__dir__(), *(str(number) for number in range(getattr(self, "length", 0)))]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return [getattr(self, str(number)) for number in range(self.length)][index]

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Identity(Layer):
    """Returns its input."""

    def call(self, x: Tensor) -> Tensor:
        return x


class Conv(Layer):
    """Convolution. `padding` is in pixels on each side, or "same": out = ceil(in / stride), the odd pixel bottom and right.

    "same" is Keras's own. It pads a strided convolution differently from PyTorch's padding in pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: Padding = 0, dilation: int = 1,
        bias: bool = True, groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding: Padding = padding
        if stride == 1 and 2 * self.pixels == dilation * (kernel - 1):
            self.padding = "same"  # pads by as many pixels, without a copy of the map
        self.weight = self.add_weight((kernel, kernel, in_channels // groups, out_channels), "zeros", name="weight")
        self.bias = self.add_weight((out_channels,), "zeros", name="bias") if bias else None

    @property
    def pixels(self) -> int:
        """How many pixels to pad before the convolution, on each side."""
        return 0 if self.padding == "same" else self.padding

    def call(self, x: Tensor) -> Tensor:
        x = pad(x, self.pixels)
        if self.groups > 1 and fused and not fused.has_accelerator():
            # TensorFlow has no gradients of grouped convolutions on the CPU; Keras would compile each with XLA at every call.
            pairs = zip(ops.split(x, self.groups, -1), ops.split(self.weight, self.groups, -1), strict=True)
            x = ops.concatenate([self._conv(*pair) for pair in pairs], -1)
        else:
            x = self._conv(x, self.weight)
        if self.bias is None:
            return x
        return fused.add_bias(x, self.bias.value) if fused else x + self.bias

    def _conv(self, x: Tensor, kernel: Tensor) -> Tensor:
        padding = "same" if self.padding == "same" else "valid"
        stride = self.stride
        if fused and fused.has_accelerator():
            return fused.conv(x, kernel, stride, padding, self.dilation)
        if kernel.shape[:3] == (1, 1, x.shape[-1]) and by_xla_on_cpu(x):
            # XLA does not see that this is a matrix product, and its gradients take several times as long as a product's.
            return ops.matmul(x[:, ::stride, ::stride] if stride > 1 else x, kernel[0, 0])
        by_onednn = fused.by_onednn(x) if fused else keras.backend.backend() == "torch"
        if fused and by_onednn and self.dilation > 1 and stride == 1:
            return fused.dilated_conv(x, kernel, padding, self.dilation)
        if by_onednn and stride > 1 and kernel.shape[0] == 1 and kernel.shape[2] < 16:
            x, stride = x[:, ::stride, ::stride], 1  # oneDNN writes beyond the gradient of such a kernel
        return ops.conv(x, kernel, stride, padding, dilation_rate=self.dilation)


class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm by PyTorch's rules.

    The running variance is updated with the unbiased variance of the batch; in `keras.layers.BatchNormalization` it is biased.
    `share` is the weight of the new batch in the running statistics, PyTorch's momentum; the attribute `momentum` is Keras's,
    the weight of the old statistics. As everywhere in Keras, a layer that is not trainable keeps its running statistics and
    normalises by them.
    """

    def __init__(self, in_channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(epsilon=eps)
        self.share = momentum
        options: dict[str, Any] = {"shape": (in_channels,), "autocast": False}
        self.weight = self.add_weight(initializer="ones", name="weight", **options)
        self.bias = self.add_weight(initializer="zeros", name="bias", **options)
        options |= {"trainable": False, "aggregation": "mean"}  # over several devices
        self.running_mean = self.add_weight(initializer="zeros", name="running_mean", **options)
        self.running_var = self.add_weight(initializer="ones", name="running_var", **options)
        self.built = True

    # Keras's names, for code that finds batch norms by their class. What its constructor sets them to is dropped.
    gamma = property(lambda self: self.weight, lambda self, value: None)
    beta = property(lambda self: self.bias, lambda self, value: None)
    moving_mean = property(lambda self: self.running_mean, lambda self, value: None)
    moving_variance = property(lambda self: self.running_var, lambda self, value: None)
    momentum = property(lambda self: 1 - self.share, lambda self, value: setattr(self, "share", 1 - value))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        by_batch = training and self.trainable
        if fused and fused.supports(x):
            running = (None, None) if by_batch else (self.running_mean.value, self.running_var.value)
            x, mean, variance = fused.batch_norm(x, self.weight.value, self.bias.value, *running, self.epsilon)
        else:
            x, mean, variance = self._normalise(x, by_batch)
        if by_batch:
            self._follow(self.running_mean, mean)
            self._follow(self.running_var, variance)
        return x

    def _normalise(self, x: Tensor, by_batch: bool | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(normalised map, mean, unbiased variance) by the statistics of the batch, or by the running ones, variance None."""
        x = ops.cast(x, at_least_float32(x))  # half precision is too coarse for the statistics
        unbiased = None
        if by_batch:
            mean, variance = moments(x)
            count = ops.cast(math.prod(ops.shape(x)[:3]), x.dtype)
            unbiased = variance * count / ops.maximum(count - 1, 1)
        else:
            mean, variance = (ops.cast(running, x.dtype) for running in (self.running_mean, self.running_var))
        bias, weight = ops.cast(self.bias, x.dtype), ops.cast(self.weight, x.dtype)
        x = ops.batch_normalization(x, mean, variance, -1, bias, weight, self.epsilon)
        return ops.cast(x, self.compute_dtype), mean, unbiased

    def _follow(self, running: keras.Variable, new: Tensor) -> None:
        before = ops.convert_to_tensor(running)
        running.assign((1 - self.share) * before + self.share * ops.cast(new, running.dtype))


class LocalResponseNorm(Layer):
    """x / (k + alpha mean(x² over `size` neighbouring channels)) ** beta: Krizhevsky et al. 2012, section 3.3.

    The paper and TensorFlow take the sum instead of the mean, which is Caffe's: their alpha is `size` times smaller.
    Keras has no such layer, and TensorFlow's takes neither float64 nor an even size.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def call(self, x: Tensor) -> Tensor:
        around = (self.size // 2, (self.size - 1) // 2)
        squares = ops.pad(ops.square(x), [(0, 0), (0, 0), (0, 0), around])
        channels = x.shape[-1]
        total = sum(squares[..., i : i + channels] for i in range(self.size))
        return x / (self.k + self.alpha / self.size * total) ** self.beta


class Dropout(keras.layers.Dropout):
    """Dropout of a fraction `rate`. If an `Engine` sets `masks`, from `shared.dropout`, both frameworks drop the same units.

    `masks` is {thread: array}: each of several devices has a thread, and they take turns within a pass.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.masks: dict[int, Tensor] = {}

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        mask = self.masks.get(threading.get_ident()) if training else None
        return super().call(x, training) if mask is None else x * mask


class ScaledTanh(Layer):
    """1.7159 tanh(2/3 x): LeCun et al. 1998, appendix A."""

    def call(self, x: Tensor) -> Tensor:
        return times(1.7159, tanh(times(2 / 3, x)))


class ReLU(Layer):
    """max(x, 0)."""

    def call(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class MaxPool(Layer):
    """Max pool. Padding never wins: it counts as minus infinity. `ceil` adds a window if pixels are left over."""

    def __init__(self, kernel: int, stride: int | None = None, padding: Padding = 0, ceil: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.ceil = kernel, stride or kernel, padding, ceil

    def call(self, x: Tensor) -> Tensor:
        if self.padding == "same":
            return ops.max_pool(x, self.kernel, self.stride, "same")
        if self.ceil:
            more = [(self.padding, self.padding + self.missing(n, self.padding)) for n in x.shape[1:3]]
            x = ops.pad(x, [(0, 0), *more, (0, 0)], constant_values=-math.inf)
        else:
            x = pad(x, self.padding, -math.inf)
        return ops.max_pool(x, self.kernel, self.stride, "valid")

    def missing(self, pixels: int, padding: int) -> int:
        """How many pixels a last window lacks; none for a window that would begin after the last pixel, as in PyTorch."""
        windows, left = divmod(pixels + 2 * padding - self.kernel, self.stride)
        start = (windows + 1) * self.stride
        return self.stride - left if left and start < pixels + padding else 0


class AvgPool(Layer):
    """Average pool. Padding in pixels counts as zeros; "same" padding is left out of the average."""

    def __init__(self, kernel: int, stride: int | None = None, padding: Padding = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def call(self, x: Tensor) -> Tensor:
        wide = ops.cast(x, at_least_float32(x))  # on JAX, a sum of half precision is rounded at every addition
        if self.padding == "same" and keras.backend.backend() == "torch":
            # Keras's own pool repeats the border pixels there, and counts them.
            y = self._zeros_around(wide) / self._zeros_around(ops.ones_like(wide))
        elif self.padding == "same":
            y = ops.average_pool(wide, self.kernel, self.stride, "same")
        else:
            y = ops.average_pool(pad(wide, self.padding), self.kernel, self.stride, "valid")
        return ops.cast(y, x.dtype)

    def _zeros_around(self, x: Tensor) -> Tensor:
        """The average with zeros around the map, by the rule of "same" padding."""
        missing = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[1:3]]
        border = [(pixels // 2, -(-pixels // 2)) for pixels in missing]
        return ops.average_pool(ops.pad(x, [(0, 0), *border, (0, 0)]), self.kernel, self.stride, "valid")


class AdaptiveAvgPool(Layer):
    """Average pool to a map of `size` by `size`, with windows that may overlap and differ in size by a pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def call(self, x: Tensor) -> Tensor:
        # Keras's own fails in TensorFlow graphs if a window has one pixel.
        for axis in (1, 2):
            pixels = x.shape[axis]
            if pixels != self.size:
                windows = [slice(i * pixels // self.size, -(-(i + 1) * pixels // self.size)) for i in range(self.size)]
                parts = [x[:, window] if axis == 1 else x[:, :, window] for window in windows]
                x = ops.concatenate([mean(part, axis, keepdims=True) for part in parts], axis)
        return x


class GlobalAvgPool(Layer):
    """The mean of each channel, as a map of 1x1."""

    def call(self, x: Tensor) -> Tensor:
        return mean(x, (1, 2), keepdims=True)


class Flatten(Layer):
    """A map as a vector in PyTorch's order: channels, height, width. Keras's own Flatten has the channels last."""

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, math.prod(x.shape[1:])))


class Linear(Layer):
    """Fully connected layer."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = self.add_weight((in_features, out_features), "zeros", name="weight")
        self.bias = self.add_weight((out_features,), "zeros", name="bias") if bias else None

    def call(self, x: Tensor) -> Tensor:
        x = product(x, ops.convert_to_tensor(self.weight))
        return x if self.bias is None else x + self.bias


class Upsample(Layer):
    """Bilinear interpolation to a map `scale` times as large, by half-pixel centres."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def call(self, x: Tensor) -> Tensor:
        return resized(x, [n * self.scale for n in x.shape[1:3]])


class UpsampleTransposed(Layer):
    """Interpolation by a transposed convolution of each channel, with a fixed kernel, as in the code of Yu et al. 2017.

    With `shared.interpolation.bilinear_kernel`, this is `Upsample` except at the border, beyond which the map counts as zero.
    """

    def __init__(self, in_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.weight = self.add_weight((2 * scale, 2 * scale, 1, in_channels), "zeros", name="weight", trainable=False)

    def call(self, x: Tensor) -> Tensor:
        # Keras's transposed convolution has no groups: zeros between the positions, then a convolution of each channel.
        _, height, width, channels = x.shape
        scale = self.scale
        x = ops.reshape(x, (-1, height, 1, width, 1, channels))
        x = ops.pad(x, [(0, 0), (0, 0), (0, scale - 1), (0, 0), (0, scale - 1), (0, 0)])
        x = ops.reshape(x, (-1, height * scale, width * scale, channels))
        border = (2 * scale - 1 - scale // 2, scale // 2)
        kernel = ops.transpose(ops.flip(self.weight, (0, 1)), (0, 1, 3, 2))
        return ops.depthwise_conv(ops.pad(x, [(0, 0), border, border, (0, 0)]), kernel, 1, "valid")


class PadChannels(Layer):
    """The shortcut without weights (He et al. 2015, section 3.3, option A): every stride-th pixel, and channels of zeros.

    Half of the zeros come before the input's channels and half after, as in the checkpoints in circulation; the paper does
    not say where they go.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.before, self.after = (out_channels - in_channels) // 2, -(-(out_channels - in_channels) // 2)
        self.stride = stride

    def call(self, x: Tensor) -> Tensor:
        return ops.pad(x[:, :: self.stride, :: self.stride, :], [(0, 0), (0, 0), (0, 0), (self.before, self.after)])


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return ops.relu(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return ops.sigmoid(x)


def mean(x: Tensor, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The mean over some axes, or all, in the array's precision. But on TensorFlow, Keras's own rounds float64 to float32."""
    if fused or at_least_float32(x) != "float64":
        return ops.mean(x, axes, keepdims)
    along = range(len(x.shape)) if axes is None else np.atleast_1d(axes)
    return ops.sum(x, axes, keepdims=keepdims) / math.prod(x.shape[axis] for axis in along)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each channel. On PyTorch, Keras's own is the difference of two large numbers."""
    if keras.backend.backend() != "torch":
        return ops.moments(x, axes=(0, 1, 2))
    centre = mean(x, (0, 1, 2))
    return centre, mean(ops.square(x - centre), (0, 1, 2))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """The product with a matrix, in the precision of the arrays. On PyTorch, Keras's own rounds float64 to float32."""
    return x @ weight if keras.backend.backend() == "torch" else ops.matmul(x, weight)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, in the precision of the array. On JAX, Keras's own rounds float64 to float32."""
    if keras.backend.backend() != "jax" or at_least_float32(x) != "float64":
        return ops.tanh(x)
    more = ops.expm1(ops.minimum(2 * x, 100.0))  # beyond, tanh is 1
    return more / (more + 2)


def times(number: float, x: Tensor) -> Tensor:
    """A multiple of an array, in its precision. Keras would round the number to half precision before it multiplies."""
    return ops.cast(number * ops.cast(x, at_least_float32(x)), x.dtype)


def at_least_float32(x: Tensor) -> str:
    """The name of an array's precision, or float32 if it has less."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return dtype if dtype == "float64" else "float32"


def concatenate(maps: list[Tensor]) -> Tensor:
    """The channels of all maps, one map after another."""
    return ops.concatenate(maps, -1)


def at_every_position(classifier: keras.Layer, x: Tensor) -> Tensor:
    """A linear layer or 1x1 convolution at every position of a map."""
    return classifier(x)


def upsampled(maps: Tensor, images: Tensor) -> Tensor:
    """Maps at the size of the images, bilinearly, by half-pixel centres."""
    return resized(maps, images.shape[1:3])


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at a size, (height, width), bilinearly, by half-pixel centres; TensorFlow's own resizing is always float32."""
    for axis, equation, pixels in zip((1, 2), ("nh,bhwc->bnwc", "nw,bhwc->bhnc"), size, strict=True):
        matrix = interpolation_matrix(maps.shape[axis], pixels)
        maps = ops.einsum(equation, ops.convert_to_tensor(matrix, maps.dtype), maps)
    return maps


def pad(x: Tensor, pixels: int, value: float = 0.0) -> Tensor:
    """Pad a map by that many pixels on each side."""
    # A copy, but TensorFlow's explicit padding in the convolution trains slower on the CPU: oneDNN has no gradients for it.
    return ops.pad(x, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], constant_values=value) if pixels else x


def named_layers(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """(name, layer) of all layers inside a layer, by the names of their attributes, as PyTorch's `named_modules`."""
    attributes = vars(layer) | vars(layer).get("_modules", {})  # Keras's torch backend keeps layers in _modules
    for name, value in attributes.items():
        if isinstance(value, keras.Layer) and not name.startswith("_"):
            yield prefix + name, value
            yield from named_layers(value, f"{prefix}{name}.")


def by_xla_on_cpu(x: Tensor) -> bool:
    """Whether XLA compiles what runs now, for the CPU, and for speed: not in float64, in which networks are compared."""
    if at_least_float32(x) == "float64":
        return False
    if fused:
        return fused.by_xla() and not fused.has_accelerator()
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def check_jax(float64: bool) -> None:
    """Raise `Error` if JAX has none of the devices that it may use, or no float64 in this process where that is needed."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the first, without words, where there is a platform's code and no device
        asked = os.environ.get("JAX_PLATFORMS")
        where = f"of JAX_PLATFORMS={asked}: unset it, or set it to cpu" if asked else f"({error}): set JAX_PLATFORMS=cpu"
        raise Error(f"JAX finds no device {where}") from None
    if float64 and jax.dtypes.canonicalize_dtype("float64") != "float64":
        raise Error(
            "JAX turns float64 into float32 in this process: set the environment variable JAX_ENABLE_X64=1 before JAX is "
            'imported, or call jax.config.update("jax_enable_x64", True) before anything else'
        )


def construct(network: Callable[[Spec], Any], spec: Spec, dtype: str | None) -> Any:
    """The network of a spec, built for images of the spec's size, with weights whose values `load` then sets.

    `dtype` is a dtype policy of Keras's: "float32", "float64", "mixed_bfloat16"; None for the global one. Raises `Error` for
    what is none.
    """
    try:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    except (TypeError, ValueError):
        raise Error(
            f"Keras has no precision {dtype!r}; expected float32, float64, bfloat16, mixed_bfloat16 or another"
        ) from None
    if keras.backend.backend() == "jax":
        check_jax(policy.variable_dtype == "float64")
    with precision(policy):
        model = network(spec)
    channels, height, width = spec["input"]
    model.build((None, height, width, channels))
    return model


@contextlib.contextmanager
def precision(dtype: "str | keras.DTypePolicy") -> Iterator[None]:
    """Layers created in this context have this dtype policy: "float64", "mixed_bfloat16" or any other of Keras's."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def check_images(x: Tensor, spec: Spec) -> None:
    """Raise `Error` unless a batch has the axes (batch, height, width, channels), and the channels of the spec."""
    channels = spec["input"][0]
    if len(x.shape) != 4 or x.shape[3] not in (channels, None):
        first = "; these have the channels first, as in PyTorch" if len(x.shape) == 4 and x.shape[1] == channels else ""
        expected = f"expected (batch, height, width, {channels}), the channels last{first}"
        raise Error(f"images of shape {tuple(x.shape)} for a Keras network: {expected}")


def snapshot(x: Tensor) -> Tensor:
    """The output itself, since no layer overwrites another's."""
    return x


def dtype_name(net: keras.Model) -> str:
    """The name of a network's dtype policy, as "float32"."""
    return net.dtype_policy.name


def for_inference(net: keras.Model, like: keras.Model) -> None:
    """Prepare a network for inference only, in place of the network `like`."""
    net.trainable = False
