"""A data set for localisation: digits scattered over a canvas, labelled by the largest; only test images have boxes.

Images are bytes (count, height, width, 1). A box is [left, top, right, bottom] in pixels, right and bottom exclusive.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from shared.data import Data

SIZE = 64  # height and width of a canvas, in pixels
TRAIN, TEST = 10_000, 2_000  # images
LARGEST = (24, 44)  # the longer side of the labelled digit, in pixels
OTHERS = (0.4, 0.7)  # the longer side of another, as a fraction of the labelled one's
CLUTTER = 8  # snippets of other digits, 7 pixels wide and high
SNIPPET = 7
NONE = 10  # in masks: pixels of no whole digit, clutter too
INK = 64  # the brightness from which a pixel is a digit's, of 255
TRIES = 20  # at a place where a digit covers no other


class Scattered(NamedTuple):
    """The images and labels, and the boxes of the labelled digits in the test images."""

    data: Data
    boxes: np.ndarray  # (count, 4)
    masks: tuple[np.ndarray, ...] = ()  # of training and test images, (count, height, width): digits, or `NONE`


def make(digits: Data, seed: int = 0, train: int = TRAIN, test: int = TEST) -> Scattered:
    """`train` and `test` canvases of a data set of small bright signs on black, such as MNIST: a pure function.

    On each canvas are one to three signs, whole and apart from one another, then snippets cut out of others as clutter (as
    Mnih et al. 2014, arXiv:1406.6247, section 4.1, clutter theirs). Test canvases are made of the test images.
    """
    generators = [np.random.default_rng([seed, part]) for part in (0, 1)]
    x_train, y_train, _, masks = _canvases(np.asarray(digits.x_train), digits.y_train, train, generators[0])
    x_test, y_test, boxes, test_masks = _canvases(np.asarray(digits.x_test), digits.y_test, test, generators[1])
    return Scattered(Data(x_train, y_train, x_test, y_test), boxes, (masks, test_masks))


def _canvases(
    images: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    canvases, masks = np.zeros((count, SIZE, SIZE, 1), np.uint8), np.full((count, SIZE, SIZE), NONE, np.uint8)
    chosen_labels, boxes = np.empty(count, np.int64), np.empty((count, 4), np.int64)
    for number, canvas in enumerate(canvases[..., 0]):
        occupied: list[tuple[int, ...]] = []
        side = generator.integers(LARGEST[0], LARGEST[1] + 1)
        sides = [side, *(side * generator.uniform(*OTHERS, generator.integers(3))).astype(int)]
        drawn = 0
        for order, side in enumerate(sides):
            chosen = generator.integers(len(images))
            _put(canvas, _ink(images[chosen, ..., 0]), side, occupied, generator)
            for left, top, right, bottom in occupied[drawn:]:
                place = slice(top, bottom), slice(left, right)
                masks[number][place][canvas[place] >= INK] = labels[chosen]
            drawn = len(occupied)
            if order == 0:  # the canvas is empty, so the first is always put
                chosen_labels[number], boxes[number] = labels[chosen], occupied[0]
        for chosen in generator.integers(len(images), size=CLUTTER):
            _clutter(canvas, images[chosen, ..., 0], generator)
    return canvases, chosen_labels, boxes, masks


def _ink(image: np.ndarray) -> np.ndarray:
    """The part of an image that is not black."""
    rows, columns = (np.flatnonzero(image.max(axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _put(
    canvas: np.ndarray, digit: np.ndarray, side: int, occupied: list[tuple[int, ...]], generator: np.random.Generator
) -> None:
    """Draw a digit whose longer side is `side` clear of the boxes `occupied`, and add its own to them, if a place is found."""
    scale = side / max(digit.shape)
    height, width = (max(round(n * scale), 2) for n in digit.shape)
    for _ in range(TRIES):
        top, left = (int(generator.integers(SIZE - n + 1)) for n in (height, width))
        box = (left, top, left + width, top + height)
        if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in occupied):
            occupied.append(box)
            drawn = Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR)
            canvas[top : top + height, left : left + width] = drawn
            return


def _clutter(canvas: np.ndarray, image: np.ndarray, generator: np.random.Generator) -> None:
    """Draw a snippet of an image somewhere; where they overlap, the brighter pixel wins."""
    top, left = (generator.integers(max(n - SNIPPET, 0) + 1) for n in image.shape)
    snippet = image[top : top + SNIPPET, left : left + SNIPPET]
    height, width = snippet.shape
    top, left = generator.integers(SIZE - height + 1), generator.integers(SIZE - width + 1)
    place = canvas[top : top + height, left : left + width]
    np.maximum(place, snippet, out=place)
