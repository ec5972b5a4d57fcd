"""Networks of Keras's own layers alone: files that load without this package, on each of Keras's backends."""

import gc
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_impl
import shared
from shared import networks, weights
from twins import compare, ladder

TOLERANCE = ladder.TOLERANCES["float64"]["activations"]
UP, SAME = {"in": 4, "out": 8, "stride": 2}, {"in": 8, "out": 8}
# A loader that has Keras and NumPy, and of this project nothing: it runs all networks of a folder. On JAX and PyTorch, Keras
# casts float64 to float32 in batch norms and means; to see that the files say the same to the last digit it must not.
READER = """
import pathlib, sys
for name in ("shared", "keras_impl", "torch_impl", "twins"):
    sys.modules[name] = None
import keras, numpy
backend = keras.backend.backend()
if backend != "tensorflow":
    from keras.src.backend.common import dtypes

def run(path):
    model = keras.models.load_model(path)
    function = model
    if backend == "jax":
        import jax
        function = jax.jit(lambda images: model(images))
    return keras.ops.convert_to_numpy(function(numpy.load(path.with_suffix(".images.npy"))))

numpy.save(f"as_it_is.{backend}.npy", run(pathlib.Path("preactivation.keras")))
if backend != "tensorflow":
    dtypes.BIT64_TO_BIT32_DTYPE.pop("float64")
for path in pathlib.Path(".").glob("*.keras"):
    numpy.save(path.with_suffix(f".{backend}.npy"), run(path))
"""


def chain(size, *layers, channels=4):
    named = [{"name": f"layer{number}", **layer} for number, layer in enumerate(layers)]
    return {"name": "tiny", "input": [channels, size, size], "layers": named}


