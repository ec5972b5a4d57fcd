"""A data set for localisation: digits scattered over a canvas, labelled by the largest, whose place only tests may know.

Images are bytes (count, height, width, 1). A box is [left, top, right, bottom] in pixels, right and bottom exclusive.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from . import data as datasets

SIZE = 64  # height and width of a canvas, in pixels
TRAIN, TEST = 10_000, 2_000  # images
LARGEST = (24, 44)  # the longer side of the labelled digit, in pixels
OTHERS = (0.4, 0.7)  # the longer side of another, as a share of the labelled one's
CLUTTER = 8  # snippets of other digits, 7 pixels wide and high
SNIPPET = 7
TRIES = 20  # at a place where a digit covers no other


class Scattered(NamedTuple):
    """The images and labels, and the boxes of the labelled digits in the test images."""

    data: datasets.Data
    boxes: np.ndarray  # (count, 4)


def make(source="mnist", seed=0, train=TRAIN, test=TEST):
    """The `Scattered` data set of a source's digits: a pure function of its arguments.

    `source` is a name that `shared.data.load` knows, of a set of small bright signs on black, such as "mnist" or the embedded
    "digits". On each canvas are one to three of them, whole and apart from one another, then snippets cut out of others as
    clutter (as Mnih et al. 2014, arXiv:1406.6247, section 4.1, clutter theirs). Test images are of the source's test images.
    """
    digits = datasets.load(source)
    x_train, y_train, _ = _canvases(digits.x_train, digits.y_train, train, np.random.default_rng([seed, 0]))
    x_test, y_test, boxes = _canvases(digits.x_test, digits.y_test, test, np.random.default_rng([seed, 1]))
    return Scattered(datasets.Data(x_train, y_train, x_test, y_test), boxes)


def _canvases(images, labels, count, generator):
    canvases = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    found, boxes = np.empty(count, np.int64), np.empty((count, 4), np.int64)
    for number, canvas in enumerate(canvases[..., 0]):
        taken = []
        side = generator.integers(LARGEST[0], LARGEST[1] + 1)
        sides = [side, *(side * generator.uniform(*OTHERS, generator.integers(3))).astype(int)]
        for order, side in enumerate(sides):
            chosen = generator.integers(len(images))
            box = _put(canvas, _ink(images[chosen, ..., 0]), side, taken, generator)
            if order == 0:
                found[number], boxes[number] = labels[chosen], box
        for chosen in generator.integers(len(images), size=CLUTTER):
            _clutter(canvas, images[chosen, ..., 0], generator)
    return canvases, found, boxes


def _ink(image):
    """The part of an image that is not black."""
    rows, columns = (np.flatnonzero(image.max(axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _put(canvas, digit, side, taken, generator):
    """Draw a digit whose longer side is `side` where it covers none of the boxes `taken`, which get its own; or nowhere."""
    scale = side / max(digit.shape)
    height, width = (max(round(n * scale), 2) for n in digit.shape)
    for _ in range(TRIES):
        top, left = (int(generator.integers(SIZE - n + 1)) for n in (height, width))
        box = (left, top, left + width, top + height)
        if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in taken):
            taken.append(box)
            drawn = Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR)
            canvas[top : top + height, left : left + width] = drawn
            return box
    return None


def _clutter(canvas, image, generator):
    """Draw a snippet of an image somewhere; where it meets what is there the brighter pixel shows."""
    top, left = (generator.integers(max(n - SNIPPET, 0) + 1) for n in image.shape)
    snippet = image[top : top + SNIPPET, left : left + SNIPPET]
    height, width = snippet.shape
    top, left = generator.integers(SIZE - height + 1), generator.integers(SIZE - width + 1)
    place = canvas[top : top + height, left : left + width]
    np.maximum(place, snippet, out=place)
