"""Options that several commands have, and the checks of their values."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shared import limits
from shared.checks import Error, in_words

from .. import backends
from ..backends import Backend
from . import output

Network = Annotated[
    str, typer.Argument(metavar="NETWORK", help="A name from `twins list`, or the path of a spec ending in .json.")
]
Pictures = Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", help="Pictures of any size.")]
Weights = Annotated[str | None, typer.Option(help="A file with the network's weights, or the word imagenet.")]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights to read if the file has several: a key, the end of one, or a prefix of names, such as ema.",
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(min=1, max=limits.WHOLE, help="Number of classes. Default: from the weights, else from the network."),
]
Channels = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=limits.WHOLE,
        help="Image channels, 1 for grey. Default: as for --classes.",
    ),
]
Size = Annotated[int | None, typer.Option(min=1, max=limits.WHOLE, help="Height and width of the images, in pixels.")]
BackendOption = Annotated[
    Backend,
    typer.Option(
        help="torch: PyTorch; tf, jax, keras-torch: Keras on TensorFlow, JAX or PyTorch; both: torch, tf; all: torch, tf, jax."
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(help="Fraction of each class to hold out of training and test on."),
]
Workers = Annotated[
    int | None, typer.Option(min=0, max=256, help="Extra processes to read pictures with. Default: one per core, at most 8.")
]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help="Skip pictures that cannot be read.")]
Figure = Annotated[Path, typer.Option(help="Output file, ending in .png, .pdf or .svg.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated.")]


class Dtype(StrEnum):
    """The precision of a comparison."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@contextlib.contextmanager
def starting(backend: Backend, before: Sequence[Backend] = (), wait: str = "") -> Iterator[Callable[[str], None]]:
    """`output.status` while the frameworks of --backend start, others `before` it, and then what they wait for.

    First a note, if the environment variable KERAS_BACKEND has another backend of Keras's than --backend.
    """
    asked = [
        backends.KERAS_BACKENDS[one] for one in backends.SEVERAL.get(backend, (backend,)) if one in backends.KERAS_BACKENDS
    ]
    given = os.environ.get("KERAS_BACKEND", "")
    if given and asked and given not in asked:
        output.remark(f"KERAS_BACKEND is {given!r}, but --backend {backend} takes precedence: Keras runs on {in_words(asked)}.")
    frameworks = [name for each in (*before, backend) for name in backends.frameworks(each)]
    with output.status(f"starting {in_words(frameworks)}{wait}") as say:
        yield say


def rank() -> int:
    """The number of this process among those that torchrun has started; 0 without torchrun."""
    word = os.environ.get("RANK", "") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return int(word) if word.isdecimal() else 0


def check_torchrun() -> None:
    """Raise `Error` if the environment says that torchrun has started this process, but not what torchrun says besides."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
            word = os.environ.get(name, "")
            if not word.isdecimal():
                raise Error(f"TORCHELASTIC_RUN_ID is set, but {name} is {word!r}: start with torchrun, or unset both")


def worker() -> tuple[int, int]:
    """(number of this process, how many there are) of the workers that TF_CONFIG names; (0, 1) without it.

    Raises `Error` if it is not a list of workers and one of them.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0, 1
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        index = int(task["index"])
        known = task["type"] == "worker" and [*config["cluster"]] == ["worker"] and 0 <= index < len(workers)
        if known and all(":" in address for address in workers):
            return index, len(workers)
    except (ValueError, KeyError, TypeError):
        pass
    expected = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    raise Error(f"the environment variable TF_CONFIG is {text!r}, expected only workers, for example {expected}")


def tell_torchrun(message: str) -> None:
    """Leave torchrun the message of a process that it started: it shows it if this was the first of them to end."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        text = f"twins: {message}"
        shown = {"message": text, "errorCode": 0, "extraInfo": {"py_callstack": text, "timestamp": f"{time.time():.0f}"}}
        Path(path).write_text(json.dumps({"message": shown}), encoding="utf-8")


def check_pictures(paths: list[Path]) -> None:
    """Raise `Error` for a file that does not exist and for a folder, so that we fail before the work."""
    folders = [path for path in paths if path.is_dir()]
    if folders:
        raise Error(f"{folders[0]}: is a folder; pass its files, for example {folders[0] / '*.jpg'}")
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise Error(f"{missing[0]}: there is no such file" + (f", nor {', '.join(missing[1:])}" if missing[1:] else ""))
