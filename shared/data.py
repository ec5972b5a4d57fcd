"""Data sets that are on this machine: scikit-learn's digits, `.npz` files, folders and CSV files of pictures.

Images are bytes (count, height, width, channels) in memory, or files of any sizes; labels are whole numbers. Where every pixel
has a class, the labels are the masks, as `shared.masks` has them, (count, height, width), or the paths of their files.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import folders, masks
from .checks import SHARE, Error, nearest
from .files import check_readable
from .folders import Pictures
from .formats import open_zip
from .masks import Coding

HOLDOUT = 0.2  # of each class, to test on, where a folder has no part for that

Images = np.ndarray | Pictures


class Labelled(NamedTuple):
    """Images to test on, with their labels and, if they are known, the names of the classes."""

    x: Images
    y: np.ndarray
    classes: list[str] | None = None
    coding: Coding | None = None  # of masks


class Data(NamedTuple):
    """Images and labels for training and for testing."""

    x_train: Images
    y_train: np.ndarray
    x_test: Images
    y_test: np.ndarray
    classes: list[str] | None = None  # their names, if they are known
    tested_on: str = "test"  # what the test images are: "test", "val", or "train" if they are held out of it
    unseen: Labelled | None = None  # the part "test", if the test images are others: nothing in a run depends on it
    coding: Coding | None = None  # of masks
    skipped: Sequence[str] = ()  # files of its folder that are not pictures


ARRAYS = Data._fields[:4]  # of an .npz
VALIDATION = ("x_val", "y_val")  # that it may have besides


def load(name: str | Path = "digits", holdout: float | None = None, others: Sequence[str] = ()) -> Data:
    """The data set of a name, or of the path of an `.npz` file, a folder or a CSV.

    - "digits": scikit-learn's embedded handwritten digits (1,797 of 8x8; Alpaydin and Kaynak 1998, UCI), the last 360 for
      testing;
    - any name of an `.npz` or a folder in the folder `TWINS_DATA`.

    For a folder of that name in the current directory, write a path with a dot: "./digits".
    A file has `x_train y_train x_test y_test`, and may have `x_val y_val`. A folder or CSV is as `folders.read` has it. The
    part "train" is trained on, "val" tested on, or else "test". With `holdout`, or in a folder without either, images to test
    on are chosen by `hold_out`. Raises `Error` for a data set that does not exist or is not of this form; `others` are names
    that the caller knows besides.
    """
    if str(name) == "digits":
        return hold_out(_digits(), holdout)
    path = find(name)
    if path is None:
        place = os.environ.get("TWINS_DATA")
        known = ["digits", *others]
        known += sorted({file.stem for file in Path(place).glob("*.npz")} - set(known)) if place else []
        where = f"in TWINS_DATA, {place}" if place else "in the folder named by TWINS_DATA, which is not set"
        expected = f"there are {', '.join(known)}, and .npz files {where}"
        raise Error(f"no data set is called {str(name)!r}{nearest(name, known)}; {expected}")
    if folders.is_folder(path):
        folder = folders.read(path)
        found = _of_parts(path, folder.parts, None if folder.is_numbered else folder.classes)._replace(skipped=folder.skipped)
    else:
        found = _read_npz(path)
    try:
        return hold_out(found, holdout)
    except Error as error:
        raise Error(f"{path}: {error}") from None


def hold_out(data: Data, holdout: float | None) -> Data:
    """The data with the fraction `holdout` of each class held out for testing, always the same images.

    If it is None, only if there are no images to test on; never if there are some for validation. The images that would have
    been tested on are `unseen`. Masks, which have several classes each, count as one class. Raises `Error` for a class of one
    image, and for an invalid fraction.
    """
    if holdout is not None and not SHARE.accepts(holdout):
        raise Error(f"'holdout' is {holdout}, expected {SHARE.words}")
    if data.tested_on == "val" or (holdout is None and len(data.x_test)):
        return data
    labels, names = data.y_train, dict(enumerate(data.classes or ()))
    if data.coding:
        labels, names = np.zeros(len(labels), np.int64), {0: folders.ALL}
    names = names or {label: str(label) for label in np.unique(labels).tolist()}
    rest, held = folders.held_out(labels, names, HOLDOUT if holdout is None else holdout)
    train, test = ((data.x_train[places], data.y_train[places]) for places in (rest, held))
    unseen = Labelled(data.x_test, data.y_test, data.classes, data.coding) if len(data.x_test) else None
    return Data(*train, *test, data.classes, "train", unseen, data.coding, data.skipped)


def find(name: str | Path) -> Path | None:
    """The path of the data set of a name or path, or None; of both, what `TWINS_DATA` has comes first."""
    place = os.environ.get("TWINS_DATA")
    if place and Path(name).name == str(name):
        for path in (Path(place, f"{name}.npz"), Path(place, name)):
            if path.is_file() or path.is_dir():
                return path
    return Path(name) if str(name).endswith(".npz") or folders.is_folder(name) else None


def load_test(name: str | Path) -> Labelled | None:
    """The images of a folder or CSV to test trained networks on: its part "test", or else "val", or else all.

    None if no such folder has that name. Raises `Error` as `load`.
    """
    path = None if str(name) == "digits" else find(name)
    if path is None or not folders.is_folder(path):
        return None
    folder = folders.read(path)
    part = next(folder.parts[part] for part in ("test", "val", "train", "") if part in folder.parts)
    return Labelled(*part, None if folder.is_numbered else folder.classes)


def load_masked(
    name: str | Path, holdout: float | None = None, ignore: int = masks.VOID, names: Sequence[str] | None = None
) -> Data:
    """The data set of the name or path of a folder with images and masks, see `masks.read`; divided as by `load`.

    `ignore` is the number of pixels that are ignored, and `names` are those of the classes, if they are known, which may be of
    a list whose colours are known too. Raises `Error` for a data set that does not exist or is not of this form.
    """
    folder, coding, classes = _masked(name, ignore, names)
    found = _of_parts(name, folder.parts, classes, coding)
    try:
        return hold_out(found, holdout)
    except Error as error:
        raise Error(f"{name}: {error}") from None


def load_masked_test(name: str | Path, ignore: int = masks.VOID, names: Sequence[str] | None = None) -> Labelled:
    """The pictures and masks of a folder to test trained networks on: its part "test", or else "val", or else all."""
    folder, coding, classes = _masked(name, ignore, names)
    part = next(folder.parts[part] for part in ("test", "val", "train", "") if part in folder.parts)
    return Labelled(*part, classes, coding)


def _masked(name: str | Path, ignore: int, names: Sequence[str] | None) -> tuple[masks.Folder, Coding, list[str] | None]:
    """(folder, what its masks mean, names of its classes) of the name or path of a folder with images and masks."""
    path = find(name)
    if path is None or not path.is_dir():
        given = os.environ.get("TWINS_DATA")
        place = f"in TWINS_DATA, {given}" if given else "in the folder named by TWINS_DATA, which is not set"
        raise Error(f"{name}: there is no such folder, here or {place}; expected one with images and masks")
    folder = masks.read(path)
    classes = folder.names
    if classes and ignore == len(classes) - 1:  # the last row is of what is ignored
        classes = classes[:-1]
    colours = folder.colours or masks.known_colours(names or ())
    return folder, Coding(ignore, tuple(colours) if colours else None), classes


def _of_parts(
    path: str | Path, parts: Mapping[str, tuple[Pictures, np.ndarray]], classes: list[str] | None, coding: Coding | None = None
) -> Data:
    train = parts.get("train", parts.get(""))
    if not train:
        raise Error(f"{path}: has {' and '.join(parts)} but no train, so there is nothing to train on")
    tested_on = next((part for part in ("val", "test") if part in parts), "test")
    test = parts.get(tested_on) or (train[0][:0], train[1][:0])
    unseen = Labelled(*parts["test"], classes, coding) if tested_on == "val" and "test" in parts else None
    return Data(*train, *test, classes, tested_on, unseen, coding)


def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Data(images[:-360], digits.target[:-360], images[-360:], digits.target[-360:])


def _read_npz(path: Path) -> Data:
    check_readable(path)
    try:
        open_zip(path).close()
        with np.load(path) as file:
            keys = [*ARRAYS, *(VALIDATION if {*VALIDATION} & {*file.files} else ())]
            arrays = [file[key] for key in keys]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise ValueError("a member is not a NumPy array")
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except KeyError as error:
        raise Error(f"{path}: {error.args[0]}; expected the arrays {', '.join(keys)}") from None
    except Exception as error:  # what zipfile and NumPy raise for damaged files has no common class
        raise Error(f"{path}: not a complete .npz file: {error}") from None
    parts = {key[2:]: arrays[place : place + 2] for place, key in enumerate(keys) if key.startswith("x_")}
    for part, (images, labels) in parts.items():
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise Error(
                f"{path}: x_{part} is {images.dtype} of shape {images.shape}, expected uint8, "
                "(count, height, width) or (count, height, width, 1 or 3)"
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise Error(f"{path}: y_{part} has {labels.size} labels of {labels.dtype}, expected {len(images)} whole numbers")
        if not images.size or labels.min() < 0 or labels.max() > 999_999:
            raise Error(f"{path}: {part}: expected at least one image, and labels of 0 to 999,999")
    train, test, *val = ((_channels(images), _labels(labels)) for images, labels in parts.values())
    return Data(*train, *val[0], None, "val", Labelled(*test)) if val else Data(*train, *test)


def _channels(images: np.ndarray) -> np.ndarray:
    return images if images.ndim == 4 else images[..., None]


def _labels(labels: np.ndarray) -> np.ndarray:
    return labels.reshape(-1).astype(np.int64)
