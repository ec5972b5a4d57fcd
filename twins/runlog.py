"""The log of a training run: reading it, comparing runs by it, and writing it for TensorBoard."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared import limits
from shared.checks import Error
from shared.coexist import silence
from shared.files import check_readable

Row = dict[str, Any]  # a line of the log: an epoch


# What a row has; a log needs only the first four.
NUMBERS = ("epoch", "loss", "test_loss", "test_accuracy", "step", "accuracy", "learning_rate", "images_per_sec")
MORE = ("test_top5", "ema_test_loss", "ema_test_accuracy", "ema_test_top5", "test_miou", "ema_test_miou")  # that some rows have


def read_log(run: str | Path, note: Callable[[str], None] = lambda text: None) -> list[Row]:
    """The rows of a run's log, one an epoch, from its folder or the path of the log. Raises `Error` if it cannot be read.

    A last line that is cut short, by a full disk or a power failure, is left out, and `note` is called with a text about it.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "log.jsonl"
    check_readable(path, most=limits.JSON)
    try:
        lines = path.read_bytes().splitlines()
        if lines and lines[-1].strip(b"\0")[:1] in (b"{", b"") and not _is_json(lines[-1]):
            note(f"{path}: the last line is truncated, and ignored")
            lines.pop()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not the log of a run: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not is_row(row, NUMBERS[:4]):
            raise Error(f"{path}: not the log of a run: line {number} lacks a value, or has one of the wrong kind")
    if not rows:
        raise Error(f"{path}: the log of a run whose first epoch is not complete")
    return rows


def is_row(row: Any, numbers: Sequence[str] = NUMBERS) -> bool:
    """Whether a value is a row of a log that has these numbers, finite and at least 0, and a framework."""
    if (
        type(row) is not dict
        or type(row.get("framework")) is not str
        or type(row.get("epoch")) is not int
        or type(row.get("step", 0)) is not int
    ):
        return False
    return all(is_amount(row.get(key)) for key in numbers) and all(is_amount(row[key]) for key in MORE if key in row)


def is_amount(value: Any) -> bool:
    """Whether a value is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def frameworks(rows: list[Row]) -> str:
    """The frameworks of a run, in order: "PyTorch and Keras"."""
    return " and ".join(dict.fromkeys(row["framework"] for row in rows))


def accuracy(row: Row) -> float:
    """The test accuracy after an epoch: of the weights or, if it is better, of their average."""
    return max(row["test_accuracy"], row.get("ema_test_accuracy", 0.0))


def measure(row: Row) -> str:
    """The key of the measure that the best epoch is chosen by."""
    return "test_miou" if "test_miou" in row else "test_accuracy"


def score(row: Row) -> float:
    """The mIoU after an epoch of a network that classifies every pixel, else the accuracy; of weights or average as there."""
    return max(row[measure(row)], row.get(f"ema_{measure(row)}", 0.0))


def is_averaged(row: Row) -> bool:
    """Whether `score` is of the average of the weights."""
    return bool(row.get(f"ema_{measure(row)}", -1.0) >= row[measure(row)])


def top5(row: Row) -> float | None:
    """The top-5 accuracy of what `accuracy` is of, None in a log without one."""
    return row.get("ema_test_top5" if is_averaged(row) else "test_top5")


def best_epoch(rows: list[Row]) -> Row:
    """The row with the best `score`, the first of several."""
    return max(rows, key=score)


def largest_difference(first: list[Row], other: list[Row]) -> float | None:
    """The largest relative difference of a loss, in training or testing, between the epochs that two runs have in common.

    None if they have none.
    """
    epochs = {row["epoch"]: row for row in other}
    pairs = [(row, epochs[row["epoch"]]) for row in first if row["epoch"] in epochs]
    if not pairs:
        return None
    return max((abs(a[key] - b[key]) / a[key] for a, b in pairs for key in ("loss", "test_loss") if a[key]), default=0.0)


def tensorboard(folder: str | Path) -> Callable[[Any], None]:
    """A function that writes each `training.Progress` for TensorBoard, which has to be installed."""
    with silence():  # it loads TensorFlow if that is installed
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(folder))

    def write(progress: Any) -> None:
        values = {"loss": progress.loss, "accuracy": progress.accuracy}
        if progress.row:
            values = {f"epoch/{key}": value for key, value in progress.row.items() if isinstance(value, float)}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=progress.step, summary=summary))
        if progress.row:
            writer.flush()

    return write
