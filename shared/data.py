"""Data sets as NumPy arrays, and the batches that both frameworks get.

A data set has uint8 images (count, height, width, channels) and whole-number labels. A batch is ready for a network:
(count, channels, height, width), pixels in [-1, 1].
"""

import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .spec import Error, nearest

MODES = {1: "L", 3: "RGB"}  # channels: Pillow's word
DOWNLOADS = ("mnist", "fashion_mnist", "cifar10", "cifar100")


class Data(NamedTuple):
    """Images and labels for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(name="digits"):
    """The data set of a name or of the path of an `.npz` file.

    - "digits": scikit-learn's embedded handwritten digits (1,797 of 8x8; Alpaydin and Kaynak 1998, UCI), the last 360 for
      testing;
    - any name for which the folder `TWINS_DATA` has an `.npz`;
    - "mnist", "fashion_mnist", "cifar10", "cifar100": downloaded once by torchvision into the cache folder.

    A file has `x_train y_train x_test y_test`. Raises `Error` for a data set that is not there or not of this form.
    """
    name = str(name)
    if name == "digits":
        return _digits()
    folder = os.environ.get("TWINS_DATA")
    path = Path(name) if name.endswith(".npz") else Path(folder, f"{name}.npz") if folder else None
    if path and (path.is_file() or path == Path(name)):
        return _read(path)
    if name in DOWNLOADS:
        from torch_impl.datasets import download  # torchvision stands on PyTorch, which only a download needs

        return Data(*download(name, cache()))
    known = ["digits", *DOWNLOADS]
    known += sorted({file.stem for file in Path(folder).glob("*.npz")} - set(known)) if folder else []
    raise Error(f"no data set is called {name!r}{nearest(name, known)}; there are {', '.join(known)}, and .npz files")


def cache():
    """The folder for downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-twins"


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Data(images[:-360], digits.target[:-360], images[-360:], digits.target[-360:])


def _read(path):
    try:
        with np.load(path) as file:
            arrays = [file[key] for key in Data._fields]
    except FileNotFoundError:
        raise Error(f"{path}: there is no such file") from None
    except KeyError as error:
        raise Error(f"{path}: {error.args[0]}; expected the arrays {', '.join(Data._fields)}") from None
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Error(f"{path}: not a complete .npz file: {error}") from None
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise Error(
                f"{path}: x_{part} is {images.dtype} of shape {images.shape}, expected uint8, "
                "(count, height, width) or (count, height, width, 1 or 3)"
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise Error(f"{path}: y_{part} has {labels.size} labels of {labels.dtype}, expected {len(images)} whole numbers")
        if not len(images) or labels.min() < 0:
            raise Error(f"{path}: {part}: expected at least one image, and labels of 0 or more")
    x_train, y_train, x_test, y_test = arrays
    return Data(_channels(x_train), _labels(y_train), _channels(x_test), _labels(y_test))


def _channels(images):
    return images if images.ndim == 4 else images[..., None]


def _labels(labels):
    return labels.reshape(-1).astype(np.int64)


def prepare(images, channels, size, dtype="float32"):
    """Images of a data set as a batch: resized to (height, width) by bilinear interpolation, grey or colour as needed."""
    if channels not in MODES:
        raise Error(f"the network takes {channels} channels; the images have 1 or 3")
    batch = np.empty((len(images), channels, *size), dtype)
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert(MODES[channels])
        if image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        batch[i] = np.asarray(image).reshape(*size, channels).transpose(2, 0, 1)
    return batch / 127.5 - 1


def picture(path):
    """The pixels of an image file as (height, width, 3). Raises `Error` for a file that is no image."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise Error(f"{path}: there is no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Error(f"{path}: not an image that Pillow can read: {error}") from None


def batch(count, size, step, seed=0):
    """The indices of the images of a training step: epochs of whole batches, each epoch in an order of its own.

    A pure function of its arguments, so that a resumed run sees what an uninterrupted one would have seen. Of `count`
    images, those that do not fill a batch of `size` wait for another epoch.
    """
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    return np.random.default_rng([seed, epoch]).permutation(count)[place * size : (place + 1) * size]
