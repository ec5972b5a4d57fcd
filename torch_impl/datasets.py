"""Data sets through torchvision's downloaders, which check what they fetch."""

import numpy as np
from torchvision import datasets

import shared

CLASSES = {
    "mnist": datasets.MNIST,
    "fashion_mnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
}


def download(name, folder):
    """Images (count, height, width, channels) and labels for training, then for testing; fetched if not in `folder`."""
    arrays = []
    for train in (True, False):
        try:
            part = CLASSES[name](folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise shared.Error(
                f"{name} could not be downloaded into {folder}: {error}. "
                f"Without a network, put {name}.npz into a folder and name the folder in TWINS_DATA"
            ) from None
        images = np.asarray(part.data)
        arrays += [images if images.ndim == 4 else images[..., None], np.asarray(part.targets, np.int64)]
    return arrays
