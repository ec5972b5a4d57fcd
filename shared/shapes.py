"""The third opinion: what every layer of a spec gives, by arithmetic alone.

Shapes are (channels, height, width), or (features,) after `flatten`. Weights have PyTorch's names and layouts.
Multiply-accumulates are those of convolutions and linear layers, for one image. A receptive field is the side, in pixels
of the input, of the square that one output position sees; a stride is the pixels between two neighbouring positions.
"""

import math
from typing import NamedTuple

from .spec import Error, unroll


class Row(NamedTuple):
    """What one layer, or one block with its layers as `parts`, gives."""

    name: str
    type: str
    shape: tuple[int, ...]  # of its output
    weights: dict[str, tuple[int, ...]]  # by full name, running statistics included
    macs: int
    field: float  # receptive field, counted from the network's input; infinite after a global pool
    stride: int  # counted from the network's input
    dilations: tuple[int, ...]  # of its convolutions that are larger than 1x1
    parts: tuple["Row", ...] = ()

    @property
    def parameters(self):
        """The number of trainable parameters."""
        return sum(math.prod(s) for name, s in self.weights.items() if not name.rpartition(".")[2].startswith("running_"))


def layers(spec, size=None):
    """A `Row` for every layer of the chain, for images of `size` (height, width; the spec's own when None).

    Raises `Error` where two layers do not fit or the image is too small.
    """
    channels, *own_size = spec["input"]
    row = Row("the input", "input", (channels, *(size or own_size)), {}, 0, 1, 1, ())
    rows = []
    for layer in unroll(spec):
        try:
            if layer.type in _BLOCKS:
                row = _block(row, layer)
            else:
                row = _leaf(row, layer.name, layer.type, layer.sizes, layer.options)
        except Error as error:
            raise Error(f"layer {layer.name!r}: {error}") from None
        rows.append(row)
    return rows


def leaves(rows):
    """The elementary layers of all rows, those inside blocks included."""
    return [leaf for row in rows for leaf in row.parts or (row,)]


def parameters(rows):
    """The number of trainable parameters of all rows."""
    return sum(row.parameters for row in rows)


def weights(rows):
    """{name: shape} of every array of the network's state."""
    return {name: shape for row in rows for name, shape in row.weights.items()}


