"""Data sets by name: those on this machine, those that torchvision downloads, and those that are made of them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock

from shared import data, masks
from shared.checks import Error
from shared.data import Data, Labelled

from . import backends, scattered

DOWNLOADS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SCATTERED = ("scattered_digits", "scattered_mnist")


def load_data(name: str | Path = "digits", holdout: float | None = None) -> Data:
    """The data set of a name, or of the path of an `.npz` file, a folder or a CSV: what `shared.data.load` has, and

    - "mnist", "fashion_mnist", "cifar10", "cifar100": downloaded once by torchvision into the cache folder;
    - "scattered_mnist", "scattered_digits": those digits on larger canvases, see `load_scattered`.

    Raises `Error` for a data set that does not exist or cannot be read.
    """
    if name in SCATTERED:
        return data.hold_out(load_scattered(str(name)).data, holdout)
    if name in DOWNLOADS and not data.find(name):
        return data.hold_out(_download(str(name)), holdout)
    return data.load(name, holdout, (*DOWNLOADS, *SCATTERED))


def load_test(name: str | Path, holdout: float | None = None) -> Labelled:
    """The images of a data set to test trained networks on: its part "test", or else, of a folder, "val" or all.

    With `holdout`, those that `load_data` leaves out of the training. Raises `Error` as `load_data`.
    """
    test = data.load_test(name) if holdout is None and name not in SCATTERED else None
    if test is None:
        whole = load_data(name, holdout)
        test = Labelled(whole.x_test, whole.y_test, whole.classes)
        test = whole.unseen or test if holdout is None else test
    return test


def load_masked(
    name: str | Path, holdout: float | None = None, ignore: int = masks.VOID, names: Sequence[str] | None = None
) -> Data:
    """Images and masks: what `shared.data.load_masked` has, and the `SCATTERED`, whose class 10 is no digit."""
    if name not in SCATTERED:
        return data.load_masked(name, holdout, ignore, names)
    made = load_scattered(str(name))
    train, test = made.masks
    train, test = (np.where(each == ignore, masks.VOID, each) for each in (train, test))
    whole = made.data._replace(y_train=train, y_test=test, coding=masks.Coding(ignore, None))
    return data.hold_out(whole, holdout)


def load_masked_test(
    name: str | Path, holdout: float | None = None, ignore: int = masks.VOID, names: Sequence[str] | None = None
) -> Labelled:
    """Images and masks to test trained networks on, as `shared.data.load_masked_test`, and those of the `SCATTERED`.

    With `holdout`, those that `load_masked` leaves out of the training.
    """
    if holdout is None and name not in SCATTERED:
        return data.load_masked_test(name, ignore, names)
    whole = load_masked(name, holdout, ignore, names)
    return Labelled(whole.x_test, whole.y_test, whole.classes, whole.coding)


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
        raise Error(f"{folder}: cannot be created for downloads: {error.strerror}") from None
    lock = FileLock(folder / f"{name}.lock")
    with contextlib.suppress(OSError):  # a folder that cannot be written may have the data already
        lock.acquire()  # a second process waits for the download of the first
    try:
        return Data(*downloader.download(name, folder))
    finally:
        lock.release()  # which does nothing if it was not acquired
