"""What importing loads: `shared` and `twins` neither framework, `torch_impl` never Keras, `keras_impl` never PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import shared
from shared import published, weights
from shared.checks import Error
from twins import backends

ROOT = Path(__file__).parent.parent
LOADED = "import sys; print(*sorted({'torch', 'torchvision', 'keras', 'tensorflow'} & set(sys.modules)))"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def loaded(code, **environment):
    done = python(f"{code}; {LOADED}", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_ground_and_the_application_start_no_framework():
    files = [path for package in ("shared", "twins") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem not in ("__init__", "__main__")
    ]
    assert {"shared.weights", "twins.training", "twins.cli.train"} <= set(names)
    code = f"import {', '.join(names)}; twins.datasets.load_data(); [shared.load(name) for name in shared.names()]"
    assert loaded(code) == []


@pytest.mark.parametrize(
    "first, second, frameworks",
    [("torch_impl", "keras_impl", ["torch"]), ("keras_impl", "torch_impl", ["keras", "tensorflow"])],
)
def test_one_starts_its_framework_alone_and_both_live_in_one_process_in_either_order(first, second, frameworks):
    # PyTorch's optimisers load Triton, whose LLVM and TensorFlow's used to abort the process.
    code = "; ".join(f"import {name}; {name}.Engine({name}.build('mnist_residual'))" for name in (first, second))
    done = python(code.replace(f"import {second};", f"{LOADED}; import {second};") + "; import triton")
    assert (done.returncode, done.stdout.split()) == (0, frameworks), done.stderr


def test_the_command_starts_without_numpy():
    """Which takes a sixth of the half second that `twins list` may take."""
    assert python("import sys, twins.cli; assert not {'numpy', 'PIL', 'matplotlib'} & {*sys.modules}").returncode == 0


HIDDEN = """
import contextlib, io, json, sys

class Finder:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

hidden, commands = json.loads(sys.argv[1])
sys.meta_path[:] = map(Finder, sys.meta_path)
from twins.cli import main
results = []
for command in commands:
    sys.argv, code = ["twins", *command.split()], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    results.append([code, out.getvalue(), error.getvalue()])
print(json.dumps(results))
"""


def without(hidden, commands, folder):
    """[(exit status, stdout, stderr)] of commands in a process in which packages are not installed."""
    environment = {key: value for key, value in os.environ.items() if key != "TWINS_DATA"}
    environment |= {"PYTHONPATH": str(ROOT), "TORCH_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, json.dumps([hidden, commands])],
        capture_output=True, text=True, timeout=300, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path):
    """A small network's weights and a picture."""
    weights.save_state(tmp_path / "w.safetensors", weights.initial("mnist_residual"))
    Image.new("L", (28, 28)).save(tmp_path / "p.png")
    return tmp_path


