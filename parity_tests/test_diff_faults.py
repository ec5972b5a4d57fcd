"""`twins.diff` of a chain of thirty layers in both frameworks, with a fault at a layer that chance has chosen, in either."""

from collections import OrderedDict

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

import keras_impl  # noqa: F401
import torch_impl  # noqa: F401  before Keras
import twins

import keras  # isort: skip
import tensorflow as tf  # isort: skip
import torch  # isort: skip
from keras import layers, ops  # isort: skip

pytestmark = pytest.mark.long

ROWS = [  # (kind, options); names are the kind and its number
    ("scale", {"factor": 1 / 64, "offset": -0.5}),
    ("conv", {"out": 8, "kernel": 5, "stride": 2}), ("bn", {}), ("relu", {}),
    ("lrn", {}), ("max", {}),
    ("conv", {"out": 8, "dilation": 2}), ("bn", {}), ("relu", {}),
    ("average", {}), ("pre", {}), ("up", {}),
    ("conv", {"out": 12, "stride": 2}), ("bn", {}), ("relu", {}),
    ("conv", {"out": 12, "groups": 4, "bias": True}), ("relu", {}),
    ("lrn", {}), ("pre", {}), ("max", {}),
    ("conv", {"out": 12, "dilation": 3, "bias": True}), ("relu", {}),
    ("conv", {"out": 16, "groups": 2}), ("bn", {}), ("relu", {}),
    ("pre", {}), ("up", {}), ("average", {}),
    ("flatten", {}), ("linear", {"out": 10}), ("relu", {}), ("linear", {"out": 5}),
]  # fmt: skip
PIXELS = 40


def named(rows):
    """[(name, kind, options)]."""
    kinds = [kind for kind, _ in rows]
    return [(f"{kind}{kinds[: place + 1].count(kind)}", kind, options) for place, (kind, options) in enumerate(rows)]


class Scale(nn.Module):
    def __init__(self, factor, offset):
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x):
        return x * self.factor + self.offset


class Same(nn.Module):
    """A convolution padded as TensorFlow's `same`."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        total = max((-(-x.shape[2] // 2) - 1) * 2 + self.conv.kernel_size[0] - x.shape[2], 0)
        ends = (total // 2, total - total // 2)
        return self.conv(functional.pad(x, ends * 2))


class Pre(nn.Module):
    """x + conv(relu(bn(x))), or relu(bn(conv(x)))."""

    def __init__(self, channels, post):
        super().__init__()
        self.bn, self.conv, self.post = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1), post

    def forward(self, x):
        return x + (torch.relu(self.bn(self.conv(x))) if self.post else self.conv(torch.relu(self.bn(x))))


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def in_torch(rows):
    """The chain in PyTorch."""
    torch.manual_seed(0)
    parts, channels, side = OrderedDict(), 3, PIXELS
    for name, kind, o in named(rows):
        kernel, dilation = o.get("kernel", 3), o.get("dilation", 1)
        if kind == "conv":
            pad = 0 if o.get("same") else dilation * (kernel - 1) // 2
            part = nn.Conv2d(
                channels, o["out"], kernel, o.get("stride", 1), pad, dilation, o.get("groups", 1), o.get("bias", False)
            )
            part = Same(part) if o.get("same") else part
        elif kind == "linear":
            part = nn.Linear(channels * side**2, o["out"])
        else:
            part = {
                "scale": lambda o=o: Scale(**o),
                "bn": lambda o=o, c=channels: nn.BatchNorm2d(c, o.get("eps", 1e-5)),
                "relu": lambda o=o: nn.Identity() if o.get("out") else nn.ReLU(),
                "lrn": lambda o=o: nn.LocalResponseNorm(5, o.get("alpha", 0.5), 0.75, 1.0),
                "max": lambda o=o: nn.MaxPool2d(3, 2, ceil_mode=o.get("ceil", True)),
                "average": lambda o=o: nn.AvgPool2d(3, 1, 1, count_include_pad=o.get("count", True)),
                "pre": lambda o=o, c=channels: Pre(c, o.get("post", False)),
                "up": lambda o=o: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=o.get("corners", False)),
                "flatten": lambda o=o: ChannelsLast() if o.get("last") else nn.Flatten(),
            }[kind]()
        parts[name] = part
        with torch.no_grad():
            shape = nn.Sequential(OrderedDict(parts))(torch.zeros(2, 3, PIXELS, PIXELS)).shape
        channels, side = shape[1], shape[2] if len(shape) > 2 else 1
    module = nn.Sequential(parts)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module.eval()


class Lrn(layers.Layer):
    """TensorFlow's, whose alpha is that of a sum."""

    def __init__(self, alpha, **options):
        super().__init__(**options)
        self.alpha = alpha

    def call(self, x):
        return tf.nn.local_response_normalization(x, 2, 1.0, self.alpha / 5, 0.75)


class Resize(layers.Layer):
    """TensorFlow's older resizing."""

    def __init__(self, corners, **options):
        super().__init__(**options)
        self.corners = corners

    def call(self, x):
        return tf.compat.v1.image.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=self.corners)


