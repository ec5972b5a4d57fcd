"""`twins list`."""

import json
from typing import Annotated

import typer

from shared import networks, shapes

from . import output


def list_networks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List all networks: name, title, parameters, multiply-accumulates, input, source."""
    rows = []
    for name in networks.names():
        spec = json.loads((networks.SPECS / f"{name}.json").read_text(encoding="utf-8"))  # the tests have checked it
        layers = shapes.layers(spec)
        rows.append(
            {
                "name": name,
                "title": spec.get("title", ""),
                "parameters": shapes.parameters(layers),
                "macs": sum(row.macs for row in layers),
                "input": spec["input"],
                "source": spec.get("source", ""),
            }
        )
    if as_json:
        output.show_json(rows)
        return
    wide = output.width() >= 120  # in less there is no room for the sources; `twins show` has them too
    table = output.table("name", "title", ">parameters", ">MACs", "input", *(["source"] if wide else []))
    for row in rows:
        size = shapes.text(row["input"])
        cells = [row["name"], row["title"], f"{row['parameters']:,}", output.count(row["macs"]), size]
        table.add_row(*cells, *([row["source"]] if wide else []))
    output.show(table)
