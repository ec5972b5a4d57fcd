"""What networks with trained weights see: the classes of pictures, and their accuracy on a data set.

Both functions take engines that hold the same network, one or two of them; where they give a list, it has one entry an engine.
"""

import re

import numpy as np

from . import data as datasets
from . import shapes
from .compare import relative
from .spec import CLASSES, Error

SHOWN = 5  # classes of a picture


def classes(spec):
    """The names of the network's classes, or None where the spec has no list; ImageNet's without their numbers in WordNet."""
    if "classes" not in spec:
        return None
    lines = (CLASSES / f"{spec['classes']}.txt").read_text(encoding="utf-8").splitlines()
    return [re.sub(r"^n\d{8} ", "", line) for line in lines]


def check(spec, data=None):
    """Raise `Error` unless the network classifies pictures, and the data set, if given, has its channels and classes."""
    shape, channels = shapes.layers(spec)[-1].shape, spec["input"][0]
    if len(shape) > 1:
        raise Error(f"{spec['name']} ends in a map of {'x'.join(map(str, shape))}, not in a vector with a number a class")
    if channels not in datasets.MODES:
        raise Error(f"{spec['name']} takes {channels} channels, pictures have 1 or 3")
    if data is not None:
        datasets.check(data.x_test, data.y_test, spec)


def engines(packages, spec, state):
    """The network with the weights of a state in each of the packages, `torch_impl` and `keras_impl`, ready to predict."""
    found = []
    for package in packages:
        net = package.build(spec)
        package.load(net, state)
        found.append(package.Engine(net))
    return found


def pictures(engines, spec, paths, seen=lambda count: None):
    """What the engines see in image files: for each path, in order, a dictionary of

    - "image": the path;
    - "top": the five likeliest classes of either engine, each with its number as "class", "name" and "probabilities";
    - of two engines, "same_top": whether they have the same five in the same order;
    - of two engines, "difference": how far apart their logits are, ||a - b|| / ||a||;

    or of "image" and "error" for a file that cannot be read. `seen` hears how many more files are done.
    """
    found, waiting, names = [], {}, classes(spec)
    for path in paths:
        found.append({"image": str(path)})
        try:
            _, image = read(path, spec)
        except Error as error:
            found[-1]["error"] = str(error)
            seen(1)
            continue
        batch = waiting.setdefault(image.shape, [])
        batch.append((found[-1], image))
        if len(batch) == batch_size(spec):
            _classify(engines, waiting.pop(image.shape), names, seen)
    for batch in waiting.values():
        _classify(engines, batch, names, seen)
    return found


def accuracy(engines, spec, images, labels, seen=lambda count: None):
    """The share of images (count, height, width, channels) that each engine classifies right, as a dictionary of

    "tested" (their count), "accuracy" and, of more than one engine, "same_predictions" (their count). `seen` hears how many
    more images are done.
    """
    predictions = [[] for _ in engines]
    size = batch_size(spec)
    for start in range(0, len(images), size):
        batch = datasets.preprocess(images[start : start + size], spec)
        for found, logits in zip(predictions, _logits(engines, batch), strict=True):
            found.extend(logits.argmax(1))
        seen(len(batch))
    found = {"tested": len(images), "accuracy": [float(np.mean(p == labels)) for p in predictions]}
    if len(engines) > 1:
        found["same_predictions"] = int(np.sum(np.equal(*predictions)))
    return found


def batch_size(spec):
    """Images to a batch: enough that the calls cost little, few enough that the maps of a large network stay small."""
    cost = sum(row.macs for row in shapes.layers(spec))
    return int(np.clip(3e10 // max(cost, 1), 2, 100))


def read(path, spec):
    """(picture, batch) of an image file: its pixels as `shared.data.picture` gives them, and as the network takes them.

    Raises `Error` for a file that is no image, and for one of a shape that the network does not take.
    """
    picture = datasets.picture(path)
    image = datasets.preprocess([picture], spec)
    try:
        shapes.layers(spec, image.shape[2:])  # without a crop an image may have such a shape
    except Error as error:
        raise Error(f"{path}: {error}") from None
    return picture, image


def _classify(engines, batch, names, seen):
    logits = _logits(engines, np.concatenate([image for _, image in batch]))
    for (found, _), *scores in zip(batch, *logits, strict=True):
        orders = [np.argsort(-row, kind="stable")[:SHOWN].tolist() for row in scores]
        chances = [softmax(row) for row in scores]
        found["top"] = [
            {"class": number, "name": names and names[number], "probabilities": [float(chance[number]) for chance in chances]}
            for number in dict.fromkeys(sum(orders, []))
        ]
        if len(engines) > 1:
            found |= {"same_top": orders[0] == orders[1], "difference": relative(*scores)}
    seen(len(batch))


def _logits(engines, batch):
    return [finite(engine, engine.predict(batch)) for engine in engines]


def finite(engine, logits):
    """The logits. Raises `Error` where one is no finite number."""
    if not np.isfinite(logits).all():
        raise Error(f"{engine.framework} gives logits that are no finite numbers: these weights cannot be used")
    return logits


def softmax(logits):
    """The probabilities of logits, a vector."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
