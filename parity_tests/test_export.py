"""Batch norms folded into convolutions, and networks as files for other programs, which those programs run."""

import json
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from PIL import Image

import keras_impl.export
import shared
import torch_impl.export
from shared import fold, networks, shapes, weights
from shared.images import preprocess
from twins import compare, export, ladder

PACKAGES = (torch_impl, keras_impl)
TOLERANCE = ladder.TOLERANCES["float64"]["activations"]


def chain(*layers):
    """A network of 5 classes with these layers in front, which give 8 channels; members of groups name themselves."""
    last = [{"name": "pool", "type": "global_avg_pool"}, {"name": "flatten", "type": "flatten"}]
    last.append({"name": "fc", "type": "linear", "in": 8, "out": 5})
    named = [{"name": f"block{number}", **layer} for number, layer in enumerate(layers)]
    return {"name": "mine", "title": "Mine", "input": [3, 12, 12], "layers": [*named, *last]}


START = {"type": "conv_norm_relu", "in": 3, "out": 8, "kernel": 3, "bias": True, "eps": 1e-3}
SAME, SMALLER, ACTIVATIONS = {"in": 8, "out": 8}, {"in": 8, "out": 8, "stride": 2}, shared.spec.VALUES["activation"][1]
GROUP = [
    {"name": "group.0", "type": "relu"},
    {"name": "group.1", "type": "conv", **SAME, "kernel": 3, "padding": "same", "dilation": 2},
    {"name": "group.2", "type": "batch_norm", "in": 8, "eps": 0.01},
    {"name": "group.3", "type": "batch_norm", "in": 8},
    {"name": "group.4", "type": "basic", **SAME},
    {"name": "group.5", "type": "batch_norm", "in": 8},
]
BRANCHES = {"in": 8, "out": 8, "branches": [[2], [2, 3], [3, 2], [1]]}
# By the type of block: layers, and how many batch norms stay.
CHAINS = {
    "groups": (GROUP, 1),
    "basic": ([{"type": "basic", **SMALLER, "repeat": 2}], 0),
    "basic, biases and eps": ([{"type": "basic", **SMALLER, "bias": True, "eps": 0.01, "momentum": 0.2}], 0),
    "basic, a 3x3 shortcut": ([{"type": "basic", **SMALLER, "shortcut": "projection3x3", "padding": "same"}], 0),
    "basic, a shortcut without batch norm": ([{"type": "basic", **SMALLER, "shortcut": "conv"}], 0),
    "basic, shortcuts that are not run": ([{"type": "basic", **SMALLER, "shortcut": kind} for kind in ("unused", "none")], 0),
    "basic without batch norm": ([{"type": "basic", **SMALLER, "norm": False}], 0),
    "bottleneck": ([{"type": "bottleneck", **SMALLER, "width": 4, "groups": 2, "eps": 0.01}], 0),
    "preact_basic": ([{"type": "preact_basic", **SMALLER, "repeat": 2}], 2),
    "preact_bottleneck": ([{"type": "preact_bottleneck", **SMALLER, "first_activation": False, "repeat": 2}], 1),
    "residual_unit": (
        [
            {"type": "residual_unit", **SMALLER, "activation": "bn_after_addition", "shortcut": "exclusive_gate"},
            {"type": "residual_unit", **SAME, "shortcut": "conv"},
            {"type": "residual_unit", **SAME, "activation": "relu_before_addition", "shortcut_scale": 0.5},
            {"type": "residual_unit", **SAME, "activation": "relu_only_preactivation"},
        ],
        1,
    ),
    "inception": ([{"type": "inception", **BRANCHES, "kernel": 3, "eps": 0.01}, {"type": "inception", **BRANCHES}], 0),
    "inception_a": (
        [{"type": "inception_a", "in": 8, "out": 226}, {"type": "conv", "in": 226, "out": 8, "kernel": 1, "bias": False}],
        0,
    ),
}


