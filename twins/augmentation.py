"""Random changes of training images: functions of (seed, step, place in the batch), so that a resumed run sees the same."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from shared import masks

RATIOS = (3 / 4, 4 / 3)  # of width to height, of a random part


def generator(seed: int, step: int, place: int) -> np.random.Generator:
    """The generator of one image of one step."""
    return np.random.default_rng([seed, step, 2, place])  # the third number distinguishes it from those of a whole batch


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


def pair(
    generator: np.random.Generator,
    picture: Image.Image,
    mask: Image.Image,
    fill: tuple[int, ...],
    scale: Sequence[float] = (1, 1),
    window: Sequence[int] | None = None,
    flip: bool = False,
) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask, changed alike.

    Both are resized by a factor uniform in `scale`, the picture bilinearly and the mask by its nearest pixels. A `window`,
    (height, width), is cut out at random; what of it is beyond the picture has the colour `fill` and is ignored. With `flip`,
    half of all are mirrored.
    """
    factor = generator.uniform(scale[0], scale[1])
    if factor != 1:
        width, height = (max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    if window:
        places = [int(generator.integers(abs(n - w) + 1)) for n, w in zip(picture.size, reversed(window), strict=True)]
        left, top = (at if n >= w else -at for at, n, w in zip(places, picture.size, reversed(window), strict=True))
        size = (window[1], window[0])
        whole = Image.new(picture.mode, size, fill if picture.mode == "RGB" else fill[0])
        whole_mask = Image.new("L", size, masks.VOID)
        whole.paste(picture, (-left, -top))
        whole_mask.paste(mask, (-left, -top))
        picture, mask = whole, whole_mask
    if flip and generator.random() < 0.5:
        picture, mask = (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in (picture, mask))
    return picture, mask
