"""Checkpoint files of every format: reading them, converting them, writing them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared import files, keras_files, networks, renaming, shapes, weights
from shared.checks import Error
from shared.renaming import Move
from shared.spec import Spec, classifier
from shared.weights import State

from . import backends

FORMATS = (".safetensors", ".pth", ".pt", ".th", ".keras", ".weights.h5", ".h5")
KERAS = (".keras", ".weights.h5", ".h5")


class Report(NamedTuple):
    """What `convert` did: the networks that the file fits, where each array went, and notes for the user."""

    networks: list[str]
    moves: list[Move]
    notes: list[str]


def read_weights(path: str | Path) -> tuple[State, Spec | None]:
    """The arrays of a file of any of the `FORMATS`, and the spec of its network if the file has one.

    Raises `Error` for a file that is missing, truncated or of another kind. Code in files is never run.
    """
    path, kind = Path(path), suffix(path)
    if not path.is_file():
        raise Error(f"{path}: there is no such file")
    if kind == ".safetensors":
        return weights.read_state(path), None
    if kind in KERAS:
        return keras_files.read_keras(path)
    return backends.pytorch(f"{path}").checkpoints.read_pth(path), None


def load_weights(source: str | Path, spec: Spec) -> State:
    """The state of a network from a file of any of the `FORMATS`, or, for "imagenet", as torchvision publishes it.

    Raises `Error` if there is none, or it does not fit.
    """
    arrays = _read_or_fetch(source, spec)
    try:
        fitted, _ = renaming.fitting_spec(renaming.placeholders(arrays), spec)
        if fitted is not spec:
            raise Error(f"has no classifier, which {spec['name']} needs; `twins convert` takes such files")
        return renaming.fit(arrays, spec)[0]
    except Error as error:
        raise Error(f"{source}: {error}") from None


def load_backbone(source: str | Path, spec: Spec) -> State:
    """As `load_weights`, without the classifier if the source's is another.

    The source may have another number of classes, or no classifier. Raises `Error` if the rest does not fit.
    """
    arrays = _read_or_fetch(source, spec)
    own = shapes.weights(shapes.layers(spec))
    last = f"{classifier(spec)['name']}.weight"
    counts = []
    for foreign_name, array in arrays.items():
        name, word = renaming.translated_name(foreign_name, own, {})
        if name == last and array.ndim:
            counts.append(array.shape[-1 if word else 0])
    try:
        state, _ = renaming.fit(arrays, networks.with_classes(spec, counts[0]) if counts else networks.headless(spec))
    except Error as error:
        raise Error(f"{source}: {error}") from None
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise Error(f"{source}: {name} has numbers that are not finite")
    return {name: array for name, array in state.items() if array.shape == own[name]}


def convert(source: str | Path, destination: str | Path, network: str | None = None) -> Report:
    """Write a checkpoint in the format that the destination's extension selects.

    `source` is a file or "imagenet". Without a `network`, a name or the path of a spec, it is the one whose names and shapes
    the checkpoint has. A checkpoint without the classifier becomes the network without it, see `networks.headless`.
    Raises `Error`, with nothing written, if that is not possible.
    """
    destination = Path(destination)
    kind = suffix(destination)
    files.check_writable(destination)
    spec = networks.load(network) if network else None
    if str(source) != "imagenet":
        arrays, own = read_weights(source)
        spec = spec or own
    elif spec:
        arrays = published_weights(spec)
    else:
        raise Error("imagenet: pass --network NAME to say which network's weights")
    try:
        candidates = [spec] if spec else renaming.guess_networks(arrays)
        fits = _fits(arrays, candidates, kind)
        fitted = fits[0]
        state, moves = renaming.fit(arrays, fitted)
        if kind == ".h5" and not renaming.is_application(fitted):
            listed = ", ".join(name for name in networks.names() if renaming.is_application(networks.load(name)))
            raise Error(f"{fitted['name']} goes into .keras or .weights.h5; .h5 is for keras.applications' networks: {listed}")
    except Error as error:
        raise Error(f"{source}: {error}") from None
    notes = []
    if fitted["name"] != candidates[0]["name"]:
        notes.append(f"{source} has no classifier: this is {fitted['name']}, {candidates[0]['name']} up to its last map.")
    if network and renaming.from_application(arrays) and not renaming.is_application(fitted):
        others = [other["name"] for other in renaming.guess_networks(arrays) if renaming.is_application(other)]
        notes += [f"These are weights of keras.applications: they need images preprocessed as for {name}." for name in others]
    written = write_weights(destination, kind, fitted, state)
    for place, move in enumerate(moves):
        name, shape = written.get(move.destination, ("", ()))
        moves[place] = move._replace(destination=name, destination_shape=shape)
    return Report([spec["name"] for spec in fits], moves, notes)


def _fits(arrays: State, candidates: list[Spec], kind: str) -> list[Spec]:
    """The candidates as the arrays fit them, with or without the classifier. Raises `Error` unless all become one file."""
    fits = [renaming.fitting_spec(renaming.placeholders(arrays), candidate) for candidate in candidates]
    if len(fits) > 1 and (kind in KERAS or any(moves != fits[0][1] for _, moves in fits)):
        listed = ", ".join(candidate["name"] for candidate in candidates)
        raise Error(f"the arrays fit several networks, {listed}; pass --network NAME to choose")
    return [spec for spec, _ in fits]


def suffix(path: str | Path) -> str:
    """Which of the `FORMATS` a path ends in. Raises `Error` if it is none of them."""
    endings = [kind for kind in FORMATS if str(path).endswith(kind)]
    if not endings:
        raise Error(f"{path}: expected a file ending in {', '.join(FORMATS)}, or as a source the word imagenet")
    return max(endings, key=len)  # .weights.h5 ends in .h5 too


def published_weights(spec: Spec) -> State:
    """The arrays that torchvision publishes for a network. Raises `Error` if it publishes none or they cannot be fetched."""
    return backends.pytorch("imagenet", torchvision=True).checkpoints.published(spec)


def write_weights(path: Path, kind: str, spec: Spec, state: State) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Write a file of one of the `FORMATS`; returns {our name: (name, shape) in the file}."""
    if kind not in KERAS:
        if kind == ".safetensors":
            weights.save_state(path, state)
        else:
            backends.pytorch(f"{path}").checkpoints.write_pth(path, state)
        return {name: (name, array.shape) for name, array in state.items()}
    writer = backends.keras(needed_for=f"{path}").checkpoints
    if kind == ".h5":
        application = renaming.to_application(state, spec)
        writer.write_application(path, spec, dict(application.values()))
        return {name: (theirs, array.shape) for name, (theirs, array) in application.items()}
    writer.write_keras(path, spec, state)
    return {name: (name, renaming.to_keras_layout(array).shape) for name, array in state.items()}


def _read_or_fetch(source: str | Path, spec: Spec) -> State:
    return published_weights(spec) if str(source) == "imagenet" else read_weights(source)[0]
