"""Inception modules. A twin: the same text as in the other package, except for the words listed in CONTRIBUTING.md."""

from torch import nn

from .blocks import conv
from .layers import AvgPool, BatchNorm, Chain, Identity, MaxPool, Tensor, concatenate, relu


class ConvNormReLU(nn.Module):
    """A convolution that changes the size of the map only by its stride, a batch norm and a ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False, norm: bool = True,
        eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride, bias=bias)
        self.bn = BatchNorm(out_channels, eps) if norm else Identity()

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a max pool side by side: Szegedy et al. 2014 (arXiv:1409.4842), figure 2(b).

    `branches` are the channels as in the paper's table 1: [[1x1], [3x3 reduce, 3x3], [5x5 reduce, 5x5], [projection after
    the pool]]. The paper has biases and no batch norm. torchvision's GoogLeNet has batch norms, and a `kernel` of 3 instead
    of 5.
    """

    def __init__(
        self, in_channels: int, out_channels: int, branches: list[list[int]], kernel: int = 5, bias: bool = False,
        norm: bool = True, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()

        def unit(inputs: int, outputs: int, size: int) -> ConvNormReLU:
            return ConvNormReLU(inputs, outputs, size, bias=bias, norm=norm, eps=eps)

        (one,), (reduce3, three), (reduce5, five), (projection,) = branches
        self.branch1 = unit(in_channels, one, 1)
        self.branch2 = Chain(unit(in_channels, reduce3, 1), unit(reduce3, three, 3))
        self.branch3 = Chain(unit(in_channels, reduce5, 1), unit(reduce5, five, kernel))
        self.branch4 = Chain(MaxPool(3, stride=1, padding=1), unit(in_channels, projection, 1))

    def forward(self, x: Tensor) -> Tensor:
        return concatenate([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)])


class InceptionA(nn.Module):
    """1x1; 1x1 and 5x5; 1x1 and two 3x3 convolutions; and an average pool, side by side: the channels and weight names of
    torchvision's Inception v3, after Szegedy et al. 2015 (arXiv:1512.00567), figure 5, which has two 3x3 for the 5x5.

    The branch of the pool has `out_channels` less the 224 channels of the others, torchvision's `pool_features`. The pool
    counts its padding as zeros, as torchvision's does.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False, norm: bool = True) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, size: int) -> ConvNormReLU:
            return ConvNormReLU(inputs, outputs, size, bias=bias, norm=norm, eps=1e-3)

        self.branch1x1 = unit(in_channels, 64, 1)
        self.branch5x5_1 = unit(in_channels, 48, 1)
        self.branch5x5_2 = unit(48, 64, 5)
        self.branch3x3dbl_1 = unit(in_channels, 64, 1)
        self.branch3x3dbl_2 = unit(64, 96, 3)
        self.branch3x3dbl_3 = unit(96, 96, 3)
        self.pool = AvgPool(3, stride=1, padding=1)
        self.branch_pool = unit(in_channels, out_channels - 224, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return concatenate([self.branch1x1(x), branch5x5, branch3x3, self.branch_pool(self.pool(x))])
