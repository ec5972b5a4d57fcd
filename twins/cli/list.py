"""`twins list`."""

import json
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from shared import networks, shapes
from shared.checks import Error, nearest

from . import output


def list_networks(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Part of a name, such as drn; or a pattern with * or ? for the whole name."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List all networks, or those that match: name, title, parameters, multiply-accumulates, input, source."""
    rows = []
    for name in _matching(pattern or ""):
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
    wide = output.width() >= 120  # narrower terminals have no room for the sources; `twins show` has them too
    table = output.table("name", "title", ">parameters", ">MACs", "input", *(["source"] if wide else []))
    for row in rows:
        size = shapes.text(row["input"])
        cells = [row["name"], row["title"], f"{row['parameters']:,}", output.count(row["macs"]), size]
        table.add_row(*cells, *([row["source"]] if wide else []))
    output.show(table)


def _matching(pattern: str) -> list[str]:
    """The names of the networks that a pattern matches. Raises `Error` if there is none."""
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = [name for name in networks.names() if fnmatchcase(name, glob.lower())]
    if not found:
        near = nearest(pattern.strip("*?").lower(), networks.names())
        raise Error(f"no network's name matches {pattern!r}{near or '; `twins list` lists them all'}")
    return found
