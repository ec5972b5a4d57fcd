"""The exercises of the lesson on specs: LeNet, a padded max pool, a network of bottlenecks."""

from typing import Any

import numpy as np

from shared.spec import Spec

from .arithmetic import State, pool
from .form import Case, Layer, Network, Suspect, changed, without
from .residual_block import SAME


def _lenet() -> Spec:
    layers: list[dict[str, Any]] = [
        {"name": "conv1", "type": "conv", "in": 1, "out": 6, "kernel": 5, "padding": 2},
        {"name": "relu1", "type": "relu"},
        {"name": "pool1", "type": "max_pool", "kernel": 2, "stride": 2},
        {"name": "conv2", "type": "conv", "in": 6, "out": 16, "kernel": 5},
        {"name": "relu2", "type": "relu"},
        {"name": "pool2", "type": "max_pool", "kernel": 2, "stride": 2},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc1", "type": "linear", "in": 400, "out": 120},
        {"name": "relu3", "type": "relu"},
        {"name": "fc2", "type": "linear", "in": 120, "out": 84},
        {"name": "relu4", "type": "relu"},
        {"name": "fc3", "type": "linear", "in": 84, "out": 10},
    ]
    return {"name": "lenet", "input": [1, 28, 28], "layers": layers}


def _unpadded(spec: Spec) -> Spec:
    return changed(changed(spec, "conv1", padding=None), "fc1", **{"in": 256})


LENET = Network(
    _lenet,
    [
        Suspect(
            "no-padding",
            "`conv1` is not padded: its map has 24x24 pixels, so that `flatten` gives 256 features instead "
            "of 400. A 5x5 kernel "
            "needs 2 pixels on each side to keep the size",
            None,
            _unpadded,
        ),
        Suspect(
            "no-relu",
            "there are no ReLUs, without which everything but the max pools is linear",
            None,
            lambda spec: without(spec, "relu1", "relu2", "relu3", "relu4"),
        ),
        Suspect(
            "average-pool",
            "all shapes are right, but your pools take the mean, as in LeCun et al. 1998; here they take the maximum",
            None,
            lambda spec: changed(spec, "pool1 pool2", type="avg_pool"),
        ),
        Suspect(
            "no-bias",
            "your layers have no biases",
            None,
            lambda spec: changed(spec, "conv1 conv2 fc1 fc2 fc3", bias=False),
        ),
        Suspect("no-last-relus", "the ReLUs after `fc1` and `fc2` are missing", None, lambda s: without(s, "relu3", "relu4")),
    ],
    (28, 28),
)


def _max_pool(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    kernel, stride, padding = arguments
    match flaw:
        case "max-pool-padding":
            return pool(x, kernel, stride, padding, 0)
        case "same-padding":
            return pool(x, kernel, stride, "same" if padding else 0, -np.inf)
        case "always-same":
            return pool(x, kernel, stride, "same", -np.inf)
        case "average-pool":
            return pool(x, kernel, stride, padding, 0, mean=True)
        case "no-padding":
            return pool(x, kernel, stride, 0, 0)
        case "no-stride":
            return pool(x, kernel, kernel, padding, -np.inf)
    return pool(x, kernel, stride, padding, -np.inf)


MAX_POOL = Layer(
    "MaxPool",
    "layers.MaxPool",
    [
        Case((3, 2, 1), (2, 3, 8, 10)),
        Case((3, 2, 1), (2, 3, 9, 7)),
        Case((3, 1, 1), (2, 3, 6, 5)),
        Case((2, 2, 0), (2, 3, 7, 6)),
    ],
    _max_pool,
    [
        Suspect(
            "max-pool-padding",
            "you pad with zeros, which win over the negative values of the border: {changed:.0%} of your "
            "outputs are too large. A "
            "padded pixel counts as minus infinity",
            "max-pool-padding",
        ),
        SAME,
        SAME._replace(flaw="always-same"),
        Suspect("average-pool", "you take the mean of a window; a max pool takes the maximum"),
        Suspect("no-padding", "your pool does not pad"),
        Suspect("no-stride", "your pool ignores its stride and steps by the kernel"),
    ],
)


def _bottleneck() -> Spec:
    layers: list[dict[str, Any]] = [
        {"name": "conv1", "type": "conv", "in": 3, "out": 16, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 16},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "bottleneck", "in": 16, "out": 64, "repeat": 2},
        {"name": "layer2", "type": "bottleneck", "in": 64, "out": 128, "repeat": 2, "stride": 2},
        {"name": "avgpool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 128, "out": 10},
    ]
    return {"name": "bottlenecks", "input": [3, 32, 32], "layers": layers}


def _widths_as_outputs(spec: Spec) -> Spec:
    spec = changed(changed(spec, "layer1", out=16), "layer2", **{"in": 16, "out": 32})
    return changed(spec, "fc", **{"in": 32})


BOTTLENECK = Network(
    _bottleneck,
    [
        Suspect(
            "resnet-version",
            "all shapes and parameters are right, but the stride is at the first 1x1 convolution (stride_at "
            "conv1), as in the paper "
            'and Keras\'s ResNets ("version 1"); the exercise asks for version 1.5, with the stride at the 3x3 convolution',
            "resnet-version",
            lambda spec: changed(spec, "layer2", stride_at="conv1"),
        ),
        Suspect(
            "width-for-out",
            "you give the inner width as `out`; `out` is the number of channels that the block outputs",
            None,
            _widths_as_outputs,
        ),
        Suspect(
            "basic-blocks",
            "your blocks are of type basic, two 3x3 convolutions",
            None,
            lambda spec: changed(spec, "layer1 layer2", type="basic"),
        ),
        Suspect(
            "option-a",
            "your shortcuts pad channels with zeros where the shape changes (option A); the exercise asks for projections",
            None,
            lambda spec: changed(spec, "layer1 layer2", shortcut="pad"),
        ),
        Suspect(
            "bn-epsilon",
            "your batch norms have an eps of 1e-3, Keras's default; here it is 1e-5",
            "bn-epsilon",
            lambda spec: changed(spec, "bn1 layer1 layer2", eps=1e-3),
        ),
        Suspect("no-stride", "`layer2` does not halve the map", None, lambda spec: changed(spec, "layer2", stride=None)),
        Suspect(
            "bias-before-batch-norm",
            "`conv1` has a bias, which the batch norm after it takes away",
            "bias-before-batch-norm",
            lambda spec: changed(spec, "conv1", bias=None),
        ),
    ],
    (19, 22),
)

EXERCISES = {"lenet": LENET, "max_pool": MAX_POOL, "bottleneck": BOTTLENECK}
