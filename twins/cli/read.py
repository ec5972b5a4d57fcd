"""`twins read`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.style import Style
from rich.table import Table
from rich.text import Text

from shared.checks import Error

from .. import beside
from ..beside import FRAMEWORKS, Pair, Words
from . import output

TWO_COLUMNS = 100  # the width from which two columns of code can be read
MARKED = Style(bold=True, reverse=True)


def read(
    block: Annotated[str, typer.Argument(metavar="BLOCK", help="A block or a layer: basic, Bottleneck, batch_norm.")],
    html: Annotated[Path | None, typer.Option(help="Write a web page to this file instead.")] = None,
) -> None:
    """Show a block's class in PyTorch and in Keras, with the differing words marked, and the layers that it uses.

    Wide terminals show two columns; narrow ones show equal lines once, and both versions where they differ.
    """
    if html and html.suffix.lower() not in (".html", ".htm"):
        raise Error(f"{html}: expected a file ending in .html")
    one, layers = beside.read(block)
    if html:
        from shared.files import check_writable, write_text

        check_writable(html)
        write_text(html, beside.page(f"{one.name} in PyTorch and Keras", [one, *layers]))
        return
    show = _columns if output.width() >= TWO_COLUMNS else _merged
    show(one)
    if layers:
        output.show("", Text("What it uses from layers.py, where the frameworks differ", style="bold"))
    for layer in layers:
        output.show("")
        show(layer)


def _columns(one: Pair) -> None:
    """Two columns: | between lines that differ, < and > beside those that one framework has alone."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=True)
    for number, (name, file) in enumerate(zip(FRAMEWORKS.values(), one.files, strict=True)):
        if number:
            table.add_column("", width=1)
        table.add_column("", justify="right", style="dim", width=3)
        table.add_column(f"{name}: {file}", ratio=1, overflow="fold")
    for row in one.rows:
        sign = " " if row.same else "|" if row.torch and row.keras else "<" if row.torch else ">"
        left, right = (("", Text()) if line is None else (f"{line[0]}", _text(line[1])) for line in (row.torch, row.keras))
        table.add_row(*left, sign, *right)
    output.show(table)


def _merged(one: Pair) -> None:
    """One column: what is the same stands once, what differs twice, after the framework's name."""
    output.show(Text(f"{one.files[0]} and {one.files[1]}", style="bold"))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    waiting: list[Words] = []  # Keras's lines of a place where several differ
    for row in one.rows:
        if row.same:
            _flush(table, waiting)
        if row.torch:
            table.add_row("" if row.same else "PyTorch", _text(row.torch[1]))
        if row.keras and not row.same:
            waiting.append(row.keras[1])
    _flush(table, waiting)
    output.show(table)


def _flush(table: Table, waiting: list[Words]) -> None:
    while waiting:
        table.add_row("Keras", _text(waiting.pop(0)))


def _text(words: Words) -> Text:
    return Text.assemble(*((text, MARKED if marked else Style()) for text, marked in words))
