"""What a naive port does on Keras's JAX backend alone, put back as in `naive`, which adds these behaviours there.

Images are (batch, height, width, channels).
"""

from typing import Any

import jax
import keras
from jax import lax
from keras import ops

from shared.spec import Spec

from . import engine, engines, layers
from .layers import Tensor
from .network import Network, build

NHWC = ("NHWC", "HWIO", "NHWC")
Engine = engines.Engine


def in_float32(spec: Spec, seed: int, dtype: str) -> Network:
    """What JAX makes of any network while jax_enable_x64 is off."""
    return build(spec, seed, "float32")


def conv_in_bfloat16(conv: layers.Conv, x: Tensor, kernel: Tensor, plain: Any = layers.Conv._conv) -> Tensor:
    """Rounds both factors as a TPU does, which adds up in float32."""
    return plain(conv, bfloat16(x), bfloat16(kernel))


def linear_in_bfloat16(linear: layers.Linear, x: Tensor) -> Tensor:
    return ops.matmul(bfloat16(x), bfloat16(linear.weight)) + linear.bias


def bfloat16(x: Tensor) -> Tensor:
    """float32 numbers rounded to the 7 bits of mantissa that bfloat16 has."""
    return lax.reduce_precision(ops.convert_to_tensor(x), exponent_bits=8, mantissa_bits=7)


def from_zero(pool: layers.MaxPool, x: Tensor) -> Tensor:
    """What looks like padding is a value in every window, not only at the border."""
    window, strides = (1, pool.kernel, pool.kernel, 1), (1, pool.stride, pool.stride, 1)
    border = (0, 0) if pool.padding == "same" else (pool.padding, pool.padding)
    return lax.reduce_window(x, 0.0, lax.max, window, strides, ((0, 0), border, border, (0, 0)))


def not_flipped(upsample: layers.UpsampleTransposed, x: Tensor) -> Tensor:
    kernel, strides = upsample.weight.value, (upsample.scale, upsample.scale)
    maps = [lax.conv_transpose(x[..., c : c + 1], kernel[..., c : c + 1], strides, "SAME", dimension_numbers=NHWC)
            for c in range(x.shape[-1])]  # fmt: skip
    return ops.concatenate(maps, -1)


def smoothed(maps: Tensor, size: Any) -> Tensor:
    return jax.image.resize(ops.convert_to_tensor(maps), (maps.shape[0], *size, maps.shape[3]), "bilinear")


def zeros_for_none(own: Any, *arguments: Any, plain: Any = Engine._derivatives, **options: Any) -> Any:
    others, of_images, gradients = plain(own, *arguments, **options)
    zeros = {name: ops.zeros(variable.shape, variable.dtype) for name, variable in arguments[2].items()}
    return others, of_images, {name: zeros[name] if array is None else array for name, array in gradients.items()}


def constant_rate(own: Any, plain: Any = Engine._variables) -> list[keras.Variable]:
    rate = own.optimizer and own.optimizer._learning_rate
    return [variable for variable in plain(own) if variable is not rate]


FORCED: dict[str, list[tuple[Any, str, Any]]] = {  # as in `naive`
    "jax-x64": [(engines, "build", in_float32)],
    "jax-float32-functions": [(layers, "mean", ops.mean), (engine, "mean", ops.mean), (layers, "tanh", ops.tanh)],
    "jax-matmul-precision": [(layers.Conv, "_conv", conv_in_bfloat16), (layers.Linear, "call", linear_in_bfloat16)],
    "jax-reduce-window": [(layers.MaxPool, "call", from_zero)],
    "jax-transposed-kernel": [(layers.UpsampleTransposed, "call", not_flipped)],
    "jax-resize": [(layers, "resized", smoothed)],
    "jax-unused-weights": [(Engine, "_derivatives", zeros_for_none)],
    "jax-running-statistics": [(layers.BatchNorm, "_follow", lambda norm, running, new: None)],
    "jax-learning-rate": [(Engine, "_variables", constant_rate)],
}
