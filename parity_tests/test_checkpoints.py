"""Other projects' checkpoints: every format in every direction, others' names, keras.applications, files that are wrong."""

import hashlib
import http.client
import io
import json
import os
import shutil
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import keras_impl
import shared
import torch_impl
from keras_impl.layers import precision
from shared import networks, published, reading, renaming, shapes, weights
from twins import checkpoints, cli
from twins.ladder import TOLERANCES, relative

FORMATS = ("x.safetensors", "x.pth", "x.keras", "x.weights.h5")
TOLERANCE = TOLERANCES["float64"]["activations"]


# Keras stores layers by name or, behind the letter l, in a list: here are both, groups and dropout.
MINE = {
    "name": "mine",
    "input": [1, 8, 8],
    "layers": [
        {"name": "features.0", "type": "conv", "in": 1, "out": 4, "kernel": 3},
        {"name": "features.1", "type": "relu"},
        {"name": "stage", "type": "basic", "in": 4, "out": 8, "repeat": 2, "stride": 2},
        {"name": "flatten", "type": "flatten"},
        {"name": "unsure", "type": "dropout", "rate": 0.5},
        {"name": "outer", "type": "linear", "in": 72, "out": 3},
    ],
}


def random_state(name, dtype="float32", seed=3):
    state = weights.randomised(weights.initial(name, seed))
    noise = np.random.default_rng(seed)  # beyond float32, so that float64 has something to keep
    return {key: (array * (1 + noise.uniform(0, 1e-9, array.shape))).astype(dtype) for key, array in state.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        assert array.dtype == theirs[key].dtype and np.array_equal(array, theirs[key]), key


def images_for(size, channels=3):
    """Noise that float32 holds too: a Keras model casts what it gets to the precision of its input, which is that one."""
    return np.random.default_rng(0).standard_normal((2, channels, *size), np.float32).astype(np.float64)


def outputs(spec, state, images):
    """What both networks give in float64, as PyTorch has it."""
    net, twin = (package.layers.construct(package.Network, spec, "float64") for package in (torch_impl, keras_impl))
    torch_impl.load(net, state)
    keras_impl.load(twin, state)
    with torch.no_grad():
        ours = net.eval()(torch.from_numpy(images)).numpy()
    theirs = keras.ops.convert_to_numpy(twin(images.transpose(0, 2, 3, 1)))
    return ours, np.moveaxis(theirs, -1, 1) if theirs.ndim == 4 else theirs


@pytest.mark.parametrize("source", FORMATS)
def test_every_format_in_every_direction(source, tmp_path):
    state = random_state("mnist_residual", "float64")
    weights.save_state(tmp_path / "first.safetensors", state)
    checkpoints.convert(tmp_path / "first.safetensors", tmp_path / source, "mnist_residual")
    for destination in FORMATS:
        report = checkpoints.convert(tmp_path / source, tmp_path / f"2{destination}", "mnist_residual")
        assert report.networks == ["mnist_residual"] and len(report.moves) == len(state)
        assert_same(reading.load_weights(tmp_path / f"2{destination}", shared.load("mnist_residual"))[1], state)
    assert sorted(os.listdir(tmp_path)) == sorted({"first.safetensors", source, *(f"2{name}" for name in FORMATS)})


def test_a_round_trip_with_groups_and_batch_norms(tmp_path):
    state = random_state("resnet20")
    weights.save_state(tmp_path / "0.safetensors", state)
    path = tmp_path / "0.safetensors"
    for number, kind in enumerate((".pt", ".keras", ".weights.h5", ".th", ".safetensors"), start=1):
        checkpoints.convert(path, tmp_path / f"{number}{kind}", "resnet20")
        path = tmp_path / f"{number}{kind}"
    assert_same(weights.read_state(path), state)


def test_a_converted_file_loads_in_each_frameworks_own_way(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    net, twin = (package.build(MINE) for package in (torch_impl, keras_impl))
    state = weights.randomised(weights.initial(MINE, seed=3))
    weights.save_state(tmp_path / "x.safetensors", state)
    for before, name in zip(("x.safetensors", "x.keras", "x.weights.h5"), ("x.keras", "x.weights.h5", "x.pth"), strict=True):
        checkpoints.convert(tmp_path / before, tmp_path / name, str(tmp_path / "mine.json"))
    tensors = torch.load(tmp_path / "x.pth")
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    net.load_state_dict(tensors)
    assert_same(torch_impl.state(net), state)
    twin.load_weights(tmp_path / "x.weights.h5")
    assert_same(keras_impl.state(twin), state)
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert_same(keras_impl.state(loaded), state)
    assert loaded.spec == MINE


def test_a_file_of_a_trained_twin(tmp_path):
    twin = keras_impl.build(MINE)
    twin.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    twin.fit(np.ones((4, 8, 8, 1)), np.arange(4) % 3, verbose=0)
    twin.save(tmp_path / "x.keras")
    report = checkpoints.convert(tmp_path / "x.keras", tmp_path / "x.pth")
    assert report.networks == ["mine"]
    assert {move.ignored for move in report.moves} == {"", "optimiser state"}
    net = torch_impl.build(MINE)
    net.load_state_dict(torch.load(tmp_path / "x.pth"))
    assert_same(torch_impl.state(net), keras_impl.state(twin))


def test_a_file_in_bfloat16(tmp_path):
    twin = keras_impl.build("mnist_residual", dtype="bfloat16")
    twin.save_weights(tmp_path / "x.weights.h5")
    torch.save(torch_impl.build("mnist_residual", dtype="bfloat16").state_dict(), tmp_path / "x.pth")
    for name in ("x.weights.h5", "x.pth"):
        _, state = reading.load_weights(tmp_path / name, shared.load("mnist_residual"))
        assert_same(state, torch_impl.state(torch_impl.build("mnist_residual", dtype="bfloat16")))


def test_cifar_resnets_in_circulation(tmp_path):
    state = random_state("resnet20")
    tensors = {f"module.{name.replace('fc.', 'linear.')}": torch.from_numpy(array) for name, array in state.items()}
    tensors["module.bn1.num_batches_tracked"] = torch.tensor(7)
    for key in ("state_dict", "model", "model_state_dict", "net"):
        torch.save({"epoch": 3, "best_prec1": torch.tensor(91.5), key: tensors}, tmp_path / "x.th")
        assert_same(reading.load_weights(tmp_path / "x.th", shared.load("resnet20"))[1], state)
    report = checkpoints.convert(tmp_path / "x.th", tmp_path / "x.safetensors")
    assert "resnet20" in report.networks
    assert [(move.source, move.ignored) for move in report.moves if move.ignored] == [
        ("module.bn1.num_batches_tracked", "batch counter, which nothing reads")
    ]
    assert ("module.linear.weight", (10, 64), "fc.weight", (10, 64), "") in report.moves


@pytest.mark.parametrize("separator", [".", "/"])
def test_caffes_googlenet(separator):
    ours = random_state("googlenet")
    branches = {
        "1x1": "branch1", "3x3_reduce": "branch2.0", "3x3": "branch2.1", "5x5_reduce": "branch3.0", "5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }  # fmt: skip
    names = {"conv1 7x7_s2": "conv1", "conv2 3x3_reduce": "conv2", "conv2 3x3": "conv3", "loss3 classifier": "fc"}
    for module in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split():
        names |= {f"inception_{module} {theirs}": f"inception{module}.{name}.conv" for theirs, name in branches.items()}
    theirs = {
        f"{layer.replace(' ', separator)}.{word}": ours[f"{name}.{word}"]
        for layer, name in names.items()
        for word in ("weight", "bias")
    }
    heads = {f"loss{n}{separator}{layer}.weight": np.zeros((3, 3)) for n in (1, 2) for layer in ("conv", "fc", "classifier")}
    found = renaming.match(theirs | heads, shared.load("googlenet"))
    assert_same(renaming.state_of(theirs | heads, found), ours)
    assert [move.source for move in renaming.moves_of(theirs | heads, found) if move.ignored] == list(heads)
    assert [spec["name"] for spec in renaming.guess_networks(theirs)] == ["googlenet"]


def test_torchvisions_auxiliary_classifiers_are_ignored_and_said_so():
    from torchvision.models import googlenet  # here, for it loads Triton, which has to come after `coexist.isolate_triton`

    theirs = googlenet(weights=None, init_weights=False, aux_logits=True).state_dict()
    arrays = {f"module.{name}": tensor.numpy() for name, tensor in theirs.items()}
    found = renaming.match(arrays, shared.load("googlenet_bn"))
    state, moves = renaming.state_of(arrays, found), renaming.moves_of(arrays, found)
    assert np.array_equal(state["inception5b.branch3.1.conv.weight"], theirs["inception5b.branch3.1.conv.weight"].numpy())
    ignored = {move.source: move.ignored for move in moves if move.ignored}
    assert ignored["module.aux2.fc1.weight"] == "auxiliary classifier, used only in training"
    assert ignored.keys() == {name for name in arrays if ".aux" in name or name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """keras.applications' ResNet50 in float64 with random weights: the model, and its files."""
    folder = tmp_path_factory.mktemp("resnet50")
    with precision("float64"):
        model = keras.applications.ResNet50(weights=None, classifier_activation=None, input_shape=(64, 96, 3))
    generator = np.random.default_rng(5)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
        elif variable.name != "kernel":
            variable.assign(generator.normal(0, 0.1, variable.shape))
    files = {"whole": folder / "whole.h5", "notop": folder / "notop.weights.h5"}
    model.save(files["whole"])
    keras.Model(model.input, model.get_layer("conv5_block3_out").output).save_weights(files["notop"])
    return model, files


def test_resnet50_of_keras_applications(resnet50):
    model, files = resnet50
    spec = shared.load("resnet50_keras")
    images = images_for((64, 96))
    theirs = keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1)))
    for logits in outputs(*reading.load_weights(files["whole"], spec), images):
        assert relative(theirs, logits) <= TOLERANCE


def test_resnet50_of_keras_applications_without_top(resnet50, tmp_path):
    files = resnet50[1]
    report = checkpoints.convert(files["notop"], tmp_path / "x.safetensors")
    assert report.networks == ["resnet50_keras_notop"] and "has no classifier" in report.notes[0]
    assert (
        "conv3_block1_0_conv/kernel", (1, 1, 256, 512), "layer2.0.downsample.0.weight", (512, 256, 1, 1), ""
    ) in report.moves  # fmt: skip
    _, whole = reading.load_weights(files["whole"], shared.load("resnet50_keras"))
    assert_same(weights.read_state(tmp_path / "x.safetensors"), {k: a for k, a in whole.items() if not k.startswith("fc.")})


def test_the_command_makes_a_file_that_keras_applications_loads(resnet50, tmp_path, twins):
    model, files = resnet50
    checkpoints.convert(files["whole"], tmp_path / "x.pth", "resnet50_keras")
    done = twins("convert", tmp_path / "x.pth", tmp_path / "x.h5")
    assert done.returncode == 0 and done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["layer1.0.downsample.1.running_var", "256", "conv2_block1_0_bn/moving_variance", "256"] in lines
    assert ["fc.weight", "1000x2048", "predictions/kernel", "2048x1000"] in lines
    said = f"320 arrays of resnet50_keras, 25,636,712 numbers, written to {tmp_path / 'x.h5'}."
    assert done.stdout.splitlines()[-1] == said
    with precision("float64"):
        loaded = keras.applications.ResNet50(weights=str(tmp_path / "x.h5"))
    for ours, theirs in zip(loaded.weights, model.weights, strict=True):
        assert ours.path == theirs.path and np.array_equal(ours, theirs), ours.path


# VGG scaled down, on a map that is not square, so that rows, columns and channels cannot be mistaken for one another.
SMALL_VGG = {
    "name": "small_vgg",
    "input": [3, 8, 12],
    "weights": "keras.applications VGG16",
    "layers": [
        {"name": "features.0", "type": "conv", "in": 3, "out": 4, "kernel": 3, "padding": 1},
        {"name": "features.1", "type": "relu"},
        {"name": "features.2", "type": "conv", "in": 4, "out": 5, "kernel": 3, "padding": 1},
        {"name": "features.3", "type": "relu"},
        {"name": "features.4", "type": "max_pool", "kernel": 2},
        {"name": "features.5", "type": "conv", "in": 5, "out": 6, "kernel": 3, "padding": 1},
        {"name": "features.6", "type": "relu"},
        {"name": "features.7", "type": "max_pool", "kernel": 2},
        {"name": "flatten", "type": "flatten"},
        {"name": "classifier.0", "type": "linear", "in": 36, "out": 8},
        {"name": "classifier.1", "type": "relu"},
        {"name": "classifier.2", "type": "dropout", "rate": 0.5},
        {"name": "classifier.3", "type": "linear", "in": 8, "out": 36},
        {"name": "classifier.4", "type": "relu"},
        {"name": "classifier.5", "type": "linear", "in": 36, "out": 7},
    ],
}


def small_vgg():
    layers = keras.layers
    with precision("float64"):
        model = keras.Sequential(
            [
                keras.Input((8, 12, 3)),
                layers.Conv2D(4, 3, padding="same", activation="relu", name="block1_conv1"),
                layers.Conv2D(5, 3, padding="same", activation="relu", name="block1_conv2"),
                layers.MaxPooling2D(name="block1_pool"),
                layers.Conv2D(6, 3, padding="same", activation="relu", name="block2_conv1"),
                layers.MaxPooling2D(name="block2_pool"),
                layers.Flatten(name="flatten"),
                layers.Dense(8, activation="relu", name="fc1"),
                layers.Dense(36, activation="relu", name="fc2"),
                layers.Dense(7, name="predictions"),
            ]
        )
    for number, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(number).normal(0, 0.5, variable.shape))
    return model


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5", "x.h5", "weights_alone.h5"])
def test_keras_flattens_in_another_order(name, tmp_path):
    model, images = small_vgg(), images_for((8, 12))
    (model.save_weights if "weights." in name else model.save)(tmp_path / name)
    if name == "weights_alone.h5":  # as keras.applications publishes them
        with h5py.File(tmp_path / "x.h5", "w") as alone, h5py.File(tmp_path / name) as whole:
            for key, group in whole["model_weights"].items():
                whole.copy(group, alone, key)
        name = "x.h5"
    theirs = keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1)))
    for logits in outputs(*reading.load_weights(tmp_path / name, SMALL_VGG), images):
        assert relative(theirs, logits) <= TOLERANCE


