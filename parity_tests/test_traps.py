"""The ladder bites: what a port by hand gets wrong is put back, trap by trap, and the ladder says where it was."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len

import keras_impl
import torch_impl

import keras  # isort: skip
from keras import ops  # isort: skip
from shared import traps as texts
from shared.checks import Error
from twins import backends, ladder, traps
from twins.cli import output

PACKAGES = [torch_impl, keras_impl]
INSTALLED = Path(torch.__file__).parents[1]
LESSONS = {
    "residual_block",
    "spec",
    "degradation",
    "training_run",
    "weights",
    "dilation",
    "gridding",
    "preactivation",
}

# trap: (what turns red, and what is first beyond its bound). Rungs are the functions of `twins/ladder.py`.
MUTATIONS = {
    "same-padding": ("activations", "conv1"),
    "max-pool-padding": ("activations", "maxpool"),
    "ceil-mode": ("activations", "maxpool"),
    "average-pool-padding": ("activations", "avgpool"),
    "bn-epsilon": ("activations", "bn1"),
    "bn-momentum": ("statistics", "bn1.running_mean"),
    "bn-running-variance": ("statistics", "bn1.running_var"),
    "frozen-bn": ("gradients", "input"),
    "flatten-order": ("activations", "flatten"),
    "kernel-layout": ("activations", "conv1"),
    "lrn-alpha": ("activations", "lrn"),
    "grouped-convolution": ("gradients", ""),  # TensorFlow refuses
    "dilation-with-stride": ("activations", "conv1"),
    "upsample-corners": ("class maps", "upsampled"),
    "initialisers": ("initial weights", "conv1.weight"),
    "resnet-version": ("activations", "layer1"),
    "bgr-input": ("logits", "fc"),
    "resize-antialias": ("pixels", "pixels"),
    "tf32": ("float32 logits", "fc"),
    "sgd-momentum-schedule": ("weights", "conv1.weight"),
    "adam-epsilon": ("losses", "step 2"),
    "weight-decay": ("losses", "step 3"),
    "weight-decay-float32": ("losses", "step 2"),
    "learning-rate-float32": ("losses", "step 2"),
    "clip-norm": ("losses", "step 2"),
    "label-smoothing": ("gradients", "input"),
    "class-weights": ("gradients", "input"),
    "softmax-in-model": ("gradients", "input"),
    "bias-before-batch-norm": ("gradients", "conv1.bias"),
    "dropout-masks": ("gradients", "input"),
    "averaged-weights": ("weights", "ema.bn1.running_mean"),
}
UNMUTATED = {"parameter-count": "a way of counting, which no network's behaviour depends on: both counts are measured below"}


@functools.cache
def measured(trap):
    return traps.measure(PACKAGES, trap)


def test_every_trap_is_put_back_or_it_says_why_not():
    forced = {*torch_impl.naive.FORCED, *keras_impl.naive.FORCED, *traps.FORCED}
    assert forced == {*MUTATIONS}
    assert {*MUTATIONS, *UNMUTATED} == {*texts.load()} and len(texts.load()) >= 24
    assert {*traps.CASES, *traps.PROBES} <= {*texts.load()}


@pytest.mark.parametrize("trap", MUTATIONS)
def test_a_naive_port_breaks_a_bound_that_this_one_keeps(trap):
    found = measured(trap)
    assert (found.rung, found.where) == MUTATIONS[trap]
    assert found.naive >= traps.LEAST and bool(found.failure) == (trap == "grouped-convolution")
    assert found.ours <= found.bound


def test_two_ways_to_count_parameters():
    found = measured("parameter-count")
    assert found.naive >= traps.LEAST and found.ours == 0


def test_nothing_stays_in_force():
    """After all of that, and after an error within."""
    with pytest.raises(KeyError), traps.put_back(PACKAGES, "flatten-order"):
        raise KeyError
    for _, differences in traps.climb(PACKAGES, traps.USUAL):
        assert ladder.largest(differences).value <= 1e-10


def keras_own(layer, x, *weights):
    """What a layer of Keras's gives for a map (batch, channels, height, width)."""
    x = x.transpose(0, 2, 3, 1)
    layer.build(x.shape)
    layer.set_weights(weights)
    return np.asarray(layer(x))


