"""Pictures in folders, with their classes: a folder a class, with or without train and val above, or a CSV of files and labels.

Only file names are kept in memory. Classes are ordered by name, as in torchvision's `ImageFolder`.
"""

import csv
import os
import shlex
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import images, limits
from .checks import Error, first_few
from .files import check_readable

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("file", "label", "split")  # of a CSV; the last is optional
ALL = ""  # the name of a class that all pictures are in, for `held_out`


class Pictures:
    """Picture files, read when they are iterated over; a slice or an array of indices gives those of them."""

    def __init__(self, folder: str | Path, names: Sequence[str]) -> None:
        self.folder, self.names = str(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, places: slice | np.ndarray) -> "Pictures":
        chosen = self.names[places] if isinstance(places, slice) else [self.names[place] for place in places]
        return Pictures(self.folder, chosen)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The pictures as `images.read_picture` gives them. Raises `Error` for one that cannot be read."""
        for path in self.paths():
            yield images.read_picture(path)

    def paths(self) -> list[str]:
        """The path of each picture."""
        return [os.path.join(self.folder, name) for name in self.names]


class Part(NamedTuple):
    """The pictures of a folder, or of its train, val or test, and the number of the class of each."""

    pictures: Pictures
    labels: np.ndarray


class Folder(NamedTuple):
    """What a folder or a CSV has."""

    classes: list[str]
    parts: dict[str, Part]  # "train", "val", "test", or "" if it is not divided
    skipped: list[str]  # files that are not pictures by their extensions, relative to the folder
    is_numbered: bool = False  # classes have numbers for names


def is_folder(name: str | Path) -> bool:
    """Whether a data set of that name or path is for `read`."""
    return (Path(name).is_dir() and Path(name).suffix != ".npz") or Path(name).suffix.lower() == ".csv"


def read(path: str | Path) -> Folder:
    """The pictures of a folder or of a CSV file.

    - FOLDER/CLASS/…: pictures at any depth in a folder a class; links are followed.
    - FOLDER/train/CLASS/…, and val or test beside it, each with the same classes.
    - a CSV with the columns file, relative to its folder, and label; a third, split, says train, val or test. Labels that are
      all whole numbers are the numbers of the classes.

    Raises `Error` for what is missing, ambiguous or empty.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_csv(path)
    divided = divisions(path)
    if any(map(has_masks, (path, *(path / name for name in divided.values())))):
        raise Error(f"{path}: has images and masks, for a network that classifies every pixel; see the key 'head' of recipes")
    if not divided:
        files, skipped = _classes(path, path)
        return _folder(path, path, {"": files}, skipped)
    found, skipped = {}, list[str]()
    for part, name in divided.items():
        if part == "test" and not _folders(path / name):
            continue  # without labels, as ImageNet's is published
        found[part], more = _classes(path / name, path)
        skipped += more
    if not found:
        raise Error(
            f"{path}: has no labels: {divided['test']} has no folders of classes, and there is no train or val; "
            f"a class cannot be called {divided['test']}"
        )
    return _folder(path, path, found, skipped)


def divisions(path: Path) -> dict[str, str]:
    """{"train", "val" or "test": the name of that folder} of a folder that is divided.

    It is not if other folders stand beside these and none of these has folders in it: then all are classes, one called train.
    With test alone it is, since pictures to test on are published without labels. Raises `Error` for two of one kind.
    """
    names = _folders(path)
    parts = [name for name in names if name.lower() in PARTS]
    has_classes = any(_folders(path / name) for name in parts)
    if len(parts) < len(names) and not has_classes and {PARTS[name.lower()] for name in parts} != {"test"}:
        return {}
    found: dict[str, str] = {}
    for name in parts:
        part = PARTS[name.lower()]
        if part in found:
            raise Error(f"{path}: has both {found[part]} and {name}; expected one of them")
        found[part] = name
    return found


def has_masks(path: Path) -> bool:
    """Whether a folder has images and masks beside one another."""
    return (path / "images").is_dir() and (path / "masks").is_dir()


