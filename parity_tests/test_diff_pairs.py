"""`twins.diff` of one network written in PyTorch and in Keras: sound, and with faults put into the Keras one."""

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

import keras_impl  # noqa: F401
import torch_impl  # noqa: F401  before Keras
import twins

import keras  # isort: skip
import torch  # isort: skip
from keras import layers, ops  # isort: skip

pytestmark = pytest.mark.long


class Net(nn.Module):
    """Stem, residual block, dilated and grouped convolutions, two branches, an upsampled map, and a head of two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.down, self.down_bn = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.norm, self.group = nn.LayerNorm(16), nn.GroupNorm(4, 16)
        self.flat = nn.Linear(16 * 6 * 6, 16)
        self.out = nn.Linear(16, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x):
        x = self.pool(functional.relu(self.bn(self.stem(x))))
        y = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(y)) + self.down_bn(self.down(x)))
        x = functional.leaky_relu(self.dilated(x), 0.1)
        x = functional.silu(self.grouped(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.group(self.average(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.norm(functional.gelu(self.flat(torch.flatten(x, 1))))
        return torch.softmax(self.out(x), 1)


def port(*faults):
    """`Net` in Keras, with faults."""

    def pick(name, right, wrong):
        return wrong if name in faults else right

    def bn(x, name):
        eps = pick(f"{name} eps", 1e-5, 1e-3)
        return layers.BatchNormalization(epsilon=eps, momentum=0.9, scale=pick(f"{name} scale", True, False), name=name)(x)

    def act(x, name, function):
        function = pick(f"no {name}", pick(f"{name} function", function, "tanh" if function != "tanh" else "relu"), None)
        return layers.Activation(function, name=name)(x) if function else x

    image = x = keras.Input((24, 24, 3), name="image")
    if "scaled" in faults:
        x = layers.Rescaling(1 / 255, name="scaled")(x)
    if "bgr" in faults:
        x = x[..., ::-1]
    if "stem same" in faults:
        x = layers.Conv2D(8, 7, 2, "same", use_bias=False, name="stem")(x)
    else:
        x = layers.ZeroPadding2D(pick("stem pad", 3, ((2, 4), (2, 4))))(x)
        x = layers.Conv2D(8, 7, 2, use_bias=False, name="stem")(x)
    x = act(bn(x, "bn"), "relu", "relu")
    if "pool same" in faults:
        x = layers.MaxPooling2D(3, 2, "same", name="pool")(x)
    else:
        x = layers.ZeroPadding2D(1)(x)
        x = pick("pool average", layers.MaxPooling2D, layers.AveragePooling2D)(3, 2, name="pool")(x)
    first, second = pick("stride", (1, 2), (2, 1))
    y = layers.Conv2D(16, 1, first, use_bias="conv1 bias" in faults, name="conv1")(x)
    y = act(bn(y, "bn1"), "relu1", "relu")
    y = layers.ZeroPadding2D(1)(y)
    y = bn(layers.Conv2D(16, 3, second, use_bias=False, name="conv2")(y), "bn2")
    z = bn(layers.Conv2D(16, 1, 2, use_bias=False, name="down")(x), "down_bn")
    if "no shortcut" in faults:
        x = y
    elif "relu before sum" in faults:
        x = layers.Add(name="sum")([act(y, "relu2", "relu"), z])
    else:
        x = pick("product", layers.Add, layers.Multiply)(name="sum")([y, z])
    if "relu before sum" not in faults:
        x = act(x, "relu2", "relu")
    x = layers.Conv2D(16, 3, padding="same", dilation_rate=pick("dilation", 2, 1), name="dilated")(x)
    x = layers.LeakyReLU(negative_slope=pick("slope", 0.1, 0.3), name="leaky")(x)
    x = layers.Conv2D(16, 3, padding="same", groups=4, use_bias="no bias" not in faults, name="grouped")(x)
    x = act(x, "silu", "silu")
    branches = [layers.Conv2D(8, 1, name="left")(x), layers.Conv2D(8, 3, padding="same", name="right")(x)]
    x = layers.Concatenate(name="concat")(branches[:: pick("concat order", 1, -1)])
    if "count" in faults:
        x = layers.AveragePooling2D(3, 1, "same", name="average")(x)
    elif "max" in faults:
        x = layers.MaxPooling2D(3, 1, "same", name="average")(x)
    else:
        x = layers.AveragePooling2D(3, 1, name="average")(layers.ZeroPadding2D(1)(x))
    x = layers.GroupNormalization(pick("groups", 4, 8), epsilon=pick("group eps", 1e-5, 1e-3), name="group")(x)
    pooled = pick("global max", layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)(keepdims=True, name="global")(x)
    gate = layers.Conv2D(16, 1, name="gate")(pooled)
    x = layers.Multiply(name="gated")([x, act(gate, "sigmoid", pick("hard", "sigmoid", "hard_sigmoid"))])
    x = layers.UpSampling2D(2, interpolation=pick("nearest", "bilinear", "nearest"), name="upsample")(x)
    x = layers.Dense(16, name="flat")(layers.Flatten()(x))
    x = layers.Activation(lambda x: ops.gelu(x, approximate="tanh gelu" in faults), name="gelu")(x)
    if "no norm" not in faults:
        x = layers.LayerNormalization(epsilon=pick("layer eps", 1e-5, 1e-3), name="norm")(x)
    x = layers.Dense(5, name="out")(x)
    x = act(x, "softmax", "softmax")
    if "softmax twice" in faults:
        x = layers.Softmax(name="again")(x)
    return keras.Model(image, x)


def compared(*faults, **options):
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    return twins.diff(Net().eval(), port(*faults), input=(3, 24, 24), **options)


def told(report):
    """[(the last part of an operation's name in B, else in A; attribute)]."""
    return [((f.operations[1] or f.operations[0] or "").split("/")[-1], f.attribute) for f in report.findings]


def test_a_sound_port_is_the_same_function():
    report = compared()
    assert told(report) == [] and report.outputs < 1e-6 and report.same


FAULTS = {  # fault: (operation in B, or in A where B has none; attribute)
    "scaled": ("scaled", "added"),
    "bgr": ("stem", "order of elements"),
    "stem same": ("stem", "padding"),
    "stem pad": ("stem", "padding"),
    "bn eps": ("bn", "epsilon"),
    "bn1 eps": ("bn1", "epsilon"),
    "bn2 eps": ("bn2", "epsilon"),
    "down_bn eps": ("down_bn", "epsilon"),
    "bn scale": ("bn", "scale"),
    "bn2 scale": ("bn2", "scale"),
    "no relu": ("relu", "left out"),
    "no relu1": ("relu#2", "left out"),
    "no relu2": ("relu#3", "left out"),
    "relu function": ("relu", "function"),
    "relu1 function": ("relu1", "function"),
    "relu2 function": ("relu2", "function"),
    "pool same": ("pool", "padding"),
    "pool average": ("pool", "how"),
    "conv1 bias": ("conv1", "bias"),
    "no bias": ("grouped", "bias"),
    "no shortcut": ("add", "left out"),
    "relu before sum": ("relu2", "place"),
    "product": ("sum", "operation"),
    "dilation": ("dilated", "dilation"),
    "slope": ("leaky", "slope"),
    "no silu": ("silu", "left out"),
    "silu function": ("silu", "function"),
    "concat order": ("concat", "operands"),
    "count": ("average", "count_padding"),
    "max": ("average", "how"),
    "groups": ("group", "groups"),
    "group eps": ("group", "epsilon"),
    "global max": ("global", "operation"),
    "no sigmoid": ("sigmoid", "left out"),
    "sigmoid function": ("sigmoid", "function"),
    "hard": ("sigmoid", "function"),
    "nearest": ("upsample", "how"),
    "tanh gelu": ("gelu", "function"),
    "layer eps": ("norm", "epsilon"),
    "no norm": ("norm", "left out"),
    "no softmax": ("softmax", "left out"),
    "softmax twice": ("", "added"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    report = compared(fault)
    assert [attribute for _, attribute in told(report)] == [FAULTS[fault][1]], told(report)
    assert FAULTS[fault][0] in told(report)[0][0]


def test_the_stride_at_another_convolution_is_the_two_resnets():
    findings = compared("stride").findings
    assert [f.attribute for f in findings] == ["stride", "stride"]
    assert {f.trap for f in findings} == {"resnet-version"}


def test_three_faults_are_three_findings():
    report = compared("bn eps", "count", "tanh gelu")
    assert [attribute for _, attribute in told(report)] == ["epsilon", "count_padding", "function"]


def test_b_keeps_its_weights():
    model = port()
    before = [np.array(weight) for weight in model.weights]
    twins.diff(Net().eval(), model, input=(3, 24, 24))
    assert all(np.array_equal(old, new) for old, new in zip(before, model.weights, strict=True))
