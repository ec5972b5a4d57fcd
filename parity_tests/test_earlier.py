"""What earlier versions wrote still loads: `fixtures/earlier` is from the version before the packages were rearranged.

`run` is `twins train` after 2 of its 4 epochs, in PyTorch and in float64; `whole.jsonl` the log of the same run to its end;
`tiny.keras` and `tiny.pth` are `twins convert` of its best weights.
"""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import keras_impl
import shared
import torch_impl
from shared import reading, weights
from twins import runlog, training
from twins.cli import app
from twins.ladder import TOLERANCES, relative

EARLIER = Path(__file__).parent / "fixtures" / "earlier"


def best():
    return weights.read_state(EARLIER / "run" / "best.safetensors")


@pytest.mark.parametrize("backend", ["torch", "tf"])
def test_a_run_is_resumed_to_the_same_end(backend, tmp_path):
    folder = shutil.copytree(EARLIER / "run", tmp_path / "run")
    options = ["--resume", str(folder), "--backend", backend, "--epochs", "4"]
    done = CliRunner().invoke(app, ["train", *options])
    assert done.exit_code == 0, done.output
    logged, expected = runlog.read_log(folder), runlog.read_log(EARLIER / "whole.jsonl")
    assert [row["epoch"] for row in logged] == [1, 2, 3, 4]
    for row, other in zip(logged, expected, strict=True):
        assert row["test_accuracy"] == other["test_accuracy"]
        assert relative(row["loss"], other["loss"]) < TOLERANCES["float64"]["losses"]
    assert training.read_checkpoint(folder).step == 4 * 22


def test_a_keras_file_loads():
    net = keras.models.load_model(EARLIER / "tiny.keras")
    assert isinstance(net, keras_impl.Network) and net.spec["name"] == "tiny"
    state = keras_impl.state(net)
    assert all(np.array_equal(state[name], array) for name, array in best().items())


def test_a_checkpoint_loads():
    spec = shared.load(EARLIER / "tiny.json")
    _, state = reading.load_weights(EARLIER / "tiny.pth", spec)
    assert all(np.array_equal(state[name], array) for name, array in best().items())
    net = torch_impl.build(spec, dtype="float64")
    net.load_state_dict(torch.load(EARLIER / "tiny.pth"))
    assert all(np.array_equal(array, best()[name]) for name, array in torch_impl.state(net).items())


def test_what_a_run_folder_describes_is_read():
    spec = shared.load(EARLIER / "run" / "network.json")
    recipe = json.loads((EARLIER / "run" / "recipe.json").read_text())
    assert spec["layers"] == shared.load(EARLIER / "tiny.json")["layers"] and recipe["epochs"] == 2
