"""`twins segment`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared import networks
from shared.checks import Error
from shared.files import check_folder
from shared.spec import Spec

from .. import backends
from ..backends import Backend, Engine
from . import options, output

VOID = 255
CLASSES_SHOWN = 4  # of a picture


def segment(
    network: options.Network,
    images: options.Pictures = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    classes: options.Classes = None,
    out: Annotated[Path | None, typer.Option(help="Output folder for overlays, colours and class numbers of pictures.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Pictures with masks to measure on: a folder with images and masks, or a name.")
    ] = None,
    holdout: options.Holdout = None,
    ignore: Annotated[int, typer.Option(min=0, max=VOID, help="Mask value of pixels to ignore.")] = VOID,
    scales: Annotated[str, typer.Option(help="Average over the picture at several scales, such as 0.5,1,1.5.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average over the mirrored picture too.")] = False,
    backend: options.BackendOption = Backend.TORCH,
    workers: options.Workers = None,
    skip: options.SkipUnreadable = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Classify every pixel of pictures with a trained network, or with --data measure how well: mIoU, IoU by class.

    From a folder, the pictures in test are used, else those in val, else all.
    With --holdout, the pictures that training with the same --holdout held out.
    With --backend both or all, files and scores by class are PyTorch's.
    Exit status 2 if a picture cannot be read.
    """
    from shared import reading

    from .. import loading, pairs, segmentation

    spec = networks.load(network)
    factors = _factors(scales)
    _check(spec, images, weights, out, data)
    options.check_pictures(images or [])
    spec, state = reading.load_weights(weights or "", spec, weights_key, output.remark, classes)
    pairs.check_network(spec)
    test = segmentation.load_test(data, spec, holdout, ignore, factors, skip) if data else None
    with options.starting(backend):
        engines = backends.engines(backends.start(backend), spec, state, on_gpu=True)
    results: dict[str, Any] = {"network": spec["name"], "weights": weights}
    results["frameworks"] = [engine.framework for engine in engines]
    if not test or not test.coding:
        sys.exit(_pictures(engines, spec, images or [], out, factors, flip, results, as_json))
    reader = segmentation.Reader(spec, test.coding)
    with loading.Loader(loading.default_workers() if workers is None else workers, skip) as loader:
        with output.progress(spec["name"], len(test.x)) as advance:
            found = segmentation.measure(engines, test.x, test.y, reader, factors, flip, advance, loader)
    names = segmentation.names_of(spec, test.classes)
    results |= {"data": data, "unreadable": list(loader.unreadable)}
    results |= segmentation.summary(found, results["frameworks"], names, spec, factors, flip)
    if out:
        colours = segmentation.colours_of(names, test.coding)
        files = segmentation.write_report(out, found, engines, test.x, test.y, reader, names, colours, factors, flip)
        results["files"] = [str(path) for path in files]
    if as_json:
        output.show_json(results)
    else:
        _show(results)
    for line in loader.unreadable:
        output.complain(f"skipped: {line}")


def _factors(text: str) -> list[float]:
    """The numbers of --scales."""
    try:
        factors = [float(word) for word in text.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 < factor <= 16 for factor in factors):
        raise Error(f"--scales is {text}, expected numbers above 0, at most 16, such as 0.5,1,1.5")
    return factors


def _check(spec: Spec, images: list[Path] | None, weights: str | None, out: Path | None, data: str | None) -> None:
    """Raise `Error` for options that do not go together, and for a network of another kind."""
    if not networks.is_dense(spec):
        try:
            networks.head(spec)
            hint = "train it with the key head in the recipe, and pass the network.json of that run"
        except Error:
            hint = "it has no class maps"
        raise Error(f"{spec['name']} classifies whole images, not pixels: {hint}")
    if not images and not data:
        raise Error("there is nothing to segment: pass pictures, or a folder with --data")
    if images and data:
        raise Error(f"{images[0]}: pass either pictures or --data")
    if images and not out:
        raise Error("--out is missing: the folder for overlay, colours and class numbers of each picture")
    if weights is None:
        raise Error("--weights is missing: an untrained network segments nothing; expected a file")
    if out:
        check_folder(out)
        stems = [path.stem for path in images or []]
        twice = next((path for path, stem in zip(images or [], stems, strict=True) if stems.count(stem) > 1), None)
        if twice:
            raise Error(f"{twice}: another picture is also called {twice.stem}, and would get the same output files")


