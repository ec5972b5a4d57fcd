"""`twins train`."""

import importlib.util
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared import limits, recipes
from shared.checks import Error, LostProcessError, RunError
from shared.processes import jax_process

from .. import backends
from ..backends import Backend, Engine
from . import options, output

if TYPE_CHECKING:
    from ..loading import Loader
    from ..runs import Start
    from ..training import Progress

Say = Callable[[str], None]  # shows a line
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, max=limits.DEVICES, help="With tf or jax: number of GPUs, or of parts of the CPU. PyTorch: use torchrun."
    ),
]


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
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to continue, in the same or another backend.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, max=limits.WHOLE, help="Total number of epochs.")] = None,
    changes: options.Changes = None,
    data: Annotated[str | None, typer.Option(help="Images to train on: a folder, a CSV, a name or an .npz file.")] = None,
    holdout: options.Holdout = None,
    workers: options.Workers = None,
    skip: options.SkipUnreadable = False,
    init: Annotated[str | None, typer.Option(help="Weights to start from: a file, or the word imagenet.")] = None,
    weights_key: options.WeightsKey = None,
    freeze: Annotated[str | None, typer.Option(help="Layers not to train: layer1,layer2, for example, or backbone.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile: torch.compile, or XLA in TensorFlow.")] = False,
    devices: Devices = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write a log for TensorBoard.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, and all else to stderr.")] = False,
) -> None:
    """Train a network from a recipe, in PyTorch or in Keras, or continue a run in either.

    The folder gets last.safetensors, from which the run can be resumed, and best.safetensors, the weights of the best epoch.
    It also gets network.json, recipe.json, log.jsonl and curves.png.
    Ctrl-C stops a run with nothing lost.
    Exit status 1 if the run cannot continue: the loss is NaN, or a batch is too small for batch norm.
    """
    from .. import loading, runs

    rank, cluster = _check(backend, devices, compiled, tensorboard, resume, init, freeze)
    given = {
        "data": data,
        "holdout": holdout,
        "init": init,
        "weights_key": weights_key,
        "freeze": None if freeze is None else freeze.split(","),
    }
    changes = [*(changes or []), *(f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)]
    with _Signals(cluster > 1) as signals, runs.start(recipe, resume, out, changes, epochs, backend, rank, skip) as start:
        others = ", and waiting for the other processes" * (cluster > 1)
        with options.starting(backend, wait=others):
            (package,) = backends.start(backend, tf32=True)
            engine = package.trainer(start.spec, start.recipe, compiled, **({"devices": devices} if devices else {}))
        loader = loading.Loader(_workers(workers), skip)
        last, history = _train(start, engine, resume, loader, signals, tensorboard, output.remark if as_json else output.show)
        if not engine.rank:
            for line in loader.unreadable:
                output.complain(f"skipped: {line}")
            _end(start, package, engine.framework, loader, last, history, as_json)
    if last.step < last.steps and (not engine.rank or cluster > 1):  # torchrun reports for its processes, TensorFlow does not
        again = f"--resume {shlex.quote(str(start.folder))} --backend {backend}" + (f" --devices {devices}" if devices else "")
        output.complain(f"interrupted after step {last.step:,} of {last.steps:,}; continue with: twins train {again}")
        sys.exit(128 + (signals.number or signal.SIGTERM))  # with torchrun, another process may have got the signal


def _train(
    start: "Start", engine: "Engine", resume: Path | None, loader: "Loader", signals: "_Signals", tensorboard: bool, say: Say
) -> "tuple[Progress, list[dict[str, Any]]]":
    """Train to the end or until a signal: (the last `Progress`, the rows of the log)."""
    from .. import runlog, runs, training

    arrays = start.arrays(engine.state())
    engine.load(arrays, start.done)
    listeners: list[Callable[[Any], None]] = []
    if not engine.rank:
        _show_start(start, engine.framework, [name for name in arrays if name not in start.pretrained], say)
        runs.copy_best(resume, start.folder)
        listeners += [runlog.tensorboard(start.folder)] if tensorboard else []
    signals.wait_for_the_step()
    run = training.run(
        engine,
        start.recipe,
        start.spec,
        start.data,
        start.folder,
        start.checkpoint,
        lambda: bool(signals.number),
        is_locked=True,
        loader=loader,
    )
    history = start.history
    try:
        return _watch(run, start, history, listeners, None if engine.rank else say), history
    except LostProcessError as error:
        raise RunError(
            f"{error}: it has ended, or its machine or the network is down. "
            f"Start all processes again, with --resume {shlex.quote(str(start.folder))}, which has the last checkpoint"
        ) from None
    except RuntimeError as error:
        if engine.processes == 1:
            raise
        text = f"{error}".partition("\n")[0]
        raise RunError(
            f"process {engine.rank} of {engine.processes}: {text}; the last checkpoint is in {start.folder}"
        ) from None


