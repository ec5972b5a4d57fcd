"""Checkpoint files of every format: converting them, writing them. `shared.reading` reads them."""

import json
from pathlib import Path
from typing import NamedTuple

from shared import files, mapping, networks, reading, renaming, weights
from shared.checks import Error, first_few
from shared.reading import AS_THEY_ARE, Naming, Read
from shared.renaming import Match, Move
from shared.spec import Spec
from shared.weights import State

from . import backends

FORMATS = (".safetensors", ".pth", ".pt", ".th", ".keras", ".weights.h5", ".h5")  # that are written
KERAS = (".keras", ".weights.h5", ".h5")


class Conversion(NamedTuple):
    """What `convert` did: the networks that the file fits, where each array went, and notes for the user."""

    networks: list[str]
    moves: list[Move]
    notes: list[str]


def convert(
    source: str | Path,
    destination: str | Path,
    network: str | None = None,
    naming: Naming = AS_THEY_ARE,
    classes: int | None = None,
    channels: int | None = None,
) -> Conversion:
    """Write a checkpoint in the format that the destination's extension selects.

    `source` is a file or "imagenet". Without a `network`, a name or the path of a spec, it is the one whose names and shapes
    the checkpoint has. The network gets the checkpoint's numbers of classes and channels, which are `classes` and `channels` if
    these are given. A checkpoint without the classifier becomes the network without it, see `networks.headless`.
    Raises `Error`, with nothing written, if that is not possible.
    """
    destination = Path(destination)
    kind = suffix(destination)
    files.check_writable(destination)
    read, spec = _read_for(source, network, naming)
    try:
        candidates = [networks.variant(spec, classes, channels)] if spec else _guessed(read)
        notes = [*read.notes, *reading.check_unread(read, candidates[0])]
        found, choice = _chosen(read.arrays, candidates, kind)
        reading.check_numbers(found[0], classes, channels)
        fitted = found[0].spec
        state = renaming.state_of(read.arrays, found[0])
        if kind == ".h5" and not renaming.is_application(fitted):
            listed = ", ".join(name for name in networks.names() if renaming.is_application(networks.load(name)))
            raise Error(f"{fitted['name']} goes into .keras or .weights.h5; .h5 is for keras.applications' networks: {listed}")
    except Error as error:
        raise Error(f"{source}: {error}") from None
    notes += [*found[0].notes, *choice, *_notes(source, read.arrays, found[0], bool(network))]
    moves = renaming.moves_of(read.arrays, found[0])
    moves += [Move(name, array.shape, ignored="as the map says") for name, array in read.ignored.items()]
    bad = weights.not_finite(state)
    if bad:
        notes.append(
            f"NaN or infinite values in {len(bad)} array{'s' * (len(bad) > 1)}: {first_few(bad)}. Other commands refuse them."
        )
    written = write_weights(destination, kind, fitted, state)
    for place, move in enumerate(moves):
        name, shape = written.get(move.destination, ("", ()))
        moves[place] = move._replace(destination=name, destination_shape=shape)
    return Conversion([each.spec["name"] for each in found], moves, notes)


def draft_map(
    source: str | Path,
    path: str | Path,
    network: str,
    naming: Naming = AS_THEY_ARE,
    classes: int | None = None,
    channels: int | None = None,
) -> tuple[int, int, int]:
    """Write a first version of a map of the names in a file to a network's, as JSON: (names, uncertain ones, ignored ones).

    `classes` and `channels` are the network's, if they are not those of its spec.
    Raises `Error` if the file cannot be read, or `path` not be written.
    """
    files.check_writable(path)
    read, spec = _read_for(source, network, naming)
    assert spec is not None  # because there is a network
    draft = mapping.draft(read.arrays, networks.variant(spec, classes, channels))
    files.write_text(path, json.dumps(draft, indent=1) + "\n")
    uncertain = sum(bool(name and name.endswith(mapping.UNCERTAIN)) for name in draft.values())
    return len(draft), uncertain, sum(name is None for name in draft.values())


def _read_for(source: str | Path, network: str | None, naming: Naming) -> tuple[Read, Spec | None]:
    """What a file or torchvision has, and the spec of its network if it is known."""
    spec = networks.load(network) if network else None
    read = reading.read_weights(source, naming, spec)
    return read, spec or read.spec


def _guessed(read: Read) -> list[Spec]:
    """The networks that a file fits, with its numbers of classes and channels or others. Raises `Error` if there is none."""
    try:
        return renaming.guess_networks(read.arrays)
    except Error as error:
        raise Error("\n  ".join([str(error), *read.unread.values()])) from None


def _chosen(arrays: State, candidates: list[Spec], kind: str) -> tuple[list[Match], list[str]]:
    """(how the arrays fit the candidates, or the only one of them that is published; notes on that).

    Raises `Error` unless all become one file.
    """
    names = renaming.Names(arrays)
    fits = [(spec, renaming.match_variant(arrays, spec, names)) for spec in candidates]
    published = [(spec, found) for spec, found in fits if "weights" in spec]
    if len(fits) > 1 and len(published) == 1:
        ((chosen, found),) = published
        others = ", ".join(spec["name"] for spec in candidates if spec is not chosen)
        note = f"The arrays also fit {others}; {chosen['name']} is the one that is published. --network chooses."
        return [found], [note, *renaming.variant_note(chosen, found.whole)]
    matches = [found for _, found in fits]
    if len(fits) > 1 and (kind in KERAS or any(found.destinations != matches[0].destinations for found in matches)):
        listed = ", ".join(candidate["name"] for candidate in candidates)
        raise Error(f"the arrays fit several networks, {listed}; pass --network NAME to choose")
    return matches, renaming.variant_note(candidates[0], matches[0].whole)


def _notes(source: str | Path, arrays: State, found: Match, given: bool) -> list[str]:
    """What the user should know of the network that was chosen; `given` says that the user chose it."""
    notes, spec = [], found.whole
    if found.spec is not spec:
        what = "another head" if any("another head" in why for why in found.ignored.values()) else "no classifier"
        notes.append(f"{source} has {what}: this is {found.spec['name']}, {spec['name']} up to its last map.")
    if given and renaming.from_application(arrays) and not renaming.is_application(found.spec):
        notes += [
            f"These are weights of keras.applications: they need images preprocessed as for {n}." for n in _applications(arrays)
        ]
    return notes


def _applications(arrays: State) -> list[str]:
    """The networks of `keras.applications` that arrays fit."""
    names, fitting = renaming.Names(arrays), []
    for spec in map(networks.load, networks.names()):
        if renaming.is_application(spec):
            try:
                renaming.match_variant(arrays, spec, names)
                fitting.append(spec["name"])
            except Error:  # only a note: no reason to fail
                pass
    return fitting


def suffix(path: str | Path) -> str:
    """Which of the `FORMATS` the path of an output ends in. Raises `Error` if it is none of them."""
    endings = [kind for kind in FORMATS if str(path).endswith(kind)]
    if not endings:
        raise Error(f"{path}: expected a file ending in {', '.join(FORMATS)}")
    return max(endings, key=len)  # .weights.h5 ends in .h5 too


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
