"""Data sets through torchvision's downloaders, which check what they fetch."""

import numpy as np

import shared

CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's


def download(name, folder):
    """Images (count, height, width, channels) and labels for training, then for testing; fetched if not in `folder`."""
    from torchvision import datasets  # which takes a second to import

    arrays = []
    for train in (True, False):
        try:
            part = getattr(datasets, CLASSES[name])(folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise shared.Error(
                f"{name} could not be downloaded into {folder}: {error}. "
                f"Without a network, put {name}.npz into a folder and name the folder in TWINS_DATA"
            ) from None
        images = np.asarray(part.data)
        arrays += [images if images.ndim == 4 else images[..., None], np.asarray(part.targets, np.int64)]
    return arrays
