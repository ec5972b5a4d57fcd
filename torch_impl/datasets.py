"""Data sets through torchvision's downloaders, which verify what they fetch."""

import contextlib
import sys
from pathlib import Path

import numpy as np

import shared

CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's


def download(name: str, folder: str | Path) -> list[np.ndarray]:
    """[images, labels, images, labels] for training and for testing, fetched unless they are in `folder`.

    Images are bytes (count, height, width, channels). Raises `shared.Error` if the data set cannot be downloaded.
    """
    from torchvision import datasets  # here, since it takes a second to import

    arrays: list[np.ndarray] = []
    for train in (True, False):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                part = getattr(datasets, CLASSES[name])(folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise shared.Error(
                f"{name} could not be downloaded into {folder}: {error}. "
                f"Without a network connection, put {name}.npz into a folder and set TWINS_DATA to that folder"
            ) from None
        images = np.asarray(part.data)
        arrays += [images if images.ndim == 4 else images[..., None], np.asarray(part.targets, np.int64)]
    return arrays
