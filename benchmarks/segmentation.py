"""Train small residual networks, dilated and not, to classify pixels by one recipe, and measure what dilation gives.

The networks are those of `localisation.py`, of one width and much the same number of parameters, each with the same head: a 1x1
convolution, and upsampling by the stride of its map (32 of the plain residual network, 8 of the dilated ones). In PyTorch, with
several seeds. The scores are of the last weights on the pictures that the recipe tests on; gridding is the mean over these
pictures of that of the strongest map before the head (see `twins/gridding.py`), at the largest dilation.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import script
import typer
from experiment import Row, Run, in_words, last_layer, mean_gridding, planned, train_all
from origin import origin, processor
from rich.console import Console
from rich.table import Table

from shared import images, masks, networks
from shared.checks import Error
from shared.data import Data
from shared.files import write_text
from twins import backends, gridding, pairs, plots, segmentation, training
from twins.cli import options, output

NETWORKS = ["resnet10_small", "drn_a_10_small", "drn_b_18_small", "drn_c_18_small"]
EXAMPLES = 4  # pictures of the figure
PICTURES = 100  # whose maps are measured for gridding
COLUMNS = {"miou": "mIoU, %", "boundary_miou": "near edges, %", "pixel_accuracy": "pixels, %", "gridding": "gridding"}


class Experiment(NamedTuple):
    """What the runs have come to."""

    rows: list[Row]
    logs: list[Row]  # of all runs, a line an epoch
    figure: list[dict[str, np.ndarray]]  # rows of {title: picture}
    colours: dict[str, masks.Colour]  # of the classes


def main(
    folder: Annotated[Path, typer.Argument(help="Output folder; runs already in it are resumed, or used if complete.")],
    recipe: Annotated[str, typer.Option(help="A recipe for pixels: a name, or the path of a .json file.")] = "scattered_seg",
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = NETWORKS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per network.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores.")] = 2,
    changes: options.Changes = None,
) -> None:
    """Train the networks, print the table, and write it, all numbers, the logs and a figure into the folder."""
    runs = planned(folder, recipe, network, seeds, changes or [])
    if "head" not in runs[0].recipe:
        raise Error(f"{recipe}: has no 'head', expected a recipe for segmentation such as scattered_seg")
    folder.mkdir(parents=True, exist_ok=True)
    with output.status("training") as say:
        train_all(runs, jobs, say)
        data = pairs.load(runs[0].recipe)
        experiment = examine_all(runs, data, say)
    screen = Console(width=100, highlight=False)
    with screen.capture() as captured:
        screen.print(table(experiment.rows))
    text = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    name = f"segmentation-{Path(recipe).stem}"
    results = {**origin(), "processor": processor(), "recipe": runs[0].recipe, "runs": experiment.rows}
    write_text(folder / f"{name}.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in experiment.logs))
    write_text(folder / f"{name}.txt", text)
    plots.draw_segmentations(experiment.figure, experiment.colours, folder / f"{name}.png")
    print(text, end="")


def examine_all(runs: Sequence[Run], data: Data, say: Callable[[str], None]) -> Experiment:
    """Measure the runs on the test pictures."""
    assert data.coding
    experiment = Experiment([], [], [], {})
    for run in runs:
        say(f"testing: {run.folder.name}")
        checkpoint = training.read_checkpoint(run.folder)
        spec, package = checkpoint.spec, backends.pytorch()
        engine = package.Engine(package.build(spec))
        engine.load(checkpoint.arrays)
        reader, classifier = pairs.Reader(spec, data.coding), networks.load(run.network)
        found = segmentation.measure([engine], data.x_test, data.y_test, reader)
        names = segmentation.names_of(spec, data.classes)
        summary = segmentation.summary(found, [engine.framework], names, spec, [1], False)
        row = {"network": classifier["name"], "seed": run.seed, "stride": pairs.stride(spec)}
        row |= {key: summary[key][engine.framework] for key in COLUMNS if key in summary}
        row["iou"] = {of_class["name"]: of_class["iou"] for of_class in summary["classes"]}
        maps = strongest_maps(engine, reader, data, last_layer(classifier))
        experiment.rows.append(row | {"gridding": mean_gridding(spec, last_layer(classifier), maps)})
        experiment.logs.extend({"network": row["network"], "seed": run.seed, **line} for line in checkpoint.history)
        experiment.colours.update(zip(names, segmentation.colours_of(names, data.coding), strict=False))
        add_to_figure(experiment, row["network"], engine, reader, data)
    return experiment


def add_to_figure(experiment: Experiment, network: str, engine: backends.Engine, reader: pairs.Reader, data: Data) -> None:
    """Add what a network says of the figure's pictures, unless a run of it is there."""
    places = np.linspace(0, len(data.x_test) - 1, EXAMPLES).astype(int)
    read = pairs.read_plain(data.x_test[places], data.y_test[places], reader, False)
    colours = list(experiment.colours.values())
    if not experiment.figure:
        coloured = (segmentation.coloured(mask, colours) for mask in read.masks)
        experiment.figure.extend({"picture": pixels, "mask": mask} for pixels, mask in zip(read.pixels, coloured, strict=True))
    for row, pixels in zip(experiment.figure, read.pixels, strict=True):
        if network not in row:
            row[network] = segmentation.coloured(segmentation.logits([engine], reader.spec, pixels)[0].argmax(0), colours)


def strongest_maps(engine: backends.Engine, reader: pairs.Reader, data: Data, layer: str) -> list[np.ndarray]:
    """The strongest map of a layer for each of the first test pictures, padded to multiples of the stride."""
    maps = []
    for number in range(min(PICTURES, len(data.x_test))):
        (pixels,) = pairs.read_plain(data.x_test[number : number + 1], data.y_test[number : number + 1], reader, False).pixels
        height, width = pixels.shape[:2]
        down, across = pairs.padded_size(reader.spec, height, width)
        batch = images.normalise(pixels[None], reader.spec)
        batch = np.pad(batch, ((0, 0), (0, 0), (0, down - height), (0, across - width)))
        maps.append(gridding.strongest_map(engine, batch, layer)[1])
    return maps


def table(rows: Sequence[Row]) -> Table:
    """The table of all networks: means over the seeds and, in parentheses, their range."""
    grid = Table("network", "stride", *COLUMNS.values(), box=None)
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        ranges = (in_words([row[key] for row in of_network], key != "gridding") for key in COLUMNS)
        grid.add_row(network, f"{of_network[0]['stride']}", *ranges)
    return grid


if __name__ == "__main__":
    script.start(main)
