"""Keras on JAX: the tests of the engine again, in processes whose Keras runs there."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import other_backends
import pytest
from other_backends import HERE, python

from shared import processes, weights
from shared.checks import Error
from twins import backends

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed: pip install jax")

QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # to compile
JAX = {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", **QUICK}
again = functools.partial(other_backends.again, JAX)


@pytest.mark.long
def test_twenty_steps_by_every_optimizer_and_schedule():
    again("test_training.py")


@pytest.mark.long
def test_logits_in_lower_precision():
    """Rung 6 with XLA as it is: what it fuses, it rounds in its own way."""
    other_backends.again(JAX | {"XLA_FLAGS": ""}, "test_training.py::test_logits_in_lower_precision")


@pytest.mark.long
@pytest.mark.parametrize(
    "test",
    [
        "test_options.py::test_rung_5",
        "test_float16.py::test_rung_5",
        "test_pixels.py::test_twenty_steps",
        "test_pixels.py::test_the_loss_is_pytorchs",
        "test_dropout.py::test_engines_train_alike",
    ],
)
def test_options_and_pixels(test):
    again(test)


@pytest.mark.parametrize("file", ["test_recording_keras.py", "test_recording_twins.py"])
def test_recordings_of_layers(file):
    again(file)


def test_faults_of_a_small_network_are_named():
    again("test_diff_forms.py", options=["--long", "-k", "times"])


@pytest.mark.long
@pytest.mark.parametrize("file", ["test_diff_forms.py", "test_diff_training.py"])
def test_faults_are_named(file):
    """With KERAS_BACKEND=jax and JAX_ENABLE_X64=1, --long of test_diff_pairs.py and test_recording_*.py has more."""
    again(file, options=["--long", "-m", "long"])


def test_diff_takes_jax_of_the_environment(tmp_path):
    def diff(*nets, **environment):
        return subprocess.run(
            [sys.executable, "-m", "twins", "diff", *nets], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": f"{HERE.parent}"} | JAX | environment,
        )  # fmt: skip

    done = diff("torch:lenet5", "keras:lenet5")
    assert (done.returncode, done.stderr) == (0, "") and "B: keras:lenet5 (Keras on JAX)" in done.stdout
    (tmp_path / "net.py").write_text("import keras\nnet = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])")
    done = diff("net.py:net", "net.py:net", JAX_ENABLE_X64="0")
    assert done.returncode == 2 and "set the environment variable JAX_ENABLE_X64=1" in done.stderr


MISTAKES = """
import jax
jax.numpy.zeros(1)  # the user's import, by which JAX has decided
import os
from shared.checks import Error
from twins import backends
from twins.backends import Backend

