"""Trained networks as files for inference elsewhere: written in float32, and read back by what each file is for.

Images are (batch, channels, height, width); for Keras and TensorFlow the channels are last. A batch may have any size.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import checkpoints, predict
from .coexist import silence
from .compare import BOUNDS, relative
from .fold import folded
from .spec import Error, load
from .weights import aside, check_place

# What a path ends in, and what reads it back; without an ending it is the folder of a SavedModel.
READERS = {".safetensors": "PyTorch", ".pth": "PyTorch", ".keras": "Keras", ".onnx": "onnxruntime", "": "TensorFlow"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # without which there is no .onnx
SAVED_MODEL = {"saved_model.pb", "variables", "assets", "fingerprint.pb"}  # in such a folder
BOUND = BOUNDS["float32"]["logits"]
IMAGES = 3


class Row(NamedTuple):
    """A file, what read it back, and how far its logits are from those of the network in PyTorch, before folding."""

    path: Path
    reader: str
    relative: float  # ||a - b|| / ||a||
    largest: float  # of the differences of single logits


def check(paths, sources):
    """Raise `Error` where `run` could not write all paths, or would write over one of the sources."""
    for path in paths:
        if path.suffix not in READERS or not path.name.strip("."):
            kinds = ", ".join(kind for kind in READERS if kind)
            raise Error(f"{path}: expected a file ending in {kinds}; or a folder, without an ending, for a SavedModel")
        if not path.suffix and path.exists() and not _is_saved_model(path):
            raise Error(f"{path}: is there and no SavedModel, so it stays; expected another name")
        for file in _files(path):
            check_place(file, folder=not path.suffix)
            if file.suffix == ".json" and file.exists():
                try:
                    load(file)
                except Error:
                    raise Error(f"{file}: is there and no spec, so it stays; expected another name behind --out") from None
            if file.exists() and any(Path(source).exists() and file.samefile(source) for source in sources):
                raise Error(f"{file}: is read and would be written over; expected another name behind --out")
    keras = os.environ.get("KERAS_BACKEND", "tensorflow")
    if keras != "tensorflow" and any(not path.suffix for path in paths):
        raise Error(f"KERAS_BACKEND is {keras!r}; a SavedModel needs tensorflow")
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing and any(path.suffix == ".onnx" for path in paths):
        raise Error(f".onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def backend(paths):
    """Whether PyTorch alone, "torch", or "both" frameworks are needed for these paths."""
    return "both" if any(path.suffix in (".keras", "") for path in paths) else "torch"


def run(spec, state, folds, paths, say=lambda text: None):
    """Write a network to each path, with its batch norms folded if it `folds`; returns a `Row` for each.

    `say` hears what is going on. Raises `Error` where something cannot be written.
    """
    import torch_impl

    state = {name: array.astype(np.float32) for name, array in state.items()}
    images = np.random.default_rng(0).standard_normal((IMAGES, *spec["input"]), np.float32)
    found = []
    expected = predict.engines([torch_impl], spec, state)[0].predict(images)
    if folds:
        spec, state = folded(spec, state)
    for path in paths:
        say(f"writing {path}")
        with _quiet():
            _write(path, spec, state)
    for path in paths:
        say(f"reading {path}")
        with _quiet():
            logits = _logits(path, images)
        found.append(Row(path, READERS[path.suffix], relative(expected, logits), float(abs(expected - logits).max())))
    return found


@contextlib.contextmanager
def _quiet():
    """The frameworks have much to tell while they write and read."""
    with silence(), warnings.catch_warnings(action="ignore"):
        yield


def _is_saved_model(path):
    return path.is_dir() and {"saved_model.pb"} <= {file.name for file in path.iterdir()} <= SAVED_MODEL


def _files(path):
    """The path, and that of the spec beside it where a file has weights alone."""
    return [path, path.with_suffix(".json")] if path.suffix in (".safetensors", ".pth") else [path]


def _write(path, spec, state):
    if path.suffix == ".onnx":
        from torch_impl.export import onnx

        with aside(path) as temporary:
            onnx(temporary, spec, state)
    elif not path.suffix:
        from keras_impl.export import saved_model

        with _folder_aside(path) as temporary:
            saved_model(temporary, spec, state)
    else:
        checkpoints.write(path, path.suffix, spec, state)
        for file in _files(path)[1:]:
            with aside(file) as temporary:
                temporary.write_text(json.dumps(spec, indent=2) + "\n")


def _logits(path, images):
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"images": images})[0]
    if path.suffix in (".keras", ""):
        from keras_impl import export

        return (export.keras_logits if path.suffix else export.tensorflow_logits)(path, np.moveaxis(images, 1, -1))
    import torch_impl

    spec = load(path.with_suffix(".json"))
    return predict.engines([torch_impl], spec, checkpoints.load(path, spec))[0].predict(images)


@contextlib.contextmanager
def _folder_aside(path):
    """As `weights.aside`, for a folder, which may take the place of an older one."""
    path = path.resolve()
    temporary, old = (path.with_name(f".{os.getpid()}.{path.name}{ending}") for ending in ("", ".old"))
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        raise Error(f"{path}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
