"""The training loop, which drives an engine of either framework, and the checkpoints of its runs, which belong to neither.

Images are bytes (count, height, width, channels) until they are a batch. Steps and epochs that are done count from 1.
"""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import data as datasets
from . import predict, recipes, shapes, weights
from . import spec as specs
from .spec import Error

FILES = ("last.safetensors", "best.safetensors", "network.json", "recipe.json", "log.jsonl", "curves.png")  # of a run
SECONDS = 60  # after which a checkpoint is written within an epoch


class Progress(NamedTuple):
    """What a run tells after each step."""

    step: int
    steps: int  # of the whole run
    epoch: int
    loss: float  # the mean over the epoch so far, as is the accuracy
    accuracy: float
    row: dict | None = None  # at the end of an epoch: its line of the log


class Checkpoint(NamedTuple):
    """A run that can go on."""

    arrays: dict[str, np.ndarray]  # as `Engine.state` gives them
    recipe: dict
    spec: dict
    step: int  # how many are done
    sums: list[float]  # of the epoch so far: losses, images classified right, images, seconds
    history: list[dict]  # the lines of the log


def prepare(recipe, spec=None):
    """(spec, data) of a recipe: the network, and images and labels that fit it. Raises `Error` where they do not fit.

    A run that goes on gives its spec: a file of that name may have changed.
    """
    spec = spec or recipes.network(recipe)
    data = datasets.load(recipe["data"])
    if isinstance(recipe.get("classes"), list):
        data = _of_classes(data, recipe)
    if recipe["batch"] > len(data.x_train):
        raise Error(f"'batch' is {recipe['batch']:,}, but {recipe['data']} has {len(data.x_train):,} images to train on")
    try:
        for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
            datasets.check(images, labels, spec)
            shapes.layers(spec, datasets.pixels(images[:1], spec).shape[1:3])
    except Error as error:
        raise Error(f"{recipe['data']}: {error}") from None
    return spec, data


def _of_classes(data, recipe):
    """The images of the recipe's classes, which are lists of labels, and the numbers of these classes as labels."""
    number = {label: new for new, group in enumerate(recipe["classes"]) for label in group}
    known = np.union1d(data.y_train, data.y_test)
    missing = sorted(set(number) - set(known.tolist()))
    if missing:
        raise Error(f"'classes': {recipe['data']} has no images of label {missing[0]}; its labels go up to {known.max()}")
    table = np.full(known.max() + 1, -1)  # no class
    table[list(number)] = list(number.values())
    train, test = (np.flatnonzero(table[labels] >= 0) for labels in (data.y_train, data.y_test))
    if not len(train) or not len(test):
        raise Error(f"'classes': {recipe['data']} has no images of them to {'train' if not len(train) else 'test'} on")
    return datasets.Data(data.x_train[train], table[data.y_train[train]], data.x_test[test], table[data.y_test[test]])


def steps_per_epoch(recipe, data):
    return len(data.x_train) // recipe["batch"]


def batch(recipe, spec, data, step):
    """(images, labels) of a training step, which count from 0: images as the network takes them, augmented. A pure function."""
    indices = datasets.batch(len(data.x_train), recipe["batch"], step, recipe["seed"])
    images = datasets.pixels(data.x_train[indices], spec)
    if recipe["augmentation"]:
        images = datasets.augmented(images, recipe["seed"], step, **recipe["augmentation"])
    return datasets.normalised(images, spec, _dtype(recipe)), data.y_train[indices]


def _dtype(recipe):
    """Of the images: in mixed precision the network makes them bfloat16 itself."""
    return "float64" if recipe["precision"] == "float64" else "float32"


