"""Draw a picture beside the strongest map of each of several networks, in PyTorch: gridding, seen and measured.

The strongest map is that of highest mean activation, as in Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 4. The number
is `shared.gridding.gridding` at the largest dilation of the network. Without weights a network has its initial ones, and the
figure shows what its arrangement alone does.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

try:
    import shared
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import shared
from shared import images
from shared.networks import head
from shared.weights import initial
from twins import backends, checkpoints, gridding, plots, predict

NETWORKS = ("drn_a_18", "drn_b_26", "drn_c_26")


def last_map(spec):
    """The name of the layer before the global pooling."""
    try:
        return head(spec)[0][-1]
    except shared.Error as error:
        raise shared.Error(f"{error}; --layer says which maps to draw of such a network") from None


def main(
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    out: Annotated[Path, typer.Option(help="A file ending in .png, .pdf or .svg.")],
    network: Annotated[
        list[str] | None, typer.Option(help=f"A network; may be repeated. Default: {', '.join(NETWORKS)}.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(help="Weights, one for each network, in their order.")] = None,
    layer: Annotated[str | None, typer.Option(help="A layer that all have. Default: that before the global pooling.")] = None,
):
    """Draw a picture beside the strongest map of each network, in PyTorch, and print how much of a grid each map is."""
    specs = [shared.load(name) for name in network or NETWORKS]
    if weights and len(weights) != len(specs):
        raise shared.Error(f"there are {len(specs)} networks and {len(weights)} --weights, expected one for each or none")
    layers = [gridding.layer_name(layer or last_map(spec), spec) for spec in specs]
    plots.check_figure(out, source=image)
    seen = [predict.read_image(image, spec) for spec in specs]
    states = [checkpoints.load_weights(source, spec) for source, spec in zip(weights or [], specs, strict=False)]
    import torch_impl

    panels = [(image.name, images.pixels([seen[0][0]], specs[0])[0])]
    table = Table("network", "layer", "channel", "map", "", box=None)
    for number, (spec, name, (_, batch)) in enumerate(zip(specs, layers, seen, strict=True)):
        state = states[number] if states else initial(spec)
        (engine,) = backends.engines([torch_impl], spec, state)
        channel, values = gridding.strongest_map(engine, batch, name)
        called = spec["name"] if weights else f"{spec['name']}, untrained"
        told = gridding.describe(values, spec, name)
        table.add_row(called, name, f"{channel}", "x".join(map(str, values.shape)), told)
        panels.append((f"{called}, {name}\n{told}", values))
    plots.draw_panels(panels, out)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)


if __name__ == "__main__":
    try:
        typer.run(main)
    except shared.Error as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"gridding.py: {error}")
        sys.exit(2)
