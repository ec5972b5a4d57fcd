"""From class maps to boxes: where in a picture a classification network sees a class, in NumPy.

A response is one class of the class maps of one picture, (height, width). Boxes are [left, top, right, bottom] in pixels of the
original picture, right and bottom exclusive, and need not be whole numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shared.interpolation import interpolation_matrix

from .predict import TOP

OVERLAP = 0.5  # the intersection over union with the truth that a right box exceeds
SWEEP = tuple(round(0.05 * step, 2) for step in range(20))  # thresholds

Box = Sequence[float]
Window = tuple[float, float, float, float]  # what of a picture the network sees, as a box


class Localisation(NamedTuple):
    """What a network answers to one picture."""

    top: list[int]  # its likeliest classes, the likeliest first
    target: int  # the class that is looked for
    response: np.ndarray  # of that class, where it may be in a box
    peak: list[float] | None  # where that response is largest; None if nothing may be in a box
    window: Window

    def box(self, threshold: float) -> list[float] | None:
        """The `box` of the response."""
        return box(self.response, self.window, threshold)


def localise(maps: np.ndarray, window: Window, target: int | None = None, alone: bool = False) -> Localisation:
    """The `Localisation` from class maps (classes, height, width) of the class `target`, or of the likeliest.

    Box and peak are of all positions, or, with `alone`, only of those of the class's `exclusive` map.
    """
    top = np.argsort(-maps.mean((1, 2)), kind="stable")[:TOP].tolist()
    target = top[0] if target is None else target
    response = (exclusive(maps) if alone else maps)[target].copy()  # a view would keep all maps of all pictures in memory
    where = peak(response, window) if not alone or response.max() > 0 else None
    return Localisation(top, target, response, where, window)


def upsampled(response: np.ndarray, height: int, width: int) -> np.ndarray:
    """The response at another size, bilinearly."""
    return interpolation_matrix(len(response), height) @ response @ interpolation_matrix(response.shape[1], width).T


def likeliest(maps: np.ndarray) -> np.ndarray:
    """The most probable class at each position, (height, width), of class maps (classes, height, width)."""
    return maps.argmax(0)


def exclusive(maps: np.ndarray) -> np.ndarray:
    """Class maps that are 0 wherever another class is the most probable.

    The boxes of Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3, hold such positions alone. Their threshold is
    absolute; here it is a fraction of the peak, which means the same for every network.
    """
    return np.where(np.arange(len(maps))[:, None, None] == likeliest(maps), maps, 0.0)


def box(response: np.ndarray, window: Window, threshold: float) -> list[float] | None:
    """The smallest box that holds all positions whose response exceeds the fraction `threshold` of the peak.

    Zhou et al. 2016, arXiv:1512.04150, section 3.2, use 0.2. A position is a rectangle of a grid over the `window`, as
    `images.window` gives it. None, no box, if no response exceeds 0; `threshold` is at least 0 and below 1.
    """
    above = response > threshold * response.max()
    if not above.any():
        return None
    rows, columns = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    first = _point(columns[0], rows[0], response, window)
    return [*first, *_point(columns[-1] + 1, rows[-1] + 1, response, window)]


def peak(response: np.ndarray, window: Window) -> list[float]:
    """The point [x, y], in pixels of the original picture, at the centre of the position with the largest response."""
    row, column = np.unravel_index(response.argmax(), response.shape)
    return _point(column + 0.5, row + 0.5, response, window)


def _point(column: float, row: float, response: np.ndarray, window: Window) -> list[float]:
    left, top, right, bottom = window
    height, width = response.shape
    return [float(left + column / width * (right - left)), float(top + row / height * (bottom - top))]


def iou(one: Box | None, other: Box | None) -> float:
    """The intersection of two boxes over their union; 0 if one of them is None."""
    if one is None or other is None:
        return 0.0
    width, height = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    intersection = width * height
    return intersection / (_area(one) + _area(other) - intersection)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def inside(point: Sequence[float], box: Box) -> bool:
    """Whether a point [x, y] is in a box; one on its right or bottom edge is not."""
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def scores(
    localisations: Sequence[Localisation], truths: Sequence[Sequence[Box]], threshold: float, known: bool = False
) -> dict[str, float]:
    """How good boxes are: a dictionary of

    - "localisation_error": the fraction of pictures whose box has an intersection over union of at most 0.5 with every true
      box;
    - "mean_iou": the mean over the pictures of the largest intersection over union with a true box;
    - "pointing_accuracy": the fraction whose peak is in a true box, whatever the threshold and the likeliest class;
    - if the class that was looked for is `known` to be right, "top1_classification_error", "top5_…", the fractions where it is
      not the likeliest or among the five, and "top1_localisation_error", "top5_…", where it is not or its box is wrong.

    `truths` is a list of boxes for each picture.
    """
    overlaps = np.array([_overlap(one.box(threshold), boxes) for one, boxes in zip(localisations, truths, strict=True)])
    result = _scores(overlaps, [localisation.peak for localisation in localisations], truths)
    for count in (1, TOP) if known else ():
        missed = np.array([localisation.target not in localisation.top[:count] for localisation in localisations])
        result[f"top{count}_classification_error"] = float(np.mean(missed))
        result[f"top{count}_localisation_error"] = float(np.mean(missed | (overlaps <= OVERLAP)))
    return result


def whole_picture_scores(sizes: Sequence[Sequence[int]], truths: Sequence[Sequence[Box]]) -> dict[str, float]:
    """The scores of a box that is always the whole picture, and of its centre; `sizes` are the pictures' (width, height)."""
    overlaps = np.array([_overlap([0, 0, *size], boxes) for size, boxes in zip(sizes, truths, strict=True)])
    return _scores(overlaps, [[width / 2, height / 2] for width, height in sizes], truths)


def _scores(
    overlaps: np.ndarray, points: Sequence[Sequence[float] | None], truths: Sequence[Sequence[Box]]
) -> dict[str, float]:
    hits = [point is not None and any(inside(point, box) for box in t) for point, t in zip(points, truths, strict=True)]
    return {
        "localisation_error": float(np.mean(overlaps <= OVERLAP)),
        "mean_iou": float(overlaps.mean()),
        "pointing_accuracy": float(np.mean(hits)),
    }


def _overlap(box: Box | None, boxes: Sequence[Box]) -> float:
    return max(iou(box, other) for other in boxes)
