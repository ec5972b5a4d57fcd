"""`twins traps`."""

import contextlib
import sys
from collections.abc import Iterator
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

Measured = dict[Backend, "dict[str, Measurement]"]  # by the backend of Keras's, and the name of the trap

WIDEST = 100  # characters of a screen of text
KERAS = {Backend.TF: "TensorFlow", Backend.JAX: "JAX"}  # what it is measured on


def traps(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A trap, such as same-padding. Default: a table of all.")
    ] = None,
    backend: Annotated[
        Backend | None, typer.Option(help="Measure Keras on one backend only, tf or jax. Default: both, if installed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show where PyTorch and Keras differ, and measure what a naive port gets wrong.

    Each trap is reproduced on a small network, to measure how far a naive port is from PyTorch, and how far the port here is.
    Keras runs on TensorFlow, and on JAX in a separate process; the rounding of GPUs (TF32) and TPUs (bfloat16) is emulated.
    Exit status 1 if the port here exceeds a parity tolerance.
    """
    if backend:
        backends.check_backend(backend, KERAS, "the traps are measured on TensorFlow and on JAX")
    chosen = [texts.find(name)] if name else [*texts.load().values()]
    measured = _measured(chosen, [backend] if backend else [*KERAS])
    if as_json:
        rows = [_summary(trap, measured) for trap in chosen]
        output.show_json(rows[0] if name else rows)
    elif name:
        _show_trap(chosen[0], measured)
    else:
        _show_table(chosen, measured)
    sys.exit(1 if any(not m.ours <= m.tolerance for found in measured.values() for m in found.values()) else 0)


def _measured(chosen: list[Trap], wanted: list[Backend]) -> Measured:
    """The measurements, without those of frameworks that are missing, which is said."""
    from .. import traps as measuring

    measured: Measured = {}
    names = {one: [trap.name for trap in chosen if trap.only in ("", one)] for one in wanted}
    with contextlib.ExitStack() as stack:
        say = stack.enter_context(output.status("starting"))
        received: Iterator[Measurement] = iter(())
        if names.get(Backend.JAX):
            with _remarked(Backend.JAX):
                received = stack.enter_context(measuring.on_jax(names[Backend.JAX]))
        if names.get(Backend.TF):
            with _remarked(Backend.TF):
                packages = backends.start(Backend.BOTH)
                measured[Backend.TF] = {}
                for trap in names[Backend.TF]:
                    say(f"measuring {trap}")
                    measured[Backend.TF][trap] = measuring.measure(packages, trap)
        with _remarked(Backend.JAX):
            for found in received:
                say(f"measured {found.name} on JAX")
                measured.setdefault(Backend.JAX, {})[found.name] = found
    return measured


@contextlib.contextmanager
def _remarked(backend: Backend) -> Iterator[None]:
    """Errors of this context are remarks, since the texts need no framework."""
    try:
        yield
    except Error as error:
        output.remark(f"not measured on {KERAS[backend]}: {error}")


def _of(trap: Trap, measured: Measured) -> "dict[Backend, Measurement]":
    """The measurements of a trap."""
    return {one: found[trap.name] for one, found in measured.items() if trap.name in found}


def _summary(trap: Trap, measured: Measured) -> dict[str, Any]:
    file, line, code = texts.place(trap.where)
    found = _of(trap, measured)
    numbers = {one: found[one]._asdict() if one in found else None for one in KERAS}
    return trap._asdict() | {"file": file, "line": line, "code": code, "measured": numbers}


def _show_table(chosen: list[Trap], measured: Measured) -> None:
    wide = output.width() >= 130
    table = output.table("trap", *(["title"] if wide else []), "first beyond its tolerance", ">TensorFlow", ">JAX", ">ours")
    for trap in chosen:
        found = _of(trap, measured)
        values = [*found.values()]
        first = ": ".join(filter(None, (values[0].rung, values[0].where))) if values else ""
        naive = [_error(found[one]) if one in found else "–" * (one in measured) for one in KERAS]
        ours = f"{max(one.ours for one in values):.1e}" if values else ""
        broken = any(not one.ours <= one.tolerance for one in values)
        table.add_row(trap.name, *([trap.title] if wide else []), first, *naive, ours, style="red" if broken else None)
    output.show(table)
    if measured:
        note = "How far a naive port on TensorFlow and on JAX is from PyTorch, and the larger of ours, measured now."
        output.show("", f"{note} `twins traps NAME` explains one.")


def _error(found: "Measurement") -> str:
    return "fails" if found.failure else f"{found.naive:.1e}"


def _show_trap(trap: Trap, measured: Measured) -> None:
    file, line, code = texts.place(trap.where)
    naive, ours = [trap.naive], [trap.ours]
    for one, found in _of(trap, measured).items():
        where = f"{found.rung}, first at {found.where}" if found.where else found.rung
        error = f"fails: {found.failure}" if found.failure else f"{found.naive:.1e} from PyTorch"
        naive.append(f"{KERAS[one]}: {error} ({where})")
        ours.append(f"{KERAS[one]}: {found.ours:.1e} from PyTorch (tolerance {found.tolerance:g})")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(max_width=WIDEST - 10, overflow="fold")
    rows = {
        "PyTorch": [trap.pytorch],
        "Keras": [trap.keras],
        "on JAX": [trap.jax],
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