def test_writing_for_keras_is_reading_from_it_backwards(tmp_path, monkeypatch):
    model = small_vgg()
    monkeypatch.setattr(keras.applications, "VGG16", lambda **options: small_vgg())
    (tmp_path / "vgg.json").write_text(json.dumps(SMALL_VGG))
    state = {key: array.astype(np.float64) for key, array in weights.initial(SMALL_VGG).items()}
    weights.save_state(tmp_path / "x.safetensors", state)
    checkpoints.convert(tmp_path / "x.safetensors", tmp_path / "x.h5", str(tmp_path / "vgg.json"))
    assert_same(reading.load_weights(tmp_path / "x.h5", SMALL_VGG)[1], state)
    model.load_weights(tmp_path / "x.h5")
    images = images_for((8, 12))
    theirs = keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1)))
    assert relative(theirs, outputs(SMALL_VGG, state, images)[0]) <= TOLERANCE


def test_vgg16_of_keras_applications_without_top(tmp_path):
    with precision("float64"):
        model = keras.applications.VGG16(weights=None, include_top=False)
    for number, variable in enumerate(model.weights):
        if variable.name == "bias":
            variable.assign(np.random.default_rng(number).normal(0, 0.1, variable.shape))
    model.save_weights(tmp_path / "x.weights.h5")
    report = checkpoints.convert(tmp_path / "x.weights.h5", tmp_path / "x.safetensors")
    assert report.networks == ["vgg16_keras_notop"] and len(report.notes) == 1
    other = checkpoints.convert(tmp_path / "x.weights.h5", tmp_path / "other.safetensors", "vgg16")
    assert other.networks == ["vgg16_notop"] and "need images preprocessed as for vgg16_keras" in other.notes[1]
    assert other.moves == report.moves
    images = images_for((32, 64))
    theirs = np.moveaxis(keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1))), -1, 1)
    spec = networks.headless(shared.load("vgg16_keras"))
    for maps in outputs(spec, weights.read_state(tmp_path / "x.safetensors"), images):
        assert relative(theirs, maps) <= TOLERANCE


