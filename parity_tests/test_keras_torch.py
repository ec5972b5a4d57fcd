"""Keras on PyTorch: the tests of the engine again, in processes whose Keras runs there."""

import functools

import other_backends
import pytest
from other_backends import python

from twins import ladder, training

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
    """As the run in PyTorch alone, to the bound of rung 5."""
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
    assert "Keras on PyTorch: 44 steps" in done.stdout and "Every bound of the ladder holds." in done.stdout
    one, other = (training.read_checkpoint(tmp_path / name) for name in ("whole", "changed"))
    assert [row["framework"] for row in other.history] == ["PyTorch", "Keras on PyTorch", "PyTorch"]
    assert ladder.largest(ladder.between(one.arrays, other.arrays)).value <= ladder.BOUNDS["float64"]["weights"]


def test_every_command_that_runs_a_network_does_on_keras_torch(tmp_path):
    other_backends.check_commands(KERAS_TORCH, "keras-torch", "Keras on PyTorch", tmp_path)