def in_keras(rows):
    """The chain in Keras."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((PIXELS, PIXELS, 3))
    for name, kind, o in named(rows):
        kernel, dilation, stride = o.get("kernel", 3), o.get("dilation", 1), o.get("stride", 1)
        if kind == "conv":
            explicit = stride > 1 and not o.get("same")
            x = layers.ZeroPadding2D(kernel // 2)(x) if explicit else x
            x = layers.Conv2D(
                o["out"], kernel, stride, "valid" if explicit else "same", dilation_rate=dilation, groups=o.get("groups", 1),
                use_bias=o.get("bias", False), name=name,
            )(x)  # fmt: skip
        elif kind == "max":
            x = ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf) if o.get("ceil", True) else x
            x = layers.MaxPooling2D(3, 2, name=name)(x)
        elif kind == "average":
            x = layers.ZeroPadding2D(1)(x) if o.get("count", True) else x
            x = layers.AveragePooling2D(3, 1, "valid" if o.get("count", True) else "same", name=name)(x)
        elif kind == "up":
            old = "corners" in o
            x = Resize(o["corners"], name=name)(x) if old else layers.UpSampling2D(2, interpolation="bilinear", name=name)(x)
        elif kind == "pre":
            conv = layers.Conv2D(x.shape[-1], 3, padding="same", name=f"{name}_conv")
            bn, act = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn"), layers.ReLU(name=f"{name}_relu")
            x = layers.Add(name=f"{name}_add")([x, act(bn(conv(x))) if o.get("post") else conv(act(bn(x)))])
        elif kind == "flatten":
            x = layers.Flatten(name=name)(x if o.get("last") else layers.Permute((3, 1, 2))(x))
        elif kind == "relu" and o.get("out"):
            continue
        else:
            x = {
                "scale": lambda o=o, name=name: layers.Rescaling(o["factor"], o["offset"], name=name),
                "bn": lambda o=o, name=name: layers.BatchNormalization(epsilon=o.get("eps", 1e-5), name=name),
                "relu": lambda o=o, name=name: layers.ReLU(name=name),
                "lrn": lambda o=o, name=name: Lrn(o.get("alpha", 0.5), name=name),
                "linear": lambda o=o, name=name: layers.Dense(o["out"], name=name),
            }[kind]()(x)
    return keras.Model(image, x)


FAULTS = {  # name: (kind; an option that the layer has and its values; what is changed; the attribute to be named)
    "lrn alpha": ("lrn", {}, {"alpha": 0.1}, "alpha"),
    "align_corners": ("up", {}, {"corners": True}, "align_corners"),
    "half_pixel": ("up", {}, {"corners": False}, "half_pixel"),  # in Keras alone
    "ceil_mode": ("max", {}, {"ceil": False}, "padding"),
    "flatten order": ("flatten", {}, {"last": True}, "flatten order"),
    "count_padding": ("average", {}, {"count": False}, "count_padding"),
    "scaling": ("scale", {}, {"factor": 1 / 32}, "factor"),
    "offset": ("scale", {}, {"offset": 0.5}, "offset"),
    "epsilon": ("bn", {}, {"eps": 1e-3}, "epsilon"),
    "dilation": ("conv", {"dilation": (2, 3)}, {"dilation": 1}, "dilation"),
    "groups": ("conv", {"groups": (2, 4)}, {"groups": 1}, "groups"),
    "no relu": ("relu", {}, {"out": True}, "left out"),
    "bias": ("conv", {"bias": (False, None)}, {"bias": True}, "bias"),
    "same": ("conv", {"stride": (2,)}, {"same": True}, "padding"),
    "post": ("pre", {}, {"post": True}, "place"),
}


def drawn(number, seed):
    """[(fault, place in `ROWS`, whether the network with the fault is Keras's)]: each fault once, then others at random."""
    generator = np.random.default_rng(seed)
    faults = list(FAULTS)
    faults += [faults[i] for i in generator.choice(len(faults), number - len(faults), replace=False)]
    found = []
    for fault in faults:
        kind, options, _, _ = FAULTS[fault]
        fits = [
            place
            for place, (each, own) in enumerate(ROWS)
            if each == kind and all(own.get(key) in values for key, values in options.items())
        ]
        of_keras = fault == "half_pixel" or bool(generator.integers(2))
        found.append((fault, int(generator.choice(fits)), of_keras))
    return found


def changed(place, change):
    """`ROWS` with one changed."""
    return [(kind, options | change if i == place else options) for i, (kind, options) in enumerate(ROWS)]


def loaded(module, model):
    """Put PyTorch's weights into Keras's layers, rows of the kernel after a flattened map as they are."""
    arrays = {name: part for name, part in module.named_modules() if name}
    for layer in model.layers:
        part = arrays.get(layer.name.replace("_", "."))
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            names = ["weight", "bias", "running_mean", "running_var"]
            own = [getattr(part, name).detach().numpy() for name in names if getattr(part, name, None) is not None]
            own[0] = own[0].transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[own[0].ndim])
            layer.set_weights(own)


def compared(rows_of_torch, rows_of_keras, of_keras=True, own=False):
    """Compare the network that has the fault, as B, with the other."""
    module, model = in_torch(rows_of_torch), in_keras(rows_of_keras)
    if own:
        loaded(module, model)
    nets = (module, model) if of_keras else (model, module)
    return twins.diff(*nets, input=(3, PIXELS, PIXELS), weights="own" if own else "copy")


def told(report):
    return [((f.operations[1] or f.operations[0] or "").split(".")[0], f.attribute) for f in report.findings]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("of_keras", [False, True])
def test_the_chain_is_sound(of_keras, own):
    report = compared(ROWS, ROWS, of_keras, own)
    assert told(report) == [] and report.outputs < 1e-5 and report.same


@pytest.mark.parametrize(("fault", "place", "of_keras"), drawn(25, seed=18))
def test_a_fault_by_chance_is_named(fault, place, of_keras):
    *_, change, attribute = FAULTS[fault]
    rows = changed(place, change)
    report = compared(ROWS if of_keras else rows, rows if of_keras else ROWS, of_keras, own=fault == "flatten order")
    name = named(ROWS)[place + (fault == "flatten order")][0]
    assert [each for _, each in told(report)] == [attribute], told(report)
    assert name in report.findings[0].operations[1 if report.findings[0].operations[1] else 0]
