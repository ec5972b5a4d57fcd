"""The batches that training draws from a data set: pure functions of the seed and the step.

A batch is ready for a network: (count, channels, height, width). Steps count from 0.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared import images, mixup, recipes, shapes
from shared.checks import Error, RunError
from shared.data import Data, Images, Labelled
from shared.folders import Pictures
from shared.images import Picture
from shared.mixup import Labels
from shared.recipes import Recipe
from shared.spec import Spec

from . import augmentation
from .loading import Loader

PICTURES = {"crop", "jitter"}  # augmentations of a picture by itself, before or after it is resized; the others are of a batch


class Read(NamedTuple):
    """Images that have been read: bytes (count, height, width, channels), which they are, and what is wrong with others."""

    pixels: np.ndarray
    places: list[int]
    errors: list[str]


def check_fits(x: Images, y: np.ndarray, spec: Spec) -> None:
    """Raise `Error` unless the images have the network's channels and the labels are among its classes."""
    words, channels, classes = {1: "grey", 3: "colour"}, spec["input"][0], shapes.layers(spec)[-1].shape[0]
    if isinstance(x, np.ndarray) and x.shape[3] != channels:  # files become grey or colour
        expected = words.get(channels, f"images of {channels} channels")
        raise Error(f"its images are {words[x.shape[3]]}, {spec['name']} expects {expected}")
    if y.max() >= classes:
        raise Error(f"its labels go up to {y.max()}, {spec['name']} has {classes} classes, counted from 0")


def check_one_size(x: Images, spec: Spec) -> None:
    """Raise `Error` if the images do not all end up with one size, so that they cannot form a batch."""
    options = spec.get("preprocessing", {})
    if isinstance(x, Pictures) and "resize" in options and "crop" not in options:
        raise Error(f"pictures of different sizes need a 'crop' in the preprocessing of {spec['name']}")


def check_normalises(spec: Spec, size: Sequence[int], count: int, shares: int = 1, frozen: Iterable[str] = ()) -> None:
    """Raise `RunError` if a batch norm gets one value per channel, which PyTorch refuses and Keras accepts.

    `size` is (height, width) of the images, `count` how many make a batch, `shares` how many devices divide it among them, and
    `frozen` the names of layers that do not train.
    """
    prefixes = tuple(f"{name}." for name in frozen)
    for leaf in shapes.leaves(shapes.layers(spec, size)):
        values = count // shares * math.prod(leaf.shape[1:])
        if leaf.type == "batch_norm" and values < 2 and not f"{leaf.name}.".startswith(prefixes):
            where = f" on each of {shares} devices" if shares > 1 else ""
            raise RunError(
                f"{spec['name']}: batch norm {leaf.name!r} has one value per channel{where}, so no variance, with maps of "
                f"{shapes.text(leaf.shape[1:])} and a batch of {count}; expected a batch of at least {2 * shares}"
            )


def of_classes(data: Data, recipe: Recipe) -> Data:
    """The images of the recipe's classes, which are lists of labels, labelled by the numbers of these classes.

    Raises `Error` where a label has no images, or nothing is left to train or to test on.
    """
    number = {label: new for new, group in enumerate(recipe["classes"]) for label in group}
    parts = [(data.x_train, data.y_train), (data.x_test, data.y_test), *([data.unseen[:2]] if data.unseen else [])]
    known = np.unique(np.concatenate([labels for _, labels in parts]))
    missing = sorted(set(number) - set(known.tolist()))
    if missing:
        raise Error(f"'classes': {recipe['data']} has no images of label {missing[0]}; its labels go up to {known.max()}")
    table = np.full(known.max() + 1, -1)  # -1: no class
    table[list(number)] = list(number.values())
    places = [np.flatnonzero(table[labels] >= 0) for _, labels in parts]
    if not all(map(len, places)):
        raise Error(f"'classes': {recipe['data']} has no images of them to {'test' if len(places[0]) else 'train'} on")
    train, test, *unseen = ((x[of], table[labels[of]]) for (x, labels), of in zip(parts, places, strict=True))
    left = Labelled(*unseen[0]) if unseen else None
    return Data(*train, *test, None, data.tested_on, left, skipped=data.skipped)


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
    """(images, labels) of a training step: images as the network takes them, augmented. Raises `Error` as `stream`."""
    return next(stream(recipe, spec, data, step, Loader()))


def stream(
    recipe: Recipe, spec: Spec, data: Data, step: int, loader: Loader, rank: int = 0, processes: int = 1
) -> Iterator[tuple[np.ndarray, Labels]]:
    """The `batch` of a step and of all that follow, read ahead by the loader if the images are files.

    Of several processes, each gets its share, the images rank, rank + processes, … of the batch, and reads these alone, with
    mixup their partners too. In place of an image that cannot be read comes the next of the share that can be, if the loader
    skips such images; otherwise raises `Error`.
    """
    seed, changes = recipe["seed"], {key: value for key, value in recipe["augmentation"].items() if key != "mixup"}
    alpha = recipe["augmentation"].get("mixup")

    def wanted(number: int) -> tuple[np.ndarray, np.ndarray, tuple[float, np.ndarray] | None]:
        """(indices of the step's images, places in them of those to be read, share and partners among these)."""
        chosen = indices(len(data.x_train), recipes.images_per_step(recipe), number, seed)
        own = np.arange(rank, len(chosen), processes)
        if not alpha:
            return chosen, own, None
        share, partners = mixup.pairs(len(chosen), alpha, seed, number)
        places = np.concatenate([own, np.setdiff1d(partners[own], own)])
        return chosen, places, (share, np.argsort(places)[np.searchsorted(np.sort(places), partners[own])])

    def arguments() -> Iterator[tuple[Any, ...]]:
        for number in itertools.count(step):
            chosen, places, _ = wanted(number)
            yield data.x_train[chosen[places]], spec, changes, seed, number, loader.skip, places, len(chosen)

    for number, read in enumerate(mapped(loader, data.x_train, read_augmented, arguments()), start=step):
        loader.note(read.errors)
        chosen, places, pairs = wanted(number)
        x, labels = images.normalise(read.pixels, spec, dtype(recipe)), data.y_train[chosen[places[read.places]]]
        yield mixup.mixed(x, labels, *pairs) if pairs else (x, labels)


