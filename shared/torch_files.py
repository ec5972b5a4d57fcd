"""The arrays in PyTorch's files, read without PyTorch and without running anything in them: zip, legacy, TorchScript, pickle.

A file may hold several state dicts (names to tensors), under keys of any depth: "model", "ema.state_dict". The key path of one
at the top is "".
"""

import functools
import itertools
import pickle
import re
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import limits, weights
from .checks import Error, check_unpacked, first_few
from .files import check_readable
from .formats import open_zip
from .unpickling import Array, Placeholder, Storage, Tensor, Unpickler
from .weights import State

DOCUMENTED = ("state_dict", "model", "model_state_dict", "net")  # where training scripts put the state dict
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|average|averaged|polyak|shadow)([._]|$)")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of a legacy file
_DEEPEST = 12  # nested dictionaries and modules


class Content(NamedTuple):
    """What a file says: the object in it, the names that became placeholders, and whether it is TorchScript."""

    top: Any
    skipped: list[str]
    script: bool = False


def read_torch(path: str | Path, key: str | None = None, unread: dict[str, str] | None = None) -> tuple[State, list[str]]:
    """The arrays of a state dict in a file, and notes on what else there was.

    `key` chooses among several state dicts: a key path, its end, or a prefix of names. Without one, it is the raw weights
    rather than an average, in one of the places that are `DOCUMENTED` rather than another, and the largest.
    Raises `Error` if the file is truncated, has no state dict, or a tensor cannot be read as an array; if there is an `unread`,
    that gets {name: message} of such tensors, unless all are.
    """
    size = check_readable(path)
    try:
        with open(path, "rb") as file:
            content = _read_zip(file) if file.read(2) == b"PK" else _read_pickles(file, _read_nested)
            found = {place: state for place, state in _state_dicts(content) if any(_rank(v) for v in state.values())}
            if not found:
                listed = ", ".join(DOCUMENTED)
                raise Error(
                    f"has no state dict in it: a dictionary of names and tensors, on its own or under a key ({listed}, …)"
                )
            place, rest_of_key = _chosen(list(found), key, found)
            check_unpacked(size, sum(tensor.declared for tensor in found[place].values()))
            arrays = _arrays(found[place], unread)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Error(f"{path}: not a complete PyTorch file: {text}") from None
    notes = _choice(place, [other for other in found if other != place])
    if content.skipped:
        notes.append(f"Skipped, without running any of it: {first_few(content.skipped)}.")
    try:
        return (weights.under_key(arrays, rest_of_key, list(found)) if rest_of_key else arrays), notes
    except Error as error:
        raise Error(f"{path}: {error}") from None