def run(engine, recipe, spec, data, folder, checkpoint=None, stop=lambda: False):
    """Train, from a `Checkpoint` if there is one; a generator of `Progress`, one a step and one more an epoch.

    It keeps in the folder, made where there is none: `last.safetensors`, a checkpoint of the end of every epoch and of every
    minute; `best.safetensors`, the weights with the best test accuracy; `log.jsonl`, a line an epoch. When `stop()` is true it
    writes a checkpoint and ends. Raises `Error` for a loss that is no number and for what cannot be written: the last
    checkpoint stays.
    """
    if recipe["batch"] % engine.shares:
        raise Error(
            f"'batch' is {recipe['batch']}, expected a multiple of {engine.shares}, of which each device takes its share"
        )
    folder, per_epoch = Path(folder), steps_per_epoch(recipe, data)
    steps = recipes.length(recipe, per_epoch)
    step, sums, history = 0, [0.0, 0, 0, 0.0], []
    if checkpoint:
        step, sums, history = checkpoint.step, list(checkpoint.sums), list(checkpoint.history)
    best = max((row["test_accuracy"] for row in history), default=-1.0)
    mine = engine.rank == 0  # one of several processes writes

    def save(name, arrays):
        about = {"recipe": recipe, "spec": spec, "step": step, "sums": sums, "history": history}
        _check_finite(arrays, step, folder)
        weights.save(folder / name, arrays, about)

    if history and history[-1]["step"] % per_epoch:  # the last epoch was a part of one, and is there to be completed
        sums, history = _undone(history[-1], per_epoch, recipe["batch"]), history[:-1]
    if mine:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"{folder}: cannot be made: {error.strerror}") from None
        for name in FILES:
            weights.tidy(folder / name)
        _write(folder / "network.json", json.dumps(spec, indent=2) + "\n")
        _write(folder / "recipe.json", json.dumps(recipe, indent=2) + "\n")
        _write(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        save("last.safetensors", engine.state())
    saved = time.monotonic()
    while step < steps:
        begun = time.monotonic()
        images, labels = batch(recipe, spec, data, step)
        rate, epoch = recipes.learning_rate(recipe, step, per_epoch), step // per_epoch + 1
        loss, right = engine.step(images, labels, rate)
        step += 1
        if not math.isfinite(loss):
            raise _no_number(f"the loss of step {step}, in epoch {epoch}, is {loss}", folder)
        new = (loss * len(labels), right, len(labels), time.monotonic() - begun)
        sums = [total + more for total, more in zip(sums, new, strict=True)]
        yield Progress(step, steps, epoch, sums[0] / sums[2], sums[1] / sums[2])
        if step % per_epoch == 0 or step == steps:
            test_loss, test_accuracy = tested(engine, spec, data, _dtype(recipe))
            row = {
                "epoch": epoch,
                "step": step,
                "learning_rate": rate,
                "loss": sums[0] / sums[2],
                "accuracy": sums[1] / sums[2],
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "images_per_sec": sums[2] / sums[3],
                "framework": engine.framework,
            }
            if not math.isfinite(test_loss):
                raise _no_number(f"the loss on the test images after epoch {epoch} is {test_loss}", folder)
            history, sums = [*history, row], [0.0, 0, 0, 0.0]
            if mine:
                arrays = engine.state()
                if test_accuracy > best:
                    save("best.safetensors", {n: a for n, a in arrays.items() if not n.startswith("optimizer.")})
                _write(folder / "log.jsonl", json.dumps(row) + "\n", "a")
                save("last.safetensors", arrays)
            best, saved = max(best, test_accuracy), time.monotonic()
            yield Progress(step, steps, epoch, row["loss"], row["accuracy"], row)
        stopping = engine.total(np.array([float(stop())]))[0] > 0
        if mine and sums[2] and (stopping or time.monotonic() - saved > SECONDS):
            save("last.safetensors", engine.state())
            saved = time.monotonic()
        if stopping:
            return


def _undone(row, per_epoch, batch):
    """The sums of an epoch that its line of the log was made of."""
    images = row["step"] % per_epoch * batch
    return [row["loss"] * images, round(row["accuracy"] * images), images, images / row["images_per_sec"]]


def tested(engine, spec, data, dtype="float32"):
    """(mean cross-entropy, accuracy) on the test images; each of several processes takes a share of them."""
    sums, size = np.zeros(2), predict.batch_size(spec)
    for number, start in enumerate(range(0, len(data.x_test), size)):
        if number % engine.processes != engine.rank:
            continue
        labels = data.y_test[start : start + size]
        logits = engine.predict(datasets.preprocess(data.x_test[start : start + size], spec, dtype)).astype(np.float64)
        largest = logits.max(1)
        losses = largest + np.log(np.exp(logits - largest[:, None]).sum(1)) - logits[np.arange(len(labels)), labels]
        sums += losses.sum(), (logits.argmax(1) == labels).sum()
    loss, accuracy = engine.total(sums) / len(data.x_test)
    return float(loss), float(accuracy)


def read(path):
    """The `Checkpoint` in a file, or in the `last.safetensors` of a folder. Raises `Error` where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "last.safetensors"
    arrays, about = weights.read(path), weights.about(path)
    try:
        found = Checkpoint(arrays, *(about[key] for key in Checkpoint._fields[1:]))
        optimizer, frozen = found.recipe["optimizer"], recipes.frozen(found.recipe, specs.load(found.spec))
        if type(found.step) is not int or len(found.sums) != 4:
            raise TypeError
    except (KeyError, TypeError):
        raise Error(f"{path}: no checkpoint of a run; its weights can begin a new one, with --init {path}") from None
    expected = shapes.weights(shapes.layers(found.spec))
    for slot in weights.slots(optimizer):
        trained = recipes.trained(frozen, found.spec)
        expected |= {f"optimizer.{slot}.{name}": shape for name, shape in trained.items()}
        if not any(name.startswith("optimizer.") for name in arrays):
            raise Error(f"{path}: it has weights alone; a run goes on from {path.with_name('last.safetensors')}")
    try:
        weights.check(arrays, expected)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    return found


def resumed(checkpoint, changes):
    """The recipe of a checkpoint with changes, as of `recipes.changed`. Raises `Error` for what cannot change half-way."""
    before = checkpoint.recipe
    recipe = recipes.changed(before, changes)
    # The checkpoint has the network: a file of its name may have changed.
    recipe = recipes.load(recipe | {"network": checkpoint.spec}) | {"network": recipe["network"]}
    free = ("epochs", "steps", "schedule", "precision", "optimizer")
    for key in before | recipe:
        if key not in free and before.get(key) != recipe.get(key):
            raise Error(f"--set {key}: a run goes on as it began; to begin another with its weights, use --init")
    for key in ("name", "momentum"):
        old, new = (bool(r["optimizer"].get(key)) if key == "momentum" else r["optimizer"][key] for r in (before, recipe))
        if old != new:
            raise Error(
                f"--set optimizer.{key}: a run goes on with the optimiser that it began with, {before['optimizer']['name']}"
            )
    if ("epochs" in before) != ("epochs" in recipe):
        raise Error(f"--set: the length of this run is in {'epochs' if 'epochs' in before else 'steps'}")
    return recipe


def _check_finite(arrays, step, folder):
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise _no_number(f"{name} is no finite number after step {step}", folder)


def _no_number(what, folder):
    path = folder / FILES[0]
    kept = f"{path} is of step {weights.about(path)['step']}" if path.exists() else "there is no checkpoint"
    return Error(f"{what}: the run has ended, {kept}. A smaller learning rate would be right, or a warm-up")


def _write(path, text, mode="w"):
    """Write a text: a new file aside and renamed, or at the end of a file."""
    try:
        if mode == "a":
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            with weights.aside(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error}") from None
