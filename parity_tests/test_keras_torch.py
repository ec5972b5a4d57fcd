"""Keras on PyTorch: the tests of the engine again, in processes whose Keras runs there."""

import functools

import other_backends
import pytest
from other_backends import python

from shared.checks import Error
from twins import backends, ladder, training

KERAS_TORCH = {"KERAS_BACKEND": "torch"}
again = functools.partial(other_backends.again, KERAS_TORCH)


@pytest.mark.long
@pytest.mark.parametrize(
    "test",
    [
        "test_training.py",
        "test_options.py::test_rung_5",
        "test_float16.py::test_rung_5",
        "test_pixels.py::test_twenty_steps",
        "test_pixels.py::test_the_loss_is_pytorchs",
        "test_dropout.py::test_engines_train_alike",
    ],
)
def test_rungs_5_and_6(test):
    again(test)


RUNS = """
import sys
from twins.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["twins", *line.split()]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def test_a_run_may_change_to_it_and_back(tmp_path):
    """As the run in PyTorch alone, to the tolerance of rung 5."""
    digits = "train digits_residual --set precision=float64 --workers 0"
    lines = [
        f"{digits} --epochs 3 --out whole",
        f"{digits} --epochs 1 --out changed",
        "train --resume changed --workers 0 --epochs 2 --backend keras-torch",
        "train --resume changed --workers 0 --epochs 3",
        "compare mnist_residual --steps 3 --backend keras-torch",
    ]
    done = python(KERAS_TORCH, RUNS, tmp_path, input="\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Keras on PyTorch: 44 steps" in done.stdout and "All parity tolerances are met." in done.stdout
    one, other = (training.read_checkpoint(tmp_path / name) for name in ("whole", "changed"))
    assert [row["framework"] for row in other.history] == ["PyTorch", "Keras on PyTorch", "PyTorch"]
    assert ladder.largest(ladder.between(one.arrays, other.arrays)).value <= ladder.TOLERANCES["float64"]["weights"]


LAYERS = """
import numpy as np, torch, torch_impl
from twins import backends
(package,) = backends.start(backends.Backend.KERAS_TORCH)
import keras
from keras_impl.layers import AvgPool, BatchNorm, Linear, precision

x = np.random.default_rng(0).standard_normal((2, 3, 7, 8))
last = keras.ops.convert_to_tensor(np.moveaxis(x, 1, -1), "float64")
sizes = ((3, 2), (2, 1), (3, 1))
with precision("float64"):
    norm, linear, pools = BatchNorm(3), Linear(3, 2), [AvgPool(*size, "same") for size in sizes]
for size, pool in zip(sizes, pools):
    ours = torch_impl.layers.AvgPool(*size, "same")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.moveaxis(keras.ops.convert_to_numpy(pool(last)), -1, 1), ours, rtol=1e-12)
far = 1e4 + 0.01 * np.random.default_rng(1).standard_normal((2, 4, 4, 3))
norm(keras.ops.convert_to_tensor(far, "float64"), training=True)
running = keras.ops.convert_to_numpy(norm.running_var)
np.testing.assert_allclose(running, 0.9 + 0.1 * far.var((0, 1, 2), ddof=1), rtol=1e-12)
assert keras.ops.convert_to_numpy(linear(keras.ops.ones((1, 3), "float64"))).dtype == np.float64

net = package.build("resnet20")
for name in ("activations", "dense_class_maps"):
    made = []
    setattr(net, name, lambda images: made.append(torch.is_grad_enabled()) or ({} if name == "activations" else images))
    getattr(package.Engine(net), name)(np.zeros((1, 3, 32, 32)))
    assert made == [False], name
"""


def test_layers_that_keras_computes_otherwise_there(tmp_path):
    """An average with "same" padding, a variance far from 0, a product in float64; and no pass for inference keeps a graph."""
    done = python(KERAS_TORCH, LAYERS, tmp_path)
    assert done.returncode == 0, done.stderr


ALONE = """
import sys
sys.modules |= dict.fromkeys(("tensorflow", "jax"))  # as if they were not installed
from twins.cli import main

sys.argv = ["twins", *sys.argv[1:]]
main()
"""


def test_it_needs_neither_tensorflow_nor_jax(tmp_path):
    done = python({}, ALONE, tmp_path, *"compare lenet5 --steps 1 --backend keras-torch".split())
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_gpu_that_is_not_there(tmp_path):
    done = python(
        {"KERAS_TORCH_DEVICE": "cuda:7", "CUDA_VISIBLE_DEVICES": ""},
        ALONE,
        tmp_path,
        "compare",
        "lenet5",
        "--backend",
        "keras-torch",
    )
    message = "twins: KERAS_TORCH_DEVICE is 'cuda:7', but PyTorch sees no GPU: unset it, or set it to cpu\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("device", ["nonsense", "meta", "", "cuda:99"])
def test_a_device_that_is_none(device, monkeypatch):
    """Also where there is a GPU, but not as many."""
    monkeypatch.setenv("KERAS_TORCH_DEVICE", device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(Error, match=f"KERAS_TORCH_DEVICE is '{device}': .*; unset it, or set it to cpu$"):
        backends._device_of_keras_torch()


def test_every_command_that_runs_a_network_does_on_keras_torch(tmp_path):
    other_backends.check_commands(KERAS_TORCH, "keras-torch", "Keras on PyTorch", tmp_path)
