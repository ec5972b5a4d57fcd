"""The log of a training run: reading it, comparing runs by it, and writing it for TensorBoard."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.checks import Error
from shared.coexist import silence

Row = dict[str, Any]  # a line of the log: an epoch


def read_log(run: str | Path) -> list[Row]:
    """The rows of a run's log, one an epoch, from its folder or the path of the log. Raises `Error` if it cannot be read."""
    path = Path(run)
    if path.is_dir():
        path = path / "log.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            numbers = [row[key] for key in ("epoch", "loss", "test_loss", "test_accuracy")]
            if not all(type(number) in (int, float) for number in numbers) or type(row["framework"]) is not str:
                raise ValueError(f"epoch {row['epoch']} has a value of another kind")
    except FileNotFoundError:
        raise Error(f"{path}: there is no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Error(f"{path}: not the log of a run: {error}") from None
    if not rows:
        raise Error(f"{path}: the log of a run whose first epoch is not complete")
    return rows


def frameworks(rows: list[Row]) -> str:
    """The frameworks of a run, in order: "PyTorch and Keras"."""
    return " and ".join(dict.fromkeys(row["framework"] for row in rows))


def accuracy(row: Row) -> float:
    """The test accuracy after an epoch: of the weights or, if it is better, of their average."""
    return max(row["test_accuracy"], row.get("ema_test_accuracy", 0.0))


def top5(row: Row) -> float | None:
    """The top-5 accuracy of what `accuracy` is of, None in a log without one."""
    averaged = row.get("ema_test_accuracy", -1.0) >= row["test_accuracy"]
    return row.get("ema_test_top5" if averaged else "test_top5")


def best_epoch(rows: list[Row]) -> Row:
    """The row with the best test accuracy, the first of several."""
    return max(rows, key=accuracy)


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
