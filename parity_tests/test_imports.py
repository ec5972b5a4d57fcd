"""Who imports whom: `shared` neither framework, `torch_impl` never Keras, `keras_impl` never PyTorch; and in any order."""

import os
import subprocess
import sys
import time

import pytest

LOADED = "import sys; print(*sorted({'torch', 'torchvision', 'keras', 'tensorflow'} & set(sys.modules)))"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def loaded(code, **environment):
    done = python(f"{code}; {LOADED}", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_shared_imports_neither_framework():
    modules = "spec shapes weights dropout data compare checkpoints keras_files predict fold export recipes training curves"
    modules += " locate interpolation gridding scattered"
    code = "; ".join(f"import shared.{module}" for module in [*modules.split(), "coexist", "cli"])
    assert loaded(f"{code}; shared.data.load(); [shared.load(name) for name in shared.names()]") == []


def test_torch_impl_imports_no_keras():
    assert set(loaded("import torch_impl; torch_impl.Engine(torch_impl.build('mnist_residual'))")) <= {"torch", "torchvision"}


def test_keras_impl_imports_no_torch():
    assert loaded("import keras_impl; keras_impl.Engine(keras_impl.build('mnist_residual'))") == ["keras", "tensorflow"]


@pytest.mark.parametrize("first, second", [("torch_impl", "keras_impl"), ("keras_impl", "torch_impl")])
def test_both_in_one_process_in_either_order(first, second):
    # PyTorch's optimisers load Triton, whose LLVM and TensorFlow's used to abort the process.
    code = f"import {first}, {second}; [p.Engine(p.build('mnist_residual')) for p in ({first}, {second})]; import triton"
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_command_starts_without_numpy():
    """Which takes a sixth of the half second that `twins list` may take."""
    assert python("import sys, shared.cli; assert not {'numpy', 'PIL', 'matplotlib'} & {*sys.modules}").returncode == 0


def test_listing_and_showing_are_quick():
    for command in (["list"], ["show", "resnet152"]):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "shared.cli", *command], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        # Half a second on an idle machine; a test machine is not idle, but an import of a framework takes seconds.
        assert min(times) < 1
