"""Train by a recipe twice, in one framework and with a change of framework after every second epoch, and compare."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from shared import recipes
from shared.checks import Error
from twins import ladder, plots, training


def twins(*arguments):
    done = subprocess.run([sys.executable, "-m", "twins", "train", *map(str, arguments)])
    if done.returncode:
        raise SystemExit(done.returncode)


def run(
    out: Annotated[Path, typer.Argument(help="The folder for both runs and their picture, switch.png.")],
    recipe: Annotated[str, typer.Option(help="What to train.")] = "digits_residual",
    epochs: Annotated[int, typer.Option(help="For how many epochs.")] = 10,
    every: Annotated[int, typer.Option(help="Change the framework after so many.")] = 2,
):
    """Exit status 1 where a bound of rung 5 is not kept: in float64."""
    if epochs % every or recipes.load_recipe(recipe)["schedule"]["name"] == "cosine":
        raise Error("expected --epochs that --every divides, and a schedule that does not depend on the run's length")
    whole, switched = out / "torch", out / "switched"
    options = ("--set", "precision=float64")
    twins(recipe, *options, "--epochs", epochs, "--out", whole)
    for number, until in enumerate(range(every, epochs + 1, every)):
        where = ("--resume", switched) if number else ("--out", switched)
        twins(recipe, *options, *where, "--epochs", until, "--backend", ("torch", "tf")[number % 2])
    one, other = training.read_checkpoint(whole), training.read_checkpoint(switched)
    worst = ladder.largest(ladder.between(one.arrays, other.arrays))
    losses = [ladder.relative(a["loss"], b["loss"]) for a, b in zip(one.history, other.history, strict=True)]
    accuracies = [[row["test_accuracy"] for row in found.history] for found in (one, other)]
    print(f"{recipe}, float64, {one.step} steps, {epochs} epochs, another framework after every {every}:")
    print(f"losses of the epochs differ by {max(losses):.1e} at most, arrays by {worst.value:.1e} ({worst.name});")
    print(f"the test accuracies are {'the same' if accuracies[0] == accuracies[1] else 'not the same'}.")
    runs = {"PyTorch": one.history, "PyTorch and Keras in turn": other.history}
    plots.draw_curves(runs, out / "switch.png", one.recipe.get("title", recipe))
    bounds = ladder.BOUNDS["float64"]
    sys.exit(1 if worst.value > bounds["weights"] or max(losses) > bounds["losses"] else 0)


if __name__ == "__main__":
    try:
        typer.run(run)
    except Error as error:
        raise SystemExit(f"switch.py: {error}") from None
