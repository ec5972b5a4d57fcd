"""How well a network classifies pixels: one confusion matrix in whole numbers, at the resolution of the masks.

Pictures are resized or padded as `logits` says, never the masks. Sizes are (height, width).
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shared import images, masks, networks
from shared.checks import Error
from shared.data import Data, Images, Labelled
from shared.files import atomic_path, write_text
from shared.folders import Pictures
from shared.interpolation import interpolation_matrix
from shared.spec import Spec

from . import datasets, pairs, plots
from .backends import Engine
from .loading import Loader
from .pairs import Reader
from .predict import check_finite

ENDINGS = ("_overlay.png", "_colours.png", "_classes.png")  # of the files for a picture
SHOWN = 3  # best pictures on the sheet, and as many worst
PIXELS = 2_000_000  # at most in a batch, unless a picture has more
BAND = 3  # pixels on either side of an edge


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many pixels of each class, a row each, are taken for which: int64 (classes, classes). `VOID` does not count."""
    counts = truth != masks.VOID
    numbers = truth[counts].astype(np.int64) * classes + predicted[counts]
    return np.bincount(numbers, minlength=classes * classes).reshape(classes, classes)


def boundary(truth: np.ndarray, width: int = BAND) -> np.ndarray:
    """The pixels of a mask (height, width) within `width` pixels of an edge between two of its classes, as booleans.

    An edge is between pixels side by side or one above the other that both count and differ in class; where `VOID` begins there
    is none, since what lies there is not known. The pixels next to it, on both sides, are the first of the band; a step to any
    of the eight neighbours is a pixel more. Kohli, Ladicky, Torr 2009, "Robust higher order potentials for enforcing label
    consistency", score such bands.
    """
    near = np.zeros(truth.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        edge = (truth[first] != truth[second]) & (truth[first] != masks.VOID) & (truth[second] != masks.VOID)
        near[first] |= edge
        near[second] |= edge
    for _ in range(width - 1):
        for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
            before = near.copy()
            near[first] |= before[second]
            near[second] |= before[first]
    return near


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
    """Maps (…, height, width) at another size, bilinearly, by half-pixel centres, in float64; as they are if they have it."""
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
    return engine.predict(padded)[:, :, :height, :width]


def logits(
    engines: Sequence[Engine], spec: Spec, pixels: np.ndarray, scales: Sequence[float] = (1,), flip: bool = False
) -> list[np.ndarray]:
    """The logits (classes, height, width) of each engine for a picture, bytes (height, width, channels), at its own size.

    At each of the `scales`, the picture is resized, bicubically and to sides rounded down; the logits are resized to its own
    size by `resized`, and averaged. With `flip` those of the mirrored picture, mirrored back, count too. The average of
    logits has the same maximum as that of log-probabilities, which the DRN authors' test at several scales adds up.
    Raises `Error` for logits that are not finite.
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
    return [check_finite(engine, total / (len(scales) * (1 + flip))) for engine, total in zip(engines, sums, strict=True)]


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
    sizes: list[tuple[int, ...]]  # of the pictures, each once
    same: int  # pixels that count and that all engines say the same of
    at_edges: list[np.ndarray]  # the matrices of the pixels in the `boundary` alone


def measure(
    engines: Sequence[Engine], x: Images, y: np.ndarray, reader: Reader, scales: Sequence[float] = (1,), flip: bool = False,
    advance: Callable[[int], None] = lambda count: None, loader: Loader | None = None,
) -> Measured:  # fmt: skip
    """What engines reach on pictures and masks, one by one, by the `logits`. Raises `Error` if none can be read."""
    classes = networks.outputs(reader.spec) or 0
    empty, at_edges = ([np.zeros((classes, classes), np.int64) for _ in engines] for _ in range(2))
    found = Measured(empty, [], [], [], 0, at_edges)
    for read in pairs.plain(x, y, reader, loader or Loader()):
        for place, pixels, mask in zip(read.places, read.pixels, read.masks, strict=True):
            predicted = [maps.argmax(0) for maps in logits(engines, reader.spec, pixels, scales, flip)]
            matrices = [confusion(mask, each, classes) for each in predicted]
            near = np.where(boundary(mask), mask, masks.VOID)
            for number, each in enumerate(predicted):
                found.matrices[number][:] += matrices[number]
                found.at_edges[number][:] += confusion(near, each, classes)
            found.places.append(place)
            if mask.shape not in found.sizes:
                found.sizes.append(mask.shape)
            found.of_pictures.append(scores(matrices[0]).miou)
            same = agreement(predicted) & (mask != masks.VOID)
            found = found._replace(same=found.same + int(same.sum()))
        advance(1)
    if not found.places:
        raise Error("none of the pictures can be read")
    return found


def agreement(predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Where all engines have the same class: booleans of the shape of their predictions."""
    same: np.ndarray = np.all([each == predicted[0] for each in predicted], axis=0)
    return same


def sizes(spec: Spec, of_pictures: Sequence[Sequence[int]], scales: Sequence[float] = (1,), flip: bool = False) -> list[str]:
    """What `logits` does to sizes, for pictures of these (height, width), in words."""
    step, lines = pairs.stride(spec), []
    if [*scales] == [1]:
        lines.append("Pictures and masks keep their size.")
    else:
        named = ", ".join(f"{scale:g}" for scale in scales)
        lines.append(f"Pictures resized by {named} (bicubic).")
        lines.append("Logits resized to the mask's size (bilinear, half-pixel centres) and averaged.")
    scaled = {int(side * scale) if scale != 1 else side for shape in of_pictures for side in shape for scale in scales}
    if any(side % step for side in scaled):
        lines.append(f"Padded to multiples of {step} at the bottom and on the right (mean colour), logits cropped back.")
    if flip:
        lines.append("Averaged with the logits of the mirrored pictures.")
    return lines


def open_picture(spec: Spec, path: str | Path, scales: Sequence[float] = (1,)) -> Image.Image:
    """The picture in an image file. Raises `Error` if it is not a picture, or too large for the network or the memory."""
    picture = images.open_picture(path)
    try:
        check_memory(spec, [(picture.height, picture.width)], scales)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    return picture


def check_memory(spec: Spec, of_pictures: Iterable[tuple[int, int]], scales: Sequence[float]) -> None:
    """Raise `Error` unless the network's maps for pictures of these (height, width), at all `scales`, fit into memory."""
    largest = max(1, *scales)
    pairs.check_memory(spec, {(int(height * largest), int(width * largest)) for height, width in of_pictures})


def segment(
    engines: Sequence[Engine], spec: Spec, picture: Image.Image, scales: Sequence[float] = (1,), flip: bool = False
) -> list[np.ndarray]:
    """The numbers of the classes of a picture's pixels by each engine: bytes (height, width)."""
    pixels = np.atleast_3d(np.asarray(images.in_mode(picture, images.MODES[spec["input"][0]])))
    return [maps.argmax(0).astype(np.uint8) for maps in logits(engines, spec, pixels, scales, flip)]


def shares(numbers: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of a picture's pixels, the commonest first: {"class": its number, "name", "fraction" of the pixels}."""
    counts = np.bincount(numbers.ravel(), minlength=len(names))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    return [{"class": n, "name": names[n], "fraction": int(counts[n]) / numbers.size} for n in order]


def coloured(numbers: np.ndarray, colours: Sequence[masks.Colour]) -> np.ndarray:
    """Classes of pixels as colours, (height, width, 3): black where they are `VOID`."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[numbers]


def write_pictures(stem: Path, picture: Image.Image, numbers: np.ndarray, colours: Sequence[masks.Colour]) -> list[Path]:
    """Write STEM_overlay.png, STEM_colours.png and STEM_classes.png, a mask of numbers; returns their paths."""
    painted = coloured(numbers, colours)
    overlay = ((np.asarray(picture, np.uint16) + painted) // 2).astype(np.uint8)
    paths = []
    for ending, pixels in zip(ENDINGS, (overlay, painted, numbers), strict=True):
        paths.append(stem.with_name(stem.name + ending))
        with atomic_path(paths[-1]) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    return paths


def write_report(
    folder: Path, found: Measured, engines: Sequence[Engine], x: Images, y: np.ndarray, reader: Reader, names: Sequence[str],
    colours: Sequence[masks.Colour], scales: Sequence[float] = (1,), flip: bool = False,
) -> list[Path]:  # fmt: skip
    """Write confusion.csv, and sheet.png with the best and worst pictures by mIoU; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "confusion.csv"]
    lines = [["class", *names], *([name, *row] for name, row in zip(names, found.matrices[0].tolist(), strict=True))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(paths[0], text.getvalue())
    scored = [(miou, place) for miou, place in zip(found.of_pictures, found.places, strict=True) if miou is not None]
    ranked = sorted(scored, key=lambda each: (-each[0], each[1]))
    shown = ranked[:SHOWN] + ranked[max(SHOWN, len(ranked) - SHOWN) :]
    if shown:
        paths.append(folder / "sheet.png")
        rows = []
        for miou, place in shown:
            read = pairs.read_plain(x[place : place + 1], y[place : place + 1], reader, skip=False)
            (pixels,), (mask,) = read.pixels, read.masks
            predicted = logits(engines[:1], reader.spec, pixels, scales, flip)[0].argmax(0)
            name = Path(x.names[place]).name if isinstance(x, Pictures) else f"image {place}"
            title = f"{name}, mIoU {miou:.1%}"
            rows.append({title: pixels, "mask": coloured(mask, colours), "prediction": coloured(predicted, colours)})
        plots.draw_segmentations(rows, dict(zip(names, colours, strict=False)), paths[-1])
    return paths


def load_test(
    name: str, spec: Spec, holdout: float | None = None, ignore: int = masks.VOID, scales: Sequence[float] = (1,),
    skip: bool = False,
) -> Labelled:  # fmt: skip
    """The pictures and masks of a data set to measure a network on. Raises `Error` if they do not fit it.

    With `skip`, files that cannot be read are left for later.
    """
    test = datasets.load_masked_test(name, holdout, ignore, networks.class_names(spec))
    own = networks.outputs(spec)
    if test.classes and len(test.classes) != own:
        raise Error(f"{name}: has {len(test.classes)} classes, {spec['name']} has {own}")
    if isinstance(test.x, np.ndarray) and test.x.shape[3] != spec["input"][0]:
        raise Error(f"{name}: its images have {test.x.shape[3]} channels, {spec['name']} takes {spec['input'][0]}")
    largest = test.y[test.y != masks.VOID].max(initial=0) if isinstance(test.x, np.ndarray) else 0
    if own and largest >= own:
        raise Error(f"{name}: its masks have the class {largest}, {spec['name']} has {own}: 0 to {own - 1}")
    check_memory(spec, pairs.picture_sizes(test.x, test.y, skip), scales)
    return test


def names_of(spec: Spec, classes: Sequence[str] | None = None) -> list[str]:
    """Names for the classes of a network: its own, those of the data, or numbers."""
    return networks.class_names(spec) or [*(classes or map(str, range(networks.outputs(spec) or 0)))]


def colours_of(names: Sequence[str], coding: masks.Coding | None = None) -> Sequence[masks.Colour]:
    """Colours for classes: those of the data set, or `masks.palette`."""
    return (coding and coding.colours) or masks.palette(names)


def summary(
    found: Measured, frameworks: Sequence[str], names: Sequence[str], spec: Spec, scales: Sequence[float], flip: bool
) -> dict[str, Any]:
    """What is measured, where each engine's framework has a name: a dictionary of

    - "pictures", "pixels": how many count; "sizes": what happens to sizes, in words; "scales" and "flip";
    - "miou", "pixel_accuracy": by framework; None if no pixel counts;
    - "boundary_miou": by framework, of the pixels in the `boundary` alone, "boundary_pixels" of them;
    - of several engines, "same": how many of these pixels have the same class in all;
    - "classes": by the first engine, "class", its number, "name", "pixels" in the masks, "iou", None if it is left out;
    - "left_out": names of classes that are neither in masks nor predicted; "confusion": rows are the masks' classes.
    """
    every = [scores(matrix) for matrix in found.matrices]
    pixels = found.matrices[0].sum(1)
    result: dict[str, Any] = {"pictures": len(found.places), "pixels": int(pixels.sum())}
    result |= {"sizes": sizes(spec, found.sizes, scales, flip), "scales": [*scales], "flip": flip}
    result["miou"] = dict(zip(frameworks, (each.miou for each in every), strict=True))
    result["pixel_accuracy"] = dict(zip(frameworks, (each.pixel_accuracy for each in every), strict=True))
    result["boundary_miou"] = dict(zip(frameworks, (scores(matrix).miou for matrix in found.at_edges), strict=True))
    result["boundary_pixels"] = int(found.at_edges[0].sum())
    if len(every) > 1:
        result["same"] = found.same
    result["classes"] = [
        {"class": number, "name": name, "pixels": int(pixels[number]), "iou": every[0].iou[number]}
        for number, name in enumerate(names)
    ]
    result["left_out"] = [row["name"] for row in result["classes"] if row["iou"] is None]
    return result | {"confusion": found.matrices[0].tolist()}
