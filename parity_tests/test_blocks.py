"""Every block with every option, in both frameworks and against torchvision's or the paper's: it runs, its shapes, its values.

Images are (batch, channels, height, width), odd-sized, not square; everything is in float64.
"""

import functools
import re
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.inception import InceptionA

import shared
import torch_impl

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras_impl
from shared import dropout, shapes, weights
from twins import ladder

TOLERANCES = ladder.TOLERANCES["float64"]
SIZES = ((7, 10), (11, 9))  # at a stride of 2, "same" and symmetric padding differ where a side is even

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
    *({**size, "shortcut": kind} for kind in shared.spec.SHORTCUTS["basic"] for size in (WIDER, SMALLER)),
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
CASES += [
    {"type": "bottleneck", **case}
    for case in (
        {**SAME_SHAPE, "width": 3},
        {**SMALLER, "width": 4, "groups": 2},
        {**SAME_SHAPE, "width": 6, "groups": 6},
        {"in": 5, "out": 32, "groups": 4},
        {**SMALLER, "width": 6, "groups": 3, "padding": "same", "bias": True},
        {**WIDER, "width": 4, "groups": 2, "dilation": 2, "repeat": 2},
    )
]
CASES += [
    {"type": kind, **case}
    for kind in ("preact_basic", "preact_bottleneck")
    for case in (
        SAME_SHAPE,
        WIDER,
        SMALLER,
        {**SAME_SHAPE, "stride": 2},
        {"in": 8, "out": 4, "stride": 3},
        *({**size, "shortcut": "pad"} for size in (SAME_SHAPE, WIDER, SMALLER)),
        *({**size, "first_activation": False} for size in (SAME_SHAPE, SMALLER)),
        {**SMALLER, "first_activation": False, "shortcut": "pad"},
        {**SMALLER, "first_activation": False, "repeat": 3},
        {**SAME_SHAPE, "norm": False},
        {**SMALLER, "norm": False, "first_activation": False, "repeat": 2},
        {**WIDER, "shortcut": "pad", "repeat": 2},
    )
]
ACTIVATIONS = ("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation")
CASES += [
    {"type": "residual_unit", **case}
    for case in (
        *({**size, "activation": order} for order in ACTIVATIONS for size in (SAME_SHAPE, SMALLER)),
        *({**size, "shortcut": kind} for kind in shared.spec.SHORTCUTS["residual_unit"][1:] for size in (SAME_SHAPE, SMALLER)),
        *({**WIDER, "activation": order, "shortcut": "exclusive_gate"} for order in ACTIVATIONS[1:]),
        {**SAME_SHAPE, "shortcut_scale": 0.5},
        {**SAME_SHAPE, "residual_scale": 2},
        {**SMALLER, "shortcut_scale": 0.5, "residual_scale": 0.25, "shortcut": "conv", "activation": "bn_after_addition"},
        {**SMALLER, "shortcut_scale": 0.5, "residual_scale": 0.25, "shortcut": "shortcut_gate"},
        {"in": 8, "out": 4, "stride": 3, "shortcut": "conv"},
        {**SMALLER, "shortcut": "dropout", "repeat": 3},
        *({**SMALLER, "activation": order, "norm": False, "repeat": 2} for order in ACTIVATIONS),
        {**SMALLER, "shortcut": "shortcut_gate", "activation": "relu_before_addition", "shortcut_scale": 0.5, "repeat": 2},
    )
]
CASES += [
    {"type": "conv_norm_relu", **size, **options}
    for size, options in (
        (SAME_SHAPE, {"kernel": 1}),
        (WIDER, {"kernel": 3, "eps": 1e-3}),
        (SMALLER, {"kernel": 5}),
        (SMALLER, {"kernel": 7, "bias": True}),
        (SMALLER, {"kernel": 3, "bias": True, "norm": False}),
    )
]
BRANCHES = {"in": 5, "out": 18, "branches": [[4], [2, 6], [3, 7], [1]]}
CASES += [
    {"type": "inception", **BRANCHES, **options}
    for options in ({}, {"kernel": 3, "eps": 1e-3}, {"bias": True, "norm": False}, {"kernel": 3, "bias": True})
]
CASES += [{"type": "inception_a", "in": 5, "out": out} for out in (225, 256)]
CASES += [{"type": "inception_a", "in": 5, "out": 256, "bias": True, "norm": norm} for norm in (True, False)]
IMPOSSIBLE = [
    ({**SMALLER, "type": "basic", "dilation": 2}, "both a stride and a dilation"),
    ({**SMALLER, "type": "bottleneck", "dilation": 2}, "both a stride and a dilation"),
    ({"type": "basic", "in": 8, "out": 5, "shortcut": "pad"}, "only adds channels"),
    ({"type": "bottleneck", "in": 8, "out": 6}, "a multiple of 4"),
    ({**SMALLER, "type": "basic", "padding": 1}, "'padding' is 1"),
    ({**SMALLER, "type": "basic", "stride_at": "conv1"}, "unknown key 'stride_at'"),
    ({**SMALLER, "type": "bottleneck", "groups": 3}, "'groups' is 3, expected a divisor of the width inside, 2"),
    ({**SMALLER, "type": "bottleneck", "width": 4, "groups": 8}, "'groups' is 8, expected a divisor of the width inside, 4"),
    ({"type": "preact_bottleneck", "in": 8, "out": 6}, "a multiple of 4"),
    ({"type": "preact_basic", "in": 8, "out": 5, "shortcut": "pad"}, "only adds channels"),
    *(
        ({"type": "residual_unit", "in": 8, "out": 5, "shortcut": kind}, "only adds channels")
        for kind in ("pad", "exclusive_gate", "shortcut_gate", "dropout")
    ),
    ({"type": "inception", **BRANCHES, "out": 19}, "'out' is 19, but the branches have 18 channels together"),
    ({"type": "inception", **BRANCHES, "kernel": 4}, "'kernel' is 4"),
    ({"type": "inception_a", "in": 5, "out": 224}, "'out' is 224, expected above 224"),
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
    return [ladder.activations(pair.engines, images) for images in pair.images]


@pytest.fixture(scope="module")
def gradients(pair, activations):
    """The gradients, and the running statistics that the passes in training mode leave."""
    found = ladder.gradients(pair.engines, pair.images[0], np.array([0, 3, 1]))
    return found, ladder.statistics(pair.engines)


def assert_within(differences, tolerance):
    first = ladder.first_beyond(differences, tolerance)
    assert first is None, f"{first.name} is the first to diverge, by {first.value:.1e}; the tolerance is {tolerance:g}"


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
        assert [(difference.name, *difference.shapes) for difference in differences] == expected


def test_activations(activations):
    for differences in activations:
        assert_within(differences, TOLERANCES["activations"])


def test_gradients(pair, gradients):
    differences, _ = gradients
    expected = {"input", *(name for name in pair.state if ".running_" not in name)}
    assert {difference.name for difference in differences} == expected
    assert_within(differences, TOLERANCES["gradients"])


def test_running_statistics(pair, gradients):
    _, differences = gradients
    running = {name for name in pair.state if ".running_" in name}
    assert {difference.name for difference in differences} == running
    assert_within(differences, TOLERANCES["statistics"])
    # Both moved, but for those of a shortcut that is not used.
    for engine in pair.engines:
        after = engine.state()
        still = {name for name in running if np.array_equal(after[name], pair.state[name])}
        unused = pair.block.get("shortcut") == "unused"
        assert still == {name for name in running if unused and ".downsample." in name}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_by_other_code(pair, training):
    """Equal names of weights, outputs and, after training mode, running statistics."""
    state = {name: torch.from_numpy(array).double() for name, array in pair.state.items()}
    state = {name.removeprefix("block."): array for name, array in state.items() if name.startswith("block.")}
    images = torch.from_numpy(pair.images[0])
    masks = dropout.masks(pair.spec, dict.fromkeys(pair.engines[0].dropouts, 0.5), images.shape, step=0)
    masks = {name: torch.from_numpy(array) for name, array in masks.items()}
    for package, engine in zip((torch_impl, keras_impl), pair.engines, strict=True):
        package.load(engine.net, pair.state)
        for name, layer in engine.dropouts.items():
            if package is torch_impl:
                layer.mask = masks[name]
            else:
                layer.masks = {threading.get_ident(): np.moveaxis(masks[name].numpy(), 1, -1)}
    with torch.no_grad():
        if pair.block["type"] in OF_THE_PAPER:
            expected = by_the_paper(pair.block, state, images, masks, training).numpy()
        else:
            expected = by_torchvision(pair.block, state, images, training).numpy()
        ours = pair.engines[0].net.train(training).block(images).numpy()
    theirs = pair.engines[1].net.block(np.moveaxis(images.numpy(), 1, -1), training=training).numpy()
    assert ladder.relative(expected, ours) <= TOLERANCES["activations"]
    assert ladder.relative(expected, np.moveaxis(theirs, -1, 1)) <= TOLERANCES["activations"]
    for engine in pair.engines:
        after = engine.state()
        for name in [name for name in state if "running_" in name]:
            assert ladder.relative(state[name].numpy(), after[f"block.{name}"]) <= TOLERANCES["statistics"], name


# He et al. 2016, figure 4 (a) to (e), and (e) with three convolutions. A projection begins at |, + is the addition.
FIGURE_4 = {
    "original": "| conv1 bn1 relu conv2 bn2 + relu",
    "bn_after_addition": "| conv1 bn1 relu conv2 + bn2 relu",
    "relu_before_addition": "| conv1 bn1 relu conv2 bn2 relu +",
    "relu_only_preactivation": "| relu conv1 bn1 relu conv2 bn2 +",
    "preact_basic": "bn1 relu | conv1 bn2 relu conv2 +",
    "preact_bottleneck": "bn1 relu | conv1 bn2 relu conv2 bn3 relu conv3 +",
}
OF_THE_PAPER = ("preact_basic", "preact_bottleneck", "residual_unit")


def by_the_paper(block, state, x, masks, training):
    """The units of a line of a spec, word by word as in the figure. Running statistics in `state` move."""
    block = {"stride": 1, "first_activation": True, "activation": "original", **block}
    words = FIGURE_4[block["activation"] if block["type"] == "residual_unit" else block["type"]]
    if not block.get("norm", True):
        words = re.sub(r"(conv\d) bn\d", r"\1", words)
    words = words.split()
    for number in range(block.get("repeat", 1)):
        prefix = f"{number}." if "repeat" in block else ""
        arrays = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        kept = masks.get(f"block.{prefix}dropout", 1) if training else 1
        y = x
        for word in words if block["first_activation"] else words[words.index("|") :]:
            if word == "|":
                beginning = y
            elif word == "+":
                y = addition(block, arrays, x, beginning, y, kept)
            elif word == "relu":
                y = F.relu(y)
            elif word.startswith("bn"):
                norm = (arrays[f"{word}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
                y = F.batch_norm(y, *norm, training, eps=1e-5, momentum=0.1)
            else:
                kernel, bias = arrays[f"{word}.weight"], arrays.get(f"{word}.bias")
                y = F.conv2d(y, kernel, bias, block["stride"] if word == "conv1" else 1, kernel.shape[-1] // 2)
        x, block = y, {**block, "in": block["out"], "stride": 1, "first_activation": True}
    return x


def addition(block, arrays, x, beginning, y, kept):
    """The shortcuts of table 1 and of the appendix."""
    kind = block.get("shortcut", "pad" if block["type"] == "residual_unit" else "projection")
    if kind == "conv":
        around = F.conv2d(x, arrays["downsample.weight"], arrays["downsample.bias"], block["stride"])
    elif kind == "projection" and (block["stride"] > 1 or block["in"] != block["out"]):
        around = F.conv2d(beginning, arrays["downsample.0.weight"], None, block["stride"])
    else:
        around = Pad(block["in"], block["out"], block["stride"])(x * kept)
    if kind.endswith("gate"):
        gate = 1 / (1 + torch.exp(-F.conv2d(x, arrays["gate.weight"], arrays["gate.bias"], block["stride"])))
        around = (1 - gate) * around
        y = gate * y if kind == "exclusive_gate" else y
    return block.get("shortcut_scale", 1) * around + block.get("residual_scale", 1) * y


def by_torchvision(block, state, images, training):
    """What torchvision's block gives. Running statistics in `state` move."""
    other = torchvision_blocks(**block).double().train(training)
    assert {name for name in other.state_dict() if not name.endswith("num_batches_tracked")} == set(state)
    other.load_state_dict(state)
    output = other(images)
    state |= {name: array for name, array in other.state_dict().items() if name in state}
    return output


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
    if block["type"] not in ("basic", "bottleneck"):
        return torchvision_inception(**block)
    if repeat is None:
        return torchvision_block(**block)
    others = {key: value for key, value in block.items() if key not in ("stride", "first_dilation")} | {"in": block["out"]}
    return torch.nn.Sequential(torchvision_block(**block), *(torchvision_block(**others) for _ in range(repeat - 1)))


def torchvision_block(
    type, stride=1, padding=None, dilation=1, first_dilation=None, bias=False, norm=True, eps=1e-5, momentum=0.1,
    shortcut="projection", stride_at="conv2", width=None, groups=1, **sizes,
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
        base_width = 64 * (width or out_channels // 4) / (out_channels // 4) / groups
        block = resnet.Bottleneck(in_channels, out_channels // 4, stride, around, groups, base_width, norm_layer=normed)
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


def torchvision_inception(type, kernel=5, stride=1, bias=False, norm=True, eps=1e-5, branches=None, **sizes):
    """torchvision's module, altered where it lacks an option."""
    in_channels, out_channels = sizes["in"], sizes["out"]

    def unit(in_channels, out_channels, **options):
        other = BasicConv2d(in_channels, out_channels, **options)
        other.bn.eps = eps if type != "inception_a" else 1e-3
        if not norm:
            other.bn = torch.nn.Identity()
        if bias:
            other.conv.bias = torch.nn.Parameter(torch.zeros(out_channels))
        return other

    if type == "conv_norm_relu":
        return unit(in_channels, out_channels, kernel_size=kernel, stride=stride, padding=kernel // 2)
    if type == "inception_a":
        return InceptionA(in_channels, out_channels - 224, conv_block=unit)
    (one,), three, five, (projection,) = branches
    block = Inception(in_channels, one, *three, *five, projection, conv_block=unit)
    if kernel == 5:
        block.branch3[1] = unit(*five, kernel_size=5, padding=2)
    return block


def test_gates_begin_almost_shut():
    """He et al. 2016, section 3.1: with a bias of -6, so that the shortcut is the identity nearly."""
    for kind in ("exclusive_gate", "shortcut_gate"):
        block = {"type": "residual_unit", **SMALLER, "shortcut": kind}
        for package in (torch_impl, keras_impl):
            state = package.state(package.build(spec_of(block)))
            assert np.array_equal(state["block.gate.bias"], np.full(8, -6))
            assert state["block.gate.weight"].std() > 0


@pytest.mark.parametrize(("block", "message"), IMPOSSIBLE, ids=[title(block) for block, _ in IMPOSSIBLE])
def test_blocks_that_cannot_be(block, message):
    for package in (torch_impl, keras_impl):
        with pytest.raises(shared.Error, match=message):
            package.build(spec_of(block))
