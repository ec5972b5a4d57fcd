"""`twins microscope`."""

from pathlib import Path
from typing import Annotated

import typer

from shared import networks
from shared.checks import Error, first_few
from shared.files import check_folder

from .. import backends
from ..backends import Backend
from . import options, output


def microscope(
    network: Annotated[
        list[str],
        typer.Argument(metavar="NETWORK", help="Names from `twins list`, or paths of specs ending in .json."),
    ],
    out: Annotated[Path, typer.Option(help="Output folder for the page; open its index.html.")],
    backend: options.BackendOption = Backend.TORCH,
) -> None:
    """Write a web page that shows what each unit of a network reads of an image: click a unit to see its receptive field.

    It shows the theoretical field, which of its positions are read at all, and the effective field.
    The effective field comes from gradients with the initial weights.
    The page needs no server and no network connection.
    """
    from shared.weights import initial

    from .. import microscope as page

    specs = [networks.load(name) for name in network]
    names = [spec["name"] for spec in specs]
    repeated = [name for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise Error(f"two of the networks are called {repeated[0]!r}; the page tells them apart by name")
    chains = [page.layers(spec) for spec in specs]
    backends.check_backend(backend, backends.ENGINES, "the fields are of one framework")
    check_folder(out)
    with options.starting(backend):
        packages = backends.start(backend)
    summaries = []
    for spec, rows in zip(specs, chains, strict=True):
        with output.status(f"measuring {spec['name']}"):
            (engine,) = backends.engines(packages, spec, initial(spec, page.SEED))
            summaries.append(page.summary(spec, rows, page.effective(engine, spec, rows), engine.framework))
    chosen = [] if backend is Backend.TORCH else [f"--backend {backend}"]
    page.write(out, summaries, " ".join(["twins microscope", *names, *chosen]))
    layers = sum(map(len, chains))
    output.show(f"{out / 'index.html'}: {layers} layers of {first_few(names)}.")
