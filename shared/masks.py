"""Masks of pictures, PNG files that have the class of each pixel: folders of both, and reading them.

A mask in memory is bytes (height, width): numbers of classes, and `VOID` where a pixel counts nowhere.
"""

import csv
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import images, limits
from .checks import Error, nearest
from .files import check_readable
from .folders import Pictures, divisions, has_masks, pictures_under
from .spec import CLASSES

VOID = 255  # in a mask in memory
IGNORED = -100  # in labels: what PyTorch's cross-entropy leaves out by default
TABLE = "classes.csv"  # in a folder: names and colours of the classes
COLUMNS = ("name", "colour")
SPREAD = {"L;2": 85, "L;4": 17}  # by which Pillow multiplies grey values of 2 and 4 bits
NUMBERED, COLOURED = ("L", "P", "1"), ("RGB", "RGBA")  # Pillow's modes: of masks of class numbers, and of colours

Colour = tuple[int, int, int]  # red, green, blue


class Coding(NamedTuple):
    """What the pixels of a data set's masks mean."""

    ignore: int  # the number that is ignored
    colours: tuple[Colour, ...] | None  # of the classes, in order, and perhaps of what is ignored


class Part(NamedTuple):
    """The pictures of a folder, or of its train, val or test, and the path of the mask of each."""

    pictures: Pictures
    masks: np.ndarray


class Folder(NamedTuple):
    """What a folder has; of its classes names and colours, if it says them."""

    parts: dict[str, Part]  # "train", "val", "test", or "" if it is not divided
    names: list[str] | None
    colours: list[Colour] | None


def read(path: str | Path) -> Folder:
    """The pictures of a folder and their masks.

    - FOLDER/images/… and FOLDER/masks/…, at any depth: a mask has the path of its picture, except for the extension.
    - FOLDER/train/images, FOLDER/train/masks, and val or test beside train.
    - FOLDER/classes.csv, which may be missing: see `read_table`.

    Raises `Error` for a picture without a mask and the reverse, and for what is missing or ambiguous.
    """
    path = Path(path)
    names, colours = read_table(path / TABLE) if (path / TABLE).exists() else (None, None)
    divided = {part: name for part, name in divisions(path).items() if part != "test" or has_masks(path / name)}
    parts = {part: _part(path / name, path) for part, name in divided.items()}
    return Folder(parts or {"": _part(path, path)}, names, colours)


def _part(folder: Path, root: Path) -> Part:
    pictures, masks = (_by_stem(folder / name) for name in ("images", "masks"))
    for own, other, what in ((pictures, masks, "mask"), (masks, pictures, "image")):
        missing = sorted(own.keys() - other.keys())
        if missing:
            here, there = ("images", "masks") if what == "mask" else ("masks", "images")
            more = f", nor have {len(missing) - 1:,} others" if missing[1:] else ""
            expected = folder / there / (missing[0] + (".png" if what == "mask" else ".jpg"))
            raise Error(f"{folder / here / own[missing[0]]}: has no {what}{more}; expected {expected}")
    if not pictures:
        raise Error(f"{folder / 'images'}: has no pictures")
    stems = sorted(pictures)
    names = [str((folder / "images" / pictures[stem]).relative_to(root)) for stem in stems]
    return Part(Pictures(root, names), np.array([str(folder / "masks" / masks[stem]) for stem in stems]))


def _by_stem(folder: Path) -> dict[str, str]:
    """{path without its ending: path} of the pictures in a folder, relative to it."""
    if not folder.is_dir():
        raise Error(f"{folder}: there is no such folder; expected images and masks beside one another")
    found: dict[str, str] = {}
    for name in pictures_under(folder, folder)[0]:
        other = found.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise Error(f"{folder}: has both {other} and {name}; expected one of them")
    return found


def read_table(path: Path) -> tuple[list[str], list[Colour]]:
    """(names, colours) of classes from a CSV with the columns name and colour, as "#804080": the first row is class 0.

    Raises `Error` for what is not of this form, and for a colour that two classes have.
    """
    check_readable(path, most=limits.JSON)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read: {error}") from None
    if not rows or [cell.lower() for cell in rows[0]] != [*COLUMNS] or not rows[1:]:
        raise Error(f"{path}: expected a first line {','.join(COLUMNS)} and a line for each class, such as road,#804080")
    names: list[str] = []
    colours: dict[Colour, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS) or not row[0] or not re.fullmatch("#[0-9A-Fa-f]{6}", row[1]):
            raise Error(f"{path}: line {line} is {','.join(row)!r}, expected a name and a colour, such as road,#804080")
        red, green, blue = bytes.fromhex(row[1][1:])
        other = colours.setdefault((red, green, blue), row[0])
        if len(colours) == len(names):
            raise Error(f"{path}: {other} and {row[0]} have the same colour, {row[1]}")
        names.append(row[0])
    if len(names) > VOID + 1:
        raise Error(f"{path}: has {len(names)} classes, expected at most {VOID}, plus one for ignored pixels")
    return names, [*colours]


