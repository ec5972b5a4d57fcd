"""The training loop, which drives an engine of either framework, and the checkpoints of its runs, which belong to neither.

Images are bytes (count, height, width, channels) until they are a batch. Completed steps and epochs count from 1.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from shared import files, images, networks, recipes, shapes, weights
from shared.checks import Error
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from . import batches, datasets, predict, runlog
from .backends import Engine
from .batches import Data

LOCK = "run.lock"  # held by the process that trains in the folder
FILES = ("last.safetensors", "best.safetensors", "network.json", "recipe.json", "log.jsonl", "curves.png", LOCK)  # of a run
SECONDS = 60  # after which a checkpoint is written within an epoch


class Progress(NamedTuple):
    """Where a run is after a step."""

    step: int
    steps: int  # of the whole run; those done, if the recipe's patience is at its end
    epoch: int
    loss: float  # the mean over the epoch so far, as is the accuracy
    accuracy: float
    row: dict[str, Any] | None = None  # at the end of an epoch: its line of the log


class Checkpoint(NamedTuple):
    """A run that can be resumed."""

    arrays: State  # as `Engine.state` gives them
    recipe: Recipe
    spec: Spec
    step: int  # how many are done
    sums: list[float]  # of the epoch so far: losses, correctly classified images, images, seconds
    history: list[dict[str, Any]]  # the lines of the log


def prepare(recipe: Recipe, spec: Spec | None = None) -> tuple[Spec, Data]:
    """(spec, data) of a recipe: the network, and images and labels that fit it. Raises `Error` if they do not fit.

    A resumed run passes its own spec: the file of that name may have changed.
    """
    spec = spec or recipes.network(recipe)
    data = datasets.load_data(recipe["data"])
    if isinstance(recipe.get("classes"), list):
        data = batches.of_classes(data, recipe)
    size = recipes.images_per_step(recipe)
    if size > len(data.x_train):
        times = f" and 'accumulate' is {recipe['accumulate']:,}" if size > recipe["batch"] else ""
        raise Error(f"'batch' is {recipe['batch']:,}{times}, but {recipe['data']} has {len(data.x_train):,} images to train on")
    try:
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
            batches.check_fits(x, y, spec)
            shapes.layers(spec, images.pixels(x[:1], spec).shape[1:3])
    except Error as error:
        raise Error(f"{recipe['data']}: {error}") from None
    return spec, data


def run(
    engine: Engine,
    recipe: Recipe,
    spec: Spec,
    data: Data,
    folder: str | Path,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train, from a `Checkpoint` if there is one; yields a `Progress` a step, and one more an epoch.

    The folder, made if need be, gets `last.safetensors`, a checkpoint of the end of every epoch and of every minute;
    `best.safetensors`, the weights with the best test accuracy; `log.jsonl`, a line an epoch. When `stop()` is true the run
    writes a checkpoint and ends. Raises `Error` for a loss that is NaN or infinite, for what cannot be written, and if another
    process is training in the folder: the last checkpoint stays.
    """
    if recipe["batch"] % engine.shares:
        raise Error(f"'batch' is {recipe['batch']}, expected a multiple of {engine.shares}: each device takes an equal share")
    the_run = _Run(engine, recipe, spec, data, Path(folder), checkpoint)
    with the_run.locked():
        the_run.begin()
        while the_run.step < the_run.steps:
            yield the_run.take_step()
            if the_run.step % the_run.per_epoch == 0 or the_run.step == the_run.steps:
                yield the_run.end_epoch()
                if is_over(recipe, the_run.history):
                    return
            stopping = engine.total(np.array([float(stop())]))[0] > 0
            the_run.save_within_epoch(stopping)
            if stopping:
                return


def is_over(recipe: Recipe, history: list[dict[str, Any]]) -> bool:
    """Whether the recipe's patience is at its end: so many epochs, after the best one, were none of them better."""
    return "patience" in recipe and len(history) - 1 - history.index(runlog.best_epoch(history)) >= recipe["patience"]


def check_free(folder: Path) -> None:
    """Raise `Error` if another process is training in the folder, so that we fail before a framework starts."""
    if (folder / LOCK).exists():
        _acquired(folder).release()


