"""What importing loads: `shared` and `twins` neither framework, `torch_impl` never Keras, `keras_impl` never PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("missing, extra, command", [("torch", "torch", "torch"), ("keras", "keras", "tf")])
def test_a_command_says_what_to_install_for_the_other_half(missing, extra, command, tmp_path):
    """Each framework without the other is a working half; here the other is hidden from the process."""
    hide = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {missing!r} else find(name, *rest)
sys.argv = ["twins", "train", "--backend", {command!r}, "--epochs", "1", "--out", {str(tmp_path / "run")!r}]
from twins.cli import main
main()
"""
    done = python(hide)
    assert done.returncode == 2
    assert f"pip install 'resnet-twins[{extra}]'" in done.stderr and "Traceback" not in done.stderr
