"""`twins locate`."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared import networks
from shared.checks import Error, in_words
from shared.files import check_folder
from shared.spec import Spec

from .. import backends
from ..backends import Backend
from . import options, output

if TYPE_CHECKING:
    from ..boxes import Localisation


def locate(
    network: options.Network,
    images: options.Pictures = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    target: Annotated[
        str | None,
        typer.Option("--class", help="Class to look for, by number or name. Default: each picture's likeliest class."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Keep positions above this fraction of the peak.")] = 0.2,
    alone: Annotated[
        bool, typer.Option("--exclusive", help="Keep only positions where no other class has a larger response.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder for the pictures with heat map and box.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder with pictures and a boxes.json to score against; or class folders, or a CSV.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --data: draw the errors at all thresholds to this file.")] = None,
    backend: options.BackendOption = Backend.TORCH,
    as_json: Annotated[bool, typer.Option("--json", help="With --data: print JSON instead of a table.")] = False,
) -> None:
    """Locate a class in pictures with a trained network: a JSON line per picture, or with --data how often the boxes are right.

    Exit status 2 if a picture cannot be read; the others are still processed.
    """
    from shared import reading

    from .. import locate as locations
    from .. import plots

    spec = networks.load(network)
    has_boxes = _check(images, weights, threshold, data, plot, as_json)
    networks.head(spec)
    spec, state = reading.load_weights(weights or "", spec, weights_key, output.remark)
    number, entries = _entries(spec, images, target, data)
    files = _files(out, entries) if out else []
    with options.starting(backend):
        engines = backends.engines(backends.start(backend), spec, state, on_gpu=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
    located: list[tuple[dict[str, Any], Localisation | None]] = []
    with output.progress(spec["name"], len(entries)) as advance:
        for result, picture, localisation in locations.locate_pictures(engines, spec, entries, number, threshold, alone):
            if not (as_json or has_boxes):
                output.show_json(result, indent=None)
            if out and picture is not None and localisation:
                at = len(located)
                plots.draw_heat_map(picture, localisation, files[at], threshold, entries[at].get("boxes", ()))
            located.append((result, localisation))
            advance(1)
    unread = sum("error" in result for result, _ in located)
    if data:
        summary: dict[str, Any] = {"network": spec["name"], "weights": weights, "data": str(data)}
        summary |= {"frameworks": [e.framework for e in engines], "pictures": len(located) - unread, "threshold": threshold}
        summary |= locations.summarise(located, entries, threshold, number is not None) if has_boxes else {}
        if plot and "sweep" in summary:
            plots.draw_sweep(summary["sweep"], plot, f"{spec['name']} on {data.resolve().name}, {summary['pictures']} pictures")
        _show(summary, [result for result, _ in located], as_json)
    sys.exit(2 if unread else 0)


def _show(summary: dict[str, Any], results: list[dict[str, Any]], as_json: bool) -> None:
    """Print how often boxes are right, and to stderr which pictures could not be read."""
    if as_json:
        output.show_json(summary | {"images": results})
    elif "sweep" in summary:
        _show_summary(summary)
    for result in results:
        if "error" in result:
            output.complain(result["error"])


def _check(
    images: list[Path] | None, weights: str | None, threshold: float, data: Path | None, plot: Path | None, as_json: bool
) -> bool:
    """Whether the data have boxes. Raises `Error` for options that do not fit, and files that cannot be read or written."""
    from .. import plots

    if not images and not data:
        raise Error("there is nothing to locate: pass pictures, or with --data a folder with a boxes.json")
    if images and data:
        raise Error(f"{images[0]}: pass either pictures or --data")
    if weights is None:
        raise Error("--weights is missing: an untrained network locates nothing; expected a file, or the word imagenet")
    if not 0 <= threshold < 1:
        raise Error(f"--threshold is {threshold}, expected at least 0 and below 1")
    has_boxes = bool(data and not _is_without_boxes(data))
    if plot and data and not has_boxes:
        raise Error(f"--plot draws errors, for which {data} needs a boxes.json")
    if (plot or as_json) and not data:
        raise Error(f"{'--plot' if plot else '--json'} is for --data; without it, each picture is a JSON line")
    options.check_pictures(images or [])
    if plot:
        plots.check_figure(plot)
    return has_boxes


def _entries(
    spec: Spec, images: list[Path] | None, target: str | None, data: Path | None
) -> tuple[int | None, list[dict[str, Any]]]:
    """(number of the class that is looked for, pictures). Raises `Error` for what the network or the folder does not have."""
    from .. import locate as locations
    from .. import predict as predictions

    predictions.check_classifies(spec)
    number = None if target is None else locations.class_number(target, spec)
    if not data:
        return number, [{"image": path} for path in images or []]
    if _is_without_boxes(data):
        entries = locations.read_pictures(data, spec)
        if number is None and all(entry["class"] is None for entry in entries):
            output.remark(f"{data}: {spec['name']} does not have these classes; looking for each picture's likeliest class.")
        output.remark(f"{data}: there is no boxes.json in it, so the boxes cannot be scored.")
        return number, entries
    entries = locations.read_boxes(data, spec)
    other = next((entry for entry in entries if number is not None and entry["class"] not in (None, number)), None)
    if other:
        raise Error(f"--class is {number}, but {data / 'boxes.json'} says that {other['image']} shows class {other['class']}")
    return number, entries


def _is_without_boxes(data: Path) -> bool:
    """Whether it is a CSV, or has no boxes.json but folders, which are classes."""
    if data.is_dir():
        return not (data / "boxes.json").exists() and any(path.is_dir() for path in data.iterdir())
    return data.suffix.lower() == ".csv"


def _files(folder: Path, entries: list[dict[str, Any]]) -> list[Path]:
    """A file in the folder for each picture, by its name; where two share a name, with a number. Raises `Error`."""
    check_folder(folder)
    images: list[Path] = [entry["image"] for entry in entries]
    originals = {_identity(image) for image in images if image.exists()}
    files: dict[Path, None] = {}
    numbers: Counter[str] = Counter()  # by name, the last that was given
    for image in images:
        file = folder / f"{image.stem}.png"
        while file in files:
            numbers[image.stem] += 1
            file = folder / f"{image.stem}-{numbers[image.stem] + 1}.png"
        if file.exists() and _identity(file) in originals:
            raise Error(f"{file}: this is one of the images; choose another folder with --out")
        files[file] = None
    return [*files]


def _identity(path: Path) -> tuple[int, int]:
    """What two paths of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _show_summary(summary: dict[str, Any]) -> None:
    rows = {
        "top1_classification_error": "classification error, top 1",
        "top5_classification_error": "classification error, top 5",
        "top1_localisation_error": "localisation error, top 1",
        "top5_localisation_error": "localisation error, top 5",
        "localisation_error": "localisation error, of the class that was looked for",
        "pointing_accuracy": "the peak, or the centre, lies in a box",
        "mean_iou": "mean intersection over union",
    }
    table = output.table("", f">threshold {summary['threshold']:g}", ">the whole picture")
    for key, label in rows.items():
        values = [scores[key] for scores in (summary, summary["whole_picture"]) if key in scores]
        if values:
            table.add_row(label, *(f"{value:.3f}" if key == "mean_iou" else f"{value:.2%}" for value in values))
    names = summary["frameworks"]
    output.show(f"{summary['network']} on {summary['data']}, {summary['pictures']} pictures, {in_words(names)}", table)
    if "same_boxes" in summary:
        same = summary["same_boxes"]
        output.show(
            f"The same class, box and peak in {output.all_of(len(names))} for "
            f"{'all' if same == summary['pictures'] else f'{same:,}'} of them."
        )
    errors = {at: scores["localisation_error"] for at, scores in summary["sweep"].items()}
    best = min(errors, key=lambda at: errors[at])
    output.show(f"The smallest localisation error on these pictures is {errors[best]:.2%}, at a threshold of {best:g}.")
