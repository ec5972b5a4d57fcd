"""The third opinion: what every layer of a spec gives, by arithmetic alone.

Shapes are (channels, height, width), or (features,) after `flatten`. Weights have PyTorch's names and layouts.
Multiply-accumulates are those of convolutions and linear layers, for one image. A receptive field is the side, in pixels
of the input, of the square that one output position sees; a stride is the pixels between two neighbouring positions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .checks import Error
from .spec import unroll


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
    eps: float | None = None  # of a batch norm

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
    if kind not in ("relu", "scaled_tanh", "dropout") and len(shape) != (1 if kind == "linear" else 3):
        wanted = "a vector, as flatten gives it" if kind == "linear" else "a map of channels, height and width"
        raise Error(f"it takes {wanted}, but {before.name} gives {text(shape)}")
    if sizes and sizes[0] != shape[0]:
        raise Error(f"'in' is {sizes[0]}, but {before.name} gives {text(shape)}")
    if kind in ("conv", "gate", "max_pool", "avg_pool"):
        pools = kind in ("max_pool", "avg_pool")
        kernel, dilation, groups = options["kernel"], options.get("dilation", 1), options.get("groups", 1)
        step = options.get("stride", kernel if pools else 1)
        padding = options.get("padding", 0)
        if padding == "same" and options.get("ceil"):
            raise Error("'ceil' with a padding of \"same\", which rounds up already: use one of them")
        if step > 1 and dilation > 1:
            raise Error("a convolution with both a stride and a dilation, which Keras on TensorFlow refuses: use one of them")
        if pools and padding != "same" and padding > kernel // 2:
            raise Error(f"'padding' is {padding}, expected at most half of the kernel, {kernel // 2}")
        extent = dilation * (kernel - 1) + 1
        if padding == "same":
            size = [-(-n // step) for n in shape[1:]]
        else:
            size = [_windows(n, extent, step, padding, options.get("ceil")) for n in shape[1:]]
        if min(size) < 1:
            window = f"{extent}x{extent}"
            raise Error(f"the image is too small: {before.name} gives {text(shape)}, a window of {window} does not fit")
        field += (extent - 1) * stride
        stride *= step
        shape = (shape[0] if pools else sizes[1], *size)
        if not pools:
            macs = math.prod(shape) * sizes[0] // groups * kernel**2
            dilations = (dilation,) * (kernel > 1)
    elif kind == "adaptive_avg_pool":
        # As much as one position sees where the windows are equal, and about as much where they are not.
        window = [-(-n // options["size"]) for n in shape[1:]]
        field += (max(window) - 1) * stride
        stride *= max(1, *(n // options["size"] for n in shape[1:]))
        shape = (shape[0], options["size"], options["size"])
    elif kind == "global_avg_pool":
        shape, field = (shape[0], 1, 1), math.inf
    elif kind == "flatten":
        shape = (math.prod(shape),)
    elif kind == "linear":
        shape, field, macs = (sizes[1],), math.inf, sizes[0] * sizes[1]
    found = {f"{name}.{key}": dims for key, dims in _weights(kind, sizes, options).items()}
    eps = options.get("eps", 1e-5) if kind == "batch_norm" else None
    return Row(name, kind, shape, found, macs, field, stride, dilations, eps=eps)


def _windows(pixels, extent, step, padding, ceil):
    """How many windows fit; with `ceil` one more where pixels are left over, if it does not begin behind the last."""
    windows, left = divmod(pixels + 2 * padding - extent, step)
    more = ceil and left > 0 and (windows + 1) * step < pixels + padding
    return windows + 1 + bool(more)


def _weights(kind, sizes, options):
    if kind == "batch_norm":
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (sizes[0],))
    if kind not in ("conv", "gate", "linear"):
        return {}
    kernel = () if kind == "linear" else (options["kernel"],) * 2
    found = {"weight": (sizes[1], sizes[0] // options.get("groups", 1), *kernel)}
    if options.get("bias", True):
        found["bias"] = (sizes[1],)
    return found


def _block(before, layer):
    """A block: branches that start from the same input and meet in a sum, those of an Inception module side by side."""
    branches = []
    for parts in _BLOCKS[layer.type](*layer.sizes, **layer.options):
        rows = [before]
        for name, *part in parts:
            rows.append(_leaf(rows[-1], f"{layer.name}.{name}", *part))
        branches.append(rows[1:])
    if layer.options.get("shortcut") == "unused":  # it has weights, but nothing runs through it
        branches[1] = [row._replace(macs=0, field=0) for row in branches[1]]
    parts = tuple(row for rows in branches for row in rows)
    last, channels = branches[0][-1], layer.sizes[1]
    if layer.type.startswith("inception"):
        given = sum(rows[-1].shape[0] for rows in branches)
        if given != channels:
            raise Error(f"'out' is {channels}, but the branches have {given} channels together")
    return Row(
        layer.name,
        layer.type,
        (channels, *last.shape[1:]),
        weights(parts),
        sum(row.macs for row in parts),
        max(rows[-1].field for rows in branches if rows),
        last.stride,
        tuple(sorted({dilation for row in parts for dilation in row.dilations})),
        parts,
    )


def _conv(number, in_channels, out_channels, kernel, o, stride=1, dilation=1, groups=1):
    """The parts of a block's convolution number n, and of the batch norm behind it."""
    padding = o.get("padding", dilation * (kernel - 1) // 2)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "bias": o.get("bias", False)}
    options["groups"] = groups
    parts = [(f"conv{number}", "conv", [in_channels, out_channels], options)]
    if o.get("norm", True):
        parts.append((f"bn{number}", "batch_norm", [out_channels], {"eps": o["eps"]} if "eps" in o else {}))
    return parts


def _shortcut(in_channels, out_channels, o):
    kind, stride = o.get("shortcut", "projection"), o.get("stride", 1)
    if kind == "pad" and in_channels > out_channels:
        raise Error(f"a shortcut without weights only adds channels, but 'in' is {in_channels} and 'out' {out_channels}")
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
    width, stride, dilation = _width(out_channels, o), o.get("stride", 1), o.get("dilation", 1)
    groups = o.get("groups", 1)
    if width % groups:
        raise Error(f"'groups' is {groups}, expected a divisor of the width inside, {width}")
    first, second = (stride, 1) if o.get("stride_at") == "conv1" else (1, stride)
    main = _conv(1, in_channels, width, 1, o, first)
    main += _conv(2, width, width, 3, o, second, o.get("first_dilation", dilation), groups)
    main += _conv(3, width, out_channels, 1, o)
    return main, _shortcut(in_channels, out_channels, o)


def _width(out_channels, o):
    if out_channels % 4 and "width" not in o:
        raise Error(f"'out' is {out_channels}, expected a multiple of 4: a bottleneck is a quarter as wide inside")
    return o.get("width", out_channels // 4)


def _preact(in_channels, convolutions, o):
    """Batch norm before each convolution, (out channels, kernel, stride); the first may be without.

    Without `norm`, so are the others, and the convolutions in front of them have a bias.
    """
    main, norm = [], o.get("norm", True)
    for number, (out_channels, kernel, stride) in enumerate(convolutions, start=1):
        if norm if number > 1 else o.get("first_activation", True):
            main.append((f"bn{number}", "batch_norm", [in_channels], {}))
        bias = not norm and number < len(convolutions)
        main += _conv(number, in_channels, out_channels, kernel, {"norm": False, "bias": bias}, stride)
        in_channels = out_channels
    return main


def _preact_basic(in_channels, out_channels, **o):
    convolutions = [(out_channels, 3, o.get("stride", 1)), (out_channels, 3, 1)]
    return _preact(in_channels, convolutions, o), _shortcut(in_channels, out_channels, o | {"norm": False})


def _preact_bottleneck(in_channels, out_channels, **o):
    width = _width(out_channels, o)
    convolutions = [(width, 1, o.get("stride", 1)), (width, 3, 1), (out_channels, 1, 1)]
    return _preact(in_channels, convolutions, o), _shortcut(in_channels, out_channels, o | {"norm": False})


def _residual_unit(in_channels, out_channels, **o):
    kind, stride = o.get("shortcut", "pad"), o.get("stride", 1)
    norm = o.get("norm", True)
    last_norm = norm or o.get("activation") == "bn_after_addition"
    main = _conv(1, in_channels, out_channels, 3, {"norm": norm, "bias": not norm}, stride)
    main += _conv(2, out_channels, out_channels, 3, {"norm": last_norm, "bias": not last_norm})
    conv = [in_channels, out_channels], {"kernel": 1, "stride": stride}
    if kind == "conv":
        return main, [("downsample", "conv", *conv)]
    around = {
        "dropout": [("dropout", "dropout", [], {})],
        "exclusive_gate": [("gate", "gate", *conv)],
        "shortcut_gate": [("gate", "gate", *conv)],
    }
    return main, around.get(kind, []) + _shortcut(in_channels, out_channels, {"shortcut": "pad", "stride": stride})


def _conv_norm_relu(in_channels, out_channels, **o):
    kernel = o.pop("kernel")
    if kernel % 2 == 0:
        raise Error(f"'kernel' is {kernel}, expected an odd number, so that it has a middle")
    conv, *norm = _conv("", in_channels, out_channels, kernel, o, o.get("stride", 1))
    return [[("conv", *conv[1:]), *(("bn", *part[1:]) for part in norm)]]


def _units(*units, **o):
    """The parts of convolutions, (name, in, out, kernel), each with its batch norm and ReLU, one behind the other."""
    parts = []
    for name, in_channels, out_channels, kernel in units:
        (unit,) = _conv_norm_relu(in_channels, out_channels, kernel=kernel, **o)
        parts += [(f"{name}.{part}", *rest) for part, *rest in unit]
    return parts


def _inception(in_channels, out_channels, branches, kernel=5, **o):
    (one,), (reduce3, three), (reduce5, five), (projection,) = branches
    pool = "branch4.0", "max_pool", [], {"kernel": 3, "stride": 1, "padding": 1}
    return (
        _units(("branch1", in_channels, one, 1), **o),
        _units(("branch2.0", in_channels, reduce3, 1), ("branch2.1", reduce3, three, 3), **o),
        _units(("branch3.0", in_channels, reduce5, 1), ("branch3.1", reduce5, five, kernel), **o),
        [pool, *_units(("branch4.1", in_channels, projection, 1), **o)],
    )


def _inception_a(in_channels, out_channels, **o):
    o["eps"] = 1e-3
    if out_channels <= 224:
        raise Error(f"'out' is {out_channels}, expected above 224, which the branches without a pool have")
    pool = "pool", "avg_pool", [], {"kernel": 3, "stride": 1, "padding": 1}
    return (
        _units(("branch1x1", in_channels, 64, 1), **o),
        _units(("branch5x5_1", in_channels, 48, 1), ("branch5x5_2", 48, 64, 5), **o),
        _units(("branch3x3dbl_1", in_channels, 64, 1), ("branch3x3dbl_2", 64, 96, 3), ("branch3x3dbl_3", 96, 96, 3), **o),
        [pool, *_units(("branch_pool", in_channels, out_channels - 224, 1), **o)],
    )


_BLOCKS = {
    "basic": _basic,
    "bottleneck": _bottleneck,
    "preact_basic": _preact_basic,
    "preact_bottleneck": _preact_bottleneck,
    "residual_unit": _residual_unit,
    "conv_norm_relu": _conv_norm_relu,
    "inception": _inception,
    "inception_a": _inception_a,
}


def text(shape: Sequence[int]) -> str:
    """A shape for people: 3x224x224; "scalar" where it has no axes."""
    return "x".join(map(str, shape)) or "scalar"