def test_a_vgg_of_keras_applications_is_taken_for_one():
    rows = shapes.layers(shared.load("vgg16_keras"))
    names = renaming.application_names(rows)
    assert list(names.values())[::4] == ["block1_conv1", "block3_conv1", "block4_conv2", "block5_conv3"]
    assert list(names.values())[-3:] == ["fc1", "fc2", "predictions"]
    arrays = {}
    for row in rows:
        if row.weights:
            weight, bias = row.weights.values()
            arrays[f"{names[row.name]}/kernel"] = np.empty([weight[axis] for axis in weights.TO_KERAS[len(weight)]], np.float32)
            arrays[f"{names[row.name]}/bias"] = np.empty(bias, np.float32)
    assert [spec["name"] for spec in renaming.guess_networks(arrays)] == ["vgg16_keras"]
    state = {name: np.empty(shape, np.float32) for name, shape in shapes.weights(rows).items()}
    assert [spec["name"] for spec in renaming.guess_networks(state)] == ["vgg16", "vgg16_keras"]


class Code:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(zipped, tmp_path):
    content = {"state_dict": {"conv1.weight": torch.zeros(3)}, "extra": Code(tmp_path / "ran")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = reading.read_weights(tmp_path / "x.pth")
    assert list(read.arrays) == ["conv1.weight"] and read.notes == ["Skipped, without running any of it: posix.mkdir."]
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_file_that_points_into_another_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(1000))
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file.create_dataset("fc/vars/0", (5, 10), "f4", external=[(str(tmp_path / "secret"), 0, 200)])
    with pytest.raises(shared.Error, match="fc/vars/0 is a reference to another file"):
        reading.read_weights(tmp_path / "x.weights.h5")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in a file of every format, and files that are wrong."""
    folder = tmp_path_factory.mktemp("files")
    state = random_state("resnet20")
    weights.save_state(folder / "x.safetensors", state)
    for name in ("x.pth", "x.keras", "x.weights.h5"):
        checkpoints.convert(folder / "x.safetensors", folder / name, "resnet20")
    checkpoints.write_weights(folder / "drn.pth", ".pth", shared.load("drn_a_10_small"), weights.initial("drn_a_10_small"))
    torch.save(list(map(torch.from_numpy, state.values())), folder / "list.pth")
    torch.save({"state_dict": {"epoch": 3}}, folder / "numbers.pth")
    torch.save({1: torch.ones(3)}, folder / "counted.pth")
    small_vgg().save(folder / "vgg.h5")
    with h5py.File(folder / "old.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 4))
    h5py.File(folder / "empty.h5", "w").close()
    weights.save_state(folder / "both.safetensors", state | {"module.fc.bias": state["fc.bias"]})
    strange = {name: array for name, array in state.items() if not name.startswith("layer1.2")} | {"odd": np.zeros(3)}
    weights.save_state(folder / "strange.safetensors", strange)
    return folder


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file(name, share, files, tmp_path):
    content = (files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(shared.Error, match=f"{name}: not a complete ") as error:
        reading.read_weights(tmp_path / name)
    assert str(error.value).count("\n") == 0


MISTAKES = {
    "no such file": ("nothing.pth", "y.keras", None, "nothing.pth: there is no such file"),
    "unknown destination": ("x.pth", "y.onnx", None, "y.onnx: expected a file ending in .safetensors, .pth"),
    "no such folder": ("x.pth", "nowhere/y.keras", None, "there is no folder nowhere"),
    "a folder": ("x.pth", "folder.keras", None, "folder.keras: cannot be written"),
    "unknown network": ("x.pth", "y.keras", "resnet21", "no network is called 'resnet21', did you mean"),
    "another network": ("x.pth", "y.keras", "resnet32", "x.pth: the weights do not fit the network:\n  missing: layer1.3"),
    "another keras network": ("x.keras", "y.pth", "plain56", "x.keras: the weights do not fit the network:\n  missing: "),
    "several networks": ("drn.pth", "y.keras", None, "the arrays fit several networks, drn_a_10_small, resnet10_small; pass"),
    "no network": ("strange.safetensors", "y.pth", None, "fit no network; resnet20 is nearest:\n  missing: layer1.2.conv1"),
    "one array twice": ("both.safetensors", "y.pth", "resnet20", "unexpected: module.fc.bias 10"),
    "a list": ("list.pth", "y.pth", None, "list.pth: has no state dict in it"),
    "names that are numbers": ("counted.pth", "y.pth", None, "counted.pth: has no state dict in it"),
    "numbers": ("numbers.pth", "y.pth", None, "numbers.pth: has no state dict in it"),
    "not for keras.applications": ("x.pth", "y.h5", "resnet20", "resnet20 goes into .keras or .weights.h5; .h5 is for keras."),
    "layers without names": ("old.weights.h5", "y.pth", None, "old.weights.h5: its layers have no names"),
    "nothing in it": ("empty.h5", "y.pth", None, "empty.h5: has no weights"),
    "not for this VGG": ("vgg.h5", "y.pth", "vgg16", "vgg.h5: the weights do not fit the network:\n  missing: features"),
    "imagenet of nothing": ("imagenet", "y.pth", None, "imagenet: pass --network NAME to select a network's weights"),
    "imagenet of others": ("imagenet", "y.pth", "drn_d_22", "no weights of drn_d_22; those of fyu/drn drn-d-22 can be"),
    "imagenet of nobody": ("imagenet", "y.pth", "plain20", "publishes no weights of plain20; the spec names none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_leaves_no_file(mistake, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source, destination, network, words = MISTAKES[mistake]
    if (files / source).exists():
        shutil.copy(files / source, source)
    Path("folder.keras").mkdir()
    before = sorted(os.listdir())
    arguments = [source, destination, *(["--network", network] if network else [])]
    monkeypatch.setattr("sys.argv", ["twins", "convert", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert printed.err.startswith("twins: ") and words in printed.err
    assert sorted(os.listdir()) == before


def test_what_is_there_stays_when_writing_fails(files, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(keras.Model, "save", full)
    for name in ("y.pth", "y.keras"):
        (tmp_path / name).write_text("old")
        with pytest.raises(shared.Error, match=f"{name}: cannot be written: No space left"):
            checkpoints.convert(files / "x.pth", tmp_path / name, "resnet20")
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["y.keras", "y.pth"]


class Server:
    """What a downloader gets from the network."""

    def __init__(self, content):
        self.content, self.headers = io.BytesIO(content), {"Content-Length": str(len(content))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        return self.content.read(size)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """What download.pytorch.org serves, and PyTorch's cache folder, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = io.BytesIO()
    state = random_state("resnet18")
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, content)
    asked = []

    def answer(request, *_, **__):
        asked.append(request.full_url)
        time.sleep(0.1)  # as long as a second process needs to ask too
        return Server(content.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    return content.getvalue(), state, asked, tmp_path / "hub" / "checkpoints"


BROKEN = [urllib.error.URLError("not known"), http.client.IncompleteRead(b""), TimeoutError("not known")]


def visible(folder):
    """The files in a folder but for locks."""
    return [name for name in os.listdir(folder) if not name.endswith(".lock")]


def test_published_weights_are_checked_and_kept(server, monkeypatch, capsys):
    content, state, asked, folder = server
    with pytest.raises(shared.Error, match="resnet18-f37072fd.pth could not be fetched: invalid hash value, expected f37072fd"):
        reading.load_weights("imagenet", shared.load("resnet18"))
    assert visible(folder) == []

    right = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(published.FILES, "resnet18", right)
    for _ in range(2):
        assert_same(reading.load_weights("imagenet", shared.load("resnet18"))[1], state)
    assert asked[1:] == [f"https://download.pytorch.org/models/{right}"] and visible(folder) == [right]
    assert capsys.readouterr().out == ""
    (folder / right).write_bytes(content[:-100])
    with pytest.raises(shared.Error, match="not a complete PyTorch file: .*Delete the file to have it fetched again"):
        reading.load_weights("imagenet", shared.load("resnet18"))


def test_of_two_that_download_one_waits_and_what_a_killed_one_left_is_removed(server, monkeypatch):
    content, _, asked, folder = server
    right = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(published.FILES, "resnet18", right)
    folder.mkdir(parents=True)
    (folder / f".4194305.{right}").write_bytes(b"half")  # beyond the largest process number
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(published.file_of, [shared.load("resnet18")] * 2)) == {folder / right}
    assert len(asked) == 1 and visible(folder) == [right]


