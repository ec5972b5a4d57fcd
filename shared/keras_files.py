"""The arrays in Keras's files, read without Keras: `.keras`, `.weights.h5` and the older `.h5`, of any model.

An array's name is its layer's and its own: "conv1_conv/kernel" in Keras's own layers, "layer1.0.conv1/weight" in this
project's. Layouts are Keras's.
"""

import io
import json
import math
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from . import limits, networks
from .checks import Error, check_unpacked
from .formats import KERAS as KERAS_ZIP
from .formats import kind_of, open_zip
from .spec import Spec
from .weights import State, normalised

# The names of a layer's arrays, by how many it has: four are a batch norm's.
KERAS = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
OURS = {1: ("weight",), 2: ("weight", "bias"), 4: ("weight", "bias", "running_mean", "running_var")}

Words = dict[int, tuple[str, ...]]


def read_keras(path: str | Path) -> tuple[State, Spec | None]:
    """The arrays of a file, and the spec of its network if the file has one, as a `.keras` file of this project does.

    Raises `Error` for a file that is truncated or not Keras's.
    """
    spec = None
    content: Any = path
    try:
        if kind_of(path) == KERAS_ZIP:
            with open_zip(path) as archive:
                if archive.getinfo("config.json").file_size > limits.JSON:
                    raise Error(f"its config.json has more than {limits.JSON:,} bytes")
                model = json.loads(archive.read("config.json"))
                content = io.BytesIO(archive.read("model.weights.h5"))
            if model.get("registered_name") == "resnet_twins>Network":
                spec = networks.load(model["config"]["spec"])
        with h5py.File(content, "r") as file:
            arrays = normalised(_read_arrays(file))
    except Error as error:
        raise Error(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # what zipfile, json and h5py raise for damaged files has no common class
        raise Error(f"{path}: not a complete Keras file: {error}") from None
    if not arrays:
        raise Error(f"{path}: has no weights that Keras would read")
    return arrays, spec


def _read_arrays(file: Any) -> State:
    """{layer/word: array} of all layers in an HDF5 file. Raises `Error` if they are larger than the file can hold."""
    groups, members = _tree(file)
    named: dict[str, str] = {}
    for path in groups:
        if path.endswith("/vars"):
            numbers = sorted(int(name) for name in members.get(path, ()))
            if numbers:
                layer, words = _layer(path.removesuffix("/vars"), file, groups)
                names = words.get(len(numbers), tuple(map(str, range(len(numbers)))))
                pairs = zip(names, numbers, strict=True)
                named |= {f"{layer}/{word}": f"{path}/{number}" for word, number in pairs}
        elif any(h5py.h5a.exists(file.id, key, obj_name=_encoded(path)) for key in (b"weight_names", b"weight_names0")):
            older = {name: f"{path}/{name}" for name in _text_attribute(file[path], "weight_names")}
            layer = path.removeprefix("model_weights/")
            if layer != "optimizer_weights":
                named |= _older_names(layer, older)
    arrays: State = {}
    size, declared = file.id.get_filesize(), 0
    for name, path in named.items():  # one is open at a time: HDF5 slows down as they become many
        dataset = file[path]
        own = _declared(dataset)
        check_unpacked(dataset.id.get_storage_size(), own)
        declared += own
        check_unpacked(size, declared)
        arrays[name] = _array(dataset)
    return arrays


def _tree(file: Any) -> tuple[dict[str, None], dict[str, list[str]]]:
    """(paths of all groups, {path of a group: names of the arrays in it}) of an HDF5 file, without opening any of them.

    Raises `Error` if there are more than any network's.
    """
    groups: dict[str, None] = {}
    members: dict[str, list[str]] = {}

    def visit(name: bytes, about: Any) -> bool | None:
        path = name.decode("utf-8", "surrogateescape")
        if about.type == h5py.h5o.TYPE_GROUP:
            groups[path] = None
        elif about.type == h5py.h5o.TYPE_DATASET:
            parent, _, last = path.rpartition("/")
            members.setdefault(parent, []).append(last)
        return True if len(groups) > limits.GROUPS else None  # true ends the visits

    if h5py.h5o.visit(file.id, visit, info=True):
        raise Error(f"has more than {limits.GROUPS:,} groups, more than any Keras network has")
    return groups, members


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _declared(dataset: Any) -> int:
    """The bytes that reading a dataset takes: its own, or those of a chunk that is larger."""
    return int(max(dataset.size or 0, math.prod(dataset.chunks or ())) * dataset.dtype.itemsize)


def _older_names(layer: str, members: dict[str, str]) -> dict[str, str]:
    """{layer/word: path} of a layer in the older form, or {layer.inner layer/word: path} of a model in it.

    Members are called "INNER/WORD:0", in Keras 1 "LAYER_W", with more before it in some versions.
    """
    inner: dict[str, dict[str, str]] = {}
    for name, dataset in members.items():
        *parents, last = re.sub(r":\d+$", "", name).split("/")
        inner.setdefault(parents[-1] if parents else layer, {})[last] = dataset
    model = len(inner) > 1
    names: dict[str, str] = {}
    for part, datasets in inner.items():
        words = KERAS.get(len(datasets), tuple(datasets))
        if set(datasets) <= set(KERAS[2] + KERAS[4]):
            words = tuple(datasets)
        place = f"{layer}.{part}" if model else layer
        names |= {f"{place}/{word}": dataset for word, dataset in zip(words, datasets.values(), strict=True)}
    return names


def _layer(path: str, file: Any, groups: Container[str]) -> tuple[str, Words]:
    """The name of a layer, and the words for its arrays.

    Keras files a layer under the attributes that lead to it. If none does, or a list comes earlier in the alphabet, it files
    it under its class and number in the list "layers", and the layer's name is an attribute in the file.
    """
    if not path.startswith("layers/"):
        return path.replace("/", "."), OURS
    names, here, words = [], "", KERAS
    for part in re.split(r"(?:^|/)layers/", path)[1:]:  # a model in a model has layers of its own
        top, *rest = part.split("/")
        here = f"{here}/layers/{top}".removeprefix("/")
        name = file[f"{here}/vars"].attrs.get("name") if f"{here}/vars" in groups else None
        if name is None:
            raise Error("its layers have no names, as in files of early versions of Keras 3: load and save it with a later one")
        names += [name, *rest]
        words = KERAS if re.fullmatch(r"(conv2d|dense|batch_normalization)(_\d+)?", top) else OURS
        here = "/".join([here, *rest])
    return ".".join(names), words


def _text_attribute(group: Any, key: str) -> list[str]:
    """A list of strings that is an attribute of a group; Keras splits a long one into several: key0, key1."""
    keys = sorted((name for name in group.attrs if re.fullmatch(rf"{key}\d*", name)), key=lambda name: (len(name), name))
    return [text.decode() if isinstance(text, bytes) else text for name in keys for text in group.attrs[name]]


def _array(dataset: Any) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise Error(f"{dataset.name.removeprefix('/')} is a reference to another file, which is not followed")
    if dataset.dtype.kind == "O":  # texts and references, of any length
        raise Error(f"{dataset.name.removeprefix('/')} holds objects, expected floating-point numbers")
    array = np.asarray(dataset[()])
    if (
        array.dtype.kind == "V" and dataset.attrs.get("dtype") == "bfloat16"
    ):  # Keras's mark: HDF5 has no bfloat16 and stores untyped pairs of bytes
        return array.view(ml_dtypes.bfloat16).astype(np.float32)
    return array
