"""What a training run starts from: a recipe or a checkpoint, a folder, and weights."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from shared import recipes
from shared.checks import Error
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from . import batches, checkpoints, plots, runlog, training
from .batches import Data
from .training import Checkpoint

DEFAULT = "digits_residual"


class Start(NamedTuple):
    """A run before its first step here."""

    recipe: Recipe
    spec: Spec
    data: Data
    folder: Path
    steps: int  # of the whole run
    checkpoint: Checkpoint | None
    pretrained: State  # the arrays that come from the recipe's "init"

    @property
    def title(self) -> str:
        """The run for people."""
        return str(self.recipe.get("title", self.recipe["name"]))

    @property
    def done(self) -> int:
        """How many steps are done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def history(self) -> list[runlog.Row]:
        """The epochs that are done."""
        return list(self.checkpoint.history) if self.checkpoint else []

    def arrays(self, initial: State) -> State:
        """What the engine is to hold, given what it holds: the checkpoint, or its own weights with the pretrained ones."""
        return self.checkpoint.arrays if self.checkpoint else initial | self.pretrained


def start(
    name: str | None, resume: Path | None, out: Path | None, changes: list[str], epochs: int | None, backend: str, rank: int = 0
) -> Start:
    """The start of a run by the recipe of a name or path, or of one resumed from its folder, with changes to the recipe.

    `out` is the folder, by default a new one under runs/, named after the recipe and the backend, or that of the resumed run.
    Raises `Error` if there is nothing to run, or nowhere to put it.
    """
    checkpoint = training.read_checkpoint(resume) if resume else None
    recipe = _recipe(name, resume, checkpoint, changes, epochs)
    spec, data = training.prepare(recipe, checkpoint.spec if checkpoint else None)
    recipe = batches.balanced(recipe, data, spec)
    per_epoch = batches.steps_per_epoch(recipe, data)
    if epochs and "steps" in recipe:
        recipe = recipes.changed(recipe, [f"steps={epochs * per_epoch}"])
    folder = _folder(out, resume, f"{recipe['name']}-{backend}", rank)
    if not rank:
        training.check_free(folder)
    steps = recipes.length(recipe, per_epoch)
    pretrained = checkpoints.load_backbone(recipe["init"], spec) if "init" in recipe and not resume else {}
    beginning = Start(recipe, spec, data, folder, steps, checkpoint, pretrained)
    if checkpoint and checkpoint.step >= steps:
        if folder.is_dir():
            draw_curves(folder, checkpoint.history, beginning.title)
        done = -(-checkpoint.step // per_epoch)
        raise Error(f"{resume}: the run is complete, {checkpoint.step:,} steps; pass --epochs above {done} to continue")
    if checkpoint and checkpoint.history and training.is_over(recipe, checkpoint.history):
        epochs = recipe["patience"]
        raise Error(
            f"{resume}: the run has ended, with no better epoch in {epochs}; pass --set patience above {epochs} to continue"
        )
    return beginning


def copy_best(resume: Path | None, folder: Path) -> None:
    """Copy the best weights of the resumed run into the folder of its continuation, until better ones come."""
    best = resume and (resume if resume.is_dir() else resume.parent) / "best.safetensors"
    if best and best.exists() and folder != best.parent:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(best, folder)


def draw_curves(folder: Path, history: list[runlog.Row], title: str) -> None:
    """Draw the curves of a run into its folder."""
    plots.draw_curves({runlog.frameworks(history): history}, folder / "curves.png", title)


def _recipe(
    name: str | None, resume: Path | None, checkpoint: Checkpoint | None, changes: list[str], epochs: int | None
) -> Recipe:
    if checkpoint and name is not None and recipes.load(name)["name"] != checkpoint.recipe["name"]:
        raise Error(f"{resume}: a checkpoint of a run of {checkpoint.recipe['name']}, not of {name}")
    before = checkpoint.recipe if checkpoint else recipes.load(DEFAULT if name is None else name)
    if epochs and "epochs" in recipes.changed(before, changes):
        changes = [*changes, f"epochs={epochs}"]
    if checkpoint:
        return training.resumed(checkpoint, changes)
    recipe = recipes.load(recipes.changed(before, changes))
    if recipe["freeze"] and "init" not in recipe:
        raise Error(f"{recipe['name']}: 'freeze' keeps weights as they are, so --init has to name a file of them")
    return recipe


def _folder(out: Path | None, resume: Path | None, name: str, rank: int) -> Path:
    """The folder of a run. Raises `Error` if another run is in it, or it cannot be made."""
    own = resume and (resume if resume.is_dir() else resume.parent)
    if resume and own and (not out or (out.exists() and out.samefile(own))):
        if resume.is_file() and not resume.samefile(own / "last.safetensors"):
            raise Error(f"{resume}: the run in {own} has been continued since; choose another folder with --out")
        return own
    if not out:
        out, number = Path("runs", name), 1
        while out.exists():
            number += 1
            out = Path("runs", f"{name}-{number}")
    elif (out / "last.safetensors").exists() and not rank:
        raise Error(f"{out}: has a run already; continue it with --resume {out}, or choose another folder")
    existing = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise Error(f"{out}: cannot be made: {existing} is {'not writable' if existing.is_dir() else 'a file'}")
    return out
