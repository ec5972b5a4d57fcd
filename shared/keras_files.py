"""The arrays in Keras's files, read without Keras: `.keras`, `.weights.h5` and the older `.h5`, of any model.

An array's name is its layer's and its own: "conv1_conv/kernel" in Keras's own layers, "layer1.0.conv1/weight" in this
project's. Layouts are Keras's.
"""

import io
import json
import math
import re
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
        raise Error(f"{path}: not a complete file of Keras's: {error}") from None
    if not arrays:
        raise Error(f"{path}: has no weights in it that Keras would read")
    return arrays, spec


def _read_arrays(file: Any) -> State:
    """{layer/word: array} of all layers in an HDF5 file. Raises `Error` if they are larger than it can hold."""
    datasets: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    file.visititems(lambda path, node: (groups if isinstance(node, h5py.Group) else datasets).update({path: node}))
    named: dict[str, Any] = {}
    for path, node in groups.items():
        if path.endswith("/vars"):
            numbers = sorted(int(name) for name in node if f"{path}/{name}" in datasets)
            members = [datasets[f"{path}/{number}"] for number in numbers]
            if members:
                layer, words = _layer(path.removesuffix("/vars"), groups)
                names = words.get(len(members), tuple(map(str, range(len(members)))))
                named |= {f"{layer}/{word}": dataset for word, dataset in zip(names, members, strict=True)}
        elif any(key.startswith("weight_names") for key in node.attrs):
            older = {name: datasets[f"{path}/{name}"] for name in _text_attribute(node, "weight_names")}
            layer = path.removeprefix("model_weights/")
            if layer != "optimizer_weights":
                named |= _older_names(layer, older)
    check_unpacked(file.id.get_filesize(), sum(map(_declared, named.values())))
    return {name: _array(dataset) for name, dataset in named.items()}


def _declared(dataset: Any) -> int:
    """The bytes that reading a dataset takes: its own, or those of a chunk that is larger."""
    return int(max(dataset.size or 0, math.prod(dataset.chunks or ())) * dataset.dtype.itemsize)


def _older_names(layer: str, members: dict[str, Any]) -> dict[str, Any]:
    """{layer/word: dataset} of a layer in the older form, or {layer.inner layer/word: dataset} of a model in it.

    Members are called "INNER/WORD:0", in Keras 1 "LAYER_W", with more before it in some versions.
    """
    inner: dict[str, dict[str, Any]] = {}
    for name, dataset in members.items():
        *parents, last = re.sub(r":\d+$", "", name).split("/")
        inner.setdefault(parents[-1] if parents else layer, {})[last] = dataset
    model = len(inner) > 1
    names: dict[str, Any] = {}
    for part, datasets in inner.items():
        words = KERAS.get(len(datasets), tuple(datasets))
        if set(datasets) <= set(KERAS[2] + KERAS[4]):
            words = tuple(datasets)
        place = f"{layer}.{part}" if model else layer
        names |= {f"{place}/{word}": dataset for word, dataset in zip(words, datasets.values(), strict=True)}
    return names


def _layer(path: str, groups: dict[str, Any]) -> tuple[str, Words]:
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
        name = groups[f"{here}/vars"].attrs.get("name") if f"{here}/vars" in groups else None
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
    if dataset.attrs.get("dtype") == "bfloat16":  # Keras's mark: HDF5 has no bfloat16 and stores untyped pairs of bytes
        return array.view(ml_dtypes.bfloat16).astype(np.float32)
    return array
