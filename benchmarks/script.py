"""How the scripts of this folder start.

They run the installed packages; the README's first command installs those of this checkout.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from shared.checks import Error
from twins.cli import output


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
    """A user's mistake in the block ends the script with one message and exit status 2, a run that cannot go on in status 1."""
    try:
        yield
    except (Error, OSError) as error:
        output.errors().print(f"{Path(sys.argv[0]).name}: {error}")
        sys.exit(getattr(error, "status", 2))


def start(function: Callable[..., None]) -> None:
    """Call a function with the options of the command line; at a SIGTERM, too, it ends its processes."""

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    with mistakes():
        app()
