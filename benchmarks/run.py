"""Measure how many images a second the networks take, in PyTorch and in Keras, side by side with other projects' networks.

Each candidate runs in a process of its own, and they take turns (`sittings.py`); ratios and units are those of `summary.py`. A
training step is forward pass, cross-entropy, backward pass and an SGD-momentum update.
"""

import itertools
import json
import platform
import shutil
import sys
import time
from typing import Annotated

import candidates
import report
import script
import summary
import typer
from candidates import Case, Device, Dtype, Format, Mode, Peer, Settings
from origin import origin
from sittings import Say, Worker, compare
from summary import Row

from shared.files import check_writable, write_text
from twins import plots
from twins.backends import Backend
from twins.cli import output

NETWORKS = ["resnet18"]
DTYPES = [Dtype.FLOAT32]


def complete_peers(incomplete: str) -> list[str]:
    """The shell completions of --against: of the last name in its list."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{peer}" for peer in Peer if peer.startswith(last)]


Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar=f"<list[{'|'.join(Peer)}]>",
        autocompletion=complete_peers,
        help="Whose networks to compare with; twins shows the noise. Separated by commas; may be repeated.",
    ),
]


def main(
    backend: Annotated[list[Backend], typer.Option(help="What to run in; both means torch and tf. May be repeated.")],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = NETWORKS,
    mode: Annotated[Mode, typer.Option(help="What to measure: inference, training, or both.")] = Mode.BOTH,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the images, in pixels. Default: the spec's.")
    ] = None,
    dtype: Annotated[
        list[Dtype], typer.Option(help="Precision, mixed in training; tf32 needs a GPU. May be repeated.")
    ] = DTYPES,
    layout: Annotated[Format | None, typer.Option("--format", help="Memory format. Default: the framework's.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile, with torch.compile or XLA.")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Compile into CUDA graphs, in PyTorch on a GPU.")] = False,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="Also in the fastest form: channels last; folded in inference.")
    ] = False,
    device: Annotated[Device | None, typer.Option(help="Default: gpu if nvidia-smi is installed.")] = None,
    against: Against = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that measure each candidate, one after the other.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each process takes.")] = 2,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout, alone.")] = None,
    csv_file: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write CSV.")] = None,
    plot_file: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw the results.")] = None,
) -> None:
    """Measure images a second of networks, beside other projects' and beside what the machine can do."""
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
    source = {**origin(), "python": platform.python_version(), "platform": platform.platform()}
    measured, failures = measure(comparisons, processes, rounds)
    ceilings = summary.ceilings(itertools.chain(*measured))
    results = [row for comparison in measured for row in summary.rows(comparison, ceilings)]
    notes = [*failures, *summary.notes(results, processes)]
    text = json.dumps({**source, "notes": notes, "results": results}, indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
    else:
        report.show(results, notes, ceilings)
    write(text, results, json_file, csv_file, plot_file)
    sys.exit(0 if results and not summary.above_ceiling(results) else 1)


def distinct_backends(backends: list[Backend]) -> list[Backend]:
    """The backends without repetition, PyTorch and TensorFlow in place of "both"."""
    pairs = ((Backend.TORCH, Backend.TF) if backend == Backend.BOTH else (backend,) for backend in backends)
    return list(dict.fromkeys(itertools.chain(*pairs)))


def check_files(json_file: str | None, csv_file: str | None, plot_file: str | None) -> None:
    """Raise `Error` for a file that cannot be written, so that we fail early."""
    for path in (json_file, csv_file):
        if path not in (None, "-"):
            check_writable(path)
    if plot_file:
        plots.check_figure(plot_file)


def measure(comparisons: list[list[Case]], processes: int, rounds: int) -> tuple[list[list[list[Worker]]], list[str]]:
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
        if done:
            left = (time.monotonic() - started) / done * max(units - done, 1)
            text += f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
        say(text)

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
    script.start(main)