def test_the_folder_is_that_of_torch_hub(monkeypatch):
    for variable, value in (("TORCH_HOME", "~/somewhere"), ("XDG_CACHE_HOME", "/tmp/cache"), ("XDG_CACHE_HOME", None)):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        if value:
            monkeypatch.setenv(variable, value)
        assert str(published.folder()) == os.path.join(torch.hub.get_dir(), "checkpoints")


@pytest.mark.parametrize("broken", BROKEN)
def test_without_a_network(broken, server, monkeypatch):
    def unreachable(*_, **__):
        raise broken

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    words = r"vgg11.*could not be fetched: .*(not known|IncompleteRead).*put the file into .*checkpoints"
    with pytest.raises(shared.Error, match=words):
        reading.load_weights("imagenet", shared.load("vgg11"))
    assert visible(server[3]) == []


def test_every_network_that_torchvision_publishes_is_found():
    from torchvision.models import get_model_weights

    specs = [spec for spec in map(shared.load, shared.names()) if spec.get("weights", "").startswith("torchvision ")]
    assert len(specs) >= 15 and {spec["weights"].split()[1] for spec in specs} == set(published.FILES)
    for name, file in published.FILES.items():
        assert get_model_weights(name).IMAGENET1K_V1.url == published.URL + file


def test_the_command_says_what_it_ignored(tmp_path):
    torch.save(torch_impl.build("resnet20").state_dict(), tmp_path / "x.pth")
    done = CliRunner().invoke(cli.app, ["convert", str(tmp_path / "x.pth"), str(tmp_path / "y.safetensors")])
    assert done.exit_code == 0
    said = (
        "Ignored (batch counter, which nothing reads): bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked, "
        "layer1.0.bn2.num_batches_tracked and 16 more."
    )
    assert said in done.output
    assert "97 arrays of resnet20, 271,098 numbers" in done.output and "; 19 ignored." in done.output


