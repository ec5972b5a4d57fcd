"""Several networks trained from one recipe with several seeds, each run in its own process, and resumed where it stopped."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import script

from shared import networks, recipes
from shared.checks import Error
from shared.recipes import Recipe
from shared.spec import Spec
from twins import gridding, training
from twins.loading import cores

Row = dict[str, Any]  # what is measured of a run


class Run(NamedTuple):
    """A network to be trained with a seed."""

    folder: Path
    network: str  # a name or the path of a spec
    seed: int
    recipe: Recipe
    arguments: list[str]  # of `twins train`


def planned(folder: Path, recipe: str, network: Sequence[str], seeds: int, changes: Sequence[str]) -> list[Run]:
    """The runs, seed by seed. Raises `Error` for a recipe that is wrong, and a network without class maps."""
    runs = []
    for seed, name in itertools.product(range(seeds), network):
        own = [f"network={name}", f"seed={seed}", *changes]
        changed = recipes.load(recipes.changed(recipes.load(recipe), own))
        spec = networks.load(name)
        networks.head(spec)
        arguments = [recipe, *(f"--set={change}" for change in own)]
        runs.append(Run(folder / f"{spec['name']}-{seed}", name, seed, changed, arguments))
    return list({run.folder: run for run in runs}.values())


def complete(folder: Path, recipe: Recipe) -> bool:
    """Whether the run of a folder is complete, or its patience at an end.

    Raises `Error` if it is of another recipe or another network.
    """
    if not (folder / "last.safetensors").exists():
        return False
    checkpoint = training.read_checkpoint(folder)
    if recipe.get("class_weights") == recipes.BALANCED:  # for which a run has the numbers
        recipe = recipe | {"class_weights": checkpoint.recipe.get("class_weights")}
    if checkpoint.recipe != recipe or checkpoint.spec["layers"] != recipes.network(recipe)["layers"]:
        raise Error(f"{folder}: has a run of another recipe or network; choose another folder")
    if training.is_over(recipe, checkpoint.history):
        return True
    if "steps" in recipe:
        return bool(checkpoint.step == recipe["steps"])
    return bool(checkpoint.history) and checkpoint.history[-1]["epoch"] == recipe["epochs"]


def train_all(runs: Sequence[Run], jobs: int, say: Callable[[str], None]) -> None:
    """Train those that are not complete, several at once. Raises `Error` as soon as one fails."""
    missing = [run for run in runs if not complete(run.folder, run.recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(cores() // jobs, 1))}
    with ThreadPoolExecutor(jobs) as pool, script.Children() as children:
        futures = [pool.submit(train, run, environment, children) for run in missing]
        try:
            for number, future in enumerate(as_completed(futures)):
                say(f"training: {len(runs) - len(missing) + number} of {len(runs)} runs done")
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def train(run: Run, environment: Mapping[str, str], children: script.Children) -> None:
    """Train a network, or resume its run; what that prints goes into a file beside the folder. Raises `Error` if it fails."""
    resumed = (run.folder / "last.safetensors").exists()
    arguments = ["--resume", str(run.folder)] if resumed else [*run.arguments, "--out", str(run.folder)]
    log = run.folder.with_suffix(".txt")
    with log.open("a") as file:
        command = [sys.executable, "-m", "twins", "train", *arguments]
        status = children.start(command, env=environment, stdout=file, stderr=subprocess.STDOUT).wait()
    if status:
        lines = log.read_text().strip().splitlines() or [f"it ended with {status}"]
        raise Error(f"{run.network}, seed {run.seed}: {lines[-1]}")


def last_layer(spec: Spec) -> str:
    """The name of the last layer before the global pooling of a network that classifies whole images."""
    return networks.head(spec)[0][-1]


def mean_gridding(spec: Spec, layer: str, maps: Sequence[np.ndarray]) -> float | None:
    """The mean of `gridding.gridding` over maps of a layer; None without dilation."""
    try:
        period = gridding.grid_period(spec, layer)
    except Error:
        return None
    return float(np.mean([gridding.gridding(values, period) for values in maps]))


def in_words(values: Sequence[float | None], in_per_cent: bool = True) -> str:
    """The mean of the seeds' values and, in parentheses, their range; empty without values."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, mean, high = (f"{100 * x:.1f}" if in_per_cent else f"{x:.2f}" for x in (min(known), np.mean(known), max(known)))
    return f"{mean} ({low}–{high})"
