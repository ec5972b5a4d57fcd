"""Checkpoint files of every format: reading them, converting them, writing them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shared import files, formats, keras_files, mapping, networks, renaming, shapes, torch_files, weights
from shared.checks import Error, first_few
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


class Naming(NamedTuple):
    """What the user says of the names in a file: `--weights-key`, `--rename` and `--map`."""

    key: str | None = None
    rules: Sequence[str] = ()
    map: str | Path | None = None


AS_THEY_ARE = Naming()


class Read(NamedTuple):
    """The arrays of a file, the spec of its network if the file has one, notes for the user, and arrays that a map ignores."""

    arrays: State
    spec: Spec | None
    notes: list[str]
    ignored: State


def read_weights(path: str | Path, naming: Naming = AS_THEY_ARE) -> Read:
    """The arrays of a file of any kind that `formats.kind_of` knows, whatever its name ends in.

    Raises `Error` for a file that is missing, truncated or of another kind, and for names that do not fit it. Code in files is
    never run.
    """
    arrays, spec, notes = _read(Path(path), naming.key)
    user_map, uncertain = mapping.read_map(naming.map) if naming.map else ({}, 0)
    try:
        arrays, ignored = mapping.renamed(arrays, naming.rules, user_map)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    if uncertain:
        notes.append(f'{naming.map}: {uncertain} names are still marked uncertain, with " ?" at the end.')
    return Read(arrays, spec, notes, ignored)


def _read(path: Path, key: str | None) -> tuple[State, Spec | None, list[str]]:
    kind = formats.kind_of(path)
    spec = None
    if kind == formats.PYTORCH:
        arrays, notes = torch_files.read_torch(path, key)
        return arrays, None, notes
    if kind == formats.SHARDS:
        arrays = {}
        for shard in weights.read_shards(path):
            arrays |= _read(shard, None)[0]
    elif kind == formats.SAFETENSORS:
        arrays = weights.read_state(path)
    else:
        arrays, spec = keras_files.read_keras(path)
    try:
        return (weights.under_key(arrays, key) if key else arrays), spec, []
    except Error as error:
        raise Error(f"{path}: {error}") from None


def load_weights(source: str | Path, spec: Spec, key: str | None = None, tell: Callable[[str], object] | None = None) -> State:
    """The state of a network from a file of any kind, or, for "imagenet", as torchvision publishes it.

    `key` chooses among several sets of weights, see `torch_files.read_torch`; `tell` is called with each note on such a choice.
    Raises `Error` if there is no such file, it does not fit, or its numbers are not all finite.
    """
    arrays, notes = _read_or_fetch(source, spec, key)
    try:
        found = renaming.match(arrays, spec)
        if found.spec is not spec:
            raise Error(f"has no classifier, which {spec['name']} needs; `twins convert` takes such files")
        state = renaming.state_of(arrays, found)
        _check_finite(state)
    except Error as error:
        raise Error(f"{source}: {error}") from None
    for note in (*notes, *found.notes):
        if tell and not note.startswith("Skipped"):
            tell(note)
    return state


def _check_finite(state: State) -> None:
    for name in weights.not_finite(state):
        raise Error(f"{name} has numbers that are not finite")


def load_backbone(source: str | Path, spec: Spec, key: str | None = None) -> State:
    """As `load_weights`, without the classifier if the source's is another.

    The source may have another number of classes, or no classifier. Raises `Error` if the rest does not fit.
    """
    arrays, _ = _read_or_fetch(source, spec, key)
    own = shapes.weights(shapes.layers(spec))
    try:
        count = renaming.classes_in(arrays, spec)
        wanted = networks.with_classes(spec, count) if count else spec
        try:
            found = renaming.match(arrays, wanted)
        except Error:
            found = renaming.match(arrays, networks.headless(spec))
        state = renaming.state_of(arrays, found)
        _check_finite(state)
    except Error as error:
        raise Error(f"{source}: {error}") from None
    return {name: array for name, array in state.items() if array.shape == own[name]}


def convert(
    source: str | Path,
    destination: str | Path,
    network: str | None = None,
    naming: Naming = AS_THEY_ARE,
) -> Conversion:
    """Write a checkpoint in the format that the destination's extension selects.

    `source` is a file or "imagenet". Without a `network`, a name or the path of a spec, it is the one whose names and shapes
    the checkpoint has. A checkpoint without the classifier becomes the network without it, see `networks.headless`.
    Raises `Error`, with nothing written, if that is not possible.
    """
    destination = Path(destination)
    kind = suffix(destination)
    files.check_writable(destination)
    read, spec = _read_for(source, network, naming)
    arrays = read.arrays
    try:
        candidates = [spec] if spec else renaming.guess_networks(arrays)
        found, others = _chosen(arrays, candidates, kind)
        fitted = found[0].spec
        state = renaming.state_of(arrays, found[0])
        if kind == ".h5" and not renaming.is_application(fitted):
            listed = ", ".join(name for name in networks.names() if renaming.is_application(networks.load(name)))
            raise Error(f"{fitted['name']} goes into .keras or .weights.h5; .h5 is for keras.applications' networks: {listed}")
    except Error as error:
        raise Error(f"{source}: {error}") from None
    notes = [*read.notes, *found[0].notes, *_notes(source, arrays, found[0], others, bool(network))]
    moves = renaming.moves_of(arrays, found[0])
    moves += [Move(name, array.shape, ignored="as the map says") for name, array in read.ignored.items()]
    bad = weights.not_finite(state)
    if bad:
        notes.append(f"Numbers that are not finite in {len(bad)} arrays: {first_few(bad)}. Other commands refuse them.")
    written = write_weights(destination, kind, fitted, state)
    for place, move in enumerate(moves):
        name, shape = written.get(move.destination, ("", ()))
        moves[place] = move._replace(destination=name, destination_shape=shape)
    return Conversion([each.spec["name"] for each in found], moves, notes)


def draft_map(source: str | Path, path: str | Path, network: str, naming: Naming = AS_THEY_ARE) -> tuple[int, int, int]:
    """Write a first version of a map of the names in a file to a network's, as JSON: (names, uncertain ones, ignored ones).

    Raises `Error` if the file cannot be read, or `path` not be written.
    """
    files.check_writable(path)
    read, spec = _read_for(source, network, naming)
    assert spec is not None  # because there is a network
    draft = mapping.draft(read.arrays, spec)
    files.write_text(path, json.dumps(draft, indent=1) + "\n")
    uncertain = sum(bool(name and name.endswith(mapping.UNCERTAIN)) for name in draft.values())
    return len(draft), uncertain, sum(name is None for name in draft.values())


def _read_for(source: str | Path, network: str | None, naming: Naming) -> tuple[Read, Spec | None]:
    """What a file or torchvision has, and the spec of its network if it is known."""
    spec = networks.load(network) if network else None
    if str(source) != "imagenet":
        read = read_weights(source, naming)
        return read, spec or read.spec
    if not spec:
        raise Error("imagenet: pass --network NAME to say which network's weights")
    return Read(published_weights(spec), None, [], {}), spec


def _chosen(arrays: State, candidates: list[Spec], kind: str) -> tuple[list[Match], list[str]]:
    """How the arrays fit the candidates, and the names of those that are passed over for the only one that is published.

    Raises `Error` unless all become one file.
    """
    names = renaming.Names(arrays)
    fits = [renaming.match(arrays, candidate, names) for candidate in candidates]
    published = [found for found, spec in zip(fits, candidates, strict=True) if "weights" in spec]
    if len(fits) > 1 and len(published) == 1:
        return published, [spec["name"] for found, spec in zip(fits, candidates, strict=True) if found is not published[0]]
    if len(fits) > 1 and (kind in KERAS or any(found.destinations != fits[0].destinations for found in fits)):
        listed = ", ".join(candidate["name"] for candidate in candidates)
        raise Error(f"the arrays fit several networks, {listed}; pass --network NAME to choose")
    return fits, []


def _notes(source: str | Path, arrays: State, found: Match, others: list[str], given: bool) -> list[str]:
    """What the user should know of the network that was chosen; `given` says that the user chose it."""
    notes, spec = [], found.whole
    if others:
        notes.append(
            f"The arrays also fit {', '.join(others)}; {spec['name']} is the one that is published. --network chooses."
        )
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
                renaming.match(arrays, spec, names)
                fitting.append(spec["name"])
            except Error:  # a note is no reason to fail
                pass
    return fitting


def suffix(path: str | Path) -> str:
    """Which of the `FORMATS` the path of an output ends in. Raises `Error` if it is none of them."""
    endings = [kind for kind in FORMATS if str(path).endswith(kind)]
    if not endings:
        raise Error(f"{path}: expected a file ending in {', '.join(FORMATS)}")
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


def _read_or_fetch(source: str | Path, spec: Spec, key: str | None) -> tuple[State, list[str]]:
    if str(source) == "imagenet":
        return published_weights(spec), []
    read = read_weights(source, Naming(key))
    return read.arrays, read.notes
