"""Options that several commands have, and the checks of their values."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shared import limits
from shared.checks import Error

from ..backends import Backend

Network = Annotated[
    str, typer.Argument(metavar="NETWORK", help="A name, as `twins list` shows it, or the path of a spec ending in .json.")
]
Pictures = Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", help="Pictures of any size.")]
Weights = Annotated[str | None, typer.Option(help="A file with the network's weights, or the word imagenet.")]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="Which weights to read, of several in the file: a key, its end, or a prefix of the names, as ema."
    ),
]
Size = Annotated[int | None, typer.Option(min=1, max=limits.WHOLE, help="Height and width of the images, in pixels.")]
BackendOption = Annotated[Backend, typer.Option(help="What to run in: PyTorch, Keras on TensorFlow, JAX or PyTorch, or both.")]
Figure = Annotated[Path, typer.Option(help="Output file, ending in .png, .pdf or .svg.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated.")]


class Dtype(StrEnum):
    """The precision of a comparison."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def rank() -> int:
    """The number of this process among those that torchrun has started; 0 without torchrun."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def check_pictures(paths: list[Path]) -> None:
    """Raise `Error` for a file that does not exist and for a folder, so that we fail before the work."""
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise Error(f"{folders[0]}: is a folder; pass its files, for example {folders[0] / '*.jpg'}")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise Error(f"{missing[0]}: there is no such file" + (f", nor {', '.join(missing[1:])}" if missing[1:] else ""))
