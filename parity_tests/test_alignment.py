"""Alignment and blame on recordings made by hand in NumPy: sound pairs in two layouts, and faults put into one of them."""

import math

import numpy as np
import pytest
from numpy_recording import FIRST, LAST, Network

from twins.differences import alignment, blame


def residual(framework, faults=(), seed=0):
    """A small residual network with a pool, a branch and a flattened map before its linear layer; `faults` are put into it.

    The first in a framework pads by its layers' own means; in the other an operation pads before a convolution.
    """
    net = Network(framework, seed)
    x = net.start(3, 17, 17)
    if "input scaling" in faults:
        x = net.constant("scale", "divide", x, 255.0)
    if "bgr" in faults:
        x = net.reverse("bgr", x)
    explicit = framework == LAST
    pairs = ((2, 2), (2, 2)) if "stem padding" in faults else ((3, 3), (3, 3))
    if explicit:
        x = net.pad("stem.pad", x, pairs)
    x = net.conv("stem", x, 8, 7, 2, ((0, 0), (0, 0)) if explicit else pairs)
    x = net.norm("bn", x, epsilon=1e-3 if "eps" in faults else 1e-5, momentum=0.01 if "momentum" in faults else 0.1)
    if "no relu" not in faults:
        x = net.activation("relu", x)
    if "zero pad" in faults:
        x = net.pad("pool.pad", x, ((1, 1), (1, 1)))
    x = net.pool("pool", x, padding=0 if "zero pad" in faults else 1, how="average" if "average" in faults else "max")
    if explicit:  # runs in another order
        shortcut = net.conv("shortcut", x, 8, 1, padding=0)
    y = net.conv("a", x, 8, dilation=2 if "dilation" in faults else 1, padding=2 if "dilation" in faults else 1)
    y = net.activation("a.act", y, "silu" if "silu" in faults else "relu")
    y = net.conv("b", y, 8, groups=2)
    if "bias" in faults:
        y = net.constant(
            "b.bias",
            "add",
            y,
            net.generator.standard_normal(8)[:, None, None] if framework == FIRST else net.generator.standard_normal(8),
        )
    if not explicit:
        shortcut = net.conv("shortcut", x, 8, 1, padding=0)
    x = net.sum("sum", shortcut, y) if explicit else net.sum("sum", y, shortcut)
    if "extra relu" in faults:
        x = net.activation("extra", x, "tanh")
    if "reshape" in faults:
        shape = net.shapes[x][1:]
        x = net.reshape("mixed", x, *shape[::-1])
        x = net.reshape("back", net.transpose("turned", x, 0, 2, 1, 3), *shape)
    x = net.conv("last", x, 4, stride=2)
    x = net.pool("avg", x, 2, 1, 1, "average", count_padding="count" not in faults)
    net.linear("fc", net.flatten("flat", x), 5)
    return net


def judged(one, two, copy=True):
    rng = np.random.default_rng(1)
    shape = one.back(np.zeros(one.shapes["input"])).shape
    x = rng.standard_normal(shape)
    graphs = [alignment.graph(net, {"input": net.shapes["input"]}) for net in (one, two)]
    same = one.framework == two.framework
    layout = (
        tuple(range(4))
        if same
        else alignment.by_channels(1, -1, 4)
        if one.framework == FIRST
        else alignment.by_channels(-1, 1, 4)
    )
    aligned = alignment.align(*graphs, [layout])
    values = one.values([one.laid(x)])
    return aligned, blame.judge(aligned, values, copy), x


def names(verdict):
    return [(f.operations[1] or f.operations[0], f.attribute) for f in verdict.findings]


@pytest.mark.parametrize("frameworks", [(FIRST, LAST), (LAST, FIRST), (FIRST, FIRST), (LAST, LAST)])
def test_a_sound_pair_is_sound_and_its_weights_move(frameworks):
    one, two = (residual(framework, seed=seed) for seed, framework in enumerate(frameworks))
    aligned, verdict, x = judged(one, two)
    assert names(verdict) == [] and aligned.only_a == aligned.only_b == []
    assert aligned.partner["a"] == "a" and aligned.partner["shortcut"] == "shortcut"
    two.load(verdict.weights)
    ours, theirs = (net.values([net.laid(x)])["fc"] for net in (one, two))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