def mapped(loader: Loader, x: Images, function: Callable[..., Read], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Read]:
    """`loader.map`, or here in this process for images in memory, which other processes would only copy."""
    return loader.map(function, arguments) if isinstance(x, Pictures) else itertools.starmap(function, arguments)


def read_augmented(
    x: Images, spec: Spec, changes: Mapping[str, Any], seed: int, step: int, skip: bool, places: np.ndarray, count: int
) -> Read:
    """Images of a training step, of the size and colour that the network takes, with the `changes` of a recipe.

    They are those at the `places` of the step's `count`. Raises `Error` for one that cannot be read, or with `skip` takes the
    next one for it, unless there is none.
    """
    if isinstance(x, np.ndarray) and not changes.keys() & PICTURES:
        read = Read(images.pixels(x, spec), [*range(len(x))], [])
    else:
        read = _read(
            x, lambda place, one: _changed(one, spec, changes, augmentation.generator(seed, step, places[place])), skip
        )
        if not read.places:
            raise Error(f"no image of a whole batch can be read: {read.errors[0]}")
        following = np.searchsorted(read.places, np.arange(len(x))) % len(read.places)
        read = Read(read.pixels[following], [read.places[place] for place in following], read.errors)
    whole = {key: value for key, value in changes.items() if key not in PICTURES}
    return read._replace(pixels=augment(read.pixels, seed, step, places=places, count=count, **whole)) if whole else read


def read_plain(x: Images, spec: Spec, skip: bool = False) -> Read:
    """Images of the size and colour that the network takes.

    Raises `Error` for one that cannot be read, or with `skip` leaves it out.
    """
    if isinstance(x, np.ndarray):
        return Read(images.pixels(x, spec), [*range(len(x))], [])
    return _read(x, lambda place, one: images.pixels([one], spec)[0], skip)


def _read(x: Images, prepared: Callable[[int, Picture], np.ndarray], skip: bool) -> Read:
    """The images that can be read, each `prepared`, a function of its place and of itself."""
    if isinstance(x, np.ndarray):
        return Read(np.stack([prepared(place, one) for place, one in enumerate(x)]), [*range(len(x))], [])
    read, errors = {}, []
    for place, path in enumerate(x.paths()):
        try:
            read[place] = _opened(path, place, prepared)
        except Error as error:
            if not skip:
                raise
            errors.append(str(error))
    return Read(np.stack([*read.values()]) if read else np.zeros((0, 1, 1, 1), np.uint8), [*read], errors)


def _opened(path: str, place: int, prepared: Callable[[int, Picture], np.ndarray]) -> np.ndarray:
    picture = images.open_picture(path)
    try:
        return prepared(place, picture)
    except Error as error:  # it may be too thin to resize
        raise Error(f"{path}: {error}") from None


def image_size(x: Images, spec: Spec, skip: bool = False) -> tuple[int, int]:
    """(height, width) of the images in a batch, by the first of them.

    Raises `Error` if that cannot be read, or with `skip` if none can.
    """
    for place in range(len(x)):
        read = read_plain(x[place : place + 1], spec, skip)
        if read.places:
            return read.pixels.shape[1], read.pixels.shape[2]
    raise Error("none of the images can be read")


def _changed(image: Picture, spec: Spec, changes: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
    """One image of the network's size and colour, with those of the `changes` that are made to an image by itself."""
    if "crop" in changes:
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
        box = augmentation.random_box(generator, height, width, changes["crop"])
        pixels = images.cut_out(image, spec, box)
    else:
        (pixels,) = images.pixels([image], spec)
    return augmentation.jittered(generator, pixels, changes["jitter"]) if "jitter" in changes else pixels


def dtype(recipe: Recipe) -> str:
    """The precision of the images: in mixed precision the network turns float32 into half precision itself."""
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


def augment(
    pixels: np.ndarray,
    seed: int,
    step: int,
    pad: int = 0,
    flip: bool = False,
    places: np.ndarray | slice = slice(None),
    count: int | None = None,
) -> np.ndarray:
    """Images (number, height, width, channels) as a training step sees them: a pure function of its arguments.

    They are those at the `places` of the step's `count`, by default all. Each is framed by `pad` black pixels and a window of
    its own size is cut out at random; with `flip`, half of them are mirrored: He et al. 2015, section 4.2.
    """
    generator = np.random.default_rng([seed, step, 1])  # the third number distinguishes it from the order of an epoch
    number, height, width, _ = pixels.shape
    count = count or number
    corners = generator.integers(2 * pad + 1, size=(count, 2))[places]
    mirrored = np.less(generator.random(count), 0.5)[places]
    framed = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    augmented = np.empty_like(pixels)
    for i, (top, left) in enumerate(corners):
        window = framed[i, top : top + height, left : left + width]
        augmented[i] = window[:, ::-1] if flip and mirrored[i] else window
    return augmented
