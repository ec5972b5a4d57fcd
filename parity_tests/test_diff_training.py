"""`twins.diff` with steps of training: a network in PyTorch and in Keras, sound, and with faults that training alone shows."""

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

import keras_impl  # noqa: F401
import torch_impl  # noqa: F401  before Keras
import twins
from shared.checks import Error

import keras  # isort: skip
import torch  # isort: skip
from keras import layers, ops  # isort: skip
from keras_impl.layers import BatchNorm  # isort: skip

pytestmark = pytest.mark.long


class Net(nn.Module):
    """Two convolutions with batch norms around a residual branch, dropout and a linear layer; `faults` are put into it."""

    def __init__(self, *faults):
        super().__init__()
        self.faults = faults
        self.stem, self.bn = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8, momentum=0.01 if "momentum" in faults else 0.1)
        self.drop, self.out = nn.Dropout(0.5 if "dropout" in faults else 0.2), nn.Linear(8, 4)
        if "frozen" in faults:
            self.branch.weight.requires_grad_(False)
        if "frozen norm" in faults:
            self.bn2.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if "evaluated norm" in self.faults:
            self.bn2.eval()
        return self

    def forward(self, x):
        x = functional.relu(self.bn(self.stem(x)))
        if "no_grad" in self.faults:
            with torch.no_grad():
                y = self.bn2(self.branch(x))
        else:
            y = self.bn2(self.branch(x))
        if "detached" in self.faults:
            y = y.detach()
        x = functional.relu(x + y)
        return self.out(self.drop(x.mean((2, 3))))


