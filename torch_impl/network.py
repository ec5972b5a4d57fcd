"""A network from its spec. A twin: the same text as in the other package, except for the words listed in CONTRIBUTING.md."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

import shared
from shared import fold, networks, reading, shapes
from shared.spec import Spec

from . import blocks, inception, layers, preactivation
from .layers import Tensor
from .weights import load, state

TYPES: dict[str, type[nn.Module]] = {
    "conv": layers.Conv,
    "batch_norm": layers.BatchNorm,
    "local_response_norm": layers.LocalResponseNorm,
    "relu": layers.ReLU,
    "scaled_tanh": layers.ScaledTanh,
    "dropout": layers.Dropout,
    "max_pool": layers.MaxPool,
    "avg_pool": layers.AvgPool,
    "adaptive_avg_pool": layers.AdaptiveAvgPool,
    "global_avg_pool": layers.GlobalAvgPool,
    "flatten": layers.Flatten,
    "linear": layers.Linear,
    "upsample": layers.Upsample,
    "upsample_transposed": layers.UpsampleTransposed,
    "basic": blocks.BasicBlock,
    "bottleneck": blocks.Bottleneck,
    "preact_basic": preactivation.PreActBasic,
    "preact_bottleneck": preactivation.PreActBottleneck,
    "residual_unit": preactivation.ResidualUnit,
    "conv_norm_relu": inception.ConvNormReLU,
    "inception": inception.Inception,
    "inception_a": inception.InceptionA,
}


class Network(layers.Model):
    """The chain of layers that a spec describes. Each is an attribute under its name; a group of layers is a `Chain`."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.name, self.spec = spec["name"], spec
        shapes.check_fits_memory(shapes.layers(spec))
        groups: dict[str, list[tuple[str, nn.Module]]] = {}
        for name, kind, sizes, options in shared.unroll(spec):
            groups.setdefault(name.partition(".")[0], []).append((name, TYPES[kind](*sizes, **options)))
        self.groups = tuple(groups)
        for group, members in groups.items():
            if hasattr(type(self), group) or hasattr(self, group):
                raise shared.Error(f"layer {group!r}: every PyTorch network has an attribute of that name; choose another")
            alone = members[0][0] == group
            setattr(self, group, members[0][1] if alone else layers.Chain(*(layer for _, layer in members)))

    def forward(self, x: Tensor) -> Tensor:
        layers.check_images(x, self.spec)
        for group in self.groups:
            x = getattr(self, group)(x)
        return x

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """{layer name: output} of every layer of the `chain`, in order."""
        layers.check_images(x, self.spec)
        outputs = {}
        for name, layer in self.chain():
            x = layer(x)
            outputs[name] = layers.snapshot(x)
        return outputs

    def class_maps(self, x: Tensor) -> Tensor:
        """The classifier's output at every position, before any pooling: a map of x's axes with classes as channels.

        Its mean over the positions is the logits (Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3). Raises
        `shared.Error` unless the network ends in global pooling and one linear layer or 1x1 convolution.
        """
        before, classifier = networks.head(self.spec)
        layers.check_images(x, self.spec)
        for name, layer in self.chain():
            if name in before:
                x = layer(x)
            elif name == classifier:
                x = layers.at_every_position(layer, x)
        return x

    def dense_class_maps(self, x: Tensor) -> Tensor:
        """The class maps at the size of the images, by bilinear interpolation: the starting point of segmentation with a DRN.

        Positions and pixels are located by their centres (`align_corners=False`); pixels beyond the outermost positions have
        the values there.
        """
        return layers.upsampled(self.class_maps(x), x)

    def chain(self) -> Iterator[tuple[str, nn.Module]]:
        """(name, layer) of every layer of the chain, in order; the members of a group one by one, such as "layer1.0"."""
        for group in self.groups:
            layer = getattr(self, group)
            if isinstance(layer, layers.Chain):
                yield from ((f"{group}.{number}", member) for number, member in enumerate(layer))
            else:
                yield group, layer


def build(
    network: str | Path | Spec,
    seed: int = 0,
    dtype: str | None = None,
    classes: int | None = None,
    channels: int | None = None,
    weights: str | Path | None = None,
    head: bool = True,
) -> Network:
    """The network of a name, the path of a JSON file or a spec, with the initial weights of the seed.

    `dtype` is "float32", "float64" or another of the framework's dtypes, by default the framework's setting. The same seed
    gives the same weights in both frameworks.
    `classes` and `channels` are other numbers than the spec's, see `shared.networks.variant`. `head=False` leaves out the
    classifier, and `classes` then has no effect, see `shared.networks.headless`.

    `weights` is a file of any kind, or "imagenet" for those that torchvision publishes. Without `classes` and `channels` the
    network gets the file's, and all of its weights. With `classes`, a foreign classifier or one of another size is left out:
    the network's own keeps its initial weights. With `channels`, the first kernels are made for grey images or for colour, see
    `shared.reading.adapted`. Of several sets of weights in a file, it is the one that `shared.reading.load_weights` takes.

    Raises `shared.Error` if the spec is wrong, the weights do not fit, or the framework does not have the dtype.
    """
    spec, arrays = reading.network(network, seed, classes, channels, weights, head)
    net = layers.construct(Network, spec, dtype)
    load(net, arrays)
    return net


def folded(net: Network) -> Network:
    """The network for inference only, in the same precision, with batch norms folded into the convolutions before them.

    See `shared.fold`. Its `spec` and its state are those of an ordinary network.
    """
    spec, arrays = fold.folded(net.spec, state(net))
    folded_net = layers.construct(Network, spec, layers.dtype_name(net))
    load(folded_net, arrays)
    layers.for_inference(folded_net, net)
    return folded_net
