"""Each network is an ordinary citizen of its own framework."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch

import keras_impl
import shared
import torch_impl
from shared import images, weights
from twins import datasets

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype("float32")
NHWC = IMAGES.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def state():
    return weights.randomised(weights.initial("resnet20"))


@pytest.fixture
def net(state):
    net = torch_impl.build("resnet20")
    torch_impl.load(net, state)
    return net.eval()


@pytest.fixture
def twin(state):
    twin = keras_impl.build("resnet20")
    keras_impl.load(twin, state)
    return twin


def test_activations_are_what_forward_gives(net, twin):
    with torch.no_grad():
        ours = net.activations(torch.from_numpy(IMAGES))
        assert torch.equal(ours["fc"], net(torch.from_numpy(IMAGES)))
    theirs = twin.activations(NHWC)
    assert np.array_equal(theirs["fc"], twin(NHWC))
    assert list(ours) == list(theirs)
    assert ours["bn1"].min() < 0  # not written over by the ReLU behind it


def test_relu_writes_over_nothing_that_is_needed():
    kinds = ["relu", "conv", "relu", "relu", "scaled_tanh", "relu"]
    chain = [{"name": f"{kind}{number}", "type": kind} for number, kind in enumerate(kinds)]
    chain[1] |= {"in": 3, "out": 4, "kernel": 1}
    net = torch_impl.build({"name": "relus", "input": [3, 32, 32], "layers": chain})
    images = torch.from_numpy(IMAGES).requires_grad_()
    net(images).sum().backward()
    assert torch.equal(images, torch.from_numpy(IMAGES))
    assert [getattr(net, layer["name"]).inplace for layer in chain if layer["type"] == "relu"] == [False, True, False, False]
    with torch.no_grad():
        outputs = net.activations(torch.from_numpy(IMAGES))
    assert outputs["conv1"].min() < 0 and torch.equal(outputs["relu2"], outputs["conv1"].relu())


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_torch_compile(compiler, net):
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend=compiler)(torch.from_numpy(IMAGES))
        assert torch.allclose(compiled, net(torch.from_numpy(IMAGES)), rtol=1e-4, atol=1e-4)


def test_torch_export_with_any_batch(net):
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.from_numpy(IMAGES),), dynamic_shapes={"x": {0: batch}})
    more = torch.from_numpy(np.concatenate([IMAGES, IMAGES]))
    with torch.no_grad():
        assert torch.allclose(program.module()(more), net(more), atol=1e-5)


def test_torch_hooks_and_replaced_layers(net):
    seen = []
    net.layer2[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    net.fc = torch.nn.Linear(64, 7)
    assert net(torch.from_numpy(IMAGES)).shape == (2, 7)
    assert seen == [(2, 32, 16, 16)]


def test_keras_save_and_load_model(twin, tmp_path):
    twin.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert np.array_equal(twin(NHWC), again(NHWC))
    assert again.spec == shared.load("resnet20")
    twin.save_weights(tmp_path / "x.weights.h5")
    other = keras_impl.build("resnet20", seed=8)
    other.load_weights(tmp_path / "x.weights.h5")
    assert np.array_equal(twin(NHWC), other(NHWC))


def test_keras_saves_its_precision(tmp_path):
    twin = keras_impl.build("mnist_residual", dtype="float64")
    twin.save(tmp_path / "x.keras")
    assert keras.saving.load_model(tmp_path / "x.keras").dtype == "float64"
    assert keras.config.dtype_policy().name == "float32"


def test_keras_saves_what_is_frozen(twin, tmp_path):
    twin.layer1.trainable = False
    twin.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert [layer.name for layer in again.layers if not layer.trainable] == ["layer1"]
    before = keras_impl.state(again)
    again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    again.fit(NHWC, np.array([1, 2]), verbose=0)
    moved = {
        name.partition(".")[0] for name, array in keras_impl.state(again).items() if not np.array_equal(array, before[name])
    }
    assert "layer1" not in moved and "layer2" in moved


def test_keras_fit_and_evaluate(tmp_path):
    digits = datasets.load_data()
    train = images.prepare(digits.x_train, 1, (28, 28)).transpose(0, 2, 3, 1)
    twin = keras_impl.build("mnist_residual")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras.utils.set_random_seed(0)  # fit shuffles
    twin.compile(keras_impl.SGD(0.02, momentum=0.9), loss, metrics=["accuracy"])
    twin.fit(train, digits.y_train, batch_size=32, epochs=3, verbose=0)
    test = images.prepare(digits.x_test, 1, (28, 28)).transpose(0, 2, 3, 1)
    _, accuracy = twin.evaluate(test, digits.y_test, verbose=0)
    assert accuracy > 0.8
    twin.save(tmp_path / "x.keras")  # the optimiser too
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert again.evaluate(test, digits.y_test, verbose=0)[1] == pytest.approx(accuracy)
    assert again.optimizer.momentum == 0.9


def test_keras_fit_updates_running_statistics(twin):
    before = keras_impl.state(twin)["bn1.running_mean"]
    twin.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    twin.fit(NHWC, np.array([1, 2]), verbose=0)
    assert not np.array_equal(before, keras_impl.state(twin)["bn1.running_mean"])


def test_keras_summary_has_shapes(twin):
    lines = []
    twin.summary(print_fn=lines.append, line_length=120)
    text = "\n".join(lines)
    assert "?" not in text and "269,722" in text
    assert "layer2 (Chain)" in text and "16, 16, 32" in text
    assert twin.name == "resnet20" and twin.get_layer("layer1")[0].conv1 is twin.layer1[0].conv1


def test_keras_jit_compile_and_mixed_precision(twin, state):
    import tensorflow

    compiled = tensorflow.function(lambda x: twin(x), jit_compile=True)
    assert np.allclose(compiled(NHWC), twin(NHWC), atol=1e-3)
    mixed = keras_impl.build("resnet20", dtype="mixed_bfloat16")
    keras_impl.load(mixed, state)
    assert mixed.layer1[0].conv1.weight.dtype == "float32"
    assert keras.backend.standardize_dtype(mixed(NHWC).dtype) == "bfloat16"


def test_any_image_size():
    images = np.random.default_rng(0).standard_normal((1, 3, 47, 61)).astype("float32")
    ours = torch_impl.Engine(torch_impl.build("resnet18")).predict(images)
    theirs = keras_impl.Engine(keras_impl.build("resnet18")).predict(images)
    assert np.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("backend", ["jax", pytest.param("torch", marks=pytest.mark.long)])
def test_other_backends_of_keras(backend, twin, tmp_path):
    np.savez(tmp_path / "w.npz", **keras_impl.state(twin))
    np.save(tmp_path / "x.npy", NHWC)
    code = """
import numpy as np, keras_impl, keras
twin = keras_impl.build("resnet20")
keras_impl.load(twin, dict(np.load("w.npz")))
np.save("y.npy", keras.ops.convert_to_numpy(twin(np.load("x.npy"))))
twin.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
twin.fit(np.load("x.npy"), np.array([1, 2]), verbose=0)
twin.save("x.keras")
saved, state = keras_impl.state(keras.saving.load_model("x.keras")), keras_impl.state(twin)
assert all(np.array_equal(saved[name], state[name]) for name in state)
print(keras.backend.backend())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": backend}
    )
    assert done.stdout.split() == [backend], done.stderr
    assert np.allclose(np.load(tmp_path / "y.npy"), twin(NHWC), atol=1e-4)


@pytest.mark.parametrize("package", [torch_impl, keras_impl], ids=lambda package: package.__name__)
def test_a_name_that_the_framework_has_already(package):
    name = "training" if package is torch_impl else "layers"
    layers = [{"name": name, "type": "flatten"}]
    with pytest.raises(shared.Error, match=f"layer '{name}': every .* network has an attribute of that name"):
        package.build({"name": "mine", "input": [1, 4, 4], "layers": layers})
