"""What TensorFlow does in one operation and Keras in several: the fast path of Keras's TensorFlow backend."""

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

add_bias = tf.nn.bias_add  # which TensorFlow's optimiser joins to the convolution in front of it


def normalises(x):
    """Whether `batch_norm` takes a map: it knows no float64, and XLA joins the parts of the plain formula by itself."""
    return x.dtype != tf.float64 and not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def batch_norm(x, weight, bias, mean, variance, eps):
    """Normalise (batch, height, width, channels) by a mean and a variance; both None: the batch's own.

    Gives the map, the mean and the unbiased variance. `tf.nn.fused_batch_norm` would raise an `eps` below 1.001e-5 to that.
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
