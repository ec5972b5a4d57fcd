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


TINY = {
    "name": "tiny",
    "input": [3, 8, 8],
    "layers": [
        {"name": "conv1", "type": "conv", "in": 3, "out": 4, "kernel": 3, "padding": 1},
        {"name": "bn1", "type": "batch_norm", "in": 4},
        {"name": "relu", "type": "relu"},
        {"name": "layer1", "type": "basic", "in": 4, "out": 4, "repeat": 2},
        {"name": "layer2", "type": "basic", "in": 4, "out": 8, "stride": 2, "repeat": 2},
        {"name": "pool", "type": "global_avg_pool"},
        {"name": "flatten", "type": "flatten"},
        {"name": "fc", "type": "linear", "in": 8, "out": 3},
    ],
}
SMALL = IMAGES[:, :, :8, :8]
NAMES = ["layer2", "bn1", "layer1.0"]


def test_features_are_the_activations_in_the_order_of_the_names():
    net, twin = torch_impl.build(TINY).eval(), keras_impl.build(TINY)
    ours, theirs = torch.from_numpy(SMALL), SMALL.transpose(0, 2, 3, 1)
    with torch.no_grad():
        pairs = [(torch_impl.features(net, NAMES)(ours), net.activations(ours))]
    pairs.append((keras_impl.features(twin, NAMES)(theirs), twin.activations(theirs)))
    for outputs, activations in pairs:
        for output, name in zip(outputs, ("layer2.1", "bn1", "layer1.0"), strict=True):
            assert np.array_equal(output, activations[name]), name


def test_features_train_with_the_network():
    net = torch_impl.build(TINY)
    part = torch_impl.features(net, ["layer1", "relu"])
    sum(output.square().sum() for output in part(torch.from_numpy(SMALL))).backward()
    assert net.layer1[1].conv2.weight.grad.abs().max() > 0 and net.conv1.weight.grad.abs().max() > 0
    assert {name.partition(".")[0] for name, _ in part.named_parameters()} == {"conv1", "bn1", "layer1"}
    first = dict(torch_impl.features(net, ["layer1.0"]).named_parameters())
    assert "layer1.0.conv1.weight" in first and not any(name.startswith("layer1.1") for name in first)
    torch.compile(part, fullgraph=True, backend="eager")(torch.from_numpy(SMALL))

    twin = keras_impl.build(TINY)
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.Flatten()(keras_impl.features(twin, ["layer1.0"])(images)[0]))
    before = keras_impl.state(twin)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(SMALL.transpose(0, 2, 3, 1), np.array([1, 2]), verbose=0)
    moved = {name for name, array in keras_impl.state(twin).items() if not np.array_equal(array, before[name])}
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.bn2.running_var"} <= moved
    assert not any(name.startswith(("layer1.1", "layer2", "fc")) for name in moved)


@pytest.mark.parametrize("package", [torch_impl, keras_impl], ids=lambda package: package.__name__)
@pytest.mark.parametrize("names, message", [
    (["layer1", "layer3"], "tiny has no layer 'layer3', did you mean 'layer"),
    (["layer1.2"], "tiny has no layer 'layer1.2', did you mean 'layer1"),
    ("layer1", "features takes a list of names of layers, found 'layer1'"),
    ([], "features takes a list of names of layers, found "),
])  # fmt: skip
def test_features_of_layers_that_are_not_there(package, names, message):
    with pytest.raises(shared.Error, match=message):
        package.features(package.build(TINY), names)


def trained(twin):
    """The names of the weights that training changes."""
    return {name for name, variable in keras_impl.weights.variables(twin).items() if variable.trainable}