def _pictures(
    engines: list[Engine], spec: Spec, paths: list[Path], out: Path | None, scales: list[float], flip: bool,
    results: dict[str, Any], as_json: bool,
) -> int:  # fmt: skip
    """Segment pictures and print what they have; returns the exit status."""
    from .. import segmentation

    names = segmentation.names_of(spec)
    colours = segmentation.colours_of(names)
    results["images"], sizes = [], []
    assert out
    out.mkdir(parents=True, exist_ok=True)
    with output.progress(spec["name"], len(paths)) as advance:
        for path in paths:
            row: dict[str, Any] = {"image": str(path)}
            results["images"].append(row)
            advance(1)
            try:
                picture = segmentation.open_picture(spec, path, scales)
            except Error as error:
                row["error"] = str(error)
                continue
            found = segmentation.segment(engines, spec, picture, scales, flip)
            sizes.append((picture.height, picture.width))
            row |= {"size": [*sizes[-1]], "classes": segmentation.shares(found[0], names)}
            if len(found) > 1:
                row["same"] = float(segmentation.agreement(found).mean())
            files = segmentation.write_pictures(out / path.stem, picture, found[0], colours)
            row["files"] = [str(file) for file in files]
    results["sizes"] = segmentation.sizes(spec, sizes, scales, flip) if sizes else []
    if as_json:
        output.show_json(results)
    else:
        _show_pictures(results)
    for row in results["images"]:
        if "error" in row:
            output.complain(row["error"])
    return 2 if any("error" in row for row in results["images"]) else 0


def _show_pictures(results: dict[str, Any]) -> None:
    several = len(results["frameworks"]) > 1
    table = output.table("label", ">size", "classes", *([">same pixels"] if several else []))
    for row in results["images"]:
        if "classes" in row:
            shown = ", ".join(f"{each['name']} {each['fraction']:.0%}" for each in row["classes"][:CLASSES_SHOWN])
            height, width = row["size"]
            same = [f"{row['same']:.2%}"] if several else []
            table.add_row(Path(row["image"]).name, f"{width}x{height}", shown, *same)
    files = [file for row in results["images"] for file in row.get("files", [])]
    if files:
        output.show(table, *results["sizes"], f"Written: {', '.join(files[:3])}" + " and so on" * (len(files) > 3))


def _show(results: dict[str, Any]) -> None:
    from .. import segmentation

    output.show(f"{results['network']} on {results['data']}, {results['pictures']:,} pictures, {results['pixels']:,} pixels")
    output.show(*results["sizes"], "")
    table = output.table("", *(f">{framework}" for framework in results["frameworks"]))
    for key, label in (("miou", "mIoU"), ("boundary_miou", "mIoU near edges"), ("pixel_accuracy", "pixel accuracy")):
        table.add_row(label, *(_percent(value) for value in results[key].values()))
    near = f"the {results['boundary_pixels']:,} pixels within {segmentation.BAND} of an edge between two classes"
    output.show(table, f"Near edges: {near}.")
    if "same" in results:
        output.show(f"The same class for {results['same']:,} of the pixels.")
    table = output.table("label", ">pixels", ">IoU")
    for row in results["classes"]:
        table.add_row(row["name"], f"{row['pixels']:,}", _percent(row["iou"]))
    output.show("", table)
    if results["left_out"]:
        output.show(f"Not in the mean, as neither masks nor predictions have them: {', '.join(results['left_out'])}.")
    if not results["pixels"]:
        output.show("Every pixel of the masks is ignored, so there is no score.")
    if "files" in results:
        output.show("", "Written: " + ", ".join(results["files"]))


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"
