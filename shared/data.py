"""Data sets as NumPy arrays, and the batches that both frameworks get.

A data set has uint8 images (count, height, width, channels) and whole-number labels. A batch is ready for a network:
(count, channels, height, width), pixels in [-1, 1] or as the network's spec says.
"""

import contextlib
import functools
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from . import shapes
from .spec import Error, nearest

MODES = {1: "L", 3: "RGB"}  # channels: Pillow's word
DOWNLOADS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SCATTERED = ("scattered_digits", "scattered_mnist")


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
    - "mnist", "fashion_mnist", "cifar10", "cifar100": downloaded once by torchvision into the cache folder;
    - "scattered_mnist", "scattered_digits": those digits on larger canvases, see `shared.scattered`.

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
    if name in SCATTERED:
        from . import scattered  # which reads this module

        return scattered.make(name.removeprefix("scattered_")).data
    known = ["digits", *DOWNLOADS, *SCATTERED]
    known += sorted({file.stem for file in Path(folder).glob("*.npz")} - set(known)) if folder else []
    where = f"in TWINS_DATA, {folder}" if folder else "in a folder that TWINS_DATA names, which is not set"
    raise Error(f"no data set is called {name!r}{nearest(name, known)}; there are {', '.join(known)}, and .npz files {where}")


