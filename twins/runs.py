"""What a training run starts from: a recipe or a checkpoint, a folder, and weights."""

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared import files, reading, recipes, renaming, weights
from shared.checks import Error, first_few
from shared.data import Data
from shared.recipes import Recipe
from shared.spec import Spec
from shared.weights import State

from . import backends, batches, pairs, plots, runlog, training
from .backends import Package
from .loading import Loader
from .training import Checkpoint

DEFAULT = "digits_residual"
LONGEST = 2**31 - 1  # steps, while the data set whose size decides on them is not read yet


class Start(NamedTuple):
    """A run before its first step here."""

    recipe: Recipe
    spec: Spec
    data: Data
    folder: Path
    steps: int  # of the whole run
    checkpoint: Checkpoint | None
    pretrained: State  # the arrays that come from the recipe's "init"
    notes: list[str]  # on these, and on the folder

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


@contextlib.contextmanager
def start(
    name: str | None,
    resume: Path | None,
    out: Path | None,
    changes: list[str],
    epochs: int | None,
    backend: str,
    rank: int = 0,
    skip: bool = False,
) -> Iterator[Start]:
    """The start of a run by the recipe of a name or path, or of one resumed from its folder, with changes to the recipe.

    `out` is the folder, by default one under runs/, named after the recipe and the backend, or that of the resumed run. Where
    another run is in it, this one goes to a new one, with a number after the name. `skip` is as `training.prepare` has it.
    In the block, no other process trains in it; if nothing was written, it is removed again. Raises `Error` if there is nothing
    to run, or nowhere to put it.
    """
    checkpoint = training.read_checkpoint(resume) if resume else None
    recipe = _recipe(name, resume, checkpoint, changes, epochs)
    init = None
    if "init" in recipe and not resume:
        init = reading.fit_weights(recipe["init"], recipes.network(recipe), recipe.get("weights_key"))
    spec, data = training.prepare(recipe, checkpoint.spec if checkpoint else None, init and init.whole, skip)
    per_epoch = batches.steps_per_epoch(recipe, data)
    if checkpoint:
        training.check_epochs(checkpoint, per_epoch)
    if epochs and "steps" in recipe:
        recipe = _changed(checkpoint, recipe, [*changes, f"steps={epochs * per_epoch}"])
    recipe |= {"classes": data.classes} if data.classes else {}
    recipe = pairs.balanced(recipe, data, spec, skip) if data.coding else batches.balanced(recipe, data, spec)
    folder, in_place = _folder(out, resume, f"{recipe['name']}-{backend}", rank)
    steps = recipes.length(recipe, per_epoch)
    pretrained, notes = reading.adapted(init, spec) if init else ({}, [])
    notes = [*init.notes, *renaming.variant_note(recipes.network(recipe), spec), *notes] if init else []
    if data.skipped:
        files = f"{len(data.skipped)} files" if data.skipped[1:] else "a file"
        notes.insert(0, f"{recipe['data']}: skipped {files} without a picture's extension: {first_few(data.skipped)}.")
    if out and not in_place and folder != out:
        again = f"--resume {shlex.quote(str(out))}"
        notes.insert(0, f"{out}: already has a run, which {again} continues. This one goes to {folder}.")
    beginning = Start(recipe, spec, data, folder, steps, checkpoint, pretrained, notes)
    done = beginning.done
    if done >= steps and (rank or not in_place):
        raise _complete(resume, done, per_epoch)
    if checkpoint and done < steps and training.is_over(recipe, checkpoint.history):
        patience = recipe["patience"]
        raise Error(
            f"{resume}: the run has ended, with no better epoch in {patience}; pass --set patience above {patience} to continue"
        )
    with contextlib.nullcontext() if rank else training.locked(folder):
        if checkpoint and in_place:
            training.check_current(folder, checkpoint)
        if checkpoint and done >= steps:  # in case a process was killed at the very end, before it did so
            training.complete_best(folder, checkpoint, whole_epoch=done % per_epoch == 0)
            draw_curves(folder, checkpoint.history, beginning.title)
            raise _complete(resume, done, per_epoch)
        yield beginning


