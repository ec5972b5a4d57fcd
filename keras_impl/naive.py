"""What a naive port to Keras does, put back one trap at a time: see `shared/traps.toml`, which has them in words.

A network has to be built, and its training step traced, in the context of `put_back`, on Keras's TensorFlow or JAX backend.
Images are (batch, height, width, channels).
"""

import functools
import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras import ops

from shared import images, traps
from shared.mixup import Mixed
from shared.weights import TO_KERAS, State

from . import blocks, layers, network, optimizers, weights
from .engine import Engine
from .layers import Tensor


def same_padding(conv: layers.Conv, x: Tensor) -> Tensor:
    x = ops.conv(x, conv.weight, conv.stride, "same", dilation_rate=conv.dilation)
    return x if conv.bias is None else x + conv.bias


def without_dilation(conv: layers.Conv, x: Tensor, kernel: Tensor) -> Tensor:
    return ops.conv(x, kernel, conv.stride, "same" if conv.padding == "same" else "valid")


def grouped_kernel(conv: layers.Conv, x: Tensor) -> Tensor:
    import tensorflow as tf

    padding = "SAME" if conv.padding == "same" else "VALID"
    x = tf.nn.conv2d(layers.pad(x, conv.pixels), conv.weight.value, conv.stride, padding, dilations=conv.dilation)
    return x if conv.bias is None else x + conv.bias


def in_tf32(conv: layers.Conv, x: Tensor, kernel: Tensor, plain: Any = layers.Conv._conv) -> Tensor:
    """Rounds both factors as a GPU does, which adds up in float32."""
    return plain(conv, tf32(x), tf32(kernel))


def tf32(x: Tensor) -> Tensor:
    """float32 numbers rounded to the 10 bits of mantissa that TF32 has, to the nearest."""
    bits = ops.view(ops.convert_to_tensor(x), "int32")
    return ops.view(ops.bitwise_and(bits + 0x1000, ~0x1FFF), "float32")


def zero_padding(pool: layers.MaxPool, x: Tensor) -> Tensor:
    return ops.max_pool(layers.pad(x, 0 if pool.padding == "same" else pool.padding), pool.kernel, pool.stride, "valid")


def same_for_ceil(pool: layers.MaxPool, x: Tensor) -> Tensor:
    return ops.max_pool(x, pool.kernel, pool.stride, "same")


def padding_left_out(pool: layers.AvgPool, x: Tensor) -> Tensor:
    return ops.average_pool(x, pool.kernel, pool.stride, "same")


def summed_as_it_is(pool: layers.AvgPool, x: Tensor) -> Tensor:
    return ops.average_pool(layers.pad(x, 0 if pool.padding == "same" else pool.padding), pool.kernel, pool.stride, "valid")


def keras_epsilon(
    norm: layers.BatchNorm, in_channels: int, eps: float = 1e-5, momentum: float = 0.1, plain: Any = layers.BatchNorm.__init__
) -> None:
    plain(norm, in_channels, 1e-3 if eps == 1e-5 else eps, momentum)


def old_share(norm: layers.BatchNorm, running: keras.Variable, new: Tensor) -> None:
    running.assign(norm.share * running + (1 - norm.share) * ops.cast(new, running.dtype))


def biased_variance(
    norm: layers.BatchNorm, x: Tensor, by_batch: bool | None, plain: Any = layers.BatchNorm._normalise
) -> tuple[Tensor, Tensor, Tensor | None]:
    y, mean, unbiased = plain(norm, x, by_batch)
    return y, mean, None if unbiased is None else ops.moments(ops.cast(x, unbiased.dtype), axes=(0, 1, 2))[1]


def channels_last(_: layers.Flatten, x: Tensor) -> Tensor:
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


def reshaped(array: np.ndarray) -> np.ndarray:
    return array.reshape([array.shape[axis] for axis in TO_KERAS[array.ndim]]) if array.ndim in TO_KERAS else array


def rounded_numbers(scaled: layers.ScaledTanh, x: Tensor) -> Tensor:
    return 1.7159 * layers.tanh(2 / 3 * x)


