"""Dropout: each framework's own outside an engine; in engines, both drop the same.

Images are (batch, channels, height, width).
"""

import numpy as np
import pytest
import torch

import torch_impl

# isort: split
# PyTorch first, then TensorFlow: the other modules of this suite import them in the other order.
import keras

import keras_impl
from shared import weights
from shared.dropout import masks
from twins import ladder

TOLERANCES = ladder.TOLERANCES["float64"]
PACKAGES = {"torch": torch_impl, "keras": keras_impl}

# On images, in a group of blocks, and on a vector: at several rates.
SPEC = {
    "name": "drops",
    "input": [4, 6, 5],
    "layers": [
        {"name": "drop1", "type": "dropout", "rate": 0.3},
        {"name": "units", "type": "residual_unit", "in": 4, "out": 6, "stride": 2, "shortcut": "dropout", "repeat": 2},
        {"name": "flatten", "type": "flatten"},
        {"name": "drop2", "type": "dropout", "rate": 0.6},
        {"name": "fc", "type": "linear", "in": 54, "out": 3},
    ],
}
# In front of a linear layer: the image's gradient is zero where the image is dropped.
LINEAR = {
    "name": "drop_and_linear",
    "input": [4, 6, 5],
    "layers": [
        {"name": "drop", "type": "dropout", "rate": 0.4},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 120, "out": 3},
    ],
}
RATES = {"drop1": 0.3, "units.0.dropout": 0.5, "units.1.dropout": 0.5, "drop2": 0.6}
SHAPES = {"drop1": (4, 6, 5), "units.0.dropout": (4, 6, 5), "units.1.dropout": (6, 3, 3), "drop2": (54,)}
IMAGES = np.random.default_rng(0).standard_normal((3, 4, 6, 5))
LABELS = np.array([0, 2, 1])


def alone(rate, size=(50, 40)):
    return {"name": "alone", "input": [1, *size], "layers": [{"name": "drop", "type": "dropout", "rate": rate}]}


SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def new_engines(spec=SPEC, dtype="float64", seed=0):
    return [package.Engine(package.build(spec, dtype=dtype), SGD, seed) for package in (torch_impl, keras_impl)]


def in_training(net, images):
    """What a network gives in training mode, called as its framework's users do."""
    if isinstance(net, torch.nn.Module):
        return net.train()(torch.from_numpy(images)).detach().numpy()
    return keras_impl.Engine.channels_first(net(np.moveaxis(images, 1, -1), training=True).numpy())


def seed(net, number):
    (torch.manual_seed if isinstance(net, torch.nn.Module) else keras.utils.set_random_seed)(number)


def holds_nothing(engine):
    layers = engine.dropouts.values()
    return all(layer.mask is None if engine.framework == "PyTorch" else layer.masks == {} for layer in layers)


def test_engines_find_every_dropout():
    for engine in new_engines():
        assert {name: layer.rate for name, layer in engine.dropouts.items()} == RATES


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("rate", [0, 0.1, 0.5, 0.9])
def test_drops_at_its_rate_and_scales_the_rest(package, rate):
    net = PACKAGES[package].build(alone(rate), dtype="float64")
    seed(net, 0)
    output = in_training(net, np.ones((2, 1, 50, 40)))
    dropped = output == 0
    assert dropped.mean() == pytest.approx(rate, abs=0.03)
    assert np.allclose(output[~dropped], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_seed_of_the_framework_rules_outside_an_engine(package):
    net = PACKAGES[package].build(alone(0.5), dtype="float64")
    images = np.ones((2, 1, 50, 40))
    outputs = []
    for number in (0, 0, 1):
        seed(net, number)
        if package == "keras":  # whose dropout takes its seed when it is made
            net = keras_impl.build(alone(0.5), dtype="float64")
        outputs.append([in_training(net, images), in_training(net, images)])
    assert np.array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])
    assert not np.array_equal(*outputs[0])


@pytest.mark.parametrize("package", PACKAGES)
def test_dropout_inside_a_block_drops_outside_an_engine(package):
    net = PACKAGES[package].build({**SPEC, "layers": SPEC["layers"][1:3]}, dtype="float64")
    assert not np.array_equal(in_training(net, IMAGES), in_training(net, IMAGES))


def test_evaluation_drops_nothing():
    without = {**SPEC, "layers": [layer for layer in SPEC["layers"] if layer["type"] != "dropout"]}
    without["layers"][0] = {**without["layers"][0], "shortcut": "pad"}
    for engine, other in zip(new_engines(), new_engines(without), strict=True):
        assert np.array_equal(engine.predict(IMAGES), other.predict(IMAGES))
        engine.loss(IMAGES, LABELS)
        assert np.array_equal(engine.predict(IMAGES), engine.predict(IMAGES))


