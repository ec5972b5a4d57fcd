"""Train small residual networks, dilated or not, on labels only, and measure how well their class maps show where a digit is.

As Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3, do it with ImageNet, for each network and seed by a run of the
recipe `scattered`, in PyTorch. A box is of all positions above a threshold, a fraction of the peak; "exclusive" are those where
no other class is more probable, as in the paper. A run's threshold is chosen on the first half of the test images; all numbers
are of the second half.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import script
import typer
from experiment import Row, Run, in_words, last_layer, mean_gridding, planned, train_all
from origin import origin
from rich.console import Console
from rich.table import Table

from shared import images
from shared.checks import Error
from shared.data import Data
from shared.files import write_text
from twins import backends, boxes, datasets, gridding, plots, predict, scattered, training
from twins.boxes import Box, Localisation
from twins.cli import options, output
from twins.training import Checkpoint

NETWORKS = ["resnet10_small", "drn_a_10_small", "drn_b_18_small", "drn_c_18_small"]
WINDOW = (0, 0, scattered.SIZE, scattered.SIZE)
EXAMPLES = 4  # test images of the figure
COLUMNS = {
    "map": "class map",
    "top1_classification_error": "classification\nerror",
    "top1_localisation_error": "localisation\nerror",
    "exclusive_top1_localisation_error": "of exclusive\npositions",
    "dense_top1_localisation_error": "of interpolated\nmaps",
    "mean_iou": "mean IoU",
    "pointing_accuracy": "pointing\naccuracy",
    "gridding": "gridding",
}

PLAIN = ("mean_iou", "gridding")  # columns that are not in per cent


class Experiment(NamedTuple):
    """What the runs have come to."""

    rows: list[Row]
    logs: list[Row]  # of all runs, a line an epoch
    localisations: dict[str, list[Localisation]]  # of all test images, by the first run of each network
    strongest: dict[str, tuple[np.ndarray, float | None]]  # for one of them: its strongest map, and the gridding of that


def main(
    folder: Annotated[Path, typer.Argument(help="Output folder; runs already in it are resumed, or used if complete.")],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = NETWORKS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per network.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores.")] = 2,
    changes: options.Changes = None,
) -> None:
    """Train the networks, print the table, and write it, all numbers, the logs and three figures into the folder."""
    runs = planned(folder, "scattered", network, seeds, changes or [])
    source = runs[0].recipe["data"]
    if source not in datasets.SCATTERED:
        raise Error(f"--set data={source}: expected {' or '.join(datasets.SCATTERED)}, which have boxes")
    folder.mkdir(parents=True, exist_ok=True)
    with output.status("training") as say:
        train_all(runs, jobs, say)
        data, true_boxes, _ = datasets.load_scattered(source)
        experiment = examine_all(runs, data, true_boxes, say)
    half = len(true_boxes) // 2
    canvas = boxes.whole_picture_scores([WINDOW[2:]] * (len(true_boxes) - half), [[box] for box in true_boxes[half:]])
    screen = Console(width=160, highlight=False)
    with screen.capture() as captured:
        screen.print(table(experiment.rows, canvas))
    text = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    results = {**origin(), "whole_canvas": canvas, "runs": experiment.rows}
    write_text(folder / "localisation.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / "localisation.jsonl", "".join(json.dumps(line) + "\n" for line in experiment.logs))
    write_text(folder / "localisation.txt", text)
    draw(experiment, data, true_boxes, folder)
    print(text, end="")


def examine_all(runs: Sequence[Run], data: Data, true_boxes: np.ndarray, say: Callable[[str], None]) -> Experiment:
    """Measure the runs on the test images."""
    experiment = Experiment([], [], {}, {})
    for run in runs:
        say(f"testing: {run.folder.name}")
        checkpoint = training.read_checkpoint(run.folder)
        name = checkpoint.spec["name"]
        localisations, maps = examine(checkpoint, data)
        row = {"network": name, "seed": run.seed, "map": "x".join(map(str, maps[0].shape))}
        for prefix, of_prefix in localisations.items():
            row |= {f"{prefix}{key}": value for key, value in measured(of_prefix, true_boxes).items()}
        experiment.rows.append(row | {"gridding": mean_gridding(checkpoint.spec, last_layer(checkpoint.spec), maps)})
        experiment.logs.extend({"network": name, "seed": run.seed, **line} for line in checkpoint.history)
        experiment.localisations.setdefault(name, localisations[""])
        experiment.strongest.setdefault(name, (maps[0], mean_gridding(checkpoint.spec, last_layer(checkpoint.spec), maps[:1])))
    return experiment


def examine(checkpoint: Checkpoint, data: Data) -> tuple[dict[str, list[Localisation]], list[np.ndarray]]:
    """Where the network of a run localises the labels of the test images, in three ways; and its strongest maps.

    {"": of all positions, "exclusive_": of those where no other class is more probable, "dense_": of the map at the size of the
    image}; and, for the second half of the images, the map of highest mean activation of the last layer before the pooling.
    """
    spec, package = checkpoint.spec, backends.pytorch()
    engine = package.Engine(package.build(spec))
    engine.load(checkpoint.arrays)
    localisations: dict[str, list[Localisation]] = {"": [], "exclusive_": [], "dense_": []}
    strongest: list[np.ndarray] = []
    size = predict.batch_size(spec)
    for start in range(0, len(data.x_test), size):
        batch = images.preprocess(data.x_test[start : start + size], spec)
        for maps, label in zip(engine.class_maps(batch).astype(np.float64), data.y_test[start : start + size], strict=True):
            plain = boxes.localise(maps, WINDOW, label)
            localisations[""].append(plain)
            localisations["exclusive_"].append(boxes.localise(maps, WINDOW, label, alone=True))
            localisations["dense_"].append(plain._replace(response=boxes.upsampled(plain.response, *WINDOW[2:])))
        strongest += [gridding.strongest(maps)[1] for maps in engine.activations(batch)[last_layer(spec)]]
    return localisations, strongest[len(strongest) // 2 :]


def measured(localisations: Sequence[Localisation], true_boxes: np.ndarray) -> Row:
    """The scores of the second half of the images, at the threshold that is best for the first; and those at all thresholds."""
    half, truths = len(localisations) // 2, [[box] for box in true_boxes]
    errors = {t: boxes.scores(localisations[:half], truths[:half], t)["localisation_error"] for t in boxes.SWEEP}
    threshold = min(errors, key=lambda t: errors[t])
    scores = {t: boxes.scores(localisations[half:], truths[half:], t, known=True) for t in boxes.SWEEP}
    sweep = {t: scores_at["localisation_error"] for t, scores_at in scores.items()}
    return {"threshold": threshold, **scores[threshold], "sweep": sweep}


def table(rows: Sequence[Row], canvas: Mapping[str, float]) -> Table:
    """The table of all networks: means over the seeds and, in parentheses, their range."""
    grid = Table("network", *COLUMNS.values(), box=None)
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        ranges = (in_words([row[key] for row in of_network], key not in PLAIN) for key in list(COLUMNS)[1:])
        grid.add_row(network, of_network[0]["map"], *ranges)
    error, pointing = (f"{100 * canvas[key]:.1f}" for key in ("localisation_error", "pointing_accuracy"))
    grid.add_row("the whole canvas", "", "", error, "", "", f"{canvas['mean_iou']:.2f}", pointing, "")
    return grid


def draw(experiment: Experiment, data: Data, true_boxes: np.ndarray, folder: Path) -> None:
    """Draw the three figures."""
    draw_sweeps(experiment.rows, folder / "localisation-sweep.png")
    panels = [("image\n", np.asarray(data.x_test)[len(true_boxes) // 2])]
    for network, (values, share) in experiment.strongest.items():
        panels.append((f"{network}\n" + (f"gridding {share:.2f}" if share is not None else ""), values))
    plots.draw_panels(panels, folder / "localisation-gridding.png")
    draw_examples(experiment, data, true_boxes, folder / "localisation-examples.png")


def draw_sweeps(rows: Sequence[Row], path: Path) -> None:
    """Draw the localisation errors over the thresholds: of each network the mean over the seeds, and their range."""
    with plots.figure(path, 1, 2, (9, 4), sharey=True) as (_, panels):
        for axes, key, title in zip(panels, ("sweep", "dense_sweep"), ("positions", "positions, interpolated"), strict=True):
            for network in dict.fromkeys(row["network"] for row in rows):
                sweeps = np.array([list(row[key].values()) for row in rows if row["network"] == network])
                (line,) = axes.plot(boxes.SWEEP, sweeps.mean(0), "o-", markersize=3, label=network)
                axes.fill_between(boxes.SWEEP, sweeps.min(0), sweeps.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
            axes.set(xlabel="threshold, as a fraction of the peak", title=f"boxes of {title}", ylim=(0, 1))
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("localisation error, label known")
        panels[1].legend(frameon=False, loc="lower left")


def draw_examples(experiment: Experiment, data: Data, true_boxes: np.ndarray, path: Path) -> None:
    """Draw test images, and each network's responses to their labels, with its boxes in red and the true ones in green."""
    half, columns = len(true_boxes) // 2, 1 + len(experiment.localisations)
    thresholds = {row["network"]: row["threshold"] for row in reversed(experiment.rows)}  # of its first run
    with plots.figure(path, EXAMPLES, columns, (1.6 * columns, 1.6 * EXAMPLES), squeeze=False) as (_, panels):
        for row, number in zip(panels, range(half, half + EXAMPLES), strict=True):
            row[0].imshow(np.asarray(data.x_test)[number, ..., 0], cmap="gray")
            row[0].set_ylabel(f"label {data.y_test[number]}")
            for axes, (network, localisations) in zip(row[1:], experiment.localisations.items(), strict=True):
                localisation = localisations[number]
                axes.imshow(np.clip(localisation.response, 0, None), cmap="inferno", extent=(0, *WINDOW[2:], 0), vmin=0)
                outline(axes, localisation.box(thresholds[network]), "red")
            for axes in row:
                outline(axes, true_boxes[number], "lime")
                axes.set(xlim=(0, WINDOW[2]), ylim=(WINDOW[3], 0), xticks=[], yticks=[])
        for axes, title in zip(panels[0], ("image", *experiment.localisations), strict=True):
            axes.set_title(title, fontsize=8)


def outline(axes: Any, box: Box | None, colour: str) -> None:
    """Draw a box, if there is one."""
    from matplotlib.patches import Rectangle

    if box is not None:
        left, top, right, bottom = box
        sides = right - left, bottom - top
        axes.add_patch(Rectangle((left, top), *sides, fill=False, edgecolor=colour, linewidth=1.5, clip_on=False))


if __name__ == "__main__":
    script.start(main)
