"""The exercises of the lesson on the residual block: a convolution, a batch norm, the basic block."""

from typing import Any

import numpy as np

from . import arithmetic
from .arithmetic import State, batch_norm, detached, relu, relu_passing
from .form import Case, Layer, Suspect

Shapes = dict[str, tuple[int, ...]]

NO_BIAS = Suspect("no-bias", "the bias is missing: add bias[c] to every position of channel c", None)
SAME = Suspect(
    "same-padding",
    'you pad by the rule "same", which for stride 2 and an even size puts the one padded row at the bottom and the one column '
    "at the right, so that windows stand a pixel too far down and right. Ours pads `padding` pixels on each side",
    "same-padding",
)
EPSILON = Suspect(
    "bn-epsilon",
    "your batch norm adds an eps of 1e-3, Keras's default, to the variance; here it is 1e-5, PyTorch's",
    "bn-epsilon",
)
VARIANCE = Suspect(
    "bn-running-variance",
    "your running variance is biased: what a pass adds to it is {ratio:.3g} of ours, (n - 1) / n for n = {n} "
    "values of a channel. "
    "Yours divides by n, as Keras's does; PyTorch's running variance divides by n - 1",
    "bn-running-variance",
)
MOMENTUM = Suspect(
    "bn-momentum",
    "a pass moves your running mean {ratio:.3g} times as far as ours: you give the old statistics the share of the new batch. "
    "momentum is the share of the new batch here, as in PyTorch; Keras's is the share of the old",
    "bn-momentum",
)

STATISTICS = Suspect(
    "constant-statistics",
    "the output agrees, but your gradient treats the mean and variance of the batch as constants. They depend on the input, "
    "so the gradient passes through them: no_grad(), detach() and stop_gradient are for the update of the running statistics",
)
SHORTCUT = Suspect(
    "detached-shortcut",
    "the output agrees, but no gradient passes your shortcut: what it adds is cut off from the input by detach(), .data, "
    "no_grad() or stop_gradient. The path back through the shortcut is what a residual block is for",
)
PASSING_RELU = Suspect(
    "relu-passes-all",
    "the output agrees, but your ReLU lets the gradient of negative values pass: it changes them behind the back of the "
    "gradient, as y.data[y < 0] = 0 and y + stop_gradient(relu(y) - y) do. Where the output was cut to 0, the gradient is 0",
)
FROZEN = Suspect(
    "frozen-bn",
    "in training your batch norms normalise by their running statistics, as in evaluation; training takes those of the batch",
    "frozen-bn",
)
GRADIENTS = (  # of blocks; a flaw of a ReLU names those that let all pass
    STATISTICS,
    SHORTCUT,
    SHORTCUT._replace(flaw="detached-projection"),
    PASSING_RELU._replace(flaw="passing-inner passing-last"),
    PASSING_RELU._replace(flaw="passing-inner"),
    PASSING_RELU._replace(flaw="passing-last"),
    FROZEN,
)

KERAS_MOMENTUM = Suspect(
    "bn-momentum-keras",
    "a pass moves your running mean {ratio:.3g} times as far as ours: the new batch has a share of 0.01, "
    "which is Keras's default "
    "(momentum=0.99); PyTorch's is 0.1",
    "bn-momentum",
)


