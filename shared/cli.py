"""The command `twins`. What looks things up imports neither framework, so that it is quick."""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import recipes, shapes, spec
from .spec import Error

app = typer.Typer(
    help="The same networks in PyTorch and in Keras, from one spec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Network = Annotated[str, typer.Argument(help="A name, as `twins list` shows it, or the path of a spec ending in .json.")]
BACKENDS = {"torch": ["PyTorch"], "tf": ["TensorFlow"], "both": ["PyTorch", "TensorFlow"]}  # what each starts
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main():
    """Run the command; a user's mistake ends in one message and exit status 2."""
    try:
        app()
    except (Error, OSError) as error:
        if not _rank():
            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"twins: {error}")
        sys.exit(2)


def _rank():
    """The number of this process of those that torchrun has started; 0 where it has started none."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


@app.command("list")
def list_networks(as_json: AsJson = False):
    """List all networks: name, title, parameters, multiply-accumulates, input, source."""
    rows = []
    for name in spec.names():
        network = json.loads((spec.SPECS / f"{name}.json").read_text(encoding="utf-8"))  # the tests have checked it
        layers = shapes.layers(network)
        macs = sum(row.macs for row in layers)
        rows.append(
            {
                "name": name,
                "title": network.get("title", ""),
                "parameters": shapes.parameters(layers),
                "macs": macs,
                "input": network["input"],
                "source": network.get("source", ""),
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    wide = _width() >= 120  # the sources have no room in less; `twins show` has them too
    table = _table("name", "title", ">parameters", ">MACs", "input", *(["source"] if wide else []))
    for row in rows:
        cells = [row["name"], row["title"], f"{row['parameters']:,}", _count(row["macs"]), _shape(row["input"])]
        table.add_row(*cells, *([row["source"]] if wide else []))
    _console(table)


@app.command()
def show(
    network: Network,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of the image, in pixels.")] = None,
    as_json: AsJson = False,
):
    """Show a network layer by layer: output shape, parameters, multiply-accumulates, receptive field, stride, dilation."""
    described = spec.load(network)
    rows = shapes.layers(described, size and (size, size))
    if as_json:
        keys = ("name", "type", "shape", "parameters", "macs", "field", "stride", "dilations")
        found = {key: described.get(key) for key in ("name", "title", "source", "input")}
        if size:
            found["input"] = [described["input"][0], size, size]
        found |= {"parameters": shapes.parameters(rows), "macs": sum(row.macs for row in rows)}
        found["layers"] = [{key: _finite(getattr(row, key)) for key in keys} for row in rows]
        print(json.dumps(found, indent=2))
        return
    table = _table("layer", "type", ">output", ">parameters", ">MACs", ">receptive\nfield", ">stride", ">dilation")
    for row in rows:
        field = "all" if math.isinf(row.field) else f"{row.field}"
        dilation = ", ".join(map(str, row.dilations))
        parameters, macs = (f"{row.parameters:,}" if row.parameters else ""), _count(row.macs) if row.macs else ""
        table.add_row(row.name, row.type, _shape(row.shape), parameters, macs, field, f"{row.stride}", dilation)
    table.add_section()
    macs = sum(row.macs for row in rows)
    table.add_row("in all", "", "", f"{shapes.parameters(rows):,}", _count(macs), "", "", "")
    _console(described.get("title", described["name"]), described.get("source", ""), table)


@app.command()
def compare(
    network: Network,
    weights: Annotated[str | None, typer.Option(help="A file with weights for both, or the word imagenet.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to compare the activations on.")] = None,
    data: Annotated[str, typer.Option(help="Data to train on: digits, mnist, cifar10, … or an .npz file.")] = "digits",
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of the images, in pixels.")] = None,
    dtype: Annotated[str, typer.Option(help="float64, float32 or bfloat16.")] = "float64",
    steps: Annotated[int, typer.Option(min=0, help="Steps of training.")] = 20,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the first step takes 2 % off the loss.")] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the two loss curves and their difference into this file.")] = None,
):
    """Build a network in both frameworks and compare them: shapes, activations, gradients, and a training run side by side.

    Exit status 1 where a bound of the ladder of parity is broken.
    """
    from . import checkpoints
    from . import compare as ladder
    from . import curves as pictures
    from . import data as datasets

    described = spec.load(network)
    if dtype not in ladder.BOUNDS:
        raise Error(f"--dtype is {dtype!r}{spec.nearest(dtype, ladder.BOUNDS)}; expected {', '.join(ladder.BOUNDS)}")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise Error(f"--learning-rate is {learning_rate}, expected a number above 0")
    shapes.layers(described, size and (size, size))  # finds out whether the network takes images of that size
    state = checkpoints.load(weights, described) if weights else None
    pixels = datasets.picture(image) if image else None
    examples = datasets.load(data)
    if plot and not steps:
        raise Error("--plot draws the training, of which --steps 0 leaves none")
    if plot:
        pictures.check_picture(plot)
    with Console(stderr=True).status("starting PyTorch and TensorFlow") as status:
        packages = _packages()
        report = ladder.run(
            packages, described, state, pixels, examples, size and (size, size), dtype, steps, learning_rate,
            say=lambda text: status.update(f"{described['name']}: {text}"),
        )  # fmt: skip
    if report.training:
        report.training["data"] = data
    if as_json:
        print(json.dumps(_finite(_summary(report)), indent=2))
    else:
        _print_report(report)
    if plot and report.steps:
        _plot(report, plot)
    sys.exit(1 if report.broken else 0)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint of any format, or the word imagenet.")],
    destination: Annotated[Path, typer.Argument(help="A file ending in the format it shall have.")],
    network: Annotated[str | None, typer.Option(help="Whose weights they are: a name or the path of a spec.")] = None,
):
    """Convert weights between PyTorch, Keras and other projects, and show where every array went.

    Formats: .safetensors, .pth, .pt, .th, .keras, .weights.h5, and .h5 of keras.applications. Code in files is never run.
    """
    from . import checkpoints

    with Console(stderr=True).status(f"{source} to {destination}") as status:
        if source == "imagenet":
            status.stop()  # the download has a progress bar of its own
        report = checkpoints.convert(source, destination, network)
    table = _table("from", ">shape", "to", ">shape")
    moved = [move for move in report.moves if not move.ignored]
    for move in moved:
        table.add_row(move.source, _shape(move.source_shape), move.destination, _shape(move.destination_shape))
    _console(table, "")
    ignored = {}
    for move in report.moves:
        if move.ignored:
            ignored.setdefault(move.ignored, []).append(move.source)
    for why, names in ignored.items():
        _console(f"Ignored ({why}): {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}.")
    for note in report.notes:
        _console(note)
    numbers = sum(math.prod(move.source_shape) for move in moved)
    left = f"; {len(report.moves) - len(moved)} ignored" if len(moved) < len(report.moves) else ""
    fitting = " or ".join(report.networks)
    _console(f"{len(moved)} arrays of {fitting}, {numbers:,} numbers, written to {destination}{left}.")


@app.command()
def export(
    network: Network,
    weights: Annotated[str | None, typer.Option(help="A file with the network's weights, or the word imagenet.")] = None,
    folds: Annotated[bool, typer.Option("--fold", help="Fold batch norms into the convolutions in front of them.")] = False,
    out: Annotated[
        list[Path] | None, typer.Option(help="A file, or a folder without an ending; may be repeated. Default: .safetensors.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of the images, in pixels.")] = None,
):
    """Write a trained network for inference elsewhere, read it back there, and show how far its logits are from PyTorch's.

    Formats: .safetensors and .pth, with the spec beside them in .json; .keras; .onnx; and a folder for TensorFlow's SavedModel.
    All in float32. Exit status 1 where the logits are more than 1e-4 apart.
    """
    from . import checkpoints, fold
    from . import export as exports

    described = spec.load(network)
    if weights is None:
        raise Error("--weights is missing: there is no use for an untrained network; expected a file, or the word imagenet")
    if size:
        described = described | {"input": [described["input"][0], size, size]}
        shapes.layers(described)  # finds out whether the network takes images of that size
    lean = fold.lean(described) if folds else described
    out = out or [Path(f"{lean['name']}.safetensors")]
    exports.check(out, (network, weights))
    state = checkpoints.load(weights, described)
    if folds:
        _print_folded(described, lean)
    with Console(stderr=True).status("starting " + " and ".join(BACKENDS[exports.backend(out)])) as status:
        _packages(exports.backend(out))
        found = exports.run(described, state, folds, out, say=lambda text: status.update(text))
    table = _table("file", "read back by", ">relative difference", ">largest difference")
    for row in found:
        late = not row.relative <= exports.BOUND
        table.add_row(f"{row.path}", row.reader, f"{row.relative:.1e}", f"{row.largest:.1e}", style="red" if late else None)
    _console(table)
    _console(f"The differences are from {described['name']} in PyTorch: logits for {exports.IMAGES} random images.")
    broken = [row for row in found if not row.relative <= exports.BOUND]
    for row in broken:
        _console(Text(f"{row.path}: its logits are more than {exports.BOUND:g} apart, relative to their norm.", style="red"))
    sys.exit(1 if broken else 0)


def _print_folded(described, lean):
    from .fold import norms

    there, stay = norms(described), norms(lean)
    if lean is described:
        _console(f"There is nothing to fold: {described['name']} has no batch norm directly behind a convolution.")
        return
    named = f"{', '.join(stay[:3])}{f' and {len(stay) - 3} more' if len(stay) > 3 else ''}"
    others = f"; {len(stay)} stay, directly behind no convolution: {named}" if stay else ""
    _console(f"{len(there) - len(stay)} batch norms folded into the convolutions in front of them{others}.")


@app.command()
def predict(
    network: Network,
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", help="Pictures of any size.")] = None,
    weights: Annotated[str | None, typer.Option(help="A file with the network's weights, or the word imagenet.")] = None,
    data: Annotated[str | None, typer.Option(help="Data to test on: digits, mnist, cifar10, … or an .npz file.")] = None,
    backend: Annotated[str, typer.Option(help="torch, tf or both.")] = "torch",
    as_json: AsJson = False,
):
    """Say what a trained network sees in pictures, or how often it is right on the test images of a data set.

    Exit status 2 where a picture cannot be read; the others are predicted all the same.
    """
    from . import checkpoints
    from . import data as datasets
    from . import predict as predictions

    described = spec.load(network)
    _check_backend(backend)
    if not images and not data:
        raise Error("there is nothing to predict: name pictures, or a data set with --data")
    if images and data:
        raise Error(f"{images[0]}: pictures and --data exclude one another")
    if weights is None:
        raise Error("--weights is missing: an untrained network predicts nothing; expected a file, or the word imagenet")
    predictions.check(described)
    _check_pictures(images or [])
    examples = datasets.load(data) if data else None
    if examples:
        try:
            predictions.check(described, examples)
        except Error as error:
            raise Error(f"{data}: {error}") from None
    state = checkpoints.load(weights, described)
    with Console(stderr=True).status("starting " + " and ".join(BACKENDS[backend])):
        engines = predictions.engines(_packages(backend), described, state)
    found = {"network": described["name"], "weights": weights, "frameworks": [engine.framework for engine in engines]}
    with _progress(described["name"], len(images or examples.x_test)) as seen:
        if data:
            found |= {"data": data, **predictions.accuracy(engines, described, examples.x_test, examples.y_test, seen)}
        else:
            found["images"] = predictions.pictures(engines, described, images, seen)
    if as_json:
        print(json.dumps(_finite(found), indent=2))
    elif data:
        _print_accuracy(found)
        labels, classes = examples.y_test.max() + 1, shapes.layers(described)[-1].shape[0]
        if labels < classes:
            _console(f"The data set has {labels:,} classes, the network {classes:,}: the same numbers may be other things.")
    else:
        _print_pictures(found)
    sys.exit(2 if any("error" in picture for picture in found.get("images", [])) else 0)


@app.command()
def activations(
    network: Network,
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    layer: Annotated[str, typer.Option(help="A layer, as `twins show` names it; of a group, as layer1, its last.")],
    out: Annotated[Path, typer.Option(help="A file ending in .png, .pdf or .svg.")],
    weights: Annotated[str | None, typer.Option(help="A file, or the word imagenet. Default: the initial weights.")] = None,
    backend: Annotated[str, typer.Option(help="torch or tf.")] = "torch",
):
    """Draw a picture as a network sees it beside a layer's map of highest mean activation, and say how much of a grid that is.

    The number is the share of the map's energy at the frequencies of the network's largest dilation: 1 for a pure grid.
    """
    from . import checkpoints, gridding
    from . import data as datasets
    from . import predict as predictions
    from .weights import initial

    described = spec.load(network)
    if backend not in ("torch", "tf"):
        raise Error(f"--backend is {backend!r}{spec.nearest(backend, ('torch', 'tf'))}; expected torch or tf")
    name = gridding.full_name(layer, described)
    _check_pictures([image])
    gridding.check(image, out)
    picture, batch = predictions.read(image, described)
    state = checkpoints.load(weights, described) if weights is not None else initial(described)
    with Console(stderr=True).status("starting " + BACKENDS[backend][0]):
        (engine,) = predictions.engines(_packages(backend), described, state)
    channel, seen = gridding.look(engine, batch, name)
    called = described["name"] + ("" if weights is not None else ", untrained")
    shown = datasets.pixels([picture], described)[0]
    gridding.draw([(image.name, shown), (f"{name}, channel {channel}", seen)], out, called)
    told = f"{name} in {engine.framework}: channel {channel}, a map of {_shape(seen.shape)}, mean {seen.mean(dtype=float):.4g}"
    _console(f"{called}: {told}; {gridding.told(seen, described, name)}.")


@app.command()
def locate(
    network: Network,
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", help="Pictures of any size.")] = None,
    weights: Annotated[str | None, typer.Option(help="A file with the network's weights, or the word imagenet.")] = None,
    wanted: Annotated[
        str | None, typer.Option("--class", help="The class to look for, by number or name. Default: a picture's likeliest.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="What a box holds: responses above this share of the largest.")] = 0.2,
    alone: Annotated[
        bool, typer.Option("--exclusive", help="A box holds only positions where no other class has a larger response.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for the pictures with heat map and box.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder with pictures and a boxes.json to measure errors on.")] = None,
    plot: Annotated[Path | None, typer.Option(help="With --data: draw the errors at all thresholds into this file.")] = None,
    backend: Annotated[str, typer.Option(help="torch, tf or both.")] = "torch",
    as_json: Annotated[bool, typer.Option("--json", help="With --data: print JSON instead of a table.")] = False,
):
    """Say where in pictures a trained network sees a class: a JSON line a picture, or with --data how often it is right.

    Exit status 2 where a picture cannot be read; the others are located all the same.
    """
    from . import checkpoints
    from . import curves as pictures
    from . import locate as places
    from . import predict as predictions

    described = spec.load(network)
    _check_backend(backend)
    if not images and not data:
        raise Error("there is nothing to look at: name pictures, or a folder with a boxes.json with --data")
    if images and data:
        raise Error(f"{images[0]}: pictures and --data exclude one another")
    if weights is None:
        raise Error("--weights is missing: an untrained network finds nothing; expected a file, or the word imagenet")
    if not 0 <= threshold < 1:
        raise Error(f"--threshold is {threshold}, expected at least 0 and below 1")
    if (plot or as_json) and not data:
        raise Error(f"{'--plot' if plot else '--json'} is for --data; without it, each picture is a JSON line")
    spec.head(described)
    predictions.check(described)
    number = None if wanted is None else places.number_of(wanted, described)
    _check_pictures(images or [])
    entries = places.read(data, described) if data else [{"image": path} for path in images]
    if plot:
        pictures.check_picture(plot)
    other = next((e for e in entries if number is not None and e.get("class") not in (None, number)), None)
    if other:
        raise Error(f"--class is {number}, but {data / 'boxes.json'} says that {other['image']} shows class {other['class']}")
    files = _beside(out, [entry["image"] for entry in entries]) if out else []
    state = checkpoints.load(weights, described)
    with Console(stderr=True).status("starting " + " and ".join(BACKENDS[backend])):
        engines = predictions.engines(_packages(backend), described, state)
    if out:
        out.mkdir(parents=True, exist_ok=True)
    count = 0
    with _progress(described["name"], len(entries)) as advance:

        def seen(about, picture, sight):
            nonlocal count
            if not data:
                print(json.dumps(_finite(about)), flush=True)
            if out and sight:
                places.draw(picture, sight, files[count], threshold, entries[count].get("boxes", ()))
            count += 1
            advance(1)

        found, sights = places.pictures(engines, described, entries, number, threshold, alone, seen)
    unread = [about for about in found if "error" in about]
    if data:
        told = {
            "network": described["name"],
            "weights": weights,
            "data": str(data),
            "frameworks": [engine.framework for engine in engines],
            "pictures": len(found) - len(unread),
            "threshold": threshold,
        }
        pairs = [(sight, entry) for sight, entry in zip(sights, entries, strict=True) if sight]
        if pairs:
            sights, truths = [sight for sight, _ in pairs], [entry["boxes"] for _, entry in pairs]
            known = number is not None or all(entry["class"] is not None for _, entry in pairs)
            sweep = {at: places.scores(sights, truths, at, known) for at in places.SWEEP}
            guess = places.guessed([about["size"] for about in found if "size" in about], truths)
            told |= places.scores(sights, truths, threshold, known) | {"whole_picture": guess, "sweep": sweep}
            if len(engines) > 1:
                told["same_boxes"] = sum(about.get("same_box", False) for about in found)
            if plot:
                places.draw_sweep(sweep, plot, f"{described['name']} on {data.resolve().name}, {len(sights)} pictures")
        if as_json:
            print(json.dumps(_finite(told | {"images": found}), indent=2))
        elif pairs:
            _print_places(told)
    for about in unread if data else ():
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"twins: {about['error']}")
    sys.exit(2 if unread else 0)


def _beside(folder, images):
    """A file in the folder for each image, by its name; where two have one name, with a number. Raises `Error`."""
    if folder.exists() and not folder.is_dir():
        raise Error(f"{folder}: a file; --out names a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise Error(f"{folder}: {there} is not writable")
    files = {}
    for image in images:
        number, file = 1, folder / f"{image.stem}.png"
        while file in files:
            number += 1
            file = folder / f"{image.stem}-{number}.png"
        if file.exists() and any(file.samefile(other) for other in images if other.exists()):
            raise Error(f"{file}: this is one of the images, expected another folder for --out")
        files[file] = image
    return list(files)


def _print_places(told):
    rows = {
        "top1_classification_error": "classification error, top 1",
        "top5_classification_error": "classification error, top 5",
        "top1_localisation_error": "localisation error, top 1",
        "top5_localisation_error": "localisation error, top 5",
        "localisation_error": "localisation error, of the class that was looked for",
        "pointing_accuracy": "the peak, or the middle, lies in a box",
        "mean_iou": "mean intersection over union",
    }
    table = _table("", f">threshold {told['threshold']:g}", ">the whole picture")
    for key, label in rows.items():
        values = [found[key] for found in (told, told["whole_picture"]) if key in found]
        if values:
            table.add_row(label, *(f"{value:.3f}" if key == "mean_iou" else f"{value:.2%}" for value in values))
    _console(f"{told['network']} on {told['data']}, {told['pictures']} pictures, {' and '.join(told['frameworks'])}", table)
    if "same_boxes" in told:
        same = told["same_boxes"]
        _console(f"The same class, box and peak in both for {'all' if same == told['pictures'] else f'{same:,}'} of them.")
    errors = {at: found["localisation_error"] for at, found in told["sweep"].items()}
    best = min(errors, key=errors.get)
    _console(f"The smallest localisation error on these same pictures is {errors[best]:.2%}, at a threshold of {best:g}.")


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help=f"The path of a recipe ending in .json, or {', '.join(recipes.names())}. Default: digits_residual."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="torch or tf.")] = "torch",
    out: Annotated[Path | None, typer.Option(help="The folder for what comes of it. Default: a new one under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a run of either backend: its folder.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train for so many epochs in all.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="Begin with the weights in a file, or with the word imagenet.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Layers to keep as they are, as layer1,layer2; or backbone.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile: torch.compile, or XLA in TensorFlow.")] = False,
    devices: Annotated[int | None, typer.Option(min=1, help="GPUs for tf, or parts of the CPU. For torch: torchrun.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write for TensorBoard, too.")] = False,
):
    """Train a network by a recipe, in PyTorch or in Keras; go on with a run in either.

    The folder gets last.safetensors, from which the run can go on, best.safetensors, the weights of the best epoch,
    network.json, recipe.json, log.jsonl and curves.png. Ctrl-C ends a run with nothing lost.
    """
    from . import checkpoints, curves, training

    if backend not in ("torch", "tf"):
        raise Error(f"--backend is {backend!r}{spec.nearest(backend, BACKENDS)}; expected torch or tf")
    if devices and backend == "torch":
        raise Error(f"--devices is for --backend tf; with PyTorch: torchrun --nproc-per-node {devices} -m shared.cli train …")
    if "TORCHELASTIC_RUN_ID" in os.environ and backend == "tf":
        raise Error("torchrun is for --backend torch; with tf, one process has all devices: --devices N")
    if devices and compiled:
        raise Error("--devices and --compile exclude one another: XLA compiles no step of several devices")
    if tensorboard and not importlib.util.find_spec("tensorboard"):
        raise Error("--tensorboard needs TensorBoard: pip install tensorboard")
    if resume and (init is not None or freeze is not None):
        raise Error("--init and --freeze are for the start of a run, --resume goes on with one")
    changes = [*(changes or []), *([f"init={init}"] if init is not None else [])]
    changes += [f"freeze={json.dumps(freeze.split(','))}"] if freeze is not None else []
    checkpoint = training.read(resume) if resume else None
    if checkpoint:
        name = checkpoint.recipe["name"]
        if recipe is not None and recipes.load(recipe)["name"] != name:
            raise Error(f"{resume}: a checkpoint of a run of {name}, not of {recipe}")
    begun = checkpoint.recipe if checkpoint else recipes.load("digits_residual" if recipe is None else recipe)
    if epochs and "epochs" in recipes.changed(begun, changes):
        changes.append(f"epochs={epochs}")
    if checkpoint:
        described = training.resumed(checkpoint, changes)
    else:
        described = recipes.load(recipes.changed(begun, changes))
        if described["freeze"] and "init" not in described:
            raise Error(f"{described['name']}: 'freeze' keeps weights as they are, so --init has to say which: a file of them")
    network, data = training.prepare(described, checkpoint and checkpoint.spec)
    per_epoch = training.steps_per_epoch(described, data)
    if epochs and "steps" in described:
        described = recipes.changed(described, [f"steps={epochs * per_epoch}"])
    steps, done = recipes.length(described, per_epoch), checkpoint.step if checkpoint else 0
    folder = _run_folder(out, resume, f"{described['name']}-{backend}")
    title = described.get("title", described["name"])
    if checkpoint and done >= steps:
        curves.draw({curves.label(checkpoint.history): checkpoint.history}, folder / "curves.png", title)
        raise Error(f"{resume}: the run is complete, {done:,} steps; more --epochs than {-(-done // per_epoch)} would go on")
    best = resume and (resume if resume.is_dir() else resume.parent) / "best.safetensors"
    published = checkpoints.backbone(described["init"], network) if "init" in described and not resume else {}
    with _interruptible() as pressed:
        with Console(stderr=True).status("starting " + BACKENDS[backend][0]):
            (package,) = _packages(backend)
            engine = package.trainer(network, described, compiled, **({"devices": devices} if devices else {}))
        arrays = checkpoint.arrays if checkpoint else engine.state() | published
        engine.load(arrays, done)
        if engine.rank == 0:
            _print_start(f"{title}, {engine.framework}", folder, described, steps, done, arrays, published)
        hear = curves.tensorboard(folder) if tensorboard and engine.rank == 0 else lambda progress: None
        if best and best.exists() and folder != best.parent and not engine.rank:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(best, folder)  # until a better one comes
        run = training.run(engine, described, network, data, folder, checkpoint, stop=lambda: bool(pressed))
        history = list(checkpoint.history) if checkpoint else []
        last = _watch(run, done, described["batch"], history, hear, quiet=engine.rank > 0)
    if engine.rank:
        return
    if history:
        row, where = max(history, key=lambda row: row["test_accuracy"]), folder / "best.safetensors"
        _console(f"Best test accuracy {row['test_accuracy']:.2%}, after epoch {row['epoch']}" + f": {where}" * where.exists())
        curves.draw({curves.label(history): history}, folder / "curves.png", title)
    if last.step < last.steps:
        again = f"--resume {folder} --backend {backend}" + (f" --devices {devices}" if devices else "")
        message = f"twins: interrupted after step {last.step:,} of {last.steps:,}; go on with: twins train {again}"
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message)
        sys.exit(128 + pressed[0])


def _run_folder(out, resume, name):
    """The folder of a run. Raises `Error` where another run is in it already, or it cannot be made."""
    own = resume and (resume if resume.is_dir() else resume.parent)
    if own and (not out or (out.exists() and out.samefile(own))):
        if resume.is_file() and not resume.samefile(own / "last.safetensors"):
            raise Error(f"{resume}: the run in {own} has gone on since; --out would be right, a folder for another run")
        return own
    if not out:
        out, number = Path("runs", name), 1
        while out.exists():
            number += 1
            out = Path("runs", f"{name}-{number}")
    elif (out / "last.safetensors").exists() and not _rank():
        raise Error(f"{out}: a run is there already; go on with it by --resume {out}, or choose another folder")
    there = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Error(f"{out}: cannot be made: {there} is {'not writable' if there.is_dir() else 'a file'}")
    return out


@contextlib.contextmanager
def _interruptible():
    """Ctrl-C, or SIGTERM, is written into the list that this gives; a second one ends the process."""
    pressed = []

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or their logs.")],
    out: Annotated[Path, typer.Option(help="A file ending in .png, .pdf or .svg.")],
    label: Annotated[list[str] | None, typer.Option(help="What a run is called, in order. Default: its path.")] = None,
    title: Annotated[str, typer.Option(help="What stands above.")] = "",
):
    """Draw the losses and test accuracies of several runs into one picture, and say how far they are apart."""
    from . import curves as pictures

    pictures.check_picture(out)
    logs = [pictures.read(run) for run in runs]
    if label and len(label) != len(runs):
        raise Error(f"there are {len(runs)} runs and {len(label)} labels, expected a --label for each")
    label = label or [f"{run}" for run in runs]
    if len({*label}) < len(label):
        raise Error("two runs are called the same, expected a --label of its own for each")
    pictures.draw(dict(zip(label, logs, strict=True)), out, title)
    table = _table("run", ">epochs", ">best test accuracy", ">after epoch", ">difference")
    for name, rows in zip(label, logs, strict=True):
        best = max(rows, key=lambda row: row["test_accuracy"])
        pairs = [(ours, theirs) for ours, theirs in zip(logs[0], rows, strict=False) if ours["epoch"] == theirs["epoch"]]
        apart = max((abs(a[key] - b[key]) / a[key] for a, b in pairs for key in ("loss", "test_loss") if a[key]), default=0)
        difference = "" if rows is logs[0] else f"{apart:.1e}"
        table.add_row(name, f"{len(rows)}", f"{best['test_accuracy']:.2%}", f"{best['epoch']}", difference)
    _console(table)
    if len(runs) > 1:
        _console("Difference: the largest of an epoch's losses, in training and testing, from the first run's, relative to it.")


def _check_backend(backend):
    if backend not in BACKENDS:
        raise Error(f"--backend is {backend!r}{spec.nearest(backend, BACKENDS)}; expected {', '.join(BACKENDS)}")


def _check_pictures(paths):
    """Find out before the work whether the files are there."""
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise Error(f"{folders[0]}: a folder; its pictures would be right, as {folders[0] / '*.jpg'}")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise Error(f"{missing[0]}: there is no such file" + (f", nor {', '.join(missing[1:])}" if missing[1:] else ""))


@contextlib.contextmanager
def _progress(text, total):
    """A bar on stderr, with images a second and the time left; gives what is to hear how many more images are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]}")
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(text, total=total, speed="")

        def seen(count):
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g} images/s" if speed else "")

        yield seen


