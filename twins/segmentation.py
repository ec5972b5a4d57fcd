"""How well a network classifies pixels: one confusion matrix in whole numbers, at the resolution of the masks.

Pictures are resized or padded as `logits` says, never the masks. Sizes are (height, width).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shared import images, masks, networks
from shared.data import Data, Images
from shared.interpolation import interpolation_matrix
from shared.spec import Spec

from . import pairs
from .backends import Engine
from .loading import Loader
from .pairs import Reader
from .predict import check_finite

PIXELS = 2_000_000  # at most in a batch, unless a picture has more


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class, a row each, are taken for which: int64 (classes, classes). `VOID` does not count."""
    counts = truth != masks.VOID
    numbers = truth[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(numbers, minlength=classes * classes).reshape(classes, classes)


class Scores(NamedTuple):
    """What a confusion matrix says. None is for what no pixel counts for."""

    miou: float | None  # mean of the classes' IoU, of those that are in the masks or predicted
    pixel_accuracy: float | None
    iou: list[float | None]  # by class: pixels in both mask and prediction / pixels in either


def scores(matrix: np.ndarray) -> Scores:
    """The scores of a confusion matrix, as the DRN authors' code: a class in neither masks nor predictions is left out."""
    both, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    iou = [int(one) / int(all_) if all_ else None for one, all_ in zip(both, either, strict=True)]
    known = [each for each in iou if each is not None]
    total = int(matrix.sum())
    return Scores(sum(known) / len(known) if known else None, int(both.sum()) / total if total else None, iou)


def resized(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps (…, height, width) at another size, bilinearly, by half-pixel centres, in float64; as they are if it is their own."""
    if maps.shape[-2:] == (height, width):
        return maps
    rows, columns = interpolation_matrix(maps.shape[-2], height), interpolation_matrix(maps.shape[-1], width)
    return rows @ (maps @ columns.T)


def padded_logits(engine: Engine, spec: Spec, batch: np.ndarray) -> np.ndarray:
    """The logits of normalised pictures of any size, (batch, classes, height, width).

    For the network, zeros make the sides multiples of its stride, at the bottom and on the right; their logits are cut off.
    """
    height, width = batch.shape[2:]
    down, across = pairs.padded_size(spec, height, width)
    padded = np.pad(batch, ((0, 0), (0, 0), (0, down - height), (0, across - width)))
    return check_finite(engine, engine.predict(padded))[:, :, :height, :width]


def logits(
    engines: Sequence[Engine], spec: Spec, pixels: np.ndarray, scales: Sequence[float] = (1,), flip: bool = False
) -> list[np.ndarray]:
    """The logits (classes, height, width) of each engine for a picture, bytes (height, width, channels), at its own size.

    At each of the `scales`, the picture is resized, bicubically and to sides rounded down; the logits are resized to its own
    size by `resized`, and averaged. With `flip` those of the mirrored picture, mirrored back, count too. The average of
    logits has the same maximum as that of log-probabilities, which the DRN authors' test at several scales adds up.
    """
    height, width = pixels.shape[:2]
    sums: list[Any] = [0.0] * len(engines)
    for scale in scales:
        batch = images.normalise(_scaled(pixels, scale)[None], spec)
        for number, engine in enumerate(engines):
            maps = padded_logits(engine, spec, batch)[0]
            if flip:
                maps = maps + padded_logits(engine, spec, np.ascontiguousarray(batch[..., ::-1]))[0, ..., ::-1]
            sums[number] = sums[number] + resized(maps, height, width)
    return [total / (len(scales) * (1 + flip)) for total in sums]


def _scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return pixels
    height, width = (max(1, int(side * scale)) for side in pixels.shape[:2])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.atleast_3d(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)))


def evaluate(
    engine: Engine, spec: Spec, data: Data, dtype: str = "float32", loader: Loader | None = None
) -> tuple[float, np.ndarray]:
    """(mean cross-entropy of the pixels that count, without class weights or label smoothing; confusion matrix) of test images.

    Each of several processes takes its share, and has the sums of all.
    """
    assert data.coding
    classes = networks.outputs(spec) or 0
    matrix, losses = np.zeros((classes, classes), np.int64), 0.0
    reader = Reader(spec, data.coding)
    for pixels, of_pixels in _batches(data.x_test, data.y_test, reader, loader or Loader(), engine.rank, engine.processes):
        maps = padded_logits(engine, spec, images.normalise(pixels, spec, dtype))
        matrix += confusion(of_pixels, maps.argmax(1), classes)
        losses += cross_entropy(maps, of_pixels)
    total = engine.total(np.append(matrix.astype(np.float64).ravel(), losses))
    matrix = total[:-1].reshape(classes, classes).round().astype(np.int64)
    return float(total[-1]) / max(int(matrix.sum()), 1), matrix


def cross_entropy(maps: np.ndarray, of_pixels: np.ndarray) -> float:
    """The sum of the cross-entropy over the pixels that count, of logits (batch, classes, height, width), in float64."""
    counts = of_pixels != masks.VOID
    values = maps.transpose(0, 2, 3, 1)[counts].astype(np.float64)
    true = np.take_along_axis(values, of_pixels[counts][:, None].astype(np.int64), 1)[:, 0]
    largest = values.max(1, initial=-np.inf)
    return float((largest + np.log(np.exp(values - largest[:, None]).sum(1)) - true).sum())


def _batches(
    x: Images, y: np.ndarray, reader: Reader, loader: Loader, rank: int, processes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures and masks, those of one size that follow one another together."""
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for read in pairs.plain(x, y, reader, loader, rank, processes):
        for one in zip(read.pixels, read.masks, strict=True):
            if waiting and (waiting[0][1].shape != one[1].shape or (len(waiting) + 1) * one[1].size > PIXELS):
                yield np.stack([p for p, _ in waiting]), np.stack([m for _, m in waiting])
                waiting = []
            waiting.append(one)
    if waiting:
        yield np.stack([p for p, _ in waiting]), np.stack([m for _, m in waiting])


class Measured(NamedTuple):
    """What engines reach on pictures with masks."""

    matrices: list[np.ndarray]  # of each engine
    places: list[int]  # of the pictures that were read
    of_pictures: list[float | None]  # mIoU of each by the first engine
    same: int  # pixels that count and that all engines say the same of


def measure(
    engines: Sequence[Engine], x: Images, y: np.ndarray, reader: Reader, scales: Sequence[float] = (1,), flip: bool = False,
    advance: Callable[[int], None] = lambda count: None, loader: Loader | None = None,
) -> Measured:  # fmt: skip
    """What engines reach on pictures and masks, one by one, by the `logits`."""
    classes = networks.outputs(reader.spec) or 0
    found = Measured([np.zeros((classes, classes), np.int64) for _ in engines], [], [], 0)
    for read in pairs.plain(x, y, reader, loader or Loader()):
        for place, pixels, mask in zip(read.places, read.pixels, read.masks, strict=True):
            predicted = [maps.argmax(0) for maps in logits(engines, reader.spec, pixels, scales, flip)]
            matrices = [confusion(mask, each, classes) for each in predicted]
            for total, matrix in zip(found.matrices, matrices, strict=True):
                total += matrix
            found.places.append(place)
            found.of_pictures.append(scores(matrices[0]).miou)
            same = np.all([each == predicted[0] for each in predicted], axis=0) & (mask != masks.VOID)
            found = found._replace(same=found.same + int(same.sum()))
        advance(1)
    return found


def sizes(spec: Spec, shapes: Sequence[Sequence[int]], scales: Sequence[float] = (1,), flip: bool = False) -> list[str]:
    """What `logits` does to sizes, for pictures of these (height, width), in words."""
    step, lines = pairs.stride(spec), []
    if [*scales] == [1]:
        lines.append("Pictures and masks keep their size.")
    else:
        named = ", ".join(f"{scale:g}" for scale in scales)
        lines.append(f"Pictures resized by {named} (bicubic); logits resized to the mask's size (bilinear, half-pixel) and averaged.")
    scaled = {int(side * scale) if scale != 1 else side for shape in shapes for side in shape for scale in scales}
    if any(side % step for side in scaled):
        lines.append(f"Padded to multiples of {step} with the mean colour, at the bottom and on the right; those logits are cut off.")
    if flip:
        lines.append("Averaged with the logits of the mirrored pictures.")
    return [*lines, "Masks are never resized."] if lines[0].startswith("Pictures resized") else lines
