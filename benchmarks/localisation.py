"""Train small residual networks, dilated and not, on labels alone, and measure how well their class maps say where a digit is.

As Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3, do it with ImageNet, for each network and seed by a run of the
recipe `scattered`, in PyTorch. A box is of all positions above a threshold, a share of the largest response; "exclusive" are
those where no other class is more probable, as in the paper. A run's threshold is chosen on the first half of the test images;
all numbers are of the second half.
"""

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from run import origin

try:
    import shared
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import shared
from shared import images, networks, recipes
from shared.files import atomic_path
from twins import boxes, datasets, gridding, plots, predict, scattered, training

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("resnet10_small", "drn_a_10_small", "drn_b_18_small", "drn_c_18_small")
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


def train(folder, network, seed, changes, environment):
    """Train a network, or go on with its run; what it prints goes into a file beside the folder."""
    begin = ["--out", str(folder), f"--set=network={network}", f"--set=seed={seed}", *(f"--set={change}" for change in changes)]
    words = ["--resume", str(folder)] if (folder / "last.safetensors").exists() else begin
    log = folder.with_suffix(".txt")
    with log.open("a") as output:
        command = [sys.executable, "-m", "twins", "train", "scattered", *words]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        said = log.read_text().strip().splitlines() or [f"it ended with {done.returncode}"]
        raise shared.Error(f"{network}, seed {seed}: {said[-1]}")


def complete(folder, recipe):
    """Whether the run of a folder is done. Raises `shared.Error` where another recipe, or another network, made it."""
    if not (folder / "last.safetensors").exists():
        return False
    checkpoint = training.read_checkpoint(folder)
    if checkpoint.recipe != recipe or checkpoint.spec["layers"] != recipes.network(recipe)["layers"]:
        raise shared.Error(f"{folder}: a run of another recipe or network; another folder would be right")
    if "steps" in recipe:
        return checkpoint.step == recipe["steps"]
    return bool(checkpoint.history) and checkpoint.history[-1]["epoch"] == recipe["epochs"]


