"""The training loop, which drives an engine of either framework, and the checkpoints of its runs, which belong to no framework.

Images are bytes (count, height, width, channels) until they are a batch. Completed steps and epochs count from 1.
"""

import contextlib
import functools
import json
import math
import os
import shlex
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from shared import files, networks, recipes, shapes, weights
from shared.checks import Error, RunError, Value, check_keys, first_few, one_of, whole
from shared.data import Data, Images
from shared.folders import Pictures
from shared.masks import IGNORED
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from . import batches, datasets, pairs, predict, runlog, segmentation
from .backends import Engine
from .loading import Loader

VERSION = 1  # of checkpoints; those without one were written before there were versions, and are as those of version 1
LOCK = "run.lock"  # held by the process that trains in the folder
FILES = ("last.safetensors", "best.safetensors", "network.json", "recipe.json", "log.jsonl", "curves.png", LOCK)  # of a run
LAST, BEST = FILES[:2]
BEST_WHOLE = "best_whole_epoch.safetensors"  # beside a best.safetensors of an epoch cut short, which ends if the run goes on
UNREADABLE = 0.05  # the fraction of the images that a run may skip
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


# key of a checkpoint's metadata: what its value must be
_OBJECT = Value(lambda v: type(v) is dict, "an object", {})
ABOUT = {
    "recipe": _OBJECT,
    "spec": _OBJECT,
    "step": whole(0),
    "sums": Value(
        lambda v: type(v) is list and len(v) == 4 and all(map(runlog.is_amount, v)), "four numbers of at least 0", {}
    ),
    "history": Value(lambda v: type(v) is list and all(map(runlog.is_row, v)), "a list of the lines of a log", {}),
}


def prepare(recipe: Recipe, spec: Spec | None = None, start: Spec | None = None, skip: bool = False) -> tuple[Spec, Data]:
    """(spec, data) of a recipe: the network, and images and labels that fit it. Raises `Error` if they do not fit.

    A resumed run passes its own spec: the file of that name may have changed. `start` is the spec of weights that the run
    starts from, see `recipes.following`. With `skip`, the run will go on without pictures that cannot be read.
    """
    dense = networks.is_dense(spec or recipes.network(recipe))
    data = pairs.load(recipe) if dense else datasets.load_data(recipe["data"], recipe.get("holdout"))
    if data.classes:
        recipe = recipe | {"classes": _class_names(recipe, data.classes, spec)}
    spec = spec or recipes.network(recipe)
    if recipes.label_groups(recipe):
        data = batches.of_classes(data, recipe)
    if start:
        channels = data.x_train.shape[3] if isinstance(data.x_train, np.ndarray) else spec["input"][0]
        labels = networks.outputs(spec) or 0 if dense else int(data.y_train.max()) + 1
        spec = recipes.following(spec, recipe, start, labels, channels)
    size = recipes.images_per_step(recipe)
    if size > len(data.x_train):
        times = f" and 'accumulate' is {recipe['accumulate']:,}" if size > recipe["batch"] else ""
        raise Error(f"'batch' is {recipe['batch']:,}{times}, but {recipe['data']} has {len(data.x_train):,} images to train on")
    try:
        if dense:
            pairs.check_fits(recipe, spec, data, skip)
        unseen = [data.unseen[:2]] if data.unseen else []
        for x, y in () if dense else ((data.x_train, data.y_train), (data.x_test, data.y_test), *unseen):
            batches.check_fits(x, y, spec)
            batches.check_one_size(x, spec)
            shapes.layers(spec, batches.image_size(x, spec, skip))
    except Error as error:
        raise Error(f"{recipe['data']}: {error}") from None
    _check_batch(recipe, spec, data, skip=skip)
    return spec, data


def _class_names(recipe: Recipe, names: list[str], spec: Spec | None) -> list[str]:
    """The names of the classes of a folder, which a run has. Raises `Error` if its recipe or its own network has others."""
    given = recipe.get("classes", len(names))
    own = spec and networks.class_names(spec)
    if len(names) < 2:
        raise Error(f"{recipe['data']}: has one class, {names[0]}; expected at least 2")
    if given not in (len(names), names):
        raise Error(f"{recipe['data']}: has the {len(names)} classes {first_few(names)}, but 'classes' is {json.dumps(given)}")
    if own and own != names:
        raise Error(f"{recipe['data']}: has the classes {first_few(names)}, but the run has {first_few(own)}")
    return names


