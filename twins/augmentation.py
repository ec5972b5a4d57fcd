"""Random changes of training images: functions of (seed, step, place in the batch), so that a resumed run sees the same."""

import math

import numpy as np
from PIL import Image, ImageEnhance

RATIOS = (3 / 4, 4 / 3)  # of width to height, of a random part


def generator(seed: int, step: int, place: int) -> np.random.Generator:
    """The generator of one image of one step."""
    return np.random.default_rng([seed, step, 2, place])  # the third number sets it apart from those of a whole batch


def random_box(generator: np.random.Generator, height: int, width: int, smallest: float) -> tuple[int, int, int, int]:
    """A part of an image, (left, top, right, bottom), as torchvision's RandomResizedCrop chooses it.

    Its area is uniform between the fraction `smallest` and all of the image, the logarithm of its width to its height uniform
    in `RATIOS`; after ten that do not fit, the largest in the centre (Szegedy et al. 2014, arXiv:1409.4842, section 6).
    """
    for _ in range(10):
        area = height * width * generator.uniform(smallest, 1)
        ratio = math.exp(generator.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = int(generator.integers(height - down + 1)), int(generator.integers(width - across + 1))
            return left, top, left + across, top + down
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    across, down = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def jittered(generator: np.random.Generator, pixels: np.ndarray, strength: float) -> np.ndarray:
    """An image (height, width, 1 or 3) with brightness, contrast and saturation changed, in a random order.

    Each is multiplied by a factor uniform in [1 - strength, 1 + strength], as by torchvision's ColorJitter.
    """
    grey = pixels.shape[-1] == 1
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = generator.uniform(max(0, 1 - strength), 1 + strength, len(changes))
    for place in generator.permutation(len(changes)):
        if not (grey and changes[place] is ImageEnhance.Color):
            image = changes[place](image).enhance(factors[place])
    return np.atleast_3d(np.asarray(image))