FAULTS = {  # fault: (operation of B or, where B has none, of A; attribute; trap)
    "stem padding": ("stem", "padding", "same-padding"),
    "eps": ("bn", "epsilon", "bn-epsilon"),
    "no relu": ("relu", "left out", None),
    "average": ("pool", "how", None),
    "dilation": ("a", "dilation", "dilation-with-stride"),
    "silu": ("a.act", "function", None),
    "bias": ("b.bias", "bias", None),
    "extra relu": ("extra", "added", None),
    "count": ("avg", "count_padding", "average-pool-padding"),
    "input scaling": ("scale", "added", None),
    "bgr": ("stem", "order of elements", "bgr-input"),
    "reshape": ("last", "order of elements", None),
}


@pytest.mark.parametrize("framework", [FIRST, LAST])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_no_other(fault, framework):
    _, verdict, _ = judged(residual(FIRST), residual(framework, [fault]))
    operation, attribute, trap = FAULTS[fault]
    findings = [(*pair, f.trap) for pair, f in zip(names(verdict), verdict.findings, strict=True)]
    assert findings == [(operation, attribute, trap)]


def test_three_faults_are_three_findings():
    _, verdict, _ = judged(residual(FIRST), residual(LAST, ["eps", "silu", "count"]))
    assert names(verdict) == [("bn", "epsilon"), ("a.act", "function"), ("avg", "count_padding")]


def test_a_zero_pad_before_a_max_pool_is_a_fault_only_where_values_are_negative():
    _, verdict, _ = judged(residual(FIRST), residual(LAST, ["zero pad"]))
    assert names(verdict) == []
    _, verdict, _ = judged(residual(FIRST, ["no relu"]), residual(LAST, ["zero pad", "no relu"]))
    assert names(verdict) == [("pool", "padding_value")]


def test_momentum_is_no_fault_of_the_function():
    _, verdict, _ = judged(residual(FIRST), residual(LAST, ["momentum"]))
    assert names(verdict) == [] and [f.attribute for f in verdict.training] == ["momentum"]


def test_with_its_own_weights_a_flatten_in_another_order_is_named():
    one, two = residual(FIRST), residual(LAST, seed=0)
    two.load({key: array for key, array in one.arrays.items()})  # the linear layer's rows as they are
    _, verdict, _ = judged(one, two, copy=False)
    assert [(f.operations[1], f.attribute, f.trap) for f in verdict.findings] == [("fc", "flatten order", "flatten-order")]


def test_weights_of_two_networks_are_one_finding_a_role():
    _, verdict, _ = judged(residual(FIRST), residual(FIRST, seed=1), copy=False)
    assert all(f.attribute.startswith("values of the ") and f.remedy == "load A's weights" for f in verdict.findings)
    assert math.isclose(sum(f.count for f in verdict.findings if f.attribute == "values of the kernel"), 6)


def up_and_down(framework, end, wrong=()):
    """A pool with `end` pixels of padding at the end, an upsampling that takes no other size, and a strided convolution."""
    net = Network(framework)
    x = net.pool("pool", net.conv("stem", net.start(3, 12, 12), 4), padding=((0, end),) * 2)
    given = net.shapes[x]

    def threefold(inputs, weights):
        if inputs[0].shape != given:
            raise ValueError("another size")
        return net.laid(net.back(inputs[0]).repeat(3, 2).repeat(3, 3))

    size = tuple(3 * side for side in net.back(np.zeros(given)).shape[2:])
    x = net.add_operation(
        "up", "upsample", [x], threefold, channels=net.channels, how="nearest", size=size, align_corners=False, half_pixel=True
    )
    same = ((0, 1),) * 2 if size[0] % 2 == 0 else ((1, 1),) * 2
    x = net.conv("last", x, 4, stride=2, padding=((2, 2),) * 2 if "padding" in wrong else same)
    net.activation("act", x, "tanh" if "function" in wrong else "relu")
    return net


@pytest.mark.parametrize("wrong", [(), ("padding",), ("function",), ("padding", "function")])
def test_another_size_of_a_map_is_the_fault_of_what_made_it_and_hides_none_after_it(wrong):
    _, verdict, _ = judged(up_and_down(FIRST, 1), up_and_down(LAST, 0, wrong))
    places = {"padding": ("last", "padding"), "function": ("act", "function")}
    assert names(verdict) == [("pool", "padding"), *(places[each] for each in wrong)]
