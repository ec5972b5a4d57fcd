"""Train by a recipe twice, once in one framework and once with a change of framework every few epochs, and compare the runs."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import script
import typer

from shared import recipes
from shared.checks import Error
from twins import ladder, plots, runlog, training
from twins.backends import SEVERAL, Backend
from twins.training import Checkpoint


def main(
    out: Annotated[Path, typer.Argument(help="Output folder for both runs and their figure, switch.png.")],
    recipe: Annotated[str, typer.Option(help="Recipe to train from.")] = "digits_residual",
    epochs: Annotated[int, typer.Option(min=1, help="Total number of epochs.")] = 8,
    every: Annotated[int, typer.Option(min=1, help="Epochs between two changes of framework.")] = 2,
) -> None:
    """Train twice in float64, in PyTorch alone and in PyTorch, TensorFlow and JAX in turn, and compare the runs.

    Exit status 1 if a tolerance of rung 5 is exceeded.
    """
    if epochs % every or recipes.load(recipe)["schedule"]["name"] == "cosine":
        raise Error("expected --epochs that --every divides, and a schedule that does not depend on the run's length")
    whole, switched = out / "torch", out / "switched"
    options = ("--set", "precision=float64")
    train(recipe, *options, "--epochs", epochs, "--out", whole)
    in_turn = SEVERAL[Backend.ALL]
    for number, until in enumerate(range(every, epochs + 1, every)):
        folder = ("--resume", switched) if number else ("--out", switched)
        train(recipe, *options, *folder, "--epochs", until, "--backend", in_turn[number % len(in_turn)])
    one, other = training.read_checkpoint(whole), training.read_checkpoint(switched)
    runs = {"PyTorch": one.history, f"{runlog.frameworks(other.history)} in turn": other.history}
    within_tolerances = report(
        one, other, f"{recipe}, float64, {one.step} steps, {epochs} epochs, another framework after every {every}"
    )
    plots.draw_curves(runs, out / "switch.png", one.recipe.get("title", recipe))
    sys.exit(0 if within_tolerances else 1)


def train(*arguments: object) -> None:
    """Run `twins train`; its failure ends this script, too."""
    done = subprocess.run([sys.executable, "-m", "twins", "train", *map(str, arguments)])
    if done.returncode:
        sys.exit(done.returncode)


def report(one: Checkpoint, other: Checkpoint, title: str) -> bool:
    """Print how far two runs are apart; returns whether that is within the tolerances of rung 5."""
    worst = ladder.largest(ladder.between(one.arrays, other.arrays))
    losses = [ladder.relative(a["loss"], b["loss"]) for a, b in zip(one.history, other.history, strict=True)]
    accuracies = [[row["test_accuracy"] for row in run.history] for run in (one, other)]
    print(f"{title}:")
    print(f"losses of the epochs differ by {max(losses):.1e} at most, arrays by {worst.value:.1e} ({worst.name});")
    print(f"the test accuracies are {'the same' if accuracies[0] == accuracies[1] else 'not the same'}.")
    tolerances = ladder.TOLERANCES["float64"]
    return worst.value <= tolerances["weights"] and max(losses) <= tolerances["losses"]


if __name__ == "__main__":
    script.start(main)
