"""`twins convert`."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared import shapes
from shared.checks import Error, first_few

from . import options, output

if TYPE_CHECKING:
    from .. import checkpoints


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint of any format, or the word imagenet.")],
    destination: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Output file; its extension selects the format.", show_default=False)
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Network that the weights belong to: a name or the path of a spec.")
    ] = None,
    weights_key: options.WeightsKey = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Replace a regular expression in all names of the file; may be repeated."),
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="JSON object of names in the file and the network's names.")
    ] = None,
    draft_map: Annotated[
        Path | None,
        typer.Option(help="Write a first version of such a map, by order and shape, instead of converting."),
    ] = None,
) -> None:
    """Convert weights between PyTorch, Keras and other projects, and show where every array went.

    A source is what its first bytes say. Formats of the output: .safetensors, .pth, .pt, .th, .keras, .weights.h5, and .h5 of
    keras.applications. Code in files is never run.
    """
    from .. import checkpoints

    naming = checkpoints.Naming(weights_key, rename or (), map_file)
    if draft_map:
        _draft(source, draft_map, network, naming)
        return
    if destination is None:
        raise Error("the output is missing: twins convert IN OUT, or --draft-map FILE.json")
    # A download has a progress bar of its own.
    with contextlib.nullcontext() if source == "imagenet" else output.status(f"{source} to {destination}"):
        report = checkpoints.convert(source, destination, network, naming)
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
        output.show(f"Ignored ({why}): {first_few(names)}.")
    output.show(*report.notes)
    numbers = sum(math.prod(move.source_shape) for move in moved)
    left = f"; {len(report.moves) - len(moved)} ignored" if len(moved) < len(report.moves) else ""
    fitting = " or ".join(report.networks)
    output.show(f"{len(moved)} arrays of {fitting}, {numbers:,} numbers, written to {destination}{left}.")


def _draft(source: str, path: Path, network: str | None, naming: "checkpoints.Naming") -> None:
    from .. import checkpoints

    if network is None:
        raise Error("--draft-map needs --network: the names in the file are matched to those of a network")
    names, uncertain, ignored = checkpoints.draft_map(source, path, network, naming)
    output.show(
        f"{names} names written to {path}: {uncertain} uncertain, with ? at the end, {ignored} without a place (null). "
        f"Correct it, then pass --map {path}."
    )
