"""Every block with every option, in both frameworks and against torchvision's: it runs, its shapes, its values.

Images are (batch, channels, height, width), odd-sized, not square; everything is in float64.
"""

import functools

import numpy as np
import pytest
import torch
from torchvision.models import resnet

import shared
import torch_impl
from shared import compare, shapes, weights

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras_impl

BOUNDS = compare.BOUNDS["float64"]
SIZES = ((7, 10), (11, 9))  # at a stride of 2, "same" and symmetric padding part where a side is even

SAME_SHAPE, WIDER, SMALLER = {"in": 8, "out": 8}, {"in": 5, "out": 8}, {"in": 5, "out": 8, "stride": 2}
CASES = [
    SAME_SHAPE,
    WIDER,
    SMALLER,
    {"in": 8, "out": 8, "stride": 2},
    {"in": 8, "out": 4},
    {**SMALLER, "stride": 3},
    {**SAME_SHAPE, "padding": "same"},
    {**SMALLER, "padding": "same"},
    {**SAME_SHAPE, "dilation": 2},
    {**SAME_SHAPE, "dilation": 4},
    {**SAME_SHAPE, "dilation": 2, "padding": "same"},
    {**WIDER, "dilation": 4, "first_dilation": 2},
    {**SAME_SHAPE, "first_dilation": 2},
    {**SMALLER, "dilation": 2, "first_dilation": 1},
    {**SMALLER, "bias": True},
    {**SMALLER, "norm": False},
    {**SMALLER, "norm": False, "bias": True},
    {**SMALLER, "eps": 1e-3},
    {**SMALLER, "momentum": 0.01},
    *({**size, "shortcut": kind} for kind in shared.spec.SHORTCUTS for size in (WIDER, SMALLER)),
    *({**SAME_SHAPE, "shortcut": kind} for kind in ("pad", "none", "unused")),
    *({**SMALLER, "shortcut": kind, "norm": False, "bias": True} for kind in ("projection3x3", "conv", "unused")),
    *({**SMALLER, "shortcut": kind, "padding": "same"} for kind in ("projection3x3", "conv")),
    {**WIDER, "dilation": 2, "shortcut": "projection3x3"},
    {**SAME_SHAPE, "dilation": 2, "shortcut": "none"},
    {**SMALLER, "padding": "same", "bias": True, "eps": 1e-3, "momentum": 0.01},
    {**SMALLER, "repeat": 3},
    {**SMALLER, "repeat": 2, "padding": "same", "shortcut": "pad"},
    {**WIDER, "repeat": 2, "dilation": 2, "first_dilation": 1, "eps": 1e-3},
    {**WIDER, "repeat": 2, "shortcut": "unused", "bias": True},
]
CASES = [{"type": kind, **case} for kind in ("basic", "bottleneck") for case in CASES]
CASES += [
    {"type": "bottleneck", **SMALLER, "stride_at": "conv1", **options}
    for options in ({}, {"stride_at": "conv2"}, {"padding": "same"}, {"dilation": 2}, {"shortcut": "conv"}, {"repeat": 2})
]
IMPOSSIBLE = [
    ({**SMALLER, "type": "basic", "dilation": 2}, "both a stride and a dilation"),
    ({**SMALLER, "type": "bottleneck", "dilation": 2}, "both a stride and a dilation"),
    ({"type": "basic", "in": 8, "out": 5, "shortcut": "pad"}, "only adds channels"),
    ({"type": "bottleneck", "in": 8, "out": 6}, "a multiple of 4"),
    ({**SMALLER, "type": "basic", "padding": 1}, "'padding' is 1"),
    ({**SMALLER, "type": "basic", "stride_at": "conv1"}, "unknown key 'stride_at'"),
]


def title(block):
    words = [f"{key}={value}" for key, value in block.items() if key not in ("type", "in", "out")]
    return "-".join([block["type"], f"{block['in']}to{block['out']}", *words])


