"""`twins compare`."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from shared import limits, networks, shapes
from shared.checks import Error

from .. import backends
from ..backends import Backend
from . import options, output

if TYPE_CHECKING:
    from ..compare import Report


def compare(
    network: options.Network,
    weights: Annotated[str | None, typer.Option(help="A file with weights for both, or the word imagenet.")] = None,
    weights_key: options.WeightsKey = None,
    classes: options.Classes = None,
    channels: options.Channels = None,
    image: Annotated[Path | None, typer.Option(help="A picture to compare the activations on.")] = None,
    data: Annotated[str, typer.Option(help="Data to train on: digits, mnist, cifar10, … or an .npz file.")] = "digits",
    size: options.Size = None,
    dtype: Annotated[options.Dtype, typer.Option(help="Precision of the networks.")] = options.Dtype.FLOAT64,
    steps: Annotated[int, typer.Option(min=0, max=limits.WHOLE, help="Steps of training.")] = 20,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: chosen so that the first step lowers the loss by at most 2 %.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the two loss curves and their difference into this file.")] = None,
) -> None:
    """Build a network in both frameworks and compare them: shapes, activations, gradients, and a training run side by side.

    Exit status 1 if a bound of the ladder of parity is exceeded.
    """
    from shared import images, reading

    from .. import compare as comparison
    from .. import datasets, plots

    spec = networks.variant(networks.load(network), classes, channels)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise Error(f"--learning-rate is {learning_rate}, expected a number above 0")
    shapes.check_fits_memory(shapes.layers(spec, (size, size) if size else None))
    state = None
    if weights:
        spec, state = reading.load_weights(weights, spec, weights_key, output.remark, classes, channels)
    picture = images.read_picture(image) if image else None
    examples = datasets.load_data(data)
    if plot and not steps:
        raise Error("--plot draws the training, which --steps 0 leaves out")
    if plot:
        plots.check_figure(plot)
    with output.status("starting PyTorch and TensorFlow") as say:
        report = comparison.run(
            backends.start(Backend.BOTH), spec, state, picture, examples, (size, size) if size else None, dtype.value, steps,
            learning_rate, say=lambda text: say(f"{spec['name']}: {text}"),
        )  # fmt: skip
    if report.training:
        report.training["data"] = data
    if as_json:
        output.show_json(_summary(report))
    else:
        _show_report(report)
    if plot and report.steps:
        plots.draw_comparison(report, plot)
    sys.exit(1 if report.broken else 0)


def _summary(report: "Report") -> dict[str, Any]:
    from ..ladder import largest

    summary = asdict(report)
    for rung in ("activations", "gradients", "statistics", "weights"):
        differences = getattr(report, rung)
        summary[rung] = [difference._asdict() for difference in differences]
        if differences:
            summary[f"largest_{rung}"] = largest(differences)._asdict()
    summary["steps"] = [step._asdict() for step in report.steps]
    summary |= {"first_diverging_layer": report.first_diverging_layer, "judged_steps": report.judged_steps}
    return summary | {"bounds": report.bounds, "broken": report.broken, "passed": not report.broken}


def _show_report(report: "Report") -> None:
    one, two = report.frameworks
    output.show(f"{report.network}, {report.dtype}, images of {shapes.text(report.size)}", "")
    table = output.table("layer", f">{one}", f">{two}", ">difference", title="Activations")
    bound = report.bounds.get("activations", report.bounds.get("logits", math.inf))
    for name, (ours, theirs), value in report.activations:
        style = None if value <= bound else "red"
        table.add_row(name, shapes.text(ours), shapes.text(theirs), f"{value:.1e}", style=style)
    output.show(table)
    if report.steps:
        _show_steps(report)
    _show_rungs(report)
    _show_notes(report)
    for line in report.broken:
        output.show(Text(f"Bound exceeded: {line}", style="red"))
    if not report.broken:
        everything = report.judged_steps == len(report.steps) and not _says_little(report)
        judged = "Every bound of the ladder" if everything else "Every bound that says something"
        output.show(Text(f"{judged} holds.", style="green"))


def _show_steps(report: "Report") -> None:
    one, two = report.frameworks
    training = report.training
    title = (
        f"Training on {training['data']}: {shapes.text(training['size'])}, batches of {training['batch']}, "
        f"learning rate {training['learning_rate']:.3g}, momentum {training['momentum']}"
    )
    table = output.table(">step", f">{one}", f">{two}", ">difference", f">{one}, one rounding apart", title=title)
    for number, step in enumerate(report.steps, start=1):
        losses = [f"{loss:.13f}" if abs(loss) < 1e6 else f"{loss:.6e}" for loss in step.losses]
        dim = "dim" if number > report.judged_steps else None
        table.add_row(f"{number}", *losses, f"{step.difference:.1e}", f"{step.control:.1e}", style=dim)
    output.show("", table)


def _show_rungs(report: "Report") -> None:
    from ..ladder import largest

    bounds, count = report.bounds, len(report.steps)
    table = output.table("", ">largest difference", "where", ">bound", title="Overall")
    table.add_row("parameters", "equal" if len(set(report.parameters)) == 1 else "differ", f"{report.parameters[0]:,}", "equal")
    labels = {"statistics": "running statistics", "weights": f"weights after {count} steps"}
    for rung in ("activations", "gradients", "statistics", "weights"):
        if getattr(report, rung):
            name, _, value = largest(getattr(report, rung))
            bound = f"{bounds[rung]:.2g}" if rung in bounds else "none"
            judged = rung != "weights" or report.judged_steps == count
            table.add_row(labels.get(rung, rung), f"{value:.1e}", name, bound if judged else "not judged")
    if count:
        worst = max([step.difference for step in report.steps[: report.judged_steps]], default=0.0, key=_nan_last)
        bound = f"{bounds['losses']:g}" if "losses" in bounds else "none"
        table.add_row(f"losses of {report.judged_steps} steps", f"{worst:.1e}", "", bound)
    if "logits" in bounds:
        logits = report.activations[-1]
        table.add_row("logits", f"{logits.value:.1e}", logits.name, f"{bounds['logits']:g}")
    output.show("", table, "")


def _show_notes(report: "Report") -> None:
    from ..compare import CEILING

    one, two = report.frameworks
    if report.chaos:
        apart = ", ".join(f"{rung} {value:.1e}" for rung, value in report.chaos.items())
        output.show(
            f"This network magnifies rounding: started from weights one rounding apart, {one} departs from itself: {apart}. "
            f"Where ten times that exceeds the bound of the ladder, it is the bound; above {CEILING:g} it says little.",
        )
    if report.judged_steps < len(report.steps):
        output.show(
            f"From step {report.judged_steps + 1} this run is chaotic: started from weights one rounding apart, {one} departs "
            "from itself. Losses, weights and predictions are not judged from there.",
        )
    if report.accuracy:
        same = "the same predictions" if report.same_predictions else "different predictions"
        ours, theirs = (f"{accuracy:.2%}" for accuracy in report.accuracy)
        output.show(f"Test accuracy on {report.training['tested']} images: {one} {ours}, {two} {theirs}, {same}.")
        if report.training["labels_wrapped"]:
            output.show(
                "The data set has more classes than the network: labels wrap around, so the accuracy means nothing else."
            )
    if report.left_out:
        output.show(f"{report.left_out[0].upper()}{report.left_out[1:]}.")


def _says_little(report: "Report") -> bool:
    from ..compare import CEILING

    return any(10 * value > CEILING for value in report.chaos.values())


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
