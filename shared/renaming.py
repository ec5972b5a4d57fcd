"""Arrays under foreign names and in foreign layouts, fitted to a network."""

import re
from typing import NamedTuple

import numpy as np

from . import keras_files, networks, shapes, weights
from .checks import Error
from .networks import headless

# What other projects call layers that networks here call otherwise. Tried in order, until a name is one of the network's.
RENAMED = (
    (r"^module\.", ""),  # PyTorch's DataParallel
    (r"^linear\.", "fc."),  # CIFAR ResNets in circulation
    # Caffe's GoogLeNet, with the names of its files or with dots in them
    (r"^conv1[./]7x7_s2\.", "conv1."),
    (r"^conv2[./]3x3_reduce\.", "conv2."),
    (r"^conv2[./]3x3\.", "conv3."),
    (r"^inception_(\d\w)[./]1x1\.", r"inception\1.branch1.conv."),
    (r"^inception_(\d\w)[./]3x3_reduce\.", r"inception\1.branch2.0.conv."),
    (r"^inception_(\d\w)[./]3x3\.", r"inception\1.branch2.1.conv."),
    (r"^inception_(\d\w)[./]5x5_reduce\.", r"inception\1.branch3.0.conv."),
    (r"^inception_(\d\w)[./]5x5\.", r"inception\1.branch3.1.conv."),
    (r"^inception_(\d\w)[./]pool_proj\.", r"inception\1.branch4.1.conv."),
    (r"^loss3[./]classifier\.", "fc."),
)
# What networks here have no place for, and why.
IGNORED = (
    (r"(^|\.)num_batches_tracked$", "counts batches, which nothing reads"),
    (r"^(module\.)?aux[12]\.|^loss[12][./]", "auxiliary classifier, which only training has"),
    (r"^optimizer", "state of an optimiser"),
)
# Keras's words for the arrays of a layer, and ours
WORDS = {"kernel": "weight", "bias": "bias"} | dict(zip(keras_files.KERAS[4], keras_files.OURS[4], strict=True))
WORDS |= {word: word for word in keras_files.OURS[4]}


class Move(NamedTuple):
    """Where an array of a checkpoint went, or why it did not."""

    source: str
    source_shape: tuple[int, ...]
    destination: str = ""
    destination_shape: tuple[int, ...] = ()
    ignored: str = ""


def fit(arrays, spec):
    """The state of a network that the arrays of a checkpoint are, and a list of `Move`, both in the order of the network.

    Raises `Error`, with all of them in it, for missing, unexpected and misshapen arrays.
    """
    rows = shapes.layers(spec)
    expected = shapes.weights(rows)
    layers = {theirs: ours for ours, theirs in application_names(rows).items()}
    maps = _flattened(rows)
    state, moves, sources = {}, [], {}
    for source, array in arrays.items():
        name, word = renamed(source, expected, layers)
        why = next((why for pattern, why in IGNORED if re.search(pattern, source)), "")
        if why and name not in expected:
            moves.append(Move(source, array.shape, ignored=why))
            continue
        if name in state:
            raise Error(f"both {sources[name]} and {source} would be {name}")
        if word:
            array = _from_keras(array, maps.get(name) if word == "kernel" else None)
        state[name], sources[name] = array, source
        moves.append(Move(source, arrays[source].shape, name, array.shape))
    weights.check_state(state, expected)
    order = {name: number for number, name in enumerate(expected)}
    moves.sort(key=lambda move: order.get(move.destination, len(order)))
    return {name: state[name] for name in expected}, moves


def guess_networks(arrays):
    """The specs of the networks that the arrays of a checkpoint fit, without their classifiers if need be.

    A checkpoint of `keras.applications` is of networks with its weights, if there are any: `vgg16_keras`, not `vgg16`.
    Raises `Error` where no network fits.
    """
    arrays, found, misfits = placeholders(arrays), [], []
    for name in networks.names():
        spec = networks.load(name)
        try:
            fitting(arrays, spec)
            found.append(spec)
        except Error as error:
            misfits.append((str(error).splitlines()[1:] or [str(error)], spec))
    if not found:
        wrong, spec = min(misfits, key=lambda misfit: (len(misfit[0]), "weights" not in misfit[1]))  # rather a published one
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Error(f"the arrays fit no network; {spec['name']} is nearest:\n" + "\n".join(wrong[:3]) + more)
    applications = [spec for spec in found if is_application(spec)]
    return applications if applications and from_application(arrays) else found