def by_naive(trap, make, x, *weights):
    """What ours gives with a trap in force."""
    with keras_impl.naive.put_back(trap):
        layer = make()
        for variable, value in zip((v for v in layer.variables), weights, strict=True):
            variable.assign(value)
        return np.asarray(layer(x.transpose(0, 2, 3, 1)))


def test_naive_layers_are_keras_own():
    generator, L, K = np.random.default_rng(0), keras_impl.layers, keras.layers  # noqa: N806
    x, kernel = generator.standard_normal((2, 4, 9, 9)).astype("float32"), generator.standard_normal((3, 3, 4, 4))
    four = [generator.uniform(0.5, 1.5, 4) for _ in range(4)]
    pairs = {
        "same-padding": (K.Conv2D(4, 3, 2, "same", use_bias=False), lambda: L.Conv(4, 4, 3, 2, 1, bias=False), [kernel]),
        "ceil-mode": (K.MaxPooling2D(3, padding="same"), lambda: L.MaxPool(3, ceil=True), []),
        "average-pool-padding": (K.AveragePooling2D(3, 1, "same"), lambda: L.AvgPool(3, 1, 1), []),
        "max-pool-padding": (
            keras.Sequential([K.ZeroPadding2D(1), K.MaxPooling2D(3, 2)]),
            lambda: L.MaxPool(3, 2, 1),
            [],
        ),
        "bn-epsilon": (K.BatchNormalization(), lambda: L.BatchNorm(4), four),
        "flatten-order": (K.Flatten(), L.Flatten, []),
    }
    for trap, (own, make, weights) in pairs.items():
        assert np.allclose(keras_own(own, x, *weights), by_naive(trap, make, x, *weights), atol=1e-6), trap


def test_naive_batch_norms_follow_as_keras_own():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype("float32")
    own = keras.layers.BatchNormalization(momentum=0.9)
    own(x, training=True)
    with keras_impl.naive.put_back("bn-running-variance"):
        ours = keras_impl.layers.BatchNorm(4)
        ours(x, training=True)
    assert np.allclose(own.moving_variance, ours.running_var, rtol=1e-6)
    own = keras.layers.BatchNormalization(momentum=0.1)
    own(x, training=True)
    with keras_impl.naive.put_back("bn-momentum"):
        ours = keras_impl.layers.BatchNorm(4)
        ours(x, training=True)
    assert np.allclose(own.moving_mean, ours.running_mean, rtol=1e-5)


@pytest.mark.parametrize(
    "trap, own, ours",
    [
        ("sgd-momentum-schedule", keras.optimizers.SGD(0.5, 0.875), lambda: keras_impl.SGD(0.5, 0.875)),
        ("adam-epsilon", keras.optimizers.Adam(0.5), lambda: keras_impl.Adam(0.5)),
        ("weight-decay", keras.optimizers.SGD(0.5, weight_decay=0.25), lambda: keras_impl.SGD(0.5, 0.0, weight_decay=0.25)),
    ],
)
def test_naive_optimizers_are_keras_own(trap, own, ours):
    gradients = np.random.default_rng(0).standard_normal((3, 4)) * 1e-6  # where an epsilon shows
    ends = []
    with keras_impl.naive.put_back(trap):
        for optimizer in (own, ours()):
            weight = keras.Variable(np.linspace(0, 1, 4), dtype="float64")
            optimizer.build([weight])
            for gradient, rate in zip(gradients, (0.5, 0.5, 0.125), strict=True):
                optimizer.learning_rate = rate
                optimizer.apply([ops.convert_to_tensor(gradient)])
            ends.append(np.asarray(weight) - np.linspace(0, 1, 4))
    assert np.allclose(*ends, rtol=1e-9, atol=0)


def test_what_the_texts_say_of_refusals():
    with pytest.raises(ValueError, match="padding='same' is not supported for strided"):
        torch.nn.Conv2d(3, 4, 3, 2, "same")
    with pytest.raises(ValueError, match="strides > 1"):
        keras.layers.Conv2D(4, 3, 2, dilation_rate=2)


