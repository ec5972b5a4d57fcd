"""The arrays in Keras's files, read without Keras: `.keras`, `.weights.h5` and the older `.h5`, of any model.

An array is called after its layer and what it is there: "conv1_conv/kernel" in Keras's own layers, "layer1.0.conv1/weight" in
this project's. Layouts are Keras's.
"""

import io
import json
import re
import zipfile

import h5py
import ml_dtypes
import numpy as np

from . import networks
from .checks import Error

# What the arrays of a layer are called, by how many it has: four are a batch norm's.
KERAS = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}
OURS = {1: ("weight",), 2: ("weight", "bias"), 4: ("weight", "bias", "running_mean", "running_var")}


def read_keras(path):
    """The arrays of a file, and the spec of its network where the file has one: a `.keras` of this project.

    Raises `Error` for a file that is truncated or not Keras's.
    """
    described = None
    try:
        if str(path).endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                model = json.loads(archive.read("config.json"))
                content = io.BytesIO(archive.read("model.weights.h5"))
            if model.get("registered_name") == "resnet_twins>Network":
                described = networks.load(model["config"]["spec"])
        else:
            content = path
        with h5py.File(content, "r") as file:
            arrays = _arrays(file)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except Exception as error:  # what zipfile, json and h5py raise for files that are damaged has no common name
        raise Error(f"{path}: not a complete file of Keras's: {error}") from None
    if not arrays:
        raise Error(f"{path}: has no weights in it that Keras would read")
    return arrays, described


def _arrays(file):
    datasets, groups = {}, {}
    file.visititems(lambda path, node: (groups if isinstance(node, h5py.Group) else datasets).update({path: node}))
    found = {}
    for path, node in groups.items():
        if path.endswith("/vars"):
            numbers = sorted(int(name) for name in node if f"{path}/{name}" in datasets)
            layer, words = _layer(path.removesuffix("/vars"), groups)
            members = [datasets[f"{path}/{number}"] for number in numbers]
        elif any(key.startswith("weight_names") for key in node.attrs):
            layer = path.removeprefix("model_weights/")
            members, words = [datasets[f"{path}/{name}"] for name in _texts(node, "weight_names")], KERAS
        else:
            continue
        for word, dataset in zip(words.get(len(members), range(len(members))), members, strict=True):
            found[f"{layer}/{word}"] = _array(dataset)
    return found


def _layer(path, groups):
    """The name of a layer, and the words for its arrays.

    A layer's place is the attributes that lead to it, or, where no attribute does or a list comes earlier in the alphabet,
    its class and number in the list "layers". Then its name is an attribute of the file.
    """
    top, *rest = path.removeprefix("layers/").split("/")
    if not path.startswith("layers/"):
        return path.replace("/", "."), OURS
    name = groups[f"layers/{top}/vars"].attrs.get("name") if f"layers/{top}/vars" in groups else None
    if name is None:
        raise Error("its layers have no names, as in files of early versions of Keras 3: load and save it with a later one")
    own = not re.fullmatch(r"(conv2d|dense|batch_normalization)(_\d+)?", top)
    return ".".join([name, *rest]), OURS if own else KERAS


def _texts(group, key):
    """A list of texts that is an attribute of a group, or several where it is long: key0, key1."""
    keys = sorted((name for name in group.attrs if re.fullmatch(rf"{key}\d*", name)), key=lambda name: (len(name), name))
    return [text.decode() if isinstance(text, bytes) else text for name in keys for text in group.attrs[name]]


def _array(dataset):
    if dataset.external or dataset.is_virtual:
        raise Error(f"{dataset.name.removeprefix('/')} is a reference to another file, which is not followed")
    array = np.asarray(dataset[()])
    if dataset.attrs.get("dtype") == "bfloat16":  # Keras's note on two bytes without a type
        return array.view(ml_dtypes.bfloat16).astype(np.float32)
    return array