# Every type of layer and block, and of its options those that Keras has in another way or not at all.
TINY = {
    "convolutions": chain(
        13,
        {"type": "conv", "in": 4, "out": 6, "kernel": 3, "stride": 2, "padding": 1, "bias": False},
        {"type": "batch_norm", "in": 6, "eps": 0.01, "momentum": 0.3},
        {"type": "conv", "in": 6, "out": 5, "kernel": 4, "padding": "same"},
        {"type": "conv", "in": 5, "out": 6, "kernel": 3, "padding": 2, "dilation": 2},
        {"type": "conv", "in": 6, "out": 3, "kernel": 3, "stride": 2, "padding": "same"},
        {"type": "flatten"},
        {"type": "dropout", "rate": 0.5},
        {"type": "scaled_tanh"},
        {"type": "linear", "in": 48, "out": 5, "bias": False},
        {"type": "relu"},
        {"type": "linear", "in": 5, "out": 3},
    ),
    "normalisation": chain(
        6,
        {"type": "local_response_norm", "size": 4, "alpha": 0.7, "beta": 0.6, "k": 2},
        {"type": "local_response_norm", "size": 5},
        {"type": "scaled_tanh"},
        {"type": "batch_norm", "in": 4},
        {"type": "global_avg_pool"},
        {"type": "flatten"},
    ),
    "pools": chain(
        41,
        {"type": "max_pool", "kernel": 3, "stride": 2, "padding": 1},
        {"type": "max_pool", "kernel": 2, "stride": 2, "ceil": True},
        {"type": "max_pool", "kernel": 4, "stride": 1, "padding": 2},
        {"type": "relu"},
        {"type": "max_pool", "kernel": 3, "stride": 2, "padding": 1, "ceil": True},
        {"type": "max_pool", "kernel": 3, "stride": 1, "padding": 1},
        {"type": "max_pool", "kernel": 2, "stride": 1, "padding": "same"},
        {"type": "avg_pool", "kernel": 3, "stride": 1, "padding": 1},
        {"type": "avg_pool", "kernel": 2, "stride": 2, "padding": "same"},
        {"type": "adaptive_avg_pool", "size": 2},
        {"type": "adaptive_avg_pool", "size": 3},
        {"type": "adaptive_avg_pool", "size": 1},
    ),
    "upsampling": chain(
        12,
        {"type": "conv", "in": 4, "out": 4, "kernel": 8, "stride": 8, "padding": "same"},
        {"type": "upsample", "scale": 2},
        {"type": "upsample_transposed", "in": 4, "scale": 4},
    ),
    "pools of negative numbers": chain(
        14,
        {"type": "max_pool", "kernel": 3, "stride": 2, "padding": 1},
        {"type": "max_pool", "kernel": 4, "stride": 1, "padding": 2},
        {"type": "max_pool", "kernel": 2, "stride": 2, "padding": 1, "ceil": True},
    ),
    "residual": chain(
        12,
        {"type": "basic", **UP, "repeat": 2},
        {"type": "basic", **SAME, "stride": 2, "shortcut": "projection3x3", "padding": "same", "dilation": 1},
        {"type": "basic", "in": 8, "out": 11, "shortcut": "pad", "dilation": 2, "first_dilation": 1},
        {"type": "basic", "in": 11, "out": 11, "stride": 2, "shortcut": "pad"},
        {"type": "basic", "in": 11, "out": 8, "shortcut": "conv", "norm": False, "bias": True},
        {"type": "bottleneck", "in": 8, "out": 12, "shortcut": "unused"},
        {"type": "bottleneck", "in": 12, "out": 8, "width": 6, "groups": 3, "momentum": 0.2},
        {"type": "bottleneck", **SAME, "stride": 2, "stride_at": "conv1", "shortcut": "none"},
    ),
    "preactivation": chain(
        12,
        {"type": "preact_basic", **UP, "first_activation": False, "repeat": 2},
        {"type": "preact_basic", "in": 8, "out": 12, "shortcut": "pad"},
        {"type": "preact_bottleneck", "in": 12, "out": 8, "stride": 2, "norm": False},
        {"type": "preact_bottleneck", **SAME},
        {"type": "residual_unit", **SAME, "activation": "bn_after_addition", "shortcut": "exclusive_gate"},
        {"type": "residual_unit", **SAME, "activation": "relu_before_addition", "shortcut": "shortcut_gate"},
        {"type": "residual_unit", **SAME, "activation": "relu_only_preactivation", "shortcut": "dropout"},
        {"type": "residual_unit", **SAME, "shortcut": "conv", "shortcut_scale": 0.3, "residual_scale": 0.7},
        {"type": "residual_unit", "in": 8, "out": 10, "stride": 2, "norm": False},
    ),
    "inception": chain(
        8,
        {"type": "conv_norm_relu", "in": 4, "out": 5, "kernel": 5, "stride": 2, "eps": 0.01},
        {"type": "inception", "in": 5, "out": 8, "branches": [[2], [2, 3], [3, 2], [1]]},
        {"type": "inception", "in": 8, "out": 8, "branches": [[2], [2, 3], [3, 2], [1]], "kernel": 3, "norm": False},
        {"type": "inception_a", "in": 8, "out": 226},
    ),
}


def pair(spec, dtype="float64"):
    """A network with random batch norms and its plain form."""
    net = keras_impl.build(spec, dtype=dtype)
    keras_impl.load(net, weights.randomised({name: a.astype(dtype) for name, a in weights.initial(spec).items()}))
    return net, keras_impl.functional(net)


