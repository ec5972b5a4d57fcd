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
    steps: Annotated[int, typer.Option(min=0, max=limits.WHOLE, help="Training steps.")] = 20,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: chosen so that the first step lowers the loss by at most 2 %.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    backend: options.BackendOption = Backend.BOTH,
    plot: Annotated[Path | None, typer.Option(help="Draw the loss curves and their differences to this file.")] = None,
) -> None:
    """Build a network in both frameworks and compare them: shapes, activations, gradients, and a training run side by side.

    With --backend jax or keras-torch, Keras runs on JAX or PyTorch; with all, on TensorFlow and JAX, each against PyTorch.
    Exit status 1 if any parity tolerance is exceeded.
    """
    from shared import images, reading

    from .. import compare as comparison
    from .. import datasets, plots

    backends.check_backend(backend, set(Backend) - {Backend.TORCH, Backend.TF}, "a comparison is of PyTorch with Keras")
    spec = networks.variant(networks.load(network), classes, channels)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise Error(f"--learning-rate is {learning_rate}, expected a number above 0")
    shapes.check_fits_memory(shapes.layers(spec, (size, size) if size else None))
    state = None
    if weights:
        spec, state = reading.load_weights(weights, spec, weights_key, output.remark, classes, channels)
    picture = images.read_picture(image) if image else None
    examples = datasets.load_data(data)
    if plot:
        if not steps:
            raise Error("--plot draws the training, which --steps 0 leaves out")
        plots.check_figure(plot)
    backends.check_installed(*dict.fromkeys([*backends.needed(Backend.TORCH), *backends.needed(backend)]))
    others = () if backend in backends.SEVERAL else (Backend.TORCH,)  # to compare it with
    with options.starting(backend, others) as say:
        packages = [package for each in (*others, backend) for package in backends.start(each)]
        report = comparison.run(
            packages, spec, state, picture, examples, (size, size) if size else None, dtype.value, steps,
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

    def row(measured: Any) -> dict[str, Any]:
        return measured._asdict() | {"farthest": report.frameworks[measured.farthest]}

    for rung in ("activations", "gradients", "statistics", "weights"):
        differences = getattr(report, rung)
        summary[rung] = [row(difference) for difference in differences]
        if differences:
            summary[f"largest_{rung}"] = row(largest(differences))
    summary["steps"] = [row(step) for step in report.steps]
    summary |= {"first_diverging_layer": report.first_diverging_layer, "judged_steps": report.judged_steps}
    return summary | {"tolerances": report.tolerances, "broken": report.broken, "passed": not report.broken}


def _show_report(report: "Report") -> None:
    output.show(f"{report.network}, {report.dtype}, images of {shapes.text(report.size)}", "")
    columns = [f">{framework}" for framework in report.frameworks]
    distance = ">difference" if len(columns) == 2 else ">largest difference"
    table = output.table("layer", *columns, distance, title="Activations")
    tolerance = report.tolerances.get("activations", report.tolerances.get("logits", math.inf))
    for name, sizes, value, _ in report.activations:
        style = None if value <= tolerance else "red"
        table.add_row(name, *map(shapes.text, sizes), f"{value:.1e}", style=style)
    output.show(table)
    if report.steps:
        _show_steps(report)
    _show_rungs(report)
    _show_notes(report)
    for line in report.broken:
        output.show(Text(f"Tolerance exceeded: {line}", style="red"))
    if not report.broken:
        everything = report.judged_steps == len(report.steps) and not _says_little(report)
        judged = "All parity tolerances" if everything else "All parity tolerances that can be judged"
        output.show(Text(f"{judged} are met.", style="green"))


def _show_steps(report: "Report") -> None:
    training = report.training
    title = (
        f"Training on {training['data']}: {shapes.text(training['size'])}, batches of {training['batch']}, "
        f"learning rate {training['learning_rate']:.3g}, momentum {training['momentum']}"
    )
    columns = [f">{framework}" for framework in report.frameworks]
    control, digits = (f">{report.frameworks[0]}, one rounding apart", 13) if len(columns) == 2 else (">one rounding apart", 12)
    table = output.table(">step", *columns, ">difference", control, title=title)
    for number, step in enumerate(report.steps, start=1):
        losses = [f"{loss:.{digits}f}" if abs(loss) < 1e6 else f"{loss:.6e}" for loss in step.losses]
        dim = "dim" if number > report.judged_steps else None
        table.add_row(f"{number}", *losses, f"{step.difference:.1e}", f"{step.control:.1e}", style=dim)
    output.show("", table)


def _show_rungs(report: "Report") -> None:
    from ..ladder import largest

    tolerances, count = report.tolerances, len(report.steps)
    table = output.table("", ">largest difference", "where", ">tolerance", title="Overall")
    table.add_row("parameters", "equal" if len(set(report.parameters)) == 1 else "differ", f"{report.parameters[0]:,}", "equal")
    labels = {"statistics": "running statistics", "weights": f"weights after {count} steps"}
    for rung in ("activations", "gradients", "statistics", "weights"):
        if getattr(report, rung):
            worst = largest(getattr(report, rung))
            tolerance = f"{tolerances[rung]:.2g}" if rung in tolerances else "none"
            judged = rung != "weights" or report.judged_steps == count
            where = f"{worst.name}{report.place(worst)}"
            table.add_row(labels.get(rung, rung), f"{worst.value:.1e}", where, tolerance if judged else "not judged")
    if count:
        judged_steps = report.steps[: report.judged_steps]
        step = max(judged_steps, default=None, key=lambda step: _nan_last(step.difference))
        tolerance = f"{tolerances['losses']:g}" if "losses" in tolerances else "none"
        where = report.place(step).strip() if step else ""
        table.add_row(f"losses of {len(judged_steps)} steps", f"{step.difference if step else 0:.1e}", where, tolerance)
    if "logits" in tolerances:
        logits = report.activations[-1]
        table.add_row("logits", f"{logits.value:.1e}", f"{logits.name}{report.place(logits)}", f"{tolerances['logits']:g}")
    output.show("", table, "")


def _show_notes(report: "Report") -> None:
    from ..compare import CEILING

    one = report.frameworks[0]
    if report.chaos:
        apart = ", ".join(f"{rung} {value:.1e}" for rung, value in report.chaos.items())
        output.show(
            f"This network magnifies rounding: started from weights one rounding apart, {one} departs from itself: {apart}. "
            f"Ten times that is the tolerance where it exceeds the ladder's; a tolerance above {CEILING:g} says little.",
        )
    if report.judged_steps < len(report.steps):
        output.show(
            f"From step {report.judged_steps + 1} this run is chaotic: started from weights one rounding apart, {one} departs "
            "from itself. Losses, weights and predictions are not judged from there.",
        )
    if report.accuracy:
        same = "the same predictions" if report.same_predictions else "different predictions"
        accuracies = ", ".join(f"{n} {value:.2%}" for n, value in zip(report.frameworks, report.accuracy, strict=True))
        output.show(f"Test accuracy on {report.training['tested']} images: {accuracies}, {same}.")
        if report.training["labels_wrapped"]:
            output.show(
                "The data set has more classes than the network: labels wrap around; use the accuracy only for this comparison."
            )
    if report.left_out:
        output.show(f"{report.left_out[0].upper()}{report.left_out[1:]}.")


def _says_little(report: "Report") -> bool:
    from ..compare import CEILING

    return any(10 * value > CEILING for value in report.chaos.values())


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
