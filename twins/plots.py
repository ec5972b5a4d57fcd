"""All drawing: curves of runs, comparisons, maps, boxes. Files end in .png, .pdf or .svg."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from shared.checks import Error, printable
from shared.files import atomic_path, check_writable

from .boxes import Box, Localisation, upsampled
from .runlog import Row, measure

if TYPE_CHECKING:
    from . import compare

FORMATS = (".png", ".pdf", ".svg")
STYLES = (("--", "black"), (":", "tab:orange"))  # of the frameworks beside the first
FRAMEWORKS = {  # colours of epochs, by what trained them
    "PyTorch": "tab:red",
    "Keras": "gold",
    "JAX": "tab:green",
    "Keras on PyTorch": "tab:purple",
}
SMALLEST = 1e-17  # where exact agreement is drawn on a logarithmic axis


def check_figure(path: str | Path, source: str | Path | None = None) -> None:
    """Raise `Error` if a figure cannot be drawn into a file, or would replace its `source`, so that we fail before the work."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise Error(f"{path}: expected a file ending in {', '.join(FORMATS)}")
    check_writable(path)
    if source is not None and path.exists() and path.samefile(source):
        raise Error(f"{path}: this is the image itself; expected another file")


@contextlib.contextmanager
def figure(
    path: str | Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 4), dpi: int = 120, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) to draw on, written to `path` once the block is done; `options` are those of `Figure.subplots`.

    Without pyplot, so that nothing of the user's matplotlib is changed and no window is opened. Raises `Error` if the file
    cannot be written.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=size, layout="constrained")
    yield canvas, canvas.subplots(rows, columns, **options)
    with atomic_path(path) as temporary, warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
        canvas.savefig(temporary, dpi=dpi)


def draw_curves(runs: Mapping[str, Sequence[Row]], path: str | Path, title: str = "") -> None:
    """Draw losses and test accuracies of runs, {label: rows of its log}. Raises `Error` if the file cannot be written."""
    from matplotlib.ticker import MaxNLocator

    with figure(path, 1, 2, (10, 4)) as (canvas, (losses, accuracies)):
        for number, (name, rows) in enumerate(runs.items()):
            label = printable(name)
            epochs = [row["epoch"] for row in rows]
            # Curves may coincide: the first of several is broad and pale, the others are drawn over it.
            broad = number == 0 and len(runs) > 1
            look: dict[str, Any] = {"color": f"C{number}", "linewidth": 5 if broad else 1.4, "alpha": 0.4 if broad else 1}
            look |= {"marker": "o", "markersize": 3} if len(epochs) < 40 else {}
            losses.plot(epochs, [row["loss"] for row in rows], label=f"{label}, training", **look)
            losses.plot(epochs, [row["test_loss"] for row in rows], label=f"{label}, test", linestyle=":", **look)
            accuracies.plot(epochs, [100 * row[measure(row)] for row in rows], label=label, **look)
            _mark_frameworks(losses, rows)
        losses.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
        measures = sorted({measure(row).removeprefix("test_") for rows in runs.values() for row in rows})
        accuracies.set(xlabel="epoch", ylabel=f"test {' and '.join(measures).replace('miou', 'mIoU')}, %")
        for axes in (losses, accuracies):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
            for text in axes.legend(frameon=False).get_texts():
                text.set_parse_math(False)  # a dollar is a dollar
        canvas.suptitle(printable(title), parse_math=False)


def _mark_frameworks(axes: Any, rows: Sequence[Row]) -> None:
    """Mark the training losses of a run that has changed its framework by what each epoch was trained in."""
    names = list(dict.fromkeys(row["framework"] for row in rows))
    for name in names if len(names) > 1 else ():
        points = [(row["epoch"], row["loss"]) for row in rows if row["framework"] == name]
        colour = FRAMEWORKS.get(name, "grey")
        look: dict[str, Any] = {"s": 60, "color": colour, "edgecolors": "black", "zorder": 3}
        axes.scatter(*zip(*points, strict=True), label=f"trained in {printable(name)}", **look)


