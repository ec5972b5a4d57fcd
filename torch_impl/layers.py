"""Where PyTorch differs from Keras: the elementary layers. Images are (batch, channels, height, width)."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from shared.checks import Error
from shared.spec import unroll

Model = nn.Module
Identity = nn.Identity
BatchNorm = nn.BatchNorm2d
Linear = nn.Linear
Flatten = nn.Flatten
ReLU = nn.ReLU  # `construct` says where it may write over what it gets


class Chain(nn.Sequential):
    """Layers that run one after the other, under the names "0", "1", "2"."""


class Conv(nn.Conv2d):
    """Convolution. `padding` is in pixels on each side, or "same": TensorFlow's rule, `pad_same` below."""

    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=0, dilation=1, bias=True, groups=1):
        self.same = padding == "same" and (stride > 1 or kernel % 2 == 0)
        pixels = 0 if self.same else dilation * (kernel - 1) // 2 if padding == "same" else padding
        super().__init__(in_channels, out_channels, kernel, stride, pixels, dilation, groups, bias)

    def forward(self, x):
        if self.same:
            x = pad_same(x, self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0])
        return super().forward(x)


class LocalResponseNorm(nn.LocalResponseNorm):
    """x / (k + alpha mean(x² over `size` neighbouring channels)) ** beta: Krizhevsky et al. 2012, section 3.3.

    The paper, and TensorFlow, have the sum where the mean is here and in Caffe: their alpha is `size` times smaller.
    """

    def __init__(self, size, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__(size, alpha, beta, k)


class Dropout(nn.Dropout):
    """Dropout of a share `rate`. Where an `Engine` sets `mask`, from `shared.dropout`, both frameworks drop the same."""

    def __init__(self, rate):
        super().__init__(rate)
        self.rate, self.mask = rate, None

    def forward(self, x):
        return super().forward(x) if self.mask is None or not self.training else x * self.mask


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x): LeCun et al. 1998, appendix A."""

    def forward(self, x):
        return 1.7159 * torch.tanh(2 / 3 * x)


class MaxPool(nn.Module):
    """Max pool. Padding never wins: it counts as minus infinity. `ceil` adds a window where pixels are left over."""

    def __init__(self, kernel, stride=None, padding=0, ceil=False):
        super().__init__()
        self.kernel, self.stride, self.padding, self.ceil = kernel, stride or kernel, padding, ceil

    def forward(self, x):
        if self.padding == "same":
            return F.max_pool2d(pad_same(x, self.kernel, self.stride, -torch.inf), self.kernel, self.stride)
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=self.ceil)


class AvgPool(nn.Module):
    """Average pool. Padding in pixels counts as zeros; "same" padding is left out of the average, as in TensorFlow."""

    def __init__(self, kernel, stride=None, padding=0):
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def forward(self, x):
        if self.padding == "same":
            inside = pad_same(torch.ones_like(x[:1, :1]), self.kernel, self.stride)
            x = F.avg_pool2d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)
            return x / F.avg_pool2d(inside, self.kernel, self.stride)
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding)


class AdaptiveAvgPool(nn.AdaptiveAvgPool2d):
    """Average pool to a map of `size` by `size`, by windows that may differ by a pixel and overlap."""

    def __init__(self, size):
        super().__init__(size)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """The mean of each channel, as a map of 1x1."""

    def __init__(self):
        super().__init__(1)


class PadChannels(nn.Module):
    """The shortcut without weights (He et al. 2015, section 3.3, option A): every stride-th pixel, and channels of zeros.

    The zeros lie half before and half after the input's channels, as in the checkpoints in circulation; the paper leaves
    their place open.
    """

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.before, self.after = (out_channels - in_channels) // 2, -(-(out_channels - in_channels) // 2)
        self.stride = stride

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def relu(x):
    """max(x, 0), written over x, which saves the memory of a map: for a block's own use, behind a convolution or batch norm."""
    return F.relu_(x)


def sigmoid(x):
    return torch.sigmoid(x)


def concatenate(maps):
    """The channels of all maps, one behind the other."""
    return torch.cat(maps, 1)


def at_every_position(classifier, x):
    """A linear layer or 1x1 convolution at every position of a map."""
    return classifier(x) if isinstance(classifier, Conv) else classifier(x.movedim(1, -1)).movedim(-1, 1)


def upsampled(maps, images):
    """Maps at the size of the images, bilinearly, by half-pixel centres."""
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def pad_same(x, extent, stride, value=0.0):
    """Pad for an output of ceil(input / stride): the odd pixel at the bottom and right. `extent` is the window's side."""
    height, width = (max((-(-n // stride) - 1) * stride + extent - n, 0) for n in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


def construct(network, spec, dtype):
    """The network of a spec with room for weights, which `load` then brings: none are drawn here."""
    precision = getattr(torch, str(dtype), None)
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise Error(f"PyTorch has no precision {dtype!r}; expected float32, float64, bfloat16 or float16")
    default = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        with torch.device("meta"):
            net = network(spec)
    finally:
        torch.set_default_dtype(default)
    for before, layer in itertools.pairwise(unroll(spec)):
        # Elsewhere what is before it may need its own output, or be the caller's images.
        if layer.type == "relu" and before.type in ("conv", "batch_norm", "linear"):
            net.get_submodule(layer.name).inplace = True
    return net


def snapshot(x):
    """A copy of an output, which the layer behind may write over."""
    return x.clone()


def dtype(net):
    """The name of a network's precision."""
    return str(next(net.parameters()).dtype).removeprefix("torch.")


def for_inference(net, like):
    """Make a network ready for inference alone, in the place of another: on its device, with the channels last."""
    net.eval().requires_grad_(False).to(next(like.parameters()).device)
    if dtype(net) != "float64":
        net.to(memory_format=torch.channels_last)  # quicker but in float64, on the CPU as on a GPU
