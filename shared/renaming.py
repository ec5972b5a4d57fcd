"""Arrays under foreign names and in foreign layouts, fitted to a network.

A reading says which part of the names is a prefix and which dialect the rest is in. Of all readings, the one under which most
arrays match a name and a shape of the network is used.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import dialects, keras_files, limits, networks, shapes, weights
from .checks import Error
from .dialects import Source, application_names, source_of
from .networks import headless
from .spec import Spec, classifier
from .weights import State

SECOND = re.compile(  # a copy of the weights that follows the first: an average, or a teacher
    r"(^|[._])(ema|swa|avg|average|averaged|polyak|shadow|momentum|encoder_k|teacher|target)([._]|$)"
)
SLIM = re.compile(r"block\d/unit_\d+/bottleneck_v1/")
_MOST_PREFIXES = 24


class Move(NamedTuple):
    """Where an array of a checkpoint went, or why it was ignored."""

    source: str
    source_shape: tuple[int, ...]
    destination: str = ""
    destination_shape: tuple[int, ...] = ()
    ignored: str = ""


class Match(NamedTuple):
    """How the arrays of a checkpoint are those of a network."""

    spec: Spec  # of the network, or of it without its classifier
    destinations: dict[str, str]  # {name in the file: ours}
    ignored: dict[str, str]  # {name in the file: why}
    notes: list[str]
    whole: Spec  # of the network with its classifier


class Reading(NamedTuple):
    """One way to read the names of a file."""

    prefix: str
    layers: dict[str, str]  # {layer in the file: ours}
    hits: int  # how many arrays have a name and a shape of the network's
    automatic: bool = False


class Names:
    """The names and shapes in a file, and the ways to read them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.ignored = {name: reason for name in arrays if (reason := _reason_to_ignore(name))}
        self.sources = {name: source_of(name) for name in arrays if name not in self.ignored}
        self.shapes = {name: _shape(arrays[name].shape, source) for name, source in self.sources.items()}
        self.layers = list(dict.fromkeys(source.layer for source in self.sources.values()))
        self._from_keras = any(source.keras for source in self.sources.values())
        self._by_layer: dict[str, list[tuple[str, tuple[int, ...]]]] = {layer: [] for layer in self.layers}
        for name, source in self.sources.items():
            self._by_layer[source.layer].append((f".{source.word}", self.shapes[name]))

    @cached_property
    def prefixes(self) -> list[str]:
        """What a good part of the layers begin with, up to a dot or slash; the empty prefix first."""
        counts: Counter[str] = Counter()
        for layer in self.layers:
            parts = re.split(r"(?<=[./])", layer)
            counts.update({"".join(parts[:end]) for end in range(1, min(len(parts), 6))})
        least = max(2, len(self.layers) // 10)
        return ["", *(prefix for prefix, count in counts.most_common(_MOST_PREFIXES) if count >= least)]

    def under(self, prefix: str) -> list[str]:
        """The layers that begin with a prefix."""
        return [layer for layer in self.layers if layer.startswith(prefix)]

    @cached_property
    def _translations(self) -> dict[str, list[dict[str, str]]]:
        """{prefix: translations that are the same for all networks}."""
        return {
            prefix: _translations({layer: layer[len(prefix) :] for layer in self.under(prefix)}) for prefix in self.prefixes
        }

    def readings(self, rows: list[shapes.Row]) -> Iterable[Reading]:
        """All readings, for the network that has these rows."""
        expected = shapes.weights(rows)
        children = list(dict.fromkeys(row.name.partition(".")[0] for row in rows if row.type != "flatten"))
        application = {theirs: ours for ours, theirs in application_names(rows).items()}
        for prefix, translations in self._translations.items():
            rest = {layer: layer[len(prefix) :] for layer in self.under(prefix)}
            ways = list(translations)
            if self._from_keras:
                ways.append({layer: application.get(name, name) for layer, name in rest.items()})
            if any(name.removeprefix(dialects.BASE)[:1].isdigit() for name in rest.values()):
                ways += _translations({layer: dialects.numbered_children(name, children) for layer, name in rest.items()})
            for way in ways:
                yield Reading(prefix, way, self._hits(way, expected))
            for automatic in dialects.automatic(rest.values(), rows):
                way = {layer: automatic[name] for layer, name in rest.items() if name in automatic}
                yield Reading(prefix, way, self._hits(way, expected), automatic=True)

    def _hits(self, layers: dict[str, str], expected: Mapping[str, shapes.Shape]) -> int:
        hits = 0
        for theirs, ours in layers.items():
            for word, shape in self._by_layer[theirs]:
                wanted = expected.get(ours + word)
                hits += wanted is not None and (shape == wanted or same_shape(shape, wanted))
        return hits

    def best(self, rows: list[shapes.Row]) -> tuple[Reading, list[Reading]]:
        """The reading with the most hits (among equals the plainest), and equally good ones for other arrays of the file."""
        readings = list(self.readings(rows))
        most = max(reading.hits for reading in readings)
        equals = [reading for reading in readings if reading.hits == most]
        first = min(equals, key=lambda reading: bool(SECOND.search(reading.prefix)))
        others = {reading.prefix: reading for reading in equals if not set(reading.layers) & set(first.layers)}
        if first.automatic and any(other.automatic and other.layers != first.layers for other in equals):
            raise Error(
                "the names are Keras's own numbering, and two orders of the layers have the same shapes: "
                "--draft-map FILE.json writes a draft of which array is which, for --map FILE.json"
            )
        return first, list(others.values()) if most > 1 else []


def _reason_to_ignore(name: str) -> str:
    return next((reason for pattern, reason in dialects.IGNORED if re.search(pattern, name)), "")


def _shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """The shape of an array in PyTorch's layout."""
    return tuple(shape[axis] for axis in weights.TO_PYTORCH[len(shape)]) if source.keras and len(shape) in (2, 4) else shape


def same_shape(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether shapes are equal; a linear layer and a 1x1 convolution are the same arithmetic."""
    if len(shape) != len(expected) and {len(shape), len(expected)} == {2, 4}:
        return (*shape, 1, 1)[:4] == (*expected, 1, 1)[:4]
    return tuple(shape) == tuple(expected)


def _translations(rest: dict[str, str]) -> list[dict[str, str]]:
    """The dialects of a set of names, {layer in the file: its name so far}, without those that change nothing."""
    stages, blocks = dialects.shifts(rest.values())[0], dialects.block_shift(rest.values())
    ways = [dict(rest)]
    for stage, block in dict.fromkeys([(0, 0), (stages, blocks)]):
        ways.append({layer: dialects.residual(name, stage, block) for layer, name in rest.items()})
    if any("inception" in name for name in rest.values()):
        ways.append({layer: dialects.googlenet(name) for layer, name in rest.items()})
    return [way for number, way in enumerate(ways) if way not in ways[:number]]


def match(arrays: State, spec: Spec, names: Names | None = None) -> Match:
    """Which array of a checkpoint is which of a network, or of the network without its classifier if the file has none or a
    foreign head.

    Raises one `Error` that lists missing, unexpected and misshapen arrays.
    """
    names = names or Names(arrays)
    rows = shapes.layers(spec)
    expected = shapes.weights(rows)
    short = headless(spec)
    body = shapes.weights(shapes.layers(short))
    reading, others = names.best(rows)
    if 2 * reading.hits < min(len(expected), len(body)):  # no reading makes sense of the names: the error has them as they are
        reading = Reading("", {layer: layer for layer in names.layers}, reading.hits)
    destinations, outside, unexpected = _place(names, reading, expected)
    copies = [name for name in unexpected if SECOND.search(re.split("[./]", name)[0])]
    unexpected = [name for name in unexpected if name not in copies]
    _place_head(names, reading.prefix, spec, expected, destinations, outside, unexpected)
    ignored = dict(names.ignored) | {
        name: f"outside {reading.prefix.rstrip('./')}, which holds the network" for name in outside
    }
    ignored |= dict.fromkeys(copies, "another copy of the weights")
    notes = _notes(names, reading, others)
    if copies:
        keys = dict.fromkeys(re.split("[./]", name)[0] for name in copies)
        notes.append(f"There is another copy of the weights, for --weights-key: {', '.join(keys)}.")
    state = {ours: np.broadcast_to(np.float32(0), names.shapes[name]) for name, ours in destinations.items()}
    wrong = {ours for ours, array in state.items() if not same_shape(array.shape, expected[ours])}
    if not unexpected and not wrong and len(state) == len(expected):
        return Match(spec, destinations, ignored, notes, spec)
    if len(state) < len(expected) and not wrong and body.keys() <= state.keys():
        if not any(_belongs_to_body(reading.layers[names.sources[name].layer], body) for name in unexpected):
            ignored |= dict.fromkeys(unexpected, "of another head, which the network does not have")
            ignored |= {name: "of an incomplete classifier" for name, ours in destinations.items() if ours not in body}
            return Match(short, {n: ours for n, ours in destinations.items() if ours in body}, ignored, notes, spec)
    raise _misfit(names, state, unexpected, expected)


def _place(names: Names, reading: Reading, expected: Container[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """({name in the file: ours}, names outside the prefix, names inside that are none of the network's)."""
    destinations: dict[str, str] = {}
    outside, unexpected = [], []
    taken: dict[str, str] = {}
    for name, source in names.sources.items():
        layer = reading.layers.get(source.layer)
        ours = f"{layer}.{source.word}"
        if layer is None:
            outside.append(name)
        elif ours not in expected:
            unexpected.append(name)
        elif ours in taken:
            raise Error(f"both {taken[ours]} and {name} would be {ours}")
        else:
            destinations[name], taken[ours] = ours, name
    for rest in (outside, unexpected):  # a name of the network's stays one, as --map has given it
        for name in list(rest):
            plain = f"{names.sources[name].layer}.{names.sources[name].word}"
            if plain in expected and plain not in taken:
                destinations[name], taken[plain] = plain, name
                rest.remove(name)
    return destinations, outside, unexpected


def _place_head(
    names: Names,
    prefix: str,
    spec: Spec,
    expected: Mapping[str, shapes.Shape],
    destinations: dict[str, str],
    outside: list[str],
    unexpected: list[str],
) -> None:
    """Give the classifier the one array each, outside the backbone or in it, that a known name and the shape fit."""
    try:
        layer = classifier(spec)["name"]
    except Error:
        return
    placed = set(destinations.values())
    wanted = {name: shape for name, shape in expected.items() if name.startswith(f"{layer}.") and name not in placed}
    if not wanted:
        return
    heads = _heads(names, prefix, layer, wanted, (*outside, *unexpected), same_shape)
    if len(heads) == 1:
        destinations |= heads[0]
        outside[:] = [name for name in outside if name not in heads[0]]
        unexpected[:] = [name for name in unexpected if name not in heads[0]]


def _heads(
    names: Names,
    prefix: str,
    layer: str,
    wanted: Mapping[str, shapes.Shape],
    candidates: Iterable[str],
    fits: Callable[[shapes.Shape, shapes.Shape], bool],
) -> list[dict[str, str]]:
    """Sets of arrays under known names that have all that is `wanted` of the classifier, each {name in the file: ours}."""
    parents = ["", *(prefix[: found.end()] for found in re.finditer(r"[./]", prefix))]
    heads: dict[str, dict[str, str]] = {}
    for name in candidates:
        source = names.sources[name]
        known = any(
            source.layer.startswith(parent) and dialects.HEAD.fullmatch(source.layer[len(parent) :].replace("/", "."))
            for parent in parents
        )
        ours = f"{layer}.{source.word}"
        if known and ours in wanted and fits(names.shapes[name], wanted[ours]):
            heads.setdefault(source.layer, {})[name] = ours
    return [head for head in heads.values() if set(head.values()) == set(wanted)]


def _belongs_to_body(layer: str, body: Iterable[str]) -> bool:
    """Whether a layer that the network does not have would be part of it before the classifier: layer5 beside layer4."""
    return _stem(layer) in {_stem(name) for name in body}


def _stem(name: str) -> str:
    return re.sub(r"\d+", "", re.split("[./]", name)[0])


def _notes(names: Names, reading: Reading, others: list[Reading]) -> list[str]:
    notes = []
    if others:
        listed = ", ".join(other.prefix.rstrip("./") or "the rest" for other in others[:10])
        chosen = reading.prefix.rstrip("./") or "the names without a prefix"
        notes.append(f"Read {chosen}; --weights-key reads one of the others: {listed}.")
    if reading.automatic:
        notes.append("The names are Keras's own numbering: layers were matched by order and shape.")
    if any(SLIM.search(name) for name in names.sources):
        notes.append(
            "tf-slim's ResNets have the stride in the last block of a stage, this network in the first: check predictions."
        )
    return notes


def _misfit(names: Names, state: State, unexpected: list[str], expected: dict[str, shapes.Shape]) -> Error:
    """What does not fit, as an `Error`."""
    everything = state | {name: np.broadcast_to(np.float32(0), names.shapes[name]) for name in unexpected}
    everything = {
        name: array.reshape(expected[name]) if name in expected and same_shape(array.shape, expected[name]) else array
        for name, array in everything.items()
    }
    try:
        weights.check_state(everything, expected)
    except Error as error:
        text = str(error)
        if names.layers and all(dialects.is_automatic(layer) for layer in names.layers):
            text += "\n  the names are Keras's own numbering; --draft-map FILE.json drafts a map by order and shape"
        return Error(text)
    return Error("the weights do not fit the network")


def moves_of(arrays: State, found: Match) -> list[Move]:
    """Where every array goes, in the order of the network, and what is ignored after that."""
    expected = shapes.weights(shapes.layers(found.spec))
    order = {name: number for number, name in enumerate(expected)}
    moves = []
    for name, array in arrays.items():
        ours = found.destinations.get(name, "")
        moves.append(Move(name, array.shape, ours, expected.get(ours, ()), found.ignored.get(name, "")))
    return sorted(moves, key=lambda move: order.get(move.destination, len(order)))


def state_of(arrays: State, found: Match) -> State:
    """The state of the network, in PyTorch's layouts and in the order of the network."""
    rows = shapes.layers(found.spec)
    expected, maps = shapes.weights(rows), _flattened(rows)
    sources = {ours: name for name, ours in found.destinations.items()}
    state: State = {}
    for ours, shape in expected.items():
        name = sources[ours]
        array = arrays[name]
        if source_of(name).keras:
            array = _to_pytorch_layout(array, maps.get(ours) if name.endswith(("/kernel", "/weights")) else None)
        state[ours] = array.reshape(shape)
    weights.check_state(state, expected)
    return state


def match_variant(arrays: State, spec: Spec, names: Names | None = None) -> Match:
    """`match` for the variant of a network, see `networks.variant`, that has the checkpoint's classes and channels.

    Raises `Error` as `match`.
    """
    names = names or Names(arrays)
    classes, channels = numbers_in(names, spec)
    attempts: list[Spec] = []
    for numbers in ((classes, channels), (None, channels)):
        with contextlib.suppress(Error):  # the variant may be no network: a shortcut that cannot take away channels
            fitting = networks.variant(spec, *numbers)
            attempts += [fitting] if fitting not in attempts else []
    found: list[Match] = []
    misfits: list[Error] = []
    for fitting in attempts or [spec]:
        try:
            found.append(match(arrays, fitting, names))
        except Error as error:
            misfits.append(error)
            continue
        if found[-1].spec is fitting:
            break
    if not found:
        raise misfits[0]
    return found[-1]


def numbers_in(names: Names, spec: Spec) -> tuple[int | None, int | None]:
    """(classes, channels) of the variant of a network that arrays are of; None where no array tells."""
    rows = shapes.layers(spec)
    expected = shapes.weights(rows)
    reading, _ = names.best(rows)
    if 2 * reading.hits < len(expected) - 4:  # 4: the classifier's two, and the first layer's
        reading = Reading("", {layer: layer for layer in names.layers}, reading.hits)
    placed = {f"{reading.layers.get(source.layer)}.{source.word}": name for name, source in names.sources.items()}
    return _classes_in(names, reading.prefix, spec, expected, placed), _channels_in(names, spec, expected, placed)


def _classes_in(
    names: Names, prefix: str, spec: Spec, expected: Mapping[str, shapes.Shape], placed: Mapping[str, str]
) -> int | None:
    try:
        layer = classifier(spec)["name"]
    except Error:
        return None
    wanted = {name: shape for name, shape in expected.items() if name.startswith(f"{layer}.")}

    def fits(shape: shapes.Shape, other: shapes.Shape) -> bool:  # whatever the outputs
        return len(shape) > 0 and same_shape((other[0], *shape[1:]), other)

    own = {placed[ours]: ours for ours in wanted if ours in placed}
    if own:
        heads = [own] if len(own) == len(wanted) and all(fits(names.shapes[n], wanted[ours]) for n, ours in own.items()) else []
    else:
        body = {name for ours, name in placed.items() if ours in expected}
        others = [name for name in names.sources if name not in body]
        heads = _heads(names, prefix, layer, wanted, others, fits)
        if any(_is_one_of_several(names, head, others) for head in heads):
            return None
    outputs = {names.shapes[name][0] for head in heads for name in head}
    return outputs.pop() if len(heads) == 1 and len(outputs) == 1 else None


def _is_one_of_several(names: Names, head: Iterable[str], others: Iterable[str]) -> bool:
    """Whether a layer is a member of a Sequential with others that have weights: a head of several layers."""
    layer = names.sources[next(iter(head))].layer
    parent = re.sub(r"[^./]*$", "", layer)
    return bool(parent) and any(
        names.sources[name].layer.startswith(parent) and names.sources[name].layer != layer for name in others
    )


def _channels_in(names: Names, spec: Spec, expected: Mapping[str, shapes.Shape], placed: Mapping[str, str]) -> int | None:
    ours = next(iter(expected), "")  # of the first layer, and of the first convolution or norm in a block
    if ours not in placed:
        return None
    shape, wanted = names.shapes[placed[ours]], expected[ours]
    axis = min(1, len(wanted) - 1)
    if len(shape) != len(wanted) or [*shape[:axis], *shape[axis + 1 :]] != [*wanted[:axis], *wanted[axis + 1 :]]:
        return None
    channels, rest = divmod(shape[axis], wanted[axis] // spec["input"][0])  # a flattened image has a multiple of the channels
    return channels if channels and not rest else None


def needed(arrays: State, others: Iterable[str], spec: Spec) -> list[str]:
    """Those of the names of other arrays in the file, which could not be read, that the network has a place for."""
    nothing = np.zeros((), np.float32)
    names, rows = Names(arrays | dict.fromkeys(others, nothing)), shapes.layers(spec)
    return [name for name in _place(names, names.best(rows)[0], shapes.weights(rows))[0] if name not in arrays]


def variant_note(spec: Spec, found: Spec) -> list[str]:
    """A note that a file is of a variant of a network, if it is."""
    counts = (
        (networks.outputs(found), networks.outputs(spec), "class", "es"),
        (found["input"][0], spec["input"][0], "channel", "s"),
    )
    numbers = [f"{count} {word}{ending * (count != 1)}" for count, before, word, ending in counts if count != before]
    return [f"The file has {' and '.join(numbers)}: this is {found['name']}."] if numbers else []


def guess_networks(arrays: State) -> list[Spec]:
    """The specs of the networks that the arrays of a checkpoint fit, with or without their classifiers.

    Where no whole network fits, those are tried with the checkpoint's numbers of classes and channels, and the nearest to
    their originals are taken. For a checkpoint of `keras.applications`, only networks with its weights, if any fit:
    `vgg16_keras`, not `vgg16`.
    Raises `Error` if no network fits, with the nearest: that with most names and shapes in common.
    """
    if len(arrays) > limits.ARRAYS:
        raise Error(f"these are {len(arrays):,} arrays, far more than any network of the zoo has; pass --network ./mine.json")
    names, fits, misfits = Names(arrays), [], []
    whole = False
    for network in networks.names():
        spec = networks.load(network)
        try:
            found = match(arrays, spec, names)
            fits.append(spec)
            whole = whole or found.spec is found.whole
        except Error as error:
            misfits.append((str(error), spec))
    if not whole:
        fits = _variants(arrays, names, fits or [spec for _, spec in misfits]) or fits
    if not fits:
        raise _nearest(names, misfits)
    applications = [spec for spec in fits if is_application(spec)]
    return applications if applications and from_application(arrays) else fits


def _variants(arrays: State, names: Names, specs: Iterable[Spec]) -> list[Spec]:
    """The networks of which arrays fit a variant: those with the checkpoint's channels, if any, else the others."""
    fits: dict[bool, list[Spec]] = {True: [], False: []}
    for spec in specs:
        try:
            found = match_variant(arrays, spec, names)
        except Error:
            continue
        if found.whole is not spec:
            fits[found.whole["input"][0] == spec["input"][0]].append(spec)
    return fits[True] or fits[False]


def _nearest(names: Names, misfits: list[tuple[str, Spec]]) -> Error:
    """What to say of arrays that fit no network: which is the nearest."""
    hits, count, _, text, spec = max(
        (_common(names, spec) + ("weights" in spec, text, spec) for text, spec in misfits), key=lambda misfit: misfit[:3]
    )
    if 2 * hits < max(-count, len(names.sources)):
        return Error(
            f"not a network of the zoo: {spec['name']}, the nearest, has {hits} names and shapes in common with its "
            f"{len(names.sources)} arrays. Write its spec and pass --network ./mine.json, or --rename OLD=NEW, or "
            "--map FILE.json, which --draft-map FILE.json drafts"
        )
    lines = text.splitlines()[1:] or [text]
    return Error(f"the arrays fit no network; {spec['name']} is nearest:\n" + "\n".join(lines))


def _common(names: Names, spec: Spec) -> tuple[int, int]:
    """(how many names and shapes a file and a network have in common, the number of the network's, negative)."""
    rows = shapes.layers(spec)
    return max(reading.hits for reading in names.readings(rows)), -len(shapes.weights(rows))


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
        word = next(word for word in words if dialects.WORDS[word] == ours)
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


def is_application(spec: Spec) -> bool:
    """Whether the spec says that `keras.applications` publishes the network's weights."""
    return spec.get("weights", "").startswith("keras.applications ")


def from_application(arrays: State) -> bool:
    """Whether the names of arrays are those of Keras's own layers."""
    return any(name.endswith("/kernel") for name in arrays)