def test_every_type_of_block_is_here():
    types = {layer["type"] for layers, _ in CHAINS.values() for layer in layers} | {START["type"]}
    assert types >= shared.spec.BLOCKS.keys()


def pair(package, spec, seed=0):
    """A network in float64 with random batch norms, and its folded form."""
    state = weights.randomised({name: a.astype(np.float64) for name, a in weights.initial(spec, seed).items()})
    net = package.build(spec, dtype="float64")
    package.load(net, state)
    return net, package.folded(net)


def logits(package, net, images):
    if package is keras_impl:
        return net(np.moveaxis(images, 1, -1)).numpy()
    with torch.no_grad():
        return net.eval()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("name", CHAINS)
def test_folded_is_the_same_function(name, package):
    layers, stay = CHAINS[name]
    spec = chain(START, *layers)
    net, lean = pair(package, spec)
    images = np.random.default_rng(0).standard_normal((2, 3, 12, 12))
    assert ladder.relative(logits(package, net, images), logits(package, lean, images)) <= TOLERANCE
    found = fold.folded_spec(spec)
    assert shared.load(found) and found["name"] == "mine_folded" and found["title"] == "Mine, batch norms folded"
    assert len(fold.batch_norms(found)) == stay
    assert fold.folded_spec(found) is found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("name, size", [("resnet20", 8), ("drn_d_22", 16), ("preact_resnet18", 32)])
def test_networks_of_the_zoo_are_the_same_function(name, size, package):
    net, lean = pair(package, shared.load(name))
    images = np.random.default_rng(0).standard_normal((2, 3, size, size))
    assert ladder.relative(logits(package, net, images), logits(package, lean, images)) <= TOLERANCE


@pytest.mark.parametrize("name", shared.names())
def test_spec_and_state_fit(name):
    spec = shared.load(name)
    there = shapes.weights(shapes.layers(spec))
    lean, state = fold.folded(spec, {key: np.broadcast_to(np.float32(1), shape) for key, shape in there.items()})
    expected = shapes.weights(shapes.layers(shared.load(lean)))
    assert {key: array.shape for key, array in state.items()} == expected and list(state) == list(expected)
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    stay = fold.batch_norms(lean)
    if name.startswith("preact_"):
        assert stay and all(norm == "bn2" or norm.endswith(".bn1") for norm in stay)
    elif name == "resnet110_bn_after_addition":
        assert len(stay) == 54 and all(norm.endswith(".bn2") for norm in stay)
    else:
        assert not stay
    if not fold.batch_norms(spec):
        assert lean is spec
    else:
        assert "parameters" not in lean and "weights" not in lean and lean.get("classes") == spec.get("classes")


def test_members_of_a_group_are_numbered_anew():
    spec = shared.load("drn_d_22")
    assert [layer["name"] for layer in fold.folded_spec(spec)["layers"]][:5] == [
        "layer0.0", "layer0.1", "layer1.0", "layer1.1", "layer2.0",
    ]  # fmt: skip
    state = weights.initial(spec)
    state["layer7.1.bias"][:] = 3
    _, lean = fold.folded(spec, state)
    assert np.array_equal(lean["layer7.0.bias"], np.full(512, 3)) and "layer7.1.weight" not in lean
    assert lean["layer3.1.conv2.weight"].shape == state["layer3.1.conv2.weight"].shape


def test_a_state_that_does_not_fit():
    with pytest.raises(shared.Error, match="missing: conv1.weight 16x3x3x3"):
        fold.folded(shared.load("resnet20"), {})


@pytest.mark.parametrize("package, dtype", [(torch_impl, "bfloat16"), (keras_impl, "mixed_bfloat16")])
def test_a_folded_network_is_for_inference_and_of_the_same_precision(package, dtype):
    net = package.build(chain(START), dtype=dtype)
    before = package.state(net)
    lean = package.folded(net)
    assert all(np.array_equal(array, before[name]) for name, array in package.state(net).items())
    if package is torch_impl:
        assert {weight.dtype for weight in lean.parameters()} == {torch.bfloat16}
        assert not lean.training and not any(weight.requires_grad for weight in lean.parameters())
        assert all(weight.requires_grad for weight in net.parameters())
    else:
        assert lean.dtype_policy.name == dtype and not lean.trainable_weights and net.trainable_weights


