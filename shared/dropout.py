"""Dropout masks: both frameworks drop the same units, so that networks with dropout can be compared while they train."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from . import shapes
from .spec import Spec


def masks(spec: Spec, rates: Mapping[str, float], images: Sequence[int], step: int, seed: int = 0) -> dict[str, np.ndarray]:
    """{layer: mask} to multiply the inputs of dropout layers by: 0 for a dropped unit, 1 / (1 - rate) for any other.

    `rates` is {layer: rate}, `images` the shape (batch, channels, height, width) of the network's input. Masks are
    (batch, channels, height, width) or (batch, features): a pure function of the arguments.
    """
    if not rates:
        return {}
    unit_shapes = {leaf.name: leaf.shape for leaf in shapes.leaves(shapes.layers(spec, images[2:])) if leaf.name in rates}
    result = {}
    for name, rate in rates.items():
        generator = np.random.default_rng([seed, step, zlib.crc32(name.encode())])
        result[name] = (generator.random((images[0], *unit_shapes[name])) >= rate) / (1 - rate)
    return result
