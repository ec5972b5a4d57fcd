"""What a naive port to PyTorch does, put back one trap at a time: see `shared/traps.toml`, which has them in words.

An engine has to be made in the context of `put_back`. Images are (batch, channels, height, width).
"""

from contextlib import AbstractContextManager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from shared import traps
from shared.mixup import Labels

from . import engine, layers


def aligned_corners(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=True)


def second_softmax(own: engine.Engine, logits: Tensor, labels: Labels, plain: Any = engine.Engine._cross_entropy) -> Tensor:
    return plain(own, logits.softmax(1), labels)


FORCED: dict[str, list[tuple[Any, str, Any]]] = {  # trap: what it replaces, as (owner, attribute, what a port has there)
    "frozen-bn": [(engine, "BatchNorm", ())],  # an engine then finds none to freeze
    "softmax-in-model": [(engine.Engine, "_cross_entropy", second_softmax)],
    "upsample-corners": [(layers, "upsampled", aligned_corners)],
}


def put_back(trap: str) -> AbstractContextManager[None]:
    """In this context PyTorch behaves as in a naive port for one trap; as usual for a trap that is not of this package."""
    return traps.replaced(FORCED.get(trap, []))
