"""Train small residual networks, dilated and not, on labels alone, and measure how well their class maps say where a digit is.

As Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3, do it with ImageNet. For each network and seed a run of the recipe
`scattered`, in PyTorch. The threshold of a network's boxes is chosen on the first half of the test images; all numbers are of
the second half.
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

try:
    import shared
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import shared
from shared import data as datasets
from shared import gridding, locate, predict, scattered, training
from shared.weights import aside

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("resnet10_small", "drn_a_10_small", "drn_b_18_small", "drn_c_18_small")
WINDOW = (0, 0, scattered.SIZE, scattered.SIZE)
EXAMPLES = 4  # test images of the figure
COLUMNS = {
    "map": "class map",
    "top1_classification_error": "classification\nerror",
    "top1_localisation_error": "localisation\nerror",
    "dense_top1_localisation_error": "interpolated,\nlocalisation error",
    "mean_iou": "mean IoU",
    "pointing_accuracy": "pointing\naccuracy",
    "gridding": "gridding",
}


def train(folder, network, seed, changes, environment):
    """Train a network, or go on with its run; what it prints goes into a file beside the folder."""
    words = ["--resume", str(folder)] if (folder / "last.safetensors").exists() else ["--out", str(folder)]
    words += [] if words[0] == "--resume" else [f"--set=network={network}", f"--set=seed={seed}", *changes]
    log = folder.with_suffix(".txt")
    with log.open("a") as output:
        command = [sys.executable, "-m", "shared.cli", "train", "scattered", *words]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise shared.Error(f"{network}, seed {seed}: {log.read_text().strip().splitlines()[-1]}")


def complete(folder):
    """Whether the run of a folder is done."""
    if not (folder / "last.safetensors").exists():
        return False
    recipe, done, history = (getattr(training.read(folder), key) for key in ("recipe", "step", "history"))
    return done == recipe["steps"] if "steps" in recipe else bool(history) and history[-1]["epoch"] == recipe["epochs"]


def look(checkpoint, data):
    """What the network of a run sees in the test images, as `shared.locate.Sight`; and of the second half of them the maps,
    before the global pooling, of highest mean activation."""
    import torch_impl

    spec = checkpoint.spec
    (engine,) = predict.engines([torch_impl], spec, weights(checkpoint))
    sights, strongest, size = [], [], predict.batch_size(spec)
    for start in range(0, len(data.x_test), size):
        batch = datasets.preprocess(data.x_test[start : start + size], spec)
        labels = data.y_test[start : start + size]
        maps = engine.class_maps(batch).astype(np.float64)
        sights += [locate.sight(m, WINDOW, label) for m, label in zip(maps, labels, strict=True)]
        strongest += [gridding.strongest(output)[1] for output in engine.activations(batch)[shared.spec.head(spec)[0][-1]]]
    return sights, strongest[len(strongest) // 2 :]


def grids(spec, maps):
    """The mean of `shared.gridding.gridding` over maps, at the largest dilation; None for a network without dilation."""
    try:
        period = gridding.period(spec)
    except shared.Error:
        return None
    return float(np.mean([gridding.gridding(values, period) for values in maps]))


def weights(checkpoint):
    return {name: array for name, array in checkpoint.arrays.items() if not name.startswith("optimizer.")}


def measured(sights, boxes):
    """The scores of the second half of the images, each at the threshold that is best for the first; and the sweeps."""
    dense = [s._replace(responses={n: locate.upsampled(r, *WINDOW[2:]) for n, r in s.responses.items()}) for s in sights]
    half, truths = len(sights) // 2, [[box] for box in boxes]
    found = {"map": "x".join(map(str, next(iter(sights[0].responses.values())).shape))}
    for prefix, these in (("", sights), ("dense_", dense)):
        chosen = {t: locate.scores(these[:half], truths[:half], t)["localisation_error"] for t in locate.SWEEP}
        threshold = min(chosen, key=chosen.get)
        scores = {t: locate.scores(these[half:], truths[half:], t, known=True) for t in locate.SWEEP}
        found |= {f"{prefix}{key}": value for key, value in scores[threshold].items()}
        found[f"{prefix}threshold"] = threshold
        found[f"{prefix}sweep"] = {t: scores[t]["localisation_error"] for t in scores}
    return found


def draw_sweeps(found, path):
    """Draw the localisation errors over the thresholds: of each network the mean over the seeds, and their range."""
    figure, panels = _figure(1, 2, (9, 4), sharey=True)
    for axes, key, title in zip(panels, ("sweep", "dense_sweep"), ("positions", "positions, interpolated"), strict=True):
        for network in dict.fromkeys(row["network"] for row in found):
            sweeps = np.array([list(row[key].values()) for row in found if row["network"] == network])
            (line,) = axes.plot(locate.SWEEP, sweeps.mean(0), "o-", markersize=3, label=network)
            axes.fill_between(locate.SWEEP, sweeps.min(0), sweeps.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
        axes.set(xlabel="threshold, of the largest response", title=f"boxes of {title}", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("localisation error, label known")
    panels[1].legend(frameon=False, loc="lower left")
    _save(figure, path)


def draw_examples(seen, data, boxes, found, path):
    """Draw test images, and the responses and boxes of their labels; `seen` is {network: sights}."""
    from matplotlib.patches import Rectangle

    half = len(boxes) // 2
    figure, panels = _figure(EXAMPLES, 1 + len(seen), (1.6 * (1 + len(seen)), 1.6 * EXAMPLES), squeeze=False)
    for row, number in zip(panels, range(half, half + EXAMPLES), strict=True):
        row[0].imshow(data.x_test[number, ..., 0], cmap="gray")
        row[0].set_ylabel(f"label {data.y_test[number]}")
        for axes, (network, sights) in zip(row[1:], seen.items(), strict=True):
            response = sights[number].responses[sights[number].wanted]
            axes.imshow(np.clip(response, 0, None), cmap="inferno", extent=(0, *WINDOW[2:], 0), vmin=0)
            threshold = next(r["threshold"] for r in found if r["network"] == network)
            _outline(axes, sights[number].box(threshold), Rectangle, "red")
        for axes in row:
            _outline(axes, boxes[number], Rectangle, "lime")
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
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=120)


def table(found, boxes):
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
    guess = guessed(boxes)
    error, pointing = (f"{100 * guess[key]:.1f}" for key in ("localisation_error", "pointing_accuracy"))
    shown.add_row("the whole canvas, its centre", "", "", error, "", f"{guess['mean_iou']:.2f}", pointing, "")
    return shown


def _words(key, value):
    return f"{value:.2f}" if key in ("mean_iou", "gridding") else f"{100 * value:.1f}"


def guessed(boxes):
    """The scores of a box that is always the whole canvas, and of its centre, on the second half, the label known."""
    half = boxes[len(boxes) // 2 :]
    overlaps = np.array([locate.iou(WINDOW, box) for box in half])
    centre = [side / 2 for side in WINDOW[2:]]
    return {
        "localisation_error": float(np.mean(overlaps <= locate.RIGHT)),
        "mean_iou": float(overlaps.mean()),
        "pointing_accuracy": float(np.mean([locate.inside(centre, box) for box in half])),
    }


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
    specs = [shared.load(name) for name in network]
    for spec in specs:
        shared.spec.head(spec)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    runs = {(n, s): folder / f"{spec['name']}-{s}" for s in range(seeds) for n, spec in zip(network, specs, strict=True)}
    with Console(stderr=True).status("training") as status, ThreadPoolExecutor(jobs) as pool:
        options = [f"--set={change}" for change in changes or []]
        waiting = [pool.submit(train, run, *key, options, environment) for key, run in runs.items() if not complete(run)]
        for number, future in enumerate(waiting):
            status.update(f"training: {number} of {len(waiting)} runs done")
            future.result()
        found, seen, grid, logs, made = [], {}, {}, [], {}
        for (_, seed), run in runs.items():
            status.update(f"looking at the test images: {run.name}")
            checkpoint = training.read(run)
            source = checkpoint.recipe["data"]
            if source not in datasets.SCATTERED:
                raise shared.Error(f"{run}: trained on {source}, expected one of {', '.join(datasets.SCATTERED)}")
            if source not in made:
                made[source] = scattered.make(source.removeprefix("scattered_"))
            name = checkpoint.spec["name"]
            sights, maps = look(checkpoint, made[source].data)
            about = {"network": name, "seed": seed, **measured(sights, made[source].boxes)}
            found.append(about | {"gridding": grids(checkpoint.spec, maps)})
            if name not in seen:
                seen[name] = sights
                share = grids(checkpoint.spec, maps[:1])
                grid[name] = f"{name}\n" + (f"gridding {share:.2f}" if share is not None else ""), maps[0]
            logs += [{"network": name, "seed": seed, **row} for row in checkpoint.history]
    data, boxes = made[source]
    shown = table(found, boxes)
    command = shlex.join(["python", "benchmarks/localisation.py", *sys.argv[1:]])
    texts = {
        ".json": json.dumps({"command": command, "guess": guessed(boxes), "runs": found}, indent=2) + "\n",
        ".jsonl": "".join(json.dumps(row) + "\n" for row in logs),
    }
    screen = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    with screen.capture() as captured:
        screen.print(shown)
    texts[".txt"] = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    for ending, text in texts.items():
        with aside(folder / f"localisation{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw_sweeps(found, folder / "localisation-sweep.png")
    panels = [("image\n", data.x_test[len(boxes) // 2]), *grid.values()]
    gridding.draw(panels, folder / "localisation-gridding.png")
    draw_examples(seen, data, boxes, found, folder / "localisation-examples.png")
    screen.print(shown)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (shared.Error, OSError) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"localisation.py: {error}")
        sys.exit(2)