def _complete(resume: Path | None, done: int, per_epoch: int) -> Error:
    epochs = -(-done // per_epoch)
    return Error(f"{resume}: the run is complete, {done:,} steps; pass --epochs above {epochs} to continue")


def copy_best(resume: Path | None, folder: Path) -> None:
    """Copy the best weights of the resumed run into the folder of its continuation, until better ones come."""
    origin = resume if not resume or resume.is_dir() else resume.parent
    if origin and origin != folder:
        best = next((path for name in (training.BEST_WHOLE, training.BEST) if (path := origin / name).exists()), None)
        if best:
            with files.atomic_path(folder / training.BEST) as temporary:
                shutil.copy(best, temporary)


def scores_on_unseen(package: Package, start: Start, loader: Loader) -> training.Scores | None:
    """What the best weights of a run's folder reach on the test images that it has not used, None if there are none."""
    if not start.data.unseen:
        return None
    dtype, state = batches.dtype(start.recipe), weights.of_network(weights.read_state(start.folder / training.BEST))
    (engine,) = backends.engines([package], start.spec, state, dtype, on_gpu=True)
    data = start.data._replace(x_test=start.data.unseen.x, y_test=start.data.unseen.y)
    with loader:
        return training.evaluate(engine, start.spec, data, dtype, loader)


def draw_curves(folder: Path, history: list[runlog.Row], title: str) -> None:
    """Draw the curves of a run into its folder."""
    plots.draw_curves({runlog.frameworks(history): history}, folder / "curves.png", title)


def _recipe(
    name: str | None, resume: Path | None, checkpoint: Checkpoint | None, changes: list[str], epochs: int | None
) -> Recipe:
    if checkpoint and name is not None and recipes.load(name)["name"] != checkpoint.recipe["name"]:
        raise Error(f"{resume}: a checkpoint of a run of {checkpoint.recipe['name']}, not of {name}")
    before = checkpoint.recipe if checkpoint else recipes.load(DEFAULT if name is None else name)
    if epochs:
        changes = [*changes, f"epochs={epochs}" if "epochs" in recipes.changed(before, changes) else f"steps={LONGEST}"]
    recipe = _changed(checkpoint, before, changes)
    if not checkpoint and "weights_key" in recipe and "init" not in recipe:
        raise Error(f"{recipe['name']}: 'weights_key' selects weights in a file, which --init must name")
    if not checkpoint and recipe["freeze"] and "init" not in recipe:
        raise Error(f"{recipe['name']}: 'freeze' keeps weights unchanged, so --init must name a file of them")
    return recipe


def _changed(checkpoint: Checkpoint | None, recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe of a checkpoint, or the one given, with changes, checked."""
    return training.resumed(checkpoint, changes) if checkpoint else recipes.load(recipes.changed(recipe, changes))


def _folder(out: Path | None, resume: Path | None, name: str, rank: int) -> tuple[Path, bool]:
    """(folder, whether it is the resumed run's own) of a run: where another run is, one with a number after its name.

    Raises `Error` if it cannot be made.
    """
    own = resume and (resume if resume.is_dir() else resume.parent)
    if resume and own and (not out or (out.exists() and out.samefile(own))):
        last = own / training.LAST
        if not last.exists():
            raise Error(f"{resume}: there is no {last} to continue; choose a folder with --out")
        if resume.is_file() and not resume.samefile(last):
            raise Error(f"{resume}: the run in {own} has been continued since; choose another folder with --out")
        return own, True

    def is_taken(folder: Path) -> bool:
        """Whether another run is there; the first of several processes makes the folder for all that name it."""
        return (folder / training.LAST).exists() and not rank if out else not training.is_unused(folder)

    folder, number = out or Path("runs", name), 1
    named = folder.resolve() if folder.name in ("", "..") else folder
    while is_taken(folder):
        number += 1
        folder = named.with_name(f"{named.name}-{number}")
    files.check_folder(folder)
    return folder, False
