"""The benchmark script, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import shared
from shared import shapes

ROOT = Path(__file__).parents[1]


def benchmark(*options):
    command = [sys.executable, "benchmarks/run.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("backend", "framework"), [("torch", "torch"), ("tf", "tensorflow")])
def test_measures_both_modes(backend, framework, tmp_path):
    path = tmp_path / "result.json"
    done = benchmark("--backend", backend, "--network", "mnist_residual", "--batch", 3, "--steps", 4, "--json", path)
    assert (done.returncode, done.stderr) == (0, "")
    for column in "infer_samples_per_sec train_samples_per_sec step_time batch_size img_size param_count gmacs".split():
        assert column in done.stdout

    found = json.loads(path.read_text())
    assert list(tmp_path.iterdir()) == [path]
    environment = found["environment"]
    assert {"device", "threads", "date", "python"} <= set(environment)
    assert framework in environment["versions"]
    assert environment["command"].endswith(f"--steps 4 --json {path}")
    rows = shapes.layers(shared.load("mnist_residual"))
    assert [row["mode"] for row in found["results"]] == ["infer", "train"]
    for row in found["results"]:
        assert (row["network"], row["batch_size"], row["img_size"], row["steps"]) == ("mnist_residual", 3, [28, 28], 4)
        assert row["gmacs"] == sum(layer.macs for layer in rows) / 1e9
        assert row["param_count"] == 41514 / 1e6
        assert row[f"{row['mode']}_samples_per_sec"] == pytest.approx(3000 / row["step_time"])
        assert 0 < row["step_time"] <= row["step_time_p95"]
        assert row["step_time_iqr"] > 0 and row["first_call"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "resnet19"], "no network is called 'resnet19', did you mean 'resnet18'?"),
        (["--size", "0"], "--size is 0, expected a whole number of at least 1"),
        (["--network", "mnist_residual", "--size", "4"], "mnist_residual, images of 4x4: layer 'conv1': the image is too"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: cannot be written: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    done = benchmark("--backend", "torch", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run.py: {message}")
    assert done.stderr.count("\n") == 1


def test_the_table_of_networks():
    command = [sys.executable, "benchmarks/parity.py", "--network", "lenet_caffe", "resnet20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["`lenet_caffe`", "`resnet20`"]
    assert [row[2:4] for row in cells] == [
        ["431,080", "BVLC/caffe lenet"],
        ["269,722", "akamaster/pytorch_resnet_cifar10 resnet20"],
    ]
    for row in cells:
        outputs, gradients = (float(cell.split()[0]) for cell in row[4:])
        assert 0 < outputs <= 1e-12 and 0 < gradients <= 1e-9


def test_the_readme_has_every_network_in_its_table():
    text = (ROOT / "README.md").read_text()
    for name in shared.names():
        assert f"| `{name}` | " in text, name