def _acquired(folder: Path) -> FileLock:
    """The lock of a folder, acquired. Raises `Error` if another process holds it, or the folder cannot be written."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Error(f"{folder}: another process is training in this folder; choose another with --out") from None
    except OSError as error:
        raise Error(f"{folder}: cannot be written: {error.strerror}") from None
    return lock


class _Run:
    """A run between two steps. Of several processes, that of rank 0 writes."""

    def __init__(
        self, engine: Engine, recipe: Recipe, spec: Spec, data: Data, folder: Path, checkpoint: Checkpoint | None
    ) -> None:
        self.engine, self.recipe, self.spec, self.data, self.folder = engine, recipe, spec, data, folder
        self.per_epoch = batches.steps_per_epoch(recipe, data)
        self.steps = recipes.length(recipe, self.per_epoch)
        self.step, self.sums, self.history = 0, [0.0, 0, 0, 0.0], []
        if checkpoint:
            self.step, self.sums, self.history = checkpoint.step, list(checkpoint.sums), list(checkpoint.history)
        self.best = max(map(runlog.accuracy, self.history), default=-1.0)
        self.writes = engine.rank == 0
        if self.history and self.history[-1]["step"] % self.per_epoch:  # the last epoch was cut short: complete it
            self.sums = _sums(self.history.pop(), self.per_epoch, recipes.images_per_step(recipe))
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other processes from training in it."""
        if not self.writes:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"{self.folder}: cannot be made: {error.strerror}") from None
        lock = _acquired(self.folder)
        try:
            yield
        finally:
            lock.release()

    def begin(self) -> None:
        """Write what describes the run, and a first checkpoint. Raises `Error` if a later one is there."""
        if not self.writes:
            return
        last = self.folder / FILES[0]
        if self.step and last.exists() and (weights.read_about(last) or {}).get("step", 0) > self.step:
            raise Error(f"{self.folder}: another process has continued this run since; resume it again")
        for name in FILES:
            files.remove_temporaries(self.folder / name)
        files.write_text(self.folder / "network.json", json.dumps(self.spec, indent=2) + "\n")
        files.write_text(self.folder / "recipe.json", json.dumps(self.recipe, indent=2) + "\n")
        files.write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))
        self.save("last.safetensors", self.engine.state())

    def take_step(self) -> Progress:
        """Train on the next batch."""
        started = time.monotonic()
        x, y = batches.batch(self.recipe, self.spec, self.data, self.step)
        self.epoch = self.step // self.per_epoch + 1
        self.rate = recipes.learning_rate(self.recipe, self.step, self.per_epoch)
        loss, correct = self.engine.step(x, y, self.rate)
        self.step += 1
        if not math.isfinite(loss):
            raise _diverged(f"the loss of step {self.step}, in epoch {self.epoch}, is {loss}", self.folder)
        new = (loss * len(x), correct, len(x), time.monotonic() - started)
        self.sums = [total + more for total, more in zip(self.sums, new, strict=True)]
        losses, corrects, count, _ = self.sums
        return Progress(self.step, self.steps, self.epoch, losses / count, corrects / count)

    def end_epoch(self) -> Progress:
        """Test, and write the log and the checkpoints."""
        test_loss, test_accuracy, top5 = evaluate(self.engine, self.spec, self.data, batches.dtype(self.recipe))
        if not math.isfinite(test_loss):
            raise _diverged(f"the loss on the test images after epoch {self.epoch} is {test_loss}", self.folder)
        losses, correct, count, seconds = self.sums
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": self.rate,
            "loss": losses / count,
            "accuracy": correct / count,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            **({} if top5 is None else {"test_top5": top5}),
            **self.evaluate_average(),
            "images_per_sec": count / seconds,
            "framework": self.engine.framework,
        }
        self.history, self.sums = [*self.history, row], [0.0, 0, 0, 0.0]
        if self.writes:
            arrays = self.engine.state()
            if runlog.accuracy(row) > self.best:
                self.save("best.safetensors", best_weights(arrays, row))
            _append(self.folder / "log.jsonl", json.dumps(row) + "\n")
            self.save("last.safetensors", arrays)
        self.best, self.saved = max(self.best, runlog.accuracy(row)), time.monotonic()
        steps = self.step if is_over(self.recipe, self.history) else self.steps
        return Progress(self.step, steps, self.epoch, row["loss"], row["accuracy"], row)

    def evaluate_average(self) -> dict[str, float]:
        """What the log says of the averaged weights, if there are any."""
        if not self.recipe.get("ema"):
            return {}
        with self.engine.averaged():
            scores = evaluate(self.engine, self.spec, self.data, batches.dtype(self.recipe))
        top5 = {} if scores.top5 is None else {"ema_test_top5": scores.top5}
        return {"ema_test_loss": scores.loss, "ema_test_accuracy": scores.accuracy, **top5}

    def save_within_epoch(self, stopping: bool) -> None:
        """Write a checkpoint if the run ends here, or the last one is of more than a minute ago."""
        images_done = self.sums[2]
        if self.writes and images_done and (stopping or time.monotonic() - self.saved > SECONDS):
            self.save("last.safetensors", self.engine.state())
            self.saved = time.monotonic()

    def save(self, name: str, arrays: State) -> None:
        """Write arrays with all that a run needs to be resumed. Raises `Error` for what is not finite."""
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise _diverged(f"{key} is not finite after step {self.step}", self.folder)
        about = {key: getattr(self, key) for key in Checkpoint._fields[1:]}
        weights.save_state(self.folder / name, arrays, about)


