"""What runs of training look like: their curves in one picture, and as TensorBoard shows them."""

import json
import time
from pathlib import Path

from .coexist import silence
from .spec import Error
from .weights import aside, check_place

KINDS = (".png", ".pdf", ".svg")


def check_picture(path):
    """Raise `Error` where a picture could not be drawn into a file, which is good to know before the work."""
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise Error(f"{path}: expected a file ending in {', '.join(KINDS)}")
    check_place(path)


def read(run):
    """The rows of a run's log, one an epoch, from its folder or the path of the log. Raises `Error` where it cannot be read."""
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
        raise Error(f"{path}: the log of a run whose first epoch is not done")
    return rows


def label(rows):
    """The frameworks of a run, in order: "PyTorch and Keras"."""
    return " and ".join(dict.fromkeys(row["framework"] for row in rows))


def draw(runs, path, title=""):
    """Draw losses and test accuracies of runs, {label: rows of its log}, into a file ending in one of the `KINDS`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (label, rows) in enumerate(runs.items()):
        epochs = [row["epoch"] for row in rows]
        # Curves may lie on one another: the first of several is broad and pale, the others are drawn over it.
        broad = number == 0 and len(runs) > 1
        look = {"color": f"C{number}", "linewidth": 5 if broad else 1.4, "alpha": 0.4 if broad else 1}
        look |= {"marker": "o", "markersize": 3} if len(epochs) < 40 else {}
        losses.plot(epochs, [row["loss"] for row in rows], label=f"{label}, training", **look)
        losses.plot(epochs, [row["test_loss"] for row in rows], label=f"{label}, test", linestyle=":", **look)
        accuracies.plot(epochs, [100 * row["test_accuracy"] for row in rows], label=label, **look)
    losses.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    accuracies.set(xlabel="epoch", ylabel="test accuracy, %")
    for axes in (losses, accuracies):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)  # a dollar is a dollar
    figure.suptitle(title, parse_math=False)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def tensorboard(folder):
    """What hears of a run's `Progress` and writes it for TensorBoard, which has to be installed."""
    with silence():  # it loads TensorFlow where that is there
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(folder))

    def hear(progress):
        values = {"loss": progress.loss, "accuracy": progress.accuracy}
        if progress.row:
            values = {f"epoch/{key}": value for key, value in progress.row.items() if isinstance(value, float)}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=progress.step, summary=summary))
        if progress.row:
            writer.flush()

    return hear