@pytest.fixture(scope="module")
def exported(tmp_path_factory, twins):
    """A network with the same random weights, folded, in each format, for images of 14x14 by `--size`; and what was said."""
    folder = tmp_path_factory.mktemp("export")
    spec = chain(START, {"type": "basic", **SMALLER, "repeat": 2}, {"type": "preact_basic", **SAME})
    (folder / "mine.json").write_text(json.dumps(spec))
    weights.save_state(folder / "w.safetensors", weights.randomised(weights.initial(spec)))
    paths = ["a.onnx", "b", "c.keras", "d.pth", "e.safetensors"]
    outs = [word for path in paths for word in ("--out", path)]
    return folder, twins("export", "mine.json", "--weights", "w.safetensors", "--fold", "--size", "14", *outs, folder=folder)


def expected(folder, images):
    net = torch_impl.build(folder / "mine.json")
    torch_impl.load(net, weights.read_state(folder / "w.safetensors"))
    return logits(torch_impl, net, images)


IMAGES = np.random.default_rng(7).standard_normal((5, 3, 14, 14), np.float32)


def test_what_the_command_says(exported):
    folder, done = exported
    assert done.returncode == 0 and done.stderr == ""
    first, _, *rows, _ = done.stdout.splitlines()
    assert first == (
        "7 batch norms folded into the convolutions before them; 1 kept, not directly after a convolution: block2.bn1."
    )
    readers = [tuple(row.split()[:2]) for row in rows]
    keras, pytorch = [("b", "TensorFlow"), ("c.keras", "Keras")], [("d.pth", "PyTorch"), ("e.safetensors", "PyTorch")]
    assert readers == [("a.onnx", "onnxruntime"), *keras, *pytorch]
    assert all(0 < float(number) < 1e-5 for row in rows for number in row.split()[2:])
    files = {"a.onnx", "b", "c.keras", "d.pth", "d.json", "e.safetensors", "e.json", "mine.json", "w.safetensors"}
    assert {path.name for path in folder.iterdir()} == files


def test_onnxruntime_runs_it(exported):
    folder, _ = exported
    session = onnxruntime.InferenceSession(folder / "a.onnx")
    (images,), (output,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, output.name) == ("images", ["batch", 3, 14, 14], "logits")
    for count in (1, 5):
        found = session.run(["logits"], {"images": IMAGES[:count]})[0]
        assert ladder.relative(expected(folder, IMAGES[:count]), found) <= 1e-4
    assert b"torch_impl" not in (folder / "a.onnx").read_bytes()  # where the code is in this machine is nobody's business


def test_tensorflow_runs_it(exported):
    folder, _ = exported
    model = tf.saved_model.load(folder / "b")
    signature = model.signatures["serving_default"].structured_input_signature[1]
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in signature.items()} == {
        "images": ([None, 14, 14, 3], tf.float32)
    }
    for count in (1, 5):
        found = model.serve(np.moveaxis(IMAGES[:count], 1, -1)).numpy()
        assert ladder.relative(expected(folder, IMAGES[:count]), found) <= 1e-4


def test_the_weights_and_the_spec_beside_them_are_a_network(exported):
    folder, _ = exported
    for name in ("d", "e"):
        spec = shared.load(folder / f"{name}.json")
        assert spec["name"] == "mine_folded" and spec["input"] == [3, 14, 14]
    net = torch_impl.build(folder / "e.json")
    torch_impl.load(net, weights.read_state(folder / "e.safetensors"))
    assert ladder.relative(expected(folder, IMAGES), logits(torch_impl, net, IMAGES)) <= 1e-4
    net.load_state_dict(torch.load(folder / "d.pth"))
    assert ladder.relative(expected(folder, IMAGES), logits(torch_impl, net, IMAGES)) <= 1e-4


