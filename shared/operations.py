"""Common terms for what a network of either framework runs: operations, their attributes, and their weights' layouts.

A recorder of a framework (`torch_impl/recording.py`, `keras_impl/recording.py`) tells in them what a network really did on one
input, in the order in which it ran. Values keep their framework's axes: an operation that treats one axis as channels
says which. Weights come in one layout, whatever the framework's.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

GRID = np.linspace(-8, 8, 161)  # where an elementwise function is compared with known ones

# {kind: {attribute: what it is}}. Sizes, strides, dilations and paddings are tuples with an entry a spatial axis, in the order
# of the axes; a padding is a pair (before, after), in pixels, as it was for this input: `same` is worked out.
KINDS: dict[str, dict[str, str]] = {
    "convolution": {
        "channels": "the axis of channels",
        "stride": "sizes",
        "padding": "pairs",
        "dilation": "sizes",
        "groups": "number",
        "transposed": "whether it is the transposed convolution, whose padding is what is cut off the result",
    },
    "linear": {"channels": "the axis that the kernel contracts"},
    "matmul": {"transpose": "(bool, bool): which of the two operands has its last two axes exchanged"},
    "normalization": {
        "over": "batch, layer, group, instance or rms: what mean and variance are taken of",
        "channels": "the axis of channels; for layer and rms, the axes normalised",
        "groups": "number, for group",
        "epsilon": "added to the variance",
        "momentum": "the share of the new batch in the running statistics, for batch, or None where it keeps none",
        "training": "whether it used this batch's statistics",
    },
    "activation": {
        "function": "relu, relu6, leaky_relu, elu, selu, gelu, gelu_tanh, silu, sigmoid, hard_sigmoid, hard_swish, tanh, "
        "softplus, softmax, log_softmax, mish, exp or another name of PyTorch's",
        "slope": "of leaky_relu, or alpha of elu",
        "axis": "of softmax and log_softmax",
    },
    "pool": {
        "channels": "the axis of channels",
        "how": "max or average",
        "window": "sizes",
        "stride": "sizes",
        "padding": "pairs; with PyTorch's ceil_mode, the last one holds what the last window reaches beyond",
        "count_padding": "whether the padding counts in the average",
    },
    "mean": {"axes": "those averaged", "keep": "whether they stay, of size 1"},
    "reduce": {"how": "sum, max, min or variance", "axes": "those reduced", "keep": "whether they stay, of size 1"},
    "local_response_normalization": {"channels": "axis", "size": "channels", "alpha": "PyTorch's", "beta": "", "k": ""},
    "upsample": {
        "channels": "axis",
        "how": "nearest, bilinear or bicubic",
        "size": "of the result",
        "align_corners": "bool",
        "half_pixel": "bool: whether pixels are taken at their centres",
    },
    "pad": {"amounts": "pairs, an entry for every axis", "mode": "constant, reflect or edge", "value": "of constant"},
    "add": {},
    "subtract": {},
    "multiply": {},
    "divide": {},
    "maximum": {},
    "minimum": {},
    "power": {},
    "concatenate": {"axis": ""},
    "attention": {"scale": "of the products", "causal": "bool"},
    "embedding": {},
    "dropout": {"rate": "share that is set to zero", "training": "bool"},
    "reshape": {"shape": "of the result"},
    "transpose": {"order": "of the axes of the input"},
    "slice": {"starts": "an entry for every axis", "stops": "", "steps": ""},
    "cast": {"dtype": ""},
    "stop_gradient": {},
    "constant": {},
    "other": {"operation": "the framework's name of it", "arguments": "{name: what is not an array}"},
}

# {role: axes} of the weights, in one layout for both frameworks.
ROLES = {
    "kernel": "convolution: (out, in / groups, height, width), of a transposed one (in, out / groups, height, width); "
    "linear: (in, out); embedding: (words, features)",
    "bias": "(out,)",
    "scale": "(channels,), or the shape of the normalised axes",
    "shift": "as scale",
    "mean": "(channels,), running",
    "variance": "(channels,), running",
    "constant": "an operand of add, multiply and others that is a weight or a constant of the network, in the framework's axes",
}


@dataclass(frozen=True)
class Operation:
    """One operation that a network ran, in common terms.

    Fields:
        name: The only one of this name in its recording: the place in the network and what happens there, as
            `layer1.0.conv1` or `layer1.0.add`.
        kind: One of `KINDS`.
        inputs: The names of the operations that made its operands, in order, or of inputs of the network.
        shape: Of the result, in the framework's axes.
        attributes: Those of its kind.
        weights: {role: the framework's name of the weight}. Operands that are weights are here and not in `inputs`.
        source: File and line of the user's code, or "".
        framework: What the framework calls it: `aten.conv2d`, `Conv2D`; of several, with a plus between.
        operands: Where inputs and constants alternate, as in `1 - x`: the position of each input among all operands.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    framework: str = ""
    operands: tuple[int, ...] = ()


class Recording(Protocol):
    """What a network of one framework ran on one input, and the means to run any part of it on something else."""

    framework: str  # for people: "PyTorch", "Keras on TensorFlow"
    operations: Sequence[Operation]  # in the order in which they ran
    inputs: Sequence[str]  # the names of the network's inputs
    outputs: Sequence[str]  # the names of the operations whose results the network returns
    keys: Sequence[str]  # where each output is in what the network returns: "logits", "aux.0"; "" for the only one
    notes: Sequence[str]  # what a reader should know of it, in words
    dropouts: Sequence[tuple[str, float]]  # (place, rate) of what was not let drop anything, on demand
    random: Sequence[str]  # the operations that still draw random numbers

    def values(self, inputs: Sequence[np.ndarray], only: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """{name: result of each operation, and each input}, when the network runs on `inputs`, in the framework's axes.

        With `only`, those of these names; the others are held no longer than the run needs them.
        """
        ...

    def apply(self, name: str, inputs: Sequence[np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The result of one operation alone on `inputs`, with `weights` ({role: array}, in the layouts of `ROLES`) in place of
        its own."""
        ...

    def weight(self, name: str, role: str) -> np.ndarray:
        """One weight of the operation `name`, in the layout of `ROLES`."""
        ...

    def load(self, weights: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Put arrays in the layouts of `ROLES` in place of the network's weights; keys are (operation's name, role)."""
        ...

    def trains(self, name: str, role: str) -> bool | None:
        """Whether an optimiser moves a weight of an operation; None for one that is computed from others."""
        ...

    def gradients(
        self, inputs: Sequence[np.ndarray], of_outputs: Sequence[np.ndarray]
    ) -> tuple[dict[tuple[str, str], np.ndarray], list[np.ndarray | None]]:
        """(gradients of weights, gradients of the inputs) of the sum of outputs times `of_outputs`.

        Weights' keys are (operation, role), their layouts those of `ROLES`; a weight that several operations read has the whole
        gradient at each. Those that the outputs do not depend on are left out.
        """
        ...

    def statistics(self, inputs: Sequence[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
        """{(operation, "mean" or "variance"): running statistics after the network has run on `inputs`}."""
        ...


def known_function(values: np.ndarray) -> dict[str, Any] | None:
    """The function that has these values on `GRID`, or None."""
    x = GRID
    sigmoid, softplus = 1 / (1 + np.exp(-x)), np.log1p(np.exp(x))
    normal = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    table = {
        "gelu": x * normal,
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "silu": x * sigmoid,
        "sigmoid": sigmoid,
        "hard_sigmoid": np.clip(x / 6 + 0.5, 0, 1),
        "hard_swish": x * np.clip(x / 6 + 0.5, 0, 1),
        "mish": x * np.tanh(softplus),
        "softplus": softplus,
        "tanh": np.tanh(x),
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "tanhshrink": x - np.tanh(x),
        "softsign": x / (1 + np.abs(x)),
        "log_sigmoid": -np.log1p(np.exp(-x)),
        "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "elu": np.where(x > 0, x, np.expm1(x)),
    }
    for name, expected in table.items():
        if np.allclose(values, expected, rtol=1e-6, atol=1e-7):
            return {"function": name, "slope": 1.0} if name == "elu" else {"function": name}
    slope = values[0] / x[0]
    if 0 < abs(slope) < 1 and np.allclose(values, np.where(x > 0, x, slope * x), rtol=1e-6, atol=1e-7):
        return {"function": "leaky_relu", "slope": float(np.round(slope, 7))}
    return None
