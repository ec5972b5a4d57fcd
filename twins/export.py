"""Trained networks as files for inference elsewhere: written in float32, and read back by what each file is for.

Images are (batch, channels, height, width); for Keras and TensorFlow the channels are last. A batch may have any size.
"""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared import networks, reading
from shared.checks import Error
from shared.coexist import silence
from shared.files import atomic_folder, atomic_path, check_writable, read_json, write_text
from shared.fold import folded
from shared.spec import Spec
from shared.weights import State

from . import backends, checkpoints
from .backends import Backend, Package
from .ladder import TOLERANCES, relative

# What a path ends in, and what reads it back; without an extension it is the folder of a SavedModel. None: the framework
# that the logits are compared with.
READERS: dict[str, str | None] = {
    ".safetensors": None,
    ".pth": None,
    ".keras": "Keras",
    ".onnx": "onnxruntime",
    "": "TensorFlow",
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what .onnx needs
SAVED_MODEL = {"saved_model.pb", "variables", "assets", "fingerprint.pb"}  # the content of such a folder
TOLERANCE = TOLERANCES["float32"]["logits"]
IMAGES = 3
PYTORCH, KERAS = (".pth", ".onnx"), (".keras", "")  # written by that framework


class Row(NamedTuple):
    """A file, what read it back, and how far its logits are from those of the network in `framework`, before folding."""

    path: Path
    framework: str
    reader: str
    relative: float  # ||a - b|| / ||a||
    largest: float  # of the differences of single logits


def check_destinations(
    paths: Sequence[Path], sources: Sequence[str | Path], spec: Spec | None = None, plain: bool = False
) -> None:
    """Raise `Error` if `run` could not write a network of this spec to all paths, or would overwrite a file that it must keep.

    Such files are the sources, and the JSON file beside weights unless it holds this spec, if the spec is known already.
    """
    for path in paths:
        if plain and path.suffix != ".keras":
            raise Error(f"{path}: --plain is for files ending in .keras")
        if path.suffix not in READERS or not path.name.strip("."):
            kinds = ", ".join(kind for kind in READERS if kind)
            raise Error(f"{path}: expected a file ending in {kinds}; or a folder, without an extension, for a SavedModel")
        if not path.suffix and path.exists() and not _is_saved_model(path):
            raise Error(f"{path}: exists and is not a SavedModel; not overwritten")
        for file in _files(path):
            check_writable(file, folder=not path.suffix)
            if file.exists() and any(Path(source).exists() and file.samefile(source) for source in sources):
                raise Error(f"{file}: is read and would be overwritten; choose another name with --out")
            if spec and file.suffix == ".json" and file.exists() and not _holds(file, spec):
                raise Error(f"{file}: exists and holds something else; not overwritten, choose another name with --out")
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing and any(path.suffix == ".onnx" for path in paths):
        raise Error(f".onnx needs {', '.join(missing)}: pip install 'resnet-twins[export]'")
    for path in paths:
        if path.suffix in PYTORCH + KERAS:
            backend = Backend.TORCH if path.suffix in PYTORCH else Backend.TF
            backends.check_installed(*backends.needed(backend), needed_for=f"{path}")


def needed_backend(paths: Sequence[Path]) -> Backend:
    """What has to be started for these paths: PyTorch, which the logits are compared with, and what else they need.

    Where PyTorch is not installed, it is Keras alone, and the logits are compared with Keras's.
    """
    keras = any(path.suffix in KERAS for path in paths)
    if backends.installed(Backend.TORCH):
        return Backend.BOTH if keras else Backend.TORCH
    return Backend.TF if keras or backends.installed(Backend.TF) else Backend.TORCH


def run(
    spec: Spec, state: State, folds: bool, paths: Sequence[Path], say: Callable[[str], None] = lambda text: None,
    plain: bool = False,
) -> list[Row]:  # fmt: skip
    """Write a network to each path, with its batch norms folded if it `folds`; `say` is called with what is being done.

    With `plain`, `.keras` files are of Keras's own layers and load without this package.
    Raises `Error` if something cannot be written.
    """
    state = {name: array.astype(np.float32) for name, array in state.items()}
    images = np.random.default_rng(0).standard_normal((IMAGES, *spec["input"]), np.float32)
    rows = []
    package = backends.start(needed_backend(paths))[0]
    engine = backends.engines([package], spec, state)[0]
    expected = engine.predict(images)
    if folds:
        spec, state = folded(spec, state)
    for path in paths:
        say(f"writing {path}")
        with _quiet():
            _write(path, spec, state, plain)
    for path in paths:
        say(f"reading {path}")
        with _quiet():
            logits = _logits(path, images, package)
        reader = READERS[path.suffix] or engine.framework
        rows.append(Row(path, engine.framework, reader, relative(expected, logits), float(abs(expected - logits).max())))
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the frameworks, which log a lot while they write and read."""
    with silence(), warnings.catch_warnings(action="ignore"):
        yield


def _is_saved_model(path: Path) -> bool:
    return path.is_dir() and {"saved_model.pb"} <= {file.name for file in path.iterdir()} <= SAVED_MODEL


def _files(path: Path) -> list[Path]:
    """The path, and that of the spec beside it for a file that has weights alone."""
    return [path, path.with_suffix(".json")] if path.suffix in (".safetensors", ".pth") else [path]


def _holds(file: Path, spec: Spec) -> bool:
    """Whether a file is the JSON of a spec."""
    try:
        return read_json(file) == json.loads(json.dumps(spec))
    except Error:
        return False


def _write(path: Path, spec: Spec, state: State, plain: bool) -> None:
    if plain:
        with atomic_path(path) as temporary:
            backends.keras().export.plain(temporary, spec, state)
    elif path.suffix == ".onnx":
        with atomic_path(path) as temporary:
            backends.pytorch().export.onnx(temporary, spec, state)
    elif not path.suffix:
        with atomic_folder(path) as temporary:
            backends.keras().export.saved_model(temporary, spec, state)
    else:
        checkpoints.write_weights(path, path.suffix, spec, state)
        for file in _files(path)[1:]:
            write_text(file, json.dumps(spec, indent=2) + "\n")


def _logits(path: Path, images: np.ndarray, package: Package) -> np.ndarray:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"images": images})[0]
    if path.suffix in KERAS:
        package = backends.keras()
        read = package.export.keras_logits if path.suffix else package.export.tensorflow_logits
        return package.Engine.channels_first(read(path, np.moveaxis(images, 1, -1)))
    spec = networks.load(path.with_suffix(".json"))
    return backends.engines([package], *reading.load_weights(path, spec))[0].predict(images)