def attempt(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Error as error:
        print(error)

(package,) = backends.start(Backend.JAX)
attempt(package.build, "lenet5", dtype="float64")
attempt(backends.start, Backend.TF)
os.environ["JAX_NUM_PROCESSES"] = "2"
from shared import networks, recipes
attempt(package.trainer, networks.load("lenet5"), recipes.load("digits_residual"))
"""


def test_mistakes_in_python(tmp_path):
    """x64 decided by the user's import, two backends in one process, and JAX's variables wrong."""
    environment = {name: value for name, value in JAX.items() if name != "JAX_ENABLE_X64"}
    done = python(environment | {"KERAS_BACKEND": "tensorflow"}, MISTAKES, tmp_path)
    assert done.stdout.splitlines() == [
        "JAX turns float64 into float32 in this process: set the environment variable JAX_ENABLE_X64=1 before JAX is imported, "
        'or call jax.config.update("jax_enable_x64", True) before anything else',
        "this needs Keras on tensorflow, but in this process Keras already runs on jax; "
        "it has one backend per process: set KERAS_BACKEND=tensorflow before Keras is imported",
        "the environment variable JAX_PROCESS_ID is not set, expected the number of this process, from 0 to 1; "
        "JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS go together",
    ], done.stderr


def test_a_variable_that_jax_does_not_read_is_said(tmp_path):
    code = "from twins.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "microscope", "lenet5", "--out", "x", "--backend", "jax"], cwd=tmp_path, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": f"{HERE.parent}"} | JAX | {"JAX_ENABLE_X64": "maybe"},
    )  # fmt: skip
    message = "Keras on jax failed to start: invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"twins: {message}\n")


GO_TOGETHER = "JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS go together"
RIGHT = {"NUM_PROCESSES": "2", "PROCESS_ID": "1", "COORDINATOR_ADDRESS": "host1:2222"}
WHERE = "expected the machine of process 0 and a free port there, as host1:2222"


def set_variables(monkeypatch, variables):
    for name in RIGHT:
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"JAX_{name}", value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two', expected how many processes there are, as 2"),
        ({"NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is '0', expected how many processes there are, as 2"),
        ({"NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES is not set, expected how many processes there are, as 2"),
        ({"PROCESS_ID": "2"}, "JAX_PROCESS_ID is '2', expected the number of this process, from 0 to 1"),
        ({"PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1', expected the number of this process, from 0 to 1"),
        ({"PROCESS_ID": ""}, "JAX_PROCESS_ID is not set, expected the number of this process, from 0 to 1"),
        ({"COORDINATOR_ADDRESS": "host1"}, f"JAX_COORDINATOR_ADDRESS is 'host1', {WHERE}"),
        ({"COORDINATOR_ADDRESS": "host1:0"}, f"JAX_COORDINATOR_ADDRESS is 'host1:0', {WHERE}"),
        ({"COORDINATOR_ADDRESS": ""}, f"JAX_COORDINATOR_ADDRESS is not set, {WHERE}"),
    ],
)
def test_the_variables_of_several_processes(changes, message, monkeypatch, twins):
    set_variables(monkeypatch, RIGHT | changes)
    done = twins("train --backend jax")
    expected = f"twins: the environment variable {message}; {GO_TOGETHER}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize("platform", ["cuda", "nowhere"])
def test_a_platform_of_jax_that_is_not_there(platform):
    environment = os.environ | JAX | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "-m", "twins", "compare", "lenet5", "--backend", "jax"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    expected = f"twins: JAX finds no device of JAX_PLATFORMS={platform}: unset it, or set it to cpu\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_which_process_this_is(monkeypatch):
    for variables, expected in ((RIGHT, (1, 2)), ({}, (0, 1)), ({"NUM_PROCESSES": "1"}, (0, 1))):
        set_variables(monkeypatch, variables)
        assert processes.jax_process() == expected


def test_jax_that_is_missing_is_said_with_what_installs_it(monkeypatch, twins):
    monkeypatch.setitem(sys.modules, "jax", None)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jax" else find(name))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    for command in ("train --backend jax", "compare lenet5 --backend all"):
        done = twins(command)
        assert done.returncode == 2 and done.stderr == "twins: JAX is not installed: pip install 'resnet-twins[jax]'\n"
    with pytest.raises(Error, match="JAX is not installed: pip install 'resnet-twins.jax.', or pass --backend both"):
        backends.start(backends.Backend.ALL)


def test_every_command_that_runs_a_network_does_on_jax(tmp_path):
    other_backends.check_commands(JAX, "jax", "JAX", tmp_path)
    assert '"framework":"JAX"' in (tmp_path / "page" / "microscope-data.js").read_text()


def test_all_three_in_one_command(tmp_path):
    """With JAX itself in the other process: nothing of it is on the screen, and no process is left."""
    weights.save_state(tmp_path / "w.safetensors", weights.randomised(weights.initial("lenet5")))
    command = "predict lenet5 --data digits --weights w.safetensors --json --backend all"
    done = subprocess.run(
        [sys.executable, "-m", "twins", *command.split()], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}", "JAX_PLATFORMS": "cpu"} | QUICK,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["frameworks"] == ["PyTorch", "Keras", "JAX"] and found["same_predictions"] == found["tested"] == 360


@pytest.mark.long
def test_compare_and_train_on_jax(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)  # of which commands say that it does not count
    for command in (
        "compare mnist_residual --steps 3 --backend all",
        "compare mnist_residual --steps 3 --backend jax",
        "train digits_residual --epochs 1 --out run --backend jax",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "twins", *command.split()], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": f"{HERE.parent}", "JAX_PLATFORMS": "cpu"} | QUICK,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "train" in command or "All parity tolerances are met." in done.stdout
    assert "JAX: 22 steps" in done.stdout


POINTWISE = """
import json
from twins import backends
(package,) = backends.start(backends.Backend.JAX)
import jax, keras, numpy as np
from keras_impl.layers import Conv

rng, found = np.random.default_rng(0), []
for options in ({"stride": 2}, {"groups": 2}, {"kernel": 3, "padding": 1}):
    layer = Conv(8, 6, **{"kernel": 1} | options)
    kernel, x = rng.standard_normal(layer.weight.shape), rng.standard_normal((2, 5, 5, 8)).astype("float32")
    layer.weight.assign(kernel)
    step = jax.jit(jax.value_and_grad(lambda x: layer(x).sum()))
    text, (total, _) = step.lower(x).as_text(), step(x)
    seen = x[:, ::2, ::2] if "stride" in options else x
    parts = zip(np.split(seen, layer.groups, -1), np.split(kernel, layer.groups, -1))
    by_hand = sum(float((part @ some[0, 0]).sum()) for part, some in parts) if layer.weight.shape[0] == 1 else None
    found.append([text.count("stablehlo.convolution"), text.count("stablehlo.dot_general"), float(total), by_hand])
print(json.dumps(found))
"""


def test_a_pointwise_convolution_is_a_product_on_the_cpu(tmp_path):
    """Forward and backward; not one of several groups, nor one that sees neighbours."""
    done = python(JAX, POINTWISE, tmp_path)
    assert done.returncode == 0, done.stderr
    strided, grouped, wide = json.loads(done.stdout)
    assert strided[:2] == [0, 2] and grouped[0] == wide[0] == 2 and grouped[1] == wide[1] == 0
    for _, _, total, by_hand in (strided, grouped):
        assert total == pytest.approx(by_hand, rel=1e-4)


COMPILED = """
import logging, sys
from twins import backends
backends.start(backends.Backend.JAX)
import jax
from twins.cli import main

class Names(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("Finished XLA compilation"):
            print(record.getMessage().split()[4], file=sys.stderr)

jax.config.update("jax_log_compiles", True)
for name in ("jax._src.dispatch", "jax._src.interpreters.pxla"):
    logging.getLogger(name).handlers, logging.getLogger(name).propagate = [Names()], False
sys.argv = ["twins", "train", "recipe.json", "--backend", "jax", "--workers", "0", "--out", "run"]
main()
"""


def test_a_run_compiles_its_step_and_its_prediction_at_most_twice(tmp_path):
    """For a whole batch and the last: not for another epoch, learning rate or label."""
    pixels, labels = np.random.default_rng(0).integers(0, 256, (22, 32, 32, 1), np.uint8), np.arange(22) % 10
    np.savez(tmp_path / "mine.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    recipe = {"name": "mine", "network": "lenet5", "data": "mine.npz", "batch": 4, "epochs": 3}
    recipe |= {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, "schedule": {"name": "cosine"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    done = python(JAX, COMPILED, tmp_path)
    names = done.stderr.split()
    assert done.returncode == 0, done.stderr
    assert 1 <= names.count("jit(_one_step)") <= 2 and 1 <= names.count("jit(run)") <= 2, names
