"""Mixup (Zhang et al. 2017, arXiv:1710.09412): images mixed in pairs, the same in both frameworks, and their two labels."""

from typing import Any, NamedTuple

import numpy as np


class Mixed(NamedTuple):
    """The labels of mixed images. The loss is `share` times that of the first labels and 1 - `share` times that of the second.

    NumPy arrays (batch,), or tensors. The share is in [0.5, 1], so the first label is that of the image with the larger share.
    """

    first: Any
    second: Any
    share: Any


Labels = np.ndarray | Mixed  # whole numbers, or those of mixed images


def pairs(count: int, alpha: float, seed: int, step: int) -> tuple[float, np.ndarray]:
    """(share, place of each image's partner) of a batch of so many images: a pure function of its arguments.

    One share, from Beta(alpha, alpha), holds for the whole batch, as in the authors' code. If it is below 0.5, an image and its
    partner swap roles, which gives the same pairs: the partners are a random permutation.
    """
    generator = np.random.default_rng([seed, step, 2])  # the third number sets it apart from the batch's augmentation
    share = float(generator.beta(alpha, alpha))
    return max(share, 1 - share), generator.permutation(count)


def mixed(images: np.ndarray, labels: np.ndarray, share: float, partners: np.ndarray) -> tuple[np.ndarray, Mixed]:
    """Normalised images, each mixed with its partner among them, and their labels.

    There are as many as `partners`; the images after them serve only as partners.
    """
    first = slice(len(partners))
    pictures = images[first] * images.dtype.type(share) + images[partners] * images.dtype.type(1 - share)
    return pictures, Mixed(labels[first], labels[partners], share)


def part(batch: Any, place: slice) -> Any:
    """A part of images or of labels."""
    if isinstance(batch, Mixed):
        return batch._replace(first=batch.first[place], second=batch.second[place])
    return batch[place]