def _read_zip(file: Any) -> Content:
    """The content of a zip file as PyTorch has written it since 1.6, and of TorchScript."""
    archive = open_zip(file)
    names = archive.namelist()
    pickles = [name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if not pickles:
        raise Error("a zip file without PyTorch's data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    big = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"

    read = functools.cache(archive.read)  # once, however many tensors are views of a storage

    def load_storage(pid: tuple[Any, ...]) -> Storage:
        record = f"{root}data/{pid[2]}"
        dtype = pid[1].dtype
        return Storage(dtype.newbyteorder(">") if big and dtype else dtype, read=lambda: read(record))

    unpickler = Unpickler(BytesIO(archive.read(pickles[0])), load_storage, _read_nested)
    top = unpickler.load()
    script = f"{root}constants.pkl" in names
    return Content(top, [] if script else unpickler.skipped, script)


def _read_pickles(file: Any, load_nested: Any = None) -> Content:
    """The content of a legacy file, some pickles with the storages after them, or of a single pickle."""
    file.seek(0)
    skipped: list[str] = []
    first = _load(file, skipped, load_nested=load_nested)
    if first != _MAGIC:
        return Content(first, skipped)
    if _load(file, skipped) != _PROTOCOL:
        raise Error("a legacy file of an unknown protocol")
    little = _load(file, skipped).get("little_endian", True)
    storages: dict[str, list[Storage]] = {}

    def load_storage(pid: tuple[Any, ...]) -> Storage:
        view = pid[5] if len(pid) > 5 else None
        dtype = pid[1].dtype
        storage = Storage(dtype if little or not dtype else dtype.newbyteorder(">"), view[1] if view else 0)
        storages.setdefault(pid[2], []).append(storage)
        return storage

    top = _load(file, skipped, load_storage, load_nested)
    for key in _load(file, skipped):
        (count,) = struct.unpack("<q" if little else ">q", file.read(8))
        members = storages.get(key, [])
        itemsize = next((member.dtype.itemsize for member in members if member.dtype), 1)
        start, length = file.tell(), count * itemsize
        read = _section(file, start, length)
        for member in members:
            member.read = read
        file.seek(start + length)
    return Content(top, skipped)


def _section(file: Any, start: int, length: int) -> Any:
    @functools.cache
    def read() -> bytes:
        file.seek(start)
        content: bytes = file.read(length)
        if len(content) < length:
            raise EOFError("it is truncated")
        return content

    return read


def _load(file: Any, skipped: list[str], load_storage: Any = None, load_nested: Any = None) -> Any:
    """One pickle; what became a placeholder is added to `skipped`."""
    unpickler = Unpickler(file, load_storage, load_nested)
    try:
        return unpickler.load()
    except pickle.UnpicklingError as error:
        raise EOFError(str(error)) from None
    finally:
        skipped += [name for name in unpickler.skipped if name not in skipped]


def _read_nested(content: bytes) -> Any:
    """The storage in a legacy file inside a pickle, as `pickle.dump` puts tensors; it has no such file in it."""
    return _read_pickles(BytesIO(content)).top


def _state_dicts(content: Content) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key path, names to tensors) of every state dict in a file: its dictionaries, and the modules that are pickled whole."""
    visited: set[int] = set()
    modules = itertools.count()

    def visit(value: Any, path: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if id(value) in visited or depth > _DEEPEST or path.startswith("optim"):
            return
        visited.add(id(value))
        if isinstance(value, Placeholder) and (content.script or "_modules" in value.members):
            yield path, dict(_module_tensors(value, content.script, modules))
            return
        if isinstance(value, (list, tuple)):
            pairs = [(str(number), item) for number, item in enumerate(value)]
        else:
            pairs = list((value.members if isinstance(value, Placeholder) else value).items())
        tensors = {name: item for name, item in pairs if type(name) is str and isinstance(item, (Tensor, Array))}
        if tensors and not isinstance(value, (list, tuple)):
            yield path, tensors
        for name, item in pairs:
            if type(name) is str and isinstance(item, (dict, list, tuple, Placeholder)):
                yield from visit(item, f"{path}.{name}".removeprefix("."), depth + 1)

    if isinstance(content.top, (dict, list, tuple, Placeholder)):
        yield from visit(content.top, "", 0)


def _module_tensors(
    module: Placeholder, script: bool, modules: Iterator[int], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of a pickled module, as its `state_dict` would have them. TorchScript keeps all as plain attributes.

    `modules` counts the visits: a module may be in several places, and so in a hostile file in any number of them.
    """
    if next(modules) > limits.VISITS:
        raise Error(f"has more than {limits.VISITS:,} modules")
    if depth > _DEEPEST:
        return
    groups = [module.members] if script else [module.members.get(key) for key in ("_parameters", "_buffers", "_modules")]
    for group in groups:
        for name, value in group.items() if isinstance(group, dict) else ():
            if isinstance(value, (Tensor, Array)):
                yield f"{prefix}{name}", value
            elif isinstance(value, Placeholder):
                yield from _module_tensors(value, script, modules, f"{prefix}{name}.", depth + 1)


def _rank(tensor: Tensor | Array) -> int:
    """The number of axes: a dictionary with nothing but scalars is no state dict."""
    if isinstance(tensor, Array):
        return 0 if tensor.content is None else len(tensor.shape)
    return 1 if tensor.kind else len(tensor.size)


def _chosen(places: list[str], key: str | None, found: dict[str, dict[str, Any]]) -> tuple[str, str | None]:
    """(key path of the state dict to read, the key if it is none of theirs, but perhaps a prefix of names)."""

    def preference(place: str) -> tuple[bool, bool, int]:
        return bool(AVERAGED.search(place)), place.rpartition(".")[2] not in DOCUMENTED, -len(found[place])

    if key:
        for matching in (
            [place for place in places if place == key],
            [place for place in places if place.endswith(f".{key}")],
            [place for place in places if place.endswith(key)],
            [place for place in places if re.search(rf"(^|[._]){re.escape(key)}([._]|$)", place)],
        ):
            if len(matching) == 1:
                return matching[0], None
            if matching:
                raise Error(f"--weights-key {key} could be {', '.join(matching[:10])}: pass more of the path")
    return min(places, key=preference), key


def _choice(place: str, others: list[str]) -> list[str]:
    """What the user should know of a file with several state dicts."""
    if not others:
        return [f"Read {place}, which holds averaged weights."] if AVERAGED.search(place) else []
    averaged = [other for other in others if AVERAGED.search(other)]
    rest = [other or "the top of the file" for other in others if other not in averaged]
    notes = []
    name, kind = place or "the top of the file", "averaged" if AVERAGED.search(place) else "raw"
    if averaged:
        notes.append(f"Read {name}, the {kind} weights; averaged ones, for --weights-key, are in {first_few(averaged)}.")
    if rest:
        weights_read = f"Read {name}, {kind} weights" if kind == "averaged" else f"Read {name}"
        notes.append(f"{weights_read}; --weights-key reads one of the others: {first_few(rest)}.")
    return notes


def _arrays(tensors: dict[str, Any], unread: dict[str, str] | None) -> State:
    arrays: State = {}
    for name, tensor in tensors.items():
        try:
            arrays |= weights.normalised({name: _array(name, tensor)})
        except Error as error:
            if unread is None:
                raise
            unread[name] = str(error)
    if unread and not arrays:
        raise Error(next(iter(unread.values())))
    return arrays


def _array(name: str, tensor: Tensor | Array) -> np.ndarray:
    try:
        return tensor.array()
    except Error as error:
        raise Error(f"{name} {error}") from None
