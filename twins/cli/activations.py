"""`twins activations`."""

from pathlib import Path
from typing import Annotated

import typer

from shared import networks, shapes

from .. import backends
from ..backends import Backend
from . import options, output


def activations(
    network: options.Network,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture of any size.")],
    layer: Annotated[str, typer.Option(help="A layer, as `twins show` names it; for a group such as layer1, its last layer.")],
    out: options.Figure,
    weights: Annotated[str | None, typer.Option(help="A file, or the word imagenet. Default: the initial weights.")] = None,
    weights_key: options.WeightsKey = None,
    backend: options.BackendOption = Backend.TORCH,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Draw a picture, as a network sees it, beside a layer's map of highest mean activation, and measure its gridding.

    The number is the share of the map's energy at the frequencies of the network's largest dilation: 1 for a pure grid.
    """
    from shared import images, reading
    from shared.weights import initial

    from .. import gridding, plots, predict

    spec = networks.load(network)
    backends.check_backend(backend, backends.ENGINES, "the figure is of one framework")
    name = gridding.layer_name(layer, spec)
    options.check_pictures([image])
    plots.check_figure(out, source=image)
    if weights is None:
        state = initial(spec)
    else:
        spec, state = reading.load_weights(weights, spec, weights_key, output.remark)
    picture, batch = predict.read_image(image, spec)
    with options.starting(backend):
        (engine,) = backends.engines(backends.start(backend), spec, state, on_gpu=True)
    channel, values = gridding.strongest_map(engine, batch, name)
    title = spec["name"] + ("" if weights is not None else ", untrained")
    pixels = images.pixels([picture], spec)[0]
    plots.draw_panels([(image.name, pixels), (f"{name}, channel {channel}", values)], out, title)
    if as_json:
        summary = {"network": spec["name"], "image": f"{image}", "framework": engine.framework, "layer": name}
        summary |= {"channel": channel, "shape": values.shape, "mean": values.mean(dtype=float)}
        output.show_json(summary | gridding.measured(values, spec, name))
        return
    measured = f"channel {channel}, a map of {shapes.text(values.shape)}, mean {values.mean(dtype=float):.4g}"
    output.show(f"{title}: {name} in {engine.framework}: {measured}; {gridding.describe(values, spec, name)}.")