def spec_of(block):
    """A network of the block alone, with a classifier behind it so that it has a loss."""
    return {
        "name": "one_block",
        "input": [block["in"], *SIZES[0]],
        "layers": [
            {"name": "block", **block},
            {"name": "pool", "type": "global_avg_pool"},
            {"name": "flatten", "type": "flatten"},
            {"name": "fc", "type": "linear", "in": block["out"], "out": 5},
        ],
    }


class Pair:
    """A network in both frameworks, with the same weights and randomised batch norms, and images of both sizes."""

    def __init__(self, block):
        self.block, self.spec = block, spec_of(block)
        self.state = weights.randomised(weights.initial(self.spec))
        self.images = [np.random.default_rng(0).standard_normal((3, block["in"], *size)) for size in SIZES]
        self.engines = []
        for package in (torch_impl, keras_impl):
            net = package.build(self.spec, dtype="float64")
            package.load(net, self.state)
            self.engines.append(package.Engine(net))


@pytest.fixture(scope="module", params=CASES, ids=title)
def pair(request):
    return Pair(request.param)


@pytest.fixture(scope="module")
def activations(pair):
    return [compare.activations(pair.engines, images) for images in pair.images]


@pytest.fixture(scope="module")
def gradients(pair, activations):
    """The gradients, and the running statistics that the passes in training mode leave."""
    found = compare.gradients(pair.engines, pair.images[0], np.array([0, 3, 1]))
    return found, compare.statistics(pair.engines)


def assert_within(differences, bound):
    first = compare.first_beyond(differences, bound)
    assert first is None, f"{first.name} is the first to diverge, by {first.value:.1e}; the bound is {bound:g}"


def test_runs(pair):
    for engine in pair.engines:
        logits = engine.predict(pair.images[0])
        assert logits.dtype == np.float64
        assert np.isfinite(logits).all()
        assert logits.any()


def test_names_and_shapes_of_weights(pair):
    expected = shapes.weights(shapes.layers(pair.spec))
    for engine in pair.engines:
        assert {name: array.shape for name, array in engine.state().items()} == expected


def test_shapes(pair, activations):
    for size, differences in zip(SIZES, activations, strict=True):
        expected = [(row.name, row.shape, (*row.shape[1:], row.shape[0])) for row in shapes.layers(pair.spec, size)]
        assert [(name, ours, theirs) for name, (ours, theirs), _ in differences] == expected


def test_activations(activations):
    for differences in activations:
        assert_within(differences, BOUNDS["activations"])


def test_gradients(pair, gradients):
    differences, _ = gradients
    expected = {"input", *(name for name in pair.state if ".running_" not in name)}
    assert {difference.name for difference in differences} == expected
    assert_within(differences, BOUNDS["gradients"])


def test_running_statistics(pair, gradients):
    _, differences = gradients
    running = {name for name in pair.state if ".running_" in name}
    assert {difference.name for difference in differences} == running
    assert_within(differences, BOUNDS["statistics"])
    # Both moved, but for those of a shortcut that is not used.
    for engine in pair.engines:
        after = engine.state()
        still = {name for name in running if np.array_equal(after[name], pair.state[name])}
        unused = pair.block.get("shortcut") == "unused"
        assert still == {name for name in running if unused and ".downsample." in name}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_torchvision(pair, training):
    """Equal names of weights, outputs and, after training mode, running statistics."""
    state = {name.removeprefix("block."): array for name, array in pair.state.items() if name.startswith("block.")}
    images = torch.from_numpy(pair.images[0])
    other = torchvision_blocks(**pair.block).double().train(training)
    assert {name for name in other.state_dict() if not name.endswith("num_batches_tracked")} == set(state)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    for package, engine in zip((torch_impl, keras_impl), pair.engines, strict=True):
        package.load(engine.net, pair.state)
    with torch.no_grad():
        expected = other(images).numpy()
        ours = pair.engines[0].net.train(training).block(images).numpy()
    theirs = pair.engines[1].net.block(np.moveaxis(images.numpy(), 1, -1), training=training).numpy()
    assert compare.relative(expected, ours) <= BOUNDS["activations"]
    assert compare.relative(expected, np.moveaxis(theirs, -1, 1)) <= BOUNDS["activations"]
    running = {name: array.numpy() for name, array in other.state_dict().items() if "running_" in name}
    for engine in pair.engines:
        after = engine.state()
        for name, array in running.items():
            assert compare.relative(array, after[f"block.{name}"]) <= BOUNDS["statistics"], name


