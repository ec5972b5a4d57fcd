"""The exercises of the lesson on degradation: a shortcut without weights, the plain network, initial weights."""

from typing import Any

import numpy as np

from shared import networks
from shared.spec import Spec

from .arithmetic import State
from .form import Case, Draw, Layer, Network, Suspect, changed


def _shortcut(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    in_channels, out_channels, stride = arguments
    missing = out_channels - in_channels
    before, after = missing // 2, -(-missing // 2)
    y = x[:, :, ::stride, ::stride]
    match flaw:
        case "all-after":
            before, after = 0, missing
        case "all-before":
            before, after = missing, 0
        case "odd-before":
            before, after = after, before
        case "average-pool":
            height, width = (n // stride * stride for n in x.shape[2:])
            blocks = x[:, :, :height, :width].reshape(*x.shape[:2], height // stride, stride, width // stride, stride)
            y = blocks.mean((3, 5))
        case "last-pixel":
            y = x[:, :, stride - 1 :: stride, stride - 1 :: stride]
        case "repeated":
            return y[:, np.arange(-before, in_channels + after) % in_channels]
        case "no-stride":
            y = x
    return np.pad(y, [(0, 0), (before, after), (0, 0), (0, 0)])


SHORTCUT = Layer(
    "Shortcut",
    "layers.PadChannels",
    [
        Case((4, 8, 2), (2, 4, 8, 6)),
        Case((4, 8, 2), (2, 4, 7, 9)),
        Case((3, 6, 1), (2, 3, 5, 4)),
        Case((3, 6, 2), (2, 3, 5, 4)),
    ],
    _shortcut,
    [
        Suspect("all-after", "all your zeros come after the input's channels; half of them belong before"),
        Suspect("all-before", "all your zeros come before the input's channels; half of them belong after"),
        Suspect(
            "odd-before", "if the number of zero channels is odd, the odd one comes after the input's channels, not before"
        ),
        Suspect("average-pool", "you average over the pixels; option A drops all but every stride-th"),
        Suspect("last-pixel", "you begin with the last pixel of the first `stride`; take the first of each row and column"),
        Suspect("repeated", "you repeat the input's channels; the added channels are zeros"),
        Suspect("no-stride", "your shortcut ignores its stride"),
    ],
)


def _plain() -> Spec:
    return {key: networks.load("plain20")[key] for key in ("name", "input", "layers")}


PLAIN = Network(
    _plain,
    [
        Suspect(
            "shortcuts-kept",
            "your blocks have their shortcuts: this is the residual network. A plain one adds nothing",
            None,
            lambda spec: changed(spec, "layer1 layer2 layer3", shortcut=None),
        ),
        Suspect(
            "option-a",
            "the parameters are right, and yet your blocks have shortcuts: those without weights (option A). "
            "This is ResNet-20; a "
            "plain network adds nothing",
            None,
            lambda spec: changed(spec, "layer1 layer2 layer3", shortcut="pad"),
        ),
        Suspect(
            "identity-kept",
            "you took away the shortcuts of `layer2` and `layer3`, but those of `layer1`, identities without "
            "parameters, are still there",
            None,
            lambda spec: changed(spec, "layer1", shortcut=None),
        ),
        Suspect("no-stride", "nothing halves the map", None, lambda spec: changed(spec, "layer2 layer3", stride=None)),
        Suspect(
            "too-few-blocks",
            "you have 2 blocks a stage, which makes 14 layers with weights",
            None,
            lambda spec: changed(spec, "layer1 layer2 layer3", repeat=2),
        ),
    ],
    (32, 29),
)

NORMAL, UNIFORM = 3.0, 1.8  # kurtosis: the fourth moment over the square of the second
TRUNCATED = 2.3668  # of a normal distribution without what is beyond two standard deviations


def _moments(shape: tuple[int, ...], flaw: Any) -> tuple[float, float]:
    out_channels, in_channels, height, width = shape
    fan_in, fan_out = in_channels * height * width, out_channels * height * width
    variance, kurtosis = {
        None: (2 / fan_out, NORMAL),
        "initialisers": (2 / fan_out, TRUNCATED),
        "truncated-narrower": (2 / fan_out * 0.87962566103423978**2, TRUNCATED),
        "fan-in": (2 / fan_in, NORMAL),
        "fan-in-truncated": (2 / fan_in, TRUNCATED),
        "uniform": (2 / fan_out, UNIFORM),
        "uniform-fan-in": (2 / fan_in, UNIFORM),
        "pytorch-default": (1 / fan_in / 3, UNIFORM),
        "glorot": (2 / (fan_in + fan_out), NORMAL),
        "keras-default": (2 / (fan_in + fan_out), UNIFORM),
        "no-factor": (1 / fan_out, NORMAL),
        "variance-for-deviation": (4 / fan_out**2, NORMAL),
    }[flaw]
    return float(np.sqrt(variance)), kurtosis


INITIALISE = Draw(
    "initialise",
    [(512, 128, 3, 3), (64, 1024, 3, 3)],
    _moments,
    [
        Suspect(
            "initialisers",
            "the standard deviation is right, but no value is beyond {peak:.2f} of them: your normal "
            "distribution is truncated, as "
            "Keras's he_normal and VarianceScaling are by default. PyTorch's is not",
            "initialisers",
        ),
        Suspect(
            "truncated-narrower", "your distribution is truncated, which made it narrower: {ratio:.3g} of ours", "initialisers"
        ),
        Suspect("fan-in", "your standard deviation is {ratio:.3g} of ours, the root of out / in: you divide by fan in"),
        Suspect(
            "fan-in-truncated",
            "your standard deviation is {ratio:.3g} of ours, the root of out / in: you divide by fan in; and "
            "no value is beyond "
            "{peak:.2f} deviations: it is truncated. Both are Keras's he_normal",
            "initialisers",
        ),
        Suspect("uniform", "the standard deviation is right, but the numbers are uniform; draw normal ones"),
        Suspect("uniform-fan-in", "the numbers are uniform, and divided by fan in"),
        Suspect("pytorch-default", "these are PyTorch's own initial weights: uniform, within 1 / sqrt(fan in)", "initialisers"),
        Suspect("glorot", "your variance is Glorot's, 2 / (fan in + fan out): {ratio:.3g} of our standard deviation"),
        Suspect("keras-default", "these are Keras's own initial weights: Glorot's, uniform", "initialisers"),
        Suspect(
            "no-factor", "your standard deviation is {ratio:.3g} of ours: the factor 2, which makes up for the ReLU, is missing"
        ),
        Suspect("variance-for-deviation", "you use the variance as the standard deviation: take its square root"),
    ],
)

EXERCISES = {"shortcut_pad": SHORTCUT, "plain": PLAIN, "initialise": INITIALISE}
