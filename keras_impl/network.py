"""A network from its spec. A twin: the text is that of the other package, but for the words listed in CONTRIBUTING.md."""

import shared
from shared import fold, networks
from shared.weights import initial

from . import blocks, inception, layers, preactivation
from .weights import adopt, load, state

TYPES = {
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
    """The chain of layers that a spec describes; a layer is the attribute of its name, a group of layers a `Chain`."""

    def __init__(self, spec):
        super().__init__()
        self.name, self.spec = spec["name"], spec
        groups = {}
        for name, kind, sizes, options in shared.unroll(spec):
            groups.setdefault(name.partition(".")[0], []).append((name, TYPES[kind](*sizes, **options)))
        self.groups = tuple(groups)
        for group, members in groups.items():
            if hasattr(type(self), group) or hasattr(self, group):
                raise shared.Error(f"layer {group!r}: every Keras network has an attribute of that name, choose another")
            alone = members[0][0] == group
            setattr(self, group, members[0][1] if alone else layers.Chain(*(layer for _, layer in members)))

    def call(self, x, training=None):
        for group in self.groups:
            x = getattr(self, group)(x)
        return x

    def activations(self, x):
        """{layer name: output} of every layer of the `chain`, in order."""
        outputs = {}
        for name, layer in self.chain():
            x = layer(x)
            outputs[name] = layers.snapshot(x)
        return outputs

    def class_maps(self, x):
        """The classifier's answer at every position, before any pooling: (batch, classes, height, width), axes as those of x.

        Their mean over the positions is the logits (Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3). Raises
        `shared.Error` where the network does not end in global pooling and one linear layer or 1x1 convolution.
        """
        before, classifier = networks.head(self.spec)
        for name, layer in self.chain():
            if name in before:
                x = layer(x)
            elif name == classifier:
                x = layers.at_every_position(layer, x)
        return x

    def dense_class_maps(self, x):
        """The class maps at the size of the images, by bilinear interpolation: what a segmentation head on a DRN begins from.

        Positions and pixels are where their centres are (`align_corners=False`), and beyond the outermost positions the maps
        stay as they are there.
        """
        return layers.upsampled(self.class_maps(x), x)

    def chain(self):
        """(name, layer) of every layer of the chain, in order; members of a group one by one, as "layer1.0"."""
        for group in self.groups:
            layer = getattr(self, group)
            members = enumerate(layer) if isinstance(layer, layers.Chain) else [(None, layer)]
            for number, member in members:
                yield group if number is None else f"{group}.{number}", member


def build(network, seed=0, dtype="float32"):
    """The network of a name, of the path of a JSON file or of a spec, with the initial weights of the seed.

    `dtype` is "float32", "float64" or another of the framework's. The same seed gives the same weights in both frameworks.
    Raises `shared.Error` where the spec is wrong.
    """
    spec = shared.load(network)
    net = layers.construct(Network, spec, dtype)
    adopt(net, initial(spec, seed))
    return net


def folded(net):
    """The network for inference alone, in the same precision: its batch norms are folded into the convolutions before them.

    See `shared.fold`. Its `spec` and its state are those of an ordinary network.
    """
    spec, arrays = fold.folded(net.spec, state(net))
    lighter = layers.construct(Network, spec, layers.dtype(net))
    load(lighter, arrays)
    layers.for_inference(lighter, net)
    return lighter