def best_weights(arrays: State, row: dict[str, Any]) -> State:
    """Of the weights and their average, those with the better test accuracy in a line of the log; the average if equal."""
    return weights.of_network(arrays, averaged=row.get("ema_test_accuracy", -1.0) >= row["test_accuracy"])


def _sums(row: dict[str, Any], per_epoch: int, size: int) -> list[float]:
    """The sums of an epoch that its line of the log was made of."""
    count = row["step"] % per_epoch * size
    return [row["loss"] * count, round(row["accuracy"] * count), count, count / row["images_per_sec"]]


def _diverged(what: str, folder: Path) -> Error:
    path = folder / FILES[0]
    last = f"{path} is of step {weights.read_about(path)['step']}" if path.exists() else "there is no checkpoint"
    return Error(f"{what}: the run has ended, {last}. Try a smaller learning rate, or a warm-up")


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error}") from None


class Scores(NamedTuple):
    """What a network reaches on the test images."""

    loss: float  # mean cross-entropy, without label smoothing or class weights
    accuracy: float
    top5: float | None = None  # how often the label is among the five likeliest; None for up to five classes


def evaluate(engine: Engine, spec: Spec, data: Data, dtype: str = "float32") -> Scores:
    """The scores of an engine's network on the test images."""
    sums = np.zeros(3)
    for place, (logits,) in predict.batched_logits([engine], spec, data.x_test, dtype):
        labels, logits = data.y_test[place], logits.astype(np.float64)
        largest = logits.max(1)
        losses = largest + np.log(np.exp(logits - largest[:, None]).sum(1)) - logits[np.arange(len(labels)), labels]
        above = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
        sums += losses.sum(), (logits.argmax(1) == labels).sum(), (above < 5).sum()
    loss, accuracy, top5 = (float(score) for score in engine.total(sums) / len(data.x_test))
    return Scores(loss, accuracy, top5 if shapes.layers(spec)[-1].shape[0] > 5 else None)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The `Checkpoint` in a file, or in the `last.safetensors` of a folder. Raises `Error` if there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "last.safetensors"
    arrays, about = weights.read_state(path), weights.read_about(path)
    try:
        checkpoint = Checkpoint(arrays, *(about[key] for key in Checkpoint._fields[1:]))
        optimizer = checkpoint.recipe["optimizer"]
        frozen = recipes.frozen(checkpoint.recipe, networks.load(checkpoint.spec))
        if type(checkpoint.step) is not int or len(checkpoint.sums) != 4:
            raise TypeError
    except (KeyError, TypeError):
        raise Error(f"{path}: not a checkpoint of a run; its weights can start a new one, with --init {path}") from None
    expected = shapes.weights(shapes.layers(checkpoint.spec))
    for slot in weights.slots(optimizer):
        trained = recipes.trained(frozen, checkpoint.spec)
        expected |= {f"optimizer.{slot}.{name}": shape for name, shape in trained.items()}
        if not any(name.startswith("optimizer.") for name in arrays):
            raise Error(f"{path}: it has weights alone; resume from {path.with_name('last.safetensors')}")
    if checkpoint.recipe.get("ema"):
        expected |= {weights.EMA + name: shape for name, shape in shapes.weights(shapes.layers(checkpoint.spec)).items()}
    try:
        weights.check_state(arrays, expected)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    return checkpoint


def resumed(checkpoint: Checkpoint, changes: list[str]) -> Recipe:
    """The recipe of a checkpoint with changes, as `recipes.changed` takes them. Raises `Error` for one not allowed mid-run."""
    before = checkpoint.recipe
    recipe = recipes.changed(before, changes)
    # The checkpoint has the network: the file of that name may have changed.
    recipe = recipes.load(recipe | {"network": checkpoint.spec}) | {"network": recipe["network"]}
    free = ("epochs", "steps", "schedule", "precision", "optimizer", "ema", "patience")
    for key in before | recipe:
        if key not in free and before.get(key) != recipe.get(key):
            raise Error(f"--set {key}: cannot change in the middle of a run; to start another with its weights, use --init")
    for key in ("name", "momentum"):
        old, new = (bool(r["optimizer"].get(key)) if key == "momentum" else r["optimizer"][key] for r in (before, recipe))
        if old != new:
            raise Error(f"--set optimizer.{key}: a run keeps the optimiser that it started with, {before['optimizer']['name']}")
    if ("epochs" in before) != ("epochs" in recipe):
        raise Error(f"--set: the length of this run is in {'epochs' if 'epochs' in before else 'steps'}")
    return recipe
