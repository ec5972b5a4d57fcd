"""Keras on another backend than TensorFlow: tests and commands again, in a process of their own, since a process has one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def again(environment, *tests, options=()):
    """Run tests of other files, with a backend that the environment says; they must pass."""
    command = [sys.executable, "-m", "pytest", "-n", "0", *options, *(f"{HERE / test}" for test in tests)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, env=own | environment)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def python(environment, code, folder, *arguments, **options):
    """Run a program."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}"} | environment, **options,
    )  # fmt: skip


# Every command that runs a network, in one process that has both backends
COMMANDS = """
import contextlib, io, json, os, sys
from pathlib import Path
import numpy as np
from PIL import Image
import shared
from shared import networks, weights
from twins.cli import main

spec = shared.load("resnet20") | {"name": "small", "input": [3, 16, 16]}
dense = networks.segmentation(spec, 5)
for each in (spec, dense):
    Path(each["name"] + ".json").write_text(json.dumps(each))
    weights.save_state(Path(each["name"] + ".safetensors"), weights.randomised(weights.initial(each)))
pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
Image.fromarray(pixels[0]).save("a.png")
Path("boxes.json").write_text(json.dumps([{"file": "a.png", "boxes": [[0, 0, 9, 9]], "class": 1}]))
np.savez("mine.npz", x_train=pixels, y_train=np.arange(6), x_test=pixels, y_test=np.arange(6))

found, backends = {}, ("torch", sys.argv[1])
for line in sys.stdin.read().splitlines():
    for backend in backends:
        out = io.StringIO()
        sys.argv = ["twins", *line.format(spec=spec["name"], dense=dense["name"]).split(), "--backend", backend]
        with contextlib.redirect_stdout(out):
            try:
                main()
            except SystemExit as end:
                status = end.code
        found.setdefault(line, []).append([status, out.getvalue()])
print(json.dumps(found))
"""
LINES = """predict {spec}.json a.png --weights {spec}.safetensors --json
predict {spec}.json --data mine.npz --weights {spec}.safetensors --json
evaluate {spec}.json --data mine.npz --weights {spec}.safetensors --workers 0 --json
locate {spec}.json --data . --weights {spec}.safetensors --json
segment {dense}.json a.png --weights {dense}.safetensors --out seg --json
activations {spec}.json a.png --layer layer2 --weights {spec}.safetensors --out a.pdf --json
microscope lenet5 --out page
"""


def flat(value):
    """What a nested value has in it, by place, floats about equal to their like."""
    if isinstance(value, dict):
        return {f"{key}{more}": n for key, each in value.items() for more, n in flat(each).items()}
    if isinstance(value, list):
        return flat({f"[{place}]": each for place, each in enumerate(value)})
    return {"": pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value}


def check_commands(environment, backend, title, folder):
    """Every command says of a backend, which messages call `title`, what it says of PyTorch."""
    done = python(environment, COMMANDS, folder, backend, input=LINES)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found) == 7
    for line, ((status, ours), (other, theirs)) in found.items():
        assert status == other == 0, line
        if "--json" in line:
            ours, theirs = (json.loads(out.replace(name, "X")) for out, name in ((ours, "PyTorch"), (theirs, title)))
            assert flat(theirs) == flat(ours), line
        else:
            assert ours == theirs