def _end(
    start: "Start",
    package: backends.Package,
    framework: str,
    loader: "Loader",
    last: "Progress",
    history: list[dict[str, Any]],
    as_json: bool,
) -> None:
    """Draw the curves, and print what came of the run; at its end, also what its best weights reach on unseen images."""
    from .. import runlog, runs, training

    best = runlog.best_epoch(history) if history else None
    where = start.folder / training.BEST
    is_best = bool(best and training.step_of(where) == best["step"])
    if best:
        runs.draw_curves(start.folder, history, start.title)
    unseen = runs.scores_on_unseen(package, start, loader) if is_best and last.step == last.steps else None
    if as_json:
        found = {"folder": f"{start.folder}", "framework": framework, "step": last.step, "steps": last.steps}
        found |= {"best": best, "weights": f"{where}" if is_best else None, "rows": history, "recipe": start.recipe}
        output.show_json(found | ({"test": unseen._asdict()} if unseen else {}))
    elif best:
        file, part = f": {where}" * is_best, _tested_on(best, "validation")
        word = "mIoU" if runlog.measure(best) == "test_miou" else "accuracy"
        if last.step == last.steps < start.steps:
            output.show(f"No better {part} {word} in {start.recipe['patience']} epochs: the run ends here.")
        top5 = f" (top 5 {runlog.top5(best):.2%})" if runlog.top5(best) else ""
        output.show(f"Best {part} {word} {runlog.score(best):.2%}{top5}, after epoch {best['epoch']}{file}")
        if unseen and start.data.unseen:
            score = unseen.accuracy if unseen.miou is None else unseen.miou
            top5 = f" (top 5 {unseen.top5:.2%})" if unseen.top5 else ""
            count = len(start.data.unseen.x)
            output.show(f"Test {word} of that epoch {score:.2%}{top5}, on {count:,} images that the run has not used")


def _tested_on(row: dict[str, Any], validation: str) -> str:
    """What the images that a run was tested on after an epoch are called: by the word for validation if there are others."""
    return "test" if row.get("tested_on", "test") == "test" else validation


def _check(
    backend: Backend,
    devices: int | None,
    compiled: bool,
    tensorboard: bool,
    resume: Path | None,
    init: str | None,
    freeze: str | None,
) -> tuple[int, int]:
    """(rank of this process in the run, how many TensorFlow workers that has). Raises `Error` for options that do not fit."""
    backends.check_backend(backend, backends.ENGINES, "a run has one framework at a time, and may switch with --resume")
    if backend == Backend.KERAS_TORCH and (devices or compiled):
        raise Error(
            "Keras on PyTorch trains on one device and compiles nothing: for --devices or --compile, use another --backend"
        )
    if devices and backend == Backend.TORCH:
        raise Error(f"--devices is for tf and jax; with PyTorch: torchrun --nproc-per-node {devices} -m twins train …")
    if "TORCHELASTIC_RUN_ID" in os.environ and backend != Backend.TORCH:
        hint = "" if backend == Backend.KERAS_TORCH else f"; with {backend}, one process has all devices: --devices N"
        raise Error(f"torchrun is for --backend torch{hint}")
    options.check_torchrun()
    processes = {Backend.TF: options.worker, Backend.JAX: jax_process}
    rank, workers = processes.get(backend, lambda: (options.rank(), 1))()
    if (devices or workers > 1) and compiled and backend == Backend.TF:
        named = "--devices" if devices else "TF_CONFIG"
        raise Error(f"{named} and --compile cannot be combined: XLA does not compile a step on several devices")
    if devices and workers > 1:
        told = "worker of TF_CONFIG" if backend == Backend.TF else "process of JAX_NUM_PROCESSES"
        raise Error(f"--devices is for one process; each {told} uses all GPUs of its machine")
    if tensorboard and not importlib.util.find_spec("tensorboard"):
        raise Error("--tensorboard needs TensorBoard: pip install 'resnet-twins[tensorboard]'")
    if resume and (init is not None or freeze is not None):
        raise Error("--init and --freeze are for the start of a run; --resume continues one")
    return rank, workers


