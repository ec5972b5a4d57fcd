"""The third opinion: what every layer of a spec outputs, by arithmetic alone.

Shapes are (channels, height, width), or (features,) after `flatten`. Weights have PyTorch's names and layouts.
Multiply-accumulates are those of convolutions and linear layers, for one image. A receptive field is the side, in pixels
of the input, of the square that one output position sees; a stride is the distance, in pixels of the input, between two
neighbouring positions.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from . import limits
from .checks import Error, check_memory
from .spec import Layer, Spec, unroll

Shape = tuple[int, ...]


class Window(NamedTuple):
    """A square window that moves over a map: it reads `kernel` rows and columns that are `dilation` apart.

    The first row that position r reads is r x stride - top; likewise with columns and `left`.
    """

    kernel: int
    stride: int
    dilation: int
    top: int  # padding
    left: int
    size: tuple[int, int]  # of the map that it reads: (height, width)


class Row(NamedTuple):
    """The output of one layer, or of one block with its layers as `parts`."""

    name: str
    type: str
    shape: Shape  # of its output
    weights: dict[str, Shape]  # by full name, running statistics included
    macs: int
    field: float  # receptive field, counted from the network's input; infinite after a global pool
    stride: float  # counted from the network's input; below 1 where it is upsampled beyond that
    dilations: tuple[int, ...]  # of its convolutions that are larger than 1x1
    parts: tuple["Row", ...] = ()
    eps: float | None = None  # of a batch norm
    padded: int = 0  # numbers in its input with the padding around it
    ways: tuple[tuple[Window, ...], ...] = ((),)  # its branches: the windows of each, in order; none after a global pool

    @property
    def trainable(self) -> dict[str, Shape]:
        """The weights that training changes: neither running statistics nor a fixed kernel."""
        return {n: s for n, s in self.weights.items() if ".running_" not in n and self.type != "upsample_transposed"}

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(math.prod(shape) for shape in self.trainable.values())


def layers(spec: Spec, size: Sequence[int] | None = None) -> list[Row]:
    """A `Row` for every layer of the chain, for images of `size`: (height, width), or None for the spec's own.

    Raises `Error` if two layers do not fit or the image is too small.
    """
    channels, *own_size = spec["input"]
    row = Row("the input", "input", (channels, *(size or own_size)), {}, 0, 1, 1, ())
    rows, count = [], 0
    for layer in unroll(spec):
        try:
            row = _block(row, layer) if layer.type in _BLOCKS else _leaf(row, layer)
            count += row.parameters
            if count > limits.NUMBERS:
                raise Error(f"the parameters up to it are {count:,}, expected at most {limits.NUMBERS:,}")
        except Error as error:
            raise Error(f"layer {layer.name!r}: {error}") from None
        rows.append(row)
    return rows


def check_fits_memory(rows: Sequence[Row], size: Sequence[int] = ()) -> None:
    """Raise `Error` if there is less memory than the weights and the largest map, of one image in float32, need.

    `size` is that of the images, for the message.
    """
    numbers = sum(math.prod(shape) for shape in weights(rows).values())
    largest = max(max(math.prod(row.shape), row.padded) for row in leaves(rows))
    what = f"the weights and the largest map{f' of images of {text(size)}' if size else ''}"
    check_memory(4 * (numbers + largest), what)


def leaves(rows: Iterable[Row]) -> list[Row]:
    """The elementary layers of all rows, including those inside blocks."""
    return [leaf for row in rows for leaf in row.parts or (row,)]


def parameters(rows: Iterable[Row]) -> int:
    """The number of trainable parameters of all rows."""
    return sum(row.parameters for row in rows)


def weights(rows: Iterable[Row]) -> dict[str, Shape]:
    """{name: shape} of every array of the network's state."""
    return {name: shape for row in rows for name, shape in row.weights.items()}


def _leaf(before: Row, layer: Layer) -> Row:
    """The row of an elementary layer that takes the output of `before`. Raises `Error` if its map is beyond the limit."""
    row = _elementary(before, layer)
    if max(math.prod(row.shape), row.padded) > limits.NUMBERS:
        raise Error(f"its map, {text(row.shape)} or more with padding, has more than {limits.NUMBERS:,} numbers")
    return row


