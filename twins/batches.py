"""Data sets in memory, and the batches that training takes from them: pure functions of the seed and the step.

A data set has uint8 images (count, height, width, channels) and whole-number labels. A batch is ready for a network:
(count, channels, height, width). Steps count from 0.
"""

import functools
from typing import NamedTuple

import numpy as np

from shared import images, mixup, recipes, shapes
from shared.checks import Error
from shared.mixup import Labels
from shared.recipes import Recipe
from shared.spec import Spec


class Data(NamedTuple):
    """Images and labels for training and for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def check_fits(x: np.ndarray, y: np.ndarray, spec: Spec) -> None:
    """Raise `Error` unless the images have the network's channels and the labels are among its classes."""
    words, channels, classes = {1: "grey", 3: "colour"}, spec["input"][0], shapes.layers(spec)[-1].shape[0]
    if x.shape[3] != channels:
        expected = words.get(channels, f"images of {channels} channels")
        raise Error(f"its images are {words[x.shape[3]]}, {spec['name']} takes {expected}")
    if y.max() >= classes:
        raise Error(f"its labels go up to {y.max()}, {spec['name']} has {classes} classes, counted from 0")


def of_classes(data: Data, recipe: Recipe) -> Data:
    """The images of the recipe's classes, which are lists of labels, labelled by the numbers of these classes.

    Raises `Error` where a label has no images, or nothing is left to train or to test on.
    """
    number = {label: new for new, group in enumerate(recipe["classes"]) for label in group}
    known = np.union1d(data.y_train, data.y_test)
    missing = sorted(set(number) - set(known.tolist()))
    if missing:
        raise Error(f"'classes': {recipe['data']} has no images of label {missing[0]}; its labels go up to {known.max()}")
    table = np.full(known.max() + 1, -1)  # -1: no class
    table[list(number)] = list(number.values())
    train, test = (np.flatnonzero(table[labels] >= 0) for labels in (data.y_train, data.y_test))
    if not len(train) or not len(test):
        raise Error(f"'classes': {recipe['data']} has no images of them to {'train' if not len(train) else 'test'} on")
    return Data(data.x_train[train], table[data.y_train[train]], data.x_test[test], table[data.y_test[test]])


def balanced(recipe: Recipe, data: Data, spec: Spec) -> Recipe:
    """The recipe with numbers for class weights that are "balanced": images / (classes x images of the class).

    As scikit-learn's `compute_class_weight`. Raises `Error` for a class without images to train on.
    """
    if recipe.get("class_weights") != recipes.BALANCED:
        return recipe
    classes = shapes.layers(spec)[-1].shape[0]
    counts = np.bincount(data.y_train, minlength=classes)
    if not counts.all():
        raise Error(f"'class_weights': {recipe['data']} has no images of class {counts.argmin()} to train on")
    return recipe | {"class_weights": (len(data.y_train) / (classes * counts)).tolist()}


def steps_per_epoch(recipe: Recipe, data: Data) -> int:
    """The steps in an epoch, of whole batches."""
    return len(data.x_train) // recipes.images_per_step(recipe)


def batch(recipe: Recipe, spec: Spec, data: Data, step: int) -> tuple[np.ndarray, Labels]:
    """(images, labels) of a training step: images as the network takes them, augmented."""
    chosen = indices(len(data.x_train), recipes.images_per_step(recipe), step, recipe["seed"])
    pixels, labels = images.pixels(data.x_train[chosen], spec), data.y_train[chosen]
    geometry = {key: value for key, value in recipe["augmentation"].items() if key != "mixup"}
    if geometry:
        pixels = augment(pixels, recipe["seed"], step, **geometry)
    ready = images.normalise(pixels, spec, dtype(recipe))
    if "mixup" in recipe["augmentation"]:
        return mixup.mixed(ready, labels, recipe["augmentation"]["mixup"], recipe["seed"], step)
    return ready, labels


def dtype(recipe: Recipe) -> str:
    """The precision of the images: in mixed precision the network turns float32 into bfloat16 itself."""
    return "float64" if recipe["precision"] == "float64" else "float32"


def indices(count: int, size: int, step: int, seed: int = 0) -> np.ndarray:
    """The indices of the images of a training step: epochs of whole batches, each epoch in an order of its own.

    A pure function of its arguments, so that a resumed run sees what an uninterrupted one would have seen. Of `count`
    images, those that do not fill a batch of `size` wait for another epoch.
    """
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    return _order(count, seed, epoch)[place * size : (place + 1) * size]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False  # shared by all steps of an epoch
    return order


def augment(pixels: np.ndarray, seed: int, step: int, pad: int = 0, flip: bool = False) -> np.ndarray:
    """Images (count, height, width, channels) as a training step sees them: a pure function of its arguments.

    Each is framed by `pad` black pixels and a window of its own size is cut out at random; with `flip`, half of them are
    mirrored: He et al. 2015, section 4.2.
    """
    generator = np.random.default_rng([seed, step, 1])  # the third number sets it apart from the order of an epoch
    count, height, width, _ = pixels.shape
    places = generator.integers(2 * pad + 1, size=(count, 2))
    mirrored = np.less(generator.random(count), 0.5)
    framed = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    augmented = np.empty_like(pixels)
    for i, (top, left) in enumerate(places):
        window = framed[i, top : top + height, left : left + width]
        augmented[i] = window[:, ::-1] if flip and mirrored[i] else window
    return augmented
