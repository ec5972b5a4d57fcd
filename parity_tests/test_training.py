"""Rung 5: twenty steps of training from the same weights on the same batches are the same run, in float64."""

import numpy as np
import pytest
import torch

import keras_impl
import shared
import torch_impl
from shared import recipes, weights
from twins import ladder

TOLERANCES = ladder.TOLERANCES["float64"]
PACKAGES = (torch_impl, keras_impl)

MOMENTUM = {"name": "sgd", "momentum": 0.9}
OPTIMIZERS = {
    "sgd": {"name": "sgd"},
    "momentum": MOMENTUM,
    "nesterov": {**MOMENTUM, "nesterov": True},
    "momentum and decay": {**MOMENTUM, "weight_decay": 1e-2},
    "adam": {"name": "adam"},
    "adam and decay": {"name": "adam", "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 1e-2},
    "adamw": {"name": "adamw"},
    "adamw and decay": {"name": "adamw", "weight_decay": 0.1},
    "adamw without decay": {"name": "adamw", "weight_decay": 0.0},
}
SCHEDULES = {
    "constant": {"name": "constant"},
    "step": {"name": "step", "every": 6, "divide_by": 3},
    "multi-step": {"name": "multi_step", "milestones": [5, 12], "divide_by": 10},
    "cosine": {"name": "cosine"},
    "warm-up": {"name": "multi_step", "milestones": [15], "divide_by": 10, "warmup": 5},
    "cosine behind a warm-up": {"name": "cosine", "warmup": 4},
}
# Learning rates at which the runs are not chaotic: at larger ones, PyTorch departs from itself after a rounding.
NETWORKS = {
    "mnist_residual": (MOMENTUM, 0.05),
    "lenet5": (MOMENTUM, 0.01),
    "cifar10_resnet": ({"name": "adam"}, 1e-4),
    "resnet20": ({**MOMENTUM, "nesterov": True, "weight_decay": 1e-4}, 0.01),
}
# With and without batch norm; a projection that nothing uses, which no optimiser touches.
SMALL = {
    "with batch norm": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 6, "kernel": 3, "padding": 1, "bias": False},
        {"name": "bn1", "type": "batch_norm", "in": 6},
        {"name": "layer1", "type": "basic", "in": 6, "out": 8, "stride": 2, "shortcut": "unused"},
        {"name": "layer2", "type": "basic", "in": 8, "out": 8},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 200, "out": 10},
    ],
    "without": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 6, "kernel": 3, "padding": 1},
        {"name": "drop", "type": "dropout", "rate": 0.3},
        {"name": "layer1", "type": "basic", "in": 6, "out": 8, "stride": 2, "norm": False, "bias": True, "shortcut": "conv"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 200, "out": 10},
    ],
}


def new_engine(package, network, optimizer, rate=0.01):
    return package.Engine(package.build(network, dtype="float64"), {"learning_rate": rate, **optimizer})


def batches(count, shape, seed=0):
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal((8, *shape)), generator.integers(0, 10, 8)) for _ in range(count)]


def assert_one_run(pair, losses):
    for step, (ours, theirs) in enumerate(losses, start=1):
        assert ladder.relative(ours, theirs) <= TOLERANCES["losses"], f"step {step}: {ours!r} and {theirs!r}"
    worst = ladder.largest(ladder.states(pair))
    assert worst.value <= TOLERANCES["weights"], worst