def draw_comparison(report: "compare.Report", path: str | Path) -> None:
    """Draw the loss curves of a comparison's training, and their difference. Raises `Error` if the file cannot be written."""
    numbers = range(1, len(report.steps) + 1)
    one, *others = report.frameworks
    words = {1: "two", 2: "three"}[len(others)]
    with figure(path, 2, 1, (7, 6), 150, sharex=True, height_ratios=(3, 2)) as (_, (losses, differences)):
        losses.plot(numbers, [step.losses[0] for step in report.steps], label=one, linewidth=5, alpha=0.35)
        for place, (other, (style, colour)) in enumerate(zip(others, STYLES, strict=False), start=1):
            line = [step.losses[place] for step in report.steps]
            losses.plot(numbers, line, label=other, linewidth=1.5, linestyle=style, color=colour)
        losses.set(ylabel="training loss", title=f"{report.network}, {report.dtype}: one run in {words} frameworks")
        between = [max(step.difference, SMALLEST) for step in report.steps]
        label = f"{one} and {others[0]}" if len(others) == 1 else f"{one} and the farther of {' and '.join(others)}"
        differences.semilogy(numbers, between, "o-", color="black", label=label)
        control = [max(step.control, SMALLEST) for step in report.steps]
        differences.semilogy(numbers, control, "x:", color="grey", label=f"{one}, one rounding apart")
        differences.set(xlabel="step", ylabel="relative difference", ylim=(SMALLEST / 2, None))
        differences.xaxis.get_major_locator().set_params(integer=True)
        for axes in (losses, differences):
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)


def draw_panels(panels: Sequence[tuple[str, np.ndarray]], path: str | Path, title: str = "") -> None:
    """Draw panels, [(title, picture or map)], side by side. Raises `Error` if the file cannot be written.

    A picture is uint8 (height, width, 1 or 3). Each map spans the whole range of colours, from its minimum to its maximum.
    """
    size = (3 * len(panels), 3.6)
    with figure(path, 1, len(panels), size, 150, squeeze=False) as (canvas, axes):
        for place, (above, pixels) in zip(axes[0], panels, strict=True):
            colours: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 3 else {"cmap": "viridis"}
            place.imshow(pixels, interpolation="nearest", **colours)
            place.set_title(printable(above), fontsize="medium", parse_math=False)
            place.set_axis_off()
        canvas.suptitle(printable(title), parse_math=False)