def held_out(labels: np.ndarray, classes: Mapping[int, str], share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, what is held out) as indices: the same share of each class, at least one picture, chosen by the seed.

    `classes` has the names of the labels; `ALL` is that of a class which all pictures are in. A class's choice depends on its
    name and its number of pictures alone. Raises `Error` for a class of one picture.
    """
    chosen = np.zeros(len(labels), bool)
    for number, name in classes.items():
        places = np.flatnonzero(labels == number)
        if len(places) < 2:
            pictures = "1 picture" if len(places) else "no pictures"
            which = "" if name == ALL else f"class {name} "
            raise Error(f"{which}has {pictures}, expected at least 2: one to train on and one to test on")
        count = min(max(1, round(share * len(places))), len(places) - 1)
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        chosen[places[generator.permutation(len(places))[:count]]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _folder(path: Path, root: Path, found: dict[str, dict[str, list[str]]], skipped: list[str]) -> Folder:
    """A `Folder` from {part: {class: names of files, relative to the root}}; messages name the `path`.

    Raises `Error` unless all parts have the same classes, whose names are text.
    """
    classes = sorted({name for files in found.values() for name in files})
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:  # a folder whose name is other bytes
            raise Error(f"{path}: the name of class {name!r} is not UTF-8; rename it") from None
    _check_case(path, classes, "the classes")
    for part, files in found.items():
        missing = [name for name in classes if name not in files]
        if missing:
            others = " and ".join(other for other in found if other != part and missing[0] in found[other])
            raise Error(f"{path}: {part} has no pictures of {first_few(missing)}, of which {others} has")
    parts = {}
    for part, files in found.items():
        names = [name for label in classes for name in files[label]]
        counts = [len(files[label]) for label in classes]
        parts[part] = Part(Pictures(root, names), np.repeat(np.arange(len(classes)), counts))
    return Folder(classes, parts, skipped)


def _classes(folder: Path, root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """({class: its pictures}, the other files) of a folder with a folder a class; paths are relative to the root."""
    names, skipped = _folders(folder), list[str]()
    if not names:
        loose = any(_is_picture(entry.name) for entry in _entries(folder))
        has = "pictures but no folders" if loose else "no pictures"
        raise Error(f"{folder}: has {has}; expected a folder for each class, or a CSV with the columns file and label")
    files: dict[str, list[str]] = {}
    for name in names:
        files[name], others = pictures_under(folder / name, root)
        skipped += others
        if not files[name]:
            raise Error(f"{folder / name}: has no pictures; add some of class {name}, or remove the folder")
        inner = _folders(folder / name)
        if len(inner) > 1 and not any(_is_picture(entry.name) for entry in _entries(folder / name)):
            listed = first_few(inner)
            raise Error(
                f"{folder / name}: has only folders, {listed}, so the classes could be these or {name}; "
                f"pass --data {shlex.quote(str(folder / name))}, or move its pictures up"
            )
        _check_case(folder, files[name], "the files")
    return files, skipped


def pictures_under(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """(pictures, other files that are not hidden) at any depth, relative to the root and sorted."""
    names, others = list[str](), list[str]()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        above = list(Path(place).parents)[: len(Path(place).relative_to(root).parts)]
        if any(os.path.samefile(place, parent) for parent in above):
            raise Error(f"{place}: is a link to a folder that contains it")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                (names if _is_picture(name) else others).append(os.path.relpath(os.path.join(place, name), root))
    return sorted(names), sorted(others)


def _refuse(error: OSError) -> None:
    raise Error(f"{error.filename}: cannot be read: {error.strerror}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise Error(f"{folder}: cannot be read: {error.strerror}") from None


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _check_case(folder: Path, names: Iterable[str], what: str) -> None:
    """Raise `Error` if two names differ in case alone: where they are copied to, one may replace the other."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise Error(f"{folder}: {what} {other} and {name} differ only in case; rename one")


def _read_csv(path: Path) -> Folder:
    rows = _csv_rows(path)
    divided = any(row.get("split") for _, row in rows)
    found: dict[str, dict[str, list[str]]] = {}
    for line, row in rows:
        file, label, split = (str(row.get(column) or "").strip() for column in COLUMNS)
        if not file or not label or (divided and split.lower() not in PARTS):
            expected = "a file, a label and train, val or test" if divided else "a file and a label"
            raise Error(f"{path}: line {line}: expected {expected}")
        found.setdefault(PARTS[split.lower()] if divided else "", {}).setdefault(label, []).append(file)
    for files in (names for labels in found.values() for names in labels.values()):
        missing = [name for name in files if not (path.parent / name).is_file()]
        if missing:
            others = f", nor {len(missing) - 1:,} others of its class" if missing[1:] else ""
            raise Error(f"{path}: there is no file {path.parent / missing[0]}{others}")
    folder = _folder(path, path.parent, found, [])
    twice = [
        name for name, count in Counter(n for part in folder.parts.values() for n in part.pictures.names).items() if count > 1
    ]
    if twice:
        raise Error(f"{path}: {twice[0]} is in it more than once")
    return _numbered(folder, path) if all(name.isascii() and name.isdigit() for name in folder.classes) else folder


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of each row, without blank lines."""
    check_readable(path, most=limits.JSON)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader] if {"file", "label"} <= {*header} else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise Error(
            f"{path}: expected the columns file and label, and a line for each picture; it has {', '.join(header) or 'none'}"
        )
    return rows


def _numbered(folder: Folder, path: Path) -> Folder:
    """The folder of a CSV whose labels are the numbers of classes."""
    numbers = np.array([int(name) for name in folder.classes])
    count = numbers.max() + 1
    if count > 999_999:
        raise Error(f"{path}: label {numbers.max():,}, expected at most 999,999")
    parts = {name: Part(part.pictures, numbers[part.labels]) for name, part in folder.parts.items()}
    return Folder([str(number) for number in range(count)], parts, folder.skipped, is_numbered=True)
