"""Arrays under foreign names and in foreign layouts, fitted to a network."""

import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from . import keras_files, networks, shapes, weights
from .checks import Error
from .networks import headless
from .spec import Spec
from .weights import State

# (what other projects call a layer, our name), as regular expressions: tried in order until a name is one of the network's.
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
# Arrays that our networks have no place for, and why.
IGNORED = (
    (r"(^|\.)num_batches_tracked$", "batch counter, which nothing reads"),
    (r"^(module\.)?aux[12]\.|^loss[12][./]", "auxiliary classifier, used only in training"),
    (r"^optimizer", "optimiser state"),
)
# Keras's word for an array of a layer: ours
WORDS = {"kernel": "weight", "bias": "bias"} | dict(zip(keras_files.KERAS[4], keras_files.OURS[4], strict=True))
WORDS |= {word: word for word in keras_files.OURS[4]}


class Move(NamedTuple):
    """Where an array of a checkpoint went, or why it was ignored."""

    source: str
    source_shape: tuple[int, ...]
    destination: str = ""
    destination_shape: tuple[int, ...] = ()
    ignored: str = ""


def fit(arrays: State, spec: Spec) -> tuple[State, list[Move]]:
    """The arrays of a checkpoint as the state of a network, and a list of `Move`, both in the order of the network.

    Raises one `Error` that lists every missing, unexpected and misshapen array.
    """
    rows = shapes.layers(spec)
    expected = shapes.weights(rows)
    layers = {theirs: ours for ours, theirs in application_names(rows).items()}
    maps = _flattened(rows)
    state: State = {}
    moves: list[Move] = []
    sources: dict[str, str] = {}
    for source, array in arrays.items():
        name, word = translated_name(source, expected, layers)
        reason = next((reason for pattern, reason in IGNORED if re.search(pattern, source)), "")
        if reason and name not in expected:
            moves.append(Move(source, array.shape, ignored=reason))
            continue
        if name in state:
            raise Error(f"both {sources[name]} and {source} would be {name}")
        if word:
            array = _to_pytorch_layout(array, maps.get(name) if word == "kernel" else None)
        state[name], sources[name] = array, source
        moves.append(Move(source, arrays[source].shape, name, array.shape))
    weights.check_state(state, expected)
    order = {name: number for number, name in enumerate(expected)}
    moves.sort(key=lambda move: order.get(move.destination, len(order)))
    return {name: state[name] for name in expected}, moves


def guess_networks(arrays: State) -> list[Spec]:
    """The specs of the networks that the arrays of a checkpoint fit, with or without their classifiers.

    For a checkpoint of `keras.applications`, only networks with its weights, if any fit: `vgg16_keras`, not `vgg16`.
    Raises `Error` if no network fits.
    """
    arrays, fits, misfits = placeholders(arrays), [], []
    for name in networks.names():
        spec = networks.load(name)
        try:
            fitting_spec(arrays, spec)
            fits.append(spec)
        except Error as error:
            misfits.append((str(error).splitlines()[1:] or [str(error)], spec))
    if not fits:
        wrong, spec = min(misfits, key=lambda misfit: (len(misfit[0]), "weights" not in misfit[1]))  # prefer a published one
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Error(f"the arrays fit no network; {spec['name']} is nearest:\n" + "\n".join(wrong[:3]) + more)
    applications = [spec for spec in fits if is_application(spec)]
    return applications if applications and from_application(arrays) else fits


def application_names(rows: Iterable[shapes.Row]) -> dict[str, str]:
    """{layer: what `keras.applications` calls it} of the ResNets with bottlenecks and the VGGs.

    A ResNet's shortcut is number 0 of its block. A VGG's convolutions count from 1 after every pool.
    """
    rows = list(rows)
    names: dict[str, str] = {}
    linear: list[str] = []
    block, number = 1, 0
    residual = any(row.parts for row in rows)
    for row in shapes.leaves(rows):
        inside = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))", row.name)
        if inside:
            stage, index, part, count, shortcut = inside.groups()
            place = f"conv{int(stage) + 1}_block{int(index) + 1}"
            names[row.name] = f"{place}_{count}_{part}" if part else f"{place}_0_{('conv', 'bn')[int(shortcut)]}"
        elif row.type == "linear":
            linear.append(row.name)
        elif row.name in ("conv1", "bn1") and residual:
            names[row.name] = f"conv1_{row.name[:-1]}"
        elif row.type == "max_pool":
            block, number = block + 1, 0
        elif row.type == "conv" and not residual:
            number += 1
            names[row.name] = f"block{block}_conv{number}"
    names |= {name: f"fc{number}" for number, name in enumerate(linear, start=1)}
    return names | {name: "predictions" for name in linear[-1:]}


