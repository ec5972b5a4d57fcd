"""The exercises of the lesson on dilation: a dilated convolution, a dilated stage, class maps."""

from typing import Any

import numpy as np

from shared import networks
from shared.spec import Spec

from . import arithmetic
from .arithmetic import State
from .form import Case, Layer, Network, Suspect, Tensors, changed


def _conv(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    _, _, kernel, dilation = arguments
    reach = dilation * (kernel - 1)
    pads: Any = reach // 2
    match flaw:
        case "undilated-padding":
            pads = (kernel - 1) // 2
        case "padding-is-dilation":
            pads = dilation
        case "no-dilation":
            dilation, pads = 1, (kernel - 1) // 2
        case "no-padding":
            pads = 0
        case "one-sided-padding":
            pads = (reach, 0, reach, 0)
        case "zeros-between":
            dilation += 1
            pads = dilation * (kernel - 1) // 2
    return arithmetic.conv(x, state["weight"], None, 1, pads, dilation)


CONV = Layer(
    "DilatedConv",
    "layers.Conv",
    [
        Case((3, 4, 3, 1), (2, 3, 9, 8)),
        Case((3, 4, 3, 2), (2, 3, 9, 8)),
        Case((2, 3, 3, 4), (2, 2, 11, 10)),
        Case((2, 3, 5, 2), (2, 2, 10, 11)),
    ],
    _conv,
    [
        Suspect(
            "undilated-padding",
            "you pad (kernel - 1) / 2 pixels, which keeps the map only without dilation: a dilated kernel reaches over more "
            "pixels, count them",
        ),
        Suspect(
            "padding-is-dilation", "you pad `dilation` pixels, which is right for 3x3 kernels alone; a 5x5 kernel needs more"
        ),
        Suspect("no-dilation", "your convolution ignores its dilation: its taps are neighbours"),
        Suspect("no-padding", "your convolution does not pad: the map shrinks by dilation · (kernel - 1)"),
        Suspect("one-sided-padding", "you pad at the top and left alone; pad as much on each side"),
        Suspect("zeros-between", "your taps are dilation + 1 pixels apart: dilation d puts d - 1 zeros between two taps"),
    ],
    ours=lambda i, o, kernel, dilation: (i, o, kernel, 1, dilation * (kernel - 1) // 2, dilation, False),
)


def _base() -> Spec:
    return {key: networks.load("resnet10_small")[key] for key in ("name", "input", "layers")}


def _dilated(**options: Any) -> Any:
    return lambda spec: changed(spec, "layer4", **{"stride": None, "dilation": None, "first_dilation": None} | options)


DILATE = Network(
    lambda: changed(_base(), "layer4", stride=None, dilation=2, first_dilation=1),
    [
        Suspect("unchanged", "`layer4` still halves the map", None, _dilated(stride=2)),
        Suspect(
            "stride-only",
            "the map keeps its size, but nothing is dilated: the second convolution of `layer4` sees "
            "positions that are half as "
            "far apart as before",
            None,
            _dilated(),
        ),
        Suspect(
            "first-dilated-too",
            "you dilate both convolutions of `layer4`. The stride that is gone was that of the first, so that only what comes "
            "after it sees a finer map",
            None,
            _dilated(dilation=2),
        ),
        Suspect(
            "dilation-4", "a dilation of 4 makes up for two strides; one is gone", None, _dilated(dilation=4, first_dilation=2)
        ),
        Suspect(
            "dilation-with-stride",
            "`layer4` has a stride and a dilation: the dilation should replace the stride",
            "dilation-with-stride",
            _dilated(stride=2, dilation=2),
        ),
    ],
    (64, 49),
)


def _class_maps(arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    features, weight, bias = arguments
    maps = np.einsum("kc,bchw->bkhw", weight, features)
    positions = maps.shape[2] * maps.shape[3]
    match flaw:
        case "no-bias":
            return maps
        case "shared-bias":
            return maps + bias[:, None, None] / positions
    maps = maps + bias[:, None, None]
    match flaw:
        case "relu":
            return arithmetic.relu(maps)
        case "softmax":
            powers = np.exp(maps - maps.max(1, keepdims=True))
            return powers / powers.sum(1, keepdims=True)
        case "divided":
            return maps / positions
        case "scaled-to-1":
            least = maps.min((2, 3), keepdims=True)
            return (maps - least) / (maps.max((2, 3), keepdims=True) - least)
    return maps


def _class_map_gradients(arguments: tuple[Any, ...], projection: np.ndarray) -> dict[int, np.ndarray]:
    features, weight, _ = arguments
    return {
        0: np.einsum("kc,bkhw->bchw", weight, projection),
        1: np.einsum("bchw,bkhw->kc", features, projection),
        2: projection.sum((0, 2, 3)),
    }


def _feature_maps() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    shapes = [((2, 4, 4, 4), (4, 4)), ((2, 5, 3, 4), (3, 5))]
    draw = generator.standard_normal
    return [(draw(features), draw(weight), draw(weight[0])) for features, weight in shapes]


CLASS_MAP = Tensors(
    "class_maps",
    _feature_maps(),
    _class_maps,
    [
        Suspect("no-bias", "the bias is missing: the mean of your map is the logit less its bias"),
        Suspect(
            "shared-bias",
            "you share the bias among the positions; a mean over positions does not need that: each gets the whole bias",
        ),
        Suspect("relu", "you cut off what is below zero: the mean of your map is no longer the logit"),
        Suspect("softmax", "you take the softmax over the classes; the exercise asks for logits"),
        Suspect("divided", "you divide by the number of positions; the mean does that"),
        Suspect("scaled-to-1", "you scale each map to [0, 1], which is for pictures; the exercise asks for logits"),
    ],
    ("map", "linear", ""),
    "map",
    _class_map_gradients,
    arguments=("features", "weight", "bias"),
)

EXERCISES = {"conv": CONV, "dilate": DILATE, "class_map": CLASS_MAP}
