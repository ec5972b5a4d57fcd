"""What commands print: tables, lines, progress bars, JSON."""

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def table(*columns: str, title: str | None = None) -> Table:
    """A table; a column whose name starts with > is flush right."""
    grid = Table(
        title=title and Text(title),
        title_justify="left",
        box=None,
        header_style="bold",
        padding=(0, 2 if width() >= 100 else 1, 0, 0),
    )
    for column in columns:
        folds, right = column in ("source", "title", "label", "where"), column.startswith(">")
        grid.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    return grid


def show(*things: Any) -> None:
    """Print texts and tables, one after the other."""
    console = Console(highlight=False, markup=False, width=width())
    for thing in things:
        console.print(thing)


def show_json(value: Any) -> None:
    """Print JSON, with null for NaN and infinity."""
    print(json.dumps(finite(value), indent=2))


def complain(message: str) -> None:
    """Print a message to stderr, as the command's."""
    errors().print(f"twins: {message}")


def remark(note: str) -> None:
    """Print a note to stderr, so that it is in no output that another program reads."""
    errors().print(note)


def errors() -> Console:
    """A console on stderr that prints text as it is."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr beside a text; yields a function that changes the text."""
    with Console(stderr=True).status(escape(text)) as spinner:
        yield lambda text: spinner.update(escape(text))


@contextlib.contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, with images a second and the time left; yields a function to call with how many more are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    screen = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(text, total=total, speed="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g} images/s" if speed else "")

        yield advance


def width() -> int:
    """The width to print at, in characters."""
    # A pipe has no width of its own: wide enough there for a row to stay a row.
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def count(number: float) -> str:
    """1.81 G, 40.8 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number}"


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
