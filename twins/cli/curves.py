"""`twins curves`."""

from pathlib import Path
from typing import Annotated

import typer

from shared.checks import Error

from . import options, output


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or their logs.")],
    out: options.Figure,
    label: Annotated[list[str] | None, typer.Option(help="Name of a run, in order. Default: its path.")] = None,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
) -> None:
    """Draw the losses and test accuracies of several runs into one figure, and show how far they are apart."""
    from .. import plots, runlog

    plots.check_figure(out)
    logs = [runlog.read_log(run) for run in runs]
    if label and len(label) != len(runs):
        raise Error(f"there are {len(runs)} runs and {len(label)} labels, expected a --label for each")
    label = label or [f"{run}" for run in runs]
    if len({*label}) < len(label):
        raise Error("two runs have the same name, expected a --label of its own for each")
    plots.draw_curves(dict(zip(label, logs, strict=True)), out, title)
    table = output.table("run", ">epochs", ">best test accuracy", ">after epoch", ">difference")
    for name, rows in zip(label, logs, strict=True):
        best = runlog.best_epoch(rows)
        apart = None if rows is logs[0] else runlog.largest_difference(logs[0], rows)
        difference = "" if apart is None else f"{apart:.1e}"
        table.add_row(name, f"{len(rows)}", f"{runlog.accuracy(best):.2%}", f"{best['epoch']}", difference)
    output.show(table)
    if len(runs) > 1:
        output.show(
            "Difference: the largest of an epoch's losses, in training and testing, from the first run's, relative to it."
        )
