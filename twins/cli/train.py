"""`twins train`."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shared import recipes, weights
from shared.checks import Error

from .. import backends
from ..backends import Backend
from . import options, output

if TYPE_CHECKING:
    from ..runs import Start
    from ..training import Progress


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help=f"The path of a recipe ending in .json, or {', '.join(recipes.names())}. Default: digits_residual.",
        ),
    ] = None,
    backend: options.BackendOption = Backend.TORCH,
    out: Annotated[Path | None, typer.Option(help="Output folder for the run. Default: a new one under runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a run of either backend: its folder.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Total number of epochs.")] = None,
    changes: options.Changes = None,
    init: Annotated[str | None, typer.Option(help="Start from the weights in a file, or from the word imagenet.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Layers that stay as they are: layer1,layer2, or backbone.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile: torch.compile, or XLA in TensorFlow.")] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="With --backend tf: number of GPUs, or of parts of the CPU. PyTorch: torchrun.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write a log for TensorBoard too.")] = False,
) -> None:
    """Train a network by a recipe, in PyTorch or in Keras, or continue a run in either.

    The folder gets last.safetensors, from which the run can be resumed, best.safetensors, the weights of the best epoch,
    network.json, recipe.json, log.jsonl and curves.png. Ctrl-C ends a run with nothing lost.
    """
    from .. import runlog, runs, training

    _check(backend, devices, compiled, tensorboard, resume, init, freeze)
    changes = [*(changes or []), *([f"init={init}"] if init is not None else [])]
    changes += [f"freeze={json.dumps(freeze.split(','))}"] if freeze is not None else []
    start = runs.start(recipe, resume, out, changes, epochs, backend, options.rank())
    with _interruptible() as signals:
        with output.status("starting " + backends.frameworks(backend)[0]):
            (package,) = backends.start(backend)
            engine = package.trainer(start.spec, start.recipe, compiled, **({"devices": devices} if devices else {}))
        arrays = start.arrays(engine.state())
        engine.load(arrays, start.done)
        listeners: list[Callable[[Any], None]] = []
        if not engine.rank:
            _show_start(start, engine.framework, [name for name in arrays if name not in start.pretrained])
            runs.copy_best(resume, start.folder)
            listeners += [runlog.tensorboard(start.folder)] if tensorboard else []
        run = training.run(
            engine, start.recipe, start.spec, start.data, start.folder, start.checkpoint, stop=lambda: bool(signals)
        )
        history = start.history
        last = _watch(run, start, history, listeners, quiet=engine.rank > 0)
    if engine.rank:
        return
    if history:
        best, where = runlog.best_epoch(history), start.folder / "best.safetensors"
        file = f": {where}" * where.exists()
        if last.step < start.steps and last.step == last.steps:
            output.show(f"No better test accuracy in {start.recipe['patience']} epochs: the run ends here.")
        top5 = f" (top 5 {runlog.top5(best):.2%})" if runlog.top5(best) else ""
        output.show(f"Best test accuracy {runlog.accuracy(best):.2%}{top5}, after epoch {best['epoch']}{file}")
        runs.draw_curves(start.folder, history, start.title)
    if last.step < last.steps:
        again = f"--resume {start.folder} --backend {backend}" + (f" --devices {devices}" if devices else "")
        output.complain(f"interrupted after step {last.step:,} of {last.steps:,}; continue with: twins train {again}")
        sys.exit(128 + signals[0])


def _check(
    backend: Backend,
    devices: int | None,
    compiled: bool,
    tensorboard: bool,
    resume: Path | None,
    init: str | None,
    freeze: str | None,
) -> None:
    """Raise `Error` for options that do not go together."""
    backends.check_backend(backend, backends.ENGINES, "a run has one framework at a time, and may switch with --resume")
    if devices and backend == Backend.TORCH:
        raise Error(f"--devices is for --backend tf; with PyTorch: torchrun --nproc-per-node {devices} -m twins train …")
    if "TORCHELASTIC_RUN_ID" in os.environ and backend == Backend.TF:
        raise Error("torchrun is for --backend torch; with tf, one process has all devices: --devices N")
    if devices and compiled:
        raise Error("--devices and --compile exclude one another: XLA does not compile a step of several devices")
    if tensorboard and not importlib.util.find_spec("tensorboard"):
        raise Error("--tensorboard needs TensorBoard: pip install 'resnet-twins[tensorboard]'")
    if resume and (init is not None or freeze is not None):
        raise Error("--init and --freeze are for the start of a run; --resume continues one")


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Yield a list that gets the number of a Ctrl-C or SIGTERM; a second one ends the process."""
    signals: list[int] = []

    def note(number: int, frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_start(start: "Start", framework: str, others: list[str]) -> None:
    resuming = f", resuming at step {start.done:,}" if start.done else ""
    accumulate = start.recipe.get("accumulate", 1)
    images = f"{start.steps:,} steps of {f'{accumulate} x ' * (accumulate > 1)}{start.recipe['batch']} images"
    output.show(f"{start.title}, {framework}: {images}{resuming}, into {start.folder}")
    if start.pretrained:
        fresh = [name for name in others if not name.startswith(("optimizer.", weights.EMA))]
        initialised = f"; {', '.join(fresh)} freshly initialised" if fresh else ""
        output.show(f"{len(start.pretrained)} arrays from {start.recipe['init']}{initialised}.")


def _watch(
    run: "Iterable[Progress]",
    start: "Start",
    history: list[dict[str, Any]],
    listeners: list[Callable[[Any], None]],
    quiet: bool,
) -> "Progress":
    """Show a run with a bar and a line an epoch, which are added to `history`; returns the last `Progress`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True, highlight=False, markup=False)
    columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[measures]}"), TimeRemainingColumn())
    shown = screen.is_terminal and not quiet
    bar = Progress(*columns, console=screen, transient=True, disable=not shown, redirect_stdout=False)
    show = screen.print if shown and sys.stdout.isatty() else output.show  # above the bar, if both are on one screen
    with bar:
        task = bar.add_task("", total=None, measures="", completed=start.done)
        for now in run:
            for listener in listeners:
                listener(now)
            speed = recipes.images_per_step(start.recipe) * (bar.tasks[0].speed or 0)
            measures = f"loss {now.loss:.4f}  accuracy {now.accuracy:.2%}  {speed:,.0f} images/s"
            bar.update(task, completed=now.step, total=now.steps, description=f"epoch {now.epoch}", measures=measures)
            if now.row:
                history[:] = [row for row in history if row["epoch"] < now.epoch] + [now.row]
                if not quiet:
                    show(_epoch(now.row))
    return now


def _epoch(row: dict[str, Any]) -> str:
    line = (
        f"epoch {row['epoch']:>3}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  "
        f"test loss {row['test_loss']:.4f}  test accuracy {row['test_accuracy']:.2%}"
    )
    if "ema_test_accuracy" in row:
        line += f"  averaged {row['ema_test_accuracy']:.2%}"
    if "test_top5" in row and output.width() >= 120:
        line += f"  top 5 {row['test_top5']:.2%}"
    if output.width() < 100:  # the log has the rest
        return line
    return f"{line}  rate {row['learning_rate']:.3g}  {row['images_per_sec']:,.0f} images/s"
