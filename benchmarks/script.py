"""How the scripts of this folder start.

They run the installed packages; the README's first command installs those of this checkout.
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from shared.checks import Error
from twins.cli import output

GRACE = 30.0  # seconds that a process has to end in


class Children:
    """Processes, started by any thread, that end with a `with` block, however that ends."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[Any]] = []
        self.lock, self.is_over = threading.Lock(), False

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process, with options of `subprocess.Popen`. Raises `Error` after the block, which a thread may outlive."""
        with self.lock:
            if self.is_over:
                raise Error("interrupted")
            process = subprocess.Popen(command, **options)
            self.processes.append(process)
            return process

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.is_over = True
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


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