@pytest.fixture(scope="module")
def small_engines():
    """(network, optimiser): the pair of engines, made once: TensorFlow takes longer to trace a step than to do twenty."""
    made = {}

    def get(kind, optimizer):
        if (kind, optimizer) not in made:
            spec = {"name": "small", "input": [3, 10, 10], "layers": SMALL[kind]}
            made[kind, optimizer] = [new_engine(package, spec, OPTIMIZERS[optimizer]) for package in PACKAGES]
        return made[kind, optimizer]

    return get


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", SMALL)
def test_every_optimizer_with_every_schedule(kind, optimizer, schedule, small_engines):
    pair = small_engines(kind, optimizer)
    rate = 0.05 if OPTIMIZERS[optimizer]["name"] == "sgd" else 0.002
    recipe = {"steps": 20, "optimizer": {"learning_rate": rate}, "schedule": SCHEDULES[schedule]}
    start = weights.initial(pair[0].net.spec)
    for engine in pair:
        engine.load(start)
    steps, losses = batches(20, (3, 10, 10)), []
    for number, (images, labels) in enumerate(steps):
        if number == 10:
            half = [engine.state() for engine in pair]
        rate = recipes.learning_rate(recipe, number, 7)
        losses.append([engine.step(images, labels, rate)[0] for engine in pair])
    assert_one_run(pair, losses)
    assert losses[-1] != losses[0]
    # From training to evaluation: by the running statistics, not the batch's.
    assert ladder.largest(ladder.activations(pair, batches(1, (3, 10, 10), 1)[0][0])).value <= TOLERANCES["weights"]
    # Each goes on from where the other was after ten steps, and ends where the other ends.
    ends = [engine.state() for engine in pair]
    for engine, other in zip(pair, reversed(half), strict=True):
        engine.load(other, 10)
    for number, (images, labels) in enumerate(steps[10:], start=10):
        rate = recipes.learning_rate(recipe, number, 7)
        for engine, before in zip(pair, losses[number], strict=True):
            assert ladder.relative(before, engine.step(images, labels, rate)[0]) <= TOLERANCES["losses"]
    for engine, end in zip(pair, reversed(ends), strict=True):
        worst = ladder.largest(ladder.between(end, engine.state()))
        assert worst.value <= TOLERANCES["weights"], worst
    if kind == "with batch norm":
        unused = "layer1.downsample.0.weight"
        assert all(np.array_equal(engine.state()[unused], start[unused]) for engine in pair)


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_weights(name):
    optimizer, rate = NETWORKS[name]
    pair = [new_engine(package, name, optimizer, rate) for package in PACKAGES]
    channels, height, width = shared.load(name)["input"]
    size = (33, 33) if height > 64 else (height, width)
    steps = batches(20, (channels, *size))
    assert_one_run(pair, [[engine.step(*batch)[0] for engine in pair] for batch in steps])
    last = list(weights.initial(name))[-1]
    assert not np.array_equal(pair[0].state()[last], weights.initial(name)[last])
    # Evaluation after training: by the running statistics, not the batch's.
    differences = ladder.activations(pair, steps[0][0][:2])
    assert ladder.largest(differences).value <= TOLERANCES["weights"]


def test_a_rate_that_float32_cannot_hold():
    # Keras's own optimisers keep the rate in float32: 0.1 is off by 1.5e-9 there, and so is the first step.
    pair = [new_engine(package, "mnist_residual", {"name": "sgd"}, 0.1) for package in PACKAGES]
    images = np.random.default_rng(0).standard_normal((4, 1, 28, 28))
    before = pair[0].state()
    for engine in pair:
        engine.step(images, np.arange(4))
    moves = [{name: array - before[name] for name, array in engine.state().items()} for engine in pair]
    assert max(ladder.relative(moves[0][name], moves[1][name]) for name in before) < 1e-11


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mnist_residual", "resnet20", "resnet18_cifar100"])
def test_logits_in_lower_precision(name, dtype):
    channels, *size = shared.load(name)["input"]
    images = np.random.default_rng(0).standard_normal((4, channels, *size)).astype("float32")
    first, second = (package.Engine(package.build(name, dtype=dtype)).predict(images) for package in (torch_impl, keras_impl))
    assert ladder.relative(first, second) <= ladder.TOLERANCES[dtype]["logits"]


def test_the_fast_path_is_the_same_run():
    # TensorFlow's fused batch norm takes no float64, so the rungs above never see it.
    spec = {"name": "small", "input": [3, 10, 10], "layers": SMALL["with batch norm"]}
    optimizer = {**MOMENTUM, "learning_rate": 2**-7}  # at larger ones float32's rounding grows from step to step
    nets = torch_impl.build(spec, dtype="float64"), keras_impl.build(spec)
    pair = [package.Engine(net, optimizer) for package, net in zip(PACKAGES, nets, strict=True)]
    losses = np.array([[engine.step(*batch)[0] for engine in pair] for batch in batches(10, (3, 10, 10))])
    tolerance = ladder.TOLERANCES["float32"]["logits"]
    assert abs(losses[:, 0] / losses[:, 1] - 1).max() <= tolerance
    worst = ladder.largest(ladder.states(pair))
    assert worst.value <= tolerance, worst


@pytest.mark.parametrize("name, last", [("drn_b_18_small", False), ("resnet10_small", True)])
def test_channels_are_last_but_where_pytorch_corrupts_memory(name, last):
    """A strided 1x1 convolution with few channels, trained on the CPU with the channels last, ends the process."""
    recipe = recipes.load(recipes.changed(recipes.load("scattered"), [f"network={name}"]))
    net = torch_impl.trainer(recipes.network(recipe), recipe).net
    weight = next(weight for name, weight in net.named_parameters() if name.endswith("conv2.weight"))
    assert weight.is_contiguous(memory_format=torch.channels_last) == last
