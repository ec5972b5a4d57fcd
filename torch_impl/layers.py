"""Where PyTorch differs from Keras: the elementary layers. Images are (batch, channels, height, width)."""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checks import Error
from shared.spec import Spec, unroll

Padding = int | Literal["same"]

Identity = nn.Identity
BatchNorm = nn.BatchNorm2d
Linear = nn.Linear
Flatten = nn.Flatten
ReLU = nn.ReLU  # `construct` says which may overwrite their input


class Model(nn.Module):
    """A module that says why TorchScript cannot compile it."""

    def __prepare_scriptable__(self) -> nn.Module:
        raise Error(
            "torch.jit.script cannot compile this network: TorchScript supports neither layers by name nor super(). Use "
            "torch.export.export or torch.compile; or, for a TorchScript file, torch.jit.trace(net.eval(), images)"
        )


class Chain(nn.Sequential):
    """Layers that run one after another, under the names "0", "1", "2"."""


class Conv(nn.Conv2d):
    """Convolution. `padding` is in pixels on each side, or "same": TensorFlow's rule, `pad_same` below."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: Padding = 0, dilation: int = 1,
        bias: bool = True, groups: int = 1,
    ) -> None:  # fmt: skip
        self.same = padding == "same" and (stride > 1 or kernel % 2 == 0)
        pixels = 0 if self.same else dilation * (kernel - 1) // 2 if padding == "same" else padding
        super().__init__(in_channels, out_channels, kernel, stride, pixels, dilation, groups, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0])
        return super().forward(x)


class LocalResponseNorm(nn.LocalResponseNorm):
    """x / (k + alpha mean(x² over `size` neighbouring channels)) ** beta: Krizhevsky et al. 2012, section 3.3.

    The paper and TensorFlow take the sum instead of the mean, which is Caffe's: their alpha is `size` times smaller.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__(size, alpha, beta, k)


class Dropout(nn.Dropout):
    """Dropout of a fraction `rate`. If an `Engine` sets `mask`, from `shared.dropout`, both frameworks drop the same units."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.rate = rate
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.mask is None or not self.training else x * self.mask


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x): LeCun et al. 1998, appendix A."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class MaxPool(nn.Module):
    """Max pool. Padding never wins: it counts as minus infinity. `ceil` adds a window if pixels are left over."""

    def __init__(self, kernel: int, stride: int | None = None, padding: Padding = 0, ceil: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.ceil = kernel, stride or kernel, padding, ceil

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == "same":
            return F.max_pool2d(pad_same(x, self.kernel, self.stride, -torch.inf), self.kernel, self.stride)
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=self.ceil)


class AvgPool(nn.Module):
    """Average pool. Padding in pixels counts as zeros; "same" padding is left out of the average, as in TensorFlow."""

    def __init__(self, kernel: int, stride: int | None = None, padding: Padding = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride or kernel, padding

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == "same":
            inside = pad_same(torch.ones_like(x[:1, :1]), self.kernel, self.stride)
            x = F.avg_pool2d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)
            return x / F.avg_pool2d(inside, self.kernel, self.stride)
        return F.avg_pool2d(x, self.kernel, self.stride, self.padding)


class AdaptiveAvgPool(nn.AdaptiveAvgPool2d):
    """Average pool to a map of `size` by `size`, with windows that may overlap and differ in size by a pixel."""

    def __init__(self, size: int) -> None:
        super().__init__(size)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """The mean of each channel, as a map of 1x1."""

    def __init__(self) -> None:
        super().__init__(1)


class Upsample(nn.Upsample):
    """Bilinear interpolation to a map `scale` times as large, by half-pixel centres."""

    def __init__(self, scale: int) -> None:
        super().__init__(scale_factor=scale, mode="bilinear", align_corners=False)


class UpsampleTransposed(nn.Module):
    """Interpolation by a transposed convolution of each channel, with a fixed kernel, as in the code of Yu et al. 2017.

    With `shared.interpolation.bilinear_kernel`, this is `Upsample` except at the border, beyond which the map counts as zero.
    """

    def __init__(self, in_channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", torch.zeros(in_channels, 1, 2 * scale, 2 * scale))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, stride=self.scale, padding=self.scale // 2, groups=x.shape[1])


class PadChannels(nn.Module):
    """The shortcut without weights (He et al. 2015, section 3.3, option A): every stride-th pixel, and channels of zeros.

    Half of the zeros come before the input's channels and half after, as in the checkpoints in circulation; the paper does
    not say where they go.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.before, self.after = (out_channels - in_channels) // 2, -(-(out_channels - in_channels) // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def relu(x: Tensor) -> Tensor:
    """max(x, 0) in place, which saves the memory of a map: only for use in a block, after a convolution or batch norm."""
    return F.relu_(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def concatenate(maps: list[Tensor]) -> Tensor:
    """The channels of all maps, one map after another."""
    return torch.cat(maps, 1)


def at_every_position(classifier: nn.Module, x: Tensor) -> Tensor:
    """A linear layer or 1x1 convolution at every position of a map."""
    return classifier(x) if isinstance(classifier, Conv) else classifier(x.movedim(1, -1)).movedim(-1, 1)


def upsampled(maps: Tensor, images: Tensor) -> Tensor:
    """Maps at the size of the images, bilinearly, by half-pixel centres."""
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)


def pad_same(x: Tensor, extent: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad for an output of ceil(input / stride): the odd pixel goes bottom and right. `extent` is the side of the window."""
    height, width = (max((-(-n // stride) - 1) * stride + extent - n, 0) for n in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


def construct(network: Callable[[Spec], Any], spec: Spec, dtype: str | None) -> Any:
    """The network of a spec on the meta device, without values for its weights, which `load` then fills in.

    `dtype` is "float32", "float64", "bfloat16" or "float16"; None for PyTorch's default. Raises `Error` for any other.
    """
    precision = torch.get_default_dtype() if dtype is None else getattr(torch, str(dtype), None)
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
        # After any other layer, that layer may need its own output, or the input may be the caller's images.
        if layer.type == "relu" and before.type in ("conv", "batch_norm", "linear"):
            net.get_submodule(layer.name).inplace = True
    return net


def check_images(x: Tensor, spec: Spec) -> None:
    """Raise `Error` unless a batch has the axes (batch, channels, height, width), and the channels of the spec."""
    if torch.jit.is_tracing():  # sizes are tensors there
        return
    channels = spec["input"][0]
    if x.ndim != 4 or x.shape[1] != channels:
        last = "; these have the channels last, as in Keras" if x.ndim == 4 and x.shape[3] == channels else ""
        expected = f"expected (batch, {channels}, height, width), the channels first{last}"
        raise Error(f"images of shape {tuple(x.shape)} for a PyTorch network: {expected}")


def snapshot(x: Tensor) -> Tensor:
    """A copy of an output, which the next layer may overwrite."""
    return x.clone()


def dtype_name(net: nn.Module) -> str:
    """The name of a network's precision, as "float32"."""
    return str(next(net.parameters(), torch.empty(0)).dtype).removeprefix("torch.")


def for_inference(net: nn.Module, like: nn.Module) -> None:
    """Prepare a network for inference only, in place of the network `like`: on its device, with the channels last in memory."""
    net.eval().requires_grad_(False).to(next(like.parameters(), torch.empty(0)).device)
    if dtype_name(net) != "float64":
        net.to(memory_format=torch.channels_last)  # faster on CPUs and GPUs, except in float64