def translated_name(source: str, expected: Container[str], layers: Mapping[str, str]) -> tuple[str, str | None]:
    """(the network's name for an array, Keras's word for it or None if the array is not Keras's).

    `expected` holds the network's names, `layers` is {foreign name: ours} of layers. A name without a translation is returned
    as it is.
    """
    layer, _, last = source.rpartition("/")
    word: str | None = None
    if last in WORDS:
        word = last
        name = f"{layer}.{WORDS[word]}"
        if name not in expected:
            name = f"{layers.get(layer, layer)}.{WORDS[word]}"
    else:
        name = source
    for pattern, replacement in RENAMED:
        if name in expected:
            break
        name = re.sub(pattern, replacement, name)
    return name if name in expected else source, word


def _to_pytorch_layout(array: np.ndarray, flattened: shapes.Shape | None) -> np.ndarray:
    """A Keras array in PyTorch's layout; `flattened` is the shape of the map that Keras's Flatten passes to a linear layer."""
    if flattened and array.ndim == 2 and len(array) == np.prod(flattened):
        channels, *size = flattened
        return array.reshape(*size, channels, -1).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.transpose(weights.TO_PYTORCH[array.ndim]) if array.ndim in weights.TO_PYTORCH else array


def to_keras_layout(array: np.ndarray, flattened: shapes.Shape | None = None) -> np.ndarray:
    """A PyTorch array in Keras's layout; `flattened` as above."""
    if flattened:
        return array.reshape(-1, *flattened).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.transpose(weights.TO_KERAS[array.ndim]) if array.ndim in weights.TO_KERAS else array


def to_application(state: State, spec: Spec) -> dict[str, tuple[str, np.ndarray]]:
    """{our name: (Keras's name, array in Keras's layout)} of a state, as `keras.applications` has it."""
    rows = shapes.layers(spec)
    layers, maps = application_names(rows), _flattened(rows)
    application = {}
    for name, array in state.items():
        layer, _, ours = name.rpartition(".")
        words = keras_files.KERAS[4 if f"{layer}.running_mean" in state else 2]
        word = next(word for word in words if WORDS[word] == ours)
        application[name] = f"{layers.get(layer, layer)}/{word}", to_keras_layout(array, maps.get(name))
    return application


def _flattened(rows: Iterable[shapes.Row]) -> dict[str, shapes.Shape]:
    """{name of a weight: shape of the map} of linear layers that take a flattened map, which Keras orders differently."""
    maps: dict[str, shapes.Shape] = {}
    shape: shapes.Shape | None = None
    for row in rows:
        if row.type == "linear" and shape:
            maps[f"{row.name}.weight"], shape = shape, None
        elif len(row.shape) == 3:
            shape = row.shape
    return maps


def fitting_spec(arrays: State, spec: Spec) -> tuple[Spec, list[Move]]:
    """The spec, or that of the network without its classifier, whichever the arrays fit; and a list of `Move`.

    Raises `Error`, as `fit` does for the whole network, if they fit neither.
    """
    try:
        return spec, fit(arrays, spec)[1]
    except Error as error:
        try:
            return headless(spec), fit(arrays, headless(spec))[1]
        except Error:
            raise error from None


def placeholders(arrays: State) -> State:
    """Arrays of the same names, shapes and types that take no memory."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in arrays.items()}


def is_application(spec: Spec) -> bool:
    """Whether the spec says that `keras.applications` publishes the network's weights."""
    return spec.get("weights", "").startswith("keras.applications ")


def from_application(arrays: State) -> bool:
    """Whether the names of arrays are those of Keras's own layers."""
    return any(name.endswith("/kernel") for name in arrays)