def application_names(rows):
    """{layer: what `keras.applications` calls it} of the ResNets with bottlenecks and the VGGs.

    A ResNet's shortcut is number 0 of its block. A VGG's convolutions count from 1 behind every pool.
    """
    found, linear, block, number = {}, [], 1, 0
    residual = any(row.parts for row in rows)
    for row in shapes.leaves(rows):
        inside = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))", row.name)
        if inside:
            stage, index, part, count, shortcut = inside.groups()
            place = f"conv{int(stage) + 1}_block{int(index) + 1}"
            found[row.name] = f"{place}_{count}_{part}" if part else f"{place}_0_{('conv', 'bn')[int(shortcut)]}"
        elif row.type == "linear":
            linear.append(row.name)
        elif row.name in ("conv1", "bn1") and residual:
            found[row.name] = f"conv1_{row.name[:-1]}"
        elif row.type == "max_pool":
            block, number = block + 1, 0
        elif row.type == "conv" and not residual:
            number += 1
            found[row.name] = f"block{block}_conv{number}"
    found |= {name: f"fc{number}" for number, name in enumerate(linear, start=1)}
    return found | {name: "predictions" for name in linear[-1:]}


def renamed(source, expected, layers):
    """The network's name for an array, or the source's where it has none; and Keras's word for what it is, if it is Keras's."""
    layer, _, word = source.rpartition("/")
    if word in WORDS:
        name = f"{layer}.{WORDS[word]}"
        if name not in expected:
            name = f"{layers.get(layer, layer)}.{WORDS[word]}"
    else:
        name, word = source, None
    for pattern, replacement in RENAMED:
        if name in expected:
            break
        name = re.sub(pattern, replacement, name)
    return name if name in expected else source, word


def _from_keras(array, flattened):
    """An array of Keras's in PyTorch's layout; `flattened` is the map before a linear layer, if Keras's Flatten is between."""
    if flattened and array.ndim == 2 and len(array) == np.prod(flattened):
        channels, *size = flattened
        return array.reshape(*size, channels, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.transpose(weights.TO_PYTORCH[array.ndim]) if array.ndim in weights.TO_PYTORCH else array


def to_keras(array, flattened=None):
    """The way back."""
    if flattened:
        return array.reshape(-1, *flattened).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.transpose(weights.TO_KERAS[array.ndim]) if array.ndim in weights.TO_KERAS else array


def to_application(state, spec):
    """{our name: (Keras's name, array)} of a state, as `keras.applications` has it."""
    rows = shapes.layers(spec)
    layers, maps = application_names(rows), _flattened(rows)
    found = {}
    for name, array in state.items():
        layer, _, ours = name.rpartition(".")
        words = keras_files.KERAS[4 if f"{layer}.running_mean" in state else 2]
        word = next(word for word in words if WORDS[word] == ours)
        found[name] = f"{layers.get(layer, layer)}/{word}", to_keras(array, maps.get(name))
    return found


def _flattened(rows):
    """{name of a weight: shape of the map} of linear layers that take a map as a vector: its order is another in Keras."""
    found, shape = {}, None
    for row in rows:
        if row.type == "linear" and shape:
            found[f"{row.name}.weight"], shape = shape, None
        elif len(row.shape) == 3:
            shape = row.shape
    return found


def fitting(arrays, spec):
    """The spec, or that of the network without its classifier, whichever the arrays fit; and a list of `Move`."""
    try:
        return spec, fit(arrays, spec)[1]
    except Error as error:
        try:
            return headless(spec), fit(arrays, headless(spec))[1]
        except Error:
            raise error from None


def placeholders(arrays):
    """Arrays of the same names, shapes and types that take no room."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in arrays.items()}


def is_application(spec):
    return spec.get("weights", "").startswith("keras.applications ")


def from_application(arrays):
    return any(name.endswith("/kernel") for name in arrays)
