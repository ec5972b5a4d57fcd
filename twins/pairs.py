"""Pictures with masks, for networks that classify every pixel: data that fit, and the batches that training takes of them.

Pictures keep their own size: neither the input of a spec nor "resize" and "crop" of its preprocessing change them.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shared import images, masks, networks, recipes, shapes
from shared.checks import Error
from shared.data import Data, Images
from shared.folders import Pictures
from shared.masks import Coding
from shared.recipes import Recipe
from shared.spec import Spec

from . import augmentation, batches, datasets
from .loading import Loader

WINDOW = "window"  # of a recipe's augmentation
NO_BATCH = f"pictures of different sizes cannot form a batch: {{}}; expected a '{WINDOW}' in the augmentation"


class Read(NamedTuple):
    """What has been read: bytes (height, width, channels) each, their masks, which they are, and what is wrong with others."""

    pixels: list[np.ndarray]
    masks: list[np.ndarray]
    places: list[int]
    errors: list[str]


class Reader(NamedTuple):
    """How pictures and masks are read for a network."""

    spec: Spec
    coding: Coding

    def read(self, picture: Any, mask: Any) -> tuple[Image.Image, Image.Image]:
        """A picture in the network's colours, and its mask, from paths or arrays. Raises `Error` if they cannot be read."""
        classes = shapes.layers(self.spec)[-1].shape[0]
        if isinstance(picture, str):
            picture = images.open_picture(picture)
            mask = masks.read_mask(mask, self.coding, classes, picture.size)
        return images.in_mode(picture, images.MODES[self.spec["input"][0]]), Image.fromarray(mask)


def load(recipe: Recipe) -> Data:
    """The pictures and masks of a recipe. Raises `Error` as `datasets.load_masked`."""
    names = recipe.get("classes")
    ignore = recipe.get("ignore", masks.VOID)
    return datasets.load_masked(recipe["data"], recipe.get("holdout"), ignore, names if isinstance(names, list) else None)


def stride(spec: Spec) -> int:
    """What the sides of a picture have to be multiples of."""
    return max(int(row.stride) for row in shapes.layers(spec))


def check_network(spec: Spec) -> None:
    """Raise `Error` unless a network takes pictures, and gives each of their pixels one of the classes that a mask can have."""
    channels, last = spec["input"][0], shapes.layers(spec)[-1]
    if channels not in images.MODES:
        raise Error(f"{spec['name']} takes {channels} channels, pictures have 1 or 3")
    if last.stride != 1:
        raise Error(f"{spec['name']} ends in a map of stride {last.stride:g}, expected 1: one logit per pixel and class")
    if last.shape[0] > masks.VOID:
        raise Error(f"{spec['name']} has {last.shape[0]} classes, but masks of bytes at most {masks.VOID}")


def check_fits(recipe: Recipe, spec: Spec, data: Data, skip: bool = False) -> None:
    """Raise `Error` unless pictures and masks fit the network, the memory and a batch, as far as headers of files say.

    Of files, those to test on are opened, which an epoch would come to at its end only, and whose sizes vary; of those to train
    on the pictures, if no 'window' makes them one size. The rest is checked when it is read, and so is what `skip` leaves out.
    """
    check_network(spec)
    if isinstance(data.x_train, np.ndarray):
        batches.check_fits(data.x_train, data.y_train[data.y_train != masks.VOID], spec)
    elif WINDOW not in recipe["augmentation"]:
        if "scale" in recipe["augmentation"]:
            raise Error(NO_BATCH.format("they are scaled"))
        _check_one_size(data.x_train.paths(), skip)
    height, width = training_size(recipe, data)
    step = stride(spec)
    if height % step or width % step:
        near = [max(step, round(side / step) * step) for side in (height, width)]
        what = f"'{WINDOW}' is" if WINDOW in recipe["augmentation"] else "without a 'window', pictures are"
        expected = f"multiples of {step}, such as {near[0]} and {near[1]}"
        raise Error(f"{what} {height} pixels high and {width} wide; {spec['name']} takes {expected}")
    check_memory(spec, {(height, width), *picture_sizes(data.x_test, data.y_test, skip)})


