"""What dropout keeps: the same units in both frameworks, so that networks with dropout can be compared while they train."""

import zlib

import numpy as np

from . import shapes


def masks(spec, rates, images, step, seed=0):
    """{layer: array} to multiply the dropout layers' inputs with: 0 where dropped, 1 / (1 - rate) where kept.

    `rates` are the layers' by name, `images` the shape (batch, channels, height, width) of what the network gets. Arrays are
    (batch, channels, height, width) or (batch, features): a pure function of the arguments.
    """
    if not rates:
        return {}
    inputs = {leaf.name: leaf.shape for leaf in shapes.leaves(shapes.layers(spec, images[2:])) if leaf.name in rates}
    found = {}
    for name, rate in rates.items():
        generator = np.random.default_rng([seed, step, zlib.crc32(name.encode())])
        found[name] = (generator.random((images[0], *inputs[name])) >= rate) / (1 - rate)
    return found
