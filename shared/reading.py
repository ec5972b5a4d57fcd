"""Files of weights of every kind, read and fitted to a network: the arrays that it can load."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import formats, keras_files, mapping, networks, published, renaming, shapes, torch_files, weights
from .checks import Error
from .renaming import Match
from .spec import Spec
from .weights import State

Tell = Callable[[str], object]  # called with each note for the user


class Naming(NamedTuple):
    """What the user says of the names in a file: `--weights-key`, `--rename` and `--map`."""

    key: str | None = None
    rules: Sequence[str] = ()
    map: str | Path | None = None


AS_THEY_ARE = Naming()


class Read(NamedTuple):
    """The arrays of a file, the spec of its network if the file has one, notes for the user, and arrays that a map ignores.

    `unread` has {name: message} of arrays that could not be read, which matters only to a network that needs them.
    """

    arrays: State
    spec: Spec | None
    notes: list[str]
    ignored: State
    unread: dict[str, str]


class Fitted(NamedTuple):
    """A file fitted to a network.

    `spec` is of the network with the file's numbers of classes and channels, and without its classifier if the file has none;
    `whole` is the same with the classifier.
    """

    spec: Spec
    whole: Spec
    state: State
    notes: list[str]


def read_weights(source: str | Path, naming: Naming = AS_THEY_ARE, spec: Spec | None = None) -> Read:
    """The arrays of a file of any kind that `formats.kind_of` knows, whatever its name ends in.

    "imagenet" is the file that torchvision publishes for the network of the `spec`.
    Raises `Error` for a file that is missing, truncated or of another kind, and for names that do not fit it. Code in files is
    never run.
    """
    if str(source) == "imagenet":
        if spec is None:
            raise Error("imagenet: pass --network NAME to select a network's weights")
        path = published.file_of(spec)
        try:
            return read_weights(path)
        except Error as error:
            raise Error(f"{error}. Delete the file to have it fetched again") from None
    path = Path(source)
    unread: dict[str, str] = {}
    arrays, own_spec, notes = _read(path, naming.key, unread)
    user_map, uncertain = mapping.read_map(naming.map) if naming.map else ({}, 0)
    try:
        arrays, ignored = mapping.renamed(arrays, naming.rules, user_map)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    if uncertain:
        notes.append(f'{naming.map}: {uncertain} names are still marked uncertain, with " ?" at the end.')
    return Read(arrays, own_spec, notes, ignored, unread)


def _read(path: Path, key: str | None, unread: dict[str, str]) -> tuple[State, Spec | None, list[str]]:
    kind = formats.kind_of(path)
    spec = None
    if kind == formats.PYTORCH:
        arrays, notes = torch_files.read_torch(path, key, unread)
        return arrays, None, notes
    if kind == formats.SHARDS:
        arrays = {}
        for shard in weights.read_shards(path):
            arrays |= _read(shard, None, unread)[0]
    elif kind == formats.SAFETENSORS:
        arrays = weights.read_state(path)
    else:
        arrays, spec = keras_files.read_keras(path)
    try:
        return (weights.under_key(arrays, key) if key else arrays), spec, []
    except Error as error:
        raise Error(f"{path}: {error}") from None


def check_unread(read: Read, spec: Spec) -> list[str]:
    """A note on each array of a file that could not be read and that the network has no place for.

    Raises `Error` if it has one.
    """
    for name in renaming.needed(read.arrays, read.unread, spec) if read.unread else ():
        raise Error(read.unread[name])
    return [f"Skipped: {message}." for message in read.unread.values()]


def check_numbers(found: Match, classes: int | None = None, channels: int | None = None) -> None:
    """Raise `Error` if a file has other numbers of classes or channels than the user says."""
    if found.spec is found.whole and classes not in (None, networks.outputs(found.whole)):
        raise Error(f"has {networks.outputs(found.whole)} classes, but --classes is {classes}")
    own = found.whole["input"][0]
    if channels not in (None, own):
        raise Error(f"takes images of {own} channel{'s' * (own > 1)}, but --channels is {channels}")


def check_finite(state: State) -> None:
    """Raise `Error` if an array of a state has NaN or infinity."""
    for name in weights.not_finite(state):
        raise Error(f"{name} has NaN or infinite values")


def fit_weights(
    source: str | Path, spec: Spec, key: str | None = None, classes: int | None = None, channels: int | None = None
) -> Fitted:
    """A file of any kind, or "imagenet", fitted to a network or to its variant that has the file's classes and channels.

    `key` chooses among several sets of weights, see `torch_files.read_torch`; `classes` and `channels` are what the file must
    have.
    Raises `Error` if there is no such file, it does not fit, or its numbers are not all finite.
    """
    read = read_weights(source, Naming(key), spec)
    try:
        notes = check_unread(read, spec)
        found = renaming.match_variant(read.arrays, spec)
        check_numbers(found, classes, channels)
        state = renaming.state_of(read.arrays, found)
        check_finite(state)
    except Error as error:
        raise Error(f"{source}: {error}") from None
    notes += [note for note in read.notes if not note.startswith("Skipped,")]  # objects beside the weights
    return Fitted(found.spec, found.whole, state, [*notes, *found.notes])


def load_weights(
    source: str | Path,
    spec: Spec,
    key: str | None = None,
    tell: Tell | None = None,
    classes: int | None = None,
    channels: int | None = None,
) -> tuple[Spec, State]:
    """(spec, state) of the network whose weights are in a file of any kind, or "imagenet" for torchvision's published weights.

    The spec is the given one, or its variant with another number of classes or channels, if that is what the file has: see
    `networks.variant`. `tell` is called with a note on that and on each choice among several sets of weights. Otherwise as
    `fit_weights`. Raises `Error`, besides, if the file has no classifier.
    """
    spec = networks.variant(spec, classes, channels)
    fitted = fit_weights(source, spec, key, classes, channels)
    if fitted.spec is not fitted.whole:
        raise Error(f"{source}: has no classifier, which {spec['name']} needs; `twins convert` accepts such files")
    for note in (*fitted.notes, *renaming.variant_note(spec, fitted.whole)):
        if tell:
            tell(note)
    return fitted.spec, fitted.state


def adapted(fitted: Fitted, spec: Spec) -> tuple[State, list[str]]:
    """(what a network with another number of classes or channels can use from a file, notes on what was changed).

    A classifier of another size is left out. Kernels for colour become kernels for grey images as `grey_kernel` says, and the
    reverse as `colour_kernel`; for other numbers of channels they are left out.
    """
    expected = shapes.weights(shapes.layers(spec))
    before, after = fitted.whole["input"][0], spec["input"][0]
    state: State = {}
    changed = []
    for name, array in fitted.state.items():
        if name in expected and array.shape != expected[name]:
            array = _recoloured(array, expected[name], before, after)
            changed += [name] if array.shape == expected[name] else []
        if array.shape == expected.get(name):
            state[name] = array
    images, how = ("colour", "summed over the colours") if after == 1 else ("grey", "a third for each colour")
    return state, [f"The file is for {images} images: {', '.join(changed)} {how}."] if changed else []


def _recoloured(kernel: np.ndarray, shape: shapes.Shape, before: int, after: int) -> np.ndarray:
    """The kernel converted from `before` to `after` channels if it then has this shape; otherwise as it is."""
    outputs_and_size = kernel.shape[0] == shape[0] and kernel.shape[2:] == shape[2:] and kernel.ndim > 1
    if outputs_and_size and (before, after) == (3, 1) and kernel.shape[1] == 3 * shape[1]:
        return grey_kernel(kernel)
    if outputs_and_size and (before, after) == (1, 3) and 3 * kernel.shape[1] == shape[1]:
        return colour_kernel(kernel)
    return kernel


def grey_kernel(kernel: np.ndarray) -> np.ndarray:
    """A kernel (out, 3 n, …) for colour images, summed over the colours: (out, n, …).

    On an array with one channel it gives what the colour kernel gives on three copies of that channel. So a grey picture gives
    the same output as when shown as RGB if "preprocessing" has the same mean and deviation for all three channels; with
    ImageNet's means, which are up to 10 % from their average, nearly the same.
    """
    three = kernel.reshape(len(kernel), 3, -1, *kernel.shape[2:])
    return three.sum(1, dtype=np.float64).astype(kernel.dtype)


def colour_kernel(kernel: np.ndarray) -> np.ndarray:
    """A kernel (out, n, …) for grey images, a third of it for each colour: (out, 3 n, …).

    On an array with the same channel three times, a grey picture shown as RGB, it gives what the kernel for grey gives on that
    channel.
    """
    return np.concatenate([kernel / kernel.dtype.type(3)] * 3, axis=1)


def network(
    origin: str | Path | Spec,
    seed: int = 0,
    classes: int | None = None,
    channels: int | None = None,
    source: str | Path | None = None,
    head: bool = True,
) -> tuple[Spec, State]:
    """(spec, state) that `build` of either package builds a network from; see there for the arguments."""
    spec = networks.load(origin)
    if source is not None:
        fitted = fit_weights(source, spec)
        if head and classes is None and fitted.spec is not fitted.whole:
            raise Error(f"{source}: has no classifier, which {spec['name']} needs; pass classes, or head=False")
        classes = networks.outputs(fitted.whole) if classes is None else classes
        channels = fitted.whole["input"][0] if channels is None else channels
    spec = networks.variant(spec, classes if head else None, channels)
    if not head:
        spec = networks.headless(spec)
    state = adapted(fitted, spec)[0] if source is not None else {}
    if len(state) < len(shapes.weights(shapes.layers(spec))):
        state = weights.initial(spec, seed) | state
    return spec, {name: np.ascontiguousarray(array) for name, array in state.items()}