def _print_start(title, folder, recipe, steps, done, arrays, published):
    going_on = f", going on from step {done:,}" if done else ""
    _console(f"{title}: {steps:,} steps of {recipe['batch']} images{going_on}, into {folder}")
    if published:
        fresh = [name for name in arrays if name not in published and not name.startswith("optimizer.")]
        begun = f"; {', '.join(fresh)} begin anew" if fresh else ""
        _console(f"{len(published)} arrays are those of {recipe['init']}{begun}.")


def _watch(run, done, batch, history, hear, quiet):
    """Show a run with a bar, and a line an epoch, which go into `history` too; returns the last `Progress`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True, highlight=False, markup=False)
    columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    shown = screen.is_terminal and not quiet
    bar = Progress(*columns, console=screen, transient=True, disable=not shown, redirect_stdout=False)
    say = screen.print if shown and sys.stdout.isatty() else _console  # above the bar, where both are on one screen
    with bar:
        task = bar.add_task("", total=None, told="", completed=done)
        for now in run:
            hear(now)
            speed = bar.tasks[0].speed
            told = f"loss {now.loss:.4f}  accuracy {now.accuracy:.2%}  {batch * speed if speed else 0:,.0f} images/s"
            bar.update(task, completed=now.step, total=now.steps, description=f"epoch {now.epoch}", told=told)
            if now.row:
                history[:] = [row for row in history if row["epoch"] < now.epoch] + [now.row]
                if not quiet:
                    say(_epoch(now.row))
    return now


def _epoch(row):
    return (
        f"epoch {row['epoch']:>3}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  "
        f"test loss {row['test_loss']:.4f}  test accuracy {row['test_accuracy']:.2%}  "
        f"rate {row['learning_rate']:.3g}  {row['images_per_sec']:,.0f} images/s"
    )


def _print_accuracy(found):
    accuracies = ", ".join(f"{name} {share:.2%}" for name, share in zip(found["frameworks"], found["accuracy"], strict=True))
    _console(f"{found['network']} on {found['data']}, accuracy on {found['tested']:,} test images: {accuracies}.")
    if "same_predictions" in found:
        same = found["same_predictions"]
        _console(f"The same prediction for {'all' if same == found['tested'] else f'{same:,}'} of them.")


def _print_pictures(found):
    frameworks, pictures = found["frameworks"], found["images"]
    for picture in pictures:
        if "error" in picture:
            _console(Text(picture["error"], style="red"), "")
            continue
        named = picture["top"][0]["name"] is not None
        columns = [">class", *(["label"] if named else []), *(f">{framework}" for framework in frameworks)]
        table = _table(*columns)
        for row in picture["top"]:
            chances = (f"{probability:.2%}" for probability in row["probabilities"])
            table.add_row(f"{row['class']}", *([row["name"]] if named else []), *chances)
        _console(Text(picture["image"], style="bold"), table)
        if len(frameworks) > 1:
            same = picture["same_top"]
            words = f"{'The same' if same else 'Not the same'} top classes in both; logits {picture['difference']:.1e} apart."
            _console(Text(words, style="green" if same else "red"))
        _console("")
    seen = [picture for picture in pictures if "top" in picture]
    if len(frameworks) > 1 and len(seen) > 1:
        same, apart = sum(picture["same_top"] for picture in seen), max(picture["difference"] for picture in seen)
        _console(f"{len(seen)} pictures: the same top classes for {same}, logits at most {apart:.1e} apart.")
    if len(seen) < len(pictures):
        _console(Text(f"{len(pictures) - len(seen)} of {len(pictures)} files could not be read.", style="red"))


def _packages(backend="both"):
    from .coexist import silence

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else PyTorch's idle threads spin, and TensorFlow waits for a core
    packages = []
    with silence():  # PyTorch first: it looks for a GPU, and warns when TensorFlow has looked before it
        if "PyTorch" in BACKENDS[backend]:
            import torch_impl

            packages.append(torch_impl)
        if "TensorFlow" in BACKENDS[backend]:
            try:
                import keras_impl
            except ValueError as error:
                raise Error(f"KERAS_BACKEND is {os.environ.get('KERAS_BACKEND')!r}: {error}; expected tensorflow") from None

            packages.append(keras_impl)
    return packages


def _summary(report):
    from .compare import largest

    found = asdict(report)
    for rung in ("activations", "gradients", "statistics", "weights"):
        differences = getattr(report, rung)
        found[rung] = [difference._asdict() for difference in differences]
        if differences:
            found[f"largest_{rung}"] = largest(differences)._asdict()
    found["steps"] = [step._asdict() for step in report.steps]
    found |= {"first_diverging_layer": report.first_diverging_layer, "judged_steps": report.judged_steps}
    return found | {"bounds": report.bounds, "broken": report.broken, "passed": not report.broken}


def _print_report(report):
    from .compare import CEILING, largest

    one, two = report.frameworks
    bounds = report.bounds
    _console(f"{report.network}, {report.dtype}, images of {_shape(report.size)}", "")
    table = _table("layer", f">{one}", f">{two}", ">difference", title="Activations")
    for name, (ours, theirs), value in report.activations:
        late = not value <= bounds.get("activations", bounds.get("logits"))
        table.add_row(name, _shape(ours), _shape(theirs), f"{value:.1e}", style="red" if late else None)
    _console(table)

    table = _table("", ">largest difference", "where", ">bound", title="In all")
    table.add_row("parameters", "equal" if len(set(report.parameters)) == 1 else "differ", f"{report.parameters[0]:,}", "equal")
    for rung in ("activations", "gradients", "statistics", "weights"):
        if getattr(report, rung):
            name, _, value = largest(getattr(report, rung))
            label = {"weights": f"weights after {len(report.steps)} steps", "statistics": "running statistics"}.get(rung, rung)
            bound = f"{bounds[rung]:.2g}" if rung in bounds else "none"
            bound = "not judged" if rung == "weights" and report.judged_steps < len(report.steps) else bound
            table.add_row(label, f"{value:.1e}", name, bound)
    if report.steps:
        worst = max([step.difference for step in report.steps[: report.judged_steps]], default=0.0, key=_nan_last)
        label = f"losses of {report.judged_steps} steps"
        table.add_row(label, f"{worst:.1e}", "", f"{bounds['losses']:g}" if "losses" in bounds else "none")
    if "logits" in bounds:
        table.add_row("logits", f"{report.activations[-1].value:.1e}", report.activations[-1].name, f"{bounds['logits']:g}")

    if report.steps:
        t = report.training
        title = (
            f"Training on {t['data']}: {_shape(t['size'])}, batches of {t['batch']}, "
            f"learning rate {t['learning_rate']:.3g}, momentum {t['momentum']}"
        )
        steps = _table(">step", f">{one}", f">{two}", ">difference", f">{one}, one rounding apart", title=title)
        for number, step in enumerate(report.steps, start=1):
            losses = [f"{loss:.13f}" if abs(loss) < 1e6 else f"{loss:.6e}" for loss in step.losses]
            dim = "dim" if number > report.judged_steps else None
            steps.add_row(f"{number}", *losses, f"{step.difference:.1e}", f"{step.control:.1e}", style=dim)
        _console("", steps)
    _console("", table, "")
    if report.chaos:
        apart = ", ".join(f"{rung} {value:.1e}" for rung, value in report.chaos.items())
        _console(
            f"This network magnifies rounding: when its weights begin one rounding apart, {one} departs from itself: {apart}. "
            f"Where ten times that is more than the bound of the ladder, it is the bound; above {CEILING:g} it says little.",
        )
    if report.steps and report.judged_steps < len(report.steps):
        _console(
            f"From step {report.judged_steps + 1} on this run is chaotic: {one} departs from itself when its weights begin one "
            "rounding apart. From there losses, weights and predictions are not judged.",
        )
    if report.accuracy:
        same = "the same predictions" if report.same_predictions else "different predictions"
        ours, theirs = (f"{accuracy:.2%}" for accuracy in report.accuracy)
        _console(f"Test accuracy on {report.training['tested']} images: {one} {ours}, {two} {theirs}, {same}.")
        if report.training["labels_wrapped"]:
            _console("The data set has more classes than the network: labels wrapped around, the accuracy says nothing else.")
    if report.left_out:
        _console(f"{report.left_out[0].upper()}{report.left_out[1:]}.")
    for line in report.broken:
        _console(Text(f"Bound broken: {line}", style="red"))
    if not report.broken:
        loose = any(10 * value > CEILING for value in report.chaos.values())
        everything = report.judged_steps == len(report.steps) and not loose
        judged = "Every bound of the ladder" if everything else "Every bound that says something"
        _console(Text(f"{judged} is kept.", style="green"))


def _plot(report, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from .weights import aside

    numbers = range(1, len(report.steps) + 1)
    figure, (losses, differences) = pyplot.subplots(2, sharex=True, figsize=(7, 6), height_ratios=(3, 2), layout="constrained")
    for column, style in ((0, {"linewidth": 5, "alpha": 0.35}), (1, {"linewidth": 1.5, "linestyle": "--", "color": "black"})):
        losses.plot(numbers, [step.losses[column] for step in report.steps], label=report.frameworks[column], **style)
    losses.set(ylabel="training loss", title=f"{report.network}, {report.dtype}: one run in two frameworks")
    losses.legend(frameon=False)
    tiny = 1e-17  # an exact agreement has no place on a logarithmic axis but its lower end
    between = f"{report.frameworks[0]} and {report.frameworks[1]}"
    differences.semilogy(numbers, [max(step.difference, tiny) for step in report.steps], "o-", color="black", label=between)
    apart = f"{report.frameworks[0]}, one rounding apart"
    differences.semilogy(numbers, [max(step.control, tiny) for step in report.steps], "x:", color="grey", label=apart)
    differences.set(xlabel="step", ylabel="relative difference", ylim=(tiny / 2, None))
    differences.xaxis.get_major_locator().set_params(integer=True)
    differences.legend(frameon=False)
    for axes in (losses, differences):
        axes.spines[["top", "right"]].set_visible(False)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _nan_last(value):
    return math.inf if math.isnan(value) else value


def _table(*columns, title=None):
    """A table; a column whose name begins with > is flush right."""
    table = Table(
        title=title and Text(title),
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2 if _width() >= 100 else 1, 0, 0),
    )
    for column in columns:
        right = column.startswith(">")
        folds = column in ("source", "title", "label")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=not folds)
    return table


def _console(*things):
    console = Console(highlight=False, markup=False, width=_width())
    for thing in things:
        console.print(thing)


def _width():
    # A pipe has no width of its own: wide enough there for a row to stay a row.
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def _shape(shape):
    return "x".join(map(str, shape))


def _count(number):
    """1.81 G, 40.8 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number}"


def _finite(value):
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
