"""`twins traps`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from shared import traps as texts
from shared.checks import Error
from shared.traps import Trap

from .. import backends
from ..backends import Backend
from . import output

if TYPE_CHECKING:
    from ..traps import Measurement

WIDEST = 100  # characters of a screen of text


def traps(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A trap, as same-padding. Default: a table of all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show where PyTorch and Keras differ, and measure what a port by hand gets wrong.

    Each trap is put back and measured on a small network: how far the naive port is from PyTorch, and how far the port here is.
    For TF32, which needs a GPU, the rounding is emulated. Exit status 1 if a network here exceeds a bound of the ladder.
    """
    chosen = [texts.find(name)] if name else [*texts.load().values()]
    try:
        measured = _measured(chosen)
    except Error as error:  # a framework is missing: the texts need none
        output.remark(f"not measured: {error}")
        measured = {}
    if as_json:
        rows = [_summary(trap, measured.get(trap.name)) for trap in chosen]
        output.show_json(rows[0] if name else rows)
    elif name:
        _show_trap(chosen[0], measured.get(name))
    else:
        _show_table(chosen, measured)
    sys.exit(1 if any(not m.ours <= m.bound for m in measured.values()) else 0)


def _measured(chosen: list[Trap]) -> "dict[str, Measurement]":
    """{name: measurement}. Raises `Error` if a framework is missing."""
    with output.status("starting PyTorch and TensorFlow") as say:
        packages = backends.start(Backend.BOTH)
        from .. import traps as measuring

        measured = {}
        for trap in chosen:
            say(f"measuring {trap.name}")
            measured[trap.name] = measuring.measure(packages, trap.name)
        return measured


def _summary(trap: Trap, measured: "Measurement | None") -> dict[str, Any]:
    file, line, code = texts.place(trap.where)
    place = {"file": file, "line": line, "code": code}
    return trap._asdict() | place | {"measured": measured._asdict() if measured else None}


def _show_table(chosen: list[Trap], measured: "dict[str, Measurement]") -> None:
    wide = output.width() >= 130
    table = output.table("trap", *(["title"] if wide else []), "what parts", "first at", ">naive", ">ours")
    for trap in chosen:
        found = measured.get(trap.name)
        naive = ("fails" if found.failure else f"{found.naive:.1e}") if found else ""
        cells = (found.rung, found.where, naive, f"{found.ours:.1e}") if found else ("", "", "", "")
        broken = found and not found.ours <= found.bound
        table.add_row(trap.name, *([trap.title] if wide else []), *cells, style="red" if broken else None)
    output.show(table)
    if measured:
        output.show("", "Relative differences from PyTorch, measured now. `twins traps NAME` explains one.")


def _show_trap(trap: Trap, measured: "Measurement | None") -> None:
    file, line, code = texts.place(trap.where)
    naive, ours = [trap.naive], [trap.ours]
    if measured:
        where = f"{measured.rung}, first at {measured.where}" if measured.where else measured.rung
        error = f"fails: {measured.failure}" if measured.failure else f"{measured.naive:.1e} from PyTorch"
        naive.append(f"{error} ({where})")
        ours.append(f"{measured.ours:.1e} from PyTorch (bound {measured.bound:g})")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(max_width=WIDEST - 10, overflow="fold")
    rows = {
        "PyTorch": [trap.pytorch],
        "Keras": [trap.keras],
        "formula": [trap.formula],
        "naive": naive,
        "ours": ours,
        "code": [f"{file}, line {line}", code],
        "source": ["; ".join(trap.source)],
        "lesson": [f"docs/lessons/{trap.lesson}.md"],
    }
    for label, lines in rows.items():
        table.add_row(label, "\n".join(lines))
    output.show(Text(trap.title, style="bold"), "", table)
