"""`twins show`."""

import math
from enum import StrEnum
from typing import Annotated, Any

import typer

from shared import networks, shapes
from shared.spec import Spec

from . import options, output


class Head(StrEnum):
    """What may be put on a network in place of its classifier."""

    SEGMENTATION = "segmentation"


def show(
    network: options.Network,
    size: options.Size = None,
    head: Annotated[
        Head | None, typer.Option(help="Replace the classifier: segmentation classifies every pixel instead of the image.")
    ] = None,
    classes: options.Classes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a network layer by layer: output shape, parameters, multiply-accumulates, receptive field, stride, dilation."""
    spec = networks.load(network)
    if head:
        spec = networks.segmentation(spec, classes or networks.outputs(spec) or 1)
    elif classes:
        spec = networks.variant(spec, classes)
    rows = shapes.layers(spec, (size, size) if size else None)
    if as_json:
        output.show_json(_summary(spec, rows, size))
        return
    table = output.table("layer", "type", ">output", ">parameters", ">MACs", ">receptive\nfield", ">stride", ">dilation")
    for row in rows:
        field = "all" if math.isinf(row.field) else f"{row.field}"
        dilation = ", ".join(map(str, row.dilations))
        parameters, macs = (f"{row.parameters:,}" if row.parameters else ""), output.count(row.macs) if row.macs else ""
        table.add_row(row.name, row.type, shapes.text(row.shape), parameters, macs, field, f"{row.stride}", dilation)
    table.add_section()
    macs = output.count(sum(row.macs for row in rows))
    table.add_row("total", "", "", f"{shapes.parameters(rows):,}", macs, "", "", "")
    output.show(spec.get("title", spec["name"]), spec.get("source", ""), table)


def _summary(spec: Spec, rows: list[shapes.Row], size: int | None) -> dict[str, Any]:
    keys = ("name", "type", "shape", "parameters", "macs", "field", "stride", "dilations")
    summary = {key: spec.get(key) for key in ("name", "title", "source", "input")}
    if size:
        summary["input"] = [spec["input"][0], size, size]
    summary |= {"parameters": shapes.parameters(rows), "macs": sum(row.macs for row in rows)}
    return summary | {"layers": [{key: getattr(row, key) for key in keys} for row in rows]}
