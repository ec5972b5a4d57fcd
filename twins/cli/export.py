"""`twins export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from shared import networks, shapes
from shared.checks import Error, first_few, in_words
from shared.spec import Spec

from .. import backends
from . import options, output

if TYPE_CHECKING:
    from ..export import Row


def export(
    network: options.Network,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    classes: options.Classes = None,
    channels: options.Channels = None,
    folds: Annotated[bool, typer.Option("--fold", help="Fold batch norms into the convolutions before them.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write .keras files with Keras's own layers, which load without this package.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            help="Output file, or a folder without an extension; may be repeated. "
            "Default: NETWORK.safetensors, with --plain NETWORK.keras."
        ),
    ] = None,
    size: options.Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Export a trained network for inference elsewhere, read it back, and show how far its logits are from PyTorch's.

    Formats, in float32: .safetensors and .pth, each with the spec in a .json; .keras; .onnx; a folder for a SavedModel.
    Without PyTorch, which .pth and .onnx need, the logits are compared with Keras's.
    Exit status 1 if they differ by more than 1e-4, relative to their norm.
    """
    from shared import fold, reading

    from .. import export as exports

    spec = networks.load(network)
    if weights is None:
        raise Error("--weights is missing: an untrained network is of no use; expected a file, or the word imagenet")
    if size:
        spec = networks.with_size(spec, (size, size))
        shapes.layers(spec)  # raises unless the network takes images of that size
    exports.check_destinations(out or [], (network, weights), plain=plain)  # before anything is read or downloaded
    spec, state = reading.load_weights(weights, spec, weights_key, output.remark, classes, channels)
    folded_spec = fold.folded_spec(spec) if folds else spec
    out = out or [Path(f"{folded_spec['name']}{'.keras' if plain else '.safetensors'}")]
    exports.check_destinations(out, (network, weights), folded_spec, plain)
    if folds and not as_json:
        _show_folded(spec, folded_spec)
    with output.status(f"starting {in_words(backends.frameworks(exports.needed_backend(out)))}") as say:
        backends.start(exports.needed_backend(out))
        rows = exports.run(spec, state, folds, out, say, plain)
    broken = [row for row in rows if not row.relative <= exports.TOLERANCE]
    if as_json:
        files = [row._asdict() | {"path": f"{row.path}"} for row in rows]
        output.show_json({"network": folded_spec["name"], "files": files, "tolerance": exports.TOLERANCE, "passed": not broken})
    else:
        _show_rows(spec, rows, broken)
    sys.exit(1 if broken else 0)


def _show_rows(spec: Spec, rows: list["Row"], broken: list["Row"]) -> None:
    from .. import export as exports

    table = output.table("file", "read back by", ">relative difference", ">largest difference")
    for row in rows:
        style = "red" if row in broken else None
        table.add_row(f"{row.path}", row.reader, f"{row.relative:.1e}", f"{row.largest:.1e}", style=style)
    origin = f"{spec['name']} in {rows[0].framework}"
    output.show(table, f"The differences are from {origin}: logits for {exports.IMAGES} random images.")
    for row in broken:
        message = f"{row.path}: its logits differ by more than {exports.TOLERANCE:g}, relative to their norm."
        output.show(Text(message, style="red"))


def _show_folded(spec: Spec, folded_spec: Spec) -> None:
    from shared.fold import batch_norms

    before, remaining = batch_norms(spec), batch_norms(folded_spec)
    if folded_spec is spec:
        output.show(f"There is nothing to fold: {spec['name']} has no batch norm directly after a convolution.")
        return
    others = f"; {len(remaining)} kept, not directly after a convolution: {first_few(remaining)}" if remaining else ""
    output.show(f"{len(before) - len(remaining)} batch norms folded into the convolutions before them{others}.")
