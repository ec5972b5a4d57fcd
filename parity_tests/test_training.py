"""Rung 5: twenty steps of training from the same weights on the same batches are the same run, in float64."""

import numpy as np
import pytest

import keras_impl
import shared
import torch_impl
from shared import compare, data, weights

BOUNDS = compare.BOUNDS["float64"]

# Learning rates at which the runs are not chaotic: at larger ones, PyTorch departs from itself after a rounding.
NETWORKS = {
    "mnist_residual": 0.05,
    "lenet5": 0.01,
    "cifar10_resnet": 0.01,
    "resnet20": 0.01,
    "resnet18_cifar100": 0.005,
    "resnet18": 0.005,
}


def engines(name, rate, momentum=0.9):
    return [package.Engine(package.build(name, dtype="float64"), rate, momentum) for package in (torch_impl, keras_impl)]


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_weights(name):
    pair = engines(name, NETWORKS[name])
    channels, height, width = shared.load(name)["input"]
    size = (33, 33) if height > 64 else (height, width)
    generator = np.random.default_rng(0)
    for step in range(1, 21):
        images, labels = generator.standard_normal((8, channels, *size)), generator.integers(0, 10, 8)
        first, second = (engine.step(images, labels) for engine in pair)
        assert compare.relative(first, second) <= BOUNDS["losses"], f"step {step}: {first!r} and {second!r}"
    worst = compare.largest(compare.states(pair))
    assert worst.value <= BOUNDS["weights"], worst
    last = list(weights.initial(name))[-1]
    assert not np.array_equal(pair[0].state()[last], weights.initial(name)[last])
    # Evaluation after training: by the running statistics, not the batch's.
    differences = compare.activations(pair, generator.standard_normal((2, channels, *size)))
    assert compare.largest(differences).value <= BOUNDS["weights"]


def test_networks_learn_the_digits():
    digits = data.load("digits")
    pair = engines("mnist_residual", 0.05)
    for step in range(40):
        indices = data.batch(len(digits.x_train), 64, step)
        images = data.prepare(digits.x_train[indices], 1, (28, 28), "float64")
        for engine in pair:
            engine.step(images, digits.y_train[indices])
    test = data.prepare(digits.x_test, 1, (28, 28), "float64")
    first, second = (engine.predict(test).argmax(1) for engine in pair)
    assert np.array_equal(first, second)
    assert np.mean(first == digits.y_test) > 0.85


def test_a_rate_that_float32_cannot_hold():
    # Keras's own optimisers keep the rate in float32: 0.1 is off by 1.5e-9 there, and so is the first step.
    pair = engines("mnist_residual", 0.1, momentum=0.0)
    images = np.random.default_rng(0).standard_normal((4, 1, 28, 28))
    before = pair[0].state()
    for engine in pair:
        engine.step(images, np.arange(4))
    moves = [{name: array - before[name] for name, array in engine.state().items()} for engine in pair]
    assert max(compare.relative(moves[0][name], moves[1][name]) for name in before) < 1e-11


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mnist_residual", "resnet20", "resnet18_cifar100"])
def test_logits_in_lower_precision(name, dtype):
    channels, *size = shared.load(name)["input"]
    images = np.random.default_rng(0).standard_normal((4, channels, *size)).astype("float32")
    first, second = (package.Engine(package.build(name, dtype=dtype)).predict(images) for package in (torch_impl, keras_impl))
    assert compare.relative(first, second) <= compare.BOUNDS[dtype]["logits"]
