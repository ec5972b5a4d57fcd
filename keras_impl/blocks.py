"""Residual blocks. A twin: the same text as in the other package, except for the words listed in CONTRIBUTING.md."""

import keras

from .layers import BatchNorm, Chain, Conv, Identity, PadChannels, Padding, Tensor, relu


class BasicBlock(keras.Layer):
    """Two 3x3 convolutions and a shortcut: He et al. 2015 (arXiv:1512.03385), figure 5 left.

    `dilation` holds for both convolutions, `first_dilation` for the first alone: dilated residual networks, Yu et al. 2017
    (arXiv:1705.09914), section 2. `padding` is "same", or None to pad all sides equally. `shortcut`: see `downsample`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, padding: Padding | None = None, dilation: int = 1,
        first_dilation: int | None = None, bias: bool = False, norm: bool = True, eps: float = 1e-5, momentum: float = 0.1,
        shortcut: str = "projection",
    ) -> None:  # fmt: skip
        super().__init__()
        first_dilation = first_dilation or dilation
        self.conv1 = conv(in_channels, out_channels, 3, stride, padding, first_dilation, bias)
        self.bn1 = BatchNorm(out_channels, eps, momentum) if norm else Identity()
        self.conv2 = conv(out_channels, out_channels, 3, 1, padding, dilation, bias)
        self.bn2 = BatchNorm(out_channels, eps, momentum) if norm else Identity()
        self.residual = shortcut not in ("none", "unused")
        if shortcut != "none":
            self.downsample = downsample(in_channels, out_channels, stride, shortcut, padding, bias, norm, eps, momentum)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.residual:
            y += self.downsample(x)
        return relu(y)


class Bottleneck(keras.Layer):
    """1x1, 3x3 and 1x1 convolutions, a quarter as wide inside, and a shortcut: He et al. 2015, figure 5 right.

    The stride is at the 3x3 convolution, as in torchvision's ResNets ("version 1.5"); the paper has it at the first 1x1
    convolution, `stride_at="conv1"`. `first_dilation`, if given, replaces `dilation`, that of the 3x3 convolution.
    `width` sets the channels inside: wide ResNets, Zagoruyko and Komodakis 2016 (arXiv:1605.07146). `groups` divide the 3x3
    convolution: ResNeXt, Xie et al. 2017 (arXiv:1611.05431).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, padding: Padding | None = None, dilation: int = 1,
        first_dilation: int | None = None, bias: bool = False, norm: bool = True, eps: float = 1e-5, momentum: float = 0.1,
        shortcut: str = "projection", stride_at: str = "conv2", width: int | None = None, groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        width = width or out_channels // 4
        first, second = (stride, 1) if stride_at == "conv1" else (1, stride)
        self.conv1 = conv(in_channels, width, 1, first, padding, 1, bias)
        self.bn1 = BatchNorm(width, eps, momentum) if norm else Identity()
        self.conv2 = conv(width, width, 3, second, padding, first_dilation or dilation, bias, groups)
        self.bn2 = BatchNorm(width, eps, momentum) if norm else Identity()
        self.conv3 = conv(width, out_channels, 1, 1, padding, 1, bias)
        self.bn3 = BatchNorm(out_channels, eps, momentum) if norm else Identity()
        self.residual = shortcut not in ("none", "unused")
        if shortcut != "none":
            self.downsample = downsample(in_channels, out_channels, stride, shortcut, padding, bias, norm, eps, momentum)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.residual:
            y += self.downsample(x)
        return relu(y)


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: Padding | None = None, dilation: int = 1,
    bias: bool = False, groups: int = 1,
) -> Conv:  # fmt: skip
    """A convolution that changes the size of the map only by its stride; `padding` is "same" or None, equal on all sides."""
    pixels = dilation * (kernel - 1) // 2
    return Conv(in_channels, out_channels, kernel, stride, pixels if padding is None else padding, dilation, bias, groups)


def downsample(
    in_channels: int, out_channels: int, stride: int, shortcut: str, padding: Padding | None = None, bias: bool = False,
    norm: bool = True, eps: float = 1e-5, momentum: float = 0.1,
) -> keras.Layer:  # fmt: skip
    """The shortcut of a block: the identity if the shape stays, otherwise according to `shortcut`:

    - "projection": 1x1 convolution and batch norm (He et al. 2015, section 3.3, option B); "projection3x3" with 3x3;
    - "conv": 1x1 convolution with bias, no batch norm;
    - "pad": no weights, see `PadChannels` (option A);
    - "unused": the weights of a projection that the block does not run, as in the authors' DRN-C-58.
    """
    if stride == 1 and in_channels == out_channels:
        return Identity()
    if shortcut == "pad":
        return PadChannels(in_channels, out_channels, stride)
    if shortcut == "conv":
        return Chain(conv(in_channels, out_channels, 1, stride, padding, 1, True))
    kernel = 3 if shortcut == "projection3x3" else 1
    layers = [conv(in_channels, out_channels, kernel, stride, padding, 1, bias)]
    if norm:
        layers.append(BatchNorm(out_channels, eps, momentum))
    return Chain(*layers)
