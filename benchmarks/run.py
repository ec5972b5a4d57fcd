"""Measure the images per second of the networks, in PyTorch and in Keras, side by side with other projects' networks.

Each candidate runs in a process of its own, and they take turns (`sittings.py`); ratios and units are those of `summary.py`. A
training step is forward pass, cross-entropy, backward pass and an SGD-momentum update.
"""

import itertools
import shutil
import sys
import time
from enum import StrEnum
from typing import Annotated, Any

import candidates
import report
import script
import suite
import summary
import typer
from candidates import Case, Device, Dtype, Format, Mode, Peer, Settings
from origin import origin
from sittings import Measured, Say, compare
from summary import Row

from shared.files import check_writable, write_text
from twins import plots
from twins.backends import SEVERAL, Backend
from twins.cli import output

NETWORKS = ["resnet18"]
DTYPES = [Dtype.FLOAT32]
UNIT = 5.0  # seconds that a start or a turn takes, at a guess, until some have been measured


def complete_peers(incomplete: str) -> list[str]:
    """The shell completions of --against: of the last name in its list."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{peer}" for peer in Peer if peer.startswith(last)]


def choice(name: str, values: type[StrEnum], text: str, **options: Any) -> Any:
    """An option that takes one of several values. Its text lists them: a column of the help would break them."""
    return typer.Option(f"--{name}", metavar=name.upper(), help=f"{text} {', '.join(values)}.", **options)


BACKEND = choice("backend", Backend, "Backend; both: torch and tf; all: torch, tf and jax. May be repeated. One of")
MODE = choice("mode", Mode, "What to measure: inference, training, or both. One of")
DTYPE = choice("dtype", Dtype, "Precision, mixed in training; tf32 needs a GPU. May be repeated. One of")
FORMAT = choice("format", Format, "Memory format. Default: the framework's. One of")
DEVICE = choice("device", Device, "Default: gpu if nvidia-smi is installed. One of")
PEERS = "Whose networks to compare with; twins shows the noise. Separated by commas, or repeated. Of"
AGAINST = choice("against", Peer, PEERS, autocompletion=complete_peers)


def main(
    backend: Annotated[list[Backend], BACKEND],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = NETWORKS,
    mode: Annotated[Mode, MODE] = Mode.BOTH,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the images, in pixels. Default: the spec's.")
    ] = None,
    dtype: Annotated[list[Dtype], DTYPE] = DTYPES,
    layout: Annotated[Format | None, FORMAT] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile, with torch.compile or XLA.")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Compile into CUDA graphs, in PyTorch on a GPU.")] = False,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="Measure the fastest form too: channels last; folded in inference.")
    ] = False,
    device: Annotated[Device | None, DEVICE] = None,
    against: Annotated[list[str] | None, AGAINST] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that measure each candidate, one after the other.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each process.")] = 2,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout, without the table.")
    ] = None,
    csv_file: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write CSV.")] = None,
    plot_file: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw the results.")] = None,
) -> None:
    """Measure images per second of networks, against other projects' networks and against what the machine can do.

    With --suite cpu or --suite gpu, take the whole table of a device: see --suite gpu --help.
    """
    settings = Settings(
        backends=distinct_backends(backend),
        dtypes=list(dict.fromkeys(dtype)),
        peers=candidates.read_peers(against or []),
        recommended=recommended,
        batch=batch,
        size=size,
        layout=layout,
        compiled=compiled,
        cuda_graphs=cuda_graphs,
        device=device or (Device.GPU if shutil.which("nvidia-smi") else Device.CPU),
    )
    settings.check()
    modes = (Mode.INFER, Mode.TRAIN) if mode == Mode.BOTH else (mode,)
    comparisons = [candidates.cases(name, one, settings) for name in network for one in modes]
    check_files(json_file, csv_file, plot_file)
    source = origin()
    measured, failures = measure(comparisons, processes, rounds)
    ceilings = summary.ceilings(itertools.chain(*measured))
    results = [row for comparison in measured for row in summary.rows(comparison, ceilings)]
    notes = [*failures, *summary.notes(results, processes)]
    text = report.as_json(source, notes, results)
    if json_file == "-":
        sys.stdout.write(text)
    else:
        report.show(results, notes, ceilings)
    write(text, results, json_file, csv_file, plot_file)
    sys.exit(0 if results and not summary.above_ceiling(results) else 1)


def distinct_backends(backends: list[Backend]) -> list[Backend]:
    """The backends without repetition, those that they stand for in place of "both" and "all"."""
    return list(dict.fromkeys(itertools.chain(*(SEVERAL.get(backend, (backend,)) for backend in backends))))


def check_files(json_file: str | None, csv_file: str | None, plot_file: str | None) -> None:
    """Raise `Error` for a file that cannot be written, so that we fail early."""
    for path in (json_file, csv_file):
        if path not in (None, "-"):
            check_writable(path)
    if plot_file:
        plots.check_figure(plot_file)


def measure(comparisons: list[list[Case]], processes: int, rounds: int) -> tuple[list[list[list[Measured]]], list[str]]:
    """(the workers of each comparison, by candidate; notes on what failed, each once)."""
    measured, notes = [], []
    units = sum(map(len, comparisons)) * processes * (1 + rounds)
    with output.status("starting") as say:
        tell = with_time_left(say, units)
        for cases in comparisons:
            workers, failures = compare(cases, processes, rounds, tell)
            measured.append(workers)
            notes += failures
    return measured, list(dict.fromkeys(notes))


def with_time_left(say: Say, units: int) -> Say:
    """`say`, which is called at the start of each of so many units of work, with how long the rest of them will take."""
    started, calls = time.monotonic(), itertools.count()

    def tell(text: str) -> None:
        done = next(calls)
        each = (time.monotonic() - started) / done if done else UNIT
        left = each * max(units - done, 1)
        say(f"{text}, {left / 60:.0f} min left" if left > 90 else f"{text}, {left:.0f} s left")

    return tell


def write(text: str, results: list[Row], json_file: str | None, csv_file: str | None, plot_file: str | None) -> None:
    """Write the files that are wanted; `text` is the JSON."""
    if json_file not in (None, "-"):
        write_text(json_file, text)
    if csv_file:
        write_text(csv_file, report.as_csv(results))
    if plot_file and results:
        report.draw(results, plot_file)


if __name__ == "__main__":
    script.start(suite.main if any(word.partition("=")[0] == "--suite" for word in sys.argv) else main)