def sum_of_squares(norm: layers.LocalResponseNorm, x: Tensor) -> Tensor:
    import tensorflow as tf

    y = tf.nn.local_response_normalization(ops.cast(x, "float32"), norm.size // 2, norm.k, norm.alpha, norm.beta)
    return ops.cast(y, x.dtype)


def keras_weights(net: network.Network, state: State) -> None:
    """Glorot's uniform kernels and biases of zero."""
    weights.load(net, state)
    for number, (_, layer) in enumerate(layers.named_layers(net)):
        if isinstance(layer, (layers.Conv, layers.Linear)):
            layer.weight.assign(keras.initializers.GlorotUniform(seed=number)(layer.weight.shape, layer.weight.dtype))
            if layer.bias is not None:
                layer.bias.assign(np.zeros(layer.bias.shape))


def not_smoothed(picture: images.Picture, mode: str, size: Sequence[int], options: dict[str, Any]) -> np.ndarray:
    pixels = np.atleast_3d(np.asarray(images.in_mode(picture, mode)))
    return ops.convert_to_numpy(ops.round(ops.image.resize(pixels.astype("float32"), tuple(size)))).astype(np.uint8)


def rate_in_velocity(sgd: optimizers.SGD, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
    velocity = sgd.slot("momentum_buffer", variable)
    gradient = gradient + sgd.decay(variable)
    sgd.assign(velocity, sgd.momentum * velocity - sgd.rate_of(variable, learning_rate) * gradient)
    sgd.assign_add(variable, velocity)


def early_epsilon(adam: optimizers.Adam, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
    gradient, eps = gradient + adam.decay(variable), 1e-7 if adam.eps == 1e-8 else adam.eps
    mean, square = adam.slot("exp_avg", variable), adam.slot("exp_avg_sq", variable)
    adam.assign(mean, mean + (1 - adam.betas[0]) * (gradient - mean))
    adam.assign(square, square + (1 - adam.betas[1]) * (gradient * gradient - square))
    steps = ops.cast(adam.iterations + 1, variable.dtype)
    first, second = (1 - ops.power(ops.cast(beta, variable.dtype), steps) for beta in adam.betas)
    rate = adam.rate_of(variable, learning_rate) * ops.sqrt(second) / first
    adam.assign_sub(variable, rate * mean / (ops.sqrt(square) + eps))


def decoupled_decay(optimizer: optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    for variable in variables if optimizer.weight_decay else ():
        if optimizer._use_weight_decay(variable):
            rate = ops.cast(optimizer.learning_rate, variable.dtype)
            variable.assign(variable - variable * optimizer.weight_decay * rate)


def decay_in_float32(optimizer: optimizers.Optimizer, variable: keras.Variable) -> Tensor | float:
    return ops.cast(np.float32(optimizer.weight_decay), variable.dtype) * variable if optimizer.weight_decay else 0


def rate_in_float32(optimizer: optimizers.Optimizer) -> Tensor:
    return ops.cast(optimizer._learning_rate, "float32")


def clipped_by_norm(
    gradients: Sequence[Tensor],
    clip_norm: float | None = None,
    clip_value: float | None = None,
    plain: Any = optimizers.clipped,
) -> list[Tensor]:
    if clip_norm is None:
        return plain(gradients, clip_norm, clip_value)
    norm = ops.sqrt(sum(ops.sum(ops.square(g)) for g in gradients if g is not None))
    return [None if g is None else g * ops.minimum(clip_norm / norm, 1.0) for g in gradients]


def _loss(formula: Any, plain: Any = Engine._cross_entropy) -> Any:
    """A loss of an engine by a formula; that of mixed images is made of two."""
    return lambda engine, logits, labels: (plain if isinstance(labels, Mixed) else formula)(engine, logits, labels)


def not_smoothed_loss(engine: Engine, logits: Tensor, labels: Tensor) -> Tensor:
    return layers.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def over_images(engine: Engine, logits: Tensor, labels: Tensor) -> Tensor:
    scales = ops.take(ops.cast(np.array(engine.class_weights), logits.dtype), labels)
    return layers.mean(scales * ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))


def trainable_average(engine: Engine, plain: Any = Engine._update_average) -> None:
    average = dict(engine.average)
    engine.average = {name: array for name, array in average.items() if name in engine.weights}
    plain(engine)
    engine.average = average


FORCED: dict[str, list[tuple[Any, str, Any]]] = {  # trap: what it replaces, as (owner, attribute, what a port has there)
    "same-padding": [(layers.Conv, "call", same_padding)],
    "max-pool-padding": [(layers.MaxPool, "call", zero_padding)],
    "ceil-mode": [(layers.MaxPool, "call", same_for_ceil)],
    "average-pool-padding": [(layers.AvgPool, "call", padding_left_out)],
    "bn-epsilon": [(layers.BatchNorm, "__init__", keras_epsilon)],
    "bn-momentum": [(layers.BatchNorm, "_follow", old_share)],
    "bn-running-variance": [(layers.BatchNorm, "_normalise", biased_variance), (layers, "fused", None)],
    "flatten-order": [(layers.Flatten, "call", channels_last)],
    "kernel-layout": [(weights, "to_keras", reshaped)],
    "lrn-alpha": [(layers.LocalResponseNorm, "call", sum_of_squares)],
    "grouped-convolution": [(layers.Conv, "call", grouped_kernel)],
    "dilation-with-stride": [(layers.Conv, "_conv", without_dilation)],
    "initialisers": [(network, "load", keras_weights)],
    "resnet-version": [(blocks.Bottleneck, "__init__", functools.partialmethod(blocks.Bottleneck.__init__, stride_at="conv1"))],
    "resize-antialias": [(images, "_resized", not_smoothed)],
    "tf32": [(layers.Conv, "_conv", in_tf32)],
    "sgd-momentum-schedule": [(optimizers.SGD, "update_step", rate_in_velocity)],
    "adam-epsilon": [(optimizers.Adam, "update_step", early_epsilon)],
    "weight-decay": [
        (optimizers.Optimizer, "_apply_weight_decay", decoupled_decay),
        (optimizers.Optimizer, "decay", lambda self, variable: 0),
    ],
    "weight-decay-float32": [(optimizers.Optimizer, "decay", decay_in_float32)],
    "learning-rate-float32": [(optimizers.Optimizer, "_get_current_learning_rate", rate_in_float32)],
    "clip-norm": [(optimizers, "clipped", clipped_by_norm)],
    "label-smoothing": [(Engine, "_cross_entropy", _loss(not_smoothed_loss))],
    "class-weights": [(Engine, "_cross_entropy", _loss(over_images))],
    "dropout-masks": [(Engine, "_masks", lambda self, images: {})],
    "averaged-weights": [(Engine, "_update_average", trainable_average)],
    "half-precision-sums": [(layers.AvgPool, "call", summed_as_it_is)],
    "half-precision-number": [(layers.ScaledTanh, "call", rounded_numbers)],
}
if keras.backend.backend() == "jax":
    FORCED |= importlib.import_module(".jax_naive", __package__).FORCED


def put_back(trap: str) -> AbstractContextManager[None]:
    """In this context Keras behaves as in a naive port for one trap; as usual for a trap that is not of this package."""
    return traps.replaced(FORCED.get(trap, []))
