"""Other projects' checkpoints: reading them, fitting them to a network, writing them.

Arrays have the names and layouts of their file until `fit` has found their place in a network: a name that ends in "/kernel"
or the like is Keras's (`keras_files.py`), every other is PyTorch's or Caffe's, whose layouts are the same.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import keras_files, shapes, weights
from .coexist import silence
from .spec import Error, classifier, names, with_classes
from .spec import load as load_spec

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
FORMATS = (".safetensors", ".pth", ".pt", ".th", ".keras", ".weights.h5", ".h5")
KERAS = (".keras", ".weights.h5", ".h5")
TOPS = ("global_avg_pool", "adaptive_avg_pool", "flatten")  # a classifier begins with one of these


class Move(NamedTuple):
    """Where an array of a checkpoint went, or why it did not."""

    source: str
    source_shape: tuple[int, ...]
    destination: str = ""
    destination_shape: tuple[int, ...] = ()
    ignored: str = ""


class Report(NamedTuple):
    """What `convert` did: the networks that take the file, where all arrays went, and what a user should know besides."""

    networks: list[str]
    moves: list[Move]
    notes: list[str]


def read(path):
    """The arrays of a file of any of the `FORMATS`, and the spec of its network where the file has one.

    Raises `Error` for a file that is missing, truncated or of another kind. Code in files is never run.
    """
    path, kind = Path(path), suffix(path)
    if not path.is_file():
        raise Error(f"{path}: there is no such file")
    if kind == ".safetensors":
        return weights.read(path), None
    if kind in KERAS:
        return keras_files.read(path)
    from torch_impl import checkpoints

    return checkpoints.read(path), None


def load(source, spec):
    """The state of a network from a file of any of the `FORMATS`, or, for "imagenet", as torchvision publishes it.

    Raises `Error` where there is none, or it does not fit.
    """
    arrays = _published(spec) if str(source) == "imagenet" else read(source)[0]
    try:
        fitted, _ = _fitting(_empty(arrays), spec)
        if fitted is not spec:
            raise Error(f"has no classifier, which {spec['name']} needs; `twins convert` takes such files")
        return fit(arrays, spec)[0]
    except Error as error:
        raise Error(f"{source}: {error}") from None


def backbone(source, spec):
    """The state of a network from a file of any of the `FORMATS`, or of "imagenet", without its classifier if that differs.

    The file may have another number of classes, or no classifier. Raises `Error` where the rest does not fit.
    """
    arrays = _published(spec) if str(source) == "imagenet" else read(source)[0]
    own = shapes.weights(shapes.layers(spec))
    last = f"{classifier(spec)['name']}.weight"
    counts = []
    for source_name, array in arrays.items():
        name, word = _renamed(source_name, own, {})
        if name == last and array.ndim:
            counts.append(array.shape[-1 if word else 0])
    try:
        state, _ = fit(arrays, with_classes(spec, counts[0]) if counts else headless(spec))
    except Error as error:
        raise Error(f"{source}: {error}") from None
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise Error(f"{source}: {name} has numbers that are not finite")
    return {name: array for name, array in state.items() if array.shape == own[name]}


def convert(source, destination, network=None):
    """Write a checkpoint anew, in the format that the destination's name ends in; returns a `Report`.

    `source` is a file or "imagenet". Without a `network`, a name or the path of a spec, it is the one whose names and shapes
    the checkpoint has. A checkpoint without the classifier becomes the network without it, see `headless`.
    Raises `Error`, with nothing written, where that is not possible.
    """
    destination = Path(destination)
    kind = suffix(destination)
    weights.check_place(destination)
    described = load_spec(network) if network else None
    if str(source) == "imagenet":
        if not described:
            raise Error("imagenet: the weights of which network? --network NAME says it")
        arrays = _published(described)
    else:
        arrays, own = read(source)
        described = described or own
    try:
        candidates = [described] if described else guess(arrays)
        fits = [_fitting(_empty(arrays), candidate) for candidate in candidates]
        if len(fits) > 1 and (kind in KERAS or any(moves != fits[0][1] for _, moves in fits)):
            listed = ", ".join(candidate["name"] for candidate in candidates)
            raise Error(f"the arrays fit several networks, {listed}; --network NAME says which")
        spec = fits[0][0]
        state, moves = fit(arrays, spec)
        if kind == ".h5" and not _is_application(spec):
            listed = ", ".join(name for name in names() if _is_application(load_spec(name)))
            raise Error(f"{spec['name']} goes into .keras or .weights.h5; .h5 is for keras.applications' networks: {listed}")
    except Error as error:
        raise Error(f"{source}: {error}") from None
    notes = []
    if spec["name"] != candidates[0]["name"]:
        notes.append(f"{source} has no classifier: this is {spec['name']}, {candidates[0]['name']} up to its last map.")
    if network and _from_application(arrays) and not _is_application(spec):
        wanted = [other["name"] for other in guess(arrays) if _is_application(other)]
        notes += [f"These are weights of keras.applications: they want images preprocessed as for {name}." for name in wanted]
    written = write(destination, kind, spec, state)
    moves = [Move(*move[:2], *written.get(move.destination, ("", ())), move.ignored) for move in moves]
    return Report([spec["name"] for spec, _ in fits], moves, notes)


def suffix(path):
    """Which of the `FORMATS` a path ends in. Raises `Error` when it is none of them."""
    found = [kind for kind in FORMATS if str(path).endswith(kind)]
    if not found:
        raise Error(f"{path}: expected a file ending in {', '.join(FORMATS)}, or as a source the word imagenet")
    return max(found, key=len)  # .weights.h5 ends in .h5 too


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
        name, word = _renamed(source, expected, layers)
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
    weights.check(state, expected)
    order = {name: number for number, name in enumerate(expected)}
    moves.sort(key=lambda move: order.get(move.destination, len(order)))
    return {name: state[name] for name in expected}, moves


def guess(arrays):
    """The specs of the networks that the arrays of a checkpoint fit, without their classifiers if need be.

    A checkpoint of `keras.applications` is of networks with its weights, if there are any: `vgg16_keras`, not `vgg16`.
    Raises `Error` where no network fits.
    """
    arrays, found, misfits = _empty(arrays), [], []
    for name in names():
        spec = load_spec(name)
        try:
            _fitting(arrays, spec)
            found.append(spec)
        except Error as error:
            misfits.append((str(error).splitlines()[1:] or [str(error)], spec))
    if not found:
        wrong, spec = min(misfits, key=lambda misfit: (len(misfit[0]), "weights" not in misfit[1]))  # rather a published one
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Error(f"the arrays fit no network; {spec['name']} is nearest:\n" + "\n".join(wrong[:3]) + more)
    applications = [spec for spec in found if _is_application(spec)]
    return applications if applications and _from_application(arrays) else found


def headless(spec):
    """The spec of a network without its classifier: the chain up to the last map, called NAME_notop.

    It is what `keras.applications` builds with `include_top=False`. A spec without a classifier comes back as it is.
    """
    end = next((i for i, layer in enumerate(spec["layers"]) if layer["type"] in TOPS), None)
    if not end:
        return spec
    rest = {key: value for key, value in spec.items() if key not in ("parameters", "classes")}
    return rest | {"name": f"{spec['name']}_notop", "layers": spec["layers"][:end]}


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


def _renamed(source, expected, layers):
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


def _to_keras(array, flattened=None):
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
        found[name] = f"{layers.get(layer, layer)}/{word}", _to_keras(array, maps.get(name))
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


def _fitting(arrays, spec):
    """The spec, or that of the network without its classifier, whichever the arrays fit; and a list of `Move`."""
    try:
        return spec, fit(arrays, spec)[1]
    except Error as error:
        try:
            return headless(spec), fit(arrays, headless(spec))[1]
        except Error:
            raise error from None


def _empty(arrays):
    """Arrays of the same names, shapes and types that take no room."""
    return {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in arrays.items()}


def _is_application(spec):
    return spec.get("weights", "").startswith("keras.applications ")


def _from_application(arrays):
    return any(name.endswith("/kernel") for name in arrays)


def _published(spec):
    from torch_impl import checkpoints

    return checkpoints.published(spec)


def write(path, kind, spec, state):
    """Write a file of one of the `FORMATS`; returns {our name: (name, shape) in the file}."""
    if kind not in KERAS:
        if kind == ".safetensors":
            weights.save(path, state)
        else:
            from torch_impl import checkpoints

            checkpoints.write(path, state)
        return {name: (name, array.shape) for name, array in state.items()}
    with silence():
        from keras_impl import checkpoints
    if kind == ".h5":
        found = to_application(state, spec)
        checkpoints.write_application(path, spec, dict(found.values()))
        return {name: (theirs, array.shape) for name, (theirs, array) in found.items()}
    checkpoints.write(path, spec, state)
    return {name: (name, _to_keras(array).shape) for name, array in state.items()}
