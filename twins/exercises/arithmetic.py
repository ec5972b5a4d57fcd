"""Layers in NumPy, for the exercises' suspects: what a mistaken layer gives. Maps are (batch, channels, height, width)."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

State = dict[str, np.ndarray]
Pads = int | str | Sequence[int]


def pad(x: np.ndarray, pads: Pads, extent: int = 1, stride: int = 1, value: float = 0.0) -> np.ndarray:
    """A map with a border: pixels on each side; (top, bottom, left, right); or "same", TensorFlow's rule for a window."""
    if pads == "same":
        missing = [max((-(-n // stride) - 1) * stride + extent - n, 0) for n in x.shape[2:]]
        pads = [side for n in missing for side in (n // 2, n - n // 2)]
    top, bottom, left, right = pads if isinstance(pads, (list, tuple)) else [int(pads)] * 4  # type: ignore[arg-type]
    return np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)], constant_values=value)


def conv(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, pads: Pads = 0, dilation: int = 1
) -> np.ndarray:
    """A convolution with a square kernel."""
    extent = dilation * (weight.shape[2] - 1) + 1
    x = pad(x, pads, extent, stride)
    if min(x.shape[2:]) < extent:
        return np.zeros((len(x), len(weight), 0, 0))
    windows = sliding_window_view(x, (extent, extent), (2, 3))[:, :, ::stride, ::stride, ::dilation, ::dilation]
    y = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    return y if bias is None else y + bias[:, None, None]


def pool(x: np.ndarray, kernel: int, stride: int, pads: Pads, value: float, mean: bool = False) -> np.ndarray:
    """A max pool, or the mean; `value` is that of the border."""
    windows = sliding_window_view(pad(x, pads, kernel, stride, value), (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    return windows.mean((4, 5)) if mean else windows.max((4, 5))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def batch_norm(
    x: np.ndarray, state: State, name: str, training: bool, eps: float = 1e-5, momentum: float = 0.1, biased: bool = False,
    per_image: bool = False,
) -> np.ndarray:  # fmt: skip
    """Batch norm by PyTorch's rules, which updates the running statistics in `state`; or with a mistake."""
    axes, column = (2, 3) if per_image else (0, 2, 3), (slice(None), None, None)
    mean, variance = state[f"{name}running_mean"][column], state[f"{name}running_var"][column]
    if training:
        n = x.size // x.shape[1]
        means, variances = x.mean((0, 2, 3)), x.var((0, 2, 3))
        new = {"running_mean": means, "running_var": variances if biased else variances * n / (n - 1)}
        for kind, values in new.items():
            state[name + kind] = (1 - momentum) * state[name + kind] + momentum * values
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    x = (x - mean) / np.sqrt(variance + eps)
    return x * state[f"{name}weight"][column] + state[f"{name}bias"][column]