def _workers(count: int | None) -> int:
    """How many processes read pictures for this one, by default its part of what is good for the machine."""
    from .. import loading

    if count is not None:
        return count
    here = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    return max(loading.default_workers() // int(here), 1)


class _Signals:
    """Ctrl-C and SIGTERM in a block: before the first step they end the command, later the run ends after the step it is in.

    Where this process `waits` for others, deep in TensorFlow, before the first step, they end it at once: it would not come to
    a handler.
    """

    def __init__(self, waits: bool = False) -> None:
        self._waits = waits
        self.number = 0  # of the signal that ends the run
        self._in_steps = False
        self._torchrun = "TORCHELASTIC_RUN_ID" in os.environ

    def __enter__(self) -> "_Signals":
        # torchrun ends its processes by SIGTERM; one waiting for the others, deep in PyTorch, would never get to a handler.
        numbers = (signal.SIGINT,) if self._torchrun else (signal.SIGINT, signal.SIGTERM)
        handler = signal.SIG_DFL if self._waits else self._note
        self._before = {number: signal.signal(number, handler) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.number and not self._in_steps and not options.rank():  # here: a framework starts with its output suppressed
            output.complain("interrupted before the first step")

    def wait_for_the_step(self) -> None:
        """From here, a signal lets the step end and a checkpoint be written."""
        self._in_steps = True
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before.setdefault(number, signal.signal(number, self._note))

    def _note(self, number: int, frame: Any) -> None:
        if self.number and not self._torchrun:  # torchrun forwards signals that its processes have received themselves
            raise KeyboardInterrupt
        self.number = number
        if not self._in_steps:
            sys.exit(128 + number)


def _show_start(start: "Start", framework: str, others: list[str], say: Say) -> None:
    from shared.weights import EMA

    resuming = f", resuming at step {start.done:,}" if start.done else ""
    accumulate = start.recipe.get("accumulate", 1)
    images = f"{start.steps:,} steps of {f'{accumulate} x ' * (accumulate > 1)}{start.recipe['batch']} images"
    say(f"{start.title}, {framework}: {images}{resuming}, into {start.folder}")
    for note in start.notes:
        say(note)
    if start.pretrained:
        fresh = [name for name in others if not name.startswith(("optimizer.", EMA))]
        initialised = f"; {', '.join(fresh)} freshly initialised" if fresh else ""
        say(f"{len(start.pretrained)} arrays from {start.recipe['init']}{initialised}.")


def _watch(
    run: "Iterable[Progress]",
    start: "Start",
    history: list[dict[str, Any]],
    listeners: list[Callable[[Any], None]],
    say: Say | None,
) -> "Progress":
    """Show a run with a bar and, by `say`, a line an epoch, which are added to `history`; returns the last `Progress`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = output.Screen(stderr=True)
    columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[measures]}"), TimeRemainingColumn())
    shown = screen.is_terminal and say is not None
    bar = Progress(*columns, console=screen, transient=True, disable=not shown, redirect_stdout=False)
    if shown and (say is output.remark or sys.stdout.isatty()):
        say = screen.print  # above the bar, if both are on one screen
    with bar:
        task = bar.add_task("", total=None, measures="", completed=start.done)
        for now in run:
            for listener in listeners:
                listener(now)
            speed = recipes.images_per_step(start.recipe) * (bar.tasks[0].speed or 0)
            measures = f"loss {_loss(now.loss)}  accuracy {now.accuracy:.2%}  {speed:,.0f} images/s"
            bar.update(task, completed=now.step, total=now.steps, description=f"epoch {now.epoch}", measures=measures)
            if now.row:
                history[:] = [row for row in history if row["epoch"] < now.epoch] + [now.row]
                if say:
                    say(_epoch(now.row, output.width()))
    return now


def _epoch(row: dict[str, Any], width: int) -> str:
    """The line of an epoch: what fits into the width of the log's row. The shortest fits into 80 up to epoch 999."""
    epoch, loss, test_loss = f"epoch {row['epoch']:>3}", _loss(row["loss"]), _loss(row["test_loss"])
    part = _tested_on(row, "val")
    accuracy, test_accuracy = f"accuracy {row['accuracy']:.2%}", f"accuracy {row['test_accuracy']:.2%}"
    if "test_miou" in row:
        test_accuracy = f"mIoU {row['test_miou']:.2%}"
    if width < 90:
        return f"{epoch}  loss {loss}  {accuracy}; {part} loss {test_loss}  {test_accuracy}"
    line = f"{epoch}  loss {loss}  {accuracy}  {part} loss {test_loss}  {part} {test_accuracy}"
    averaged = row.get("ema_test_miou", row.get("ema_test_accuracy"))
    if averaged is not None:
        line += f"  averaged {averaged:.2%}"
    waited = f"  waited {row['waited']:.0%}" if "waited" in row else ""  # for images to be read
    rest = f"  rate {row['learning_rate']:.3g}  {row['images_per_sec']:,.0f} images/s{waited}"
    return line if width < 120 else line + rest


def _loss(value: float) -> str:
    return f"{value:.{4 if value < 10 else 3 if value < 100 else 2}f}" if value < 1000 else f"{value:.1e}"
