"""The exercises of the lesson on pre-activation: the basic block, what closes a network, the bottleneck."""

from typing import Any

import numpy as np

from shared.spec import Spec

from . import arithmetic
from .arithmetic import State, batch_norm, detached, relu, relu_passing
from .form import Case, Layer, Network, Suspect, changed, without
from .residual_block import (
    CONV_BIAS,
    EPSILON,
    FROZEN,
    KERAS_MOMENTUM,
    MOMENTUM,
    NORM,
    PASSING_RELU,
    SHORTCUT,
    STATISTICS,
    VARIANCE,
    Shapes,
    norm_options,
)


def _block(
    state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], kernels: tuple[int, ...], flaw: Any
) -> np.ndarray:
    """Batch norm, ReLU and convolution as often as there are kernels, and the shortcut."""
    in_channels, out_channels, stride = arguments
    options, training = norm_options(flaw), training and flaw != "frozen-bn"
    changes = stride > 1 or in_channels != out_channels
    strided = 2 if flaw == "stride-second" else 1
    y = x
    activated = normalised = x
    for number, kernel in enumerate(kernels, start=1):
        if flaw != "original-order":
            normalised = batch_norm(y, state, f"bn{number}.", training, **options)
            y = normalised if flaw == "no-relu" else relu(normalised)
            if flaw == "relu-passes-all":
                y = relu_passing(state, f"relu{number}", normalised)
        activated = y if number == 1 else activated
        pads: Any = "same" if flaw == "same-padding" else kernel // 2
        y = arithmetic.conv(y, state[f"conv{number}.weight"], None, stride if number == strided else 1, pads)
    first = batch_norm(x, dict(state), "bn1.", training, **options)
    source = activated if changes else x
    match flaw:
        case "projection-of-input":
            source = x
        case "identity-activated":
            source = activated
        case "in-place":
            source = activated if changes else first
        case "projection-before-relu" if changes:
            source = first
        case "detached-shortcut":
            source = detached(state, "shortcut", source)
    if changes:
        source = arithmetic.conv(source, state["downsample.weight"], None, stride)
        source = detached(state, "projection", source) if flaw == "detached-projection" else source
    if flaw == "no-shortcut":
        return y
    return relu(y + source) if flaw == "last-relu" else y + source


def _shapes(widths: tuple[int, ...], kernels: tuple[int, ...], arguments: tuple[Any, ...], flaw: Any) -> Shapes:
    """The weights of a block whose convolutions take and give these channels."""
    in_channels, out_channels, stride = arguments
    shapes: Shapes = {}
    for number, kernel in enumerate(kernels, start=1):
        before, after = widths[number - 1 : number + 1]
        shapes[f"conv{number}.weight"] = (after, before, kernel, kernel)
        if flaw == "conv-bias":
            shapes[f"conv{number}.bias"] = (after,)
        shapes |= {f"bn{number}.{kind}": (after if flaw == "norm-after" else before,) for kind in NORM}
    if stride > 1 or in_channels != out_channels:
        shapes["downsample.weight"] = (out_channels, in_channels, 1, 1)
        if flaw == "conv-bias":
            shapes["downsample.bias"] = (out_channels,)
        if flaw == "projection-with-norm":
            shapes = {name.replace("downsample.", "downsample.0."): shape for name, shape in shapes.items()}
            shapes |= {f"downsample.1.{kind}": (out_channels,) for kind in NORM}
    return shapes


SUSPECTS = (
    Suspect("last-relu", "you have a ReLU after the addition; in a pre-activation block nothing follows it"),
    Suspect(
        "projection-of-input",
        "your projection takes the input of the block; it takes the output of the first ReLU",
    ),
    Suspect(
        "identity-activated",
        "where the shape stays, your shortcut is the output of the first ReLU; it is the input as it came "
        "in, so that from block to "
        "block there is an identity",
    ),
    Suspect("no-shortcut", "nothing is added: your block has no shortcut"),
    Suspect("no-relu", "there are no ReLUs in your block"),
    Suspect("projection-before-relu", "your projection takes the output of the first batch norm; the ReLU comes before it"),
    Suspect(
        "same-padding",
        'your strided 3x3 convolution pads by the rule "same": for an even size, one row at the bottom and '
        "one column at the right. "
        "Ours pads 1 pixel on each side",
        "same-padding",
    ),
    EPSILON,
    VARIANCE,
    MOMENTUM,
    KERAS_MOMENTUM,
    CONV_BIAS,
    STATISTICS,
    SHORTCUT,
    SHORTCUT._replace(flaw="detached-projection"),
    PASSING_RELU,
    FROZEN,
    Suspect("norm-after", "your batch norms have the channels that the convolutions give; they come before the convolutions"),
    Suspect("projection-with-norm", "your projection has a batch norm; here it is a convolution alone"),
)