def _check_batch(recipe: Recipe, spec: Spec, data: Data, shares: int = 1, skip: bool = False) -> None:
    """Raise `Error` unless `shares` devices can divide a batch of the recipe, and batch norms normalise their shares."""
    if recipe["batch"] % shares:
        raise Error(f"'batch' is {recipe['batch']}, expected a multiple of {shares}: each device takes an equal share")
    size = pairs.training_size(recipe, data) if data.coding else batches.image_size(data.x_train, spec, skip)
    batches.check_normalises(spec, size, recipe["batch"], shares, recipes.kept(recipe, spec))


def run(
    engine: Engine,
    recipe: Recipe,
    spec: Spec,
    data: Data,
    folder: str | Path,
    checkpoint: Checkpoint | None = None,
    stop: Callable[[], bool] = lambda: False,
    is_locked: bool = False,
    loader: Loader | None = None,
) -> Iterator[Progress]:
    """Train, from a `Checkpoint` if there is one; yields a `Progress` a step, and one more an epoch.

    The folder, made if need be, gets `last.safetensors`, a checkpoint of the end of every epoch and of every minute;
    `best.safetensors`, the weights with the best test accuracy or mIoU; `log.jsonl`, a line an epoch. When `stop()` is true the
    run writes a checkpoint and ends. With `is_locked`, the caller has the folder `locked`. The `loader` reads images that are
    files; if it skips those that cannot be read, the run continues without up to 5 % of them.
    Raises `RunError` for a loss that is NaN or infinite, and `Error` for what cannot be written and if another process is
    training in the folder: the last checkpoint stays.
    """
    _check_batch(recipe, spec, data, engine.shares, bool(loader and loader.skip))
    the_run = _Run(engine, recipe, spec, data, Path(folder), checkpoint, loader)
    lock = locked(Path(folder)) if the_run.writes and not is_locked else contextlib.nullcontext()
    with lock, the_run.loader:
        _check_alike(engine, recipe, data)
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


def _check_alike(engine: Engine, recipe: Recipe, data: Data) -> None:
    """Raise `Error` unless all processes have the same recipe, data and arrays, which they read on machines of their own.

    Where the data and the weights lie may differ.
    """
    if engine.processes == 1:
        return
    rules = {key: value for key, value in recipe.items() if key not in ("data", "init")}
    parts = {
        "recipe": [json.dumps(rules, sort_keys=True).encode()],
        "data set": [_labels(data.x_train, data.y_train), _labels(data.x_test, data.y_test)],
        "checkpoint or initial weights": [array.tobytes() for _, array in sorted(engine.state().items())],
    }
    own = [functools.reduce(lambda sum_, more: zlib.crc32(more, sum_), part, 0) for part in parts.values()]
    for part, sums in zip(parts, np.transpose(_of_all(engine, np.array(own))), strict=True):
        if len({*sums}) > 1:
            raise Error(f"process {engine.rank} of {engine.processes}: not all processes have the same {part}")


def _labels(x: Images, y: np.ndarray) -> bytes:
    """What tells labels from others. Of masks that are files these are their names, which pictures in their folder have too."""
    if isinstance(x, Pictures) and y.dtype.kind == "U":
        return json.dumps(x.names).encode()
    return y.astype(np.int64).tobytes()


def _of_all(engine: Engine, numbers: np.ndarray) -> np.ndarray:
    """(processes, count): the numbers that each process has."""
    table = np.zeros((engine.processes, len(numbers)))
    table[engine.rank] = numbers
    return engine.total(table)


