"""`twins curves`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.checks import Error

from . import options, output

if TYPE_CHECKING:
    from ..runlog import Row


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or their logs.")],
    out: options.Figure,
    label: Annotated[list[str] | None, typer.Option(help="Name of a run, in order. Default: its path.")] = None,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Draw the losses and test accuracies of several runs in one figure, and show how far they are apart."""
    from .. import plots, runlog

    plots.check_figure(out)
    logs = [runlog.read_log(run, output.remark) for run in runs]
    if label and len(label) != len(runs):
        raise Error(f"there are {len(runs)} runs and {len(label)} labels, expected a --label for each")
    label = label or [f"{run}" for run in runs]
    if len({*label}) < len(label):
        raise Error("two runs have the same name, expected a different --label for each")
    plots.draw_curves(dict(zip(label, logs, strict=True)), out, title)
    summaries = [_summary(name, rows, logs[0]) for name, rows in zip(label, logs, strict=True)]
    if as_json:
        output.show_json(summaries)
        return
    pixels = all("test_miou" in run for run in summaries)
    best, title = ("test_miou", "mIoU") if pixels else ("test_accuracy", "accuracy")
    table = output.table("run", ">epochs", f">best test {title}", ">after epoch", ">difference")
    for run in summaries:
        difference = "" if run["difference"] is None else f"{run['difference']:.1e}"
        table.add_row(run["run"], f"{run['epochs']}", f"{run[best]:.2%}", f"{run['best_epoch']}", difference)
    output.show(table)
    if len(runs) > 1:
        output.show("Difference: the largest relative difference of an epoch's training or test loss from the first run's.")


def _summary(name: str, rows: list["Row"], first: list["Row"]) -> dict[str, Any]:
    from .. import runlog

    best = runlog.best_epoch(rows)
    return {
        "run": name,
        "epochs": len(rows),
        "test_accuracy": runlog.accuracy(best),
        **({"test_miou": runlog.score(best)} if "test_miou" in best else {}),
        "best_epoch": best["epoch"],
        "difference": None if rows is first else runlog.largest_difference(first, rows),
    }