def draw_heat_map(
    picture: np.ndarray, localisation: Localisation, path: str | Path, threshold: float, truths: Sequence[Box] = ()
) -> None:
    """Draw the response over the picture, (height, width, 3), with its box in red, its peak, and true boxes in green.

    Raises `Error` if the file cannot be written.
    """
    from matplotlib import colormaps

    height, width = picture.shape[:2]
    left, top, right, bottom = (round(side) for side in localisation.window)
    response = np.clip(localisation.response, 0, None)
    heat = upsampled(response / (response.max() or 1), bottom - top, right - left)
    blended = picture.astype(np.float64)
    inside = blended[max(top, 0) : bottom, max(left, 0) : right]
    heat = heat[: inside.shape[0], : inside.shape[1]]
    inside[:] = 0.5 * inside + 127.5 * colormaps["inferno"](heat)[..., :3]
    image = Image.fromarray(blended.round().astype(np.uint8))
    pen, broad = ImageDraw.Draw(image), max(2, min(height, width) // 120)
    for truth in truths:
        pen.rectangle(_corners(truth), outline="lime", width=broad)
    box = localisation.box(threshold)
    if box:
        pen.rectangle(_corners(box), outline="red", width=broad)
    if localisation.peak:
        x, y = localisation.peak
        pen.ellipse([x - 2 * broad, y - 2 * broad, x + 2 * broad, y + 2 * broad], outline="white", width=broad)
    with atomic_path(path) as temporary:
        image.save(temporary)


def _corners(box: Box) -> list[float]:
    """The outermost pixels of a box; one narrower than a pixel has the pixel that it starts in."""
    left, top, right, bottom = box
    return [left, top, max(left, right - 1), max(top, bottom - 1)]


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draw how many images of each class, a row, are taken for which, as fractions of the row; of few classes with the numbers.

    Raises `Error` if the file cannot be written.
    """
    count = len(names)
    side = 3 + 0.35 * min(count, 40)
    with figure(path, 1, 1, (side + 0.8, side)) as (canvas, axes):
        totals = np.maximum(matrix.sum(1, keepdims=True), 1)
        drawn = axes.imshow(matrix / totals, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        canvas.colorbar(drawn, ax=axes, shrink=0.7, label="fraction of the class")
        axes.set(xlabel="prediction", ylabel="label")
        if count <= 40:
            axes.set_xticks(range(count), [_cut(name) for name in names], rotation=90)
            axes.set_yticks(range(count), [_cut(name) for name in names])
            for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
                text.set_parse_math(False)
        if count <= 20:
            for row, column in np.argwhere(matrix):
                colour = "white" if matrix[row, column] > totals[row] / 2 else "black"
                axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=7, color=colour)


def draw_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], path: str | Path, title: str = "") -> None:
    """Draw pictures, uint8 (height, width, 1 or 3), side by side, five in a row. Raises `Error` if it cannot be written."""
    rows = -(-len(pictures) // 5)
    with figure(path, rows, 5, (10, 2.3 * rows), squeeze=False) as (canvas, axes):
        for place in axes.flat:
            place.set_axis_off()
        for place, pixels, above in zip(axes.flat, pictures, titles, strict=False):
            place.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            place.set_title("\n".join(map(_cut, above.splitlines())), fontsize="small", parse_math=False)
        canvas.suptitle(title, parse_math=False)


def _cut(name: str, most: int = 24) -> str:
    """A name as it can be shown, shortened to `most` characters."""
    name = printable(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def draw_sweep(sweep: Mapping[float, Mapping[str, float]], path: str | Path, title: str = "") -> None:
    """Draw {threshold: `boxes.scores`} over the thresholds. Raises `Error` if the file cannot be written."""
    with figure(path) as (_, axes):
        for key, label in (("localisation_error", "localisation error"), ("mean_iou", "mean intersection over union")):
            axes.plot(list(sweep), [scores[key] for scores in sweep.values()], "o-", markersize=3, label=label)
        axes.set(xlabel="threshold, as a fraction of the peak", ylim=(0, 1))
        axes.set_title(printable(title), parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def draw_segmentations(
    rows: Sequence[Mapping[str, np.ndarray]], classes: Mapping[str, Sequence[int]], path: str | Path
) -> None:
    """Draw rows of pictures, each under its title, with the colours of the classes below.

    Raises `Error` if the file cannot be written.
    """
    from matplotlib.patches import Patch

    columns, shape = len(rows[0]), next(iter(rows[0].values())).shape
    width = max(10 / columns, 1.7)
    height = width * shape[0] / shape[1] + 0.35
    lines = -(-len(classes) // 6)
    size = width * columns, height * len(rows) + 0.3 * lines
    with figure(path, len(rows), columns, size, squeeze=False) as (canvas, axes):
        for places, row in zip(axes, rows, strict=True):
            for place, (title, pixels) in zip(places, row.items(), strict=True):
                place.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                place.set_title(_cut(title, 44), fontsize="small", parse_math=False)
                place.set_axis_off()
        patches = [Patch(color=f"#{bytes(colour).hex()}", label=_cut(name)) for name, colour in classes.items()]
        legend = canvas.legend(handles=patches, loc="outside lower center", ncols=6, fontsize="small", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
