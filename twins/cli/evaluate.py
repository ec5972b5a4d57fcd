"""`twins evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shared import networks, shapes
from shared.checks import Error
from shared.files import check_folder

from .. import backends
from ..backends import Backend
from . import options, output

LISTED = 20  # classes in the table; if there are more, those with the lowest recall


def evaluate(
    network: options.Network,
    data: Annotated[
        str,
        typer.Option(help="Images to test on: a folder, a CSV, digits, mnist, cifar10, … or an .npz file.", show_default=False),
    ],
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    holdout: options.Holdout = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder for the confusion matrix, the scores by class and the worst mistakes.")
    ] = None,
    backend: options.BackendOption = Backend.TORCH,
    workers: options.Workers = None,
    skip: options.SkipUnreadable = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure a trained network on the test images of a data set: top-1, top-5, precision and recall by class.

    From a folder, the images in test are used, else those in val, else all.
    With --backend both or all, the scores by class are PyTorch's.
    Exit status 2 if an image cannot be read, unless --skip-unreadable is given.
    """
    from shared import reading

    from .. import evaluation, loading
    from .. import predict as predictions

    spec = networks.load(network)
    if weights is None:
        raise Error("--weights is missing: an untrained network predicts nothing; expected a file, or the word imagenet")
    if out:
        check_folder(out)
    predictions.check_classifies(spec)
    spec, state = reading.load_weights(weights, spec, weights_key, output.remark)
    test = predictions.labelled_images(data, spec, holdout)
    with options.starting(backend):
        engines = backends.engines(backends.start(backend), spec, state, on_gpu=True)
    with loading.Loader(loading.default_workers() if workers is None else workers, skip) as loader:
        with output.progress(spec["name"], len(test.x)) as advance:
            found = predictions.evaluate(engines, spec, test.x, test.y, advance, loader)
    frameworks = [engine.framework for engine in engines]
    count = shapes.layers(spec)[-1].shape[0]
    names = networks.class_names(spec) or test.classes or [str(number) for number in range(count)]
    matrix = evaluation.confusion(found, count)
    results: dict[str, Any] = {"network": spec["name"], "weights": weights, "data": data, "frameworks": frameworks}
    results |= found.summary(frameworks) | {"unreadable": list(loader.unreadable)}
    results["classes"] = evaluation.by_class(matrix, names)
    if out:
        results["files"] = [str(path) for path in evaluation.write(out, matrix, names, test.x, evaluation.mistakes(found))]
    if as_json:
        output.show_json(results)
    else:
        _show(results)
    for line in loader.unreadable:
        output.complain(f"skipped: {line}")


def _show(results: dict[str, Any]) -> None:
    table = output.table("", *(f">{framework}" for framework in results["frameworks"]))
    for key, label in (("top1", "accuracy, top 1"), ("top5", "accuracy, top 5")):
        table.add_row(label, *(f"{fraction:.2%}" for fraction in results[key].values()))
    output.show(f"{results['network']} on {results['data']}, {results['tested']:,} images", table)
    if "same_predictions" in results:
        same = results["same_predictions"]
        output.show(f"The same prediction for {'all' if same == results['tested'] else f'{same:,}'} of them.")
    classes = results["classes"]
    shown = classes if len(classes) <= LISTED else sorted(classes, key=lambda row: row["recall"])[:LISTED]
    table = output.table("label", ">images", ">precision", ">recall")
    for row in shown:
        precision = "" if row["precision"] is None else f"{row['precision']:.2%}"
        table.add_row(row["name"], f"{row['images']:,}", precision, f"{row['recall']:.2%}")
    output.show("", table)
    if len(shown) < len(classes):
        output.show(f"The {LISTED} classes with the lowest recall, of {len(classes):,}; --json has all.")
    if "files" in results:
        output.show("", "Written: " + ", ".join(results["files"]))
