"""Names that the user gives to the arrays of a file: patterns, a map of names, and a first version of such a map."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import dialects, shapes
from .checks import Error, nearest
from .dialects import source_of
from .files import read_json
from .renaming import Names, same_shape
from .spec import Spec
from .weights import State

UNCERTAIN = " ?"  # at the end of a name in a map that `draft` has guessed


def read_map(path: str | Path) -> tuple[dict[str, str | None], int]:
    """({name in the file: ours, or None to ignore the array}, how many are still marked uncertain) from a JSON file.

    Raises `Error` if it is no such object.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(name is None or isinstance(name, str) for name in content.values()):
        raise Error(
            f"{path}: expected an object that maps names in the file to the network's names, or to null to ignore an array"
        )
    uncertain = sum(bool(name and name.endswith(UNCERTAIN)) for name in content.values())
    return {theirs: name.removesuffix(UNCERTAIN) if name else None for theirs, name in content.items()}, uncertain


def renamed(arrays: State, rules: Sequence[str], names: Mapping[str, str | None]) -> tuple[State, dict[str, np.ndarray]]:
    """The arrays under other names, and those that `names` says to ignore.

    `rules` are "OLD=NEW", OLD a regular expression, applied in order wherever they match; then `names`, {name: ours, or None to
    ignore the array}, where dots may stand for the slashes of a name of Keras's, as in the maps of `twins diff`. An array of
    Keras's keeps its layout under any name.
    Raises `Error` for a rule that is invalid, changes nothing, or gives two arrays one name.
    """
    state, ignored = dict(arrays), {}
    for rule in rules:
        old, separator, new = rule.partition("=")
        if not separator or not old:
            raise Error(f"--rename {rule}: expected OLD=NEW, a regular expression and its replacement")
        try:
            pairs = [(re.sub(old, new, name), array) for name, array in state.items()]
        except (re.error, IndexError) as error:
            raise Error(f"--rename {rule}: not a regular expression: {error}") from None
        _check_once([name for name, _ in pairs], f"--rename {rule}")
        if [name for name, _ in pairs] == list(state):
            raise Error(f"--rename {rule}: no name has {old!r} in it; the first is {next(iter(state), 'none')}")
        state = dict(pairs)
    dotted = {name.replace("/", "."): name for name in state}
    moved: State = {}  # apart from the rest, since a name may be an old one and a new one: two layers that swap theirs
    origins: dict[str, str] = {}
    for name, ours in names.items():
        theirs = name if name in state else dotted.get(name, name)
        if theirs not in state:
            raise Error(f"--map: no array is called {theirs!r}{nearest(theirs, state)}")
        array = state.pop(theirs)
        if ours is None:
            ignored[theirs] = array
            continue
        layer, _, word = ours.rpartition(".")
        destination = f"{layer}/{_keras_word(theirs, word)}" if source_of(theirs).keras else ours
        if destination in moved:
            raise Error(f"--map: {theirs!r} and {origins[destination]!r} would both be {ours}")
        moved[destination], origins[destination] = array, theirs
    for destination in moved:
        if destination in state:
            raise Error(f"--map: {origins[destination]!r} would be {destination}, the name of another array")
    return state | moved, ignored


def _keras_word(theirs: str, word: str) -> str:
    """The last part of a name for an array that stays in Keras's layout: "kernel" remains, so that a flattened map is known."""
    last = theirs.rpartition("/")[2]
    return last if dialects.WORDS.get(last) == word else word


def _check_once(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise Error(f"{where}: two arrays would be {twice[0]}")


def draft(arrays: State, spec: Spec) -> dict[str, str | None]:
    """{name in the file: ours} by what is known of the names and, for the others, by order and shape.

    A name of ours ends in " ?" where another array would do as well, and is None where no array of the network is left.
    """
    names, rows = Names(arrays), shapes.layers(spec)
    expected = shapes.weights(rows)
    readings = list(names.readings(rows))
    most = max(reading.hits for reading in readings)
    best = [reading for reading in readings if reading.hits == most and 2 * most >= len(expected)]
    drafted: dict[str, str | None] = {}
    taken: set[str] = set()
    for name, source in names.sources.items() if best else ():
        ours = f"{best[0].layers.get(source.layer)}.{source.word}"
        if ours in expected and ours not in taken and same_shape(names.shapes[name], expected[ours]):
            agreed = len({reading.layers[source.layer] for reading in best if source.layer in reading.layers}) == 1
            drafted[name] = ours if agreed else ours + UNCERTAIN
            taken.add(ours)
    rest = [name for name in _in_layer_order(names) if name not in drafted]
    for ours, shape in expected.items():
        if ours in taken:
            continue
        word = ours.rpartition(".")[2]
        fitting = [name for name in rest if same_shape(names.shapes[name], shape) and _may_be(names.sources[name].word, word)]
        if fitting:
            drafted[fitting[0]] = ours + UNCERTAIN if len(fitting) > 1 else ours
            rest.remove(fitting[0])
    return {name: drafted.get(name) for name in names.sources}


def _in_layer_order(names: Names) -> list[str]:
    """The names in the order of the file; of layers that Keras has numbered, in the order of the numbers."""

    def number(name: str) -> int:
        layer = names.sources[name].layer
        found = re.search(r"_(\d+)$", layer)
        return int(found[1]) if found and dialects.is_automatic(layer) else 0

    return sorted(names.sources, key=number)


def _may_be(theirs: str, ours: str) -> bool:
    """Whether an array with this last word can be that array of ours: any if the word is not known."""
    return theirs == ours or theirs not in dialects.WORDS.values()
