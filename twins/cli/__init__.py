"""The command `twins`: a file a command; each reads its options, calls one function of the application, and prints.

What looks things up starts neither NumPy nor a framework, so that it is quick: commands import their work when they run.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from shared.checks import Error

from . import (
    activations,
    compare,
    convert,
    curves,
    evaluate,
    export,
    list,
    locate,
    options,
    output,
    predict,
    schema,
    show,
    train,
)

app = typer.Typer(
    help="The same networks in PyTorch and in Keras, from one spec.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list.list_networks)
app.command()(show.show)
app.command()(compare.compare)
app.command()(convert.convert)
app.command()(export.export)
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(locate.locate)
app.command()(activations.activations)
app.command()(train.train)
app.command()(curves.curves)
app.command()(schema.schema)


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
    try:
        app()
    except (Error, OSError) as error:
        if options.rank():
            options.tell_torchrun(f"{error}")
        else:
            output.complain(f"{error}")
        sys.exit(getattr(error, "status", 2))
