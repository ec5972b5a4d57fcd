"""Residual units of He et al. 2016. A twin: the same text as in the other package, except for the words in CONTRIBUTING.md."""

import keras

from .blocks import conv, downsample
from .layers import BatchNorm, Conv, Dropout, Identity, ReLU, Tensor, relu, sigmoid


class PreActBasic(keras.Layer):
    """Two 3x3 convolutions, each after a batch norm and ReLU: He et al. 2016 (arXiv:1603.05027), figure 4(e).

    A projection, a 1x1 convolution without batch norm, takes the output of the first ReLU (the paper's appendix). The first
    block of a network has no batch norm and ReLU of its own, `first_activation=False`: those after the network's first
    convolution serve both its paths. `shortcut` is "projection" or "pad", see `blocks.downsample`. `norm=False` leaves out the
    batch norm after a convolution, which then has a bias: see `shared.fold`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, norm: bool = True, shortcut: str = "projection",
        first_activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first_activation = first_activation
        self.bn1 = BatchNorm(in_channels) if first_activation else Identity()
        self.conv1 = conv(in_channels, out_channels, 3, stride, bias=not norm)
        self.bn2 = BatchNorm(out_channels) if norm else Identity()
        self.conv2 = conv(out_channels, out_channels, 3)
        self.projects = shortcut == "projection" and (stride > 1 or in_channels != out_channels)
        self.downsample = downsample(in_channels, out_channels, stride, shortcut, norm=False)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        y = relu(self.bn1(x)) if self.first_activation else x
        shortcut = self.downsample(y if self.projects else x)
        y = self.conv1(y)
        y = self.conv2(relu(self.bn2(y)))
        return y + shortcut


class PreActBottleneck(keras.Layer):
    """1x1, 3x3 and 1x1 convolutions, a quarter as wide inside, each after a batch norm and ReLU; otherwise as `PreActBasic`.

    The stride is at the first 1x1 convolution, as in the paper's bottlenecks and the authors' code.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, norm: bool = True, shortcut: str = "projection",
        first_activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        width = out_channels // 4
        self.first_activation = first_activation
        self.bn1 = BatchNorm(in_channels) if first_activation else Identity()
        self.conv1 = conv(in_channels, width, 1, stride, bias=not norm)
        self.bn2 = BatchNorm(width) if norm else Identity()
        self.conv2 = conv(width, width, 3, bias=not norm)
        self.bn3 = BatchNorm(width) if norm else Identity()
        self.conv3 = conv(width, out_channels, 1)
        self.projects = shortcut == "projection" and (stride > 1 or in_channels != out_channels)
        self.downsample = downsample(in_channels, out_channels, stride, shortcut, norm=False)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        y = relu(self.bn1(x)) if self.first_activation else x
        shortcut = self.downsample(y if self.projects else x)
        y = self.conv1(y)
        y = self.conv2(relu(self.bn2(y)))
        y = self.conv3(relu(self.bn3(y)))
        return y + shortcut


class ResidualUnit(keras.Layer):
    """The variants of the basic block that He et al. 2016 compare: the order of its layers, and its shortcut.

    `activation` is the order of figure 4: "original" (a), "bn_after_addition" (b), "relu_before_addition" (c) or
    "relu_only_preactivation" (d); (e) is `PreActBasic`.

    `shortcut` is one of table 1 and figure 2. "pad" is the identity, see `blocks.downsample`, and "dropout" drops half of it;
    "conv" is a 1x1 convolution in every block. A gate g(x), the sigmoid of a 1x1 convolution whose bias starts at -6, scales
    the shortcut by 1 - g(x) ("shortcut_gate") and also the residual by g(x) ("exclusive_gate"). `shortcut_scale` and
    `residual_scale` are constant factors of the two. The paper does not say how the gate follows a block that changes the
    shape: here its convolution has the block's stride and channels. `norm=False` leaves out the batch norm after a
    convolution, which then has a bias: see `shared.fold`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, norm: bool = True, activation: str = "original",
        shortcut: str = "pad", shortcut_scale: float = 1, residual_scale: float = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.shortcut_scale, self.residual_scale = activation, shortcut_scale, residual_scale
        self.relu = ReLU()
        self.conv1 = conv(in_channels, out_channels, 3, stride, bias=not norm)
        self.bn1 = BatchNorm(out_channels) if norm else Identity()
        last_norm = norm or activation == "bn_after_addition"
        self.conv2 = conv(out_channels, out_channels, 3, bias=not last_norm)
        self.bn2 = BatchNorm(out_channels) if last_norm else Identity()
        gated = shortcut in ("shortcut_gate", "exclusive_gate")
        self.gate = Conv(in_channels, out_channels, 1, stride) if gated else None
        self.exclusive = shortcut == "exclusive_gate"
        self.dropout = Dropout(0.5) if shortcut == "dropout" else Identity()
        if shortcut == "conv":
            self.downsample = Conv(in_channels, out_channels, 1, stride)
        else:
            self.downsample = downsample(in_channels, out_channels, stride, "pad")

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        y = self.relu(x) if self.activation == "relu_only_preactivation" else x
        y = relu(self.bn1(self.conv1(y)))
        y = self.conv2(y)
        if self.activation != "bn_after_addition":
            y = self.bn2(y)
        if self.activation == "relu_before_addition":
            y = relu(y)
        y = self.add(x, y)
        if self.activation == "bn_after_addition":
            y = self.bn2(y)
        return relu(y) if self.activation in ("original", "bn_after_addition") else y

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the shortcut from x and of the residual y, each scaled."""
        shortcut = self.downsample(self.dropout(x))
        if self.gate is not None:
            gate = sigmoid(self.gate(x))
            shortcut = (1 - gate) * shortcut
            if self.exclusive:
                y = gate * y
        return self.shortcut_scale * shortcut + self.residual_scale * y
