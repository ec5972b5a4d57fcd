"""Rungs 1 to 4 for every network: shapes, activations, gradients and running statistics, in float64; and torchvision's own."""

import gc
import itertools

import numpy as np
import pytest
import torch
import torchvision

import keras_impl
import shared
import torch_impl
from shared import networks, shapes, weights
from twins import compare, ladder

TOLERANCES = ladder.TOLERANCES["float64"]

# So deep, or magnifying rounding so much, that PyTorch departs from itself by about a tolerance: `ladder.chaos` measures it.
CHAOTIC = {"preact_resnet1001", "resnet110_bn_after_addition", "resnet110_half_shortcut", "resnet110_half_sum"}

# What does not end in a global pooling and one linear layer or 1x1 convolution.
WITHOUT_CLASS_MAPS = {"alexnet", "lenet", "lenet5", "lenet_caffe", "mnist_residual", "cifar10_resnet"}
WITHOUT_CLASS_MAPS |= {name for name in shared.names() if name.startswith("vgg") or name.endswith("_seg")}

# Ours, and torchvision's call for the same function.
SAME_NAME = "alexnet resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d wide_resnet50_2".split()
SAME_NAME += [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
TORCHVISION = {
    **{name: (name, {}) for name in SAME_NAME},
    "drn_a_50": ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
    "googlenet_bn": ("googlenet", {"aux_logits": False, "init_weights": False}),
}


# What costs time in these, of over 20 million parameters, is their width; what could go wrong is in depth and structure, which
# stay. So their numbers of channels are divided by this, and --long runs them at full width. resnet50 and drn_c_26, as large,
# always run at full width. Everyone's VGGs have 64 features where they should have 4096, which are nine tenths of a VGG.
DIVISORS = dict.fromkeys(
    """
    alexnet drn_a_34 drn_a_50 drn_b_26 drn_c_42 drn_c_58 drn_d_24 drn_d_38 drn_d_40 drn_d_54 drn_d_56 drn_d_105 drn_d_107
    drn_c_26_seg drn_d_22_seg drn_d_38_seg drn_d_105_seg
    preact_resnet50 resnet34 resnet34_cifar100 resnet50_keras resnet50_v1 resnet101 resnet101_keras resnet152 resnet152_keras
    wide_resnet50_2
    """.split(),
    4,
)
DIVISORS["resnext50_32x4d"] = 2  # which leaves two channels to each group
FULL_WIDTH = " at full width"
# Much depth of blocks that test_blocks.py and shallower networks try every time, for --long.
DEEP = {
    "preact_resnet164",
    "preact_resnet1001",
    *(name for name in shared.names() if name.startswith("resnet110_") and name != "resnet110_exclusive_gate"),
}


def narrowed(spec):
    """The spec with fewer channels, as `DIVISORS` has it; images and classes stay."""
    name, layers = spec["name"], spec["layers"]
    channels, classes = spec["input"][0], next(layer["out"] for layer in reversed(layers) if "out" in layer)

    def narrow(key, width):
        if name.startswith("vgg"):
            return 64 if width == 4096 and key in ("in", "out") else width
        kept = key not in ("in", "out", "width") or (key == "in" and width == channels) or width == classes
        return width if kept else width // DIVISORS[name]

    spec = spec | {"layers": [{key: narrow(key, value) for key, value in layer.items()} for layer in layers]}
    return spec | {"parameters": shapes.parameters(shapes.layers(spec))}


class Pair:
    """A network in both frameworks, with the same weights and randomised batch norms, and images for it."""

    def __init__(self, title):
        name = title.removesuffix(FULL_WIDTH)
        self.spec = shared.load(name)
        if name.startswith("vgg") or title in DIVISORS:
            self.spec = narrowed(self.spec)
        self.state = weights.randomised(weights.initial(self.spec))
        self.engines = []
        for package in (torch_impl, keras_impl):
            net = package.layers.construct(package.Network, self.spec, "float64")
            package.load(net, self.state)
            self.engines.append(package.Engine(net))
        channels, *self.size = self.spec["input"]
        ends = ("global_avg_pool", "adaptive_avg_pool", "upsample_transposed")
        strides = [before.stride for before, row in itertools.pairwise(shapes.layers(self.spec)) if row.type in ends]
        if strides:
            # The network takes any size: odd, not square, small, with positions left for a residual network's batch norms.
            sizes = {4: (17, 19), 8: (33, 35), 32: (33, 35) if name.startswith("vgg") else (65, 71)}
            self.size = next(size for stride, size in sizes.items() if min(strides[0], 32) <= stride)
        generator = np.random.default_rng(0)
        self.images = generator.standard_normal((3, channels, *self.size))
        self.labels = generator.integers(0, 10, (3, *shapes.layers(self.spec, self.size)[-1].shape[1:]))
        if name == "resnet110_shortcut_gate":
            self.calibrate()

    def calibrate(self):
        """Running statistics of the images themselves: with others activations grow, and open gates are steps."""
        net = self.engines[0].net
        for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        with torch.no_grad():
            net.train()(torch.from_numpy(self.images))
        for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = 0.1
        generator = np.random.default_rng(1)
        self.state = torch_impl.state(net)
        for name in self.state:
            if name.endswith("running_var"):
                self.state[name] *= generator.uniform(0.9, 1.1, self.state[name].shape)
        for package, engine in zip((torch_impl, keras_impl), self.engines, strict=True):
            package.load(engine.net, self.state)


def at_full_width(names):
    """The names, those of deep networks for --long, and for --long once more those of networks that run narrowed."""
    every = [pytest.param(name, marks=pytest.mark.long) if name in DEEP else name for name in names]
    return [*every, *(pytest.param(name + FULL_WIDTH, marks=pytest.mark.long) for name in names if name in DIVISORS)]


@pytest.fixture(scope="module", params=at_full_width(shared.names()))
def pair(request):
    gc.collect()  # the network before, whose layers refer to each other
    return Pair(request.param)


@pytest.fixture(scope="module")
def activations(pair):
    return ladder.activations(pair.engines, pair.images)


@pytest.fixture(scope="module")
def class_maps(pair):
    """PyTorch's and Keras's, with the channels first, and PyTorch's logits; None for a network that has none."""
    images = pair.images[:1]
    torch_net, keras_net = (engine.net for engine in pair.engines)
    if pair.spec["name"] in WITHOUT_CLASS_MAPS:
        for net in (torch_net, keras_net):
            with pytest.raises(shared.Error, match="has no class maps"):
                net.class_maps(images)
        return None
    with torch.no_grad():
        ours = torch_net.eval().class_maps(torch.from_numpy(images)).numpy()
        logits = torch_net(torch.from_numpy(images)).numpy()
    return ours, np.moveaxis(np.asarray(keras_net.class_maps(np.moveaxis(images, 1, -1))), -1, 1), logits


@pytest.fixture(scope="module")
def gradients(pair, activations, class_maps):  # in training mode, in which the running statistics move
    found = ladder.gradients(pair.engines, pair.images, pair.labels)
    return found, ladder.statistics(pair.engines)


@pytest.fixture(scope="module")
def tolerances(pair, activations, gradients):
    if pair.spec["name"] not in CHAOTIC:
        return TOLERANCES
    chaos = ladder.chaos(torch_impl, pair.spec, pair.state, pair.images, pair.labels)
    found = {rung: max(tolerance, 10 * chaos.get(rung, 0)) for rung, tolerance in TOLERANCES.items()}
    assert found != TOLERANCES and max(found.values()) <= compare.CEILING
    return found


def assert_within(differences, tolerance):
    first = ladder.first_beyond(differences, tolerance)
    assert first is None, f"{first.name} is the first to diverge, by {first.value:.1e}; the tolerance is {tolerance:g}"


def test_shapes(pair, activations):
    rows = shapes.layers(pair.spec, pair.size)
    expected = [(row.name, row.shape, (*row.shape[1:], row.shape[0])) for row in rows]
    assert [(difference.name, *difference.shapes) for difference in activations] == expected


def test_parameters(pair):
    torch_net, keras_net = (engine.net for engine in pair.engines)
    assert sum(p.numel() for p in torch_net.parameters() if p.requires_grad) == pair.spec["parameters"]
    assert sum(int(np.prod(v.shape)) for v in keras_net.trainable_variables) == pair.spec["parameters"]


def test_weights_go_through_both_bit_for_bit(pair, activations):
    theirs = pair.engines[1].state()
    torch_impl.load(pair.engines[0].net, theirs)
    ours = pair.engines[0].state()
    assert {name: array.shape for name, array in ours.items()} == shapes.weights(shapes.layers(pair.spec))
    assert ours.keys() == theirs.keys()
    for name, array in pair.state.items():
        assert np.array_equal(array, ours[name]) and np.array_equal(array, theirs[name]), name


def test_activations(activations, tolerances):
    assert_within(activations, tolerances["activations"])


def test_class_maps(pair, class_maps, tolerances):
    if class_maps:
        ours, theirs, logits = class_maps
        head, _ = networks.head(pair.spec)
        before = next(row for row in shapes.layers(pair.spec, pair.size) if row.name == head[-1])
        assert ours.shape == theirs.shape == (1, logits.shape[1], *before.shape[1:])
        assert ladder.relative(ours, theirs) <= tolerances["activations"]
        assert ladder.relative(logits, ours.mean((2, 3))) <= TOLERANCES["activations"]


def test_gradients(gradients, tolerances):
    assert_within(gradients[0], tolerances["gradients"])


def test_running_statistics(pair, gradients, tolerances):
    running = [name for name in shapes.weights(shapes.layers(pair.spec)) if ".running_" in name]
    assert sorted(d.name for d in gradients[1]) == sorted(running)
    assert_within(gradients[1], tolerances["statistics"])


@pytest.mark.parametrize("pair", at_full_width(TORCHVISION), indirect=True, scope="module")
def test_torchvision(pair, gradients):
    function, options = TORCHVISION[pair.spec["name"]]
    with torch.device("meta"):
        theirs = getattr(torchvision.models, function)(weights=None, **options)
        for name, module in theirs.named_modules():
            for part in dict(module.named_parameters(recurse=False)):  # which may be narrowed
                setattr(module, part, torch.nn.Parameter(torch.empty(pair.state[f"{name}.{part}"].shape)))
            for part in [part for part, _ in module.named_buffers(recurse=False) if part.startswith("running_")]:
                setattr(module, part, torch.empty(pair.state[f"{name}.{part}"].shape))
    state = {name: torch.from_numpy(array) for name, array in pair.state.items()}
    counters = {name: torch.tensor(0) for name in theirs.state_dict() if name.endswith("num_batches_tracked")}
    theirs.load_state_dict(state | counters, assign=True)
    theirs = theirs.double()
    images, labels = torch.from_numpy(pair.images), torch.from_numpy(pair.labels)

    # A pass in training mode, as the pair had one for its gradients; torchvision's dropout drops what it likes.
    drops = any(isinstance(module, torch.nn.Dropout) for module in theirs.modules())
    with torch.set_grad_enabled(not drops):
        loss = torch.nn.functional.cross_entropy(theirs.train()(images), labels)
    with torch.no_grad():
        logits = theirs.eval()(images).numpy()
    for engine in pair.engines:
        assert ladder.relative(logits, engine.predict(pair.images)) <= TOLERANCES["activations"], engine.framework
        after = engine.state()
        for name, array in theirs.state_dict().items():
            if ".running_" in name:
                assert ladder.relative(array.numpy(), after[name]) <= TOLERANCES["statistics"], (engine.framework, name)
    if not drops:
        loss.backward()
        found = pair.engines[0].gradients(pair.images, pair.labels)
        for name, parameter in theirs.named_parameters():
            assert ladder.relative(parameter.grad.numpy(), found[name]) <= TOLERANCES["gradients"], name


def test_the_papers_resnet50_differs_from_torchvisions():
    # The same weights fit both, and the stride alone makes another function of them.
    state = weights.initial("resnet50")
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    logits = []
    for name in ("resnet50", "resnet50_v1"):
        net = torch_impl.build(name, dtype="float64")
        torch_impl.load(net, state)
        logits.append(torch_impl.Engine(net).predict(images))
    assert ladder.relative(*logits) > 0.01


def test_a_relu_anywhere_in_the_chain():
    # First, where it must leave the caller's images alone; behind a block and behind another, which need their outputs.
    spec = {
        "name": "relus",
        "input": [3, 9, 9],
        "layers": [
            {"name": "relu1", "type": "relu"},
            {"name": "block", "type": "basic", "in": 3, "out": 8},
            {"name": "relu2", "type": "relu"},
            {"name": "relu3", "type": "relu"},
            {"name": "pool", "type": "global_avg_pool"},
            {"name": "flatten", "type": "flatten"},
            {"name": "fc", "type": "linear", "in": 8, "out": 4},
        ],
    }
    engines = [package.Engine(package.build(spec, dtype="float64")) for package in (torch_impl, keras_impl)]
    images = np.random.default_rng(0).standard_normal((3, 3, 9, 9))
    before = images.copy()
    assert_within(ladder.activations(engines, images), TOLERANCES["activations"])
    assert_within(ladder.gradients(engines, images, np.array([0, 1, 2])), TOLERANCES["gradients"])
    for engine in engines:
        engine.predict(images)
    assert np.array_equal(images, before)
