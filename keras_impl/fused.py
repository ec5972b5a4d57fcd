"""What TensorFlow does in one operation and Keras in several: the fast path of Keras's TensorFlow backend."""

from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
from tensorflow.python.util import _pywrap_util_port

Tensor = Any

add_bias = tf.nn.bias_add  # TensorFlow's graph optimiser fuses it with the convolution before it


def by_onednn(x: Tensor) -> bool:
    """Whether the convolutions of a map are oneDNN's, on the CPU."""
    return x.dtype == tf.float32 and _pywrap_util_port.IsMklEnabled()


def dilated_conv(x: Tensor, kernel: Tensor, padding: str, dilation: int) -> Tensor:
    """A dilated convolution in one operation, whose gradients on the CPU are oneDNN's alone.

    Keras's runs on batches of every `dilation`-th pixel, copied there and back.
    """
    return tf.nn.conv2d(x, kernel, 1, padding.upper(), dilations=dilation)


def conv(x: Tensor, kernel: Tensor, stride: int, padding: str, dilation: int) -> Tensor:
    """A convolution in one operation, dilated or in groups, whose gradients a GPU has in every precision.

    Keras's runs dilated ones as `dilated_conv` says, and compiles those in groups with XLA at every call.
    """
    return tf.nn.conv2d(x, tf.convert_to_tensor(kernel), stride, padding.upper(), dilations=dilation)


def by_xla() -> bool:
    """Whether XLA compiles what runs now."""
    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def has_accelerator() -> bool:
    """Whether TensorFlow may use a GPU or TPU."""
    return any(device.device_type != "CPU" for device in tf.config.get_visible_devices())


def supports(x: Tensor) -> bool:
    """Whether to use `batch_norm` for a map: it has no float64, and XLA fuses the plain formula by itself."""
    return x.dtype != tf.float64 and not by_xla()


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise (batch, height, width, channels) by a mean and a variance, or if both are None by those of the batch.

    Returns the map, the mean and the unbiased variance. `tf.nn.fused_batch_norm` would raise an `eps` below 1.001e-5 to that.
    """
    training = mean is None
    mean, variance = ((), ()) if training else (mean, variance)
    statistics = [tf.cast(array, tf.float32) for array in (weight, bias, mean, variance)]
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        **dict(zip(("scale", "offset", "mean", "variance"), statistics, strict=True)),
        epsilon=eps,
        is_training=training,
    )[:3]