def test_what_is_masks():
    rates = {**RATES, "drop2": 0}
    shape = (100, 4, 6, 5)
    arrays = masks(SPEC, rates, shape, step=3)
    for name, array in arrays.items():
        assert array.shape == (100, *SHAPES[name])
        assert set(np.unique(array)) == ({0, 1 / (1 - rates[name])} if rates[name] else {1})
        assert (array == 0).mean() == pytest.approx(rates[name], abs=0.03)
        assert np.array_equal(array, masks(SPEC, rates, shape, step=3)[name])
    assert not np.array_equal(arrays["drop1"], masks(SPEC, rates, shape, step=4)["drop1"])
    assert not np.array_equal(arrays["units.0.dropout"] == 0, masks(SPEC, {**rates, "drop1": 0.5}, shape, 3)["drop1"] == 0)
    assert masks(alone(0.5), {"drop": 0.5}, (2, 1, 7, 9), step=3)["drop"].shape == (2, 1, 7, 9)


def test_engines_drop_the_same_and_another_each_pass():
    engines = new_engines(LINEAR)
    seen = []
    for _ in range(3):
        ours, theirs = (engine.gradients(IMAGES, LABELS)["input"] == 0 for engine in engines)
        assert np.array_equal(ours, theirs)
        assert ours.mean() == pytest.approx(0.4, abs=0.1)
        assert not any(np.array_equal(ours, earlier) for earlier in seen)
        seen.append(ours)
    again = new_engines(LINEAR)[0].gradients(IMAGES, LABELS)["input"] == 0
    assert np.array_equal(seen[0], again)


def test_engines_train_alike():
    """Also where TensorFlow has traced the step: what is kept comes anew each time, for batches of another size too."""
    engines = new_engines()
    for number in range(6):
        images, labels = (IMAGES, LABELS) if number < 4 else (IMAGES[:2], LABELS[:2])
        (ours, right), (theirs, same) = (engine.step(images, labels) for engine in engines)
        assert right == same
        assert ladder.relative(ours, theirs) <= TOLERANCES["losses"], number
    ours, theirs = (engine.loss(IMAGES, LABELS) for engine in engines)
    assert ladder.relative(ours, theirs) <= TOLERANCES["losses"]
    for difference in ladder.gradients(engines, IMAGES, LABELS):
        assert difference.value <= TOLERANCES["gradients"], difference.name
    for difference in ladder.states(engines):
        assert difference.value <= TOLERANCES["weights"], difference.name


@pytest.mark.parametrize("of_a_pass", ["step", "loss", "gradients"])
def test_nothing_is_left_in_the_layers_after_a_pass(of_a_pass):
    for engine in new_engines():
        for _ in range(2):
            getattr(engine, of_a_pass)(IMAGES, LABELS)
            assert holds_nothing(engine)
        assert not np.array_equal(in_training(engine.net, IMAGES), in_training(engine.net, IMAGES))


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_left_after_a_pass_that_fails(package):
    for images, labels in ((IMAGES, np.array([0, 2, 7])), (IMAGES.repeat(2, axis=1), LABELS)):
        engine = PACKAGES[package].Engine(PACKAGES[package].build(SPEC, dtype="float64"))
        with pytest.raises(Exception, match="out of bounds|label value|images of shape"):
            engine.loss(images, labels)
        assert holds_nothing(engine)


def test_states_have_nothing_of_dropout():
    for package, engine in zip((torch_impl, keras_impl), new_engines(), strict=True):
        engine.step(IMAGES, LABELS)
        state = package.state(engine.net)
        assert not [name for name in state if "drop" in name]
        package.load(engine.net, state)
        if package is torch_impl:
            assert not [name for name in engine.net.state_dict() if "drop" in name]
    assert not [name for name in weights.initial(SPEC) if "drop" in name]


def test_keras_files_round_trip(tmp_path):
    engine = keras_impl.Engine(keras_impl.build(SPEC, dtype="float64"), SGD)
    engine.step(IMAGES, LABELS)
    engine.net.save(tmp_path / "x.keras")
    engine.net.save_weights(tmp_path / "x.weights.h5")
    again, other = keras.saving.load_model(tmp_path / "x.keras"), keras_impl.build(SPEC, seed=8, dtype="float64")
    other.load_weights(tmp_path / "x.weights.h5")
    for net in (again, other):
        assert np.array_equal(keras_impl.Engine(net).predict(IMAGES), engine.predict(IMAGES))
        assert not np.array_equal(in_training(net, IMAGES), in_training(net, IMAGES))


def test_keras_fit_drops():
    """Also where an engine has trained the network before."""
    net = keras_impl.build(LINEAR)
    keras_impl.Engine(net, SGD).step(IMAGES, LABELS)
    net.compile(keras_impl.SGD(1e-30), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = net.fit(np.moveaxis(IMAGES, 1, -1), LABELS, epochs=4, verbose=0).history
    assert len(set(history["loss"])) == 4