def look(checkpoint, data):
    """What the network of a run sees in the test images, as `shared.locate.Sight`, in three ways; and its strongest maps.

    {"": of all positions, "exclusive_": of those where no other class is more probable, "dense_": of the map at the size of the
    image}; and, for the second half of the images, the map of highest mean activation of the last layer before the pooling.
    """
    import torch_impl

    spec = checkpoint.spec
    engine = torch_impl.Engine(torch_impl.build(spec))
    engine.load(checkpoint.arrays)
    sights, strongest, size = {"": [], "exclusive_": [], "dense_": []}, [], predict.batch_size(spec)
    for start in range(0, len(data.x_test), size):
        batch = images.preprocess(data.x_test[start : start + size], spec)
        for maps, label in zip(engine.class_maps(batch).astype(np.float64), data.y_test[start : start + size], strict=True):
            plain = boxes.localise(maps, WINDOW, label)
            sights[""].append(plain)
            sights["exclusive_"].append(boxes.localise(maps, WINDOW, label, alone=True))
            sights["dense_"].append(plain._replace(response=boxes.upsampled(plain.response, *WINDOW[2:])))
        strongest += [gridding.strongest(output)[1] for output in engine.activations(batch)[networks.head(spec)[0][-1]]]
    return sights, strongest[len(strongest) // 2 :]


def grids(spec, maps):
    """The mean of `shared.gridding.gridding` over maps of the last layer before the pooling; None without dilation."""
    try:
        period = gridding.grid_period(spec, networks.head(spec)[0][-1])
    except shared.Error:
        return None
    return float(np.mean([gridding.gridding(values, period) for values in maps]))


def measured(sights, true_boxes):
    """The scores of the second half of the images, at the threshold that is best for the first; and those at all thresholds."""
    half, truths = len(sights) // 2, [[box] for box in true_boxes]
    chosen = {t: boxes.scores(sights[:half], truths[:half], t)["localisation_error"] for t in boxes.SWEEP}
    threshold = min(chosen, key=chosen.get)
    scores = {t: boxes.scores(sights[half:], truths[half:], t, known=True) for t in boxes.SWEEP}
    return {
        "threshold": threshold,
        **scores[threshold],
        "sweep": {t: found["localisation_error"] for t, found in scores.items()},
    }


def draw_sweeps(found, path):
    """Draw the localisation errors over the thresholds: of each network the mean over the seeds, and their range."""
    figure, panels = _figure(1, 2, (9, 4), sharey=True)
    for axes, key, title in zip(panels, ("sweep", "dense_sweep"), ("positions", "positions, interpolated"), strict=True):
        for network in dict.fromkeys(row["network"] for row in found):
            sweeps = np.array([list(row[key].values()) for row in found if row["network"] == network])
            (line,) = axes.plot(boxes.SWEEP, sweeps.mean(0), "o-", markersize=3, label=network)
            axes.fill_between(boxes.SWEEP, sweeps.min(0), sweeps.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set(xlabel="threshold, of the largest response", title=f"boxes of {title}", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("localisation error, label known")
    panels[1].legend(frameon=False, loc="lower left")
    _save(figure, path)


def draw_examples(seen, data, true_boxes, found, path):
    """Draw test images, and the responses and boxes of their labels; `seen` is {network: sights}."""
    from matplotlib.patches import Rectangle

    half = len(true_boxes) // 2
    figure, panels = _figure(EXAMPLES, 1 + len(seen), (1.6 * (1 + len(seen)), 1.6 * EXAMPLES), squeeze=False)
    for row, number in zip(panels, range(half, half + EXAMPLES), strict=True):
        row[0].imshow(data.x_test[number, ..., 0], cmap="gray")
        row[0].set_ylabel(f"label {data.y_test[number]}")
        for axes, (network, sights) in zip(row[1:], seen.items(), strict=True):
            axes.imshow(np.clip(sights[number].response, 0, None), cmap="inferno", extent=(0, *WINDOW[2:], 0), vmin=0)
            threshold = next(r["threshold"] for r in found if r["network"] == network)
            _outline(axes, sights[number].box(threshold), Rectangle, "red")
        for axes in row:
            _outline(axes, true_boxes[number], Rectangle, "lime")
            axes.set(xlim=(0, WINDOW[2]), ylim=(WINDOW[3], 0), xticks=[], yticks=[])
    for axes, title in zip(panels[0], ("image", *seen), strict=True):
        axes.set_title(title, fontsize=8)
    _save(figure, path)


def _outline(axes, box, kind, colour):
    if box is not None:
        corner, sides = box[:2], (box[2] - box[0], box[3] - box[1])
        axes.add_patch(kind(corner, *sides, fill=False, edgecolor=colour, linewidth=1.5, clip_on=False))


def _figure(rows, columns, size, **options):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)


def _save(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def table(found, guess):
    """The table of all networks: means over the seeds and, in parentheses, their range."""
    shown = Table("network", *COLUMNS.values(), box=None)
    for network in dict.fromkeys(row["network"] for row in found):
        rows = [row for row in found if row["network"] == network]
        cells = [rows[0]["map"]]
        for key in list(COLUMNS)[1:]:
            values = [row[key] for row in rows if row[key] is not None]
            if not values:
                cells.append("")
                continue
            low, mean, high = (_words(key, value) for value in (min(values), np.mean(values), max(values)))
            cells.append(f"{mean} ({low}–{high})")
        shown.add_row(network, *cells)
    error, pointing = (f"{100 * guess[key]:.1f}" for key in ("localisation_error", "pointing_accuracy"))
    shown.add_row("the whole canvas", "", "", error, "", "", f"{guess['mean_iou']:.2f}", pointing, "")
    return shown


def _words(key, value):
    return f"{value:.2f}" if key in ("mean_iou", "gridding") else f"{100 * value:.1f}"


def main(
    folder: Annotated[Path, typer.Argument(help="For the runs; those that are there are not made again.")],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = NETWORKS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each network.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores.")] = 2,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated.")
    ] = None,
):
    """Train the networks, print the table, and write it, all numbers, the logs and three pictures into the folder."""
    changes = changes or []
    runs = {}
    for seed, name in itertools.product(range(seeds), network):
        recipe = recipes.load_recipe(
            recipes.changed(recipes.load_recipe("scattered"), [f"network={name}", f"seed={seed}", *changes])
        )
        spec = recipes.network(recipe)
        networks.head(spec)
        runs[folder / f"{spec['name']}-{seed}"] = name, seed, recipe
    source = recipe["data"]
    if source not in datasets.SCATTERED:
        raise shared.Error(f"--set data={source}: expected {' or '.join(datasets.SCATTERED)}, which have boxes")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [(run, name, seed) for run, (name, seed, recipe) in runs.items() if not complete(run, recipe)]
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    with Console(stderr=True).status("training") as status:
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(train, *run, changes, environment) for run in waiting]
            try:
                for number, future in enumerate(as_completed(futures)):
                    status.update(f"training: {number} of {len(futures)} runs done")
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        data, true_boxes = datasets.load_scattered(source)
        found, seen, panels, logs = [], {}, [("image\n", data.x_test[len(true_boxes) // 2])], []
        for run, (_, seed, _) in runs.items():
            status.update(f"looking at the test images: {run.name}")
            checkpoint = training.read_checkpoint(run)
            name = checkpoint.spec["name"]
            sights, maps = look(checkpoint, data)
            row = {"network": name, "seed": seed, "map": "x".join(map(str, maps[0].shape))}
            for way, these in sights.items():
                row |= {f"{way}{key}": value for key, value in measured(these, true_boxes).items()}
            found.append(row | {"gridding": grids(checkpoint.spec, maps)})
            if name not in seen:
                seen[name] = sights[""]
                share = grids(checkpoint.spec, maps[:1])
                panels.append((f"{name}\n" + (f"gridding {share:.2f}" if share is not None else ""), maps[0]))
            logs += [{"network": name, "seed": seed, **line} for line in checkpoint.history]
    guess = boxes.whole_picture_scores(
        [WINDOW[2:]] * (len(true_boxes) - len(true_boxes) // 2), [[box] for box in true_boxes[len(true_boxes) // 2 :]]
    )
    shown = table(found, guess)
    texts = {
        ".json": json.dumps({**origin(), "whole_canvas": guess, "runs": found}, indent=2) + "\n",
        ".jsonl": "".join(json.dumps(line) + "\n" for line in logs),
    }
    screen = Console(width=160, highlight=False)
    with screen.capture() as captured:
        screen.print(shown)
    texts[".txt"] = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    for ending, text in texts.items():
        with atomic_path(folder / f"localisation{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw_sweeps(found, folder / "localisation-sweep.png")
    plots.draw_panels(panels, folder / "localisation-gridding.png")
    draw_examples(seen, data, true_boxes, found, folder / "localisation-examples.png")
    print(texts[".txt"], end="")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (shared.Error, OSError) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"localisation.py: {error}")
        sys.exit(2)
