"""How well a network classifies, class by class: what it confuses, and its worst mistakes. scikit-learn counts."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.data import Images
from shared.files import write_text

from . import plots
from .predict import Evaluation

MISTAKES = 20  # on the sheet


class Mistake(NamedTuple):
    """An image that the network is wrong about."""

    place: int  # in the data set
    label: int
    predicted: int
    probability: float  # of the predicted class


def confusion(evaluation: Evaluation, count: int) -> np.ndarray:
    """How many images of each of `count` classes, a row each, are taken for which class, by the first engine."""
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(evaluation.labels, evaluation.top[0][:, 0], labels=np.arange(count))
    return matrix


def by_class(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A dictionary for each class that there are images of: "class", its number; "name"; "images"; "precision"; "recall".

    The precision of a class that is never predicted is None.
    """
    rows = []
    for number, name in enumerate(names):
        count, predicted, right = int(matrix[number].sum()), int(matrix[:, number].sum()), int(matrix[number, number])
        if count:
            precision = right / predicted if predicted else None
            rows.append({"class": number, "name": name, "images": count, "precision": precision, "recall": right / count})
    return rows


def mistakes(evaluation: Evaluation, most: int = MISTAKES) -> list[Mistake]:
    """The first engine's most confident mistakes, the most confident first."""
    predicted, sure = evaluation.top[0][:, 0], evaluation.probabilities[0]
    wrong = np.flatnonzero(predicted != evaluation.labels)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    return [
        Mistake(int(evaluation.places[at]), int(evaluation.labels[at]), int(predicted[at]), float(sure[at])) for at in worst
    ]


def write(folder: Path, matrix: np.ndarray, names: Sequence[str], x: Images, worst: Sequence[Mistake]) -> list[Path]:
    """Write confusion.csv and confusion.png, classes.csv, and mistakes.png if there are any; returns their paths.

    Raises `Error` if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("confusion.csv", "confusion.png", "classes.csv")]
    write_text(paths[0], _csv([["class", *names], *([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))]))
    plots.draw_confusion(matrix, names, paths[1])
    columns = ("class", "name", "images", "precision", "recall")
    write_text(paths[2], _csv([columns, *([row[key] for key in columns] for row in by_class(matrix, names))]))
    if worst:
        paths.append(folder / "mistakes.png")
        pictures = list(x[np.array([mistake.place for mistake in worst])])
        titles = [f"{names[m.label]}:\n{names[m.predicted]}, {m.probability:.0%}" for m in worst]
        plots.draw_sheet(pictures, titles, paths[-1], "label: prediction")
    return paths


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