def _basic(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    return _block(state, x, training, arguments, (3, 3), flaw)


def _basic_shapes(arguments: tuple[Any, ...], flaw: Any) -> Shapes:
    in_channels, out_channels, _ = arguments
    return _shapes((in_channels, out_channels, out_channels), (3, 3), arguments, flaw)


BASIC = Layer(
    "PreActBasic",
    "preactivation.PreActBasic",
    [
        Case((4, 4, 1), (2, 4, 7, 6)),
        Case((4, 6, 2), (2, 4, 8, 10)),
        Case((4, 6, 2), (2, 4, 7, 9)),
        Case((3, 5, 1), (2, 3, 6, 5)),
    ],
    _basic,
    [
        *SUSPECTS,
        Suspect("stride-second", "the shapes are right, but your second convolution has the stride; the first has it"),
    ],
    shapes=_basic_shapes,
    aliases={"downsample.0.": "downsample."},
)


def _bottleneck(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    return _block(state, x, training, arguments, (1, 3, 1), flaw)


def _bottleneck_shapes(arguments: tuple[Any, ...], flaw: Any) -> Shapes:
    in_channels, out_channels, _ = arguments
    width = out_channels if flaw == "not-narrow" else out_channels // 4
    return _shapes((in_channels, width, width, out_channels), (1, 3, 1), arguments, flaw)


BOTTLENECK = Layer(
    "PreActBottleneck",
    "preactivation.PreActBottleneck",
    [
        Case((8, 8, 1), (2, 8, 7, 6)),
        Case((8, 12, 2), (2, 8, 8, 10)),
        Case((8, 12, 2), (2, 8, 7, 9)),
        Case((4, 8, 1), (2, 4, 6, 5)),
    ],
    _bottleneck,
    [
        Suspect(
            "stride-second",
            "shapes and parameters are right, but your 3x3 convolution has the stride, as in torchvision's "
            "ResNets (version 1.5); "
            "here the first 1x1 has it, as in the paper",
            "resnet-version",
        ),
        *SUSPECTS,
        Suspect("not-narrow", "your block is as wide inside as outside; a bottleneck is a quarter as wide inside"),
    ],
    shapes=_bottleneck_shapes,
    aliases={"downsample.0.": "downsample."},
)


def _final() -> Spec:
    layers: list[dict[str, Any]] = [
        {"name": "conv1", "type": "conv", "in": 3, "out": 16, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 16},
        {"name": "relu1", "type": "relu"},
        {"name": "layer1", "type": "preact_basic", "in": 16, "out": 16, "repeat": 2, "first_activation": False},
        {"name": "layer2", "type": "preact_basic", "in": 16, "out": 32, "repeat": 2, "stride": 2},
        {"name": "bn2", "type": "batch_norm", "in": 32},
        {"name": "relu2", "type": "relu"},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 32, "out": 10},
    ]
    return {"name": "preactivation", "input": [3, 32, 32], "layers": layers}


def _relu_first(spec: Spec) -> Spec:
    layers = list(spec["layers"])
    layers[5], layers[6] = layers[6], layers[5]
    return spec | {"layers": layers}


FINAL = Network(
    _final,
    [
        Suspect(
            "nothing-closes",
            "nothing comes between the last addition and the pool: the classifier gets the sum of all "
            "blocks, neither normalised "
            "nor activated",
            None,
            lambda spec: without(spec, "bn2", "relu2"),
        ),
        Suspect("no-last-relu", "the last batch norm has no ReLU after it", None, lambda spec: without(spec, "relu2")),
        Suspect(
            "no-last-norm", "there is a ReLU before the pool, but no batch norm before it", None, lambda s: without(s, "bn2")
        ),
        Suspect("relu-first", "the ReLU comes before the batch norm; as in the blocks, it comes after", None, _relu_first),
        Suspect(
            "activated-twice",
            "the first block of `layer1` has a batch norm and ReLU of its own after those of the network",
            None,
            lambda spec: changed(spec, "layer1", first_activation=None),
        ),
        Suspect(
            "original-blocks",
            "your blocks are of type basic, whose ReLUs come after the additions",
            None,
            lambda spec: changed(spec, "layer1 layer2", type="basic", first_activation=None),
        ),
    ],
    (19, 22),
)

EXERCISES = {"basic": BASIC, "final": FINAL, "bottleneck": BOTTLENECK}
