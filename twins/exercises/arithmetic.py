"""Layers in NumPy, for the exercises' suspects: the output of mistaken layers. Maps are (batch, channels, height, width)."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

State = dict[str, np.ndarray]
Pads = int | str | Sequence[int]
STEP = 1e-6  # of a central difference: small beside what a ReLU bends at, large beside rounding


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


def detached(state: State, name: str, value: np.ndarray) -> np.ndarray:
    """A value through which no gradient passes.

    The first pass leaves it in `state`, and passes that start from there, such as those of `slopes`, find it unchanged.
    """
    return state.setdefault(f"detached {name}", value)


def relu_passing(state: State, name: str, x: np.ndarray) -> np.ndarray:
    """A ReLU whose gradient is 1 everywhere."""
    return x + detached(state, name, relu(x) - x)


def slopes(function: Callable[[State, np.ndarray], np.ndarray], state: State, x: np.ndarray, toward: State) -> np.ndarray:
    """The derivative of the sum of a function's output, for each array of `toward`, in the direction of that array.

    By central differences; "input" is the direction of `x`, other names those of arrays in `state`. Relative error about 1e-8.
    """
    first = dict(state)
    function(first, x)
    fixed = {name: value for name, value in first.items() if name.startswith("detached ")}
    found = []
    for name, direction in toward.items():
        ends = []
        for sign in (1, -1):
            moved = state | fixed | {"input": x}
            moved[name] = moved[name] + sign * STEP * direction
            ends.append(function(moved, moved.pop("input")).sum())
        found.append((ends[0] - ends[1]) / (2 * STEP))
    return np.array(found)


def batch_norm(
    x: np.ndarray, state: State, name: str, training: bool, eps: float = 1e-5, momentum: float = 0.1, biased: bool = False,
    per_image: bool = False, constant: Sequence[str] = (),
) -> np.ndarray:  # fmt: skip
    """Batch norm by PyTorch's rules, which updates the running statistics in `state`; or with a mistake.

    No gradient passes through the statistics in `constant`, "mean" and "variance".
    """
    axes, column = (2, 3) if per_image else (0, 2, 3), (slice(None), None, None)
    mean, variance = state[f"{name}running_mean"][column], state[f"{name}running_var"][column]
    if training:
        n = x.size // x.shape[1]
        means, variances = x.mean((0, 2, 3)), x.var((0, 2, 3))
        new = {"running_mean": means, "running_var": variances if biased else variances * n / (n - 1)}
        for kind, values in new.items():
            state[name + kind] = (1 - momentum) * state[name + kind] + momentum * values
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        mean = detached(state, f"{name}mean", mean) if "mean" in constant else mean
        variance = detached(state, f"{name}variance", variance) if "variance" in constant else variance
    x = (x - mean) / np.sqrt(variance + eps)
    return x * state[f"{name}weight"][column] + state[f"{name}bias"][column]