class Unused(torch.nn.Sequential):
    """It has weights and adds nothing."""

    def forward(self, x):
        return 0.0


class Pad(torch.nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.added, self.stride = out_channels - in_channels, stride

    def forward(self, x):
        small = x[:, :, :: self.stride, :: self.stride]
        before, after = (torch.zeros_like(small[:, :1]).repeat(1, n, 1, 1) for n in (self.added // 2, (self.added + 1) // 2))
        return torch.cat([before, small, after], 1)


def pad_same(conv, inputs):
    """As TensorFlow's documentation gives the rule for "SAME"."""
    (kernel, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
    height, width = (max(dilation * (kernel - 1) + 1 - (n % stride or stride), 0) for n in inputs[0].shape[2:])
    return torch.nn.functional.pad(inputs[0], (width // 2, (width + 1) // 2, height // 2, (height + 1) // 2))


def torchvision_blocks(repeat=None, **block):
    """A line of a spec by torchvision's blocks; only the first has the stride and the first dilation."""
    if repeat is None:
        return torchvision_block(**block)
    others = {key: value for key, value in block.items() if key not in ("stride", "first_dilation")} | {"in": block["out"]}
    return torch.nn.Sequential(torchvision_block(**block), *(torchvision_block(**others) for _ in range(repeat - 1)))


def torchvision_block(
    type, stride=1, padding=None, dilation=1, first_dilation=None, bias=False, norm=True, eps=1e-5, momentum=0.1,
    shortcut="projection", stride_at="conv2", **sizes,
):  # fmt: skip
    """torchvision's block, altered where it lacks an option."""
    in_channels, out_channels = sizes["in"], sizes["out"]
    normed = functools.partial(torch.nn.BatchNorm2d, eps=eps, momentum=momentum) if norm else lambda _: torch.nn.Identity()
    around = None
    if stride > 1 or in_channels != out_channels:
        kernel = 3 if shortcut == "projection3x3" else 1
        layers = [torch.nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias or shortcut == "conv")]
        layers += [normed(out_channels)] * (norm and shortcut != "conv")
        around = Pad(in_channels, out_channels, stride) if shortcut == "pad" else torch.nn.Sequential(*layers)
    if shortcut in ("none", "unused"):
        around = Unused(*(around or () if shortcut == "unused" else ()))
    if type == "basic":
        block = resnet.BasicBlock(in_channels, out_channels, stride, around, norm_layer=normed)
        dilations = {"conv1": first_dilation or dilation, "conv2": dilation}
    else:
        block = resnet.Bottleneck(in_channels, out_channels // 4, stride, around, norm_layer=normed)
        dilations = {"conv2": first_dilation or dilation}
    for name, pixels in dilations.items():
        conv = block.get_submodule(name)
        conv.dilation = conv.padding = (pixels, pixels)
    if stride_at == "conv1":
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    for conv in (module for module in block.modules() if isinstance(module, torch.nn.Conv2d)):
        if bias:
            conv.bias = torch.nn.Parameter(torch.zeros(conv.out_channels))
        if padding == "same":
            conv.padding = (0, 0)
            conv.register_forward_pre_hook(pad_same)
    return block


@pytest.mark.parametrize(("block", "message"), IMPOSSIBLE, ids=[title(block) for block, _ in IMPOSSIBLE])
def test_blocks_that_cannot_be(block, message):
    for package in (torch_impl, keras_impl):
        with pytest.raises(shared.Error, match=message):
            package.build(spec_of(block))