@pytest.fixture
def folder(tmp_path):
    """Where the commands below run: a small network, its weights, and what is in the way."""
    (tmp_path / "mine.json").write_text(json.dumps(chain(START)))
    weights.save_state(tmp_path / "w.safetensors", weights.initial(chain(START)))
    weights.save_state(tmp_path / "lenet.safetensors", weights.initial("lenet5"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "saved_model.pb").touch()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "notes").touch()
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "other.json").write_text(json.dumps(chain(START) | {"title": "Mine, by hand"}))
    return tmp_path


def test_nothing_to_fold_is_said_and_written_all_the_same(folder, twins):
    done = twins("export", "lenet5", "--weights", "lenet.safetensors", "--fold", folder=folder)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("There is nothing to fold: lenet5 has no batch norm directly after a convolution.")
    assert shared.load(folder / "lenet5.json") == shared.load("lenet5")
    assert weights.read_state(folder / "lenet5.safetensors").keys() == weights.initial("lenet5").keys()


def test_logits_that_differ_are_told_by_the_exit_status(folder, monkeypatch, twins):
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    done = twins("export", "mine.json", "--weights", "w.safetensors", "--fold", folder=folder)
    assert done.returncode == 1
    assert "mine_folded.safetensors: its logits differ by more than 1e-12" in done.stdout


MINE = ["mine.json", "--weights", "w.safetensors", "--out"]
MISTAKES = {
    "no weights": (["resnet20"], "--weights is missing"),
    "weights that are not there": (["resnet20", "--weights", "x.pth"], "x.pth: there is no such file"),
    "unknown ending": (
        [*MINE, "x.tflite"],
        "x.tflite: expected a file ending in .safetensors, .pth, .keras, .onnx; or",
    ),
    "no name": ([*MINE, "."], ".: expected a file ending in"),
    "no folder": ([*MINE, "nowhere/x.onnx"], "nowhere/x.onnx: there is no folder nowhere"),
    "a folder for a file": ([*MINE, "photos.onnx", "--out", "photos"], "photos: exists and is not a SavedModel"),
    "a file for a folder": ([*MINE, "notes"], "notes: exists and is not a SavedModel"),
    "the weights themselves": ([*MINE, "w.safetensors"], "w.safetensors: is read and would be overwritten"),
    "the spec itself": ([*MINE, "mine.pth"], "mine.json: is read and would be overwritten"),
    "another JSON file": ([*MINE, "settings.safetensors"], "settings.json: exists and holds something else; not overwritten"),
    "another network's spec": ([*MINE, "other.pth"], "other.json: exists and holds something else; not overwritten"),
    "plain, and not of Keras": ([*MINE, "x.onnx", "--plain"], "x.onnx: --plain is for files ending in .keras"),
    "image too small": (["drn_d_22", "--weights", "x.pth", "--size", "0"], "--size"),
    "another size than a linear layer's": (["lenet5", "--weights", "x.pth", "--size", "40"], "gives"),
}


def test_a_spec_that_it_wrote_is_written_again(folder, twins):
    first, second = (twins("export", *MINE, "x.safetensors", folder=folder) for _ in range(2))
    assert first.returncode == second.returncode == 0 and second.stdout == first.stdout
    changed = twins("export", *MINE, "x.pth", "--size", "14", folder=folder)
    assert changed.returncode == 2 and "x.json: exists and holds something else" in changed.stderr
    assert not (folder / "x.pth").exists() and shared.load(folder / "x.json")["input"] == [3, 12, 12]


def test_a_plain_file_is_of_the_folded_network_at_its_size(folder, twins):
    done = twins("export", "mine.json", "--weights", "w.safetensors", "--plain", "--fold", "--size", "14", folder=folder)
    assert done.returncode == 0 and done.stdout.splitlines()[2].split()[:2] == ["mine_folded.keras", "Keras"]
    model = keras.models.load_model(folder / "mine_folded.keras")
    assert type(model).__module__ == "keras.src.models.functional" and model.input_shape == (None, 14, 14, 3)
    assert model.get_layer("block0_conv").use_bias and model.name == "mine_folded"
    assert ladder.relative(expected(folder, IMAGES), model(np.moveaxis(IMAGES, 1, -1)).numpy()) <= 1e-4


