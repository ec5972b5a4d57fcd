"""Data sets by name or by path, as uint8 images (count, height, width, channels) and whole-number labels."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import platformdirs
from filelock import FileLock

from shared import folders
from shared.checks import Error, nearest
from shared.files import check_readable
from shared.folders import Folder
from shared.formats import open_zip

from . import backends, scattered
from .batches import Data, Images

DOWNLOADS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SCATTERED = ("scattered_digits", "scattered_mnist")
ARRAYS = Data._fields[:4]  # of an .npz
HOLDOUT = 0.2  # of each class, to test on, where a folder has no part for that


class Labelled(NamedTuple):
    """Images to test on, with their labels and, if they are known, the names of the classes."""

    x: Images
    y: np.ndarray
    classes: list[str] | None


def load_data(name: str | Path = "digits", holdout: float = HOLDOUT) -> Data:
    """The data set of a name, or of the path of an `.npz` file, a folder or a CSV.

    - "digits": scikit-learn's embedded handwritten digits (1,797 of 8x8; Alpaydin and Kaynak 1998, UCI), the last 360 for
      testing;
    - any name for which the folder `TWINS_DATA` has an `.npz`;
    - "mnist", "fashion_mnist", "cifar10", "cifar100": downloaded once by torchvision into the cache folder;
    - "scattered_mnist", "scattered_digits": those digits on larger canvases, see `load_scattered`.

    A file has `x_train y_train x_test y_test`. A folder or CSV is as `shared.folders.read` has it: trained on is its part
    "train", tested on "val", or else "test"; where there is no other part, the share `holdout` of each class is left out of the
    training, always the same images. Raises `Error` for a data set that does not exist or is not of this form.
    """
    name = str(name)
    if name == "digits":
        return _digits()
    folder = os.environ.get("TWINS_DATA")
    path = Path(name) if name.endswith(".npz") else Path(folder, f"{name}.npz") if folder else None
    if path and (path.is_file() or path == Path(name)):
        return _read_npz(path)
    if name in DOWNLOADS:
        return _download(name)
    if name in SCATTERED:
        return load_scattered(name).data
    if folders.is_folder(name):
        return _of_folder(name, folders.read(name), holdout)
    known = ["digits", *DOWNLOADS, *SCATTERED]
    known += sorted({file.stem for file in Path(folder).glob("*.npz")} - set(known)) if folder else []
    where = f"in TWINS_DATA, {folder}" if folder else "in the folder named by TWINS_DATA, which is not set"
    raise Error(f"no data set is called {name!r}{nearest(name, known)}; there are {', '.join(known)}, and .npz files {where}")


def load_test(name: str | Path, holdout: float | None = None) -> Labelled:
    """The images of a data set to test trained networks on: of a folder its part "test", or else "val", or else all.

    With `holdout`, those of the folder that `load_data` leaves out of the training. Raises `Error` as `load_data`.
    """
    if holdout is None and not _is_known(str(name)) and folders.is_folder(name):
        folder = folders.read(name)
        part = next(folder.parts[part] for part in ("test", "val", "train", "") if part in folder.parts)
        return Labelled(*part, None if folder.is_numbered else folder.classes)
    data = load_data(name, HOLDOUT if holdout is None else holdout)
    return Labelled(data.x_test, data.y_test, data.classes)


def _is_known(name: str) -> bool:
    """Whether a data set has that name, so that it is not a folder's."""
    folder = os.environ.get("TWINS_DATA")
    return name in ("digits", *DOWNLOADS, *SCATTERED) or bool(folder and Path(folder, f"{name}.npz").is_file())


def _of_folder(name: str, folder: Folder, holdout: float) -> Data:
    parts = folder.parts
    train = parts.get("train", parts.get(""))
    if not train:
        raise Error(f"{name}: has {' and '.join(parts)} but no train, so there is nothing to train on")
    tested_on = next((part for part in ("val", "test") if part in parts), "train")
    if tested_on in ("val", "test"):
        test = parts[tested_on]
    else:
        try:
            train, test = folders.held_out(train, folder.classes, holdout)
        except Error as error:
            raise Error(f"{name}: {error}") from None
    return Data(*train, *test, None if folder.is_numbered else folder.classes, tested_on)


def load_scattered(name: str) -> scattered.Scattered:
    """One of the `SCATTERED` data sets, with the boxes of its test images; made at each call. Raises `Error`."""
    return scattered.make(load_data(name.removeprefix("scattered_")))


def cache_folder() -> Path:
    """The folder for downloads."""
    return platformdirs.user_cache_path("resnet-twins")


def _download(name: str) -> Data:
    folder = cache_folder()
    try:
        downloader = backends.pytorch(f"downloading {name}", torchvision=True).datasets
    except Error as error:
        raise Error(f"{error}, or put {name}.npz into a folder and set TWINS_DATA to that folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{folder}: cannot be made for downloads: {error.strerror}") from None
    lock = FileLock(folder / f"{name}.lock")
    with contextlib.suppress(OSError):  # a folder that cannot be written may have the data already
        lock.acquire()  # a second process waits for the download of the first
    try:
        return Data(*downloader.download(name, folder))
    finally:
        lock.release()  # which does nothing if it was not acquired


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
            arrays = [file[key] for key in ARRAYS]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise ValueError("a member of it is no array of NumPy's")
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except KeyError as error:
        raise Error(f"{path}: {error.args[0]}; expected the arrays {', '.join(ARRAYS)}") from None
    except Exception as error:  # what zipfile and NumPy raise for damaged files has no common class
        raise Error(f"{path}: not a complete .npz file: {error}") from None
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise Error(
                f"{path}: x_{part} is {images.dtype} of shape {images.shape}, expected uint8, "
                "(count, height, width) or (count, height, width, 1 or 3)"
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise Error(f"{path}: y_{part} has {labels.size} labels of {labels.dtype}, expected {len(images)} whole numbers")
        if not images.size or labels.min() < 0 or labels.max() > 999_999:
            raise Error(f"{path}: {part}: expected at least one image, and labels of 0 to 999,999")
    x_train, y_train, x_test, y_test = arrays
    return Data(_channels(x_train), _labels(y_train), _channels(x_test), _labels(y_test))


def _channels(images: np.ndarray) -> np.ndarray:
    return images if images.ndim == 4 else images[..., None]


def _labels(labels: np.ndarray) -> np.ndarray:
    return labels.reshape(-1).astype(np.int64)
