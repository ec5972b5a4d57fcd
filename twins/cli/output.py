"""What commands print: tables, lines, progress bars, JSON."""

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from shared.checks import printable

CLOSED = 128 + 13  # exit status if the reader of the output has closed it: a shell's for SIGPIPE


class Screen(Console):
    """A console that prints text as it is, without markup or emoji names, and escapes what a terminal would obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's; everything that is printed passes through here, the cells of a table before they are cut and padded."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's; the width of a table's column is that of the text as it is printed."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """End with the status that a shell has for it."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(CLOSED) from None


def open_streams() -> None:
    """Make the standard streams safe to print on, whatever they are.

    Closed ones lead nowhere, so that no file of ours gets their numbers; characters that an encoding lacks become escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            opened = os.open(os.devnull, os.O_RDWR)  # the smallest free number: that of the closed one
            if opened > 2:
                os.close(opened)
            setattr(sys, name, open(os.devnull, mode))
        elif hasattr(stream, "reconfigure") and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def close_streams(status: Any) -> Any:
    """Write out what is still to be printed, and return the exit status: a failure of that rather than a success."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # else Python would try again at exit, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status and not isinstance(error, BrokenPipeError):
            complain(f"standard output: cannot be written: {getattr(error, 'strerror', error)}")
        return status or (CLOSED if isinstance(error, BrokenPipeError) else 2)
    return status


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


def all_of(count: int) -> str:
    """Two or more things, as in "the same in both"."""
    return "both" if count == 2 else f"all {count}"


def show(*things: Any) -> None:
    """Print texts and tables, one after the other."""
    console = Screen(width=width())
    for thing in things:
        console.print(thing)


def show_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON, in ASCII, with null for NaN and infinity; at once, without an `indent`, on a line."""
    Screen(soft_wrap=True).print(json.dumps(finite(value), indent=indent))


def complain(message: str) -> None:
    """Print a message to stderr, as the command's, unless it cannot be written."""
    with contextlib.suppress(OSError):
        errors().print(f"twins: {message}")


def remark(note: str) -> None:
    """Print a note to stderr, so that it is in no output that another program reads."""
    errors().print(note)


def errors() -> Console:
    """A console on stderr that prints text as it is."""
    return Screen(stderr=True, soft_wrap=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr beside a text; yields a function that changes the text."""
    with Screen(stderr=True).status(Text(text)) as spinner:
        yield lambda text: spinner.update(Text(text))


@contextlib.contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, with images per second and the time left; yields a function to call with how many more are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    screen = Screen(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(text, total=total, speed="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g} images/s" if speed else "")

        yield advance


def width() -> int:
    """The width to print at, in characters."""
    # A pipe has no width: wide enough that each row stays on one line.
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def count(number: float) -> str:
    """1.81 G, 40.8 M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number}"


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
