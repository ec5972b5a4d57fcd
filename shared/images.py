"""Images: reading picture files, and making batches of them for a network.

Images are (height, width, channels); sizes are (height, width) except where Pillow's (width, height) is named.
"""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from .checks import Error, check_unpacked
from .files import check_readable
from .spec import Spec

MODES = {1: "L", 3: "RGB"}  # channels: Pillow's name for them
MOST_PIXELS = 2 * 89_478_485  # in a picture: where Pillow refuses, unless the program says otherwise
DRAWINGS = ("EPS", "WMF")  # formats that Pillow runs another program for

Picture = np.ndarray | Image.Image  # (height, width, 1 or 3), or as Pillow has it
Images = np.ndarray | Iterable[Picture]  # (count, height, width, channels), or images of different sizes


def prepare(images: Images, channels: int, size: Sequence[int], dtype: DTypeLike = "float32") -> np.ndarray:
    """Images as a batch: resized to (height, width) by bilinear interpolation, converted to grey or colour, in [-1, 1]."""
    return preprocess(images, {"input": [channels, *size]}, dtype)


def preprocess(images: Images, spec: Spec, dtype: DTypeLike = "float32") -> np.ndarray:
    """Images of bytes, each (height, width, 1 or 3), as the batch that a network takes: (count, channels, height, width).

    They are converted to colour or grey. Then "preprocessing" in the spec says how: the shorter side is resized to "resize"
    pixels and the central square of "crop" pixels is cut out, as by torchvision's Resize (bilinear) and CenterCrop; without
    these, images are resized to the spec's own height and width. Values are (pixel / scale - mean) / std, with the channels
    in the order of "channels". Without "preprocessing", values are in [-1, 1]. With a resize and no crop, all images of a
    batch must have one size. Raises `Error` if the network does not take 1 or 3 channels.
    """
    return normalise(pixels(images, spec), spec, dtype)


def pixels(images: Images, spec: Spec) -> np.ndarray:
    """The first half of `preprocess`: bytes (count, height, width, channels) of the size and colour that the network takes."""
    channels, *size = spec["input"]
    if channels not in MODES:
        raise Error(f"the network takes {channels} channels; the images have 1 or 3")
    options = _preprocessing(spec)
    if "resize" not in options and isinstance(images, np.ndarray) and images.shape[1:] == (*size, channels):
        return images
    return np.stack([_resized(image, MODES[channels], size, options) for image in images])


def cut_out(image: Picture, spec: Spec, box: Sequence[int]) -> np.ndarray:
    """The `box` of an image, (left, top, right, bottom), as the network takes it: (height, width, channels)."""
    channels, height, width = spec["input"]
    crop = _preprocessing(spec).get("crop")
    size = (crop, crop) if crop else (width, height)
    cut = in_mode(image, MODES[channels]).crop((box[0], box[1], box[2], box[3]))
    return np.atleast_3d(np.asarray(cut.resize(size, Image.Resampling.BILINEAR)))


def normalise(batch: np.ndarray, spec: Spec, dtype: DTypeLike = "float32") -> np.ndarray:
    """The second half of `preprocess`: bytes (count, height, width, channels) to values (count, channels, height, width)."""
    options = _preprocessing(spec)
    if options["channels"] == "BGR":
        batch = batch[..., ::-1]
    batch = batch.transpose(0, 3, 1, 2).astype(dtype, order="C")
    mean, std = (np.array(options[key], dtype).reshape(-1, 1, 1) for key in ("mean", "std"))
    batch /= options["scale"]  # in place: a batch is large
    batch -= mean
    batch /= std
    return batch


def mean_colour(spec: Spec) -> tuple[int, ...]:
    """The colour, or grey, that is nearest to zeros once it is normalised: bytes."""
    options = _preprocessing(spec)
    colour = [round(mean * options["scale"]) for mean in options["mean"]]
    return tuple(colour[::-1] if options["channels"] == "BGR" else colour)


def _preprocessing(spec: Spec) -> dict[str, Any]:
    channels = spec["input"][0]
    default = {"channels": MODES.get(channels), "scale": 127.5, "mean": [1] * channels, "std": [1] * channels}
    return spec.get("preprocessing", default)


def _resized(picture: Picture, mode: str, size: Sequence[int], options: dict[str, Any]) -> np.ndarray:
    """One image in Pillow's `mode`, resized and cropped."""
    image = in_mode(picture, mode)
    resized, window = _frame(image.size, size, options)
    if math.prod(resized) > max(MOST_PIXELS, math.prod(image.size)):
        width, height = image.size
        raise Error(f"an image of {width}x{height} becomes one of {resized[0]}x{resized[1]} pixels, which is too large")
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    if window != (0, 0, *resized):
        image = image.crop(window)
    return np.atleast_3d(np.asarray(image))


def in_mode(picture: Picture, mode: str) -> Image.Image:
    """A picture as Pillow has it, in its `mode`."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy it


def _frame(
    image: tuple[int, int], size: Sequence[int], options: dict[str, Any]
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The size that an image is resized to, and the window (left, top, right, bottom) that is cut out of that.

    The image and the size it is resized to are (width, height).
    """
    height, width = size
    if "resize" in options:
        width, height = (int(options["resize"] * side / min(image)) for side in image)
    if "crop" not in options:
        return (width, height), (0, 0, width, height)
    left, top = (round((side - options["crop"]) / 2) for side in (width, height))
    return (width, height), (left, top, left + options["crop"], top + options["crop"])


def window(image: np.ndarray, spec: Spec) -> tuple[float, float, float, float]:
    """The part of an image (height, width, channels) that the network sees: (left, top, right, bottom).

    In pixels of the image, not whole ones in general. `preprocess` makes the network's whole input of it.
    """
    height, width = image.shape[:2]
    (across, down), (left, top, right, bottom) = _frame((width, height), spec["input"][1:], _preprocessing(spec))
    return left * width / across, top * height / down, right * width / across, bottom * height / down


def read_picture(path: str | Path) -> np.ndarray:
    """The bytes of an image file as (height, width, 3), as `open_picture` has it."""
    return np.asarray(open_picture(path))


def open_picture(path: str | Path) -> Image.Image:
    """An image file in RGB, as Pillow has it: upright according to its EXIF data, on white where transparent.

    16 bits become 8, CMYK becomes RGB by Pillow's formula; animations: the first frame. Raises `Error` if it is no image.
    """
    with opened(path) as file:
        file.load()
        image: Image.Image = file
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits, expected 8 or 16")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the upright picture in an image file, without reading its pixels. Raises `Error` as `read_picture`."""
    with opened(path) as file:
        width, height = file.size
        if isinstance(file, TiffImagePlugin.TiffImageFile):  # which has turned them already, depending on Pillow's version
            width, height = (int(file.tag_v2[tag]) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
        # PngImageFile's own would read all pixels first, for EXIF data behind them.
        on_its_side = Image.Image.getexif(file).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (height, width) if on_its_side else (width, height)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """An image file while it is open, its pixels not read yet. An `Error` in the block gets its path."""
    size = check_readable(path)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # about large images and odd EXIF data
            if file.format in DRAWINGS:
                raise ValueError(f"a drawing ({file.format})")
            # A palette or a bit a pixel become as many bytes as there are channels.
            check_unpacked(size, file.width * file.height * max(3, len(file.getbands())))
            yield file
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except Exception as error:  # what Pillow raises for damaged files has no common class
        raise Error(f"{path}: not an image that Pillow can read: {error}") from None
