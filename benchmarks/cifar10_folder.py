"""Write images of an `.npz`, all of CIFAR-10 for example, as a folder of PNGs, and compare runs on the one and on the other.

A folder is read class by class, each in the order of the names of its files. The `.npz` is written anew in that order, since
a run sees images in a permutation of their places: with the order of the original file it would be another run.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import script
import typer
from origin import processor
from PIL import Image

from shared import networks, recipes
from shared.checks import Error
from shared.data import load
from shared.files import atomic_folder
from shared.recipes import Recipe
from twins import backends, loading, runlog, training
from twins.backends import Backend
from twins.cli import output

PARTS = ("train", "test")
RECIPE = {
    "name": "cifar10_folder",
    "network": "mnist_residual",
    "preprocessing": {"channels": "RGB", "scale": 255, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "channels": 3,
    "batch": 256,
    "epochs": 1,
    "augmentation": {"pad": 2, "flip": True},
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
}


def main(
    data: Annotated[Path, typer.Argument(help="An .npz with x_train, y_train, x_test and y_test.", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="Folder in which to keep the PNGs. Default: a temporary folder.")] = None,
    backend: Annotated[Backend, typer.Option(help="torch, tf, jax, keras-torch or both.")] = Backend.BOTH,
    most: Annotated[int | None, typer.Option(min=100, help="Number of images to use from each part. Default: all.")] = None,
) -> None:
    """Train for an epoch on a folder of PNGs and on the same images in memory, and compare the losses, bit for bit."""
    backends.check_backend(backend, (*backends.ENGINES, Backend.BOTH), "a run is in this process")
    place = Path(tempfile.mkdtemp(prefix="cifar10_folder"))
    try:
        pictures = folder or place / "pictures"
        count = write(data, pictures, place / "same.npz", most)
        output.show(f"{count:,} PNGs in {pictures}; {processor()}")
        rows: dict[tuple[backends.Package, Path], runlog.Row] = {}
        for package in backends.start(backend):
            for name in (pictures, place / "same.npz"):
                recipe = recipes.load(RECIPE | {"data": f"{name}", "classes": 10})
                rows[package, name] = train(package, recipe, place / f"run{len(rows)}")
                row, kind = rows[package, name], "in memory" if name.suffix else "streamed"
                measured = f"loss {row['loss']!r:<20} test loss {row['test_loss']!r:<20} {row['images_per_sec']:,.0f} images/s"
                output.show(f"{row['framework']:8} {kind:9}  {measured}")
            one, other = (rows[package, name] for name in (pictures, place / "same.npz"))
            if any(one[key] != other[key] for key in ("loss", "accuracy", "test_loss", "test_accuracy")):
                raise Error(f"{one['framework']}: the losses of the folder are not those of the file")
        output.show("In each framework, the losses and accuracies of both are equal bit for bit.")
    finally:
        shutil.rmtree(place)


def write(data: Path, folder: Path, same: Path, most: int | None) -> int:
    """Write the images of an `.npz` as PNGs, and as another `.npz` in the folder's order; returns how many there are.

    Of each part, `most` images at even distances. Raises `Error` for a folder that is there, and for images that are not in
    colour or of other classes than CIFAR-10's.
    """
    if folder.exists():
        raise Error(f"{folder}: exists; expected a new folder")
    if data.suffix != ".npz":
        raise Error(f"{data}: expected an .npz file")
    images, names = load(data), networks.class_names({"classes": "cifar10"}) or []
    for part in PARTS:
        x, y = (getattr(images, f"{kind}_{part}") for kind in "xy")
        if x.shape[3] != 3:
            raise Error(f"{data}: x_{part} has images of {x.shape[3]} channels, expected 3")
        if y.max() >= len(names):
            raise Error(f"{data}: y_{part} has a label {y.max()}, expected 0 to {len(names) - 1}, the classes of CIFAR-10")
    arrays: dict[str, Any] = {}
    count = 0
    with atomic_folder(folder) as temporary:
        for part in PARTS:
            x, y = (getattr(images, f"{kind}_{part}") for kind in "xy")
            chosen = np.unique(np.linspace(0, len(y) - 1, min(most or len(y), len(y))).astype(int))
            chosen = chosen[np.argsort(y[chosen], kind="stable")]  # the classes of CIFAR-10 are in the order of their names
            arrays |= {f"x_{part}": x[chosen], f"y_{part}": y[chosen]}
            for place in chosen:
                path = temporary / part / names[y[place]] / f"{place:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x[place]).save(path, compress_level=1)
            count += len(chosen)
    np.savez(same, **arrays)
    return count


def train(package: backends.Package, recipe: Recipe, folder: Path) -> runlog.Row:
    """The line of the log of the first epoch."""
    spec, data = training.prepare(recipe)
    loader = loading.Loader(loading.default_workers())
    run = training.run(package.trainer(spec, recipe), recipe, spec, data, folder, loader=loader)
    return next(now.row for now in run if now.row)


if __name__ == "__main__":
    script.start(main)
