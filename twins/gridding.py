"""Gridding: what dilated convolutions leave of their grid in a network's maps, as a picture and as a number, in NumPy.

A layer's output is (channels, height, width), one of its maps (height, width). Channels are counted from 0.
"""

import numpy as np

from shared import networks, shapes
from shared.checks import Error, whole
from shared.spec import Spec

from .backends import Engine

CONSTANT = 1e-6  # of its largest value: how much a constant map may vary by rounding in float32


def strongest(output: np.ndarray) -> tuple[int, np.ndarray]:
    """(channel, map) of the highest mean activation in one layer's output."""
    # With the channels last, as in Keras, NumPy adds numbers one by one, for which float32 is too coarse.
    channel = int(output.mean((1, 2), dtype=np.float64).argmax())
    return channel, output[channel]


def gridding(values: np.ndarray, period: int) -> float:
    """The share of a map's spectral energy, its mean left out, at the frequencies of a grid of this period, in [0, 1].

    A convolution of dilation d, the period, reads positions d apart, so the d x d lattices of such positions may each have a
    level of their own (Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 4). The frequencies of such a grid are (a/d, b/d)
    cycles a position, a and b from 0 to d - 1, other than (0, 0). The map is cropped at the bottom and right to multiples of d,
    which makes them bins of its Fourier transform. By Parseval's theorem the share is also the variance of the lattices' means
    over that of the map, so a grid that fills a part of a flat map counts as that part.

    A pure grid has 1, a smooth map about 0, white noise about (d^2 - 1) / (positions - 1), a constant map 0; a map of a single
    period always has 1. Raises `Error` for a period that is no whole number of at least 2, or larger than the map.
    """
    if not whole(2).accepts(period):
        raise Error(f"the period is {period}, expected {whole(2).words}")
    height, width = (side // period * period for side in values.shape)
    if not height or not width:
        raise Error(f"a map of {shapes.text(values.shape)} is smaller than the period of the grid, {period}")
    cropped = values[:height, :width].astype(np.float64)
    varied = cropped - cropped.mean()
    largest = np.abs(varied).max()
    if largest <= CONSTANT * np.abs(cropped).max():
        return 0.0
    energy = np.abs(np.fft.fft2(varied / largest)) ** 2
    return float(energy[:: height // period, :: width // period].sum() / energy.sum())


def grid_period(spec: Spec, layer: str) -> int:
    """The largest dilation of a network up to a layer of its chain. Raises `Error` where none is above 1."""
    largest = 1
    for row in shapes.layers(spec):
        largest = max(largest, *row.dilations, 1)
        if row.name == layer:
            break
    if largest == 1:
        raise Error(f"{spec['name']} has no dilation above 1 up to {layer!r}")
    return largest


def measured(values: np.ndarray, spec: Spec, layer: str) -> dict[str, float | int | str]:
    """{"gridding": the number of a layer's map, "period": positions}, or {"no_gridding": why there is no such number}."""
    try:
        period = grid_period(spec, layer)
        return {"gridding": gridding(values, period), "period": period}
    except Error as error:
        return {"no_gridding": f"{error}"}


def describe(values: np.ndarray, spec: Spec, layer: str) -> str:
    """What `measured` gives, in words: "gridding 0.03 at period 4"."""
    found = measured(values, spec, layer)
    if "no_gridding" in found:
        return f"no gridding number: {found['no_gridding']}"
    return f"gridding {found['gridding']:.3f} at period {found['period']}"


def layer_name(name: str, spec: Spec) -> str:
    """The name of a layer in full; that of a group, as "layer1", is its last member's.

    Raises `Error` where the network has no such layer, or the layer gives no map.
    """
    full = networks.layer_name(spec, name)
    row = next(row for row in shapes.layers(spec) if row.name == full)
    if row.shape[1:] in ((), (1, 1)):
        raise Error(f"layer {row.name!r} of {spec['name']} returns {shapes.text(row.shape)}, expected one that returns maps")
    return row.name


def strongest_map(engine: Engine, batch: np.ndarray, layer: str) -> tuple[int, np.ndarray]:
    """(channel, map) of the highest mean activation of a layer for a batch of one image.

    Raises `Error` where its output is not finite.
    """
    output = engine.channels_first(engine.activations(batch)[layer])[0]
    if not np.isfinite(output).all():
        raise Error(f"{engine.framework}: layer {layer!r} returns non-finite values: these weights cannot be used")
    return strongest(output)