def _elementary(before: Row, layer: Layer) -> Row:
    name, kind, sizes, options = layer
    _check_input(before, kind, sizes)
    own_weights = {f"{name}.{key}": shape for key, shape in _weights(kind, sizes, options).items()}
    eps = options.get("eps", 1e-5) if kind == "batch_norm" else None
    row = Row(name, kind, before.shape, own_weights, 0, before.field, before.stride, (), eps=eps)
    match kind:
        case "conv" | "gate":
            return _convolution(row, before, sizes, **options)
        case "max_pool" | "avg_pool":
            return _pool(row, before, **options)
        case "adaptive_avg_pool":
            return _adaptive_pool(row, options["size"])
        case "global_avg_pool":
            return row._replace(shape=(before.shape[0], 1, 1), field=math.inf, ways=())
        case "flatten":
            return row._replace(shape=(math.prod(before.shape),), ways=())
        case "local_response_norm":
            return row._replace(padded=(before.shape[0] + options["size"]) * math.prod(before.shape[1:]))
        case "linear":
            return row._replace(shape=(sizes[1],), field=math.inf, macs=sizes[0] * sizes[1], ways=())
        case "upsample" | "upsample_transposed":
            return _upsampled(row, options["scale"])
    return row


def _check_input(before: Row, kind: str, sizes: Sequence[int]) -> None:
    """Raise `Error` unless a type of layer takes the output of `before`, and "in" is its channels or features."""
    if kind not in ("relu", "scaled_tanh", "dropout") and len(before.shape) != (1 if kind == "linear" else 3):
        expected = "a vector, as flatten gives it" if kind == "linear" else "a map of channels, height and width"
        raise Error(f"it takes {expected}, but {before.name} gives {text(before.shape)}")
    if sizes and sizes[0] != before.shape[0]:
        raise Error(f"'in' is {sizes[0]}, but {before.name} gives {text(before.shape)}")


def _convolution(
    row: Row, before: Row, sizes: Sequence[int], kernel: int, stride: int = 1, padding: int | str = 0, dilation: int = 1,
    bias: bool = True, groups: int = 1,
) -> Row:  # fmt: skip
    if stride > 1 and dilation > 1:
        raise Error("a convolution with both a stride and a dilation, which Keras on TensorFlow refuses: use one of them")
    row = _windowed(row, before, kernel, stride, padding, dilation)
    in_channels, out_channels = sizes
    shape = (out_channels, *row.shape[1:])
    macs = math.prod(shape) * in_channels // groups * kernel**2
    return row._replace(shape=shape, macs=macs, dilations=(dilation,) if kernel > 1 else ())


def _pool(row: Row, before: Row, kernel: int, stride: int | None = None, padding: int | str = 0, ceil: bool = False) -> Row:
    if padding == "same" and ceil:
        raise Error("'ceil' with a padding of \"same\", which rounds up already: use one of them")
    if isinstance(padding, int) and padding > kernel // 2:
        raise Error(f"'padding' is {padding}, expected at most half of the kernel, {kernel // 2}")
    return _windowed(row, before, kernel, stride or kernel, padding, ceil=ceil)