def _conv(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    _, _, kernel, stride, padding = arguments
    weight, bias = state["weight"], None if flaw == "no-bias" else state["bias"]
    pads: Any = padding
    match flaw:
        case "no-padding":
            pads = 0
        case "same-padding":
            pads = "same" if padding else 0
        case "always-same":
            pads = "same"
        case "one-sided-padding":
            pads = (0, 2 * padding, 0, 2 * padding)
        case "top-left-padding":
            pads = (2 * padding, 0, 2 * padding, 0)
        case "flipped-kernel":
            weight = weight[:, :, ::-1, ::-1]
        case "transposed-kernel":
            weight = weight.transpose(0, 1, 3, 2)
        case "no-stride":
            stride = 1
    return arithmetic.conv(x, weight, bias, stride, pads)


CONV = Layer(
    "Conv",
    "layers.Conv",
    [
        Case((3, 4, 3, 1, 1), (2, 3, 9, 8)),
        Case((3, 4, 3, 2, 1), (2, 3, 8, 10)),
        Case((3, 4, 3, 2, 1), (2, 3, 9, 7)),
        Case((2, 5, 5, 2, 2), (2, 2, 10, 11)),
        Case((3, 2, 3, 2, 0), (2, 3, 8, 9)),
    ],
    _conv,
    [
        SAME,
        SAME._replace(flaw="always-same"),
        Suspect("no-padding", "your convolution does not pad: the map shrinks by kernel - 1"),
        Suspect(
            "one-sided-padding", "the size is right, but you pad at the bottom and right alone, as much as belongs on two sides"
        ),
        Suspect(
            "top-left-padding", "the size is right, but you pad at the top and left alone, as much as belongs on two sides"
        ),
        Suspect(
            "flipped-kernel",
            "you flip the kernel, as the convolution of mathematics does. Both frameworks compute the cross-correlation",
        ),
        Suspect("transposed-kernel", "your kernel has height and width swapped"),
        NO_BIAS,
        Suspect("no-stride", "your convolution ignores its stride"),
    ],
)


def _batch_norm(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    _, eps, momentum = arguments
    column = (slice(None), None, None)
    before = dict(state)
    n = x.size // x.shape[1]
    constant = {"constant-statistics": ("mean", "variance"), "constant-mean": ("mean",), "constant-variance": ("variance",)}
    share = {"bn-momentum": 1 - momentum, "bn-momentum-keras": 0.01}.get(flaw, momentum)
    added = 1e-3 if flaw == "bn-epsilon" else eps
    y = batch_norm(
        x, state, "", training, added, share, flaw == "bn-running-variance", flaw == "per-image", constant.get(flaw, ())
    )
    variance = x.var((0, 2, 3)) if training else before["running_var"]
    mean = x.mean((0, 2, 3)) if training else before["running_mean"]
    match flaw:
        case "batch-in-evaluation" if not training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        case "running-in-training":
            mean, variance = before["running_mean"], before["running_var"]
        case "unbiased-normalisation" if training:
            variance = variance * n / (n - 1)
        case "never-updated":
            state.update(before)
        case "standard-deviation":
            state["running_var"] = (1 - momentum) * before["running_var"] + momentum * np.sqrt(variance * n / (n - 1))
    if flaw == "eps-outside":
        scale = 1 / (np.sqrt(variance) + eps)
    elif flaw == "no-eps":
        scale = 1 / np.sqrt(variance)
    else:
        scale = 1 / np.sqrt(variance + eps)
    if flaw in ("batch-in-evaluation", "running-in-training", "unbiased-normalisation", "eps-outside", "no-eps", "no-affine"):
        y = (x - mean[column]) * scale[column]
        if flaw != "no-affine":
            y = y * before["weight"][column] + before["bias"][column]
    return y


BATCH_NORM = Layer(
    "BatchNorm",
    "layers.BatchNorm",
    [Case((3, 1e-5, 0.1), (2, 3, 4, 4)), Case((3, 1e-2, 0.3), (3, 3, 5, 3))],
    _batch_norm,
    [
        EPSILON._replace(
            message="your eps is 1e-3, Keras's default, whatever the argument says; ours is the argument, "
            "1e-5 by default as in "
            "PyTorch"
        ),
        Suspect("eps-outside", "you add eps to the standard deviation; it belongs under the root: sqrt(variance + eps)"),
        Suspect("no-eps", "you add no eps: the divisor is sqrt(variance + eps)"),
        Suspect("no-affine", "the output lacks the weight (scale) and the bias (shift) of the channel"),
        Suspect(
            "batch-in-evaluation",
            "in evaluation you normalise by the mean and variance of the batch; that is for training. "
            "Evaluation takes the running "
            "statistics, so that an image's output does not depend on the others of its batch",
        ),
        Suspect(
            "running-in-training",
            "in training you normalise by the running statistics; that is for evaluation. Training takes those of the batch",
            "frozen-bn",
        ),
        Suspect(
            "unbiased-normalisation",
            "you normalise the batch by the unbiased variance (n - 1). Only the running variance takes that; "
            "the batch itself is "
            "normalised by the biased one",
            "bn-running-variance",
        ),
        Suspect(
            "per-image", "you take the statistics of each image on its own, an instance norm; take them over the whole batch"
        ),
        VARIANCE,
        MOMENTUM,
        KERAS_MOMENTUM,
        Suspect("never-updated", "your running statistics do not change in training"),
        STATISTICS,
        Suspect(
            "constant-mean",
            "the output agrees, but your gradient treats the mean of the batch as a constant. It depends on the input, so the "
            "gradient passes through it: no detach(), no_grad() or stop_gradient there",
        ),
        Suspect(
            "constant-variance",
            "the output agrees, but your gradient treats the variance of the batch as a constant. It depends on the input, so "
            "the gradient passes through it: no detach(), no_grad() or stop_gradient there",
        ),
        Suspect("standard-deviation", "your running variance follows the standard deviation; it is the variance"),
    ],
)

NORM = ("weight", "bias", "running_mean", "running_var")


def norm_options(flaw: Any) -> dict[str, Any]:
    """The options of `batch_norm` for a flaw of a block."""
    options: dict[Any, dict[str, Any]] = {
        "bn-epsilon": {"eps": 1e-3},
        "bn-running-variance": {"biased": True},
        "bn-momentum": {"momentum": 0.9},
        "bn-momentum-keras": {"momentum": 0.01},
        "constant-statistics": {"constant": ("mean", "variance")},
    }
    return options.get(flaw, {})


def _basic(state: State, x: np.ndarray, training: bool, arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    in_channels, out_channels, stride = arguments
    options, training = norm_options(flaw), training and flaw != "frozen-bn"
    pads: Any = "same" if flaw == "same-padding" else 1
    first, second = (1, stride) if flaw == "stride-second" else (stride, 1)
    y = arithmetic.conv(x, state["conv1.weight"], None, first, pads)
    y = batch_norm(y, state, "bn1.", training, **options)
    if "passing-inner" in f"{flaw}":
        y = relu_passing(state, "inner", y)
    elif flaw != "no-inner-relu":
        y = relu(y)
    y = arithmetic.conv(y, state["conv2.weight"], None, second, pads)
    y = batch_norm(y, state, "bn2.", training, **options)
    shortcut = detached(state, "input", x) if flaw == "detached-shortcut" else x
    if stride > 1 or in_channels != out_channels:
        shortcut = arithmetic.conv(shortcut, state["downsample.0.weight"], None, stride)
        if flaw != "projection-without-norm":
            shortcut = batch_norm(shortcut, state, "downsample.1.", training, **options)
        if flaw == "detached-projection":
            shortcut = detached(state, "projection", shortcut)
    if "passing-last" in f"{flaw}":
        return relu_passing(state, "last", y + shortcut)
    match flaw:
        case "no-shortcut":
            return relu(y)
        case "no-last-relu":
            return y + shortcut
        case "relu-before-addition":
            return relu(y) + shortcut
        case "relu-twice":
            return relu(relu(y) + shortcut)
    return relu(y + shortcut)


def _basic_shapes(arguments: tuple[Any, ...], flaw: Any) -> Shapes:
    in_channels, out_channels, stride = arguments
    changes = stride > 1 or in_channels != out_channels or flaw == "always-projects"
    shapes: Shapes = {"conv1.weight": (out_channels, in_channels, 3, 3), "conv2.weight": (out_channels, out_channels, 3, 3)}
    norms = ["bn1", "bn2"]
    if flaw == "conv-bias":
        shapes |= {"conv1.bias": (out_channels,), "conv2.bias": (out_channels,)}
    if changes:
        size = 3 if flaw == "projection-3x3" else 1
        shapes["downsample.0.weight"] = (out_channels, in_channels, size, size)
        norms += [] if flaw == "projection-without-norm" else ["downsample.1"]
        if flaw == "conv-bias":
            shapes["downsample.0.bias"] = (out_channels,)
    return shapes | {f"{name}.{kind}": (out_channels,) for name in norms for kind in NORM}


CONV_BIAS = Suspect(
    "conv-bias",
    "your convolutions have biases; a batch norm after a convolution takes its bias away, so the block has none",
    "bias-before-batch-norm",
)
BASIC = Layer(
    "BasicBlock",
    "blocks.BasicBlock",
    [
        Case((4, 4, 1), (2, 4, 7, 6)),
        Case((4, 6, 2), (2, 4, 8, 10)),
        Case((4, 6, 2), (2, 4, 7, 9)),
        Case((3, 5, 1), (2, 3, 6, 5)),
    ],
    _basic,
    [
        Suspect("no-last-relu", "the ReLU after the addition is missing: your block gives negative values"),
        Suspect("relu-before-addition", "your second ReLU comes before the addition; it belongs after it"),
        Suspect("relu-twice", "you have a ReLU before the addition and one after it; only the second belongs there"),
        Suspect("no-shortcut", "nothing is added: your block has no shortcut, which makes it a block of a plain network"),
        Suspect("no-inner-relu", "there is no ReLU between the two convolutions"),
        Suspect(
            "stride-second",
            "the shapes are right, but your second convolution has the stride; the first has it, so that the "
            "second works on the "
            "smaller map",
        ),
        Suspect(
            "same-padding",
            'your strided 3x3 convolution pads by the rule "same": for an even size, one row at the bottom '
            "and one column at the "
            "right. Ours pads 1 pixel on each side",
            "same-padding",
        ),
        EPSILON,
        VARIANCE,
        MOMENTUM,
        KERAS_MOMENTUM,
        CONV_BIAS,
        Suspect("projection-without-norm", "the projection lacks the batch norm after its 1x1 convolution"),
        Suspect("projection-3x3", "your projection is 3x3; the paper's is 1x1"),
        *GRADIENTS,
        Suspect("always-projects", "your block has a projection where the shape stays; there the shortcut is the identity"),
    ],
    shapes=_basic_shapes,
)

EXERCISES = {"conv": CONV, "batch_norm": BATCH_NORM, "basic": BASIC}
