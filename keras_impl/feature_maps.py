"""Outputs of named layers. A twin: the same text as in the other package, except for the words listed in CONTRIBUTING.md."""

from collections.abc import Sequence

import keras

from shared import Error, networks, unroll

from . import layers
from .layers import Tensor
from .network import Network


class Features(keras.Layer):
    """The part of a network up to the last of some layers; called with images, it gives a list of their outputs.

    The layers are the network's own, under their names, so training one also trains the other.
    """

    def __init__(self, net: Network, names: Sequence[str]) -> None:
        super().__init__()
        self._spec, self._wanted = net.spec, tuple(networks.layer_name(net.spec, name) for name in names)
        chain = [layer.name for layer in unroll(net.spec)]
        self._steps = chain[: max(map(chain.index, self._wanted)) + 1]
        for group in dict.fromkeys(name.partition(".")[0] for name in self._steps):
            members = sum(name.startswith(f"{group}.") for name in self._steps)
            layer = getattr(net, group)
            setattr(self, group, layers.Chain(*layer[:members]) if members else layer)

    def call(self, x: Tensor, training: bool | None = None) -> list[Tensor]:
        layers.check_images(x, self._spec)
        outputs = {}
        for name in self._steps:
            group, _, number = name.partition(".")
            layer = getattr(self, group)
            x = (layer[int(number)] if number else layer)(x)
            if name in self._wanted:
                outputs[name] = layers.snapshot(x)
        return [outputs[name] for name in self._wanted]


def features(net: Network, names: Sequence[str]) -> Features:
    """A module that gives the outputs of these layers of a network, a list in their order, with the framework's axes.

    A name is one of the `chain`, as "layer1.0" and "maxpool"; that of a group, as "layer1", is its last member's. Later layers
    are not run. Raises `shared.Error`, with the nearest name, if the network has no such layer.
    """
    if isinstance(names, str) or not names:
        raise Error(f"features takes a list of names of layers, found {names!r}")
    return Features(net, names)