def test_json_says_what_the_table_does(folder, twins):
    done = twins("export", *MINE, "x.keras", "--plain", "--json", folder=folder)
    report = json.loads(done.stdout)
    (file,) = report["files"]
    assert done.returncode == 0 and report["passed"] and report["tolerance"] == 1e-4 and report["network"] == "mine"
    assert (file["path"], file["reader"], file["framework"]) == ("x.keras", "Keras", "PyTorch") and file["relative"] < 1e-5


PREPROCESSING = {"resize": 16, "crop": 12, "channels": "RGB", "scale": 1, "mean": [9, 9, 9], "std": [2, 2, 2]}


def test_pictures_have_the_size_of_the_images():
    spec = chain(START) | {"preprocessing": PREPROCESSING}
    picture = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    larger, oblong = (networks.with_size(spec, size) for size in ((24, 24), (20, 24)))
    assert larger["preprocessing"] == spec["preprocessing"] | {"resize": 32, "crop": 24} and shared.load(larger)
    assert networks.with_size(spec, (12, 12)) is spec
    whole = networks.with_size(spec | {"preprocessing": larger["preprocessing"] | {"resize": 9, "crop": 9}}, (24, 24))
    assert (whole["preprocessing"]["resize"], whole["preprocessing"]["crop"]) == (24, 24)
    for sized in (larger, oblong, whole):
        batch = preprocess([picture], sized)
        assert list(batch.shape[1:]) == sized["input"] and batch.max() > 2  # by the network's own mean and std


def test_compare_shows_a_picture_of_its_size(folder, monkeypatch, twins):
    spec = chain(START) | {"preprocessing": PREPROCESSING}
    (folder / "mine.json").write_text(json.dumps(spec))
    Image.new("RGB", (40, 30)).save(folder / "p.png")
    seen = []
    monkeypatch.setattr(compare.images, "preprocess", lambda pictures, spec, dtype: seen.append(spec) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        twins("compare", "mine.json", "--image", "p.png", "--size", "24", "--steps", "0", folder=folder)
    assert seen == [networks.with_size(spec, (24, 24))]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_writes_nothing(mistake, folder, twins):
    before = sorted(folder.rglob("*"))
    arguments, words = MISTAKES[mistake]
    done = twins("export", *arguments, folder=folder)
    assert done.returncode == 2 and done.stdout == "" and words in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_package_that_is_missing_is_told_before_anything_is_written(folder, monkeypatch, twins):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = twins("export", *MINE, "x.pth", "--out", "x.onnx", folder=folder)
    assert done.returncode == 2 and done.stderr == "twins: .onnx needs onnxscript: pip install 'resnet-twins[export]'\n"
    assert not (folder / "x.pth").exists()


def test_the_environment_does_not_choose_the_backend(folder, monkeypatch, twins):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    done = twins("export", *MINE, "x", folder=folder)
    assert done.returncode == 0 and (folder / "x" / "saved_model.pb").exists()


@pytest.mark.parametrize("name", ["x.onnx", "x"])
def test_a_failed_write_leaves_the_old_one(name, folder, monkeypatch, twins):
    def full(path, spec, state):
        path.mkdir(exist_ok=True) if name == "x" else path.write_text("half")
        raise OSError("No space left on device")

    old = folder / name
    if name == "x":
        old.mkdir()
        old = old / "saved_model.pb"
    old.write_text("old")
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(torch_impl.export, "onnx", full)
    monkeypatch.setattr(keras_impl.export, "saved_model", full)
    done = twins("export", *MINE, name, folder=folder)
    assert done.returncode == 2 and f"{name}: cannot be written: No space left on device" in done.stderr
    assert sorted(folder.rglob("*")) == before and old.read_text() == "old"
