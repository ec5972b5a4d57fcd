"""What the comparison makes of what it found."""

import math

import numpy as np
import pytest

import shared
import torch_impl
from shared import weights
from twins import ladder
from twins.compare import Report, Step
from twins.ladder import Difference, relative


def report(dtype="float64", **changes):
    kept = {
        "network": "x",
        "dtype": dtype,
        "frameworks": ("PyTorch", "Keras"),
        "size": (8, 8),
        "parameters": (3, 3, 3),
        "activations": [Difference("conv1", ((), ()), 1e-16), Difference("fc", ((), ()), 1e-16)],
        "steps": [Step((1.0, 1.0), 1e-16, 1e-16)] * 3,
        "weights": [Difference("fc.bias", ((), ()), 1e-15)],
        "same_predictions": True,
    }
    return Report(**kept | changes)


def test_nothing_is_broken():
    assert report().broken == [] and report().judged_steps == 3 and report().first_diverging_layer is None


def late(value):
    return [Difference("conv1", ((), ()), 1e-16), Difference("bn1", ((), ()), value), Difference("fc", ((), ()), value)]


def steps(*differences, control=1e-16):
    return [Step((1.0, 1.0), difference, control) for difference in differences]


BROKEN = {
    "parameters": ({"parameters": (3, 3, 4)}, ["parameters: 3 by arithmetic, 3 and 4 in the networks"]),
    "activations": ({"activations": late(1e-3)}, ["activations: bn1 is the first to diverge, by 1.0e-03"]),
    "no number": ({"activations": late(math.nan)}, ["activations: bn1 is the first to diverge, by nan"]),
    "gradients": ({"gradients": late(1e-8)}, ["gradients: bn1 is the first"]),
    "statistics": ({"statistics": late(1e-11)}, ["statistics: bn1 is the first"]),
    "losses": ({"steps": steps(1e-16, 1e-9, 1e-8)}, ["losses: step 2 is the first to diverge, by 1.0e-09"]),
    "weights": ({"weights": late(1e-9)}, ["weights: bn1 is the first"]),
    "predictions": ({"same_predictions": False}, ["predictions: "]),
    "a loss that is no number": (
        {"steps": [Step((math.nan, math.nan), math.nan, math.nan)]},
        ["losses: the loss is NaN or infinite at step 1", "losses"],
    ),
    "logits": ({"dtype": "float32", "activations": late(1e-3)}, ["logits: they differ by 1.0e-03; the tolerance is 0.0001"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(case):
    changes, words = BROKEN[case]
    lines = report(**changes).broken
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert line.startswith(word)


def test_the_first_diverging_layer_is_named_in_any_precision():
    for dtype in ("float64", "float32", "bfloat16"):
        assert report(dtype, activations=late(0.1)).first_diverging_layer == "bn1"


def test_a_chaotic_run_is_not_judged_beyond_its_chaos():
    chaos = steps(1e-16) + steps(1e-3, 1e-2, control=1e-12)
    found = report(steps=chaos, weights=late(0.1), same_predictions=False)
    assert found.judged_steps == 1 and found.broken == []
    assert report(steps=steps(1e-3) + chaos).broken  # before the chaos it is


def test_relative():
    assert relative([3.0, 4.0], [3.0, 4.5]) == pytest.approx(0.1)
    assert relative([0.0], [0.0]) == 0 and relative([1.0], [1.0, 2.0]) == math.inf
    assert math.isnan(relative([math.nan], [1.0]))


def test_a_network_that_magnifies_rounding_is_held_to_ten_times_that():
    broken = "activations: bn1 is the first to diverge, by 5.0e-12; the tolerance is 1e-12"
    assert report(activations=late(5e-12), chaos={"activations": 1e-14}).broken == [broken]
    assert report(activations=late(5e-12), chaos={"activations": 1e-12}).broken == []
    assert len(report(activations=late(5e-11), chaos={"activations": 1e-12}).broken) == 1
    # What is no number is wrong in any case, and other rungs keep their tolerances.
    chaos = {"activations": 1e-3, "gradients": 1e-14}
    assert len(report(activations=late(math.nan), gradients=late(1e-8), chaos=chaos).broken) == 2


def test_chaos_is_measured_on_networks_that_magnify_rounding_alone():
    calm, wild = (
        ladder.chaos(torch_impl, name, weights.randomised(weights.initial(name)), *noise(name))
        for name in ("mnist_residual", "resnet110_half_sum")
    )
    assert calm["gradients"] < 1e-13 and "statistics" not in calm
    assert 1e-10 < wild["gradients"] < 1e-6 and wild["activations"] < 1e-12


def noise(name):
    channels, height, width = shared.load(name)["input"]
    return np.random.default_rng(0).standard_normal((3, channels, height, width)), np.arange(3)
