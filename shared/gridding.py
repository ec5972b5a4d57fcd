"""Gridding: what dilated convolutions leave of their grid in a network's maps, as a picture and as a number, in NumPy.

A layer's output is (channels, height, width), one of its maps (height, width). Channels are counted from 0.
"""

from pathlib import Path

import numpy as np

from . import shapes
from .curves import check_picture
from .spec import Error, nearest, whole
from .weights import aside

CONSTANT = 1e-6  # of its largest value: what a map that should be constant may vary by, from rounding in float32


def strongest(output):
    """(channel, map) of the highest mean activation in one layer's output."""
    # With the channels last, as Keras has them, NumPy adds up one by one, which float32 is too coarse for.
    channel = int(output.mean((1, 2), dtype=np.float64).argmax())
    return channel, output[channel]


def gridding(values, period):
    """The share of a map's spectral energy, its mean left out, at the frequencies of a grid of this period, in [0, 1].

    A convolution of dilation d, the period, reads positions d apart, so the d x d lattices of such positions may each have a
    level of their own (Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 4). The frequencies of such a grid are (a/d, b/d)
    cycles a position, a and b from 0 to d - 1, other than (0, 0). The map is cropped at the bottom and right to multiples of d,
    which makes them bins of its Fourier transform. By Parseval's theorem the share is also the variance of the lattices' means
    over that of the map, so a grid that fills a part of a flat map counts as that part.

    A pure grid has 1, a smooth map about 0, white noise about (d^2 - 1) / (positions - 1), a constant map 0; a map of a single
    period always has 1. Raises `Error` for a period that is no whole number of at least 2, or larger than the map.
    """
    test, words = whole(2)
    if not test(period):
        raise Error(f"the period is {period}, expected {words}")
    height, width = (side // period * period for side in values.shape)
    if not height or not width:
        raise Error(f"a map of {_text(values.shape)} is smaller than the period of the grid, {period}")
    cropped = values[:height, :width].astype(np.float64)
    varied = cropped - cropped.mean()
    largest = np.abs(varied).max()
    if largest <= CONSTANT * np.abs(cropped).max():
        return 0.0
    energy = np.abs(np.fft.fft2(varied / largest)) ** 2
    return float(energy[:: height // period, :: width // period].sum() / energy.sum())


def period(spec, layer):
    """The largest dilation of a network up to a layer of its chain. Raises `Error` where none is above 1."""
    largest = 1
    for row in shapes.layers(spec):
        largest = max(largest, *row.dilations, 1)
        if row.name == layer:
            break
    if largest == 1:
        raise Error(f"{spec['name']} has no dilation above 1 up to {layer!r}")
    return largest


def told(values, spec, layer):
    """The `gridding` of a layer's map in words: "gridding 0.03 at period 4", or why there is no such number."""
    try:
        found = period(spec, layer)
        return f"gridding {gridding(values, found):.3f} at period {found}"
    except Error as error:
        return f"no gridding number: {error}"


def full_name(name, spec):
    """The name of a layer in full; that of a group, as "layer1", is its last member's.

    Raises `Error` where the network has no such layer, or the layer gives no map.
    """
    rows = shapes.layers(spec)
    known = {row.name.partition(".")[0]: row for row in rows} | {row.name: row for row in rows}
    if name not in known:
        wanted = nearest(name, known) or f"; `twins show {spec['name']}` lists them"
        raise Error(f"{spec['name']} has no layer {name!r}{wanted}")
    found, shape = known[name].name, known[name].shape
    if shape[1:] in ((), (1, 1)):
        raise Error(f"layer {found!r} of {spec['name']} gives {_text(shape)}, expected one that gives maps")
    return found


def look(engine, batch, layer):
    """(channel, map) of the highest mean activation of a layer for a batch of one image.

    Raises `Error` where its output is not finite.
    """
    output = engine.channels_first(engine.activations(batch)[layer])[0]
    if not np.isfinite(output).all():
        raise Error(f"layer {layer!r} gives numbers that are not finite in {engine.framework}: these weights cannot be used")
    return strongest(output)


def check(image, path):
    """Raise `Error` where a picture of an image could not be drawn into a file, or would replace the image."""
    check_picture(path)
    if Path(path).exists() and Path(path).samefile(image):
        raise Error(f"{path}: this is the image itself, expected another file")


def draw(panels, path, title=""):
    """Draw panels, [(title, picture or map)], side by side into a file ending in one of `shared.curves.KINDS`.

    A picture is (height, width, 1 or 3), bytes. Each map has the whole range of colours, from its least value to its largest.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3 * len(panels), 3.6), layout="constrained", squeeze=False)
    for place, (above, pixels) in zip(axes[0], panels, strict=True):
        colours = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 3 else {"cmap": "viridis"}
        place.imshow(pixels, interpolation="nearest", **colours)
        place.set_title(above, fontsize="medium", parse_math=False)
        place.set_axis_off()
    figure.suptitle(title, parse_math=False)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _text(shape):
    return "x".join(map(str, shape))