class Noise(layers.Layer):
    """A little of it in every pass."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seed = keras.random.SeedGenerator(0)  # JAX traces no random numbers without one

    def call(self, x):
        return x + 1e-9 * keras.random.normal((1, 8), seed=self.seed)


def port(*faults):
    """`Net` in Keras, with faults."""

    def bn(x, name):
        if f"{name} eps" in faults:
            return BatchNorm(8, eps=1e-3)(x)
        norms = {"0.1": 0.1, "0.99": 0.99, "biased": 0.9}  # Keras's own, with this momentum
        momentum = next((norms[fault] for fault in faults if fault in norms and name == "bn2"), None)
        norm = BatchNorm(8) if momentum is None else layers.BatchNormalization(epsilon=1e-5, momentum=momentum)
        norm.name = name
        norm.trainable = f"frozen {name}" not in faults
        return norm(x)

    image = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, 2, name="stem", trainable="frozen" not in faults)(layers.ZeroPadding2D(1)(image))
    x = layers.ReLU()(bn(x, "bn"))
    y = bn(layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x), "bn2")
    if "stopped" in faults:
        y = layers.Lambda(ops.stop_gradient, name="stop")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    if "noise" in faults:
        x = Noise(name="noise")(x)
    if "no dropout" not in faults:
        x = layers.Dropout(0.2, name="drop")(x)
    return keras.Model(image, layers.Dense(4, name="out")(x))


def compared(build, *faults, **options):
    """`Net` and what `build` gives for the faults, after two steps."""
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    return twins.diff(Net().eval(), build(*faults), input=(3, 12, 12), **{"train": 2} | options)


def told(report):
    """[(operation in B, attribute, trap)] of what differs in training."""
    return [(f.operations[1], f.attribute, f.trap) for f in report.training]


def test_a_sound_port_trains_alike():
    report = compared(port)
    assert report.same and report.sound and told(report) == []
    assert [measure.quantity for measure in report.trained.measures] == ["loss", "gradients", "running statistics", "update"]
    assert {measure.step for measure in report.trained.measures} <= {1, 2}
    assert report.trained.dropouts == (["drop"], ["drop"])


FAULTS = {  # fault in Keras: (operation in B, attribute, trap), A's and B's value, the quantity that diverges first
    "0.1": (("bn2", "momentum", "bn-momentum"), (0.1, 0.9), "running statistics"),
    "0.99": (("bn2", "momentum", "bn-momentum"), (0.1, 0.01), "running statistics"),
    "biased": (
        ("bn2", "running variance", "bn-running-variance"),
        ("unbiased, n/(n - 1) = 1.01408", "biased"),
        "running statistics",
    ),
    "frozen bn2": (("bn2", "training", "frozen-bn"), (True, False), "loss"),
    "stopped": (("stop", "gradient", None), ("passed on", "stopped"), "gradients"),
    "frozen": (("stem", "trainable", None), ("trained", "frozen"), "gradients"),
    "no dropout": ((None, "rate", None), ([0.2], "none"), None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_keras_is_named(fault):
    report = compared(port, fault)
    found, values, quantity = FAULTS[fault]
    assert told(report) == [found] and report.training[0].values == values
    assert report.same and not report.sound
    assert (report.trained.divergence and report.trained.divergence.quantity) == quantity


OF_PYTORCH = {  # fault in PyTorch: (operation in B, attribute, trap), the quantity that diverges first
    "momentum": (("bn2", "momentum", "bn-momentum"), "running statistics"),
    "frozen": (("branch", "trainable", None), "gradients"),
    "frozen norm": (("bn2", "trainable", "frozen-bn"), "gradients"),
    "evaluated norm": (("bn2", "training", "frozen-bn"), "loss"),
    "detached": (("detach", "gradient", None), "gradients"),
    "no_grad": (("bn2#2", "gradient", None), "gradients"),
    "dropout": (("drop", "rate", None), None),
}


@pytest.mark.parametrize("fault", OF_PYTORCH)
def test_a_fault_in_pytorch_is_named(fault):
    report = compared(Net, fault)
    found, quantity = OF_PYTORCH[fault]
    assert told(report) == [found] and not report.sound
    assert (report.trained.divergence and report.trained.divergence.quantity) == quantity


def test_faults_of_all_quantities_are_told_at_once():
    report = compared(port, "bn eps", "biased", "frozen")
    assert [finding.attribute for finding in report.findings] == ["epsilon"] and report.trained.divergence.quantity == "loss"
    assert {attribute for _, attribute, _ in told(report)} == {"running variance", "trainable"}


def test_the_weight_is_named_with_its_numbers():
    divergence = compared(port, "0.99").trained.divergence
    assert divergence.name == ("bn2.running_mean", "bn2.moving_mean") and divergence.step == 1
    assert divergence.values[0] == pytest.approx(10 * divergence.values[1]) and divergence.difference == pytest.approx(0.9)


def test_random_numbers_that_cannot_be_left_out_are_said():
    report = compared(port, "noise")
    assert not report.sound and not report.trained.measures
    assert "random numbers are drawn in noise" in report.trained.notes[0]


def test_b_keeps_its_weights_and_statistics():
    model, net = port(), Net()
    before = [np.array(weight) for weight in model.weights]
    arrays = {name: value.clone() for name, value in net.state_dict().items()}
    twins.diff(net.eval(), model, input=(3, 12, 12), train=2)
    assert all(np.array_equal(old, new) for old, new in zip(before, model.weights, strict=True))
    assert all(torch.equal(value, arrays[name]) for name, value in net.state_dict().items()) and not net.training


SETTINGS = {  # (A's optimiser, B's in Keras): [(attribute, trap)]
    ("SGD(lr=0.1, momentum=0.9)", "SGD(learning_rate=0.1, momentum=0.9)"): [],
    ("AdamW(lr=0.01, eps=1e-3)", "SGD(learning_rate=0.01)"): [("kind", None)],
    ("SGD(lr=0.1, momentum=0.9)", "SGD(learning_rate=0.1, momentum=0.8)"): [("momentum", None)],
    ("SGD(lr=0.1)", "SGD(learning_rate=0.2)"): [("rate", None)],
    (
        "SGD(lr=0.1, momentum=0.9, weight_decay=0.1)",
        "SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.1)",
    ): [("weight decay", "weight-decay")],
    ("Adam(lr=0.01, eps=1e-3)", "Adam(learning_rate=0.01, epsilon=1e-3)"): [("epsilon", "adam-epsilon")],
}


@pytest.mark.parametrize("optimizers", SETTINGS)
def test_optimisers_of_the_frameworks(optimizers):
    report = compared(port, optimizers=optimizers)
    assert [(finding.attribute, finding.trap) for finding in report.training] == SETTINGS[optimizers]
    assert report.sound == (not SETTINGS[optimizers])
    assert (report.trained.divergence and report.trained.divergence.quantity) == ("update" if SETTINGS[optimizers] else None)


def test_optimisers_that_exist_give_their_settings():
    ours, theirs = torch.optim.SGD(Net().parameters(), 0.1, 0.9), keras.optimizers.SGD(0.1, 0.9)
    assert compared(port, optimizers=(ours, theirs)).sound
    assert not compared(port, optimizers=(ours, keras.optimizers.SGD(0.1))).sound


@pytest.mark.parametrize(
    "optimizers, message",
    [
        (("SGD(lr=0.1)", None), "optimisers are for both networks"),
        (("SGD(lr=0.1)", "SGD(lr=0.1)"), "--b-optimizer: learning_rate is not given, expected a number"),
        (("Adm(lr=0.1)", "SGD()"), "--a-optimizer: PyTorch has no optimiser 'Adm', did you mean 'Adam'?"),
        (("SGD(0.1)", "SGD()"), r"--a-optimizer is SGD\(0.1\), expected one of PyTorch's"),
        (("SGD(lr=0.1, size=3)", "SGD()"), "--a-optimizer: SGD: .*size"),
    ],
)
def test_mistakes_in_optimisers(optimizers, message):
    with pytest.raises(Error, match=message):
        compared(port, optimizers=optimizers)