def test_the_usual_loop_freezes_batch_norms(tmp_path):
    twin = keras_impl.build(TINY)
    keras_impl.load(twin, weights.randomised(weights.initial(TINY)))
    frozen = [layer for layer in twin._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in frozen:
        layer.trainable = False
    assert len(frozen) == 10
    images, before = SMALL.transpose(0, 2, 3, 1), keras_impl.state(twin)
    assert np.array_equal(twin(images, training=True), twin(images))  # by the running statistics
    twin.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    twin.fit(images, np.array([1, 2]), verbose=0)
    same = {name for name, array in keras_impl.state(twin).items() if np.array_equal(array, before[name])}
    assert same == {name for name in before if "bn" in name or "downsample.1" in name}
    twin.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert trained(again) == trained(twin)


def test_a_batch_norm_has_keras_attributes():
    layer = keras_impl.build(TINY).bn1
    assert layer.gamma is layer.weight and layer.beta is layer.bias
    assert layer.moving_mean is layer.running_mean and layer.moving_variance is layer.running_var
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
    layer.momentum = 0.75
    assert layer.share == 0.25


def test_frozen_members_of_groups_are_saved(tmp_path):
    twin = keras_impl.build(TINY)
    twin.layer1[0].trainable = False
    twin.layer2.trainable = False
    twin.layer2[1].conv2.trainable = True  # what is trained in a frozen group
    twin.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert not again.layer1[0].trainable and again.layer1[1].trainable and again.layer1.trainable
    assert not again.layer2.trainable and again.layer2[1].conv2.trainable and not again.layer2[1].conv1.trainable
    assert trained(again) == trained(twin)


def test_the_precision_that_a_framework_is_set_to():
    before = keras.config.dtype_policy()
    try:
        for policy in ("mixed_bfloat16", "mixed_float16", "float64"):
            keras.mixed_precision.set_global_policy(policy)
            twin = keras_impl.build(TINY)
            assert twin.dtype_policy.name == twin.fc.dtype_policy.name == policy
            assert keras_impl.build(TINY, dtype="float32").dtype_policy.name == "float32"
    finally:
        keras.mixed_precision.set_global_policy(before)
    assert keras_impl.build(TINY).dtype_policy.name == "float32"
    try:
        torch.set_default_dtype(torch.float64)
        assert torch_impl.build(TINY).fc.weight.dtype == torch.float64
        assert torch_impl.build(TINY, dtype="float32").fc.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_from_one_to_the_other_as_they_are(dtype):
    net, twin = torch_impl.build(TINY, seed=1).to(dtype), keras_impl.build(TINY)
    keras_impl.load(twin, {**dict(net.named_parameters()), **dict(net.named_buffers())})  # tensors that have gradients
    expected = torch_impl.state(net)
    assert all(np.array_equal(array, expected[name]) for name, array in keras_impl.state(twin).items())
    keras_impl.load(keras_impl.build(TINY), net.state_dict().items())

    variables = {name: keras.ops.convert_to_tensor(array) for name, array in keras_impl.state(twin).items()}
    again = torch_impl.build(TINY, seed=2)
    torch_impl.load(again, variables)
    assert all(np.array_equal(array, expected[name]) for name, array in torch_impl.state(again).items())


@pytest.mark.parametrize("package", [torch_impl, keras_impl], ids=lambda package: package.__name__)
def test_parameters_without_running_statistics(package):
    parameters = torch_impl.build(TINY).named_parameters()
    with pytest.raises(shared.Error, match=r"missing: bn1.running_mean(.|\n)* state_dict\(\), not in its named_parameters\(\)"):
        package.load(package.build(TINY), parameters)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_says_what_to_use():
    net = torch_impl.build(TINY).eval()
    with pytest.raises(shared.Error, match="torch.jit.script cannot compile .* torch.export.export or torch.compile"):
        torch.jit.script(net)
    traced = torch.jit.trace(net, torch.from_numpy(SMALL))
    with torch.no_grad():
        assert torch.equal(traced(torch.from_numpy(SMALL[:1])), net(torch.from_numpy(SMALL[:1])))


def test_images_with_the_axes_of_the_other_framework():
    net, twin = torch_impl.build(TINY), keras_impl.build(TINY)
    last = SMALL.transpose(0, 2, 3, 1)
    for call in (net, net.activations, torch_impl.features(net, ["fc"])):
        with pytest.raises(shared.Error, match=r"\(2, 8, 8, 3\) .* expected \(batch, 3, height, width\).*; .* channels last"):
            call(torch.from_numpy(np.ascontiguousarray(last)))
    for call in (twin, twin.activations, keras_impl.features(twin, ["fc"]), lambda x: twin.predict(x, verbose=0)):
        with pytest.raises(shared.Error, match=r"3, 8, 8\) .* expected \(batch, height, width, 3\).*; .* channels first"):
            call(SMALL)
    with pytest.raises(shared.Error, match=r"\(3, 8, 8\) .* expected \(batch, 3, height, width\), the channels first$"):
        net(torch.from_numpy(SMALL[0]))
    with pytest.raises(shared.Error, match=r"\(8, 8, 3\) .* expected \(batch, height, width, 3\), the channels last\W"):
        twin(last[0])