def random_images(spec, count=2):
    """Images that are mostly negative, so that it shows where zeros win in a max pool."""
    channels, height, width = spec["input"]
    return np.random.default_rng(0).standard_normal((count, height, width, channels)) - 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with each tiny network as a file, and {name: what it gives for the images beside it}."""
    folder, expected = tmp_path_factory.mktemp("plain"), {}
    for name, spec in TINY.items():
        net, plain = pair(spec)
        images = random_images(spec)
        plain.save(folder / f"{name}.keras")
        np.save(folder / f"{name}.images.npy", images)
        expected[name] = net(images).numpy()
    return folder, expected


def test_every_type_is_here():
    assert {layer["type"] for spec in TINY.values() for layer in spec["layers"]} == shared.spec.TYPES.keys()


@pytest.mark.parametrize("backend", ["tensorflow", *(pytest.param(name, marks=pytest.mark.long) for name in ("torch", "jax"))])
def test_files_load_without_this_package(backend, files):
    folder, expected = files
    quick = {"JAX_THREEFRY_PARTITIONABLE": "0", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", **quick}
    command = [sys.executable, "-I", "-c", READER]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = {name: np.load(folder / f"{name}.{backend}.npy") for name in expected}
    differences = {name: ladder.relative(logits, loaded[name]) for name, logits in expected.items()}
    assert max(differences.values()) <= TOLERANCE, differences
    as_it_is = ladder.relative(expected["preactivation"], np.load(folder / f"as_it_is.{backend}.npy"))
    assert as_it_is <= (TOLERANCE if backend == "tensorflow" else ladder.TOLERANCES["float32"]["logits"])


def test_layers_are_keras_own(files):
    folder, _ = files
    for name, spec in TINY.items():
        with zipfile.ZipFile(folder / f"{name}.keras") as archive:
            config = json.loads(archive.read("config.json"))
        modules = {layer["module"] for layer in config["config"]["layers"]}
        powers = {"keras.src.ops.numpy"} if name == "normalisation" else set()
        assert config["module"] == "keras.src.models.functional" and modules == {"keras.layers"} | powers, name
        model = keras.models.load_model(folder / f"{name}.keras")
        norms = [layer.name for layer in model.layers if type(layer) is keras.layers.BatchNormalization]
        expected = [norm.replace(".", "_") for norm in shared.fold.batch_norms(spec)]
        assert {*norms} == {*expected} - {"layer5_downsample_1"}  # of the shortcut that is not run


def test_layers_have_the_names_of_the_spec():
    net, plain = pair(TINY["residual"])
    assert plain.get_layer("layer0_0_downsample_1").momentum == pytest.approx(0.9)
    assert plain.get_layer("layer6_bn2").momentum == pytest.approx(0.8)
    kernel = plain.get_layer("layer0_1_conv2").kernel
    assert np.array_equal(kernel, net.layer0[1].conv2.weight) and plain.name == "tiny"


def test_names_that_would_be_the_same_get_one_message():
    layers = [{"name": name, "type": "relu"} for name in ("a.0", "a_0")]
    net = keras_impl.build({"name": "tiny", "input": [1, 4, 4], "layers": layers})
    with pytest.raises(shared.Error, match="tiny cannot be built from Keras's own layers: .*a_0"):
        keras_impl.functional(net)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_precision_is_the_networks(dtype):
    spec = TINY["convolutions"]
    net = keras_impl.build(spec, dtype=dtype)
    plain = keras_impl.functional(net)
    images = random_images(spec).astype("float32")
    assert plain(images).dtype == net(images).dtype
    assert plain.get_layer("layer0").kernel.dtype == "float32"
    ours, theirs = (np.array(model(images), float) for model in (net, plain))
    assert ladder.relative(ours, theirs) <= ladder.TOLERANCES["bfloat16"]["logits"]


@pytest.mark.long
@pytest.mark.parametrize("name", shared.names())
def test_networks_of_the_zoo(name):
    spec = shared.load(name)
    spec = networks.with_size(spec, compare.small_size(spec, spec["input"][1:]))
    if name == "preact_resnet1001":
        with pytest.raises(shared.Error, match="preact_resnet1001 has too many layers for a functional model"):
            pair(spec)
        return
    net, plain = pair(spec)
    images = random_images(spec)
    assert ladder.relative(net(images).numpy(), plain(images).numpy()) <= TOLERANCE
    del net, plain
    keras.backend.clear_session()  # which would keep every layer of every network
    gc.collect()