def _windowed(
    row: Row, before: Row, kernel: int, stride: int, padding: int | str, dilation: int = 1, ceil: bool = False
) -> Row:
    """The row with the size, field and stride of a layer that moves a window over the map of `before`; channels stay."""
    channels, *size = before.shape
    extent = dilation * (kernel - 1) + 1
    if isinstance(padding, int):
        size = [_windows(n, extent, stride, padding, ceil) for n in size]
        top = left = padding
    else:  # "same"
        size = [-(-n // stride) for n in size]
        top, left = (max((n - 1) * stride + extent - m, 0) // 2 for n, m in zip(size, before.shape[1:], strict=True))
    if min(size) < 1:
        given, window = text(before.shape), f"{extent}x{extent}"
        raise Error(f"the image is too small: {before.name} gives {given}, a window of {window} does not fit")
    field = before.field + (extent - 1) * before.stride
    border = 2 * padding if isinstance(padding, int) else extent
    padded = channels * math.prod(n + border for n in before.shape[1:])
    moved = Window(kernel, stride, dilation, top, left, (before.shape[1], before.shape[2]))
    return row._replace(shape=(channels, *size), field=field, stride=before.stride * stride, padded=padded, ways=((moved,),))


def _windows(pixels: int, extent: int, stride: int, padding: int, ceil: bool) -> int:
    """How many windows fit; with `ceil`, one more if pixels are left over and it begins before the padding at the end."""
    windows, left = divmod(pixels + 2 * padding - extent, stride)
    more = ceil and left > 0 and (windows + 1) * stride < pixels + padding
    return windows + 1 + bool(more)


def _adaptive_pool(row: Row, side: int) -> Row:
    """Field and stride are exact if the windows are equal, and approximate if they are not."""
    channels, *size = row.shape
    window = max(-(-n // side) for n in size)
    field = row.field + (window - 1) * row.stride
    stride = row.stride * max(1, *(n // side for n in size))
    return row._replace(shape=(channels, side, side), field=field, stride=stride, ways=())


def _upsampled(row: Row, scale: int) -> Row:
    """An output position is between two input positions along each axis, so it sees one input stride more."""
    channels, *size = row.shape
    transposed = row.type == "upsample_transposed"
    if transposed and scale % 2:
        raise Error(f"'scale' is {scale}, expected an even number: the kernel is twice, the padding half of it")
    shape = (channels, *(n * scale for n in size))
    field = row.field + (row.stride if scale > 1 else 0)
    stride = row.stride / scale if row.stride % scale else row.stride // scale
    macs = 4 * math.prod(shape) if transposed else 0
    return row._replace(shape=shape, field=field, stride=stride, macs=macs, ways=())


def _weights(kind: str, sizes: Sequence[int], options: dict[str, Any]) -> dict[str, Shape]:
    """{attribute: shape} of the arrays of an elementary layer."""
    if kind == "batch_norm":
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (sizes[0],))
    if kind == "upsample_transposed":
        return {"weight": (sizes[0], 1, *(2 * options["scale"],) * 2)}
    if kind not in ("conv", "gate", "linear"):
        return {}
    kernel = () if kind == "linear" else (options["kernel"],) * 2
    arrays: dict[str, Shape] = {"weight": (sizes[1], sizes[0] // options.get("groups", 1), *kernel)}
    if options.get("bias", True):
        arrays["bias"] = (sizes[1],)
    return arrays


def _block(before: Row, layer: Layer) -> Row:
    """The row of a block: its branches start from the same input and are summed, or concatenated in an Inception module."""
    branches = []
    for parts in _BLOCKS[layer.type](*layer.sizes, **layer.options):
        branch = [before]
        for part in parts:
            branch.append(_leaf(branch[-1], part._replace(name=f"{layer.name}.{part.name}")))
        branches.append(branch[1:])
    if layer.options.get("shortcut") == "unused":  # it has weights, but nothing runs through it
        branches[1] = [row._replace(macs=0, field=0) for row in branches[1]]
    rows = tuple(row for branch in branches for row in branch)
    last, channels = branches[0][-1], layer.sizes[1]
    if layer.type.startswith("inception"):
        total = sum(branch[-1].shape[0] for branch in branches)
        if total != channels:
            raise Error(f"'out' is {channels}, but the branches have {total} channels together")
    return Row(
        layer.name,
        layer.type,
        (channels, *last.shape[1:]),
        weights(rows),
        sum(row.macs for row in rows),
        max(branch[-1].field for branch in branches if branch),
        last.stride,
        tuple(sorted({dilation for row in rows for dilation in row.dilations})),
        rows,
        ways=_ways(layer, before, branches),
    )


def _ways(layer: Layer, before: Row, branches: Sequence[Sequence[Row]]) -> tuple[tuple[Window, ...], ...]:
    """The windows of each branch through which something runs, in order."""
    ways = [tuple(window for row in branch for window in row.ways[0]) for branch in branches]
    if layer.options.get("shortcut") in ("none", "unused"):
        return (ways[0],)
    stride = layer.options.get("stride", 1)
    for number, way in enumerate(ways):
        if stride > 1 and all(window.stride == 1 for window in way):  # a shortcut without weights
            ways[number] = (*way, Window(1, stride, 1, 0, 0, (before.shape[1], before.shape[2])))
    return tuple(ways)


# The functions below give the branches of a block, each the list of its layers, from the options of the block in the spec.
_Branches = Sequence[Sequence[Layer]]


def _conv(
    number: int | str,
    in_channels: int,
    out_channels: int,
    kernel: int,
    block: dict[str, Any],
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> list[Layer]:
    """A block's n-th convolution and its batch norm, if `block`, the options, has them."""
    padding = block.get("padding", dilation * (kernel - 1) // 2)
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "bias": block.get("bias", False)}
    options["groups"] = groups
    parts = [Layer(f"conv{number}", "conv", [in_channels, out_channels], options)]
    if block.get("norm", True):
        parts.append(Layer(f"bn{number}", "batch_norm", [out_channels], {"eps": block["eps"]} if "eps" in block else {}))
    return parts


def _shortcut(in_channels: int, out_channels: int, block: dict[str, Any]) -> list[Layer]:
    kind, stride = block.get("shortcut", "projection"), block.get("stride", 1)
    if kind == "pad" and in_channels > out_channels:
        raise Error(f"a shortcut without weights only adds channels, but 'in' is {in_channels} and 'out' {out_channels}")
    if kind in ("none", "pad") or (stride == 1 and in_channels == out_channels):
        return []
    kernel = 3 if kind == "projection3x3" else 1
    block = block | {"bias": kind == "conv" or block.get("bias", False)}
    conv, *norm = _conv("", in_channels, out_channels, kernel, block, stride)
    parts = [conv] if kind == "conv" else [conv, *norm]
    return [part._replace(name=f"downsample.{number}") for number, part in enumerate(parts)]


def _basic(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    dilation = block.get("dilation", 1)
    main = _conv(1, in_channels, out_channels, 3, block, block.get("stride", 1), block.get("first_dilation", dilation))
    main += _conv(2, out_channels, out_channels, 3, block, 1, dilation)
    return main, _shortcut(in_channels, out_channels, block)


def _bottleneck(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    width, stride, dilation = _width(out_channels, block), block.get("stride", 1), block.get("dilation", 1)
    groups = block.get("groups", 1)
    if width % groups:
        raise Error(f"'groups' is {groups}, expected a divisor of the width inside, {width}")
    first, second = (stride, 1) if block.get("stride_at") == "conv1" else (1, stride)
    main = _conv(1, in_channels, width, 1, block, first)
    main += _conv(2, width, width, 3, block, second, block.get("first_dilation", dilation), groups)
    main += _conv(3, width, out_channels, 1, block)
    return main, _shortcut(in_channels, out_channels, block)


def _width(out_channels: int, block: dict[str, Any]) -> int:
    if out_channels % 4 and "width" not in block:
        raise Error(f"'out' is {out_channels}, expected a multiple of 4: a bottleneck is a quarter as wide inside")
    return block.get("width", out_channels // 4)


def _preact(in_channels: int, convolutions: Sequence[tuple[int, int, int]], block: dict[str, Any]) -> list[Layer]:
    """Convolutions, (out channels, kernel, stride), each with a batch norm before it unless `first_activation` is false.

    Without `norm`, only the first has a batch norm, and the convolutions that had one after them have a bias.
    """
    main, norm = [], block.get("norm", True)
    for number, (out_channels, kernel, stride) in enumerate(convolutions, start=1):
        if norm if number > 1 else block.get("first_activation", True):
            main.append(Layer(f"bn{number}", "batch_norm", [in_channels], {}))
        bias = not norm and number < len(convolutions)
        main += _conv(number, in_channels, out_channels, kernel, {"norm": False, "bias": bias}, stride)
        in_channels = out_channels
    return main


def _preact_basic(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    convolutions = [(out_channels, 3, block.get("stride", 1)), (out_channels, 3, 1)]
    return _preact(in_channels, convolutions, block), _shortcut(in_channels, out_channels, block | {"norm": False})


def _preact_bottleneck(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    width = _width(out_channels, block)
    convolutions = [(width, 1, block.get("stride", 1)), (width, 3, 1), (out_channels, 1, 1)]
    return _preact(in_channels, convolutions, block), _shortcut(in_channels, out_channels, block | {"norm": False})


def _residual_unit(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    kind, stride = block.get("shortcut", "pad"), block.get("stride", 1)
    norm = block.get("norm", True)
    last_norm = norm or block.get("activation") == "bn_after_addition"
    main = _conv(1, in_channels, out_channels, 3, {"norm": norm, "bias": not norm}, stride)
    main += _conv(2, out_channels, out_channels, 3, {"norm": last_norm, "bias": not last_norm})
    conv: tuple[list[int], dict[str, Any]] = [in_channels, out_channels], {"kernel": 1, "stride": stride}
    if kind == "conv":
        return main, [Layer("downsample", "conv", *conv)]
    shortcut = {
        "dropout": [Layer("dropout", "dropout", [], {})],
        "exclusive_gate": [Layer("gate", "gate", *conv)],
        "shortcut_gate": [Layer("gate", "gate", *conv)],
    }
    return main, shortcut.get(kind, []) + _shortcut(in_channels, out_channels, {"shortcut": "pad", "stride": stride})


def _conv_norm_relu(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    kernel = block.pop("kernel")
    if kernel % 2 == 0:
        raise Error(f"'kernel' is {kernel}, expected an odd number, so that it has a centre")
    parts = _conv("", in_channels, out_channels, kernel, block, block.get("stride", 1))
    return [parts]


def _units(*units: tuple[str, int, int, int], **block: Any) -> list[Layer]:
    """The layers of a sequence of convolutions, (name, in, out, kernel), each with its batch norm."""
    parts = []
    for name, in_channels, out_channels, kernel in units:
        (unit,) = _conv_norm_relu(in_channels, out_channels, kernel=kernel, **block)
        parts += [part._replace(name=f"{name}.{part.name}") for part in unit]
    return parts


def _inception(in_channels: int, out_channels: int, branches: list[list[int]], kernel: int = 5, **block: Any) -> _Branches:
    (one,), (reduce3, three), (reduce5, five), (projection,) = branches
    pool = Layer("branch4.0", "max_pool", [], {"kernel": 3, "stride": 1, "padding": 1})
    return (
        _units(("branch1", in_channels, one, 1), **block),
        _units(("branch2.0", in_channels, reduce3, 1), ("branch2.1", reduce3, three, 3), **block),
        _units(("branch3.0", in_channels, reduce5, 1), ("branch3.1", reduce5, five, kernel), **block),
        [pool, *_units(("branch4.1", in_channels, projection, 1), **block)],
    )


def _inception_a(in_channels: int, out_channels: int, **block: Any) -> _Branches:
    block["eps"] = 1e-3
    if out_channels <= 224:
        raise Error(f"'out' is {out_channels}, expected above 224, which the branches without a pool have")
    pool = Layer("pool", "avg_pool", [], {"kernel": 3, "stride": 1, "padding": 1})
    return (
        _units(("branch1x1", in_channels, 64, 1), **block),
        _units(("branch5x5_1", in_channels, 48, 1), ("branch5x5_2", 48, 64, 5), **block),
        _units(("branch3x3dbl_1", in_channels, 64, 1), ("branch3x3dbl_2", 64, 96, 3), ("branch3x3dbl_3", 96, 96, 3), **block),
        [pool, *_units(("branch_pool", in_channels, out_channels - 224, 1), **block)],
    )


_BLOCKS: dict[str, Callable[..., _Branches]] = {
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
    """A shape for people: 3x224x224; "scalar" if it has no axes."""
    return "x".join(map(str, shape)) or "scalar"
