"""The exercises of the lesson on weights: a kernel, a linear layer after flatten, a batch norm folded into a convolution."""

from typing import Any

import numpy as np

from .form import Suspect, Tensors


def _kernel(arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    (weight,) = arguments
    out_channels, in_channels, height, width = weight.shape
    right = weight.transpose(2, 3, 1, 0)
    match flaw:
        case "reshaped":
            return weight.reshape(right.shape)
        case "in-out-swapped":
            return weight.transpose(2, 3, 0, 1)
        case "reversed":
            return weight.T
        case "flipped":
            return right[::-1, ::-1]
    return right


def _kernels() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    return [(generator.standard_normal(shape),) for shape in ((4, 4, 3, 3), (6, 2, 3, 3), (4, 3, 3, 5))]


CONV = Tensors(
    "to_keras",
    _kernels(),
    _kernel,
    [
        Suspect("reshaped", "you reshape, which keeps the order of the numbers in memory; permute the axes", "kernel-layout"),
        Suspect("in-out-swapped", "in and out are swapped: Keras has (height, width, in, out)", "kernel-layout"),
        Suspect("reversed", "you reverse the axes, which swaps height and width: (width, height, in, out)", "kernel-layout"),
        Suspect(
            "flipped", "you turn the kernel by 180 degrees; both frameworks compute the same cross-correlation", "kernel-layout"
        ),
    ],
    ("",),
    arguments=("weight",),
)


def _linear(arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    weight, channels, height, width = arguments
    four = weight.reshape(-1, channels, height, width)
    match flaw:
        case "flatten-order":
            return weight.T
        case "height-width-swapped":
            return four.transpose(3, 2, 1, 0).reshape(-1, len(weight))
        case "only-reshaped":
            return weight.reshape(-1, len(weight))
        case "wrong-axes":
            return weight.reshape(-1, height, width, channels).transpose(3, 1, 2, 0).reshape(-1, len(weight))
    return four.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _linears() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    return [(generator.standard_normal((out, c * h * w)), c, h, w) for out, c, h, w in ((5, 3, 2, 4), (4, 2, 3, 3))]


FLATTEN = Tensors(
    "to_keras",
    _linears(),
    _linear,
    [
        Suspect(
            "flatten-order",
            "you transpose the matrix but leave its rows in PyTorch's order, channels first. Keras flattens height, width, "
            "channels: the rows have to be permuted too",
            "flatten-order",
        ),
        Suspect("height-width-swapped", "the channels are last, but height and width are swapped", "flatten-order"),
        Suspect(
            "only-reshaped", "you reshape, which keeps the order of the numbers in memory; permute the axes", "flatten-order"
        ),
        Suspect(
            "wrong-axes",
            "you read the rows as (height, width, channels), Keras's order, and permute them into PyTorch's: "
            "the exercise asks for the reverse",
            "flatten-order",
        ),
    ],
    ("", "", "", ""),
    arguments=("weight", "channels", "height", "width"),
)


def _fold(arguments: tuple[Any, ...], flaw: Any) -> tuple[np.ndarray, np.ndarray]:
    weight, gamma, beta, mean, variance, eps = arguments
    scale = gamma / np.sqrt(variance + (0 if flaw == "no-eps" else eps))
    match flaw:
        case "bn-epsilon":
            scale = gamma / np.sqrt(variance + 1e-3)
        case "eps-outside":
            scale = gamma / (np.sqrt(variance) + eps)
        case "no-root":
            scale = gamma / (variance + eps)
    bias = {"mean-not-scaled": beta - mean, "no-mean": beta, "mean-added": beta + mean * scale}.get(flaw, beta - mean * scale)
    kernel = weight * (scale[None, :, None, None] if flaw == "wrong-axis" else scale[:, None, None, None])
    return kernel, bias


def _folds() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    cases = []
    for eps in (1e-5, 1e-2):
        weight = generator.standard_normal((4, 4, 3, 3))
        gamma, variance = generator.uniform(0.5, 1.5, (2, 4))
        beta, mean = generator.standard_normal((2, 4))
        cases.append((weight, gamma, beta, mean, variance, eps))
    return cases


FOLD = Tensors(
    "fold",
    _folds(),
    _fold,
    [
        Suspect("no-eps", "you leave out eps: the divisor is sqrt(variance + eps)", "bn-epsilon"),
        Suspect("bn-epsilon", "your eps is 1e-3, Keras's default, whatever the argument says", "bn-epsilon"),
        Suspect("eps-outside", "you add eps to the standard deviation; it belongs under the root"),
        Suspect("no-root", "you divide by the variance; divide by the root of variance + eps"),
        Suspect("wrong-axis", "you scale the input channels; the batch norm after the convolution scales its output channels"),
        Suspect("mean-not-scaled", "your bias is beta - mean; the mean is scaled like everything else: beta - scale · mean"),
        Suspect("no-mean", "your bias is beta alone; the running mean is subtracted first: beta - scale · mean"),
        Suspect("mean-added", "your bias has the mean with the wrong sign: beta - scale · mean"),
    ],
    ("kernel", "", "", "", "", ""),
    "kernel",
    outputs=("weight", "bias"),
    arguments=("weight", "gamma", "beta", "mean", "variance", "eps"),
)

EXERCISES = {"conv": CONV, "flatten": FLATTEN, "fold": FOLD}