def is_over(recipe: Recipe, history: list[dict[str, Any]]) -> bool:
    """Whether the recipe's patience is over: that many epochs after the best one brought nothing better.

    Epochs before a thaw do not count.
    """
    if "patience" not in recipe or not history:
        return False
    since = history[history.index(runlog.best_epoch(history)) + 1 :]
    unit = "step" if "steps" in recipe else "epoch"
    return sum(row[unit] > recipe.get("thaw", 0) for row in since) >= recipe["patience"]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder, and keep other processes from training in it; if nothing was written, the folder is removed again.

    Raises `Error` if another process trains in it, or it cannot be written.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{folder}: cannot be created: {error.strerror}") from None
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Error(f"{folder}: another process is training in this folder; choose another with --out") from None
    except OSError as error:
        raise Error(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        if new and is_unused(folder):
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
                for path in new:
                    path.rmdir()
        lock.release()


def is_unused(folder: Path) -> bool:
    """Whether a run may begin in the folder: it is not there, or a run that was killed before its first step left its lock."""
    return not folder.exists() or (folder.is_dir() and all(path.name == LOCK for path in folder.iterdir()))


def check_current(folder: Path, checkpoint: Checkpoint) -> None:
    """Raise `Error` if the folder has a later checkpoint than the one that a run is about to be resumed from."""
    if (step_of(folder / LAST) or 0) > checkpoint.step:
        raise Error(f"{folder}: another process has continued this run since; resume it again")


def check_epochs(checkpoint: Checkpoint, per_epoch: int) -> None:
    """Raise `Error` unless the log of a checkpoint has epochs of this many steps: the data set may have changed."""
    ends = [row["step"] for row in checkpoint.history]
    if any(end % per_epoch for end in ends[:-1]) or [-(-end // per_epoch) for end in ends] != list(range(1, len(ends) + 1)):
        data = checkpoint.recipe["data"]
        raise Error(
            f"{data}: not the images that the run began with: they give {per_epoch} steps per epoch, and the run's log has "
            "another number"
        )


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, or None if the file is not one."""
    try:
        step = weights.read_about(path)["step"]
    except (Error, KeyError, TypeError):
        return None
    return step if type(step) is int else None


class _Run:
    """A run between two steps. Of several processes, that of rank 0 writes."""

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        spec: Spec,
        data: Data,
        folder: Path,
        checkpoint: Checkpoint | None,
        loader: Loader | None = None,
    ) -> None:
        self.engine, self.recipe, self.spec, self.data, self.folder = engine, recipe, spec, data, folder
        self.loader = loader or Loader()
        self.per_epoch = batches.steps_per_epoch(recipe, data)
        self.steps = recipes.length(recipe, self.per_epoch)
        self.thaw = recipes.thaw_step(recipe, self.per_epoch)  # None if nothing thaws, or all has
        self.step, self.sums, self.history = 0, [0.0, 0, 0, 0.0], []
        if checkpoint:
            check_epochs(checkpoint, self.per_epoch)
            self.step, self.sums, self.history = checkpoint.step, list(checkpoint.sums), list(checkpoint.history)
        self.writes = engine.rank == 0
        if self.history and self.history[-1]["step"] % self.per_epoch:  # the last epoch was cut short: complete it
            self.sums = _sums(self.history.pop(), self.per_epoch, recipes.images_per_step(recipe))
        take = pairs.stream if data.coding else batches.stream
        self.batches = take(recipe, spec, data, self.step, self.loader, engine.rank, engine.processes)
        self.best = max(map(runlog.score, self.history), default=-1.0)
        self.saved = time.monotonic()

    def begin(self) -> None:
        """Write what describes the run, and a first checkpoint. Raises `Error` if a later one is there."""
        if not self.writes:
            return
        now = self.checkpoint()
        if self.step:
            check_current(self.folder, now)
        for name in (*FILES, BEST_WHOLE):
            files.remove_temporaries(self.folder / name)
        files.write_text(self.folder / "network.json", json.dumps(self.spec, indent=2) + "\n")
        files.write_text(self.folder / "recipe.json", json.dumps(self.recipe, indent=2) + "\n")
        files.write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.history))
        write(self.folder / LAST, now)
        if (self.folder / BEST_WHOLE).exists():
            os.replace(self.folder / BEST_WHOLE, self.folder / BEST)
        complete_best(self.folder, now)
        if (self.folder / BEST).exists() and step_of(self.folder / BEST) not in [row["step"] for row in self.history]:
            self.best = -1.0  # it is of an epoch that is no longer in the log, so the next one replaces it

    def checkpoint(self) -> Checkpoint:
        """The run as it is."""
        return Checkpoint(self.engine.state(), self.recipe, self.spec, self.step, self.sums, self.history)

    def take_step(self) -> Progress:
        """Train on the next batch."""
        started = time.monotonic()
        x, y = next(self.batches)
        self.check_readable()
        self.epoch = self.step // self.per_epoch + 1
        self.rate = recipes.learning_rate(self.recipe, self.step, self.per_epoch)
        if self.thaw is not None and self.step >= self.thaw:
            self.engine.thaw(self.thaw)
            self.thaw = None
        correct: float
        loss, correct = self.engine.step(x, y, self.rate)
        count = len(x) * self.engine.processes
        if self.data.coding:  # of pixels: the fraction of them, as so many images
            correct *= count / max(float(self.engine.total(np.array([np.sum(y != IGNORED)]))[0]), 1)
        self.step += 1
        if not math.isfinite(loss):
            raise _diverged(f"the loss of step {self.step}, in epoch {self.epoch}, is {loss}", self.folder)
        new = (loss * count, correct, count, time.monotonic() - started)
        self.sums = [total + more for total, more in zip(self.sums, new, strict=True)]
        losses, corrects, seen, _ = self.sums
        return Progress(self.step, self.steps, self.epoch, losses / seen, corrects / seen)

    def share_unreadable(self) -> None:
        """Give all processes the images that any of them could not read."""
        own = np.frombuffer(json.dumps([*self.loader.unreadable]).encode(), np.uint8)
        sizes = _of_all(self.engine, np.array([len(own)])).astype(int).ravel()
        texts = _of_all(self.engine, np.pad(own, (0, sizes.max() - len(own)))).astype(np.uint8)
        for text, size in zip(texts, sizes, strict=True):
            self.loader.note(json.loads(text[:size].tobytes()))

    def check_readable(self) -> None:
        """Raise `Error` if more images cannot be read than a run may skip."""
        bad, count = list(self.loader.unreadable), len(self.data.x_train) + len(self.data.x_test)
        if len(bad) > UNREADABLE * count:
            raise Error(f"{len(bad)} of {count:,} images cannot be read, more than {UNREADABLE:.0%}: {first_few(bad)}")

    def end_epoch(self) -> Progress:
        """Test, and write the log and the checkpoints."""
        waited, self.loader.waited = self.loader.waited, 0.0
        precision = batches.dtype(self.recipe)
        test_loss, test_accuracy, top5, miou = evaluate(self.engine, self.spec, self.data, precision, self.loader)
        self.share_unreadable()
        self.check_readable()
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
            **({} if miou is None else {"test_miou": miou}),
            **self.evaluate_average(),
            "tested_on": self.data.tested_on,
            "images_per_sec": count / seconds,
            "framework": self.engine.framework,
        }
        if isinstance(self.data.x_train, Pictures):
            row |= {
                "waited": min(waited / seconds, 1.0),
                "unreadable": len(self.loader.unreadable),
            }
        self.loader.waited = 0.0
        self.history, self.sums = [*self.history, row], [0.0, 0, 0, 0.0]
        if self.writes:
            now = self.checkpoint()
            files.append_text(self.folder / "log.jsonl", json.dumps(row) + "\n")
            write(self.folder / LAST, now)
            if runlog.score(row) > self.best:  # last: `complete_best` does it for a process that is killed before
                write_best(self.folder, now, whole_epoch=self.step % self.per_epoch == 0)
        self.best, self.saved = max(self.best, runlog.score(row)), time.monotonic()
        steps = self.step if is_over(self.recipe, self.history) else self.steps
        return Progress(self.step, steps, self.epoch, row["loss"], row["accuracy"], row)

    def evaluate_average(self) -> dict[str, float]:
        """What the log says of the averaged weights, if there are any."""
        if not self.recipe.get("ema"):
            return {}
        with self.engine.averaged():
            scores = evaluate(self.engine, self.spec, self.data, batches.dtype(self.recipe), self.loader)
        top5 = {} if scores.top5 is None else {"ema_test_top5": scores.top5}
        miou = {} if scores.miou is None else {"ema_test_miou": scores.miou}
        return {"ema_test_loss": scores.loss, "ema_test_accuracy": scores.accuracy, **top5, **miou}

    def save_within_epoch(self, stopping: bool) -> None:
        """Write a checkpoint if the run ends here, or the last one is of more than a minute ago."""
        images_done = self.sums[2]
        if self.writes and images_done and (stopping or time.monotonic() - self.saved > SECONDS):
            write(self.folder / LAST, self.checkpoint())
            self.saved = time.monotonic()


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint. Raises `RunError` for arrays that are not finite, and `Error` if the file cannot be written."""
    broken = weights.not_finite(checkpoint.arrays)
    if broken:
        raise _diverged(f"{broken[0]} is not finite after step {checkpoint.step}", path.parent)
    # NumPy draws the order of the images, augmentation and dropout: another version of it may draw others from one seed.
    generator = type(np.random.default_rng(0).bit_generator).__name__
    about: dict[str, Any] = {"version": VERSION, "random": {"generator": generator, "numpy": np.__version__}}
    weights.save_state(path, checkpoint.arrays, about | {key: getattr(checkpoint, key) for key in ABOUT})


def write_best(folder: Path, checkpoint: Checkpoint, whole_epoch: bool) -> None:
    """Write the weights of a checkpoint as the best. The earlier best are kept until a cut-short epoch is completed."""
    if not whole_epoch and (folder / BEST).exists():
        os.replace(folder / BEST, folder / BEST_WHOLE)
    write(folder / BEST, checkpoint._replace(arrays=best_weights(checkpoint.arrays, checkpoint.history[-1])))


def complete_best(folder: Path, checkpoint: Checkpoint, whole_epoch: bool = True) -> None:
    """Write the weights of a checkpoint as the best if its log says so and the process that wrote it was killed before."""
    rows = checkpoint.history
    if rows and runlog.best_epoch(rows)["step"] == checkpoint.step != step_of(folder / BEST):
        write_best(folder, checkpoint, whole_epoch)


def best_weights(arrays: State, row: dict[str, Any]) -> State:
    """Of the weights and their average, those with the better test score in a line of the log; the average if equal."""
    return weights.of_network(arrays, averaged=runlog.is_averaged(row))


def _sums(row: dict[str, Any], per_epoch: int, size: int) -> list[float]:
    """The sums of an epoch that its line of the log was made of."""
    count = row["step"] % per_epoch * size
    seconds = count / row["images_per_sec"] if row["images_per_sec"] else 0.0
    correct = row["accuracy"] * count
    return [row["loss"] * count, correct if "test_miou" in row else round(correct), count, seconds]


def _diverged(what: str, folder: Path) -> RunError:
    path = folder / LAST
    last = f"{path} is of step {step_of(path)}" if path.exists() else "there is no checkpoint"
    return RunError(f"{what}: the run has ended, {last}. Try a smaller learning rate, or a warm-up")


class Scores(NamedTuple):
    """What a network reaches on the test images."""

    loss: float  # mean cross-entropy, without label smoothing or class weights
    accuracy: float
    top5: float | None = None  # how often the label is among the five likeliest; None for up to five classes, and of pixels
    miou: float | None = None  # of pixels, see `segmentation.scores`


def evaluate(engine: Engine, spec: Spec, data: Data, dtype: str = "float32", loader: Loader | None = None) -> Scores:
    """The scores of an engine's network on the test images, read as by `predict.batched_logits`, or of their pixels."""
    if data.coding:
        loss, matrix = segmentation.evaluate(engine, spec, data, dtype, loader)
        found = segmentation.scores(matrix)
        if found.miou is None or found.pixel_accuracy is None:
            raise Error("every pixel of the masks to test on is ignored")
        return Scores(loss, found.pixel_accuracy, None, found.miou)
    sums = np.zeros(4)
    for place, (logits,) in predict.batched_logits([engine], spec, data.x_test, dtype, loader):
        labels, logits = data.y_test[place], logits.astype(np.float64)
        largest, true = logits.max(1), logits[np.arange(len(labels)), labels]
        losses = largest + np.log(np.exp(logits - largest[:, None]).sum(1)) - true
        likelier = (logits > true[:, None]).sum(1)  # classes that are likelier than the label
        sums += losses.sum(), (logits.argmax(1) == labels).sum(), (likelier < predict.TOP).sum(), len(labels)
    *totals, count = engine.total(sums).tolist()
    loss, accuracy, top5 = (total / count for total in totals)
    return Scores(loss, accuracy, top5 if shapes.layers(spec)[-1].shape[0] > predict.TOP else None)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The `Checkpoint` in a file, or in the `last.safetensors` of a folder. Raises `Error` if it is damaged or not one."""
    path = Path(path)
    if path.is_dir():
        path = path / LAST
    arrays, about = weights.read_state(path), weights.read_about(path)
    version = about.get("version", VERSION) if isinstance(about, dict) else VERSION
    if type(version) is int and version > VERSION:
        raise Error(f"{path}: written by a newer version of twins (checkpoint version {version}); update twins")
    try:
        checkpoint = _checked(arrays, about)
    except Error as error:
        why = f": {error}" if about is not None else ""
        again = f"--init {shlex.quote(str(path))}"
        raise Error(f"{path}: not a checkpoint of a run{why}; to start a new run from its weights, use {again}") from None
    expected = shapes.weights(shapes.layers(checkpoint.spec))
    frozen = recipes.kept(checkpoint.recipe, checkpoint.spec)
    for slot in weights.slots(checkpoint.recipe["optimizer"]):
        trained = recipes.trained(frozen, checkpoint.spec)
        expected |= {f"optimizer.{slot}.{name}": shape for name, shape in trained.items()}
    if checkpoint.recipe["precision"] == recipes.SCALED:
        expected[weights.SCALER] = (3,)
    if checkpoint.recipe.get("ema"):
        expected |= {weights.EMA + name: shape for name, shape in shapes.weights(shapes.layers(checkpoint.spec)).items()}
    for kind in ("optimizer.", weights.EMA):
        if any(name.startswith(kind) for name in expected) and not any(name.startswith(kind) for name in arrays):
            raise Error(f"{path}: it has only weights; resume from {path.with_name(LAST)}")
    try:
        weights.check_state(arrays, expected)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    broken = weights.not_finite(arrays)
    if broken:
        raise Error(f"{path}: {broken[0]} has NaN or infinite values")
    return checkpoint


def _checked(arrays: State, about: Any) -> Checkpoint:
    """The checkpoint of arrays and metadata. Raises `Error` unless the metadata is of a run, and its parts fit each other."""
    if not isinstance(about, dict):
        raise Error("its metadata is not an object")
    given = {key: value for key, value in about.items() if key in (*ABOUT, "version")}
    check_keys(given, " ".join(ABOUT), "version", ABOUT | {"version": one_of(VERSION)})
    checkpoint = Checkpoint(arrays, *(about[key] for key in ABOUT))
    _, _, spec, step, sums, history = checkpoint
    networks.load(spec)
    if not recipes.VALUES["network"].accepts(checkpoint.recipe.get("network")):
        raise Error(f"recipe: 'network' is missing, or not {recipes.VALUES['network'].words}")
    network = checkpoint.recipe["network"]
    recipe = recipes.load(checkpoint.recipe | {"network": spec}) | {"network": network}
    ends = [0, *(row["step"] for row in history)]
    if [row["epoch"] for row in history] != list(range(1, len(ends))) or ends != sorted({*ends}):
        raise Error("'history' does not have one line per epoch, in order")
    if step < ends[-1] or sums[2] != (step - ends[-1]) * recipes.images_per_step(recipe):
        raise Error(f"'step' is {step}, 'history' goes to {ends[-1]}, and 'sums' is of {sums[2]:g} images since")
    return checkpoint._replace(recipe=recipe)


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
        raise Error(f"--set: the length of this run is given in {'epochs' if 'epochs' in before else 'steps'}")
    return recipe
