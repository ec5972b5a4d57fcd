"""Rungs 1 to 4 for every network: shapes, activations, gradients and running statistics, in float64."""

import gc

import numpy as np
import pytest

import keras_impl
import shared
import torch_impl
from shared import compare, shapes, weights

BOUNDS = compare.BOUNDS["float64"]


class Pair:
    """A network in both frameworks, with the same weights and randomised batch norms, and images for it."""

    def __init__(self, name):
        self.spec = shared.load(name)
        state = weights.randomised(weights.initial(name))
        self.engines = []
        for package in (torch_impl, keras_impl):
            net = package.build(name, dtype="float64")
            package.load(net, state)
            self.engines.append(package.Engine(net))
        channels, *self.size = self.spec["input"]
        strides = [row.stride for row in shapes.layers(self.spec) if row.type == "global_avg_pool"]
        if strides:  # the network takes any size
            # Odd, not square, and small, but no smaller than leaves the last map several positions: batch norm needs them.
            self.size = (65, 71) if strides[0] > 8 else (33, 35)
        generator = np.random.default_rng(0)
        self.images = generator.standard_normal((3, channels, *self.size))
        self.labels = generator.integers(0, 10, 3)


@pytest.fixture(scope="module", params=shared.names())
def pair(request):
    yield Pair(request.param)
    gc.collect()


@pytest.fixture(scope="module")
def activations(pair):
    return compare.activations(pair.engines, pair.images)


@pytest.fixture(scope="module")
def gradients(pair, activations):
    found = compare.gradients(pair.engines, pair.images, pair.labels)
    return found, compare.statistics(pair.engines)


def assert_within(differences, bound):
    first = compare.first_beyond(differences, bound)
    assert first is None, f"{first.name} is the first to diverge, by {first.value:.1e}; the bound is {bound:g}"


def test_shapes(pair, activations):
    rows = shapes.layers(pair.spec, pair.size)
    expected = [(row.name, row.shape, (*row.shape[1:], row.shape[0])) for row in rows]
    assert [(name, ours, theirs) for name, (ours, theirs), _ in activations] == expected


def test_parameters(pair):
    torch_net, keras_net = (engine.net for engine in pair.engines)
    assert sum(p.numel() for p in torch_net.parameters() if p.requires_grad) == pair.spec["parameters"]
    assert sum(int(np.prod(v.shape)) for v in keras_net.trainable_variables) == pair.spec["parameters"]


def test_names_and_shapes_of_weights(pair):
    expected = shapes.weights(shapes.layers(pair.spec))
    for engine in pair.engines:
        assert {name: array.shape for name, array in engine.state().items()} == expected


def test_activations(activations):
    assert_within(activations, BOUNDS["activations"])


def test_gradients(gradients):
    assert_within(gradients[0], BOUNDS["gradients"])


def test_running_statistics(pair, gradients):
    running = [name for name in shapes.weights(shapes.layers(pair.spec)) if ".running_" in name]
    assert sorted(d.name for d in gradients[1]) == sorted(running)
    assert_within(gradients[1], BOUNDS["statistics"])


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
    assert_within(compare.activations(engines, images), BOUNDS["activations"])
    assert_within(compare.gradients(engines, images, np.array([0, 1, 2])), BOUNDS["gradients"])
    for engine in engines:
        engine.predict(images)
    assert np.array_equal(images, before)