def test_compare_takes_weights_of_any_format(tmp_path):
    tensors = {name: torch.from_numpy(array) for name, array in random_state("mnist_residual").items()}
    torch.save(tensors, tmp_path / "x.pth")
    options = ["--weights", str(tmp_path / "x.pth"), "--steps", "0", "--json"]
    done = CliRunner().invoke(cli.app, ["compare", "mnist_residual", *options])
    assert done.exit_code == 0 and json.loads(done.stdout)["passed"]


@pytest.fixture(scope="module")
def data():
    if "TWINS_DATA" not in os.environ:
        pytest.skip("TWINS_DATA is not set")
    return Path(os.environ["TWINS_DATA"]) / "weights"


@pytest.mark.parametrize(
    "file, network, numbers",
    [
        ("resnet20_cifar10.th", "resnet20", 269_722 + 1_376),
        ("googlenet_bvlc.safetensors", "googlenet", 6_998_552),
        ("lenet_caffe.safetensors", "lenet_caffe", 431_080),
    ],
)
def test_real_checkpoints(file, network, numbers, data, tmp_path):
    report = checkpoints.convert(data / file, tmp_path / "x.pth", network)
    _, state = reading.load_weights(data / file, shared.load(network))
    assert sum(array.size for array in state.values()) == numbers
    assert_same(reading.load_weights(tmp_path / "x.pth", shared.load(network))[1], state)
    assert len(report.moves) == len(state)


def test_predicting_needs_the_classifier(tmp_path):
    spec = networks.headless(shared.load("resnet20"))
    weights.save_state(tmp_path / "x.safetensors", weights.initial(spec))
    with pytest.raises(shared.Error, match="x.safetensors: has no classifier, which resnet20 needs"):
        reading.load_weights(tmp_path / "x.safetensors", shared.load("resnet20"))