def check_memory(spec: Spec, sizes: Iterable[tuple[int, int]]) -> None:
    """Raise `Error` unless the network's maps for pictures of these sizes (height, width) fit into memory."""
    for size in {padded_size(spec, *each) for each in sizes}:
        shapes.check_fits_memory(shapes.layers(spec, size), size)


def picture_sizes(x: Images, y: np.ndarray, skip: bool = False) -> set[tuple[int, int]]:
    """The sizes (height, width) of pictures, by their headers. With `skip`, what cannot be read is left out.

    Raises `Error` if one is not a picture, or its mask has another size.
    """
    if isinstance(x, np.ndarray):
        return {(x.shape[1], x.shape[2])}
    found = set()
    for path, mask in zip(x.paths(), y.tolist(), strict=True):
        try:
            width, height = images.picture_size(path)
            masks.check_file(mask, (width, height))
        except Error:
            if not skip:
                raise
        else:
            found.add((height, width))
    return found


def _sized(paths: list[str], skip: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    """(path, (width, height)) of pictures; with `skip`, of those whose headers can be read."""
    for path in paths:
        try:
            size = images.picture_size(path)
        except Error:
            if not skip:
                raise
        else:
            yield path, size


def _check_one_size(paths: list[str], skip: bool) -> None:
    known: dict[tuple[int, int], str] = {}
    for path, size in _sized(paths, skip):
        known.setdefault(size, path)
        if len(known) > 1:
            both = ", ".join(f"{one} has {width}x{height} pixels" for (width, height), one in known.items())
            raise Error(NO_BATCH.format(both))


def training_size(recipe: Recipe, data: Data) -> tuple[int, int]:
    """(height, width) of the pictures of a batch."""
    window = _window(recipe["augmentation"])
    if window:
        return window
    if isinstance(data.x_train, np.ndarray):
        return data.x_train.shape[1], data.x_train.shape[2]
    paths = data.x_train.paths()
    _, (width, height) = next(itertools.chain(_sized(paths, skip=True), _sized(paths, skip=False)))  # which says what is wrong
    return height, width


def _window(changes: Mapping[str, Any]) -> tuple[int, int] | None:
    window = changes.get(WINDOW)
    return (window, window) if isinstance(window, int) else window and (window[0], window[1])


def padded_size(spec: Spec, height: int, width: int) -> tuple[int, int]:
    """The smallest multiples of the network's stride that are not smaller."""
    step = stride(spec)
    return -(-height // step) * step, -(-width // step) * step


def pixel_counts(x: Images, y: np.ndarray, reader: Reader, loader: Loader | None = None) -> np.ndarray:
    """The pixels of each class in all masks. Raises `Error` for one that cannot be read, unless the loader skips it."""
    counts = np.zeros(256, np.int64)
    for read in plain(x, y, reader, loader or Loader()):
        for mask in read.masks:
            counts += np.bincount(mask.ravel(), minlength=256)
    return counts[: networks.outputs(reader.spec)]


def balanced(recipe: Recipe, data: Data, spec: Spec, skip: bool = False) -> Recipe:
    """The recipe with numbers for class weights that are "balanced": pixels / (classes x pixels of the class).

    Raises `Error` for a class without pixels to train on, and for what cannot be read, unless `skip` leaves it out.
    """
    if recipe.get("class_weights") != recipes.BALANCED:
        return recipe
    assert data.coding
    counts = pixel_counts(data.x_train, data.y_train, Reader(spec, data.coding), Loader(skip=skip))
    if not counts.all():
        raise Error(f"'class_weights': {recipe['data']} has no pixels of class {counts.argmin()} to train on")
    return recipe | {"class_weights": (counts.sum() / (len(counts) * counts)).tolist()}


def stream(
    recipe: Recipe, spec: Spec, data: Data, step: int, loader: Loader, rank: int = 0, processes: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pictures, labels) of a training step and of all that follow: pure functions of the seed and the step.

    Pictures are as the network takes them, labels as `masks.labels` has them, (batch, height, width). Otherwise as
    `batches.stream`.
    """
    assert data.coding
    reader, seed, changes = Reader(spec, data.coding), recipe["seed"], recipe["augmentation"]

    def arguments() -> Iterator[tuple[Any, ...]]:
        for number in itertools.count(step):
            chosen = batches.indices(len(data.x_train), recipes.images_per_step(recipe), number, seed)
            places = np.arange(rank, len(chosen), processes)
            own = chosen[places]
            yield data.x_train[own], data.y_train[own], reader, changes, seed, number, places, loader.skip

    arrays = isinstance(data.x_train, np.ndarray)
    for read in itertools.starmap(read_augmented, arguments()) if arrays else loader.map(read_augmented, arguments()):
        loader.note(read.errors)
        yield images.normalise(np.stack(read.pixels), spec, batches.dtype(recipe)), masks.labels(np.stack(read.masks))


def read_augmented(
    x: Images, y: np.ndarray, reader: Reader, changes: Mapping[str, Any], seed: int, step: int, places: np.ndarray, skip: bool
) -> Read:
    """Pictures and masks at the `places` of a training step, with the `changes` of a recipe.

    Raises `Error` for one that cannot be read, or with `skip` takes the next one for it, unless there is none.
    """
    options = {"scale": changes.get("scale", (1, 1)), "window": _window(changes), "flip": changes.get("flip", False)}

    def changed(place: int, picture: Image.Image, mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        generator = augmentation.generator(seed, step, int(places[place]))
        picture, mask = augmentation.pair(generator, picture, mask, images.mean_colour(reader.spec), **options)
        pixels = np.atleast_3d(np.asarray(picture))
        return augmentation.jittered(generator, pixels, changes["jitter"]) if "jitter" in changes else pixels, np.asarray(mask)

    read = _read(x, y, reader, changed, skip)
    if not read.places:
        raise Error(f"no image of a whole batch can be read: {read.errors[0]}")
    following = np.searchsorted(read.places, np.arange(len(x))) % len(read.places)
    pixels, of_pixels = ([some[place] for place in following] for some in (read.pixels, read.masks))
    return Read(pixels, of_pixels, [read.places[place] for place in following], read.errors)


def plain(x: Images, y: np.ndarray, reader: Reader, loader: Loader, rank: int = 0, processes: int = 1) -> Iterator[Read]:
    """Pictures and masks as they are, one by one, of several processes each its share; none where one is left out."""
    starts = range(rank, len(x), processes)
    arguments = ((x[at : at + 1], y[at : at + 1], reader, loader.skip) for at in starts)
    arrays = isinstance(x, np.ndarray)
    reads = itertools.starmap(read_plain, arguments) if arrays else loader.map(read_plain, arguments)
    for at, read in zip(starts, reads, strict=True):
        loader.note(read.errors)
        yield read._replace(places=[at + place for place in read.places])


def read_plain(x: Images, y: np.ndarray, reader: Reader, skip: bool) -> Read:
    """Pictures and masks as they are. Raises `Error` for one that cannot be read, or with `skip` leaves it out."""
    return _read(x, y, reader, lambda place, picture, mask: (np.atleast_3d(np.asarray(picture)), np.asarray(mask)), skip)


def _read(x: Images, y: np.ndarray, reader: Reader, changed: Any, skip: bool) -> Read:
    read = Read([], [], [], [])
    given = zip(x.paths(), y.tolist(), strict=True) if isinstance(x, Pictures) else zip(x, y, strict=True)
    for place, (picture, mask) in enumerate(given):
        try:
            pixels, of_pixels = changed(place, *reader.read(picture, mask))
        except Error as error:
            if not skip:
                raise
            read.errors.append(str(error))
            continue
        read.pixels.append(pixels)
        read.masks.append(of_pixels)
        read.places.append(place)
    return read
