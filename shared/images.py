"""Images: reading picture files, and what a network wants of them."""

import contextlib
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .checks import Error

MODES = {1: "L", 3: "RGB"}  # channels: Pillow's word


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
    return normalise(pixels(images, spec), spec, dtype)


def pixels(images, spec):
    """The first half of `preprocess`: bytes (count, height, width, channels) of the size and colour that the network takes."""
    channels, *size = spec["input"]
    if channels not in MODES:
        raise Error(f"the network takes {channels} channels; the images have 1 or 3")
    wanted = _wanted(spec)
    if "resize" not in wanted and isinstance(images, np.ndarray) and images.shape[1:] == (*size, channels):
        return images
    return np.stack([_pixels(image, MODES[channels], size, wanted) for image in images])


def normalise(batch, spec, dtype="float32"):
    """The second half of `preprocess`: bytes (count, height, width, channels) to values (count, channels, height, width)."""
    wanted = _wanted(spec)
    if wanted["channels"] == "BGR":
        batch = batch[..., ::-1]
    batch = batch.transpose(0, 3, 1, 2).astype(dtype, order="C")
    mean, std = (np.array(wanted[key], dtype).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (batch / wanted["scale"] - mean) / std


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


def read_picture(path):
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


def picture_size(path):
    """(width, height) of the upright picture in an image file, without reading its pixels. Raises `Error` as `read_picture`."""
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
