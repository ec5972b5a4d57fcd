"""`twins convert`."""

import contextlib
import math
from pathlib import Path
from typing import Annotated

import typer

from shared import shapes

from . import output


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint of any format, or the word imagenet.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="Output file; its extension selects the format.")],
    network: Annotated[
        str | None, typer.Option(help="Network that the weights belong to: a name or the path of a spec.")
    ] = None,
) -> None:
    """Convert weights between PyTorch, Keras and other projects, and show where every array went.

    Formats: .safetensors, .pth, .pt, .th, .keras, .weights.h5, and .h5 of keras.applications. Code in files is never run.
    """
    from .. import checkpoints

    # A download has a progress bar of its own.
    with contextlib.nullcontext() if source == "imagenet" else output.status(f"{source} to {destination}"):
        report = checkpoints.convert(source, destination, network)
    table = output.table("from", ">shape", "to", ">shape")
    moved = [move for move in report.moves if not move.ignored]
    for move in moved:
        shape, new_shape = shapes.text(move.source_shape), shapes.text(move.destination_shape)
        table.add_row(move.source, shape, move.destination, new_shape)
    output.show(table, "")
    ignored: dict[str, list[str]] = {}
    for move in report.moves:
        if move.ignored:
            ignored.setdefault(move.ignored, []).append(move.source)
    for why, names in ignored.items():
        output.show(f"Ignored ({why}): {output.first_few(names)}.")
    output.show(*report.notes)
    numbers = sum(math.prod(move.source_shape) for move in moved)
    left = f"; {len(report.moves) - len(moved)} ignored" if len(moved) < len(report.moves) else ""
    fitting = " or ".join(report.networks)
    output.show(f"{len(moved)} arrays of {fitting}, {numbers:,} numbers, written to {destination}{left}.")