PYTORCH = ["torch", "torchvision"]
KERAS = ["keras", "tensorflow"]
WEIGHTS = "mnist_residual --weights w.safetensors"
TO_PYTORCH = "needs PyTorch, which is not installed: pip install 'resnet-twins[torch]'"
TO_TORCHVISION = "needs PyTorch and torchvision, which are not installed: pip install 'resnet-twins[torch]'"
TO_KERAS = "needs Keras and TensorFlow, which are not installed: pip install 'resnet-twins[keras]'"
NO_PYTORCH = "PyTorch is not installed: pip install 'resnet-twins[torch]'"
NO_KERAS = "Keras and TensorFlow are not installed: pip install 'resnet-twins[keras]'"
NEITHER = "PyTorch, Keras and TensorFlow are not installed: pip install 'resnet-twins[torch]' 'resnet-twins[keras]'"
HALVES = {  # hidden packages: commands, and what each says
    "PyTorch": (
        PYTORCH,
        {
            "train --epochs 1": f"{NO_PYTORCH}, or pass --backend tf",
            "compare mnist_residual": NO_PYTORCH,
            f"predict {WEIGHTS} p.png --backend both": NO_PYTORCH,
            "convert w.safetensors x.pth": f"x.pth {TO_PYTORCH}",
            f"export {WEIGHTS} --out saved --out x.pth": f"x.pth {TO_PYTORCH}",
            "train cifar10_resnet --backend tf": f"downloading cifar10 {TO_TORCHVISION}, or put cifar10.npz into a folder",
        },
    ),
    "Keras": (
        KERAS,
        {
            "train --backend tf --epochs 1": f"{NO_KERAS}, or pass --backend torch",
            "compare mnist_residual": NO_KERAS,
            "convert w.safetensors x.keras": f"x.keras {TO_KERAS}",
            "convert w.safetensors x.weights.h5": f"x.weights.h5 {TO_KERAS}",
            f"export {WEIGHTS} --out x.pth --out saved": f"saved {TO_KERAS}",
        },
    ),
    "both": (
        PYTORCH + KERAS,
        {
            "train --epochs 1": NO_PYTORCH,
            "compare mnist_residual": NEITHER,
            f"export {WEIGHTS}": NO_PYTORCH,
        },
    ),
    "TensorFlow": (
        ["tensorflow"],
        {"compare mnist_residual": "TensorFlow is not installed: pip install 'resnet-twins[keras]'"},
    ),
    "torchvision": (
        ["torchvision"],  # which `[export]` does not install
        {
            "train cifar10_resnet": "downloading cifar10 needs torchvision, which is not installed: pip install "
            "'resnet-twins[torch]', or put cifar10.npz into a folder",
        },
    ),
}


@pytest.mark.parametrize("half", HALVES)
def test_a_command_says_what_to_install_for_the_other_half(half, folder):
    hidden, messages = HALVES[half]
    before = sorted(folder.iterdir())
    for (code, out, error), message in zip(without(hidden, [*messages], folder), messages.values(), strict=True):
        assert (code, out) == (2, "") and error.replace("\n", " ").startswith(f"twins: {message}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.long
def test_keras_alone_is_a_working_half(folder):
    commands = [
        "train --backend tf --epochs 1 --out run",
        f"predict {WEIGHTS} p.png --backend tf",
        f"export {WEIGHTS} --out saved --out x.keras --out x.safetensors",
        "convert x.keras y.weights.h5",
        "convert y.weights.h5 z.safetensors --network mnist_residual",
        "convert w.pth w.keras --network mnist_residual",  # reading PyTorch's files needs no PyTorch
        "predict published.json --weights imagenet p.png --backend tf",  # nor those that torchvision publishes
    ]
    torch.save({name: torch.from_numpy(a) for name, a in weights.initial("mnist_residual").items()}, folder / "w.pth")
    (folder / "published.json").write_text(json.dumps(shared.load("mnist_residual") | {"weights": "torchvision resnet18"}))
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / published.FILES["resnet18"]).write_bytes((folder / "w.pth").read_bytes())
    results = without(PYTORCH, commands, folder)
    assert [code for code, *_ in results] == [0] * len(commands), results  # TensorFlow warns: so many networks in one process
    rows = [line.split()[:2] for line in results[2][1].splitlines()]
    assert rows[1:4] == [["saved", "TensorFlow"], ["x.keras", "Keras"], ["x.safetensors", "Keras"]]
    assert "from mnist_residual in Keras" in results[2][1]


@pytest.mark.long
def test_pytorch_alone_is_a_working_half(folder):
    commands = [
        "train --epochs 1 --out run",
        f"predict {WEIGHTS} p.png",
        f"export {WEIGHTS} --out x.pth --out x.safetensors",
        "convert x.pth y.safetensors",
    ]
    results = without(KERAS, commands, folder)
    assert [(code, error) for code, _, error in results] == [(0, "")] * len(commands)
    assert "from mnist_residual in PyTorch" in results[2][1]


def test_keras_on_another_backend_is_named_with_what_needs_it(monkeypatch):
    backends.keras()
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(Error, match="^x.keras needs Keras on tensorflow, but in this process Keras already runs on jax; "):
        backends.keras(needed_for="x.keras")
