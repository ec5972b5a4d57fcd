"""Draw a picture beside the strongest map of each of several networks, in PyTorch, and measure the gridding of these maps.

The strongest map is that of highest mean activation, as in Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 4. The number
is `twins.gridding.gridding` at the largest dilation of the network. Without weights a network has its initial ones, and the
figure shows what its architecture alone does.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import script
import typer
from rich.console import Console
from rich.table import Table

from shared import images, networks, reading, shapes
from shared.checks import Error
from shared.spec import Spec
from shared.weights import State, initial
from twins import backends, gridding, plots, predict
from twins.cli import options

NETWORKS = ("drn_a_18", "drn_b_26", "drn_c_26")


def main(
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    out: options.Figure,
    network: Annotated[
        list[str] | None, typer.Option(help=f"A network; may be repeated. Default: {', '.join(NETWORKS)}.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Files of weights, one for each network, in the same order.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="A layer that all of them have. Default: the last before the global pooling.")
    ] = None,
) -> None:
    """Draw a picture beside the strongest map of each network, in PyTorch, and print how much of a grid each map is."""
    specs = [networks.load(name) for name in network or NETWORKS]
    if weights and len(weights) != len(specs):
        raise Error(f"there are {len(specs)} networks and {len(weights)} --weights, expected one for each or none")
    layers = [gridding.layer_name(layer or last_map(spec), spec) for spec in specs]
    options.check_pictures([image])
    plots.check_figure(out, source=image)
    loaded = [reading.load_weights(source, spec) for source, spec in zip(weights or [], specs, strict=False)]
    specs = [spec for spec, _ in loaded] or specs
    pictures, batches = zip(*(predict.read_image(image, spec) for spec in specs), strict=True)
    panels = [(image.name, images.pixels([pictures[0]], specs[0])[0])]
    table = Table("network", "layer", "channel", "map", "", box=None)
    for number, (spec, name, batch) in enumerate(zip(specs, layers, batches, strict=True)):
        channel, values = strongest_map(spec, loaded[number][1] if loaded else initial(spec), name, batch)
        title = spec["name"] if weights else f"{spec['name']}, untrained"
        share = gridding.describe(values, spec, name)
        table.add_row(title, name, f"{channel}", shapes.text(values.shape), share)
        panels.append((f"{title}, {name}\n{share}", values))
    plots.draw_panels(panels, out)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)


def last_map(spec: Spec) -> str:
    """The name of the layer before the global pooling. Raises `Error` if there is none."""
    try:
        return networks.head(spec)[0][-1]
    except Error as error:
        raise Error(f"{error}; --layer says which maps to draw of such a network") from None


def strongest_map(spec: Spec, state: State, layer: str, batch: np.ndarray) -> tuple[int, np.ndarray]:
    """(channel, map) of the highest mean activation of a layer, in PyTorch, for a batch of one image."""
    (engine,) = backends.engines([backends.pytorch()], spec, state)
    return gridding.strongest_map(engine, batch, layer)


if __name__ == "__main__":
    script.start(main)
