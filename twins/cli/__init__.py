"""The command `twins`, one file per command: each reads its options, calls one function of the application, and prints.

Commands import their work when they run, so that those that only look things up need neither NumPy nor a framework.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shared.checks import Error, RunError, is_out_of_memory, printable

from . import (
    activations,
    check,
    compare,
    convert,
    curves,
    diff,
    evaluate,
    export,
    list,
    locate,
    microscope,
    options,
    output,
    predict,
    read,
    schema,
    segment,
    show,
    train,
    traps,
)


class _Group(TyperGroup):
    """The commands, with the arguments that Typer's messages quote made printable."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _printable_messages():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable_messages():
            return super().invoke(ctx)


@contextlib.contextmanager
def _printable_messages() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "message"):  # one of Click's; some versions of Typer have their own copy
            error.message = printable(error.message)
        raise


app = typer.Typer(
    cls=_Group,
    help="The same networks in PyTorch and in Keras, from one spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list.list_networks)
app.command()(show.show)
app.command()(compare.compare)
app.command()(diff.diff)
app.command()(convert.convert)
app.command()(export.export)
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(locate.locate)
app.command()(segment.segment)
app.command()(activations.activations)
app.command()(microscope.microscope)
app.command()(train.train)
app.command()(curves.curves)
app.command()(traps.traps)
app.command()(read.read)
app.command()(schema.schema)
app.command()(check.check)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"twins {version('resnet-twins')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a user's mistake ends in one message and exit status 2, a run that cannot go on in status 1."""
    output.open_streams()
    status: Any = 2
    try:
        app()
    except SystemExit as end:
        status = end.code
    except Exception as error:
        if not isinstance(error, (Error, OSError)):
            if not is_out_of_memory(error):
                raise
            error = RunError("out of memory; try a smaller batch or image size")  # the frameworks' own words fill a screen
        message = f"{error}"
        if options.rank():
            options.tell_torchrun(message)
        else:
            output.complain(message)
        status = getattr(error, "status", 2)
    sys.exit(output.close_streams(status))
