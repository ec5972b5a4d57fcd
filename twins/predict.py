"""What networks with trained weights predict: the classes of pictures, and their accuracy on a data set.

Functions take engines that hold the same network, one or more; where they return a list, it has one entry an engine.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared import images, networks, shapes
from shared.checks import Error
from shared.data import Images, Labelled
from shared.spec import Spec

from . import datasets
from .backends import Engine
from .batches import check_fits, check_one_size, mapped, read_plain
from .ladder import farthest
from .loading import Loader

TOP = 5  # classes of a picture that are shown

Advance = Callable[[int], None]  # called with how many more images are done


def check_classifies(spec: Spec) -> None:
    """Raise `Error` unless the network classifies pictures."""
    shape, channels = shapes.layers(spec)[-1].shape, spec["input"][0]
    if len(shape) > 1:
        raise Error(f"{spec['name']} ends in a map of {shapes.text(shape)}, not in a vector with one number per class")
    if channels not in images.MODES:
        raise Error(f"{spec['name']} takes {channels} channels, pictures have 1 or 3")


def labelled_images(name: str, spec: Spec, holdout: float | None = None) -> Labelled:
    """The images of a data set to test a network on, as `datasets.load_test` gives them, labelled by the network's classes.

    The classes of a folder are those of the network that have their names, or if none has, the network's in the order of their
    names. Raises `Error` if only some have, and if the images or their labels do not fit the network.
    """
    test = datasets.load_test(name, holdout)
    try:
        if test.classes:
            test = test._replace(y=_numbers(test.classes, spec)[test.y])
        check_fits(test.x, test.y, spec)
        check_one_size(test.x, spec)
    except Error as error:
        raise Error(f"{name}: {error}") from None
    return test


def _numbers(classes: list[str], spec: Spec) -> np.ndarray:
    """The number in a network of each class of a folder."""
    known = networks.class_numbers(spec)
    numbers = [known.get(networks.class_key(name)) for name in classes]
    if None not in numbers and len({*numbers}) == len(classes):
        return np.array(numbers)
    outputs = shapes.layers(spec)[-1].shape[0]
    if len(classes) == outputs and not any(number is not None for number in numbers):
        return np.arange(outputs)
    unknown = next(name for name, number in zip(classes, numbers, strict=True) if number is None or numbers.count(number) > 1)
    raise Error(f"has {len(classes):,} classes, {spec['name']} has {outputs:,}, none of which is called {unknown!r}")


def batched_logits(
    engines: Sequence[Engine], spec: Spec, x: Images, dtype: str = "float32", loader: Loader | None = None
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(indices in `x`, logits of each engine) of images, batch by batch, read ahead by the loader if they are files.

    Each of several processes takes its share of the batches. Images that cannot be read are left out, if the loader skips
    those; otherwise raises `Error`.
    """
    size, loader = batch_size(spec), loader or Loader()
    starts = range(engines[0].rank * size, len(x), engines[0].processes * size)
    reads = mapped(loader, x, read_plain, ((x[start : start + size], spec, loader.skip) for start in starts))
    for start, read in zip(starts, reads, strict=True):
        loader.note(read.errors)
        if read.places:
            batch = images.normalise(read.pixels, spec, dtype)
            yield start + np.array(read.places), [engine.predict(batch) for engine in engines]


