"""`twins predict`."""

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from shared import networks, shapes
from shared.checks import Error

from .. import backends
from ..backends import Backend
from . import options, output


def predict(
    network: options.Network,
    images: options.Pictures = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    classes: options.Classes = None,
    channels: options.Channels = None,
    data: Annotated[
        str | None, typer.Option(help="Images to test on: a folder, a CSV, digits, mnist, cifar10, … or an .npz file.")
    ] = None,
    backend: options.BackendOption = Backend.TORCH,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Classify pictures with a trained network, or measure its accuracy on the test images of a data set.

    Exit status 2 if a picture cannot be read; the others are still classified.
    """
    from shared import reading

    from .. import loading
    from .. import predict as predictions

    spec = networks.variant(networks.load(network), classes, channels)
    if not images and not data:
        raise Error("there is nothing to predict: pass pictures, or a data set with --data")
    if images and data:
        raise Error(f"{images[0]}: pass either pictures or --data")
    if weights is None:
        raise Error("--weights is missing: an untrained network predicts nothing; expected a file, or the word imagenet")
    predictions.check_classifies(spec)
    options.check_pictures(images or [])
    spec, state = reading.load_weights(weights, spec, weights_key, output.remark, classes, channels)
    try:
        predictions.check_classifies(spec)
    except Error as error:
        raise Error(f"{data or weights}: {error}") from None
    examples = predictions.labelled_images(data, spec) if data else None
    with options.starting(backend):
        engines = backends.engines(backends.start(backend), spec, state, on_gpu=True)
    results: dict[str, Any] = {"network": spec["name"], "weights": weights}
    results["frameworks"] = [engine.framework for engine in engines]
    with output.progress(spec["name"], len(examples.x if examples else images or [])) as advance:
        if examples:
            with loading.Loader(loading.default_workers()) as loader:
                evaluation = predictions.evaluate(engines, spec, examples.x, examples.y, advance, loader)
            results |= {"data": data, **evaluation.summary(results["frameworks"])}
        else:
            results["images"] = predictions.classify_pictures(engines, spec, images or [], advance)
    if as_json:
        output.show_json(results)
    elif examples:
        _show_accuracy(results)
        labels, classes = examples.y.max() + 1, shapes.layers(spec)[-1].shape[0]
        if examples.classes is None and labels < classes:
            output.show(
                f"The data set has {labels:,} classes, the network {classes:,}: their numbers may mean different classes."
            )
    else:
        _show_pictures(results)
    sys.exit(2 if any("error" in picture for picture in results.get("images", [])) else 0)


def _show_accuracy(results: dict[str, Any]) -> None:
    accuracies = ", ".join(f"{name} {fraction:.2%}" for name, fraction in results["top1"].items())
    output.show(f"{results['network']} on {results['data']}, accuracy on {results['tested']:,} test images: {accuracies}.")
    if "same_predictions" in results:
        same = results["same_predictions"]
        output.show(f"The same prediction for {'all' if same == results['tested'] else f'{same:,}'} of them.")


def _show_pictures(results: dict[str, Any]) -> None:
    frameworks, pictures = results["frameworks"], results["images"]
    every, most = output.all_of(len(frameworks)), "at most " * (len(frameworks) > 2)
    for picture in pictures:
        if "error" in picture:
            output.show(Text(picture["error"], style="red"), "")
            continue
        named = picture["top"][0]["name"] is not None
        table = output.table(">class", *(["label"] if named else []), *(f">{framework}" for framework in frameworks))
        for row in picture["top"]:
            probabilities = (f"{probability:.2%}" for probability in row["probabilities"])
            table.add_row(f"{row['class']}", *([row["name"]] if named else []), *probabilities)
        output.show(Text(picture["image"], style="bold"), table)
        if len(frameworks) > 1:
            same = picture["same_top"]
            words = f"{'The same' if same else 'Not the same'} top classes in {every}"
            words = f"{words}; logits {most}{picture['difference']:.1e} apart."
            output.show(Text(words, style="green" if same else "red"))
        output.show("")
    read = [picture for picture in pictures if "top" in picture]
    if len(frameworks) > 1 and len(read) > 1:
        same, apart = sum(picture["same_top"] for picture in read), max(picture["difference"] for picture in read)
        output.show(f"{len(read)} pictures: the same top classes for {same}, logits at most {apart:.1e} apart.")
    if len(read) < len(pictures):
        output.show(Text(f"{len(pictures) - len(read)} of {len(pictures)} files could not be read.", style="red"))
