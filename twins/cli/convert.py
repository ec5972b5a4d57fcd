"""`twins convert`."""

import contextlib
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    classes: options.Classes = None,
    channels: options.Channels = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Replace a regular expression in all names of the file; may be repeated."),
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="JSON object that maps names in the file to names in the network.")
    ] = None,
    draft_map: Annotated[
        Path | None,
        typer.Option(help="Instead of converting, write a draft of such a map, matched by order and shape."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Convert weights between PyTorch, Keras and other projects, and show where every array went.

    The input format is detected from the first bytes of the file; code in it is never run.
    Output formats: .safetensors, .pth, .pt, .th, .keras, .weights.h5, and .h5 of keras.applications.
    """
    from shared.reading import Naming

    from .. import checkpoints

    naming = Naming(weights_key, rename or (), map_file)
    if draft_map:
        if network is None:
            raise Error("--draft-map needs --network: the names in the file are matched to those of a network")
        _show_draft(draft_map, checkpoints.draft_map(source, draft_map, network, naming, classes, channels), as_json)
        return
    if destination is None:
        raise Error("the output is missing: twins convert IN OUT, or --draft-map FILE.json")
    # A download has a progress bar of its own.
    with contextlib.nullcontext() if source == "imagenet" else output.status(f"{source} to {destination}"):
        report = checkpoints.convert(source, destination, network, naming, classes, channels)
    if as_json:
        output.show_json(_summary(report, destination))
    else:
        _show(report, destination)


def _summary(report: "checkpoints.Conversion", destination: Path) -> dict[str, Any]:
    moves = [
        {"from": move.source, "shape": move.source_shape, "to": move.destination, "new_shape": move.destination_shape}
        for move in report.moves
        if not move.ignored
    ]
    ignored = [{"from": m.source, "shape": m.source_shape, "reason": m.ignored} for m in report.moves if m.ignored]
    summary = {"destination": str(destination), "networks": report.networks, "moves": moves, "ignored": ignored}
    return summary | {"notes": report.notes}


def _show(report: "checkpoints.Conversion", destination: Path) -> None:
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


def _show_draft(path: Path, counts: tuple[int, int, int], as_json: bool) -> None:
    names, uncertain, ignored = counts
    if as_json:
        output.show_json({"destination": str(path), "names": names, "uncertain": uncertain, "ignored": ignored})
        return
    output.show(
        f"{names} names written to {path}: {uncertain} uncertain (marked ?), {ignored} unmatched (null). "
        f"Correct it, then pass --map {shlex.quote(str(path))}."
    )