def _leaf(before, name, kind, sizes, options):
    shape, field, stride, macs, dilations = before.shape, before.field, before.stride, 0, ()
    if kind != "relu" and len(shape) != (1 if kind == "linear" else 3):
        wanted = "a vector, as flatten gives it" if kind == "linear" else "a map of channels, height and width"
        raise Error(f"it takes {wanted}, but {before.name} gives {_text(shape)}")
    if sizes and sizes[0] != shape[0]:
        raise Error(f"'in' is {sizes[0]}, but {before.name} gives {_text(shape)}")
    if kind in ("conv", "max_pool", "avg_pool"):
        kernel, dilation = options["kernel"], options.get("dilation", 1)
        step = options.get("stride", 1 if kind == "conv" else kernel)
        padding = options.get("padding", 0)
        if step > 1 and dilation > 1:
            raise Error("a convolution with both a stride and a dilation, which Keras on TensorFlow refuses: use one of them")
        if kind != "conv" and padding != "same" and padding > kernel // 2:
            raise Error(f"'padding' is {padding}, expected at most half of the kernel, {kernel // 2}")
        extent = dilation * (kernel - 1) + 1
        if padding == "same":
            size = [-(-n // step) for n in shape[1:]]
        else:
            size = [(n + 2 * padding - extent) // step + 1 for n in shape[1:]]
        if min(size) < 1:
            window = f"{extent}x{extent}"
            raise Error(f"the image is too small: {before.name} gives {_text(shape)}, a window of {window} does not fit")
        field += (extent - 1) * stride
        stride *= step
        shape = (sizes[1] if kind == "conv" else shape[0], *size)
        if kind == "conv":
            macs = math.prod(shape) * sizes[0] * kernel**2
            dilations = (dilation,) * (kernel > 1)
    elif kind == "global_avg_pool":
        shape, field = (shape[0], 1, 1), math.inf
    elif kind == "flatten":
        shape = (math.prod(shape),)
    elif kind == "linear":
        shape, field, macs = (sizes[1],), math.inf, sizes[0] * sizes[1]
    found = {f"{name}.{key}": dims for key, dims in _weights(kind, sizes, options).items()}
    return Row(name, kind, shape, found, macs, field, stride, dilations)


def _weights(kind, sizes, options):
    if kind == "batch_norm":
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (sizes[0],))
    if kind not in ("conv", "linear"):
        return {}
    kernel = (options["kernel"],) * 2 if kind == "conv" else ()
    found = {"weight": (sizes[1], sizes[0], *kernel)}
    if options.get("bias", True):
        found["bias"] = (sizes[1],)
    return found


def _block(before, layer):
    """A block: branches that start from the same input and meet in a sum."""
    branches = []
    for parts in _BLOCKS[layer.type](*layer.sizes, **layer.options):
        rows = [before]
        for name, *part in parts:
            rows.append(_leaf(rows[-1], f"{layer.name}.{name}", *part))
        branches.append(rows[1:])
    if layer.options.get("shortcut") == "unused":  # it has weights, but nothing runs through it
        branches[1] = [row._replace(macs=0, field=0) for row in branches[1]]
    parts = tuple(row for rows in branches for row in rows)
    last = branches[0][-1]
    return Row(
        layer.name,
        layer.type,
        last.shape,
        weights(parts),
        sum(row.macs for row in parts),
        max(rows[-1].field for rows in branches if rows),
        last.stride,
        tuple(sorted({dilation for row in parts for dilation in row.dilations})),
        parts,
    )


def _conv(number, in_channels, out_channels, kernel, o, stride=1, dilation=1):
    """The parts of a block's convolution number n, and of the batch norm behind it."""
    padding = o.get("padding", dilation * (kernel - 1) // 2)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "bias": o.get("bias", False)}
    parts = [(f"conv{number}", "conv", [in_channels, out_channels], options)]
    if o.get("norm", True):
        parts.append((f"bn{number}", "batch_norm", [out_channels], {}))
    return parts


def _shortcut(in_channels, out_channels, o):
    kind, stride = o.get("shortcut", "projection"), o.get("stride", 1)
    if kind == "pad" and in_channels > out_channels:
        raise Error(f"the shortcut \"pad\" only adds channels, but 'in' is {in_channels} and 'out' {out_channels}")
    if kind in ("none", "pad") or (stride == 1 and in_channels == out_channels):
        return []
    kernel = 3 if kind == "projection3x3" else 1
    conv, *norm = _conv("", in_channels, out_channels, kernel, o | {"bias": kind == "conv" or o.get("bias", False)}, stride)
    return [("downsample.0", *conv[1:])] + [("downsample.1", *part[1:]) for part in norm if kind != "conv"]


def _basic(in_channels, out_channels, **o):
    dilation = o.get("dilation", 1)
    main = _conv(1, in_channels, out_channels, 3, o, o.get("stride", 1), o.get("first_dilation", dilation))
    main += _conv(2, out_channels, out_channels, 3, o, 1, dilation)
    return main, _shortcut(in_channels, out_channels, o)


def _bottleneck(in_channels, out_channels, **o):
    if out_channels % 4:
        raise Error(f"'out' is {out_channels}, expected a multiple of 4: a bottleneck is a quarter as wide inside")
    width, stride, dilation = out_channels // 4, o.get("stride", 1), o.get("dilation", 1)
    first, second = (stride, 1) if o.get("stride_at") == "conv1" else (1, stride)
    main = _conv(1, in_channels, width, 1, o, first)
    main += _conv(2, width, width, 3, o, second, o.get("first_dilation", dilation))
    main += _conv(3, width, out_channels, 1, o)
    return main, _shortcut(in_channels, out_channels, o)


_BLOCKS = {"basic": _basic, "bottleneck": _bottleneck}


def _text(shape):
    return "x".join(map(str, shape))