def check(images, labels, spec):
    """Raise `Error` unless the images have the network's channels, and the labels are of its classes."""
    words, channels, classes = {1: "grey", 3: "colour"}, spec["input"][0], shapes.layers(spec)[-1].shape[0]
    if images.shape[3] != channels:
        wanted = words.get(channels, f"images of {channels} channels")
        raise Error(f"its images are {words[images.shape[3]]}, {spec['name']} takes {wanted}")
    if labels.max() >= classes:
        raise Error(f"its labels go up to {labels.max()}, {spec['name']} has {classes} classes, counted from 0")


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
    except (OSError, TypeError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise Error(f"{path}: not a complete .npz file: {error}") from None
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise Error(
                f"{path}: x_{part} is {images.dtype} of shape {images.shape}, expected uint8, "
                "(count, height, width) or (count, height, width, 1 or 3)"
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise Error(f"{path}: y_{part} has {labels.size} labels of {labels.dtype}, expected {len(images)} whole numbers")
        if not len(images) or labels.min() < 0 or labels.max() > 999_999:
            raise Error(f"{path}: {part}: expected at least one image, and labels of 0 to 999,999")
    x_train, y_train, x_test, y_test = arrays
    return Data(_channels(x_train), _labels(y_train), _channels(x_test), _labels(y_test))


def _channels(images):
    return images if images.ndim == 4 else images[..., None]


def _labels(labels):
    return labels.reshape(-1).astype(np.int64)


def prepare(images, channels, size, dtype="float32"):
    """Images as a batch: resized to (height, width) by bilinear interpolation, grey or colour as needed, in [-1, 1]."""
    return preprocess(images, {"input": [channels, *size]}, dtype)


def preprocess(images, spec, dtype="float32"):
    """Images, each (height, width, 1 or 3), as the batch that a network takes; "preprocessing" in its spec says how.

    They become colour or grey, then the shorter side becomes "resize" pixels long and the central square of "crop" pixels
    is taken, as by torchvision's Resize (bilinear) and CenterCrop; without these, the spec's own height and width. Values
    are (pixel / scale - mean) / std, channels in the order that "channels" gives. A spec without the key wants [-1, 1].
    With a resize and no crop, images of one batch have to be of one size. Raises `Error` for other channels than 1 or 3.
    """
    return normalised(pixels(images, spec), spec, dtype)


def pixels(images, spec):
    """The first half of `preprocess`: bytes (count, height, width, channels) of the size and colour that the network takes."""
    channels, *size = spec["input"]
    if channels not in MODES:
        raise Error(f"the network takes {channels} channels; the images have 1 or 3")
    wanted = _wanted(spec)
    if "resize" not in wanted and isinstance(images, np.ndarray) and images.shape[1:] == (*size, channels):
        return images
    return np.stack([_pixels(image, MODES[channels], size, wanted) for image in images])


def normalised(batch, spec, dtype="float32"):
    """The second half of `preprocess`: bytes (count, height, width, channels) to values (count, channels, height, width)."""
    wanted = _wanted(spec)
    if wanted["channels"] == "BGR":
        batch = batch[..., ::-1]
    batch = batch.transpose(0, 3, 1, 2).astype(dtype, order="C")
    mean, std = (np.array(wanted[key], dtype).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (batch / wanted["scale"] - mean) / std


def augmented(batch, seed, step, pad=0, flip=False):
    """Images (count, height, width, channels) as a training step sees them: a pure function of its arguments.

    Each is framed by `pad` black pixels, a window of its own size is taken from it at random, and with `flip` half of them
    are mirrored: He et al. 2015, section 4.2.
    """
    generator = np.random.default_rng([seed, step, 1])  # the third number: not the order of an epoch
    count, height, width, _ = batch.shape
    places = generator.integers(2 * pad + 1, size=(count, 2))
    mirrored = generator.random(count) < 0.5
    framed = np.pad(batch, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    found = np.empty_like(batch)
    for i, (top, left) in enumerate(places):
        window = framed[i, top : top + height, left : left + width]
        found[i] = window[:, ::-1] if flip and mirrored[i] else window
    return found


def _wanted(spec):
    channels = spec["input"][0]
    plain = {"channels": MODES.get(channels), "scale": 127.5, "mean": [1] * channels, "std": [1] * channels}
    return spec.get("preprocessing", plain)


def _pixels(pixels, mode, size, wanted):
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert(mode)
    resized, window = _frame(image.size, size, wanted)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    if window != (0, 0, *resized):
        image = image.crop(window)
    return np.atleast_3d(np.asarray(image))


def _frame(image, size, wanted):
    """What an image of (width, height) is resized to, and the window (left, top, right, bottom) that is cut out of that."""
    resized = tuple(reversed(size))
    if "resize" in wanted:
        resized = tuple(int(wanted["resize"] * side / min(image)) for side in image)
    if "crop" not in wanted:
        return resized, (0, 0, *resized)
    left, top = (round((side - wanted["crop"]) / 2) for side in resized)
    return resized, (left, top, left + wanted["crop"], top + wanted["crop"])


def window(image, spec):
    """What the network sees of an image (height, width, channels): (left, top, right, bottom) in the pixels of the image.

    These are fractions of pixels in general. `preprocess` makes the network's whole input of what is inside.
    """
    height, width = image.shape[:2]
    (across, down), (left, top, right, bottom) = _frame((width, height), spec["input"][1:], _wanted(spec))
    return left * width / across, top * height / down, right * width / across, bottom * height / down


def picture(path):
    """The pixels of an image file as (height, width, 3): upright, as its EXIF data say, on white where it is transparent.

    16 bits become 8, CMYK becomes RGB by Pillow's formula, a film its first image. Raises `Error` for a file that is no image.
    """
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits, 8 or 16 would be right")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def size(path):
    """(width, height) of the upright picture in an image file, without reading its pixels. Raises `Error` as `picture`."""
    with _opened(path) as file:
        lies = file.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # on its side
        return file.size[::-1] if lies else file.size


@contextlib.contextmanager
def _opened(path):
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # of large images and odd EXIF data, both read
            yield file
    except FileNotFoundError:
        raise Error(f"{path}: there is no such file") from None
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Error(f"{path}: not an image that Pillow can read: {error}") from None


def batch(count, size, step, seed=0):
    """The indices of the images of a training step: epochs of whole batches, each epoch in an order of its own.

    A pure function of its arguments, so that a resumed run sees what an uninterrupted one would have seen. Of `count`
    images, those that do not fill a batch of `size` wait for another epoch.
    """
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    return _order(count, seed, epoch)[place * size : (place + 1) * size]


@functools.lru_cache(maxsize=2)
def _order(count, seed, epoch):
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False  # one for all steps of an epoch
    return order
