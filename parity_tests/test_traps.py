"""The ladder bites: what a plain translation to Keras gets wrong is put back, and the ladder says where it was."""

import math

import numpy as np
import pytest
from keras import ops

import keras_impl
import torch_impl
from keras_impl import layers, optimizers
from shared import weights
from twins import ladder

BOUNDS = ladder.BOUNDS["float64"]

POOLED = {
    "name": "pooled",
    "input": [3, 20, 20],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 8, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 8},
        {"name": "maxpool", "type": "max_pool", "kernel": 3, "stride": 2, "padding": 1},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 200, "out": 10},
    ],
}


def same_padding(self, x):
    return ops.conv(x, self.weight, self.stride, "same", dilation_rate=self.dilation)


def zero_padding(self, x):
    return ops.max_pool(layers.pad(x, self.padding), self.kernel, self.stride, "valid")


def keras_order(self, x):
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


def keras_constants(self, in_channels, eps=1e-3, momentum=0.1, plain=layers.BatchNorm.__init__):
    plain(self, in_channels, eps, momentum)


def biased_variance(self, running, new, plain=layers.BatchNorm._follow):
    # 3 images of 10x10 in bn1: taking the factor n / (n - 1) back
    plain(self, running, new * (299 / 300) if running is self.running_var else new)


def old_share(self, running, new):
    running.assign(self.share * running + (1 - self.share) * new)


def keras_momentum(self, gradient, variable, learning_rate):
    velocity = self.slot("momentum_buffer", variable)
    self.assign(velocity, self.momentum * velocity + (1 - self.momentum) * gradient)
    self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity)


OPTIMIZER = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}

# trap: (class, method, the naive one, rung, what diverges first)
TRAPS = {
    "same padding in a strided convolution": (layers.Conv, "call", same_padding, "activations", "conv1"),
    "zero padding of a max pool": (layers.MaxPool, "call", zero_padding, "activations", "maxpool"),
    "Keras's default eps": (layers.BatchNorm, "__init__", keras_constants, "activations", "bn1"),
    "flatten in Keras's order": (layers.Flatten, "call", keras_order, "activations", "flatten"),
    "biased running variance": (layers.BatchNorm, "_follow", biased_variance, "statistics", "bn1.running_var"),
    "momentum as the share of the old": (layers.BatchNorm, "_follow", old_share, "statistics", "bn1.running_mean"),
    "another formula of momentum": (optimizers.SGD, "update_step", keras_momentum, "weights", "conv1.weight"),
}


def keras_rate(self, gradient, variable, learning_rate):
    """The rate inside the momentum: the same run until the rate changes."""
    velocity = self.slot("momentum_buffer", variable)
    self.assign(velocity, self.momentum * velocity - ops.cast(learning_rate, variable.dtype) * gradient)
    self.assign(variable, variable + velocity)


def keras_adam(self, gradient, variable, learning_rate):
    """The eps added before the correction of the bias."""
    mean, square = self.slot("exp_avg", variable), self.slot("exp_avg_sq", variable)
    self.assign(mean, mean + (1 - self.betas[0]) * (gradient - mean))
    self.assign(square, square + (1 - self.betas[1]) * (gradient * gradient - square))
    steps = ops.cast(self.iterations + 1, variable.dtype)
    first, second = (1 - ops.power(ops.cast(beta, variable.dtype), steps) for beta in self.betas)
    rate = ops.cast(learning_rate, variable.dtype) * ops.sqrt(second) / first
    self.assign_sub(variable, rate * mean / (ops.sqrt(square) + self.eps))


def keras_decay(self, variables):
    """Decoupled from the gradient."""
    for variable in variables:
        variable.assign(variable - variable * ops.cast(self.learning_rate, variable.dtype) * self.weight_decay)


def float32_rate(self):
    return ops.cast(self._learning_rate, "float32")


SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}
ADAM = {"name": "adam"}
# trap: (optimiser, {method: the naive one})
OPTIMIZER_TRAPS = {
    "the rate inside the momentum": (SGD, {"update_step": keras_rate, "decay": lambda self, variable: 0}),
    "eps before the correction": (ADAM, {"update_step": keras_adam}),
    "decoupled weight decay": (SGD, {"_apply_weight_decay": keras_decay, "decay": lambda self, variable: 0}),
    "a rate in float32": (ADAM, {"_get_current_learning_rate": float32_rate}),
    "weight decay in float32": (
        {**SGD, "weight_decay": 0.1},
        {"decay": lambda self, v: ops.cast(np.float32(0.1), v.dtype) * v},
    ),
}


def first_beyond_its_bound():
    """(rung, name) of what first breaks a bound of the ladder, or None."""
    state = weights.randomised(weights.initial(POOLED))
    engines = []
    for package in (torch_impl, keras_impl):
        net = package.build(POOLED, dtype="float64")
        package.load(net, state)
        engines.append(package.Engine(net, OPTIMIZER))
    images, labels = np.random.default_rng(0).standard_normal((3, 3, 20, 20)), np.array([1, 2, 3])
    found = {"activations": ladder.activations(engines, images)}
    found["gradients"] = ladder.gradients(engines, images, labels)
    found["statistics"] = ladder.statistics(engines)
    for _ in range(2):
        for engine in engines:
            engine.step(images, labels)
    found["weights"] = ladder.states(engines)
    for rung, differences in found.items():
        first = ladder.first_beyond(differences, BOUNDS[rung])
        if first:
            return rung, first.name
    return None


def test_without_a_trap_every_bound_is_kept():
    assert first_beyond_its_bound() is None


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap, monkeypatch):
    owner, method, naive, rung, name = TRAPS[trap]
    monkeypatch.setattr(owner, method, naive)
    assert first_beyond_its_bound() == (rung, name)


def far_apart(optimizer):
    """The largest difference between the frameworks after three steps, the last at another rate."""
    engines = []
    for package in (torch_impl, keras_impl):
        net = package.build(POOLED, dtype="float64")
        engines.append(package.Engine(net, {"learning_rate": 0.1, **optimizer}))
    images, labels = np.random.default_rng(0).standard_normal((3, 3, 20, 20)), np.array([1, 2, 3])
    for rate in (0.1, 0.1, 0.01):
        for engine in engines:
            engine.step(images, labels, rate)
    return ladder.largest(ladder.states(engines)).value


@pytest.mark.parametrize("trap", OPTIMIZER_TRAPS)
def test_trap_in_an_optimizer(trap, monkeypatch):
    optimizer, naive = OPTIMIZER_TRAPS[trap]
    optimizer = {**optimizer, "weight_decay": 0.0} if "momentum" in trap else optimizer
    assert far_apart(optimizer) <= BOUNDS["weights"]
    owner = {"sgd": optimizers.SGD, "adam": optimizers.Adam}[optimizer["name"]]
    for method, function in naive.items():
        monkeypatch.setattr(owner, method, function)
    assert far_apart(optimizer) > 10 * BOUNDS["weights"]
