"""Networks of `keras.applications` ported to PyTorch by hand: epsilons, paddings, biases and strides are Keras's."""

import torch
from torch import nn
from torch.nn import functional


def same(x, kernel, stride, value=0.0):
    """Maps padded as TensorFlow's `same` pads them: to ceil(size / stride) windows, the odd pixel at the bottom and right."""
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
    return functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class ConvNorm(nn.Module):
    """A convolution with `same` padding and a batch norm, and a function after them."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, bias=False, eps=1e-3, act=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
        self.bn, self.act = nn.BatchNorm2d(outputs, eps), act

    def forward(self, x):
        x = self.bn(self.conv(same(x, self.conv.kernel_size[0], self.conv.stride[0])))
        return self.act(x) if self.act else x


def vgg16(classes, pixels):
    """`keras.applications.VGG16`; its flattened map is in PyTorch's order."""
    parts, inputs = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            parts += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        parts.append(nn.MaxPool2d(2))
    parts += [nn.Flatten(), nn.Linear(512 * (pixels // 32) ** 2, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(4096, classes))


class Bottleneck(nn.Module):
    """A block of `keras.applications.ResNet50`: biases everywhere, the stride at the first convolution."""

    def __init__(self, inputs, width, stride, project):
        super().__init__()
        setting = {"bias": True, "eps": 1.001e-5}
        self.reduce = ConvNorm(inputs, width, 1, stride, act=torch.relu, **setting)
        self.conv = ConvNorm(width, width, 3, act=torch.relu, **setting)
        self.expand = ConvNorm(width, 4 * width, 1, **setting)
        self.shortcut = ConvNorm(inputs, 4 * width, 1, stride, **setting) if project else nn.Identity()

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.expand(self.conv(self.reduce(x))))


class Head(nn.Module):
    """The mean of a map, a linear layer and a softmax."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        return torch.softmax(self.fc(x.mean((2, 3))), 1)


def stem(eps):
    """The first layers of `keras.applications`' ResNets and DenseNets, whose max pool comes after a ReLU."""
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=eps is None)
    return [conv, nn.BatchNorm2d(64, 1.001e-5), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def resnet50(classes, pixels):
    """`keras.applications.ResNet50`."""
    parts, inputs = stem(None), 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            parts.append(Bottleneck(inputs, width, 1 if number else stride, not number))
            inputs = 4 * width
    return nn.Sequential(*parts, Head(inputs, classes))


class Dense(nn.Module):
    """A layer of a dense block: its result is put after what it was given."""

    def __init__(self, inputs):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs, 1.001e-5), nn.Conv2d(inputs, 128, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(128, 1.001e-5), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(functional.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.bn2(y)))], 1)


def densenet121(classes, pixels):
    """`keras.applications.DenseNet121`."""
    parts, width = stem(1.001e-5), 64
    for place, count in enumerate((6, 12, 24, 16)):
        if place:
            parts += [nn.BatchNorm2d(width, 1.001e-5), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
        parts += [Dense(width + 32 * number) for number in range(count)]
        width += 32 * count
    return nn.Sequential(*parts, nn.BatchNorm2d(width, 1.001e-5), nn.ReLU(), Head(width, classes))


class Inverted(nn.Module):
    """An inverted residual block of MobileNetV2 or, with a squeezed width, of EfficientNet."""

    def __init__(self, inputs, outputs, kernel, stride, expansion, act, last=None, squeeze=False):
        super().__init__()
        width = inputs * expansion
        self.expand = ConvNorm(inputs, width, 1, act=act) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(width, width, kernel, stride, width, act=act)
        self.squeeze, self.excite = (
            (nn.Conv2d(width, inputs // 4, 1), nn.Conv2d(inputs // 4, width, 1)) if squeeze else (None, None)
        )
        self.project, self.residual = ConvNorm(width, outputs, 1), stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        if self.squeeze is not None:
            y = y * torch.sigmoid(self.excite(functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.project(y)
        return x + y if self.residual else y


def mobilenet_v2(classes, pixels):
    """`keras.applications.MobileNetV2`."""
    act = functional.relu6
    parts, inputs = [ConvNorm(3, 32, 3, 2, act=act), Inverted(32, 16, 3, 1, 1, act)], 16
    for width, count, stride in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)):
        for number in range(count):
            parts.append(Inverted(inputs, width, 3, 1 if number else stride, 6, act))
            inputs = width
    return nn.Sequential(*parts, ConvNorm(inputs, 1280, 1, act=act), Head(1280, classes))


class Scaled(nn.Module):
    """Pixels from 0 to 255 to numbers from 0 to 1."""

    def forward(self, x):
        return x / 255


def efficientnet_b0(classes, pixels):
    """`keras.applications.EfficientNetB0` without published weights, whose normalisation of the input does nothing."""
    act, inputs = functional.silu, 32
    parts = [Scaled(), ConvNorm(3, 32, 3, 2, act=act)]
    rows = (
        (16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6),
        (320, 1, 3, 1, 6),
    )  # fmt: skip
    for width, count, kernel, stride, expansion in rows:
        for number in range(count):
            parts.append(Inverted(inputs, width, kernel, 1 if number else stride, expansion, act, squeeze=True))
            inputs = width
    return nn.Sequential(*parts, ConvNorm(inputs, 1280, 1, act=act), nn.Dropout(0.2), Head(1280, classes))


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, and a batch norm."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, 1e-3)

    def forward(self, x):
        return self.bn(self.pointwise(self.depthwise(x)))


class Xception(nn.Module):
    """A block of Xception: separable convolutions of these widths; with a stride, a pool and a projection."""

    def __init__(self, inputs, widths, stride=1, first=True):
        super().__init__()
        self.first = first
        self.layers = nn.ModuleList(map(Separable, (inputs, *widths), widths))
        self.shortcut = ConvNorm(inputs, widths[-1], 1, 2) if stride == 2 else None

    def forward(self, x):
        y = x
        for place, layer in enumerate(self.layers):
            y = layer(functional.relu(y) if place or self.first else y)
        if self.shortcut is None:
            return y + x
        return functional.max_pool2d(same(y, 3, 2, float("-inf")), 3, 2) + self.shortcut(x)


def xception(classes, pixels):
    """`keras.applications.Xception`."""
    parts = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 64, 1)):
        parts += [nn.Conv2d(inputs, outputs, 3, stride, bias=False), nn.BatchNorm2d(outputs, 1e-3), nn.ReLU()]
    parts.append(Xception(64, (128, 128), 2, first=False))
    parts += [Xception(128, (256, 256), 2), Xception(256, (728, 728), 2)]
    parts += [Xception(728, (728, 728, 728)) for _ in range(8)]
    parts += [Xception(728, (728, 1024), 2), Separable(1024, 1536), nn.ReLU(), Separable(1536, 2048), nn.ReLU()]
    return nn.Sequential(*parts, Head(2048, classes))


# {Keras's name: (the module, the fewest pixels that it takes here)}
PORTS = {
    "VGG16": (vgg16, 64),
    "ResNet50": (resnet50, 64),
    "DenseNet121": (densenet121, 64),
    "MobileNetV2": (mobilenet_v2, 96),
    "EfficientNetB0": (efficientnet_b0, 64),
    "Xception": (xception, 96),
}