def test_dilation_with_stride_is_every_second_pixel():
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    both = torch.nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, dtype=torch.float64)
    dilated = torch_impl.layers.Conv(3, 4, 3, padding=2, dilation=2).double()
    dilated.load_state_dict(both.state_dict())
    assert torch.equal(dilated(x)[:, :, ::2, ::2].contiguous(), both(x)) or torch.allclose(dilated(x)[:, :, ::2, ::2], both(x))


def test_tf32_has_ten_bits():
    values = np.array([1.0, 1 + 2**-10, 1 + 2**-11 + 2**-20, 1 + 2**-12, -1 - 2**-10, 3.1415927], np.float32)
    expected = [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, 3.140625]
    assert np.asarray(keras_impl.naive.tf32(values)).tolist() == expected


@pytest.mark.parametrize("trap", texts.load().values(), ids=lambda trap: trap.name)
def test_texts(trap):
    texts.place(trap.where)  # raises
    found = [source for source in trap.source if ".py:" in source]
    assert found and all(texts.place(source, INSTALLED) for source in found)
    assert trap.lesson in LESSONS
    assert all(text and text == text.strip() for text in (trap.title, trap.pytorch, trap.keras, trap.naive, trap.ours))


def test_a_place_that_has_gone():
    with pytest.raises(Error, match="there is no shared/traps.py:place:no such words"):
        texts.place("shared/traps.py:place:no such words")
    with pytest.raises(Error, match="there is no shared/traps.py:gone"):
        texts.place("shared/traps.py:gone")
    file, line, code = texts.place("shared/traps.py:Trap.name")
    assert (file, code) == ("shared/traps.py", "name: str")
    assert texts.place("shared/traps.py:find:raise Error")[2].startswith("raise Error(")


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns, and measurements that take no time."""
    monkeypatch.setattr(output, "width", lambda: 80)
    monkeypatch.setattr(
        traps, "measure", lambda _, trap: traps.Measurement(trap, "float32 logits", "ema.bn1.running_var", 1, 1e-14, 1e-12)
    )


def test_every_screen_fits_a_terminal(twins, narrow):
    for trap in texts.load():
        done = twins("traps", trap)
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) <= 25 and max(map(cell_len, lines)) <= 80, done.stdout
    table = twins("traps").stdout.splitlines()
    assert max(map(cell_len, table)) <= 80 and len(table) == len(texts.load()) + 4 and "…" not in "".join(table)


def test_command(twins):
    done = twins("traps same-padding")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and done.stdout.startswith("Padding of a strided convolution\n")
    assert "(activations, first at conv1)" in text and "keras_impl/layers.py, line " in text
    assert "x = pad(x, self.pixels)" in text and "docs/lessons/residual_block.md" in text
    row = json.loads(twins("traps bn-epsilon --json").stdout)
    assert row["measured"]["where"] == "bn1" and row["code"].startswith("def __init__(") and row["lesson"] == "residual_block"


def test_command_with_a_typo(twins):
    done = twins("traps same-pading")
    assert done.returncode == 2
    assert done.stderr == "twins: no trap is called 'same-pading', did you mean 'same-padding'?; `twins traps` lists them all\n"


def test_command_without_a_framework(twins, monkeypatch):
    def fail(backend):
        raise Error("PyTorch is not installed")

    monkeypatch.setattr(backends, "start", fail)
    done = twins("traps tf32")
    assert (done.returncode, done.stderr) == (0, "not measured: PyTorch is not installed\n") and "TensorFlow" in done.stdout
    rows = json.loads(twins("traps --json").stdout)
    assert len(rows) == len(texts.load()) and rows[0]["measured"] is None
    assert "same-padding" in twins("traps").stdout


def test_status_if_a_bound_breaks(twins, monkeypatch):
    monkeypatch.setattr(traps, "measure", lambda _, trap: traps.Measurement(trap, "activations", "conv1", 1, np.nan, 1e-12))
    assert twins("traps tf32").returncode == 1