def batch_size(spec: Spec) -> int:
    """Images per batch: enough that calls cost little, few enough that the maps of a large network stay small."""
    cost = sum(row.macs for row in shapes.layers(spec))
    return int(np.clip(3e10 // max(cost, 1), 2, 100))


class Evaluation(NamedTuple):
    """What engines predict for images with labels."""

    places: np.ndarray  # of the images that were read, in what was given
    labels: np.ndarray
    top: list[np.ndarray]  # of each engine, the likeliest classes of each image, the likeliest first: (count, at most 5)
    probabilities: list[np.ndarray]  # of each engine, that of the likeliest class of each image

    def correct(self, count: int) -> list[float]:
        """The fraction of images whose label is among the `count` likeliest classes of each engine."""
        return [float(np.mean((top[:, :count] == self.labels[:, None]).any(1))) for top in self.top]

    def summary(self, frameworks: Sequence[str]) -> dict[str, Any]:
        """How many images are classified as their labels say, where each engine's framework has a name: a dictionary of

        - "tested": their count;
        - "top1", "top5": by framework, the fraction whose label is the likeliest class, or among the five likeliest;
        - of several engines, "same_predictions": how many images have the same likeliest class in all.
        """
        result: dict[str, Any] = {"tested": len(self.labels)}
        result |= {f"top{n}": dict(zip(frameworks, self.correct(n), strict=True)) for n in (1, TOP)}
        if len(self.top) > 1:
            first, *others = (top[:, 0] for top in self.top)
            result["same_predictions"] = int(np.all([first == other for other in others], axis=0).sum())
        return result


def evaluate(
    engines: Sequence[Engine],
    spec: Spec,
    x: Images,
    y: np.ndarray,
    advance: Advance = lambda count: None,
    loader: Loader | None = None,
) -> Evaluation:
    """What the engines predict for the images `x`, whose labels are `y`, read as by `batched_logits`.

    Raises `Error` for logits that are not finite, and if no image can be read.
    """
    places: list[np.ndarray] = []
    top: list[list[np.ndarray]] = [[] for _ in engines]
    likeliest: list[list[np.ndarray]] = [[] for _ in engines]
    for chosen, logits in batched_logits(engines, spec, x, loader=loader):
        places.append(chosen)
        for engine, classes, values, rows in zip(engines, top, likeliest, logits, strict=True):
            order = np.argsort(-check_finite(engine, rows), 1, kind="stable")[:, :TOP]
            classes.append(order)
            values.append(1 / np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True)).sum(1))
        advance(len(chosen))
    if not places:
        raise Error("none of the images can be read")
    where = np.concatenate(places)
    return Evaluation(where, y[where], [np.concatenate(c) for c in top], [np.concatenate(v) for v in likeliest])


def classify_pictures(
    engines: Sequence[Engine], spec: Spec, paths: Sequence[Path], advance: Advance = lambda count: None
) -> list[dict[str, Any]]:
    """The likeliest classes of image files: for each path, in order, a dictionary of

    - "image": the path;
    - "top": the five likeliest classes of any engine, each with its number as "class", "name" and "probabilities";
    - of several engines, "same_top": whether they have the same five in the same order;
    - of several engines, "difference": how far logits are from the first's at most, ||a - b|| / ||a||;

    or of "image" and "error" for a file that cannot be read. Raises `Error` for logits that are not finite.
    """
    results: list[dict[str, Any]] = []
    waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], np.ndarray]]] = {}  # images of one shape make a batch
    names = networks.class_names(spec)
    for path in paths:
        results.append({"image": str(path)})
        try:
            _, image = read_image(path, spec)
        except Error as error:
            results[-1]["error"] = str(error)
            advance(1)
            continue
        batch = waiting.setdefault(image.shape, [])
        batch.append((results[-1], image))
        if len(batch) == batch_size(spec):
            _classify(engines, waiting.pop(image.shape), names, advance)
    for batch in waiting.values():
        _classify(engines, batch, names, advance)
    return results


def read_image(path: Path, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """(picture, batch) of an image file: its pixels as `images.read_picture` reads them, and as the network takes them.

    Raises `Error` for a file that is not an image, and for one of a shape that the network does not take.
    """
    picture = images.read_picture(path)
    try:
        batch = images.preprocess([picture], spec)
        # Without a crop an image may be too small, or too large.
        shapes.check_fits_memory(shapes.layers(spec, batch.shape[2:]), batch.shape[2:])
    except Error as error:
        raise Error(f"{path}: {error}") from None
    return picture, batch


def _classify(
    engines: Sequence[Engine], batch: list[tuple[dict[str, Any], np.ndarray]], names: list[str] | None, advance: Advance
) -> None:
    """Add what the engines predict to the result of each image."""
    pixels = np.concatenate([image for _, image in batch])
    logits = [check_finite(engine, engine.predict(pixels)) for engine in engines]
    for (result, _), *scores in zip(batch, *logits, strict=True):
        orders = [np.argsort(-row, kind="stable")[:TOP].tolist() for row in scores]
        probabilities = [softmax(row) for row in scores]
        result["top"] = [
            {"class": number, "name": names and names[number], "probabilities": [float(p[number]) for p in probabilities]}
            for number in dict.fromkeys(sum(orders, []))
        ]
        if len(engines) > 1:
            same = all(order == orders[0] for order in orders)
            result |= {"same_top": same, "difference": farthest(scores[0], scores[1:])[0]}
    advance(len(batch))


def check_finite(engine: Engine, logits: np.ndarray) -> np.ndarray:
    """The logits. Raises `Error` if one is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise Error(f"{engine.framework}: non-finite logits: these weights cannot be used")
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities of logits, a vector."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