def palette(names: Sequence[str]) -> list[Colour]:
    """Colours for classes: those of Cityscapes and of CamVid for their classes, else those of PASCAL VOC by number."""
    known = known_colours(names)
    return known or [_voc(number) for number in range(len(names))]


def known_colours(names: Sequence[str]) -> list[Colour] | None:
    """The colours of a list of classes that comes with the project, or None."""
    for table in sorted(CLASSES.glob("*.csv")):
        own, colours = read_table(table)
        if own == [*names]:
            return colours
    return None


def _voc(number: int) -> Colour:
    """The bits of a number, spread over the three channels, highest first: the colour map of PASCAL VOC's devkit."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def check_file(path: str | Path, size: tuple[int, int]) -> None:
    """Raise `Error` unless a file is a mask for a picture of that size, (width, height), as far as its header says."""
    with images.opened(path) as image:
        _check_form(image)
        _check_size(image.size, size)


def read_mask(path: str | Path, coding: Coding, classes: int, size: tuple[int, int]) -> np.ndarray:
    """The mask in a file, for a picture of that size, (width, height).

    Raises `Error` for a file that is no mask, and for a number or a colour that none of the `classes` has.
    """
    with images.opened(path) as image:
        _check_form(image)
        _check_size(image.size, size)
        spread = SPREAD.get(str(image.tile[0].args), 1)
        image.load()
        if image.mode in NUMBERED:
            numbers = np.asarray(image).astype(np.uint8) // spread
        else:
            numbers = _of_colours(np.asarray(image.convert("RGB")), coding)
        wrong = (numbers >= classes) & (numbers != coding.ignore)
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            expected = f"0 to {classes - 1}, or {coding.ignore} to ignore it"
            raise Error(f"the pixel at x={x}, y={y} has the number {numbers[y, x]}, expected {expected}")
        return np.where(numbers == coding.ignore, VOID, numbers).astype(np.uint8)


def _check_form(image: images.Image.Image) -> None:
    if image.format != "PNG":
        why = ", which changes the numbers of classes" if image.format == "JPEG" else ""
        raise Error(f"is a {image.format} file{why}; masks are PNG files")
    if image.mode.startswith("I"):
        raise Error("has 16 bits a pixel, expected 8: numbers of classes from 0 to 255")
    if image.mode not in NUMBERED + COLOURED:
        raise Error(f"has Pillow's mode {image.mode}, expected numbers (L, P, 1) or colours (RGB)")


def _check_size(mask: tuple[int, int], picture: tuple[int, int]) -> None:
    if mask != picture:
        raise Error(f"is a mask of {mask[0]}x{mask[1]}, but its picture has {picture[0]}x{picture[1]} pixels")


def _of_colours(pixels: np.ndarray, coding: Coding) -> np.ndarray:
    """The numbers of the classes that have the colours of pixels, (height, width, 3)."""
    if not coding.colours:
        raise Error(f"has colours, but nothing says what they mean; expected numbers, or {TABLE} in the folder")
    packed = pixels.astype(np.int32) @ (65536, 256, 1)
    table, order = _packed(coding.colours)
    place = np.searchsorted(table, packed).clip(max=len(table) - 1)
    unknown = table[place] != packed
    if unknown.any():
        y, x = np.argwhere(unknown)[0]
        colour, known = f"#{packed[y, x]:06x}", [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in coding.colours]
        raise Error(f"the pixel at x={x}, y={y} has the colour {colour}, which no class has{nearest(colour, known)}")
    return order[place]


@functools.cache
def _packed(colours: tuple[Colour, ...]) -> tuple[np.ndarray, np.ndarray]:
    packed = np.array(colours) @ (65536, 256, 1)
    order = np.argsort(packed)
    return packed[order], order


def labels(masks: np.ndarray) -> np.ndarray:
    """Masks as an engine takes them: whole numbers, `IGNORED` for `VOID`."""
    return np.where(masks == VOID, IGNORED, masks.astype(np.int64))
