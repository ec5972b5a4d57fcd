"""What networks with trained weights predict: the classes of pictures, and their accuracy on a data set.

Functions take engines that hold the same network, one or two of them; where they return a list, it has one entry an engine.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import images, networks, shapes
from shared.checks import Error
from shared.spec import Spec

from .backends import Engine
from .batches import Data, check_fits
from .ladder import relative

TOP = 5  # classes of a picture that are shown

Advance = Callable[[int], None]  # called with how many more images are done


def check_classifies(spec: Spec, data: Data | None = None) -> None:
    """Raise `Error` unless the network classifies pictures, and the data set, if given, has its channels and classes."""
    shape, channels = shapes.layers(spec)[-1].shape, spec["input"][0]
    if len(shape) > 1:
        raise Error(f"{spec['name']} ends in a map of {shapes.text(shape)}, not in a vector with a number a class")
    if channels not in images.MODES:
        raise Error(f"{spec['name']} takes {channels} channels, pictures have 1 or 3")
    if data is not None:
        check_fits(data.x_test, data.y_test, spec)


def batched_logits(
    engines: Sequence[Engine], spec: Spec, x: np.ndarray, dtype: str = "float32"
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """(place in `x`, logits of each engine) of images (count, height, width, channels), batch by batch.

    Each of several processes takes its share of the batches.
    """
    size = batch_size(spec)
    for number, start in enumerate(range(0, len(x), size)):
        if number % engines[0].processes == engines[0].rank:
            batch = images.preprocess(x[start : start + size], spec, dtype)
            yield slice(start, start + len(batch)), [engine.predict(batch) for engine in engines]


def batch_size(spec: Spec) -> int:
    """Images in a batch: enough that the calls cost little, few enough that the maps of a large network stay small."""
    cost = sum(row.macs for row in shapes.layers(spec))
    return int(np.clip(3e10 // max(cost, 1), 2, 100))


def accuracy(
    engines: Sequence[Engine], spec: Spec, x: np.ndarray, y: np.ndarray, advance: Advance = lambda count: None
) -> dict[str, Any]:
    """How many of the images `x`, (count, height, width, channels), are classified as their labels `y` say: a dictionary of

    - "tested": their count;
    - "accuracy": the fraction that each engine classifies right;
    - of two engines, "same_predictions": how many images have the same class in both.

    Raises `Error` for logits that are not finite.
    """
    predictions: list[list[int]] = [[] for _ in engines]
    for place, logits in batched_logits(engines, spec, x):
        for engine, classes, rows in zip(engines, predictions, logits, strict=True):
            classes.extend(check_finite(engine, rows).argmax(1).tolist())
        advance(place.stop - place.start)
    result: dict[str, Any] = {"tested": len(x), "accuracy": [float(np.mean(p == y)) for p in predictions]}
    if len(engines) > 1:
        result["same_predictions"] = sum(one == other for one, other in zip(*predictions, strict=True))
    return result


def classify_pictures(
    engines: Sequence[Engine], spec: Spec, paths: Sequence[Path], advance: Advance = lambda count: None
) -> list[dict[str, Any]]:
    """The likeliest classes of image files: for each path, in order, a dictionary of

    - "image": the path;
    - "top": the five likeliest classes of either engine, each with its number as "class", "name" and "probabilities";
    - of two engines, "same_top": whether they have the same five in the same order;
    - of two engines, "difference": how far apart their logits are, ||a - b|| / ||a||;

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
            result |= {"same_top": orders[0] == orders[1], "difference": relative(*scores)}
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
